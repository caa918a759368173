"""All records of a fleet in memory, with the indexes that decisions and reads need.

A fleet is a value of the store at one revision: `apply` is the only way it changes, and applying
the same entry twice, or an older one late, changes nothing. It decides nothing.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import datetime
from typing import TypeAlias, TypeVar, cast

from deskfleet.core.change import ABSENT, Stored, Tombstone
from deskfleet.core.records import (
    KIND_OF,
    Facts,
    Link,
    Record,
    Report,
    Revision,
    Server,
    Session,
    kind_of,
)
from deskfleet.core.server import NO_SEATS, Seats

R = TypeVar("R", bound=Record)
Reachable: TypeAlias = Callable[[str], bool]
"""Tells whether a server can be heard now."""

Place: TypeAlias = tuple[datetime, str]
"""Where a record stands in listings: its instant of creation and its id. Never changes."""

_NONE: Mapping[str, None] = {}


class Fleet:
    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything: the store has gone back."""
        self.revision: Revision = 0
        self._records: dict[str, dict[str, Stored]] = {kind: {} for kind in KIND_OF.values()}
        self._seats: dict[str, Seats] = {}
        self._on_server: dict[str, dict[str, None]] = {}
        self._of_owner: dict[str, dict[str, None]] = {}
        self._tagged: dict[tuple[str, str], dict[str, None]] = {}
        self._waiting: dict[str, None] = {}
        self._order: dict[str, list[Place]] = {"session": [], "server": []}

    def get(self, kind: type[R], id: str) -> R | None:
        stored = self._records[KIND_OF[kind]].get(id)
        return None if stored is None else cast(R, stored.record)

    def revision_of(self, kind: type[Record], id: str) -> Revision:
        """Return the revision to expect in a change; `ABSENT` for what doesn't exist."""
        stored = self._records[KIND_OF[kind]].get(id)
        return ABSENT if stored is None else stored.revision

    def each(self, kind: type[R]) -> Iterator[R]:
        return (cast(R, stored.record) for stored in self._records[KIND_OF[kind]].values())

    def count(self, kind: type[Record]) -> int:
        return len(self._records[KIND_OF[kind]])

    def all_keys(self) -> list[tuple[str, str]]:
        return [(kind, id) for kind, records in self._records.items() for id in records]

    def session(self, id: str) -> Session | None:
        return self.get(Session, id)

    def report(self, id: str) -> Report | None:
        return self.get(Report, id)

    def server(self, id: str) -> Server | None:
        return self.get(Server, id)

    def facts(self, id: str) -> Facts | None:
        return self.get(Facts, id)

    def link(self, id: str) -> Link | None:
        return self.get(Link, id)

    def seats(self, server_id: str) -> Seats:
        return self._seats.get(server_id, NO_SEATS)

    def listed(self, kind: type[Session | Server], after: Place | None) -> Iterator[str]:
        """Yield the ids of all sessions, or servers, that stand after a place, oldest first."""
        order = self._order[KIND_OF[kind]]
        start = 0 if after is None else bisect_right(order, after)
        for position in range(start, len(order)):
            yield order[position][1]

    def sessions_after(self, after: Place | None) -> Iterator[Session]:
        """Return the sessions that stand after a place, oldest first."""
        return map(self._session, self.listed(Session, after))

    def sessions_on(self, server_id: str) -> Iterable[Session]:
        """Return the sessions that are placed on a server and have not ended."""
        return [self._session(id) for id in self._on_server.get(server_id, _NONE)]

    def sessions_of(self, owner: str) -> Iterable[Session]:
        return [self._session(id) for id in self._of_owner.get(owner, _NONE)]

    def servers_tagged(self, key: str, value: str) -> Collection[str]:
        return self._tagged.get((key, value), _NONE).keys()

    def waiting(self) -> list[Session]:
        """Return the sessions that wait for a place, oldest first."""
        sessions = [self._session(id) for id in self._waiting]
        return sorted(sessions, key=lambda session: (session.created_at, session.id))

    def apply(self, entry: Stored | Tombstone) -> bool:
        """Take in one entry of the store; say whether it was news."""
        self.revision = max(self.revision, entry.revision)
        kind, id = entry.key
        records = self._records[kind]
        old = records.get(id)
        if old is not None:
            if old.revision >= entry.revision:
                return False
            self._unindex(old.record)
        if isinstance(entry, Tombstone):
            records.pop(id, None)
            return old is not None
        records[id] = entry
        self._index(entry.record)
        return True

    def _session(self, id: str) -> Session:
        return cast(Session, self._records["session"][id].record)

    def _index(self, record: Record) -> None:
        if isinstance(record, Session | Server):
            insort(self._order[kind_of(record)], place_of(record))
        if isinstance(record, Session):
            self._of_owner.setdefault(record.request.owner, {})[record.id] = None
            if record.ended_at is not None:
                return
            if record.server_id is None:
                self._waiting[record.id] = None
                return
            self._on_server.setdefault(record.server_id, {})[record.id] = None
            self._seats.setdefault(record.server_id, Seats()).add(record)
        elif isinstance(record, Facts):
            for tag in record.tags.items():
                self._tagged.setdefault(tag, {})[record.id] = None

    def _unindex(self, record: Record) -> None:
        if isinstance(record, Session | Server):
            order = self._order[kind_of(record)]
            del order[bisect_right(order, place_of(record)) - 1]
        if isinstance(record, Session):
            _forget(self._of_owner, record.request.owner, record.id)
            self._waiting.pop(record.id, None)
            if record.server_id is not None and record.ended_at is None:
                _forget(self._on_server, record.server_id, record.id)
                self._seats[record.server_id].add(record, -1)
        elif isinstance(record, Facts):
            for tag in record.tags.items():
                _forget(self._tagged, tag, record.id)


def place_of(record: Session | Server) -> Place:
    if isinstance(record, Session):
        return record.created_at, record.id
    return record.registered_at, record.id


K = TypeVar("K")


def _forget(index: dict[K, dict[str, None]], key: K, id: str) -> None:
    ids = index[key]
    del ids[id]
    if not ids:
        del index[key]
