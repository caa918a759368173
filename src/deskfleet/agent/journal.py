"""What an agent must still know after it was killed: an append-only file of one line a change.

An intent is on the disk before anything is started, so that a start which was cut short is told
from a session that ended, and a generation that has had its end is never started again. The
last line of a session counts. A line that can't be read is passed over: what really runs is asked
of the driver anyway. The file is rewritten when most of it is history.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec

from deskfleet.core.records import Frozen, Phase
from deskfleet.ports import SessionSpec
from deskfleet.system import sync_folder

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


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Line)


class Journal:
    def __init__(self, path: Path) -> None:
        self._path = path
        self.entries: dict[str, Entry] = {}
        self._lines = 0
        self._read()
        self._descriptor = self._rewrite()

    def write(self, session_id: str, entry: Entry | None) -> None:
        """Remember an entry durably, or forget it where it is None."""
        if entry is None:
            if self.entries.pop(session_id, None) is None:
                return
        else:
            self.entries[session_id] = entry
        os.write(self._descriptor, _encoder.encode(Line(id=session_id, entry=entry)) + b"\n")
        os.fdatasync(self._descriptor)
        self._lines += 1
        if self._lines > REWRITE_LINES + 4 * len(self.entries):
            os.close(self._descriptor)
            self._descriptor = self._rewrite()

    def close(self) -> None:
        os.close(self._descriptor)

    def _read(self) -> None:
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return
        for number, text in enumerate(lines, start=1):
            try:
                line = _decoder.decode(text)
            except (msgspec.DecodeError, UnicodeDecodeError):
                log.warning("journal.line-passed-over", extra={"line": number})
                continue
            if line.entry is None:
                self.entries.pop(line.id, None)
            else:
                self.entries[line.id] = line.entry

    def _rewrite(self) -> int:
        fresh = self._path.with_suffix(".new")
        descriptor = os.open(
            fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        lines = [
            _encoder.encode(Line(id=id, entry=entry)) + b"\n" for id, entry in self.entries.items()
        ]
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.writelines(lines)
        os.fsync(descriptor)
        fresh.rename(self._path)
        sync_folder(self._path.parent)
        self._lines = len(lines)
        return descriptor
