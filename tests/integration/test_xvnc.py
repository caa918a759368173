"""The xvnc driver against real desktops and hostile owners: what it keeps, and what it leaves."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pwd
import signal
import socket
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from Xlib.display import Display

from deskfleet.agent.drivers.desktops import Desktop
from deskfleet.agent.drivers.leader.children import descendants
from deskfleet.agent.drivers.pictures import encode
from deskfleet.agent.drivers.processes import identify
from deskfleet.agent.drivers.rfb_picture import take_picture
from deskfleet.agent.drivers.xvnc import XvncDriver
from deskfleet.agent.drivers.xvnc_installation import XvncInstallation
from deskfleet.agent.drivers.xvnc_record import SessionRecord
from deskfleet.core.records import Type
from deskfleet.errors import SetupFailed, StartFailed
from deskfleet.ports import SessionSpec
from support.sessions import (
    need_xvnc,
    program,
    session_owner,
    session_spec,
    xvnc_driver,
    xvnc_folder,
)
from support.users import ordinary_user
from support.waiting import soon, until

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a second user")
X_SOCKETS = Path("/tmp/.X11-unix")


@pytest.fixture
def folder() -> Iterator[Path]:
    need_xvnc()
    with xvnc_folder() as made:
        yield made


class Inside:
    """A running session, seen from its server."""

    def __init__(self, folder: Path, session_id: str = "s-1") -> None:
        records = [json.loads(path.read_text()) for path in (folder / "run/r").glob("*.json")]
        self.record: dict[str, Any] = next(
            record for record in records if record["spec"]["session_id"] == session_id
        )
        self.folder = folder / "run/s" / self.record["key"]
        self.leader: int = self.record["leader"]["pid"]
        self.x: int = self.record["x_pid"]
        self.display: int = self.record["display"]
        self._socket_made = self.socket.stat().st_mtime_ns

    @property
    def socket(self) -> Path:
        return X_SOCKETS / f"X{self.display}"

    @property
    def lock(self) -> Path:
        return Path(f"/tmp/.X{self.display}-lock")

    def client(self, *argv: str, text: str = "") -> str:
        """Run an X client as who runs the tests, with the session's cookie."""
        done = subprocess.run(
            argv,
            env={
                **os.environ,
                "DISPLAY": f":{self.display}",
                "XAUTHORITY": str(self.folder / "Xauthority"),
            },
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            check=False,
            timeout=20,
        )
        return done.stdout

    def traces(self) -> list[str]:
        """Return what is there of the session, besides processes.

        Its display may belong to another session by now, even to one of another test run.
        """
        places = [self.folder]
        if "cgroup" in self.record:
            places.append(Path(self.record["cgroup"]))
        found = [str(place) for place in places if os.path.lexists(place)]
        with suppress(FileNotFoundError):
            if int(self.lock.read_text()) == self.leader:
                found.append(str(self.lock))
        with suppress(FileNotFoundError):
            if self.socket.stat().st_mtime_ns == self._socket_made:
                found.append(str(self.socket))
        return found


