"""Records as tests want them, and the arguments that replace time, chance and keys.

Every builder gives a valid record; a test names only what it is about.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

from deskfleet.core.change import Stored
from deskfleet.core.fleet import Fleet
from deskfleet.core.records import (
    Broker,
    Facts,
    Host,
    Link,
    Os,
    Phase,
    Record,
    Report,
    Server,
    Session,
    SessionRequest,
    Type,
)
from deskfleet.ports import SessionSpec

NOON = datetime(2030, 6, 1, 12, tzinfo=UTC)

REQUEST_FIELDS = frozenset(SessionRequest.__struct_fields__)


class FakeClock:
    """A clock that a test sets."""

    def __init__(self, at: datetime = NOON) -> None:
        self._at = at
        self._seconds = 1000.0

    def now(self) -> datetime:
        return self._at

    def monotonic(self) -> float:
        return self._seconds

    def advance(self, seconds: float) -> None:
        self._at += timedelta(seconds=seconds)
        self._seconds += seconds


class CountingIds:
    """Ids that can be told beforehand."""

    def __init__(self) -> None:
        self._count = 0

    def uuid(self) -> str:
        self._count += 1
        return f"00000000-0000-4000-8000-{self._count:012d}"

    def secret(self) -> str:
        self._count += 1
        return f"secret-{self._count}"


class FastSigner:
    """A signer without a key file. Sealing marks what it seals, so that a mix-up shows."""

    MARK = b"sealed:"

    def hash(self, secret: str) -> bytes:
        return hashlib.blake2b(secret.encode(), digest_size=32).digest()

    def seal(self, plain: bytes) -> bytes:
        return self.MARK + plain[::-1]

    def unseal(self, sealed: bytes) -> bytes:
        assert sealed.startswith(self.MARK)
        return sealed.removeprefix(self.MARK)[::-1]


def a_request(**fields: Any) -> SessionRequest:
    return SessionRequest(**{"name": "desk", "owner": "alice", "type": Type.VIRTUAL, **fields})


def a_session(id: str = "s1", **fields: Any) -> Session:
    """Build a session; fields of its request may be given directly, `server` places it."""
    request = {name: fields.pop(name) for name in set(fields) & REQUEST_FIELDS}
    server = fields.pop("server", None)
    if server is not None:
        fields = {"server_id": server, "generation": 1, **fields}
    return Session(**{"id": id, "request": a_request(**request), "created_at": NOON, **fields})


def a_spec(session: Session) -> SessionSpec:
    """Build what the agent of a placed session is told of it."""
    return SessionSpec(
        session_id=session.id,
        generation=session.generation,
        request=session.request,
        created_at=session.created_at,
    )


def a_report(session: Session, phase: Phase = Phase.RUNNING, **fields: Any) -> Report:
    """Build the report that is about a placed session."""
    assert session.server_id is not None
    about = {
        "id": session.id,
        "server_id": session.server_id,
        "generation": session.generation,
        "phase": phase,
    }
    return Report(**{**about, **fields})


def a_server(id: str = "n1", **fields: Any) -> Server:
    return Server(**{"id": id, "registered_at": NOON, **fields})


def some_facts(id: str = "n1", *, gpu: str | None = None, **fields: Any) -> Facts:
    """Build the facts of a server; `gpu` becomes a tag."""
    tags = {**fields.pop("tags", {}), **({} if gpu is None else {"gpu": gpu})}
    load = fields.pop("load", None)
    host = Host(os=Os(family="linux"), memory_total=16_000, memory_used=1_000, load=load)
    base = {
        "id": id,
        "hostname": f"{id}.example",
        "ip": "10.0.0.7",
        "host": host,
        "driver": "simulated",
        "version": "1.0",
        "agent_version": "0.1.0",
        "boot_id": "boot-1",
        "tags": tags,
    }
    return Facts(**{**base, **fields})


def a_link(id: str = "n1", **fields: Any) -> Link:
    return Link(**{"id": id, "broker_id": "b1", "epoch": 1, **fields})


def a_broker(id: str = "b1", **fields: Any) -> Broker:
    return Broker(**{"id": id, "url": f"https://{id}.example:8445", **fields})


def a_fleet(*records: Record) -> Fleet:
    """Build a fleet in which each record was written by a commit of its own."""
    fleet = Fleet()
    for revision, record in enumerate(records, start=2):
        fleet.apply(Stored(revision, record))
    return fleet
