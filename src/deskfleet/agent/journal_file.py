"""How an agent's journal lies on the disk: an append-only file of one line a change.

The last line of a session counts. A line that can't be read, or whose sum is wrong, is passed
over: what really runs is asked of the driver anyway. The file is rewritten when most of it is
history, and after a write that has failed. Blocking, and for one thread at a time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias
from zlib import crc32

import msgspec

from deskfleet.core.records import Frozen, Phase
from deskfleet.errors import SetupFailed
from deskfleet.machine import here
from deskfleet.ports import SessionSpec
from deskfleet.system import write_private

log = logging.getLogger(__name__)

Failure: TypeAlias = str
"""Why something could not be written."""

REWRITE_LINES = 1000
MOST_OVER = 5000
"""So many sessions that nobody asks for any more are known to have had their end."""
LONGEST_BYTES = 128 * 1024
"""Of a line: the permissions of a session are most of it."""


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
    over: int = 0
    """Of a session that is forgotten: the last generation that has had its end, 0 for none."""


@dataclass(slots=True)
class Memory:
    """What is known of all sessions."""

    entries: dict[str, Entry] = field(default_factory=dict)
    over: dict[str, int] = field(default_factory=dict)
    """The last generation that has had its end, of sessions that were forgotten; oldest first."""

    def take(self, line: Line) -> None:
        if line.entry is not None:
            self.entries[line.id] = line.entry
            return
        self.entries.pop(line.id, None)
        if line.over:
            self.over[line.id] = max(line.over, self.over.pop(line.id, 0))
            if len(self.over) > MOST_OVER:
                del self.over[next(iter(self.over))]

    def copy(self) -> Memory:
        return Memory(dict(self.entries), dict(self.over))

    def lines(self) -> list[Line]:
        """Return what makes a memory like this one."""
        over = [Line(id=id, over=generation) for id, generation in self.over.items()]
        return over + [Line(id=id, entry=entry) for id, entry in self.entries.items()]


class Summed(Frozen, frozen=True):
    """A line as it stands in the file: one that a disk has changed must not be believed."""

    sum: int
    line: msgspec.Raw


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Line)
_summed_decoder = msgspec.json.Decoder(Summed)


def _encode(line: Line) -> bytes:
    text = _encoder.encode(line)
    return _encoder.encode(Summed(sum=crc32(text), line=msgspec.Raw(text))) + b"\n"


def _decode(text: bytes) -> Line:
    summed = _summed_decoder.decode(text)
    if crc32(summed.line) != summed.sum:
        raise msgspec.DecodeError("the sum is wrong")
    return _decoder.decode(summed.line)


class JournalFile:
    """Raises `SetupFailed` where the file can't be read or written at all."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.memory = Memory()
        """What is on the disk."""
        self.torn = False
        """A write has failed, and none has succeeded since: how the file ends is not known."""
        self._lines = 0
        self._descriptor: int | None = None
        """Where lines are added; None while the file is being replaced, and after that failed."""
        try:
            self._read()
            self._rewrite()
        except OSError as error:
            raise SetupFailed(f"the journal can't be used: {path}: {error.strerror}") from error

    def write(self, lines: Sequence[Line]) -> list[Failure | None]:
        """Write lines durably, all with one sync; return of each why it is not written, if so.

        Where they can't all be written each is tried alone: what is too long for the room that is
        left keeps nothing else out.
        """
        failure = self._attempt(lines)
        if failure is not None:
            log.error("journal.failed", extra={"reason": failure})
            if len(lines) > 1:
                return [self._attempt([line]) for line in lines]
        return [failure] * len(lines)

    def mend(self) -> list[Failure | None]:
        """Make the file whole after a failure, once there is room for the longest line again."""
        trial = self._path.with_name(f"{self._path.name}.trial")
        try:
            write_private(trial, bytes(LONGEST_BYTES))
            self._rewrite()
        except OSError as error:
            log.info("journal.not-mended", extra={"reason": error.strerror})
        else:
            log.info("journal.mended")
        finally:
            trial.unlink(missing_ok=True)
        return []

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _attempt(self, lines: Sequence[Line]) -> Failure | None:
        """Write all lines or none; after a failure everything is as it was before."""
        before = self.memory.copy()
        try:
            text = b"".join(map(_encode, lines))
            for line in lines:
                self.memory.take(line)
            if self.torn or self._history() > REWRITE_LINES:
                self._rewrite()
            else:
                self._append(text)
                self._lines += len(lines)
        except (OSError, UnicodeError) as error:
            self.memory = before
            reason = error.strerror if isinstance(error, OSError) else None
            return reason or str(error)
        return None

    def _history(self) -> int:
        """Return how many lines tell nothing new, more or less, beyond some for each session."""
        return self._lines - 4 * len(self.memory.entries) - len(self.memory.over)

    def _append(self, text: bytes) -> None:
        assert self._descriptor is not None
        self.torn = True
        rest = memoryview(text)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        here.sync_content(self._descriptor)
        self.torn = False

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
            self.memory.take(line)

    def _rewrite(self) -> None:
        """Write all that is known to a fresh file that takes the place of the old one."""
        self.torn = True
        # Closed first: Windows replaces no file that is open.
        self.close()
        lines = self.memory.lines()
        write_private(self._path, b"".join(map(_encode, lines)))
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | here.BINARY)
        self.torn = False
        self._lines = len(lines)