def processes_of(folder: Path) -> list[str]:
    """Return the programs that were started for a folder's sessions."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if str(folder).encode() in (entry / "environ").read_bytes():
                found.append((entry / "comm").read_text().strip())
        except OSError:
            continue
    return found


def opened_by(pid: int) -> list[str]:
    """Return what a process has open, without what it closes just now."""
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(str(path.readlink()))
    return found


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


Story = Callable[[XvncDriver], Awaitable[None]]


def play(folder: Path, story: Story, **settings: object) -> list[tuple[str, str]]:
    """Run a story with an open driver, stop what it leaves; return which ends were told."""
    ends: list[tuple[str, str]] = []

    async def scene() -> None:
        driver = xvnc_driver(folder, **settings)
        await driver.open(lambda session_id, reason: ends.append((session_id, reason)))
        try:
            await story(driver)
        finally:
            for session in driver.running():
                await driver.stop(session.session_id)
            await driver.close()

    asyncio.run(scene())
    assert processes_of(folder) == []
    for part in "rsd":
        assert list((folder / "run" / part).glob("*")) == []
    return ends


@pytest.mark.parametrize("control_groups", [True, False])
@pytest.mark.parametrize("victim", ["x", "leader"])
def test_a_killed_session_is_cleared_and_told(
    folder: Path, victim: str, *, control_groups: bool
) -> None:
    async def story(driver: XvncDriver) -> None:
        await driver.start(session_spec())
        inside = Inside(folder)
        os.kill(getattr(inside, victim), signal.SIGKILL)
        await soon(lambda: not driver.running())
        await soon(lambda: inside.traces() == [])
        assert driver.display_socket("s-1") is None

    ends = play(folder, story, control_groups=control_groups)
    assert len(ends) == 1
    assert "killed" in ends[0][1]


def test_leaving_the_desktop_ends_the_session(folder: Path) -> None:
    async def story(driver: XvncDriver) -> None:
        await driver.start(session_spec())
        inside = Inside(folder)
        children = Path(f"/proc/{inside.leader}/task/{inside.leader}/children").read_text()
        (desktop,) = [int(pid) for pid in children.split() if int(pid) != inside.x]
        os.kill(desktop, signal.SIGTERM)
        await soon(lambda: not driver.running())
        await soon(lambda: inside.traces() == [])

    ((session_id, reason),) = play(folder, story)
    assert session_id == "s-1"
    assert reason.startswith("the desktop ")


LIKE_AN_ENVIRONMENT = """
icewm &
echo "$XDG_CONFIG_DIRS" >"$XDG_RUNTIME_DIR/dirs"
until [ -e "$XDG_RUNTIME_DIR/leave" ]; do sleep 0.05; done
exit 143
"""


def test_a_desktop_environment_finds_its_settings_and_can_log_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"autostart/locker.desktop": "Hidden=true\n", "of/ours": "ünlocked\n"}
    argv = ("sh", "-c", LIKE_AN_ENVIRONMENT)
    desktop = Desktop(
        "LXDE",
        argv,
        config_dirs="/etc/xdg:/etc",
        config={f"config/{name}": text for name, text in settings.items()},
    )
    monkeypatch.setattr(XvncInstallation, "desktop", lambda _: desktop)

    async def story(driver: XvncDriver) -> None:
        await driver.start(session_spec())
        inside = Inside(folder)
        await soon((inside.folder / "xdg/dirs").exists)
        ours, *others = (inside.folder / "xdg/dirs").read_text().strip().split(":")
        assert others == ["/etc/xdg", "/etc"]
        assert {name: (Path(ours) / name).read_text() for name in settings} == settings
        (inside.folder / "xdg/leave").touch()
        await soon(lambda: not driver.running())

    assert play(folder, story) == [("s-1", "the desktop was left")]


LAST_BREATH = """
trap 'xprop -root WM_NAME >/dev/null && echo yes >"$HOME/.X-was-there"; exit' TERM
icewm &
while :; do sleep 0.05; done
"""


def test_programs_still_have_their_display_when_they_are_asked_to_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desktop = Desktop("LXDE", ("bash", "-c", LAST_BREATH))
    monkeypatch.setattr(XvncInstallation, "desktop", lambda _: desktop)
    said = Path(pwd.getpwnam(session_owner()).pw_dir) / ".X-was-there"
    said.unlink(missing_ok=True)

    async def story(driver: XvncDriver) -> None:
        await driver.start(session_spec())
        await driver.stop("s-1")

    play(folder, story)
    assert said.read_text() == "yes\n"
    said.unlink()


LEECHES = """#!/bin/bash
cd "$XDG_RUNTIME_DIR"
ssh-agent -a "$XDG_RUNTIME_DIR/agent.sock" > ssh-agent.out
mkdir -m 0700 gnupg
gpg-agent --homedir "$XDG_RUNTIME_DIR/gnupg" --daemon > gpg-agent.out 2>&1
setsid --fork setsid --fork sleep 1000
bash -c 'trap "" TERM HUP INT; echo $$ > deaf.pid; while :; do sleep 1000; done' &
(setsid bash -c 'trap "" TERM HUP; touch settled; exec sleep 2000' &)
wait
"""


LEECHING = {"Xvnc", "icewm", "ssh-agent", "gpg-agent", "sleep 1000", "sleep 2000"}


def program_of(pid: int) -> str:
    """Return a process's program, with its argument where that tells one from another."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return ""
    name = Path(words[0]).name
    return f"{name} {words[1]}" if name == "sleep" else name


