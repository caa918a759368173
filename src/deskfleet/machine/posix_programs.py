"""The administrator's programs on a POSIX system: found below a folder, safe to run by path.

The way to the folder is looked at as `posix_ways` does it; from there to the program itself no link
is passed. Nobody but root and the agent's own user may be able to change any part of it, their
groups neither. That is why the program may be run by its path, and a script still finds itself by
its name.

Whether the owner may execute it is the kernel's answer when the owner does.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from deskfleet.errors import StartFailed
from deskfleet.machine.posix_ways import PLACE, open_place, walk
from deskfleet.machine.program_names import refuse_unspeakable

_WRITABLE = stat.S_IWGRP | stat.S_IWOTH
_EXECUTABLE = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH


def find_program(folder: Path, name: str, kind: str) -> Path:
    """Return the path of a program below the folder; raise `StartFailed` with why there is none.

    `kind` is what the owner calls it: "init file" or "autorun file".
    """
    parts = components(name, kind)
    what = f"{kind} {name!r}"
    with ExitStack() as opened:
        root, descriptor = _open_root(folder, kind, opened)
        for number, part in enumerate(parts, start=1):
            flags = PLACE if number == len(parts) else PLACE | os.O_DIRECTORY
            descriptor = _step(descriptor, part, flags, what, opened)
            _refuse_foreign(os.fstat(descriptor), what)
        _refuse_non_program(os.fstat(descriptor), what)
    return root.joinpath(*parts)


def components(name: str, kind: str) -> list[str]:
    """Return what a name is made of; raise `StartFailed` for one that leads out of its folder."""
    refuse_unspeakable(name, kind)
    if name.startswith("/"):
        raise StartFailed(f"the {kind} must be relative to its folder: {name!r}")
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if not parts or ".." in parts:
        raise StartFailed(f"the {kind} must not leave its folder: {name!r}")
    return parts


def _open_root(folder: Path, kind: str, opened: ExitStack) -> tuple[Path, int]:
    try:
        # Their administrator's links are followed: whoever else could turn one would choose among
        # all folders of the administrator.
        root, descriptor = walk(folder.absolute(), partial(_refuse_open_way, kind), opened)
        status = os.fstat(descriptor)
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    except OSError as error:
        raise StartFailed(f"the folder of {kind}s can't be opened: {error.strerror}") from error
    _refuse_foreign(status, f"the folder of {kind}s")
    return root, descriptor


def _step(parent: int, part: str, flags: int, what: str, opened: ExitStack) -> int:
    try:
        return open_place(_as_told(part), flags, parent, opened)
    except OSError as error:
        raise StartFailed(f"{what}: {_why(error)}") from error
    except UnicodeEncodeError:
        raise StartFailed(f"{what} has a name that this server can't write") from None


def _as_told(part: str) -> str:
    """Return a component whose bytes are those of the request, whatever the locale says."""
    if os.fsencode(part) != part.encode():
        raise UnicodeEncodeError("locale", part, 0, len(part), "other bytes than UTF-8 has")
    return part


def _why(error: OSError) -> str:
    if error.errno in {errno.ELOOP, errno.ENOTDIR}:
        return "a link or a file is on its way, where only folders may be"
    return error.strerror or str(error)


def _trusted(status: os.stat_result) -> bool:
    return status.st_uid in {0, os.geteuid()}


def _refuse_open_way(kind: str, status: os.stat_result, place: Path) -> None:
    if stat.S_ISLNK(status.st_mode):
        if not _trusted(status):
            raise StartFailed(
                f"a link on the way to the folder of {kind}s is not its administrator's"
            )
        return
    # In a folder such as /tmp only who owns an entry can move it away, and we look at its owner.
    closed = not status.st_mode & _WRITABLE or status.st_mode & stat.S_ISVTX
    if not (_trusted(status) and closed):
        raise StartFailed(
            f"the folder of {kind}s can be changed by others than its administrator,"
            f" who can change {place}"
        )


def _refuse_foreign(status: os.stat_result, what: str) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise StartFailed(f"{what} is a link, which is not followed")
    if not _trusted(status) or status.st_mode & _WRITABLE:
        raise StartFailed(f"{what} can be changed by others than its administrator")


def _refuse_non_program(status: os.stat_result, what: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise StartFailed(f"{what} is not a file")
    if not status.st_mode & _EXECUTABLE:
        raise StartFailed(f"{what} is not executable")
