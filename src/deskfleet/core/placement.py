"""Which server takes a session, or why none does.

Pure: the same request, fleet and tally give the same answer, so a bad choice can be replayed.
The best servers are tried first, and mostly one of them fits; where none does, a `View` tells who
meets the requirement, and costs testing every server only once. A refusal is an ordinary answer.
It counts how many servers fell at each clause and at each limit, so that an owner reads "12 of 14
lack tag:gpu = 'yes', 2 are full" instead of "no capacity".

A batch is placed one after the other against one `Tally`, which adds what the batch has taken
already to what the fleet knows.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from heapq import merge
from itertools import islice

from deskfleet.core import platforms
from deskfleet.core.candidates import Candidate, Rank, rank
from deskfleet.core.fleet import Fleet, Reachable
from deskfleet.core.records import Facts, Session, SessionRequest
from deskfleet.core.requirements import Requirements, Term, parse
from deskfleet.core.server import (
    NO_SEAT_FOR_OWNER,
    Seats,
    Unavailability,
    no_seat_for,
    unavailability,
)
from deskfleet.core.views import Tag, View

parse_once = lru_cache(maxsize=1024)(parse)
"""Portals send the same few expressions again and again."""

FEW = 256
"""So many servers are looked at one by one before all of them are sifted."""


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

    def ranked(self, order: list[Rank], among: Container[str] | None = None) -> Iterable[Rank]:
        """Return servers that stand in order without the batch in their order with it."""
        if not self._ranks:
            return order
        mine = [one for one in self._ranks if among is None or one[2] in among]
        return merge((one for one in order if one[2] not in self._taken), mine)


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
    few: int = FEW,
) -> Placement | Refusal:
    """Choose the server for `request`, or say why none will do.

    The emptiest server wins, then the one with the lowest load, then the lowest id. A server in
    `avoid` is taken only where no other fits. With `among` no other servers are looked at, and the
    reason of a refusal is about these alone. Raises `RequirementsInvalid`.
    """
    text = request.requirements or ""
    requirements = parse_once(text)
    search = _Search(request, requirements, tally, reachable, avoid)
    rarest = _rarest_tag(fleet, requirements) if among is None else None
    named = among if rarest is None else fleet.servers_tagged(*rarest)
    if among is not None or (named is not None and len(named) <= few):
        best = search.best_of(fleet.candidates.these(named))
    else:
        best = _best_of_many(search, fleet, tally, text, requirements, rarest, few)
    if best is not None:
        return Placement(best.id)
    total = len(fleet.candidates) if among is None else search.fallen.total()
    reason = _explain(search.fallen, total, rarest)
    return Refusal(reason, personal=NO_SEAT_FOR_OWNER in search.fallen)


def _best_of_many(
    search: _Search,
    fleet: Fleet,
    tally: Tally,
    text: str,
    requirements: Requirements,
    tag: Tag | None,
    few: int,
) -> Candidate | None:
    """Choose among all servers; `tag` names those that are worth a look."""
    named = None if tag is None else fleet.servers_tagged(*tag)
    view = fleet.views.known(text, tag)
    if view is None or view.backlog > few:
        # A view costs testing all servers. Mostly one of the best fits, and none is needed.
        some = islice(tally.ranked(fleet.candidates.ranked()), few)
        best = search.first_of(one for one in some if named is None or one[2] in named)
        if best is not None:
            return best
    view = fleet.views.of(text, requirements, tag)
    search.believe(view)
    best = search.first_of(islice(tally.ranked(view.ranked(), view.meeting), few))
    if best is not None:
        return best
    # In the order in which they lie in memory: that is twice as fast as in rank order.
    search.believe(view)
    return search.best_of(fleet.candidates.these(view.meeting))


def _rarest_tag(fleet: Fleet, requirements: Requirements) -> Tag | None:
    """Return which of the required tags the fewest servers have."""
    return min(
        requirements.equalities,
        key=lambda tag: len(fleet.servers_tagged(*tag)),
        default=None,
    )


class _Search:
    """Looks for a server that fits, and counts why others don't."""

    def __init__(
        self,
        request: SessionRequest,
        requirements: Requirements,
        tally: Tally,
        reachable: Reachable,
        avoid: Collection[str],
    ) -> None:
        self.fallen: Counter[str] = Counter()
        self._type, self._owner = request.type, request.owner
        self._explain: Callable[[Facts], str | None] = requirements.explain
        self._demands = platforms.demands_of(request)
        self._tally = tally
        self._reachable = reachable
        self._avoid = avoid

    def believe(self, view: View) -> None:
        """From now on look only at servers that meet the requirement, and count the others."""
        self._explain = _meets
        lacking = view.lacking.items()
        self.fallen = Counter({f"lack {text}": count for text, count in lacking if count})

    def first_of(self, ranked: Iterable[Rank]) -> Candidate | None:
        """Return the first that fits of servers in their order; none that is to be avoided."""
        for _, _, id, candidate in ranked:
            if id not in self._avoid and self._fits(candidate):
                return candidate
        return None

    def best_of(self, candidates: Iterable[Candidate]) -> Candidate | None:
        """Return the best of all that fit; those to be avoided come last."""
        rank, avoid = self._tally.rank, self._avoid
        fits = [(one.id in avoid, rank(one)) for one in candidates if self._fits(one)]
        return min(fits)[1][3] if fits else None

    def _fits(self, candidate: Candidate) -> bool:
        reason = self._obstacle(candidate)
        if reason is not None:
            self.fallen[reason] += 1
        return reason is None

    def _obstacle(self, candidate: Candidate) -> str | None:
        facts, seats = candidate.facts, candidate.seats
        if facts is not None:
            clause = self._explain(facts)
            if clause is not None:
                return f"lack {clause}"
            if self._demands:
                unfit = platforms.unfit(self._demands, facts.host.os.family)
                if unfit is not None:
                    return unfit
        if not self._reachable(candidate.id):
            return _WORDS[Unavailability.UNREACHABLE_AGENT]
        reason = candidate.unavailability
        taken = self._tally.taken_on(candidate.id)
        if taken is not None:
            seats = taken
            reason = unavailability(candidate.server, facts, seats, reachable=True)
        if reason is not None:
            return _WORDS[reason]
        assert facts is not None  # without facts a server is unavailable
        return no_seat_for(facts, seats, self._type, self._owner)


def _meets(_facts: Facts) -> str | None:
    return None


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
