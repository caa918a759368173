"""The servers of a fleet as placement looks at them: in rank order, and where something is new.

The emptiest server stands first, then the one with the lowest load, then the one with the lowest
id. A `Ledger` tells which servers may have become able to take what they could not take before, so
that whoever was refused looks at those alone.

Fed by the `Fleet`, which holds the truth; it must not be changed by anybody else.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from deskfleet.core.ordered import Ordered
from deskfleet.core.records import Facts, Server
from deskfleet.core.server import Seats, Unavailability, unavailability


@dataclass(slots=True, eq=False)
class Candidate:
    """A registered server with all that decides whether it takes a session."""

    id: str
    server: Server
    facts: Facts | None
    seats: Seats
    load: float = 0.0
    unavailability: Unavailability | None = None
    """Why nothing can be placed on it even while it can be reached."""


GONE, ROOM = 2, 1024
"""How many servers that are gone are remembered, for each that is there and at least."""

Rank: TypeAlias = tuple[int, float, str, Candidate]
"""Seats taken, load, id; the lowest is the best. Ids differ, so candidates are never compared."""


def rank(candidate: Candidate, seats: Seats) -> Rank:
    return seats.taken, candidate.load, candidate.id, candidate


class Ledger:
    """Which servers changed, and at which moment; it remembers the newest of each."""

    def __init__(self) -> None:
        self.moment = 0
        self.floor = 0
        """What happened up to here is not told in full any more."""
        self._changed: dict[str, int] = {}

    def mark(self, server_id: str) -> None:
        self.moment += 1
        # Moved to the end: the newest is last.
        self._changed.pop(server_id, None)
        self._changed[server_id] = self.moment

    def forget(self, server_id: str) -> None:
        self._changed.pop(server_id, None)

    def prune(self, keep: Container[str]) -> None:
        """Forget all but some servers."""
        self._changed = {id: at for id, at in self._changed.items() if id in keep}
        self.floor = self.moment

    def __len__(self) -> int:
        return len(self._changed)

    def since(self, moment: int) -> list[str]:
        """Return the servers that changed after a moment, newest first."""
        found = []
        for server_id, changed in reversed(self._changed.items()):
            if changed <= moment:
                break
            found.append(server_id)
        return found


class Candidates:
    def __init__(self) -> None:
        self.improved = Ledger()
        """Servers that may take what they could not take before, whatever their load."""
        self.moved = Ledger()
        """Those, and servers whose load or used memory has changed."""
        self.touched = Ledger()
        """All servers of which anything changed, or that are gone."""
        self.clear()

    def clear(self) -> None:
        """Forget all servers; moments go on, so that what comes back is new."""
        self._each: dict[str, Candidate] = {}
        self._ranks: dict[str, Rank] = {}
        self._order: Ordered[Rank] = Ordered()

    def __len__(self) -> int:
        return len(self._each)

    def get(self, server_id: str) -> Candidate | None:
        return self._each.get(server_id)

    def rank_of(self, server_id: str) -> Rank:
        """Return the rank of a candidate."""
        return self._ranks[server_id]

    def these(self, server_ids: Iterable[str] | None) -> Iterable[Candidate]:
        """Return those of some servers that are registered, or all candidates."""
        if server_ids is None:
            return self._each.values()
        return (one for id in server_ids if (one := self._each.get(id)) is not None)

    def ranked(self) -> list[Rank]:
        """Return all candidates, the best one first. Not to be kept nor changed."""
        return self._order.values()

    def put(self, server: Server, facts: Facts | None, seats: Seats) -> None:
        candidate = self._each.get(server.id)
        if candidate is None:
            candidate = self._each[server.id] = Candidate(server.id, server, facts, seats)
        candidate.server, candidate.facts, candidate.seats = server, facts, seats
        candidate.load = facts.host.load[0] if facts is not None and facts.host.load else 0.0
        candidate.unavailability = unavailability(server, facts, seats, reachable=True)
        self.touched.mark(server.id)
        old, new = self._ranks.get(server.id), rank(candidate, seats)
        if old != new:
            if old is not None:
                self._order.remove(old)
            self._order.add(new)
            self._ranks[server.id] = new

    def drop(self, server_id: str) -> None:
        # What is no candidate may have been marked all the same.
        self.improved.forget(server_id)
        self.moved.forget(server_id)
        if self._each.pop(server_id, None) is not None:
            self._order.remove(self._ranks.pop(server_id))
            self.touched.mark(server_id)
            if len(self.touched) > GONE * len(self._each) + ROOM:
                self.touched.prune(self._each)

    def mark(self, server_id: str, *, load_only: bool = False) -> None:
        """Say that something new about a server may let it take more."""
        self.moved.mark(server_id)
        if not load_only:
            self.improved.mark(server_id)
