"""The removal of a folder whose owner may be at work in it meanwhile.

Laws: nothing outside of the folder is touched, whatever its owner renames, links or mounts in the
meantime: all is reached by descriptors, from a folder that only the agent can change, through no
link and into no other mount. It ends: as root, each folder is taken from its owner before it is
emptied, so that a program that holds it open puts nothing more into it, and there is a limit in
seconds. What is left then is removed by a later call.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import count, islice
from pathlib import Path
from uuid import uuid4

from deskfleet.agent.drivers.owned_places import FOLDER, by_descriptor, open_inside
from deskfleet.machine.mounts import mounted_here, mounts
from deskfleet.machine.posix_ways import PLACE, open_place

LIMIT_SECONDS = 5.0
_UNMOUNT_SECONDS = 10.0
_BATCH = 1000
_DETACH = 2
"""MNT_DETACH of umount2(2): also what is busy, with all that is mounted below."""


def remove_folder(parent: Path, name: str, limit_seconds: float = LIMIT_SECONDS) -> bool:
    """Remove a folder with all that is in it, as far as it goes; return whether it is gone."""
    deadline = time.monotonic() + limit_seconds
    try:
        detach_mounts(parent, name, mounted_here())
        with ExitStack() as opened:
            above = open_place(str(parent), FOLDER, None, opened)
            _Removal(above, deadline).remove(name)
    except OSError:
        return False
    return True


def detach_mounts(parent: Path, name: str, mountinfo: bytes) -> None:
    """Detach what was mounted on the folder, or below it (gvfs and the like do that).

    `mountinfo` is the text of /proc/self/mountinfo. Paths in it may lead elsewhere by now.
    """
    base = os.fsencode(parent.resolve())
    with ExitStack() as opened:
        above = open_place(base, FOLDER, None, opened)
        for parts in _topmost(base, os.fsencode(name), mountinfo):
            with suppress(OSError, subprocess.TimeoutExpired):
                if os.geteuid() == 0:
                    _detach(above, parts)
                else:
                    # Only this program may; it knows by whom something was mounted.
                    subprocess.run(
                        ["fusermount", "-uz", b"/".join((base, *parts))],
                        check=False,
                        stdin=subprocess.DEVNULL,
                        capture_output=True,
                        timeout=_UNMOUNT_SECONDS,
                    )


def _topmost(base: bytes, name: bytes, mountinfo: bytes) -> Iterator[Sequence[bytes]]:
    """Yield where something is mounted below `base/name`, as often as it is there.

    What is mounted below that goes with it: nobody has to pass through a mount to it.
    """
    inside = base.rstrip(b"/").split(b"/")
    paths = sorted(mount.point.split(b"/") for mount in mounts(mountinfo))
    last: list[bytes] | None = None
    for path in paths:
        if path[: len(inside) + 1] != [*inside, name]:
            continue
        if last is None or path == last or path[: len(last)] != last:
            last = path
            yield path[len(inside) :]


def _detach(above: int, parts: Sequence[bytes]) -> None:
    """Detach the mount at a place; what is none, or is behind a link, is left alone."""
    import ctypes  # noqa: PLC0415 - few sessions have mounts

    with ExitStack() as opened:
        place = above
        for part in parts:
            # Without asking the file system behind it, which may never answer.
            place = open_place(part, PLACE, place, opened)
        ctypes.CDLL(None).umount2(by_descriptor(place).encode(), _DETACH)


class _Removal:
    def __init__(self, above: int, deadline: float) -> None:
        self._above, self._deadline = above, deadline
        self._fresh = (f"{uuid4()}.{number}" for number in count())

    def remove(self, name: str) -> None:
        """Remove a folder of the one above; raises OSError where something remains."""
        with ExitStack() as opened:
            try:
                top = self._take(self._above, name, opened)
            except FileNotFoundError:
                return
            for inner, is_folder in self._entries(top):
                if is_folder:
                    self._dissolve(top, inner)
                else:
                    os.unlink(inner, dir_fd=top)
        os.rmdir(name, dir_fd=self._above)

    def _dissolve(self, top: int, name: str) -> None:
        """Remove a folder, and lift what folders it has to the top: no tree is too deep then."""
        with ExitStack() as opened:
            folder = self._take(top, name, opened)
            for inner, is_folder in self._entries(folder):
                if is_folder:
                    with ExitStack() as passing:
                        # One that is closed to us could not be moved.
                        self._take(folder, inner, passing)
                    os.rename(inner, next(self._fresh), src_dir_fd=folder, dst_dir_fd=top)
                else:
                    os.unlink(inner, dir_fd=folder)
        os.rmdir(name, dir_fd=top)

    def _take(self, parent: int, name: str, opened: ExitStack) -> int:
        """Open a folder that from now on is nobody's but ours."""
        place = open_inside(parent, name, opened, os.O_DIRECTORY)
        path = by_descriptor(place)
        if os.geteuid() == 0:
            os.chown(path, 0, 0)
        os.chmod(path, 0o700)  # noqa: PTH101 - a descriptor
        return open_place(path, os.O_RDONLY | os.O_DIRECTORY, None, opened)

    def _entries(self, folder: int) -> Iterator[tuple[str, bool]]:
        """Yield what is in an open folder, and whether it is a folder, until there is nothing."""
        while True:
            # The kernel's own word of what is there: a stat would ask what is mounted on it.
            with os.scandir(folder) as entries:
                some = [
                    (one.name, one.is_dir(follow_symlinks=False)) for one in islice(entries, _BATCH)
                ]
            if not some:
                return
            for entry in some:
                if time.monotonic() > self._deadline:
                    raise TimeoutError
                yield entry
