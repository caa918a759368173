"""Who is at work in a runtime folder, so that what nobody needs any more can go.

An agent holds its folder for as long as it runs. Law: nothing that another agent could need is
removed while that one holds the folder too, such as one that starts when this one ends. The lock
is on the folder itself, which only its owner can open. Blocking.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from deskfleet.errors import SetupFailed
from deskfleet.machine import here

MODE = 0o711
_ATTEMPTS = 10


class Hold:
    def __init__(self, runtime: Path, tidy: Callable[[], None]) -> None:
        """Make a folder and hold it; `tidy` is called before, where nobody else holds it."""
        self._runtime = runtime
        self._descriptor = self._take(tidy)

    def leave(self, is_unused: Callable[[], bool]) -> None:
        """Let go of the folder; remove it where nobody else holds it and nothing uses it."""
        try:
            # Where somebody else has removed it, there is nothing to be done.
            with suppress(OSError):
                if here.take(self._descriptor) and is_unused():
                    shutil.rmtree(self._runtime, ignore_errors=True)
        finally:
            os.close(self._descriptor)

    def _take(self, tidy: Callable[[], None]) -> int:
        for _ in range(_ATTEMPTS):
            try:
                here.make_folder(self._runtime, MODE)
            except OSError as error:
                raise SetupFailed(f"{self._runtime} can't be used: {error.strerror}") from error
            with ExitStack() as unless_held, suppress(FileNotFoundError):
                descriptor = os.open(self._runtime, os.O_RDONLY | os.O_DIRECTORY)
                unless_held.callback(os.close, descriptor)
                if here.take(descriptor) and self._is(descriptor):
                    tidy()
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                # Who left meanwhile may have taken the folder away.
                if self._is(descriptor):
                    unless_held.pop_all()
                    return descriptor
        raise SetupFailed(f"{self._runtime} can't be used: it is removed again and again")

    def _is(self, descriptor: int) -> bool:
        return os.path.samestat(os.fstat(descriptor), self._runtime.stat())
