"""Parts of a fleet over its store, without its doors: what administrators' commands are given.

Each works whether brokers run or not, and brokers that run learn of it as they learn of everything.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from deskfleet.broker.main import replica_only
from deskfleet.broker.service.clients import Clients
from deskfleet.broker.service.statements import Statements
from deskfleet.broker.service.watch import Watch
from deskfleet.ports import Signer
from deskfleet.settings import BrokerSettings
from deskfleet.system import SystemClock, SystemIds, open_key_file


@contextlib.asynccontextmanager
async def clients_only(settings: BrokerSettings) -> AsyncIterator[Clients]:
    """Give access to the API clients and the agent clients of a fleet."""
    async with replica_only(settings) as replica:
        yield Clients(replica, SystemIds(), _signer(settings))


@contextlib.asynccontextmanager
async def statements_only(settings: BrokerSettings) -> AsyncIterator[Statements]:
    """Give access to the software statements of a fleet."""
    async with replica_only(settings) as replica:
        yield Statements(replica, _signer(settings))


@contextlib.asynccontextmanager
async def watch_only(settings: BrokerSettings) -> AsyncIterator[Watch]:
    """Listen to the brokers of a fleet, which beat as often as the settings say."""
    async with replica_only(settings) as replica:
        yield Watch(replica, SystemClock(), settings.broker_beat_seconds)


def _signer(settings: BrokerSettings) -> Signer:
    return open_key_file(settings.state / "keys" / "store.key")
