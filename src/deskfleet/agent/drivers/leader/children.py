"""The processes below the leader: found by descent, reaped, ended; never known by name.

The leader is the reaper of every orphan below it, so that having no child left means that
nothing of the session is left. What programs print is read, and all but its end forgotten.
"""

# Importing pathlib would cost every session 10 ms.
# ruff: noqa: PTH123, PTH208
from __future__ import annotations

import errno
import os

from .ended import Ended

PR_SET_CHILD_SUBREAPER = 36
OUTPUT_TAIL_BYTES = 4096


def descendants(pid: int) -> list[int]:
    """Return all living descendants of a process, parents before children."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        children = _children(waiting.pop())
        found += children
        waiting += children
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", "rb") as children:
                found += map(int, children.read().split())
    except OSError:
        return found
    return found


def lives(pid: int) -> bool:
    """Return whether a process is there and not just waiting to be reaped."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[0] not in {b"Z", b"X"}
    except OSError:
        return False


def reaped() -> list[tuple[int, int]]:
    """Return every child that has ended since the last call, with its wait status."""
    found: list[tuple[int, int]] = []
    try:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return found
            found.append((pid, status))
    except ChildProcessError:
        return found


def any_child_left() -> bool:
    reaped()
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def send(number: int, pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except OSError as error:
            if error.errno not in (errno.ESRCH, errno.EPERM):
                raise


def become_subreaper() -> None:
    """Become the parent of every orphan below us. While X starts: loading ctypes takes 5 ms."""
    import ctypes  # noqa: PLC0415

    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise Ended("this kernel gives us no charge of orphans")


class Output:
    """Where programs print; all but the end is forgotten."""

    def __init__(self) -> None:
        self.end, self.entrance = os.pipe()
        os.set_blocking(self.end, False)
        self._tail = b""

    def read(self) -> None:
        try:
            self._tail = (self._tail + os.read(self.end, 65536))[-OUTPUT_TAIL_BYTES:]
        except BlockingIOError:
            return

    def last_line(self) -> str:
        self.read()
        printed = self._tail.decode(errors="replace").splitlines()
        lines = [line.strip() for line in printed if line.strip(" \t()E")]
        return lines[-1] if lines else ""
