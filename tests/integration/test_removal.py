"""A session's folder is removed whatever its owner does to it, and nothing else is."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deskfleet.agent.drivers.removal import detach_mounts, remove_folder
from deskfleet.agent.drivers.xvnc_launch import find_interpreter
from deskfleet.machine.mounts import mounted_here, mounts
from support.mounts import mount, never_answering
from support.sessions import xvnc_folder
from support.users import ordinary_user
from support.waiting import until

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount, or a second user")
NAME = "0123abcd"
ODD = b"\xc3\xa4 \n\t\\040\x0c\xff"
"""A name of bytes that are escaped, that end lines of text, and that are no text."""


def mounted_below(folder: Path) -> list[bytes]:
    return [one.point for one in mounts(mounted_here()) if one.point.startswith(bytes(folder))]


@pytest.fixture
def parent() -> Iterator[Path]:
    with xvnc_folder() as around:
        made = around / "s"
        made.mkdir(mode=0o711)
        try:
            yield made
        finally:
            for point in reversed(mounted_below(around)):
                ctypes.CDLL(None).umount2(point, 2)


def owned_folder(parent: Path) -> Path:
    folder = parent / NAME
    folder.mkdir(mode=0o700)
    if os.geteuid() == 0:
        user = ordinary_user("dfalice")
        os.chown(folder, user.pw_uid, user.pw_gid)
    return folder


@AS_ROOT
def test_what_is_mounted_on_it_or_in_it_is_detached(parent: Path) -> None:
    folder = owned_folder(parent)
    for inner in ("plain", os.fsdecode(ODD), "plain/below", "plain-too", "plain"):
        (folder / inner).mkdir(exist_ok=True)
        mount(folder / inner)
    assert bytes(folder) + b"/" + ODD in mounted_below(parent)
    assert remove_folder(parent, NAME)
    assert (mounted_below(parent), list(parent.iterdir())) == ([], [])

    owned_folder(parent)
    for _ in range(2):
        mount(folder)
        (folder / "inside").touch()
    assert remove_folder(parent, NAME)
    assert (mounted_below(parent), list(parent.iterdir())) == ([], [])


@AS_ROOT
def test_nothing_is_detached_behind_a_link(parent: Path) -> None:
    folder, elsewhere = owned_folder(parent), parent.parent / "elsewhere"
    for place in (folder / "a/home", elsewhere / "home"):
        place.mkdir(parents=True)
        mount(place)
    listed = mounted_here()
    # What an owner can do between the listing and the detaching.
    (folder / "a").rename(folder / "b")
    (folder / "a").symlink_to(elsewhere)
    detach_mounts(parent, NAME, listed)
    assert sorted(mounted_below(parent.parent)) == [
        bytes(elsewhere / "home"),
        bytes(folder / "b/home"),
    ]
    assert remove_folder(parent, NAME)
    assert mounted_below(parent.parent) == [bytes(elsewhere / "home")]


@AS_ROOT
def test_another_mount_is_never_entered(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner mounts something once the mounts have been detached."""
    folder = owned_folder(parent)
    (folder / "late").mkdir()
    mount(folder / "late")
    (folder / "late/kept").touch()
    monkeypatch.setattr("deskfleet.agent.drivers.removal.mounted_here", lambda: b"")
    assert not remove_folder(parent, NAME)
    assert (folder / "late/kept").exists()
    mount(folder)
    (folder / "kept").touch()
    assert not remove_folder(parent, NAME)
    assert (folder / "kept").exists()


@pytest.mark.parametrize("inner", [".", "gvfs"])
@pytest.mark.parametrize("others", [False, True])
def test_a_file_system_that_never_answers_is_detached(
    parent: Path, inner: str, *, others: bool
) -> None:
    folder = owned_folder(parent)
    (folder / inner).mkdir(exist_ok=True)
    with never_answering(folder / inner, folder.stat().st_uid, others=others):
        script = f"""if True:
            from pathlib import Path
            from deskfleet.agent.drivers.removal import remove_folder
            print(remove_folder(Path({str(parent)!r}), {NAME!r}))
        """
        # In a program that can be given up: a look into that file system would last for ever.
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
        assert done.stdout == "True\n", done.stderr
    assert list(parent.iterdir()) == []


CREATING = """
import itertools, os, sys
os.chdir(sys.argv[1])
for name in sys.argv[2:]:
    os.makedirs(name, exist_ok=True)
folders = [os.open(name, os.O_RDONLY) for name in sys.argv[2:]]
print("begun", flush=True)
for number in itertools.count():
    for folder in folders:
        try:
            os.close(os.open(f"f{number}", os.O_CREAT, dir_fd=folder))
        except OSError:
            pass
"""


@contextmanager
def somebody_creating(folder: Path, *inner: str, **rights: Any) -> Iterator[None]:
    """Run programs that hold folders in it open, and put files into them without an end."""
    argv = [find_interpreter() or sys.executable, "-c", CREATING, str(folder), *inner]
    running = [subprocess.Popen(argv, stdout=subprocess.PIPE, cwd="/", **rights) for _ in range(2)]
    try:
        for one in running:
            assert one.stdout is not None
            assert one.stdout.readline() == b"begun\n"
        yield
    finally:
        for one in running:
            one.kill()
            one.communicate()


@AS_ROOT
def test_an_owner_who_goes_on_creating_does_not_keep_it(parent: Path) -> None:
    folder = owned_folder(parent)
    user = ordinary_user("dfalice")
    rights = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    with somebody_creating(folder, ".", "inner", "inner/deep", **rights):
        until(lambda: sum(1 for _ in folder.iterdir()) > 100)
        until(lambda: remove_folder(parent, NAME))
        assert list(parent.iterdir()) == []


def test_one_who_can_not_be_shut_out_holds_nobody_up(parent: Path) -> None:
    folder = owned_folder(parent)
    with somebody_creating(folder, "."):
        # So many that they come faster than they go.
        until(lambda: sum(1 for _ in folder.iterdir()) > 5000)
        started = time.monotonic()
        remove_folder(parent, NAME, limit_seconds=0.5)
        assert time.monotonic() - started < 5
    until(lambda: remove_folder(parent, NAME))
    assert list(parent.iterdir()) == []


def test_what_is_left_is_removed_by_the_next_call(parent: Path) -> None:
    (owned_folder(parent) / "file").touch()
    assert not remove_folder(parent, NAME, limit_seconds=-1)
    assert remove_folder(parent, NAME)
    assert remove_folder(parent, NAME)
    assert list(parent.iterdir()) == []