@pytest.mark.parametrize("control_groups", [True, False])
@pytest.mark.parametrize("how", ["stop", "leader-killed"])
def test_nothing_outlives_its_session(folder: Path, how: str, *, control_groups: bool) -> None:
    if how == "leader-killed" and os.geteuid() != 0:
        pytest.skip("only root finds agents that hide their environment, once their leader is dead")
    program(folder / "autorun/leeches", LEECHES)

    async def story(driver: XvncDriver) -> None:
        await driver.start(session_spec(autorun_file="leeches"))
        inside = Inside(folder)
        for sign in ("xdg/settled", "xdg/deaf.pid", "xdg/agent.sock", "xdg/gnupg/S.gpg-agent"):
            await soon((inside.folder / sign).exists)
        await soon(lambda: {program_of(pid) for pid in descendants(inside.leader)} >= LEECHING)
        below = [identify(pid) for pid in descendants(inside.leader)]
        assert len(below) >= 8
        if how == "stop":
            started = time.monotonic()
            await driver.stop("s-1")
            assert time.monotonic() - started < 10
        else:
            os.kill(inside.leader, signal.SIGKILL)
            await soon(lambda: not driver.running())
        assert inside.traces() == []
        assert [one for one in below if one is not None and identify(one.pid) == one] == []

    play(folder, story, control_groups=control_groups)


def test_an_agent_that_was_killed_finds_its_sessions_again(folder: Path) -> None:
    async def before() -> None:
        driver = xvnc_driver(folder)
        await driver.open(lambda *_: None)
        await driver.start(session_spec())
        # No close: as after kill -9, nothing more is done by this driver.

    asyncio.run(before())
    inside = Inside(folder)

    async def story(driver: XvncDriver) -> None:
        assert [session.session_id for session in driver.running()] == ["s-1"]
        again = Inside(folder)
        assert (again.leader, again.x) == (inside.leader, inside.x)
        assert alive(again.leader)
        assert alive(again.x)
        assert await driver.screenshot("s-1", max_width=100, max_height=100, format="jpeg")
        os.kill(again.leader, signal.SIGKILL)
        await soon(lambda: not driver.running())

    ends = play(folder, story)
    assert [session_id for session_id, _ in ends] == ["s-1"]
    assert inside.traces() == []


@pytest.mark.parametrize("harm", ["corrupt", "unready", "lost", "other boot"])
def test_what_can_not_be_taken_up_is_cleared(folder: Path, harm: str) -> None:
    async def before() -> None:
        driver = xvnc_driver(folder)
        await driver.open(lambda *_: None)
        await driver.start(session_spec())
        await driver.close()

    asyncio.run(before())
    inside = Inside(folder)
    record = folder / "run/r" / f"{inside.record['key']}.json"
    if harm == "corrupt":
        record.write_bytes(record.read_bytes()[:-7] + b"\xff\x00{")
    elif harm == "lost":
        record.unlink()
    elif harm == "unready":
        record.write_text(json.dumps({**inside.record, "ready": False}))
    else:
        # After a boot nothing of it runs; the folder is all that can be left.
        os.kill(inside.leader, signal.SIGTERM)
        until(lambda: not alive(inside.leader))
        record.write_text(json.dumps({**inside.record, "boot_id": "another"}))

    async def story(driver: XvncDriver) -> None:
        assert driver.running() == []
        assert not alive(inside.leader)
        assert not alive(inside.x)

    assert play(folder, story) == []
    assert inside.traces() == []
    assert not alive(inside.x)


def test_a_display_that_nobody_could_free_is_used_again(folder: Path) -> None:
    async def before() -> None:
        driver = xvnc_driver(folder)
        await driver.open(lambda *_: None)
        await driver.start(session_spec())
        await driver.close()

    asyncio.run(before())
    inside = Inside(folder)
    for pid in (inside.leader, inside.x):
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: not alive(pid))  # type: ignore[misc]
    assert str(inside.lock) in inside.traces()
    (folder / "run/r" / f"{inside.record['key']}.json").unlink()

    async def story(driver: XvncDriver) -> None:
        for number in range(8):
            await driver.start(session_spec(f"s-{number}"))
            if not inside.traces():
                break

    play(folder, story)
    assert inside.traces() == []


