"""Standard output as the shell gives it: closed, full, in an old encoding, or left by its reader.

Laws: what an encoding lacks is spelled as in JSON strings, so that JSON stays JSON; an answer that
can't be printed ends the command with an error; only who closes the pipe is told nothing.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deskfleet.errors import DeskfleetError

LEFT = 1
"""The return code where nobody reads on: that of Typer, which mostly sees it first."""

_SPELLED = "deskfleet.spelled"


def prepare() -> None:
    """Make standard output one that everything can be written to; once, before anything is."""
    if sys.stdout is None:  # closed: `>&-`
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (it stays open)
    codecs.register_error(_SPELLED, spelled)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=_SPELLED)


def spelled(error: UnicodeError) -> tuple[str, int]:
    """Stand in for characters that an encoding lacks, as `codecs.register_error` wants it."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


@contextmanager
def printed() -> Iterator[None]:
    """See to it that what a command prints is out when it ends, however it ends."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except (OSError, ExceptionGroup) as error:
        trouble = _trouble()
        if trouble is None or not _holds(error, trouble.errno):
            raise
        # What is left in the buffer would be tried again at the end, and change the return code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(trouble, BrokenPipeError):
            sys.exit(LEFT)
        raise DeskfleetError(f"the answer can't be printed: {trouble.strerror}") from error


def _trouble() -> OSError | None:
    """Return why nothing can be printed: other files fail with the same numbers."""
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError as error:
        return error
    return None


def _holds(error: Exception, number: int | None) -> bool:
    """Look for a failure of the system, also among those of a program's tasks."""
    if isinstance(error, ExceptionGroup):
        return any(_holds(each, number) for each in error.exceptions)
    return isinstance(error, OSError) and error.errno == number
