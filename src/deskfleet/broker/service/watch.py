"""Which brokers of a fleet live, as a program sees it that comes and goes.

It has heard nothing before it began, and no clock of another machine tells it anything. So it
listens: a broker that shows a new beat lives; one that is silent for as long as brokers give each
other is dead; of all others nothing is said.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from deskfleet.broker.service.liveness import DEAD_BEATS, Liveness
from deskfleet.broker.service.replica import Replica
from deskfleet.core.records import Broker
from deskfleet.ports import Clock

LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class BrokerView:
    broker: Broker
    alive: bool | None
    """None: it was not listened to for long enough to tell."""


class Watch:
    """`beat_seconds` is how often brokers beat; the caller knows it from their settings."""

    def __init__(self, replica: Replica, clock: Clock, beat_seconds: float) -> None:
        """The replica has loaded: only what comes after that is news."""
        self._replica = replica
        self._clock = clock
        self._patience = DEAD_BEATS * beat_seconds
        self._liveness = Liveness(replica, clock, broker_id="", beat_seconds=beat_seconds)

    async def look(self, seconds: float | None = None) -> list[BrokerView]:
        """Listen until all brokers have been heard, or for `seconds`; None is long enough to tell.

        They come by their ids; one that retires meanwhile is gone.
        """
        began, limit = self._clock.monotonic(), self._patience if seconds is None else seconds
        while True:
            await self._replica.catch_up()
            known = (one for one in self._replica.fleet.each(Broker) if not one.retired)
            brokers = sorted(known, key=lambda one: one.id)
            silence = self._clock.monotonic() - began
            alive = {one.id for one in self._liveness.others()}
            if silence >= limit or len(alive) == len(brokers):
                dead = False if silence >= self._patience else None
                return [BrokerView(one, one.id in alive or dead) for one in brokers]
            await asyncio.sleep(min(LOOK_SECONDS, limit - silence))