def test_an_owner_s_folders_in_the_places_of_x_keep_no_session(folder: Path) -> None:
    owner = pwd.getpwnam(session_owner())

    async def story(driver: XvncDriver) -> None:
        await driver.start(session_spec())
        inside = Inside(folder)
        for path in made(inside.leader):
            path.mkdir()
            os.chown(path, owner.pw_uid, owner.pw_gid)
        leaders.append(inside.leader)
        os.kill(inside.leader, signal.SIGKILL)
        await soon(lambda: not driver.running())
        assert inside.traces() == []
        await driver.start(session_spec())

    def made(leader: int) -> list[Path]:
        return [Path(f"/tmp/.tX{number}-{leader}") for number in (9, 10)]

    leaders: list[int] = []
    try:
        assert [session_id for session_id, _ in play(folder, story)] == ["s-1"]
    finally:
        for leader in leaders:
            for path in made(leader):
                path.rmdir()


INTRUDER = """
import os, socket, sys
display, folder, shown = sys.argv[1:]
def attempt(what):
    try:
        what()
    except OSError as error:
        return type(error).__name__
    return "let in"
def connect(path):
    return lambda: socket.socket(socket.AF_UNIX).connect(path)
print(attempt(connect(folder + "/rfb.sock")))
print(attempt(connect(shown)))
print(attempt(lambda: os.listdir(folder)))
print(attempt(lambda: open(folder + "/Xauthority").read()))
print(attempt(connect(chr(0) + display)))
"""


@AS_ROOT
def test_another_user_reaches_neither_the_desktop_nor_its_files(folder: Path) -> None:
    stranger = ordinary_user("dfbob")

    def as_stranger(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv,
            user=stranger.pw_uid,
            group=stranger.pw_gid,
            extra_groups=[],
            cwd="/",
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
            capture_output=True,
            text=True,
            check=False,
        )

    async def story(driver: XvncDriver) -> None:
        await driver.start(session_spec())
        inside = Inside(folder)
        shown = driver.display_socket("s-1")
        answers = as_stranger(
            "/usr/bin/python3", "-c", INTRUDER, str(inside.socket), str(inside.folder), str(shown)
        )
        assert answers.stdout.split() == ["PermissionError"] * 4 + ["ConnectionRefusedError"]
        look = as_stranger("xdpyinfo", "-display", f":{inside.display}")
        assert look.returncode != 0
        assert "unable to open display" in look.stderr

    play(folder, story)


def test_a_cookie_guards_every_display_even_from_its_owner(folder: Path) -> None:
    async def story(driver: XvncDriver) -> None:
        await driver.start(session_spec("s-1"))
        await driver.start(session_spec("s-2"))
        cookies = set()
        for session_id in ("s-1", "s-2"):
            inside = Inside(folder, session_id)
            assert f":{inside.display}" in inside.client("xdpyinfo")
            assert _handshake(inside.socket, b"\0" * 16) == 0
            assert _handshake(inside.socket, b"") == 0
            authority = inside.folder / "Xauthority"
            assert stat.S_IMODE(authority.stat().st_mode) == 0o600
            cookie = authority.read_bytes()[-16:]
            assert _handshake(inside.socket, cookie) == 1
            cookies.add(cookie)
        assert len(cookies) == 2

    play(folder, story)


def _handshake(path: Path, cookie: bytes) -> int:
    """Return what X answers to a connection: 1 is welcome."""
    name = b"MIT-MAGIC-COOKIE-1" if cookie else b""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(
            struct.pack("<BxHHHHxx", ord("l"), 11, 0, len(name), len(cookie))
            + name
            + bytes(-len(name) % 4)
            + cookie
        )
        return connection.recv(1)[0]


def test_no_session_listens_on_a_network(folder: Path) -> None:
    async def story(driver: XvncDriver) -> None:
        await driver.start(session_spec())
        inside = Inside(folder)
        sockets = {
            opened[len("socket:[") : -1]
            for pid in (inside.leader, inside.x)
            for opened in opened_by(pid)
            if opened.startswith("socket:[")
        }
        assert sockets
        for table in ("tcp", "tcp6", "udp", "udp6"):
            lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
            assert not sockets & {line.split()[9] for line in lines}

    play(folder, story)


@contextmanager
def another_server(*, rfb_socket: Path) -> Iterator[int]:
    """Run an X server of the session owner's own that chooses its display; yield which."""
    owner = pwd.getpwnam(session_owner())
    rights: dict[str, Any] = {"user": owner.pw_uid, "group": owner.pw_gid}
    told, telling = os.pipe()
    argv = ["Xvnc", "-displayfd", str(telling), "-rfbport", "-1", "-SecurityTypes", "None"]
    server = subprocess.Popen(
        [*argv, "-rfbunixpath", str(rfb_socket), "-nolisten", "tcp"],
        pass_fds=[telling],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        **(rights if os.geteuid() == 0 else {}),
    )
    os.close(telling)
    try:
        with os.fdopen(told) as answer:
            yield int(answer.readline())
    finally:
        server.terminate()
        server.wait()


