"""Since when servers have been silent, by this broker's own monotonic clock.

What is known here was seen by this broker and is lost with it: after a restart all silence begins
anew, which only ever puts off what silence brings about.

Law: many servers that fall silent together are a fault of the network, of the store or of the
brokers, and no reason to end anything. `is_mass` tells so for as long as they are silent. What is
shown no longer and has no sessions counts for nothing: it would stand against the others for ever.
One server alone is no mass, also where it is the whole fleet.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import chain

from deskfleet.broker.service.liveness import Liveness
from deskfleet.broker.service.replica import Replica
from deskfleet.ports import Clock

TOGETHER_SECONDS = 60.0


class Silence:
    def __init__(self, replica: Replica, liveness: Liveness, clock: Clock) -> None:
        self._fleet = replica.fleet
        self._liveness = liveness
        self._clock = clock
        self._since: dict[str, float] = {}
        self._reachable = 0

    def look(self) -> None:
        """Take notice of who is silent now."""
        now, alive, held = self._clock.monotonic(), self._liveness.alive(), self._fleet.held
        lost = chain.from_iterable(held[one] for one in held if one not in alive)
        silent = filter(self._counts, chain(self._fleet.unheld, lost))
        self._since = {id: self._since.get(id, now) for id in silent}
        self._reachable = sum(len(held[one]) for one in held if one in alive)

    def _counts(self, server_id: str) -> bool:
        server = self._fleet.server(server_id)
        return server is not None and (server.listed or self._fleet.seats(server_id).taken > 0)

    def of_at_least(self, seconds: float) -> list[str]:
        """Return the servers that have been silent for so long."""
        now = self._clock.monotonic()
        return [id for id, since in self._since.items() if now - since >= seconds]

    def is_mass(self) -> bool:
        """Tell whether more than half of the servers that were heard vanished within a minute."""
        since = sorted(self._since.values())
        for first, began in enumerate(since):
            vanished = bisect_right(since, began + TOGETHER_SECONDS) - first
            heard_before = self._reachable + len(since) - first
            if vanished > 1 and vanished * 2 > heard_before:
                return True
        return False
