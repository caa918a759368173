"""The way to a file, and whether others than the administrator and a program's user could turn it.

Every component, from the root of the file system on, is opened below the one before it, and looked
at through its descriptor; links are followed one at a time. So the path that comes out leads to
what was looked at for as long as those who can change a part of the way leave it there, and whoever
else swaps links or folders in a race finds that the place where that would matter is refused in
every order of events.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from deskfleet.errors import SetupFailed

Look = Callable[[os.stat_result, Path], None]
"""Is shown a folder or a link before it is passed, and raises where that may not be."""

PLACE = os.O_PATH | os.O_NOFOLLOW
"""Opens a link itself, and nothing that does something when it is opened."""
_FOLDER = PLACE | os.O_DIRECTORY
_MOST_LINKS = 40


def walk(path: Path, look: Look, opened: ExitStack) -> tuple[Path, int]:
    """Go to what an absolute path leads to; return its real path, and it opened as a place."""
    way = [("/", open_place("/", _FOLDER, None, opened))]
    pending, links = list(reversed(path.parts[1:])), 0
    while pending:
        part, (_, parent) = pending.pop(), way[-1]
        if part == "..":
            del way[max(1, len(way) - 1) :]
            continue
        here = Path(*(name for name, _ in way))
        look(os.fstat(parent), here)
        descriptor = open_place(part, PLACE, parent, opened)
        status = os.fstat(descriptor)
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            look(status, here / part)
            target = Path(os.readlink("", dir_fd=descriptor))
            way = way[:1] if target.is_absolute() else way
            pending += reversed([one for one in target.parts if one != "/"])
        else:
            way.append((part, descriptor))
    return Path(*(name for name, _ in way)), way[-1][1]


def open_place(part: str | bytes, flags: int, parent: int | None, opened: ExitStack) -> int:
    descriptor = os.open(part, flags, dir_fd=parent)
    opened.callback(os.close, descriptor)
    return descriptor


def refuse_unsafe_folder(folder: Path, user: int | None = None) -> None:
    """Refuse a folder that others could exchange or write to, or that belongs to them.

    Raises `SetupFailed` where its owner, or that of a folder or link on the way to it, is neither
    root nor `user` (by default who runs this program), and where everybody can write to one of
    these; on the way the sticky bit makes up for that. What a folder's group may do there is its
    owner's decision. Of a folder that is still to be made, the way is looked at.
    """
    whose = os.geteuid() if user is None else user

    def look(status: os.stat_result, place: Path) -> None:
        if status.st_uid not in {0, whose}:
            raise SetupFailed(
                f"{folder} can't be trusted: {place} belongs to somebody else"
                f" (user {status.st_uid}); run this as that user (for a broker that was"
                " installed as a service, deskfleet-broker does)"
            )
        open_to_all = status.st_mode & stat.S_IWOTH and not stat.S_ISLNK(status.st_mode)
        if open_to_all and (place == real or not status.st_mode & stat.S_ISVTX):
            raise SetupFailed(
                f"{folder} can't be trusted: {place} can be written to by everybody"
                f" (mode {stat.S_IMODE(status.st_mode):o}); choose a folder that is this program's"
                f" own, such as /var/lib/dcvsmbroker for a broker, or run: chmod o-w {place}"
            )

    real = None
    with ExitStack() as opened:
        try:
            real, descriptor = walk(folder.absolute(), look, opened)
        except FileNotFoundError:
            return
        status = os.fstat(descriptor)
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        look(status, real)
