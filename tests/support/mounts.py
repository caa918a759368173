"""File systems of their own: small, read-only, without programs, or without an answer."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from support.users import need_root

_FUSE_INIT = 26


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
def holding_fast(point: Path, uid: int) -> Iterator[threading.Event]:
    """Mount a user's file system that takes every request and answers none.

    Who asks it can't even be killed before this is over. Yields what is set once somebody has.
    """
    asked, over = threading.Event(), threading.Event()
    with never_answering(point, uid) as device, ThreadPoolExecutor(1) as pool:
        serving = pool.submit(_take_requests, device, asked, over)
        try:
            yield asked
        finally:
            over.set()
            serving.result()


def _take_requests(device: int, asked: threading.Event, over: threading.Event) -> None:
    os.set_blocking(device, False)
    while not over.is_set():
        if not select.select([device], [], [], 0.01)[0]:
            continue
        with suppress(BlockingIOError):
            _, opcode, unique = struct.unpack_from("=IIQ", os.read(device, 1 << 20))
            if opcode == _FUSE_INIT:
                said = struct.pack("=IIIIHHIIHHI28x", 7, 31, 0, 0, 12, 9, 4096, 1, 0, 0, 0)
                os.write(device, struct.pack("=IiQ", 16 + len(said), 0, unique) + said)
            else:
                asked.set()


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
