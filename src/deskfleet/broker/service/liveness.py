"""Who can be heard: brokers by their beats, servers through the broker that holds their link.

A broker is dead for this one when it has shown no new beat for `dead_after` seconds of *this*
machine's monotonic clock; wall clocks of two machines are never compared. One that has said that
it ends gives its agents as long to find another: a stop is no worse than a crash. Nothing here is
written to the store, so nobody has to remember to take it back.
"""

from __future__ import annotations

from deskfleet.broker.service.replica import Entries, Replica
from deskfleet.core.change import Stored
from deskfleet.core.fleet import Reachable
from deskfleet.core.records import Broker, Link
from deskfleet.ports import Clock

DEAD_BEATS = 4


class Liveness:
    def __init__(
        self, replica: Replica, clock: Clock, *, broker_id: str, beat_seconds: float
    ) -> None:
        self._fleet = replica.fleet
        self._clock = clock
        self._broker_id = broker_id
        self._dead_after = DEAD_BEATS * beat_seconds
        self._heard_at: dict[str, float] = {}
        replica.subscribe(self._hear)

    def is_alive(self, broker_id: str) -> bool:
        if broker_id == self._broker_id:
            return True
        heard_at = self._heard_at.get(broker_id)
        if heard_at is None or self._fleet.get(Broker, broker_id) is None:
            return False
        return self._clock.monotonic() - heard_at < self._dead_after

    def is_reachable(self, server_id: str) -> bool:
        """Tell whether the agent of a server can be heard, by whichever broker."""
        link = self._fleet.get(Link, server_id)
        return link is not None and link.up and self.is_alive(link.broker_id)

    def reachable_now(self) -> Reachable:
        """Return what tells, for many servers in one moment, whether they can be heard."""
        holder_of, alive = self._fleet.holders.get, self.alive()
        return lambda server_id: holder_of(server_id) in alive

    def alive(self) -> frozenset[str]:
        """Return the ids of all brokers that live, this one included."""
        living = (broker.id for broker in self._fleet.each(Broker) if self.is_alive(broker.id))
        return frozenset([self._broker_id, *living])

    def others(self) -> list[Broker]:
        """Return the other brokers that live, and have not said that they end."""
        return [
            broker
            for broker in self._fleet.each(Broker)
            if broker.id != self._broker_id and not broker.retired and self.is_alive(broker.id)
        ]

    def dead(self, *, for_seconds: float) -> list[Broker]:
        """Return the brokers that have been silent for much longer than it takes to be dead."""
        limit = self._clock.monotonic() - self._dead_after - for_seconds
        return [
            broker
            for broker in self._fleet.each(Broker)
            if broker.id != self._broker_id and self._heard_at.get(broker.id, limit) < limit
        ]

    def _hear(self, entries: Entries) -> None:
        now = self._clock.monotonic()
        for entry in entries:
            if isinstance(entry, Stored) and isinstance(entry.record, Broker):
                self._heard_at[entry.record.id] = now