def test_no_other_server_takes_a_display_away(folder: Path) -> None:
    async def story(driver: XvncDriver) -> None:
        await driver.start(session_spec())
        inside = Inside(folder)
        numbers = set()
        with ExitStack() as servers:
            for count in range(3):
                rfb_socket = inside.folder / f"{count}.sock"
                numbers.add(servers.enter_context(another_server(rfb_socket=rfb_socket)))
            assert f":{inside.display}" in inside.client("xdpyinfo")
        assert len(numbers | {inside.display}) == 4

    play(folder, story)


def test_a_picture_has_the_colours_of_the_desktop(folder: Path) -> None:
    colours = {0: (255, 0, 0), 1: (0, 255, 0), 2: (0, 0, 255), 3: (16, 128, 240)}
    folder.chmod(0o777)
    with another_server(rfb_socket=folder / "rfb.sock") as number:
        desktop = Display(f":{number}")
        root = desktop.screen().root
        for column, (red, green, blue) in colours.items():
            paint = root.create_gc(foreground=red << 16 | green << 8 | blue)
            root.fill_rectangle(paint, 10 * column, 0, 10, 10)
        desktop.sync()
        with take_picture(folder / "rfb.sock", 10, threading.Lock()) as picture:
            for format in ("png", "jpeg"):
                content = encode(picture, max_width=9999, max_height=9999, format=format)
                shown = Image.open(io.BytesIO(content))
                for column, colour in colours.items():
                    pixel = shown.getpixel((10 * column + 5, 5))
                    assert isinstance(pixel, tuple)
                    assert all(abs(a - b) < 12 for a, b in zip(pixel, colour, strict=True))
        desktop.close()


LOOK_AROUND = """#!/bin/bash
cd "$XDG_RUNTIME_DIR"
env -0 > environment
umask > umask
id -u > uid
id -Gn > groups
ls /proc/$$/fd > descriptors
(cd - > /dev/null; pwd > "$XDG_RUNTIME_DIR/folder")
printf '%s\\0' "$@" > arguments
xprop -root _NET_SUPPORTING_WM_CHECK > manager
touch settled
"""


def test_programs_find_a_clean_place_and_their_arguments(folder: Path) -> None:
    program(folder / "autorun/deep/look around", LOOK_AROUND)
    arguments = ("-c", "two words", "$(touch /tmp/never)", "ü;&|", "")

    async def story(driver: XvncDriver) -> None:
        await driver.start(
            session_spec(autorun_file="deep/look around", autorun_file_arguments=arguments)
        )
        inside = Inside(folder)
        found = inside.folder / "xdg"
        await soon((found / "settled").exists)
        owner = pwd.getpwnam(session_owner())
        assert (found / "arguments").read_bytes().decode().split("\0")[:-1] == list(arguments)
        assert (found / "uid").read_text().strip() == str(owner.pw_uid)
        assert (found / "umask").read_text().strip() == "0077"
        assert (found / "folder").read_text().strip() == owner.pw_dir
        assert (found / "descriptors").read_text().split() == ["0", "1", "2", "255"]
        assert "window id" in (found / "manager").read_text()
        lines = (found / "environment").read_text().split("\0")
        environment = dict(line.split("=", 1) for line in lines if line)
        assert environment["DCV_SESSION_ID"] == "s-1"
        assert environment["HOME"] == owner.pw_dir
        assert environment["LOGNAME"] == environment["USER"] == owner.pw_name
        assert environment["DISPLAY"] == f":{inside.display}"
        assert environment["XAUTHORITY"] == str(inside.folder / "Xauthority")
        assert not {"PYTEST_CURRENT_TEST", "VIRTUAL_ENV"} & environment.keys()

    play(folder, story)
    assert not Path("/tmp/never").exists()


