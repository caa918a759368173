"""Standard output as the shell gives it: closed, full, in an old encoding, or left by its reader.

Laws: what an encoding lacks is spelled as in JSON strings, so that JSON stays JSON; an answer that
can't be printed ends the command with an error; only who closes the pipe is told nothing.
"""

from __future__ import annotations

import codecs
import errno
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
_UNWRITABLE = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


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
    except OSError as error:
        # Files and sockets tell their own failures before they come here.
        if error.errno not in _UNWRITABLE:
            raise
        # What is left in the buffer would be tried again at the end, and change the return code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(LEFT)
        raise DeskfleetError(f"the answer can't be printed: {error.strerror}") from error
