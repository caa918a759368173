"""How often callers may call, how often the token doors let somebody guess, and how fast agents are
listened to.

Owns token buckets with bounded memory: each key costs one number, all that is asked of a bucket
is O(1), and what a bucket forgets is what had no effect any more; only a flood of distinct keys
makes it forget earlier. A broker counts for itself: N brokers allow N times as much.

A caller is a client's id, or its address where nobody has to say who they are. Of the header
`X-Forwarded-For` only the last address counts, which the nearest proxy has seen itself: what
stands before it is the client's own word.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from starlette.responses import Response
from starlette.types import Scope

from deskfleet.broker.web.problems import refusal
from deskfleet.core.addresses import counted

MAX_KEYS = 10_000
REFUSED_LOGINS_PER_SECOND = 10
"""Of one address."""
REFUSED_LOGINS_PER_MINUTE = 5
"""Of one client id at one address: elsewhere the client itself can still get its tokens."""
ENROLMENTS_PER_MINUTE = 600
"""Of one address, refused ones among them: racks of servers stand behind one."""
LINKS_PER_MINUTE = 120
"""Of one agent: more than even one that is bounced from broker to broker begins."""
MESSAGES_PER_SECOND = 50
"""Of one agent: several times what the busiest server has to say."""
MESSAGES_AT_ONCE = 200
CHARACTERS_A_MESSAGE = 64 * 1024

K = TypeVar("K")


class Buckets(Generic[K]):
    """A token bucket for each key: `count` at once, and one more every `seconds / count`.

    Kept as the instant at which a bucket will be full again (the generic cell rate algorithm),
    in two generations, of which the older one is dropped whole.
    """

    def __init__(
        self, count: int, seconds: float, now: Callable[[], float], *, most: int = MAX_KEYS
    ) -> None:
        self._seconds = seconds
        self._each = seconds / count
        self._now = now
        self._most = most
        self._young: dict[K, float] = {}
        self._old: dict[K, float] = {}
        self._turn = now() + seconds

    def take(self, key: K) -> float:
        """Take one; return 0.0, or in how many seconds there will be one to take."""
        now = self._now()
        full = self._young.get(key)
        if full is None:
            full = self._grow(key, now)
        full = max(full, now) + self._each
        wait = full - now - self._seconds
        # Divisions leave crumbs: the last one of a full bucket is still in it.
        if wait > 1e-9:
            return wait
        self._young[key] = full
        return 0.0

    def wait(self, key: K) -> float:
        """Return in how many seconds there will be one to take; take none."""
        now = self._now()
        full = self._young.get(key, self._old.get(key, now))
        wait = max(full, now) + self._each - now - self._seconds
        return wait if wait > 1e-9 else 0.0

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def _grow(self, key: K, now: float) -> float:
        # A bucket that was not touched for `seconds` is full: nothing is lost with it.
        if now >= self._turn or len(self._young) >= self._most:
            self._old, self._young = self._young, {}
            self._turn = now + self._seconds
        return self._old.get(key, now)


class Pace:
    """How fast one agent is listened to: a burst at once, and then so many messages a second.

    A long message counts for several. Who is too fast is kept waiting, and nothing is lost: what
    isn't read stays with the sender, and an agent says in one message what has changed meanwhile.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._full = now()
        """When all that was taken will have been given back."""

    def take(self, length: int) -> float:
        """Count a message of so many characters; return for how many seconds no other is read."""
        now = self._now()
        weight = 1 + length // CHARACTERS_A_MESSAGE
        self._full = max(self._full, now) + weight / MESSAGES_PER_SECOND
        return max(0.0, self._full - now - MESSAGES_AT_ONCE / MESSAGES_PER_SECOND)


@dataclass(frozen=True, slots=True)
class Limits:
    requests_per_second: int = 1000
    """Of one caller; 0 for no limit."""
    forwarded_for: bool = False
    """Whether the header `X-Forwarded-For` is believed."""


class Throttle:
    def __init__(self, limits: Limits, now: Callable[[], float]) -> None:
        rate = limits.requests_per_second
        self._callers: Buckets[str] | None = Buckets(rate, 1.0, now) if rate > 0 else None
        self._forwarded_for = limits.forwarded_for
        self._addresses: Buckets[str] = Buckets(REFUSED_LOGINS_PER_SECOND, 1.0, now)
        self._clients: Buckets[tuple[str, str]] = Buckets(REFUSED_LOGINS_PER_MINUTE, 60.0, now)
        self._enrolments: Buckets[str] = Buckets(ENROLMENTS_PER_MINUTE, 60.0, now)

    def call(self, caller: str) -> float:
        """Count a call; return 0.0, or in how many seconds the caller may call again."""
        return self._callers.take(caller) if self._callers is not None else 0.0

    def login(self, address: str, client_id: str) -> float:
        """Return in how many seconds this client may try to log in from here; 0.0 is now."""
        return max(self._addresses.wait(address), self._clients.wait((client_id, address)))

    def login_refused(self, address: str, client_id: str) -> None:
        self._addresses.take(address)
        self._clients.take((client_id, address))

    def enrolment(self, address: str) -> float:
        """Count an enrolment; return 0.0, or in how many seconds there may be one from here."""
        return self._enrolments.take(address)

    def address(self, scope: Scope) -> str:
        """Return the address of a client; of IPv6 its network, of which each host has a whole."""
        client = scope.get("client")
        direct = client[0] if client else ""
        told = _forwarded(scope) if self._forwarded_for else None
        return (told and counted(told)) or counted(direct) or direct


def _forwarded(scope: Scope) -> str | None:
    values = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
    return str(values[-1], "latin-1").rpartition(",")[2].strip() if values else None


def too_many(wait: float) -> Response:
    return refusal(429, "Too many requests", {"Retry-After": str(max(1, math.ceil(wait)))})
