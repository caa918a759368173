"""File systems of their own: small, read-only, without programs, or without an answer."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.users import need_root


def mount(point: Path | bytes, kind: str = "tmpfs", options: bytes = b"") -> None:
    system = ctypes.CDLL(None, use_errno=True)
    if system.mount(b"test", os.fsencode(point), kind.encode(), 0, options) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextmanager
def never_answering(point: Path, uid: int, *, others: bool = True) -> Iterator[int]:
    """Mount a user's file system that answers nothing; yield where it would.

    Whoever asks it waits until this is over. `others`: not only the user may ask it.
    """
    need_root("mounting a file system")
    if not Path("/dev/fuse").exists():
        pytest.skip("the kernel has no FUSE")
    kind = b"40000" if point.is_dir() else b"100000"
    answering = os.open("/dev/fuse", os.O_RDWR)
    try:
        options = b"fd=%d,rootmode=%b,user_id=%d,group_id=%d" % (answering, kind, uid, uid)
        mount(point, "fuse", options + b",allow_other" * others)
        yield answering
    finally:
        os.close(answering)
        ctypes.CDLL(None).umount2(os.fsencode(point), 2)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """Let a folder be an empty file system with these options; takes root (see `need_root`)."""
    need_root("mounting a file system")
    folder.mkdir(mode=0o711, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    subprocess.run(mount, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Let nobody write into a folder, root included."""
    folder.mkdir(exist_ok=True)
    if os.geteuid() == 0:
        with mounted(folder, "ro,size=1m,mode=700"):
            yield
        return
    folder.chmod(0o500)
    try:
        yield
    finally:
        folder.chmod(0o700)
