"""Which server takes a session, or why none does.

Pure: the same request, fleet and tally give the same answer, so a bad choice can be replayed.
The best servers are tried first, and mostly one of them fits; all are looked at only where none
does, which takes linear time. A refusal is an ordinary answer. It counts how many servers fell at
each clause and at each limit, so that an owner reads "12 of 14 lack tag:gpu = 'yes', 2 are full"
instead of "no capacity".

A batch is placed one after the other against one `Tally`, which adds what the batch has taken
already to what the fleet knows.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from heapq import merge
from itertools import islice
from typing import TypeAlias

from deskfleet.core import platforms
from deskfleet.core.candidates import Candidate, Rank, rank
from deskfleet.core.fleet import Fleet, Reachable
from deskfleet.core.records import Session, SessionRequest
from deskfleet.core.requirements import Requirements, Term, parse
from deskfleet.core.server import (
    NO_SEAT_FOR_OWNER,
    Seats,
    Unavailability,
    no_seat_for,
    unavailability,
)

parse_once = lru_cache(maxsize=1024)(parse)
"""Portals send the same few expressions again and again."""

LOOKS = (8, 248)
"""So many of the best servers are tried, in two steps, before all are looked at."""
TOGETHER = 256
"""So many servers are sifted by one clause after the other."""

Tag: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Placement:
    server_id: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why no server takes a session now."""

    reason: str
    personal: bool = False
    """Whether another owner might have got a place."""