def test_an_init_file_starts_the_desktop_and_ends_it(folder: Path) -> None:
    program(
        folder / "init/kiosk",
        '#!/bin/sh\nicewm 2>/dev/null &\ntouch "$XDG_RUNTIME_DIR/mine"\n'
        'until [ -e "$XDG_RUNTIME_DIR/leave" ]; do sleep 0.05; done\nexit 3\n',
    )
    program(folder / "autorun/late", '#!/bin/sh\ntouch "$XDG_RUNTIME_DIR/late"\n')

    async def story(driver: XvncDriver) -> None:
        await driver.start(session_spec(init_file="kiosk", autorun_file="late"))
        inside = Inside(folder)
        await soon((inside.folder / "xdg/mine").exists)
        await soon((inside.folder / "xdg/late").exists)
        assert not (inside.folder / "icewm.preferences").exists()
        (inside.folder / "xdg/leave").touch()
        await soon(lambda: not driver.running())
        await soon(lambda: inside.traces() == [])

    assert play(folder, story) == [("s-1", "the init file ended with status 3")]


def _running(kind: str, name: str) -> SessionSpec:
    request: dict[str, Any] = {kind: name}
    return session_spec(**request)


@pytest.mark.parametrize(
    "name",
    [
        "/bin/sh",
        "../init/good",
        "a/../../init/good",
        "..",
        ".",
        "missing",
        "link",
        "linked-folder/good",
        "good/deeper",
        "folder",
        "plain",
        "open-to-others",
        "nul\0l",
        "line\nbreak",
        "x" * 2000,
    ],
)
def test_hostile_and_broken_file_names_are_refused(folder: Path, name: str) -> None:
    init = folder / "init"
    program(init / "good", "#!/bin/sh\nsleep 1000\n")
    (init / "link").symlink_to(init / "good")
    (init / "linked-folder").symlink_to(init)
    (init / "folder").mkdir()
    (init / "plain").write_text("no program")
    program(init / "open-to-others", "#!/bin/sh\n")
    (init / "open-to-others").chmod(0o777)
    for kind in ("init_file", "autorun_file"):

        async def story(driver: XvncDriver, kind: str = kind) -> None:
            with pytest.raises(StartFailed) as refusal:
                await driver.start(_running(kind, name))
            assert refusal.value.message
            assert driver.running() == []

        play(folder, story, autorun_folder=init)


@pytest.mark.parametrize("kind", ["init_file", "autorun_file"])
def test_a_program_that_can_not_be_run_fails_the_start(folder: Path, kind: str) -> None:
    program(folder / "init/broken", "#!/nowhere/interpreter\n")

    async def story(driver: XvncDriver) -> None:
        with pytest.raises(StartFailed, match="broken could not be run: No such file"):
            await driver.start(_running(kind, "broken"))

    play(folder, story, autorun_folder=folder / "init")


def test_a_start_that_fails_says_why_and_leaves_nothing(folder: Path) -> None:
    async def story(driver: XvncDriver) -> None:
        with pytest.raises(StartFailed, match="X ended with status"):
            await driver.start(session_spec())
        assert driver.running() == []
        assert processes_of(folder) == []

    play(folder, story, geometry="as you like it")


