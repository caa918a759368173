"""An agent's link to a real broker, and what becomes of both when one of them is in trouble."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deskfleet.agent.broker_door import BrokerDoor
from deskfleet.agent.desktop.attendance import Attendance
from deskfleet.agent.drivers.simulated import SimulatedDriver
from deskfleet.agent.identity import Identity
from deskfleet.agent.journal import Journal
from deskfleet.agent.journal_file import JournalFile
from deskfleet.agent.loop import Loop
from deskfleet.agent.uplink import Uplink
from deskfleet.broker.stores.memory import MemoryStore
from deskfleet.core.change import Stored, Tombstone
from deskfleet.core.records import AgentClient, Facts, Revision
from deskfleet.core.session import replace
from deskfleet.errors import Unavailable
from deskfleet.system import SystemClock
from support.builders import some_facts
from support.fault_proxy import FaultProxy
from support.running_broker import RunningBroker, running_broker

LIMIT_SECONDS = 20.0


class BusyStore(MemoryStore):
    """A store that is too busy for reads while a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.busy = False
        self.refused = 0

    def changes(self, since: Revision) -> tuple[Revision, list[Stored | Tombstone]]:
        if self.busy:
            self.refused += 1
            raise Unavailable("the store is busy")
        revision, entries = super().changes(since)
        return revision, list(entries)

    def glance(self) -> Revision | None:
        return None if self.busy else super().glance()


class CountingDoor(BrokerDoor):
    """Knows how often it was asked for a token."""

    tokens = 0

    async def _post(self, path: str, **request: Any) -> httpx.Response:
        self.tokens += path == "/oauth2/token"
        return await super()._post(path, **request)


class LinkedAgent:
    """An agent without a program: its link, its loop, and sessions that aren't there."""

    def __init__(self, broker: RunningBroker, folder: Path, url: str) -> None:
        clock, changed = SystemClock(), asyncio.Event()
        credentials = broker.call(broker.house.access.register_any_agent("n1"))
        identity = Identity(credentials.client_id, credentials.client_password)
        self.id = identity.client_id
        self.door = CountingDoor([url], broker.context, clock)
        self.driver = SimulatedDriver(clock)
        journal = Journal(JournalFile(folder / f"{self.id}.jsonl"))
        self.loop = Loop(self.id, self.driver, journal, Attendance(clock), changed.set)
        self.uplink = Uplink(
            self.door, identity, self.loop, self.driver, self._facts, clock, changed
        )

    async def _facts(self) -> Facts:
        return some_facts(self.id)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.loop.open()
        running = asyncio.create_task(self.uplink.run())
        try:
            await self.until_linked()
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await self.loop.close()
            await self.door.close()

    async def until_linked(self) -> None:
        await asyncio.wait_for(self.uplink.linked.wait(), LIMIT_SECONDS)

    async def until_lost(self) -> None:
        await until(lambda: not self.uplink.linked.is_set())


async def until(condition: Callable[[], object]) -> None:
    deadline = asyncio.get_running_loop().time() + LIMIT_SECONDS
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.005)


@pytest.fixture(scope="module")
def store() -> BusyStore:
    return BusyStore()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, store: BusyStore) -> Iterator[RunningBroker]:
    with running_broker(tmp_path_factory.mktemp("uplink"), store) as running:
        yield running


class TestTokens:
    def test_a_link_that_was_lost_comes_back_with_the_token_it_has(
        self, broker: RunningBroker, tmp_path: Path
    ) -> None:
        async def scenario() -> None:
            with FaultProxy(broker.doors.agent_port) as proxy:
                agent = LinkedAgent(broker, tmp_path, proxy.url)
                async with agent.running():
                    for _ in range(3):
                        proxy.reset_all()
                        await agent.until_lost()
                        await agent.until_linked()
                    assert agent.door.tokens == 1

        asyncio.run(scenario())

    def test_one_that_is_refused_is_replaced(self, broker: RunningBroker, tmp_path: Path) -> None:
        async def scenario() -> None:
            agent = LinkedAgent(broker, tmp_path, f"https://localhost:{broker.doors.agent_port}")
            async with agent.running():
                client = broker.house.replica.fleet.get(AgentClient, agent.id)
                assert client is not None
                broker.write(replace(client, token_era=client.token_era + 1))
                await agent.until_lost()
                await agent.until_linked()
                assert agent.door.tokens == 2

        asyncio.run(scenario())

    def test_a_broker_that_is_busy_refuses_none(
        self, broker: RunningBroker, store: BusyStore, tmp_path: Path
    ) -> None:
        async def scenario() -> None:
            with FaultProxy(broker.doors.agent_port) as proxy:
                agent = LinkedAgent(broker, tmp_path, proxy.url)
                async with agent.running():
                    store.busy = True
                    try:
                        asked = proxy.accepted
                        proxy.reset_all()
                        await agent.until_lost()
                        await until(lambda: proxy.accepted >= asked + 2)
                    finally:
                        store.busy = False
                    await agent.until_linked()
                    assert agent.door.tokens == 1

        asyncio.run(scenario())