class Tally:
    """The seats of a fleet and, on top, those that a batch has taken."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._taken: dict[str, Seats] = {}
        self._ranks: list[Rank] = []
        """Of the servers on which seats were taken."""

    def taken_on(self, server_id: str) -> Seats | None:
        """Return all seats of a server on which the batch has taken one."""
        return self._taken.get(server_id)

    def take(self, server_id: str, session: Session) -> None:
        seats = self._taken.get(server_id)
        candidate = self._fleet.candidates.get(server_id)
        if seats is None:
            seats = self._taken[server_id] = self._fleet.seats(server_id).copy()
        elif candidate is not None:
            self._ranks.remove(rank(candidate, seats))
        seats.add(session)
        if candidate is not None:
            insort(self._ranks, rank(candidate, seats))

    def rank(self, candidate: Candidate) -> Rank:
        return rank(candidate, self._taken.get(candidate.id, candidate.seats))

    def ranked(self) -> Iterable[Rank]:
        """Return all servers, the best one first."""
        everywhere = self._fleet.candidates.ranked()
        if not self._ranks:
            return everywhere
        return merge((one for one in everywhere if one[2] not in self._taken), self._ranks)


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
    among: AbstractSet[str] | None = None,
    looks: Sequence[int] = LOOKS,
) -> Placement | Refusal:
    """Choose the server for `request`, or say why none will do.

    The emptiest server wins, then the one with the lowest load, then the lowest id. A server in
    `avoid` is taken only where no other fits. With `among` no other servers are looked at, and the
    reason of a refusal is about these alone. Raises `RequirementsInvalid`.
    """
    requirements = parse_once(request.requirements or "")
    search = _Search(request, requirements, tally, reachable)
    rarest = _rarest_tag(fleet, requirements) if among is None else None
    named = among if rarest is None else fleet.servers_tagged(*rarest)
    best = None
    if named is None or len(named) > sum(looks):
        best = _first_fit(search, tally.ranked(), named, avoid, looks)
    if best is None:
        best = _best_fit(search, fleet.candidates.these(named), tally, avoid)
    if best is not None:
        return Placement(best.id)
    total = len(fleet.candidates) if among is None else search.fallen.total()
    return Refusal(
        _explain(search.fallen, total, rarest), personal=NO_SEAT_FOR_OWNER in search.fallen
    )


def _rarest_tag(fleet: Fleet, requirements: Requirements) -> Tag | None:
    """Return which of the required tags the fewest servers have."""
    return min(
        requirements.equalities,
        key=lambda tag: len(fleet.servers_tagged(*tag)),
        default=None,
    )


def _first_fit(
    search: _Search,
    ranked: Iterable[Rank],
    named: AbstractSet[str] | None,
    avoid: Collection[str],
    looks: Iterable[int],
) -> Candidate | None:
    """Return the best server where it is found soon."""
    left = iter(ranked)
    for count in looks:
        some = [
            one
            for _, _, id, one in islice(left, count)
            if id not in avoid and (named is None or id in named)
        ]
        for found in search.fitting(some):
            return found
    return None


def _best_fit(
    search: _Search, pool: Iterable[Candidate], tally: Tally, avoid: Collection[str]
) -> Candidate | None:
    """Return the best of all that fit; only now the search has seen and counted each server."""
    search.fallen.clear()
    left = iter(pool)
    best: tuple[bool, Rank] | None = None
    # In the order in which they lie in memory, and few enough to stay in the processor's cache
    # from clause to clause: three times as fast as in rank order.
    while some := list(islice(left, TOGETHER)):
        for one in search.fitting(some):
            ranked = one.id in avoid, tally.rank(one)
            if best is None or ranked < best:
                best = ranked
    return None if best is None else best[1][3]


class _Search:
    """Looks for a server that fits, and counts why others don't."""

    def __init__(
        self,
        request: SessionRequest,
        requirements: Requirements,
        tally: Tally,
        reachable: Reachable,
    ) -> None:
        self.fallen: Counter[str] = Counter()
        self._type, self._owner = request.type, request.owner
        self._clauses = requirements.clauses
        self._demands = platforms.demands_of(request)
        self._taken_on = tally.taken_on
        self._reachable = reachable

    def fitting(self, candidates: list[Candidate]) -> Iterator[Candidate]:
        """Yield those that fit, in their order."""
        for candidate in self._suitable(candidates):
            reason = self._obstacle(candidate)
            if reason is None:
                yield candidate
            else:
                self.fallen[reason] += 1

    def _suitable(self, candidates: list[Candidate]) -> list[Candidate]:
        """Return those that are of the wanted kind, or of which nobody knows what they are."""
        left = candidates
        for text, test in self._clauses:
            before = len(left)
            left = [one for one in left if one.facts is None or test(one.facts)]
            if len(left) < before:
                self.fallen[f"lack {text}"] += before - len(left)
        return [one for one in left if not self._is_unfit(one)] if self._demands else left

    def _is_unfit(self, candidate: Candidate) -> bool:
        facts = candidate.facts
        why = None if facts is None else platforms.unfit(self._demands, facts.host.os.family)
        if why is not None:
            self.fallen[why] += 1
        return why is not None

    def _obstacle(self, candidate: Candidate) -> str | None:
        if not self._reachable(candidate.id):
            return _WORDS[Unavailability.UNREACHABLE_AGENT]
        facts, seats = candidate.facts, candidate.seats
        reason = candidate.unavailability
        taken = self._taken_on(candidate.id)
        if taken is not None:
            seats = taken
            reason = unavailability(candidate.server, facts, seats, reachable=True)
        if reason is not None:
            return _WORDS[reason]
        assert facts is not None  # without facts a server is unavailable
        return no_seat_for(facts, seats, self._type, self._owner)


def _explain(fallen: Counter[str], total: int, rarest: Tag | None) -> str:
    passed_over = total - fallen.total()
    if passed_over and rarest is not None:
        key, value = rarest
        fallen[f"lack {Term(f'tag:{key}', '=', value)}"] += passed_over
    if not total:
        why = "no server is registered"
    else:
        counts = sorted(fallen.items(), key=lambda item: (-item[1], item[0]))
        (first, count), *others = counts
        parts = [f"{count} of {total} {first}", *(f"{count} {reason}" for reason, count in others)]
        why = ", ".join(parts)
    return f"No DCV server found for the given criteria (no dcv server found for placement): {why}"
