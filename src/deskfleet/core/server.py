"""What a server can take, and why it can't.

Seats are counted from the sessions that are placed on a server and have not ended, never stored
apart, so they can't drift. Console and virtual sessions exclude each other on one server. Its agent
is told of all of them in one message, so a server is also full where that has no more room.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from deskfleet.core.records import Facts, Server, Session, SessionRequest, Type

replace = msgspec.structs.replace

MOST_TOLD_BYTES = 240 * 1024 * 1024
"""Of what the agent of one server is told of its sessions: a thousand fit, whatever was asked for
with the default settings, with the longest permissions files."""
_TOLD_BESIDES = 2 * 1024
"""Bytes, at most, of what an agent is told of a session and that nobody has asked for."""

_encoder = msgspec.json.Encoder()


class Availability(StrEnum):
    AVAILABLE = "AVAILABLE"
    UNAVAILABLE = "UNAVAILABLE"


class Unavailability(StrEnum):
    SERVER_FULL = "SERVER_FULL"
    SERVER_CLOSED = "SERVER_CLOSED"
    UNREACHABLE_AGENT = "UNREACHABLE_AGENT"
    UNHEALTHY_DCV_SERVER = "UNHEALTHY_DCV_SERVER"
    EXISTING_LOGGED_IN_USER = "EXISTING_LOGGED_IN_USER"
    UNKNOWN = "UNKNOWN"


@dataclass(slots=True)
class Seats:
    """How many sessions sit on a server."""

    console: int = 0
    virtual: int = 0
    owners: Counter[str] = field(default_factory=Counter)
    """Virtual sessions by owner."""
    told_bytes: int = 0
    """What their agent is told of them has no more."""

    def add(self, session: Session, step: int = 1) -> None:
        """Count a session in (`step` 1) or out (-1)."""
        self.told_bytes += step * told_bytes(session.request)
        if session.request.type is Type.CONSOLE:
            self.console += step
            return
        self.virtual += step
        owner = session.request.owner
        self.owners[owner] += step
        if not self.owners[owner]:
            del self.owners[owner]

    @property
    def taken(self) -> int:
        return self.console + self.virtual

    def copy(self) -> Seats:
        return Seats(self.console, self.virtual, Counter(self.owners), self.told_bytes)


def told_bytes(request: SessionRequest) -> int:
    """Return how many bytes the agent of a server is told of one session, at most."""
    return len(_encoder.encode(request)) + _TOLD_BESIDES


NO_SEAT_FOR_OWNER = "have no seat left for this owner"

NO_SEATS = Seats()
"""Of a server without sessions. Never counted into."""


def has_told_all(seats: Seats) -> bool:
    """Tell whether a server's agent can be told of no more."""
    return seats.told_bytes >= MOST_TOLD_BYTES


def is_full(facts: Facts, seats: Seats) -> bool:
    """Tell whether no session of any type, of anybody, fits any more."""
    if seats.console or has_told_all(seats):
        return True
    virtual = Type.VIRTUAL in facts.types and not _at(facts.max_virtual_sessions, seats.virtual)
    console = Type.CONSOLE in facts.types and not seats.virtual
    return not (virtual or console)


def unavailability(
    server: Server, facts: Facts | None, seats: Seats, *, reachable: bool
) -> Unavailability | None:
    """Return why nothing can be placed on a server, None when it is available."""
    if not reachable:
        return Unavailability.UNREACHABLE_AGENT
    if not server.open:
        return Unavailability.SERVER_CLOSED
    if facts is None:
        return Unavailability.UNKNOWN
    if facts.unhealthy is not None:
        return Unavailability.UNHEALTHY_DCV_SERVER
    if facts.foreign_user is not None:
        return Unavailability.EXISTING_LOGGED_IN_USER
    if not facts.types:
        # Its agent can reach it, finds no fault with it, and yet names nothing that it runs.
        return Unavailability.UNKNOWN
    return Unavailability.SERVER_FULL if is_full(facts, seats) else None


def no_seat_for(facts: Facts, seats: Seats, type: Type, owner: str) -> str | None:
    """Return why an available server has no seat for this session, None when it has one."""
    if type not in facts.types:
        return f"can't run {type.lower()} sessions"
    if type is Type.CONSOLE:
        return "are full" if seats.taken else None
    if seats.console or _at(facts.max_virtual_sessions, seats.virtual):
        return "are full"
    if _at(facts.max_sessions_per_user, seats.owners.get(owner, 0)):
        return NO_SEAT_FOR_OWNER
    return None


def differ_in_load_only(one: Facts, other: Facts) -> bool:
    """Tell whether all that two facts of a server differ in is what moves every few seconds."""
    return steady(one) == steady(other)


def steady(facts: Facts) -> Facts:
    """Return facts without what moves every few seconds: load and used memory."""
    return replace(facts, host=replace(facts.host, memory_used=0, swap_used=0, load=None))


def _at(limit: int, count: int) -> bool:
    return 0 <= limit <= count
