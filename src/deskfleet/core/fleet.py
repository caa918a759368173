"""All records of a fleet in memory, with the indexes that decisions and reads need.

A fleet is a value of the store at one revision: `apply` is the only way it changes, and applying
the same entry twice, or an older one while a newer one is here, changes nothing. What was dropped
isn't remembered: that nothing older than its drop comes after it is up to the `Replica`. It decides
nothing.

Each kind's index takes in a change as a whole, from the old record to the new one: what stays as
it was costs nothing, and what became better for placing is known exactly.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime
from operator import itemgetter
from typing import TypeAlias, TypeVar, cast

from deskfleet.core.candidates import Candidates
from deskfleet.core.change import ABSENT, Stored, Tombstone
from deskfleet.core.ordered import Ordered
from deskfleet.core.records import (
    KIND_OF,
    Facts,
    Link,
    Record,
    Report,
    Revision,
    Server,
    Session,
    SessionRequest,
    TokenUse,
)
from deskfleet.core.server import NO_SEATS, Seats, differ_in_load_only, told_bytes
from deskfleet.core.views import Views

R = TypeVar("R", bound=Record)
Reachable: TypeAlias = Callable[[str], bool]
"""Tells whether a server can be heard now."""

Place: TypeAlias = tuple[datetime, str]
"""An instant of a record, and its id: by that of its creation, which never changes, it stands in
listings."""

Tag: TypeAlias = tuple[str, str]

TOGETHER = 1024
"""So many places are copied at once for who reads them one after the other."""

_NONE: Mapping[str, None] = {}


class Fleet:
    def __init__(self) -> None:
        self.candidates = Candidates()
        self.views = Views(self.candidates)
        self.clear()

    def clear(self) -> None:
        """Forget everything: the store has gone back."""
        self.revision: Revision = 0
        self._records: dict[str, dict[str, Stored]] = {kind: {} for kind in KIND_OF.values()}
        self._seats: dict[str, Seats] = {}
        self._holders: dict[str, str] = {}
        self._on_server: dict[str, dict[str, None]] = {}
        self._of_server: dict[str, dict[str, None]] = {}
        self._of_owner: dict[str, dict[str, None]] = {}
        self._tagged: dict[Tag, dict[str, None]] = {}
        self._held: dict[str, dict[str, None]] = {}
        self._unheld: dict[str, None] = {}
        self._unlisted: dict[str, None] = {}
        self._waiting: Ordered[Place] = Ordered()
        self._order: dict[str, Ordered[Place]] = {"session": Ordered(), "server": Ordered()}
        self._over: dict[str, Ordered[Place]] = {"session": Ordered(), "token-use": Ordered()}
        self.candidates.clear()
        self.views.clear()

    def record(self, kind: str, id: str) -> Record | None:
        stored = self._records[kind].get(id)
        return None if stored is None else stored.record

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

    @property
    def holders(self) -> Mapping[str, str]:
        """The broker that holds the link of each server whose link is up."""
        return self._holders

    @property
    def held(self) -> Mapping[str, Mapping[str, None]]:
        """The servers whose links each broker holds."""
        return self._held

    @property
    def unheld(self) -> AbstractSet[str]:
        """The servers that are here, and whose links nobody holds."""
        return self._unheld.keys()

    @property
    def unlisted(self) -> AbstractSet[str]:
        """The servers that are here, and shown no longer."""
        return self._unlisted.keys()

    def seats(self, server_id: str) -> Seats:
        return self._seats.get(server_id, NO_SEATS)

    def places(self, kind: type[Session | Server], after: Place | None) -> Iterator[Place]:
        """Yield the places of all sessions, or listed servers, that stand after a place.

        The oldest comes first.
        """
        order = self._order[KIND_OF[kind]].values()
        start = 0 if after is None else bisect_right(order, after)
        while start < len(order):
            yield from order[start : start + TOGETHER]
            start += TOGETHER

    def listed(self, kind: type[Session | Server], after: Place | None) -> Iterator[str]:
        """Yield the ids of all sessions, or listed servers, that stand after a place."""
        return (id for _, id in self.places(kind, after))

    def sessions_after(self, after: Place | None) -> Iterator[Session]:
        """Yield the sessions that stand after a place, oldest first."""
        return map(self._session, self.listed(Session, after))

    def sessions_on(self, server_id: str) -> Iterable[Session]:
        """Return the sessions that are placed on a server and have not ended."""
        return [self._session(id) for id in self._on_server.get(server_id, _NONE)]

    def sessions_ever_on(self, server_id: str) -> Iterable[Session]:
        """Return the sessions that are, or were at their end, on a server."""
        return [self._session(id) for id in self._of_server.get(server_id, _NONE)]

    def count_of(self, owner: str) -> int:
        """Return how many sessions an owner has, those that have ended among them."""
        return len(self._of_owner.get(owner, _NONE))

    def sessions_of(self, owner: str) -> Iterable[Session]:
        return [self._session(id) for id in self._of_owner.get(owner, _NONE)]

    def servers_tagged(self, key: str, value: str) -> AbstractSet[str]:
        return self._tagged.get((key, value), _NONE).keys()

    def ended(self, kind: type[Session | TokenUse], until: datetime) -> list[str]:
        """Return what has ended, or expires, at an instant or before, the earliest first."""
        order = self._over[KIND_OF[kind]].values()
        return [id for _, id in order[: bisect_right(order, until, key=itemgetter(0))]]

    def waiting(self) -> list[Session]:
        """Return the sessions that wait for a place, oldest first."""
        return [self._session(id) for _, id in self._waiting.values()]

    def count_waiting(self) -> int:
        return len(self._waiting)

    def apply(self, entry: Stored | Tombstone) -> bool:
        """Take in one entry of the store; say whether it was news."""
        self.revision = max(self.revision, entry.revision)
        kind, id = entry.key
        records = self._records[kind]
        stored = records.get(id)
        if stored is not None and stored.revision >= entry.revision:
            return False
        old = None if stored is None else stored.record
        if isinstance(entry, Tombstone):
            records.pop(id, None)
            self._reindex(id, old, None)
            return old is not None
        records[id] = entry
        self._reindex(id, old, entry.record)
        return True

    def _session(self, id: str) -> Session:
        return cast(Session, self._records["session"][id].record)

    def _reindex(self, id: str, old: Record | None, new: Record | None) -> None:
        """Take in that one record became another, was added, or was dropped."""
        either = new if old is None else old
        if isinstance(either, Session):
            self._reindex_session(id, cast(Session | None, old), cast(Session | None, new))
        elif isinstance(either, Server):
            self._reindex_server(id, cast(Server | None, old), cast(Server | None, new))
        elif isinstance(either, Facts):
            self._reindex_facts(id, cast(Facts | None, old), cast(Facts | None, new))
        elif isinstance(either, Link):
            self._reindex_link(id, cast(Link | None, old), cast(Link | None, new))
        elif isinstance(either, TokenUse):
            self._reorder(self._over["token-use"], _end(old), _end(new))

    def _reindex_session(self, id: str, old: Session | None, new: Session | None) -> None:
        self._reorder(self._order["session"], _place(old), _place(new))
        self._reorder(self._waiting, _waiting_place(old), _waiting_place(new))
        self._reorder(self._over["session"], _end(old), _end(new))
        _move(self._of_owner, id, _owner(old), _owner(new))
        _move(self._of_server, id, _server(old), _server(new))
        left, taken = _seat(old), _seat(new)
        if left == taken:
            return
        if old is not None and left is not None:
            _forget(self._on_server, left[0], old.id)
            self._seats[left[0]].add(old, -1)
            self._show(left[0])
            if _helps_others(left, taken):
                self.candidates.mark(left[0])
        if new is not None and taken is not None:
            self._on_server.setdefault(taken[0], {})[new.id] = None
            self._seats.setdefault(taken[0], Seats()).add(new)
            self._show(taken[0])

    def _reindex_server(self, id: str, old: Server | None, new: Server | None) -> None:
        self._reorder(self._order["server"], _place(_listed(old)), _place(_listed(new)))
        if new is None or new.listed:
            self._unlisted.pop(id, None)
        else:
            self._unlisted[id] = None
        self._reindex_unheld(id)
        self._show(id)
        if _takes_sessions(new) and not _takes_sessions(old):
            self.candidates.mark(id)

    def _reindex_facts(self, id: str, old: Facts | None, new: Facts | None) -> None:
        old_tags = {} if old is None else old.tags
        new_tags = {} if new is None else new.tags
        if old_tags != new_tags:
            for tag in old_tags.items():
                _forget(self._tagged, tag, id)
            for tag in new_tags.items():
                self._tagged.setdefault(tag, {})[id] = None
        self._show(id)
        if new is not None:
            moved = old is not None and differ_in_load_only(old, new)
            self.candidates.mark(id, load_only=moved)

    def _reindex_link(self, id: str, old: Link | None, new: Link | None) -> None:
        holder = _holder(new)
        _move(self._held, id, _holder(old), holder)
        if holder is None:
            self._holders.pop(id, None)
        else:
            self._holders[id] = holder
            self.candidates.mark(id)
        self._reindex_unheld(id)

    def _reindex_unheld(self, id: str) -> None:
        if self.server(id) is None or id in self._holders:
            self._unheld.pop(id, None)
        else:
            self._unheld[id] = None

    def _show(self, server_id: str) -> None:
        """Let placement see a server as it is now."""
        server = self.server(server_id)
        if server is None or not server.listed:
            self.candidates.drop(server_id)
        else:
            self.candidates.put(server, self.facts(server_id), self.seats(server_id))

    @staticmethod
    def _reorder(order: Ordered[Place], old: Place | None, new: Place | None) -> None:
        if old == new:
            return
        if old is not None:
            order.remove(old)
        if new is not None:
            order.add(new)


def place_of(record: Session | Server) -> Place:
    if isinstance(record, Session):
        return record.created_at, record.id
    return record.registered_at, record.id


def _place(record: Session | Server | None) -> Place | None:
    return None if record is None else place_of(record)


def _listed(server: Server | None) -> Server | None:
    return server if server is not None and server.listed else None


def _takes_sessions(server: Server | None) -> bool:
    return server is not None and server.listed and server.open


def _waiting_place(session: Session | None) -> Place | None:
    if session is None or session.server_id is not None or session.ended_at is not None:
        return None
    return place_of(session)


def _owner(session: Session | None) -> str | None:
    return None if session is None else session.request.owner


def _server(session: Session | None) -> str | None:
    return None if session is None else session.server_id


def _holder(link: Link | None) -> str | None:
    return link.broker_id if link is not None and link.up else None


def _end(record: Record | None) -> Place | None:
    """Return where a record stands among those that end."""
    if isinstance(record, TokenUse):
        return record.expires_at, record.id
    if isinstance(record, Session) and record.ended_at is not None:
        return record.ended_at, record.id
    return None


Seat: TypeAlias = tuple[str, SessionRequest]


def _seat(session: Session | None) -> Seat | None:
    """Return the server whose seat a session takes, and in which way it takes it."""
    if session is None or session.server_id is None or session.ended_at is not None:
        return None
    return session.server_id, session.request


def _helps_others(left: Seat, taken: Seat | None) -> bool:
    """Tell whether a server may take more since a session takes this seat, or none, for that."""
    if taken is None or taken[0] != left[0]:
        return True
    before, after = left[1], taken[1]
    is_another = (before.type, before.owner) != (after.type, after.owner)
    return is_another or told_bytes(after) < told_bytes(before)


K = TypeVar("K")


def _move(index: dict[str, dict[str, None]], id: str, old: str | None, new: str | None) -> None:
    """Take in that an id stands elsewhere in an index now, or nowhere."""
    if old == new:
        return
    if old is not None:
        _forget(index, old, id)
    if new is not None:
        index.setdefault(new, {})[id] = None


def _forget(index: dict[K, dict[str, None]], key: K, id: str) -> None:
    ids = index[key]
    del ids[id]
    if not ids:
        del index[key]
