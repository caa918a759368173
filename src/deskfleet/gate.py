"""How many connections there are at once, and how many of them may be strangers from one address.

A connection has a seat from when it is accepted until it is closed. It is a stranger's until who
sends requests on it has shown who they are; a door's application says so with `vouch`. Law: one
address without credentials can't keep others out.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from deskfleet.core.addresses import counted

MOST_CONNECTIONS = 20_000
"""10,000 agents, and as many again that come back before the old ones are given up."""
MOST_STRANGERS = 5_000
"""Of one address. A whole site may be behind one, or a balancer for all, and after a restart of a
broker all agents come at once, faster than they can show who they are. Each costs 40 KB."""
SEAT = "deskfleet.seat"
"""Where a connection's seat is in the state of its requests."""


class Gate:
    """The seats of one door, or of several together."""

    def __init__(self, most: int = MOST_CONNECTIONS, most_strangers: int = MOST_STRANGERS) -> None:
        self.taken = 0
        self.strangers: Counter[str] = Counter()
        self._most = most
        self._most_strangers = min(most_strangers, most // 2)

    def enter(self, address: str) -> Seat | None:
        """Give a seat to a connection from this address, None where there is none for it."""
        known_as = counted(address) or address
        if self.taken >= self._most or self.strangers[known_as] >= self._most_strangers:
            return None
        self.taken += 1
        self.strangers[known_as] += 1
        return Seat(self, known_as)


class Seat:
    """One connection's."""

    __slots__ = ("_gate", "_is_taken", "_stranger")

    def __init__(self, gate: Gate, address: str) -> None:
        self._gate = gate
        self._is_taken = True
        self._stranger: str | None = address

    def vouch(self) -> None:
        """Count the connection among strangers no more."""
        address, self._stranger = self._stranger, None
        if address is None:
            return
        self._gate.strangers[address] -= 1
        if not self._gate.strangers[address]:
            del self._gate.strangers[address]

    def leave(self) -> None:
        """Give the seat back; leaving twice is leaving once."""
        self.vouch()
        if self._is_taken:
            self._is_taken = False
            self._gate.taken -= 1


def vouch(scope: Any) -> None:
    """Say that who sent this request, or opened this WebSocket, has shown who they are."""
    seat = scope.get("state", {}).get(SEAT)
    if seat is not None:
        seat.vouch()
