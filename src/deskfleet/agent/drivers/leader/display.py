"""The leader's X display: a number that is its own, and a cookie that guards it."""

# Importing pathlib would cost every session 10 ms.
# ruff: noqa: PTH108, PTH123, PTH208
from __future__ import annotations

import errno
import os
import socket
import struct

from .children import lives
from .ended import Ended

X_SOCKETS = "/tmp/.X11-unix/X"  # noqa: S108 - where every X client looks
ICE_SOCKETS = "/tmp/.ICE-unix"  # noqa: S108 - where session managers listen
FIRST_DISPLAY, LAST_DISPLAY = 1, 9999
FAMILY_LOCAL, FAMILY_WILD = 256, 65535
COOKIE_NAME = b"MIT-MAGIC-COOKIE-1"


def cookie_file(cookie: bytes, hostname: str, number: int) -> bytes:
    """Return an Xauthority file: one entry for any client, one for those that know no wildcard."""
    return b"".join(
        struct.pack(">H", family)
        + b"".join(
            struct.pack(">H", len(field)) + field
            for field in (address.encode(), str(number).encode(), COOKIE_NAME, cookie)
        )
        for family, address in ((FAMILY_WILD, ""), (FAMILY_LOCAL, hostname))
    )


class Display:
    """A display number that is ours alone.

    Xvnc would pick a number itself, but without its abstract socket it takes over the number of
    another server of the same user. So the leader binds that abstract name and never listens on
    it: the kernel lets nobody else have it, frees it with our death, and refuses who connects.
    The lock file holds off servers in other network namespaces, and tells the agent, by our pid,
    which display is to be removed where we could not.
    """

    def __init__(self) -> None:
        for number in range(FIRST_DISPLAY, LAST_DISPLAY + 1):
            guard = socket.socket(socket.AF_UNIX)
            try:
                guard.bind(f"\0{X_SOCKETS}{number}")
            except OSError:
                guard.close()
                continue
            if self._lock(number):
                self.number, self._guard = number, guard
                return
            guard.close()
        raise Ended("no X display number is free on this server")

    def _lock(self, number: int) -> bool:
        try:
            if os.lstat(f"{X_SOCKETS}{number}").st_uid != os.getuid():
                return False
        except FileNotFoundError:
            pass
        remove_stale_lock(lock_path(number))
        mine = f"/tmp/.tX{number}-{os.getpid()}"  # noqa: S108 - created exclusively, then linked
        descriptor = os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, b"%10d\n" % os.getpid())
            os.fchmod(descriptor, 0o444)
            os.link(mine, lock_path(number))
        except FileExistsError:
            return False
        finally:
            os.close(descriptor)
            os.unlink(mine)
        return True

    def release(self) -> None:
        for path in (f"{X_SOCKETS}{self.number}", lock_path(self.number)):
            try:
                os.unlink(path)
            except OSError:
                continue
        self._guard.close()


def remove_stale_lock(path: str) -> None:
    """Remove a lock of this user's whose process is dead, as X servers do.

    Whoever holds the abstract name of the display is alone in doing so.
    """
    try:
        with open(path, "rb") as lock:
            pid = int(lock.read(11))
        if os.lstat(path).st_uid == os.getuid() and not lives(pid):
            os.unlink(path)
    except (OSError, ValueError):
        return


def remove_dead_ice_sockets(folder: str = ICE_SOCKETS) -> None:
    """Remove the sockets of this user's session managers that are dead: their names are pids.

    Some leave theirs, and a later one of another user's under the same pid could not listen.
    """
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in filter(str.isdecimal, names):
        path = f"{folder}/{name}"
        try:
            if os.lstat(path).st_uid == os.getuid() and not lives(int(name)) and _is_deaf(path):
                os.unlink(path)
        except OSError:
            continue


def _is_deaf(path: str) -> bool:
    """Return whether nobody listens on a socket, in no container either."""
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        return client.connect_ex(path) == errno.ECONNREFUSED


def lock_path(number: int) -> str:
    return f"/tmp/.X{number}-lock"  # noqa: S108 - where every X server looks
