"""What owners put where the agent looks: it is let be, and no look lasts for ever."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deskfleet.agent.drivers import session_folders
from deskfleet.agent.drivers.session_folders import RuntimeFolders, remove_x_traces
from support.mounts import mounted, never_answering
from support.sessions import session_owner, xvnc_folder
from support.users import need_root, ordinary_user

KEY = "0123abcd"
LEADER = 4711


@pytest.fixture
def folder() -> Iterator[Path]:
    with xvnc_folder() as made:
        yield made


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def make_lock(path: Path, pid: int = LEADER) -> None:
    path.write_text(f"{pid:10d}\n")


class Looks:
    """What an agent does with a session's folder, in a program that can be given up."""

    def __init__(self, folder: Path) -> None:
        self._runtime = folder / "run"
        self.folders = RuntimeFolders(self._runtime)
        self.folders.make()
        self.owner = ordinary_user(session_owner())
        self.session = self.folders.make_session(KEY, self.owner.pw_uid, self.owner.pw_gid)
        (self.session / "ended").write_text("it was left")
        make_socket(self.session / "rfb.sock")
        for inner in ("ended", "rfb.sock"):
            os.chown(self.session / inner, self.owner.pw_uid, self.owner.pw_gid)

    def told(self) -> list[str]:
        script = f"""if True:
            from pathlib import Path
            from deskfleet.agent.drivers.session_folders import RuntimeFolders
            from deskfleet.errors import StartFailed
            folders = RuntimeFolders(Path({str(self._runtime)!r}))
            print(folders.owner({KEY!r}))
            print(folders.why_ended({KEY!r}))
            try:
                folders.publish_display({KEY!r}, {self.owner.pw_uid})
                print("published")
            except StartFailed as failure:
                print(failure.message)
        """
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=20
        )
        return done.stdout.splitlines() or [done.stderr]


def test_a_session_s_folder_is_looked_at(folder: Path) -> None:
    looks = Looks(folder)
    assert looks.told() == [str(looks.owner.pw_uid), "it was left", "published"]
    assert looks.folders.display(KEY).is_socket()


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "nothing"])
def test_what_is_no_file_tells_no_reason(folder: Path, kind: str) -> None:
    looks = Looks(folder)
    ended = looks.session / "ended"
    ended.unlink()
    if kind == "link":
        (folder / "secret").write_text("of others")
        ended.symlink_to(folder / "secret")
    elif kind == "pipe":
        os.mkfifo(ended)
    elif kind == "folder":
        ended.mkdir()
    assert looks.told()[1] == "None"


@pytest.mark.parametrize("others", [False, True])
def test_a_file_system_on_a_session_s_folder_is_asked_nothing(
    folder: Path, *, others: bool
) -> None:
    need_root("mounting a file system")
    looks = Looks(folder)
    with never_answering(looks.session, looks.owner.pw_uid, others=others):
        assert looks.told() == [
            "None",
            "None",
            "the desktop's socket is not there: Invalid cross-device link",
        ]
    assert not os.path.lexists(looks.folders.display(KEY))


def test_a_file_system_on_a_file_is_asked_nothing(folder: Path) -> None:
    need_root("mounting a file system")
    looks = Looks(folder)
    owner = looks.owner.pw_uid
    with (
        never_answering(looks.session / "ended", owner),
        never_answering(looks.session / "rfb.sock", owner),
    ):
        assert looks.told() == [
            str(owner),
            "None",
            "the desktop's socket is not there: Invalid cross-device link",
        ]


class XPlaces:
    """The folders of X locks and of X sockets, in the place of those in /tmp."""

    def __init__(self, folder: Path) -> None:
        self.locks = folder / "X"
        self.sockets = self.locks / ".X11-unix"
        self.sockets.mkdir(parents=True)

    def left(self) -> list[str]:
        return sorted(path.name for part in (self.locks, self.sockets) for path in part.iterdir())


@pytest.fixture
def places(folder: Path, monkeypatch: pytest.MonkeyPatch) -> XPlaces:
    made = XPlaces(folder)
    monkeypatch.setattr(session_folders, "X_LOCKS", made.locks)
    monkeypatch.setattr(session_folders, "X_SOCKETS", made.sockets)
    return made


def test_the_traces_of_a_leader_s_display_are_removed(places: XPlaces) -> None:
    for number, pid in ((1, LEADER), (2, 99)):
        make_lock(places.locks / f".X{number}-lock", pid)
        make_lock(places.locks / f".tX{number}-{pid}", pid)
        make_socket(places.sockets / f"X{number}")
    assert remove_x_traces({LEADER}, os.getuid() + 1)
    assert len(places.left()) == 7
    assert remove_x_traces({LEADER, 4712}, os.getuid())
    assert places.left() == [".X11-unix", ".X2-lock", ".tX2-99", "X2"]


def test_a_folder_is_no_trace_of_x(places: XPlaces) -> None:
    """Whoever makes one keeps neither the rest from going nor the session from being over."""
    for path in (".tX9-4711", ".X76-lock", ".X11-unix/X77", ".X11-unix/X77/deep"):
        (places.locks / path).mkdir()
    for number in (77, 78):
        make_lock(places.locks / f".X{number}-lock")
    make_socket(places.sockets / "X78")
    (places.locks / ".X79-lock").symlink_to(places.locks / ".X78-lock")
    assert remove_x_traces({LEADER}, os.getuid())
    assert places.left() == [".X11-unix", ".X76-lock", ".X79-lock", ".tX9-4711", "X77"]


def test_what_takes_the_place_of_the_x_sockets_is_none(places: XPlaces) -> None:
    places.sockets.rmdir()
    make_lock(places.locks / ".X1-lock")
    assert remove_x_traces({LEADER}, os.getuid())
    places.sockets.touch()
    make_lock(places.locks / ".X1-lock")
    assert remove_x_traces({LEADER}, os.getuid())
    assert [path.name for path in places.locks.iterdir()] == [".X11-unix"]


def test_a_trace_that_stays_is_not_gone_and_keeps_no_other(
    folder: Path, places: XPlaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks = folder / "locks"
    monkeypatch.setattr(session_folders, "X_LOCKS", locks)
    with mounted(locks, "size=1m,mode=777"):
        for number in (1, 2):
            make_lock(locks / f".X{number}-lock")
            make_socket(places.sockets / f"X{number}")
        subprocess.run(["mount", "-o", "remount,ro", str(locks)], check=True)
        assert not remove_x_traces({LEADER}, os.getuid())
        assert list(places.sockets.iterdir()) == []
        subprocess.run(["mount", "-o", "remount,rw", str(locks)], check=True)
        assert remove_x_traces({LEADER}, os.getuid())
        assert list(locks.iterdir()) == []


def test_a_file_system_on_a_trace_of_x_is_asked_nothing(places: XPlaces) -> None:
    need_root("mounting a file system")
    make_lock(places.locks / ".X1-lock")
    draft = places.locks / f".tX1-{LEADER}"
    draft.mkdir()
    script = f"""if True:
        from pathlib import Path
        from deskfleet.agent.drivers import session_folders
        session_folders.X_LOCKS = Path({str(places.locks)!r})
        print(session_folders.remove_x_traces({{{LEADER}}}, {os.getuid()}))
    """
    with never_answering(places.locks / ".X1-lock", 65534), never_answering(draft, 65534):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=20
        )
    assert done.stdout == "True\n", done.stderr
