"""What the agent remembers of each xvnc session, for the agent that comes after it.

One file per session, `r/<key>.json`, written before anything else of the session exists and
removed after everything else is gone. It is the agent's own: what decides over killing and
removing is never read from a file that an owner can write. A session is taken up again only if
its record says that it had been ready.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import msgspec

from deskfleet.agent.drivers.processes import Identity
from deskfleet.core.records import Frozen, Type
from deskfleet.ports import Running, SessionSpec


class SessionRecord(Frozen, frozen=True):
    key: str
    spec: SessionSpec
    uid: int
    boot_id: str
    created_at: datetime
    leader: Identity | None = None
    """None until it was started: it does nothing before it is recorded here."""
    display: int | None = None
    x_pid: int | None = None
    cgroup: str | None = None
    ready: bool = False

    def running(self) -> Running:
        return Running(
            session_id=self.spec.session_id,
            generation=self.spec.generation,
            owner=self.spec.request.owner,
            type=Type.VIRTUAL,
            name=self.spec.request.name,
            created_at=self.created_at,
        )


class Records:
    """The folder of records."""

    _SUFFIX = ".json"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keys(self) -> set[str]:
        """Return the keys of all records, and of drafts that became none."""
        return {path.stem for path in self._folder.iterdir()}

    def read(self, key: str) -> SessionRecord | None:
        """Return a record, None for one that is missing or broken.

        Raises `OSError` where that can't be seen now: no descriptor is free, say.
        """
        try:
            record = msgspec.json.decode(self._path(key).read_bytes(), type=SessionRecord)
        except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
            return None
        return record if record.key == key else None

    def write(self, record: SessionRecord) -> None:
        """Replace a record at once. Not flushed: after a power cut nothing runs anyway."""
        draft = self._draft(record.key)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        # All of it or an error: on a disk that is almost full, a single write may write a part.
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(record))
        draft.rename(self._path(record.key))

    def remove(self, key: str) -> None:
        # A disk that was full may have kept a draft from becoming the record.
        self._draft(key).unlink(missing_ok=True)
        self._path(key).unlink(missing_ok=True)

    def _draft(self, key: str) -> Path:
        return self._folder / f"{key}.new"

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{self._SUFFIX}"
