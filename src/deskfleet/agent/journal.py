"""What an agent must still know after it was killed: an append-only file of one line a change.

An intent is on the disk before anything is started, so that a start which was cut short is told
from a session that ended, and a generation that has had its end is never started again. The
last line of a session counts. A line that can't be read, or whose sum is wrong, is passed over:
what really runs is asked of the driver anyway. The file is rewritten when most of it is history,
and after a write that has failed.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from zlib import crc32

import msgspec

from deskfleet.core.records import Frozen, Phase
from deskfleet.errors import SetupFailed
from deskfleet.machine import here
from deskfleet.ports import SessionSpec
from deskfleet.system import write_private

log = logging.getLogger(__name__)

REWRITE_LINES = 1000


class Entry(Frozen, frozen=True):
    """What an agent knows of one session that it was asked to run or stop."""

    spec: SessionSpec
    phase: Phase
    reason: str | None = None

    @property
    def generation(self) -> int:
        return self.spec.generation


class Line(Frozen, frozen=True):
    id: str
    entry: Entry | None = None
    """None: the session is forgotten."""


class Summed(Frozen, frozen=True):
    """A line as it stands in the file: one that a disk has changed must not be believed."""

    sum: int
    line: msgspec.Raw


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Line)
_summed_decoder = msgspec.json.Decoder(Summed)


def _encode(id: str, entry: Entry | None) -> bytes:
    line = _encoder.encode(Line(id=id, entry=entry))
    return _encoder.encode(Summed(sum=crc32(line), line=msgspec.Raw(line))) + b"\n"


def _decode(text: bytes) -> Line:
    summed = _summed_decoder.decode(text)
    if crc32(summed.line) != summed.sum:
        raise msgspec.DecodeError("the sum is wrong")
    return _decoder.decode(summed.line)


class Journal:
    """Raises `SetupFailed` where the file can't be read or written at all."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.entries: dict[str, Entry] = {}
        self._lines = 0
        self._descriptor: int | None = None
        """Where lines are added; None while the file is being replaced, and after that failed."""
        self._torn = False
        """A write has failed: how the file ends is not known."""
        try:
            self._read()
            self._rewrite()
        except OSError as error:
            raise SetupFailed(f"the journal can't be used: {path}: {error.strerror}") from error

    def write(self, session_id: str, entry: Entry | None) -> None:
        """Remember an entry durably, or forget it where it is None.

        Raises OSError where the disk fails; then everything is as it was before.
        """
        old = self.entries.get(session_id)
        if entry is None and old is None:
            return
        self._set(session_id, entry)
        try:
            if self._torn or self._lines > REWRITE_LINES + 4 * len(self.entries):
                self._rewrite()
            else:
                self._append(_encode(session_id, entry))
        except OSError:
            self._set(session_id, old)
            raise

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _set(self, session_id: str, entry: Entry | None) -> None:
        if entry is None:
            self.entries.pop(session_id, None)
        else:
            self.entries[session_id] = entry

    def _append(self, line: bytes) -> None:
        assert self._descriptor is not None
        self._torn = True
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        here.sync_content(self._descriptor)
        self._torn = False
        self._lines += 1

    def _read(self) -> None:
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return
        for number, text in enumerate(lines, start=1):
            try:
                line = _decode(text)
            except (msgspec.DecodeError, UnicodeDecodeError):
                log.warning("journal.line-passed-over", extra={"line": number})
                continue
            self._set(line.id, line.entry)

    def _rewrite(self) -> None:
        """Write all entries to a fresh file that takes the place of the old one."""
        self._torn = True
        # Closed first: Windows replaces no file that is open.
        self.close()
        write_private(
            self._path, b"".join(_encode(id, entry) for id, entry in self.entries.items())
        )
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | here.BINARY)
        self._torn = False
        self._lines = len(self.entries)
