"""Reading a configuration file: a plain file of a bounded size that only the right people change.

Whoever writes a program's file is its master, and whoever reads a password in it has the password:
any file that belongs to somebody else than root or the program's own user, that others can write,
or that is private and everybody can read, is refused with the line that mends it.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from deskfleet.errors import SetupFailed, plain
from deskfleet.machine import here

MAX_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Content:
    path: Path
    text: bytes
    status: os.stat_result


def content_of(path: Path, most: int = MAX_BYTES) -> Content:
    """Read the file, with the owner and mode of what was read. Raises `SetupFailed`."""
    try:
        # Without waiting for somebody to write, where it is a pipe.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise SetupFailed(f"{path} can't be read: it is not a file")
            text = file.read(most + 1)
    except (OSError, ValueError) as error:
        raise SetupFailed(f"{path} can't be read: {plain(error)}") from error
    if len(text) > most:
        raise SetupFailed(f"{path} can't be read: it is larger than {most} bytes")
    return Content(path, text, status)


def why_foreign(content: Content) -> str | None:
    """Return that a file belongs to another user than root or that of this program."""
    path, status = content.path, content.status
    if here.belongs_to_others(status):
        return (
            f"{path} belongs to the user {status.st_uid}, who could change it;"
            f" run: chown root {path}"
        )
    return None


def why_changeable(content: Content) -> str | None:
    """Return what lets others than a file's owner change it."""
    path, mode = content.path, here.exposure(content.status, 0o022)
    if mode is not None:
        return f"{path} can be changed by others (mode {mode}); run: chmod 640 {path}"
    return None


def why_readable(content: Content) -> str | None:
    """Return what lets everybody read a file; its group may."""
    mode = here.exposure(content.status, 0o004)
    if mode is not None:
        return (
            f"{content.path} can be read by everybody (mode {mode}), and may hold passwords;"
            f" run: chmod 640 {content.path}"
        )
    return None
