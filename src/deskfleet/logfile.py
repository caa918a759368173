"""A log file that is put by when its day or hour is over, or when it is large.

`broker.log` becomes `broker.log.1`, that one `.2`, and so on; as many are kept as were asked for.

Laws: every record is in exactly one file, whole, also when several programs write to the same
one: who puts it by holds a lock on it meanwhile, and the others see that it has moved. A file
that can't be put by is written to all the same. Days and hours are those of UTC, as the times in
the records are.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from deskfleet.errors import SetupFailed
from deskfleet.machine import here

if sys.platform != "win32":
    import fcntl

_PERIODS = {"hourly": 3600, "daily": 86_400}
_AGAIN_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Rotation:
    """When a file is put by, and how many are kept."""

    every: str = "daily"
    max_bytes: int = 10_485_760
    keep: int = 9


class LogFile:
    """A stream of text for a logging handler, which sees to it that one thread at a time writes.

    Raises `SetupFailed` where the file can't be opened at first; later on nothing stops the log.
    """

    def __init__(
        self,
        path: Path,
        rotation: Rotation,
        *,
        mode: int = 0o640,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._rotation = rotation
        self._mode = mode
        self._now = now
        self._not_before = 0.0
        self._file: int | None = None
        try:
            self._file = self._opened()
        except OSError as error:
            raise SetupFailed(_why(path, error)) from error
        self._period = self._period_of_file()

    def write(self, text: str) -> int:
        """Write one record."""
        data = text.encode("utf-8", "backslashreplace")
        self._follow()
        if self._is_due(len(data)):
            self._put_by()
        if self._file is None:
            self._turn()
        written = 0
        while written < len(data):
            written += os.write(self._fd, data[written:])
        return len(text)

    def flush(self) -> None:
        """Do nothing: what was written is with the system."""

    def isatty(self) -> bool:
        return False

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    @property
    def _fd(self) -> int:
        if self._file is None:
            raise OSError(errno.EBADF, "the log is not open")
        return self._file

    def _opened(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | here.BINARY
        # In a folder that others can write to, a link could lead to any file of this user.
        return os.open(self._path, flags | getattr(os, "O_NOFOLLOW", 0), self._mode)

    def _period_at(self, instant: float) -> int:
        return int(instant // _PERIODS[self._rotation.every])

    def _period_of_file(self) -> int:
        status = os.fstat(self._fd)
        return self._period_at(status.st_mtime if status.st_size else self._now())

    def _follow(self) -> None:
        """Turn to the file that has the name now, where somebody has put this one by."""
        if not self._has_moved():
            return
        with suppress(OSError):
            self._turn()

    def _turn(self) -> None:
        fresh = self._opened()
        self.close()
        self._file, self._not_before = fresh, 0.0
        self._period = self._period_of_file()

    def _has_moved(self) -> bool:
        try:
            return not os.path.samestat(self._path.stat(), os.fstat(self._fd))
        except OSError:
            return True

    def _is_due(self, more: int) -> bool:
        now = self._now()
        if self._file is None or now < self._not_before:
            return False
        size = os.fstat(self._file).st_size
        if not size:
            return False
        return size + more > self._rotation.max_bytes or self._period_at(now) > self._period

    def _put_by(self) -> None:
        try:
            with self._alone() as is_ours:
                if is_ours:
                    self._shift()
        except OSError:
            # No room, no right, no lock: what has no other place goes on into this file.
            self._not_before = self._now() + _AGAIN_SECONDS
        self._follow()

    def _shift(self) -> None:
        keep, path = self._rotation.keep, self._path
        for number in sorted(self._numbers(), reverse=True):
            old = path.with_name(f"{path.name}.{number}")
            if number >= keep:
                old.unlink(missing_ok=True)
            else:
                here.replace(old, path.with_name(f"{path.name}.{number + 1}"))
        if keep:
            here.replace(path, path.with_name(f"{path.name}.1"))
        else:
            path.unlink(missing_ok=True)

    def _numbers(self) -> Iterator[int]:
        # At most four digits: dates are what other programs name their files by.
        pattern = re.compile(re.escape(self._path.name) + r"\.([1-9][0-9]{0,3})")
        for path in self._path.parent.iterdir():
            found = pattern.fullmatch(path.name)
            if found is not None:
                yield int(found[1])

    if sys.platform == "win32":

        @contextmanager
        def _alone(self) -> Iterator[bool]:
            """Let go of the file: one that is open, by whomever, can't be renamed there."""
            self.close()
            try:
                yield True
            finally:
                # Where that fails, the next record tries again.
                self._turn()

    else:

        @contextmanager
        def _alone(self) -> Iterator[bool]:
            """Hold the file alone; false where another program has put it by meanwhile.

            Never waits: readers hold locks too, and the program stands still meanwhile.
            """
            locked = self._fd
            fcntl.flock(locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                yield not self._has_moved()
            finally:
                fcntl.flock(locked, fcntl.LOCK_UN)


def why_unusable(path: Path) -> str | None:
    """Return why there can be no log file of this path, None where there can; none is made."""
    try:
        if not path.parent.is_dir():
            return _why(path, FileNotFoundError())
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            return _why(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    except OSError as error:
        return _why(path, error)
    return None


def _why(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"the folder of the log is not there; run: mkdir {path.parent}"
    return f"the log {path} can't be written: {error.strerror or error}"
