"""Lets agent links open no faster than a broker can serve them.

Whoever comes when there is no room is given a turn: a time at which it is let in, whoever else
comes then. A crowd of any size is spread over the time that it takes to serve it, and its last is
refused as often as its first. Laws: who comes at its turn is never refused; nobody waits for more
than a minute without having been asked to come again; memory is bounded by the turns of that time.
"""

from __future__ import annotations

import random
from collections.abc import Callable

LINKS_PER_SECOND = 200.0
"""With TLS and all that is written, a good half of what one processor does."""
BURST_SECONDS = 1.0
"""For how long everybody is let in at once: a small fleet never sees a refusal."""
FARTHEST_SECONDS = 60.0
MOMENT_SECONDS = 1e-6
EARLY_SECONDS = 0.1
LATE_SECONDS = 30.0
"""How long a turn is kept for who does not come."""


class Admission:
    """`now` gives monotonic seconds, and `uniform` a random number between two others."""

    def __init__(
        self,
        now: Callable[[], float],
        *,
        per_second: float = LINKS_PER_SECOND,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._now = now
        self._each = 1.0 / per_second
        self._uniform = uniform
        self._free_at = now()
        """When nobody else has a turn."""
        self._turns: dict[str, float] = {}
        """Who is to come when; in the order of the turns."""

    def knock(self, server_id: str) -> float:
        """Let a server in and return 0.0, or return in how many seconds it is to come again."""
        now = self._now()
        self._forget_late(now)
        turn = self._turns.get(server_id)
        if turn is not None:
            if turn - now > EARLY_SECONDS:
                return turn - now
            del self._turns[server_id]
            return 0.0
        turn = max(self._free_at, now)
        wait = turn - now - BURST_SECONDS
        if wait > FARTHEST_SECONDS:
            # Too far away to be promised.
            return self._uniform(FARTHEST_SECONDS / 2, FARTHEST_SECONDS)
        self._free_at = turn + self._each
        if wait < MOMENT_SECONDS:
            return 0.0
        self._turns[server_id] = now + wait
        return wait

    def _forget_late(self, now: float) -> None:
        while self._turns:
            first = next(iter(self._turns))
            if self._turns[first] + LATE_SECONDS > now:
                return
            del self._turns[first]
