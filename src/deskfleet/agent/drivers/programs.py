"""The administrator's programs that a session may ask for by name: init files and autorun files.

A name is relative to the folder that the administrator set for its kind. It is walked from that
folder's descriptor, one component at a time, and never through a link. Nobody but root and the
agent's own user may be able to change anything on the way; that is why running the program by its
path later is as safe as running the opened file, and a script still finds itself by its name.
Whether the owner may execute it is the kernel's answer when the owner does.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack
from pathlib import Path

from deskfleet.errors import StartFailed

MAX_NAME_BYTES = 1024
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def find_program(folder: Path, name: str, kind: str) -> Path:
    """Return the path of a program below the folder; raise `StartFailed` with why there is none.

    `kind` is what the owner calls it: "init file" or "autorun file".
    """
    parts = _components(name, kind)
    what = f"{kind} {name!r}"
    with ExitStack() as opened:
        root, descriptor = _open_root(folder, kind)
        opened.callback(os.close, descriptor)
        for number, part in enumerate(parts, start=1):
            descriptor = _step(descriptor, part, _FILE if number == len(parts) else _FOLDER, what)
            opened.callback(os.close, descriptor)
            _refuse_foreign(os.fstat(descriptor), what)
        _refuse_non_program(os.fstat(descriptor), what)
    return root.joinpath(*parts)


def _open_root(folder: Path, kind: str) -> tuple[Path, int]:
    try:
        root = folder.resolve(strict=True)
        descriptor = os.open(root, _FOLDER)
    except OSError as error:
        raise StartFailed(f"the folder of {kind}s can't be opened: {error.strerror}") from error
    try:
        _refuse_foreign(os.fstat(descriptor), f"the folder of {kind}s")
    except StartFailed:
        os.close(descriptor)
        raise
    return root, descriptor


def _components(name: str, kind: str) -> list[str]:
    if not name or len(name.encode(errors="replace")) > MAX_NAME_BYTES or not name.isprintable():
        raise StartFailed(f"the name of the {kind} is not valid")
    if name.startswith("/"):
        raise StartFailed(f"the {kind} must be relative to its folder: {name!r}")
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if not parts or ".." in parts:
        raise StartFailed(f"the {kind} must not leave its folder: {name!r}")
    return parts


def _step(descriptor: int, part: str, flags: int, what: str) -> int:
    try:
        return os.open(part, flags, dir_fd=descriptor)
    except OSError as error:
        raise StartFailed(f"{what}: {_why(error)}") from error


def _why(error: OSError) -> str:
    if error.errno in {errno.ELOOP, errno.ENOTDIR}:
        return "a link or a file is on its way, where only folders may be"
    return error.strerror or str(error)


def _refuse_foreign(status: os.stat_result, what: str) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise StartFailed(f"{what} is a link, which is not followed")
    if status.st_uid not in {0, os.geteuid()} or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StartFailed(f"{what} can be changed by others than its administrator")


def _refuse_non_program(status: os.stat_result, what: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise StartFailed(f"{what} is not a file")
    if not status.st_mode & (stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH):
        raise StartFailed(f"{what} is not executable")
