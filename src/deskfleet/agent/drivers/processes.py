"""Processes as /proc knows them: which one it is, what it started, how it is ended.

A pid alone names nothing for long, so a process is a pid with its start time, on one boot of the
machine. Nothing is ever found by a program's name: only by descent, or by a mark in its
environment that nobody else has.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from deskfleet.agent.drivers.leader.children import descendants, send
from deskfleet.core.records import Frozen

_PROC = Path("/proc")
_CLEAN_LOOKS = 2
_START_TIME_FIELD = 19
"""Of the fields after the program's name in /proc/PID/stat; the first is the state."""


class Identity(Frozen, frozen=True):
    """One process, as long as this boot lasts."""

    pid: int
    start_time: int


def boot_id() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def identify(pid: int) -> Identity | None:
    """Return who lives under a pid, None for nobody or the dead that nobody has reaped."""
    state, identity = _state(pid)
    return None if state in {b"Z", b"X"} else identity


def reap(process: Identity) -> None:
    """Let the kernel forget a dead child of ours; nothing happens to any other process."""
    if _state(process.pid) == (b"Z", process):
        with suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)


def _state(pid: int) -> tuple[bytes, Identity | None]:
    try:
        stat = (_PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return b"", None
    fields = stat.rpartition(b")")[2].split()
    return fields[0], Identity(pid=pid, start_time=int(fields[_START_TIME_FIELD]))


def watch(process: Identity) -> int | None:
    """Return a descriptor that can be read once the process has ended, None if it has already."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    if identify(process.pid) == process:
        return descriptor
    os.close(descriptor)
    return None


def end_tree(leader: Identity, grace_seconds: float, limit_seconds: float) -> bool:
    """Ask a session leader to end what is below it; after the grace kill that, and then the leader.

    The leader dies last: as long as it lives, nothing below it can slip away to another parent.
    Returns whether it is gone.
    """
    with _watched(leader) as descriptor:
        if descriptor is None:
            return True
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        if _ended(descriptor, grace_seconds):
            return True
        deadline = time.monotonic() + limit_seconds
        while time.monotonic() < deadline:
            below = descendants(leader.pid)
            send(signal.SIGKILL, below or [leader.pid])
            if _ended(descriptor, 0.02):
                return True
    return False


@contextmanager
def _watched(process: Identity) -> Iterator[int | None]:
    descriptor = watch(process)
    if descriptor is None:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _ended(descriptor: int, seconds: float) -> bool:
    # Not select(): it takes no descriptor above 1023, and an agent may have thousands of them.
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def marked(mark: bytes) -> list[int]:
    """Return all living processes that have an entry in the environment they were started with.

    Programs that keep secrets (ssh-agent, gpg-agent) hide it from everybody but root.
    """
    return [pid for pid in _all_pids() if _has(pid, mark)]


def end_marked(mark: bytes, limit_seconds: float) -> bool:
    """Kill all that carry a mark until there are none; return whether there are none.

    One look is not enough: what starts another program at that moment has no environment.
    """
    deadline = time.monotonic() + limit_seconds
    clean_looks = 0
    while clean_looks < _CLEAN_LOOKS:
        pids = marked(mark)
        send(signal.SIGKILL, pids)
        clean_looks = 0 if pids else clean_looks + 1
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
    return True


def _has(pid: int, mark: bytes) -> bool:
    try:
        environment = (_PROC / str(pid) / "environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        # It has ended, or it is somebody else's. Whatever else is wrong proves nothing.
        return False
    return mark in environment.split(b"\0") and identify(pid) is not None


def _all_pids() -> Iterator[int]:
    """Give every process; none where the system has no /proc."""
    with suppress(FileNotFoundError), closing(os.scandir(_PROC)) as entries:
        for entry in entries:
            if entry.name.isdecimal():
                yield int(entry.name)
