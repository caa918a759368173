"""How long an agent waits before it looks for a broker again.

A wait is random between nothing and a bound that doubles with each attempt, so that ten thousand
agents which were lost in one moment don't come back in one. How far the bound grows depends on
what went wrong. A broker that refuses, or does not answer in time, has no time: coming again soon
would only take more of it. Where nobody was there, or a link broke off, nobody is bothered: who
restarts, or flaps, is found again within seconds, and who was away for long within a tenth of that.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from enum import Enum, auto

FIRST_SECONDS = 0.25
LONGEST_SECONDS = 60.0
LONGEST_IF_ABSENT_SECONDS = 3.0
SHARE_OF_ABSENCE = 0.1
HEALTHY_SECONDS = 60.0
"""After so much time with a link, all that went before is forgotten."""


class Trouble(Enum):
    BUSY = auto()
    """A broker refused, or did not answer in time."""
    ABSENT = auto()
    """Nobody was there, or a link broke off."""


class Backoff:
    """`uniform` gives a random number between two others; times are monotonic."""

    def __init__(
        self, now: float, uniform: Callable[[float, float], float] = random.uniform
    ) -> None:
        self._uniform = uniform
        self._bound = FIRST_SECONDS
        self._linked_at = now
        """When there was a link last."""

    def linked(self, began: float, now: float) -> None:
        """Take note of a link that has ended."""
        self._linked_at = now
        if now - began > HEALTHY_SECONDS:
            self._bound = FIRST_SECONDS

    def wait(self, trouble: Trouble, now: float) -> float:
        """Return how many seconds to wait after an attempt that failed, or a link that ended."""
        bound = min(self._bound, self._longest(trouble, now))
        self._bound = min(LONGEST_SECONDS, bound * 2)
        return self._uniform(0, bound)

    def _longest(self, trouble: Trouble, now: float) -> float:
        if trouble is Trouble.BUSY:
            return LONGEST_SECONDS
        absence = SHARE_OF_ABSENCE * (now - self._linked_at)
        return min(LONGEST_SECONDS, max(LONGEST_IF_ABSENT_SECONDS, absence))
