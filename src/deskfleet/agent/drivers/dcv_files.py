"""The files that a DCV server is shown by their path, and the pictures that it writes.

    <runtime>/dcv/        0711  permissions files; nobody can list it
    <runtime>/pictures/   0700
    <scripts>/            0711  scripts of sessions; likewise

Scripts are programs, and many systems forbid to run any in /run or /tmp: so they have a place of
their own.

The DCV server and session owners are other users than the agent, and which of them opens a file
isn't documented. So a file that the server reads can be read by whoever knows its name, which is
128 bits of chance, and is gone as soon as it is of no more use. The name is no secret for as long
as a call lasts: it is among the arguments of the program, which any user of the machine can list.
Pictures lie where only the agent and root can go, whatever rights the program gives to them.
"""

from __future__ import annotations

import logging
import os
import secrets
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from deskfleet.core.pictures import MOST_BYTES
from deskfleet.errors import SetupFailed, StartFailed, Unavailable
from deskfleet.machine import here

log = logging.getLogger(__name__)

_SCRIPT = """\
#!/bin/sh
# Starts a session's autorun file as soon as there is a window manager to show its windows, as far
# as that can be asked, and what starts its desktop at once.
(
  tries=0
  while [ "$tries" -lt 10 ] && told=$(xprop -root _NET_SUPPORTING_WM_CHECK 2>/dev/null); do
    case $told in *"window id"*) break ;; esac
    tries=$((tries + 1))
    sleep 1
  done
  exec {autorun}
) </dev/null &
exec {init}
"""


class DcvFiles:
    def __init__(self, runtime: Path, scripts: Path) -> None:
        self._runtime, self._scripts = runtime, scripts
        self._folder, self._pictures = runtime / "dcv", runtime / "pictures"

    def make(self, kept: Iterable[str]) -> None:
        """Make the folders, and remove what an earlier agent left but for the files that are kept.

        Raises `SetupFailed` where they can't be had.
        """
        known = set(kept)
        try:
            for folder in (
                self._runtime.parent,
                self._runtime,
                self._scripts.parent,
                self._scripts,
                self._folder,
            ):
                here.make_folder(folder, 0o711)
            here.make_folder(self._pictures, 0o700)
            for folder in (self._folder, self._pictures, self._scripts):
                for path in folder.iterdir():
                    if str(path) not in known:
                        path.unlink()
        except OSError as error:
            where = error.filename or self._folder
            raise SetupFailed(f"{where} can't be used: {error.strerror}") from error
        if not here.runs_programs(self._scripts):
            log.warning("autorun.impossible", extra={"reason": self._noexec()})

    @contextmanager
    def permissions(self, content: bytes | None) -> Iterator[Path | None]:
        """Hold the content of a permissions file for as long as the context is entered."""
        if content is None:
            yield None
            return
        path = self._folder / f"{secrets.token_hex(16)}.perm"
        try:
            _write(path, content, 0o644)
            yield path
        finally:
            path.unlink(missing_ok=True)

    @contextmanager
    def picture(self) -> Iterator[Path]:
        """Give the path for a picture, which is removed afterwards."""
        path = self._pictures / secrets.token_hex(16)
        try:
            yield path
        finally:
            with suppress(OSError):
                path.unlink()

    def write_script(self, init: Path, autorun: Sequence[str]) -> Path:
        """Write the init file of a session that runs another one, and an autorun file beside it.

        Raises `StartFailed` where no program can be run from its place, and `OSError`.
        """
        if not here.runs_programs(self._scripts):
            raise StartFailed(self._noexec())
        path = self._scripts / f"{secrets.token_hex(16)}.sh"
        text = _SCRIPT.format(autorun=shlex.join(autorun), init=shlex.quote(str(init)))
        _write(path, text.encode(), 0o755)
        return path

    def _noexec(self) -> str:
        return f"no autorun file can be started: {self._scripts} is mounted noexec"


def read_picture(path: Path) -> bytes:
    """Return a picture that was written; raise `Unavailable` where none is that may be sent."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise Unavailable(f"the DCV server left no picture: {error.strerror}") from error
    if not content:
        raise Unavailable("the DCV server left an empty picture")
    if len(content) > MOST_BYTES:
        raise Unavailable(f"the DCV server left a picture of more than {MOST_BYTES:,} bytes")
    return content


def _write(path: Path, content: bytes, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        path.chmod(mode)
    except OSError:
        path.unlink()
        raise
