"""The administrator's programs on a POSIX system: found below a folder, safe to run by path.

Every component, from the root of the file system to the program itself, is opened below the one
before it, never through a link, and looked at through its descriptor. Nobody but root and the
agent's own user may be able to change any of them: so the path that comes out leads to what was
looked at for as long as these two leave it there, and whoever else swaps links or folders in a
race finds that the place where that would matter is refused in every order of events. That is why
the program may be run by its path, and a script still finds itself by its name.

Whether the owner may execute it is the kernel's answer when the owner does.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack
from pathlib import Path

from deskfleet.errors import StartFailed
from deskfleet.machine.program_names import refuse_unspeakable

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
_ANY = os.O_PATH | os.O_NOFOLLOW
"""Opens a link itself, and nothing that does something when it is opened."""
_WRITABLE = stat.S_IWGRP | stat.S_IWOTH
_EXECUTABLE = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH
_MOST_LINKS = 40


def find_program(folder: Path, name: str, kind: str) -> Path:
    """Return the path of a program below the folder; raise `StartFailed` with why there is none.

    `kind` is what the owner calls it: "init file" or "autorun file".
    """
    parts = components(name, kind)
    what = f"{kind} {name!r}"
    with ExitStack() as opened:
        root, descriptor = _open_root(folder, kind, opened)
        for number, part in enumerate(parts, start=1):
            flags = _ANY if number == len(parts) else _FOLDER
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
        root, descriptor = _walk(folder.absolute(), kind, opened)
        status = os.fstat(descriptor)
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    except OSError as error:
        raise StartFailed(f"the folder of {kind}s can't be opened: {error.strerror}") from error
    _refuse_foreign(status, f"the folder of {kind}s")
    return root, descriptor


def _walk(path: Path, kind: str, opened: ExitStack) -> tuple[Path, int]:
    """Go to the folder that the administrator set, through nothing that others could exchange.

    Their links are followed, one component at a time: whoever could turn a link on this way would
    choose among all folders of the administrator.
    """
    way = [("/", _open("/", _FOLDER, None, opened))]
    pending, links = list(reversed(path.parts[1:])), 0
    while pending:
        part, (_, parent) = pending.pop(), way[-1]
        if part == "..":
            del way[max(1, len(way) - 1) :]
            continue
        _refuse_open_way(os.fstat(parent), Path(*(name for name, _ in way)), kind)
        descriptor = _open(part, _ANY, parent, opened)
        if stat.S_ISLNK(os.fstat(descriptor).st_mode):
            links += 1
            target = _target(descriptor, links, kind)
            way = way[:1] if target.is_absolute() else way
            pending += reversed([one for one in target.parts if one != "/"])
        else:
            way.append((part, descriptor))
    return Path(*(name for name, _ in way)), way[-1][1]


def _target(link: int, links: int, kind: str) -> Path:
    if links > _MOST_LINKS:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if not _trusted(os.fstat(link)):
        raise StartFailed(f"a link on the way to the folder of {kind}s is not its administrator's")
    return Path(os.readlink("", dir_fd=link))


def _open(part: str, flags: int, parent: int | None, opened: ExitStack) -> int:
    descriptor = os.open(part, flags, dir_fd=parent)
    opened.callback(os.close, descriptor)
    return descriptor


def _step(parent: int, part: str, flags: int, what: str, opened: ExitStack) -> int:
    try:
        return _open(_as_told(part), flags, parent, opened)
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


def _refuse_open_way(status: os.stat_result, folder: Path, kind: str) -> None:
    # In a folder such as /tmp only who owns an entry can move it away, and we look at its owner.
    closed = not status.st_mode & _WRITABLE or status.st_mode & stat.S_ISVTX
    if not (_trusted(status) and closed):
        raise StartFailed(
            f"the folder of {kind}s can be changed by others than its administrator,"
            f" who can change {folder}"
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
