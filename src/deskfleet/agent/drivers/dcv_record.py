"""What the agent remembers of each session of a DCV server, for the agent that comes after it.

One small file per session: which placement of which session it is, which the DCV server doesn't
know, and what was seen of it last, so that a server that is silent when an agent starts has not
lost its sessions. A record is on the disk before its session is created, not ready, and removed
when it is certain that the session is not there any more.
"""

from __future__ import annotations

import hashlib
import logging
import os
from contextlib import suppress
from pathlib import Path

import msgspec

from deskfleet.agent.drivers.dcv_answers import Listed
from deskfleet.core.records import Frozen
from deskfleet.errors import SetupFailed
from deskfleet.ports import Running, SessionSpec

log = logging.getLogger(__name__)

BROKEN = ".broken"


class DcvRecord(Frozen, frozen=True):
    running: Running
    created: str = ""
    """The time of its creation in the server's own words: two sessions may bear one id, one
    after the other."""
    ready: bool = False
    script: str | None = None
    """A file of ours that the session was started with."""
    at_log_on: str | None = None
    """An autorun file that waits for the owner to log on."""

    @property
    def session_id(self) -> str:
        return self.running.session_id

    @property
    def is_ours(self) -> bool:
        return self.running.generation > 0

    def is_about(self, one: Listed) -> bool:
        """Tell whether this can be the session that a server lists."""
        return not self.created or not one.creation_time or self.created == one.creation_time


def intended(spec: SessionSpec, script: Path | None, at_log_on: Path | None) -> DcvRecord:
    """Return the record of a session that is to be created."""
    running = Running(
        session_id=spec.session_id,
        generation=spec.generation,
        owner=spec.request.owner,
        type=spec.request.type,
        name=spec.request.name,
    )
    return DcvRecord(
        running=running,
        script=None if script is None else str(script),
        at_log_on=None if at_log_on is None else str(at_log_on),
    )


def observed(one: Listed, known: DcvRecord | None, visitors: tuple[str, ...] = ()) -> DcvRecord:
    """Return the record of a session as a server lists it now, on top of what was known."""
    before = known.running if known is not None else None
    running = Running(
        session_id=one.id,
        generation=before.generation if before else 0,
        owner=one.owner or (before.owner if before else ""),
        type=one.kind,
        name=one.name or (before.name if before else ""),
        created_at=one.created_at or (before.created_at if before else None),
        connections=one.num_of_connections or 0,
        visitors=visitors,
        last_disconnection_at=one.last_disconnection_at,
    )
    return DcvRecord(
        running=running,
        created=one.creation_time,
        ready=True,
        script=known.script if known is not None else None,
        at_log_on=known.at_log_on if known is not None else None,
    )


def recorded(record: DcvRecord) -> Listed:
    """Return a session as its record has it, for a server that lists it and says no more."""
    running, left = record.running, record.running.last_disconnection_at
    return Listed(
        id=running.session_id,
        owner=running.owner,
        name=running.name,
        type=running.type.value,
        num_of_connections=running.connections,
        creation_time=record.created,
        last_disconnection_time="" if left is None else left.isoformat(),
    )


class DcvRecords:
    """The folder of records."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read_all(self) -> list[DcvRecord]:
        """Return all records that can be read; those that are damaged are laid aside.

        Raises `SetupFailed` where the folder can't be used.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            paths = sorted(path for path in self._folder.iterdir() if path.suffix == ".json")
        except OSError as error:
            raise SetupFailed(f"{self._folder} can't be used: {error.strerror}") from error
        return [record for record in map(_read, paths) if record is not None]

    def write(self, record: DcvRecord) -> None:
        """Replace a record at once. Not flushed: after a power cut no session runs anyway."""
        path = self._path(record.session_id)
        draft = path.with_suffix(".new")
        try:
            draft.write_bytes(msgspec.json.encode(record))
            os.replace(draft, path)  # noqa: PTH105 - on Windows, rename replaces nothing
        except OSError:
            draft.unlink(missing_ok=True)
            raise

    def remove(self, record: DcvRecord) -> None:
        if record.script is not None:
            Path(record.script).unlink(missing_ok=True)
        path = self._path(record.session_id)
        path.unlink(missing_ok=True)
        path.with_suffix(BROKEN).unlink(missing_ok=True)

    def _path(self, session_id: str) -> Path:
        name = hashlib.blake2b(session_id.encode(errors="replace"), digest_size=16).hexdigest()
        return self._folder / f"{name}.json"


def _read(path: Path) -> DcvRecord | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=DcvRecord)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        log.warning("session.record-broken", extra={"path": str(path)})
        with suppress(OSError):
            os.replace(path, path.with_suffix(BROKEN))  # noqa: PTH105 - as above
    except OSError as error:
        log.warning("session.record-unreadable", extra={"path": str(path), "reason": str(error)})
    return None
