"""Which server takes a session, or why none does.

Pure: the same request, fleet and tally give the same answer, so a bad choice can be replayed.
A refusal is an ordinary answer. It counts how many servers fell at each clause and at each
limit, so that an owner reads "12 of 14 lack tag:gpu = 'yes', 2 are full" instead of "no capacity".

A batch is placed one after the other against one `Tally`, which adds what the batch has taken
already to what the fleet knows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from deskfleet.core.fleet import Fleet, Reachable
from deskfleet.core.records import Facts, Server, Session, SessionRequest
from deskfleet.core.requirements import Requirements, parse
from deskfleet.core.server import Seats, Unavailability, no_seat_for, unavailability

parse_once = lru_cache(maxsize=1024)(parse)
"""Portals send the same few expressions again and again."""


Tag: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Placement:
    server_id: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why no server takes a session now."""

    reason: str


class Tally:
    """The seats of a fleet and, on top, those that a batch has taken."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._taken: dict[str, Seats] = {}

    def seats(self, server_id: str) -> Seats:
        return self._taken.get(server_id) or self._fleet.seats(server_id)

    def take(self, server_id: str, session: Session) -> None:
        seats = self._taken.get(server_id)
        if seats is None:
            seats = self._taken[server_id] = self._fleet.seats(server_id).copy()
        seats.add(session)


_WORDS = {
    Unavailability.UNREACHABLE_AGENT: "can't be reached",
    Unavailability.SERVER_CLOSED: "are closed",
    Unavailability.UNKNOWN: "are not known well enough yet",
    Unavailability.UNHEALTHY_DCV_SERVER: "can't start sessions now",
    Unavailability.EXISTING_LOGGED_IN_USER: "are used by somebody who logged in by other means",
    Unavailability.SERVER_FULL: "are full",
}


def place(
    request: SessionRequest,
    fleet: Fleet,
    tally: Tally,
    *,
    reachable: Reachable,
    avoid: Collection[str] = (),
) -> Placement | Refusal:
    """Choose the server for `request`, or say why none will do.

    The emptiest server wins, then the one with the lowest load, then the lowest id. A server in
    `avoid` is taken only where no other fits. Raises `RequirementsInvalid`.
    """
    requirements = parse_once(request.requirements or "")
    fallen: Counter[str] = Counter()
    best: tuple[bool, int, float, str] | None = None
    rarest = _rarest_tag(fleet, requirements)
    for server in _candidates(fleet, rarest):
        facts = fleet.facts(server.id)
        seats = tally.seats(server.id)
        reason = _obstacle(server, facts, seats, request, requirements, reachable)
        if reason is not None:
            fallen[reason] += 1
            continue
        load = facts.host.load[0] if facts and facts.host.load else 0.0
        rank = (server.id in avoid, seats.taken, load, server.id)
        if best is None or rank < best:
            best = rank
    return Refusal(_explain(fallen, fleet, rarest)) if best is None else Placement(best[3])


def _rarest_tag(fleet: Fleet, requirements: Requirements) -> Tag | None:
    """Return which of the required tags the fewest servers have."""
    return min(
        requirements.equalities,
        key=lambda tag: len(fleet.servers_tagged(*tag)),
        default=None,
    )


def _candidates(fleet: Fleet, tag: Tag | None) -> Iterable[Server]:
    """Return the servers that are worth a look: all, or those that have the tag."""
    if tag is None:
        return fleet.each(Server)
    servers = (fleet.server(id) for id in fleet.servers_tagged(*tag))
    return [server for server in servers if server is not None]


def _obstacle(
    server: Server,
    facts: Facts | None,
    seats: Seats,
    request: SessionRequest,
    requirements: Requirements,
    reachable: Reachable,
) -> str | None:
    if facts is not None and not requirements.matches(facts):
        return f"lack {requirements.explain(facts)}"
    reason = unavailability(server, facts, seats, reachable=reachable(server.id))
    if reason is not None:
        return _WORDS[reason]
    assert facts is not None  # without facts a server is unavailable
    return no_seat_for(facts, seats, request.type, request.owner)


def _explain(fallen: Counter[str], fleet: Fleet, rarest: Tag | None) -> str:
    total = fleet.count(Server)
    passed_over = total - fallen.total()
    if passed_over and rarest is not None:
        key, value = rarest
        fallen[f"lack tag:{key} = '{value}'"] += passed_over
    if not total:
        why = "no server is registered"
    else:
        parts = [f"{count} {reason}" for reason, count in fallen.most_common()]
        parts[0] = parts[0].replace(" ", f" of {total} ", 1)
        why = ", ".join(parts)
    return f"No DCV server found for the given criteria (no dcv server found for placement): {why}"
