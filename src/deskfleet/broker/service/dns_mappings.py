"""Which DNS mappings are registered: an administrator's work.

A mapping is a record like all others: it outlives every broker, and brokers that run resolve by it
at once. Registering replaces the mappings of the same server id and type, and leaves the others.
"""

from __future__ import annotations

from collections.abc import Sequence

from deskfleet.broker.service.replica import Replica
from deskfleet.core.change import Change, ChangeSet, Drop, Put
from deskfleet.core.records import DnsMapping


class DnsMappings:
    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._fleet = replica.fleet

    async def register(self, mappings: Sequence[DnsMapping], *, only_these: bool = False) -> None:
        """Register mappings, all or none of them; with `only_these`, forget all others."""
        await self._replica.decide(lambda: (None, self._changes(mappings, only_these=only_these)))

    async def listed(self) -> list[DnsMapping]:
        """Return all mappings, by type and server id."""
        await self._replica.catch_up()
        mappings = self._fleet.each(DnsMapping)
        return sorted(mappings, key=lambda one: (one.server_id_type, one.server_id))

    def _changes(self, mappings: Sequence[DnsMapping], *, only_these: bool) -> ChangeSet:
        fleet, stay = self._fleet, {one.id for one in mappings}
        changes: list[Change] = [
            Put(one, fleet.revision_of(DnsMapping, one.id))
            for one in mappings
            if fleet.get(DnsMapping, one.id) != one
        ]
        if only_these:
            changes += [
                Drop("dns-mapping", one.id, fleet.revision_of(DnsMapping, one.id))
                for one in fleet.each(DnsMapping)
                if one.id not in stay
            ]
        return tuple(changes)