def test_a_start_that_fails_before_its_order_leaves_nothing_open(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(driver: XvncDriver) -> None:
        write, written = driver._records.write, []

        def writes_once(record: SessionRecord) -> None:
            written.append(record)
            if len(written) % 2 == 0:
                raise OSError(28, "No space left on device")
            write(record)

        monkeypatch.setattr(driver._records, "write", writes_once)
        opened = []
        for _ in range(3):
            with pytest.raises(StartFailed, match="No space left"):
                await driver.start(session_spec())
            opened.append(sorted(Path("/proc/self/fd").iterdir()))
        assert len(written) == 6
        assert opened[0] == opened[2]

    play(folder, story)


def test_a_start_that_takes_too_long_leaves_nothing(folder: Path) -> None:
    async def story(driver: XvncDriver) -> None:
        with pytest.raises(StartFailed):
            await driver.start(session_spec())
        assert processes_of(folder) == []

    play(folder, story, start_limit_seconds=0.02)


def test_who_may_not_own_a_session_is_told(folder: Path) -> None:
    async def story(driver: XvncDriver) -> None:
        with pytest.raises(StartFailed, match="there is no user"):
            await driver.start(session_spec(owner="no-such-user-here"))
        with pytest.raises(StartFailed):
            await driver.start(session_spec(owner="daemon"))
        with pytest.raises(StartFailed, match="virtual sessions only"):
            await driver.start(session_spec(type=Type.CONSOLE))

    play(folder, story)


def test_a_tampering_owner_harms_nobody_else(folder: Path) -> None:
    treasure = folder / "treasure"
    treasure.mkdir()
    (treasure / "gold").touch()
    program(
        folder / "autorun/tamper",
        f"""#!/usr/bin/python3
import os
os.chdir(os.environ["XDG_RUNTIME_DIR"])
os.symlink("{treasure}", "outside")
os.symlink("{treasure}/gold", "../ended")
os.makedirs("../closed/inner")
os.chmod("../closed", 0)
for _ in range(3000):
    os.mkdir("d")
    os.chdir("d")
open(os.environ["XDG_RUNTIME_DIR"] + "/settled", "w").close()
""",
    )

    async def story(driver: XvncDriver) -> None:
        await driver.start(session_spec("s-1", autorun_file="tamper"))
        await driver.start(session_spec("s-2", name="kept"))
        inside, other = Inside(folder, "s-1"), Inside(folder, "s-2")
        await soon((inside.folder / "xdg/settled").exists)
        shown = driver.display_socket("s-1")
        assert shown is not None
        (inside.folder / "rfb.sock").unlink()
        (inside.folder / "rfb.sock").symlink_to(other.folder / "rfb.sock")
        assert _desktop_name(shown) == "a session"
        await driver.stop("s-1")
        assert inside.traces() == []
        assert (treasure / "gold").exists()
        assert [session.session_id for session in driver.running()] == ["s-2"]

    play(folder, story)


def _rfb(path: Path) -> tuple[socket.socket, bytes]:
    """Connect to a desktop; return the connection and the desktop's first words."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    connection.connect(str(path))
    stream = connection.makefile("rb")
    stream.read(12)
    connection.sendall(b"RFB 003.008\n")
    stream.read(stream.read(1)[0])
    connection.sendall(b"\1")
    stream.read(4)
    connection.sendall(b"\1")
    head = stream.read(24)
    name = stream.read(struct.unpack(">I", head[20:])[0])
    stream.close()
    return connection, name


def _desktop_name(path: Path) -> str:
    connection, name = _rfb(path)
    connection.close()
    return name.decode()


def test_the_clipboard_goes_both_ways(folder: Path) -> None:
    def exchange(inside: Inside, shown: Path) -> None:
        connection, _ = _rfb(shown)
        with connection:
            sent = b"from the browser" * 65536  # 1 MiB
            connection.sendall(struct.pack(">B3xI", 6, len(sent)) + sent)
            until(lambda: inside.client("xclip", "-o", "-selection", "clipboard") == sent.decode())
            copied = subprocess.Popen(
                ["xclip", "-selection", "clipboard", "-quiet"],
                env={
                    **os.environ,
                    "DISPLAY": f":{inside.display}",
                    "XAUTHORITY": str(inside.folder / "Xauthority"),
                },
                stdin=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            with copied:
                assert copied.stdin is not None
                copied.stdin.write(b"from the desktop")
                copied.stdin.close()
                heard = b""
                while b"from the desktop" not in heard:
                    heard += connection.recv(65536)
                copied.terminate()

    async def story(driver: XvncDriver) -> None:
        await driver.start(session_spec())
        shown = driver.display_socket("s-1")
        assert shown is not None
        await asyncio.to_thread(exchange, Inside(folder), shown)

    play(folder, story)


def test_a_title_can_hold_anything(folder: Path) -> None:
    async def story(driver: XvncDriver) -> None:
        await driver.start(session_spec(name="-rfbport 5999 \n\x1b[31m é" + "x" * 500))
        shown = driver.display_socket("s-1")
        assert shown is not None
        name = await asyncio.to_thread(_desktop_name, shown)
        assert name.startswith("-rfbport 5999   [31m éxxx")

    play(folder, story)


def test_a_runtime_folder_that_can_not_work_is_refused(folder: Path) -> None:
    async def open_below(inner: str) -> None:
        await xvnc_driver(folder / inner).open(lambda *_: None)

    with pytest.raises(SetupFailed, match="too long"):
        asyncio.run(open_below("x" * 100))
    if os.geteuid() == 0:
        (folder / "closed").mkdir(mode=0o700)
        with pytest.raises(SetupFailed, match="closed to them"):
            asyncio.run(open_below("closed"))
