"""Places that a session's owner may turn at any moment: exchange, link elsewhere, mount upon.

Law: what lies there is opened by descriptors alone, through no link and into no other mount. A
file system that the owner has mounted is never asked anything: it may never answer.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from pathlib import Path

from deskfleet.machine.posix_ways import PLACE, open_place

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def open_inside(parent: int, name: str, opened: ExitStack, flags: int = 0) -> int:
    """Open what an open folder has under a name, as a place: to be looked at, or opened again.

    Raises `OSError` where something is mounted on it. A link is opened itself.
    """
    place = open_place(name, PLACE | flags, parent, opened)
    if _mount_of(place) != _mount_of(parent):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    return place


def by_descriptor(descriptor: int) -> str:
    """Return a path to what is open, wherever it is by now."""
    return f"/proc/self/fd/{descriptor}"


def _mount_of(descriptor: int) -> str:
    """Return by which mount something was reached; asks the kernel alone."""
    said = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    return next(line for line in said.splitlines() if line.startswith("mnt_id:"))
