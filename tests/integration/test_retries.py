"""A session that fails on its server is tried on others: broker, link and agent loop are real, and
the driver is the simulated one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from deskfleet.agent.drivers.simulated import SimulatedDriver
from deskfleet.agent.journal import Journal
from deskfleet.agent.journal_file import JournalFile
from deskfleet.agent.loop import Loop
from deskfleet.broker.service.servers import Closing
from deskfleet.broker.service.sessions import Deletion
from deskfleet.broker.stores.memory import MemoryStore
from deskfleet.core.records import Session
from deskfleet.core.session import State
from deskfleet.ports import SessionSpec
from deskfleet.system import SystemClock
from deskfleet.wire.messages import Desired, FromBroker, Observation
from support.builders import a_request, some_facts
from support.house import LIMIT_SECONDS, RETRIES, PlayedAgent, TestHouse, a_house
from support.waiting import soon

Scenario = Callable[[TestHouse, Sequence["LoopingAgent"]], Coroutine[Any, Any, None]]


class Nobody:
    """No one is ever connected."""

    def visitors(self, session_id: str) -> tuple[str, ...]:
        return ()

    def last_disconnection_at(self, session_id: str) -> datetime | None:
        return None

    def close_all(self, session_id: str) -> None: ...

    def forget(self, session_id: str) -> None: ...


class CountingDriver(SimulatedDriver):
    """A simulated driver that remembers what it was asked to start."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.started: list[SessionSpec] = []
        self.always_fails: str | None = None
        self.may_start = asyncio.Event()
        self.may_start.set()

    async def start(self, spec: SessionSpec) -> None:
        self.started.append(spec)
        await self.may_start.wait()
        if self.always_fails is not None:
            self.fail_next_start(self.always_fails)
        await super().start(spec)


class LoopingAgent(PlayedAgent):
    """An agent whose loop and driver are real; its link has no wire."""

    def __init__(self, house: TestHouse, server_id: str, folder: Path, **facts: Any) -> None:
        super().__init__(house, server_id, some_facts(server_id, **facts))
        self.changed = asyncio.Event()
        self.driver = CountingDriver()
        journal = Journal(JournalFile(folder / f"{server_id}.jsonl"))
        self.loop = Loop(server_id, self.driver, journal, Nobody(), self.changed.set)
        self.reporting = asyncio.create_task(self._report())

    async def _take(self, message: FromBroker) -> None:
        await super()._take(message)
        if isinstance(message, Desired):
            self.loop.want(message.desires)

    async def _report(self) -> None:
        while True:
            await self.changed.wait()
            self.changed.clear()
            observed = self.loop.observed()
            await self.session.hear(Observation(epoch=self.epoch, serial=0, observed=observed))

    async def close(self) -> None:
        await self.loop.close()
        self.reporting.cancel()
        await asyncio.gather(self.reporting, return_exceptions=True)
        await self.part()


def run(folder: Path, scenario: Scenario, *servers: str, **facts: Any) -> None:
    async def whole() -> None:
        async with asyncio.timeout(30), a_house() as house:
            agents = [LoopingAgent(house, id, folder, **facts) for id in servers]
            for agent in agents:
                await agent.loop.open()
                await agent.connect()
            try:
                await scenario(house, agents)
            finally:
                for agent in agents:
                    await agent.close()

    asyncio.run(whole())


async def create(house: TestHouse, **fields: Any) -> str:
    [outcome] = await house.sessions.create([a_request(**fields)])
    assert isinstance(outcome, Session)
    return outcome.id


async def becomes(house: TestHouse, id: str, state: State) -> Session:
    deadline = asyncio.get_running_loop().time() + LIMIT_SECONDS
    while True:
        session = await house.session(id)
        seen = house.sessions.view(session).seen
        if seen.state is state:
            return session
        assert seen.state in {State.CREATING, State.DELETING}, seen
        assert asyncio.get_running_loop().time() < deadline, seen
        await asyncio.sleep(0.002)


async def waits(house: TestHouse, id: str) -> None:
    """Wait until a session waits for a place."""
    deadline = asyncio.get_running_loop().time() + LIMIT_SECONDS
    while True:
        if (await house.session(id)).server_id is None:
            return
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.002)


def test_a_store_that_is_set_back_begins_nothing_again(tmp_path: Path) -> None:
    """A session was about to begin when the backup was made, and was deleted since."""

    async def whole() -> None:
        store = MemoryStore()
        async with asyncio.timeout(30), a_house(store) as house:
            agent = LoopingAgent(house, "n1", tmp_path)
            await agent.loop.open()
            await agent.connect()
            agent.driver.may_start.clear()
            id = await create(house)
            await soon(lambda: agent.driver.started)
            backup = copied(store)
            agent.driver.may_start.set()
            await becomes(house, id, State.READY)
            await house.sessions.delete([Deletion(id, "alice")])
            await becomes(house, id, State.DELETED)
            await soon(lambda: not agent.loop.observed())
            await agent.close()
        async with asyncio.timeout(30), a_house(backup, broker_id="b2") as house:
            agent = LoopingAgent(house, "n1", tmp_path)
            await agent.loop.open()
            await agent.connect()
            session = await becomes(house, id, State.DELETED)
            assert session.reason == "it has had its end here before"
            assert agent.driver.started == []
            await agent.close()

    asyncio.run(whole())


def copied(store: MemoryStore) -> MemoryStore:
    copy = MemoryStore()
    copy._revision, copy._floor, copy._rows = store._revision, store._floor, dict(store._rows)
    return copy


def tried(agents: Sequence[LoopingAgent]) -> list[str]:
    """Return on which servers a start was tried, as often as it was."""
    return [agent.server_id for agent in agents for _ in agent.driver.started]


def test_another_server_is_taken_though_the_one_that_failed_is_emptier(tmp_path: Path) -> None:
    async def scenario(house: TestHouse, agents: Sequence[LoopingAgent]) -> None:
        first, second = agents
        await house.servers.close([Closing("n1")])
        await becomes(house, await create(house), State.READY)
        await house.servers.open(["n1"])
        first.driver.fail_next_start("no X")
        session = await becomes(house, await create(house), State.READY)
        assert (session.server_id, session.tried, session.generation) == ("n2", ("n1",), 2)
        assert [len(one.driver.started) for one in (first, second)] == [1, 2]
        assert house.replica.fleet.seats("n1").taken == 0

    run(tmp_path, scenario, "n1", "n2")


def test_retries_stop_with_the_reason_of_the_last_server(tmp_path: Path) -> None:
    async def scenario(house: TestHouse, agents: Sequence[LoopingAgent]) -> None:
        for agent in agents:
            agent.driver.always_fails = f"no X on {agent.server_id}"
        id = await create(house, enqueue=True)
        session = await becomes(house, id, State.DELETED)
        assert len(tried(agents)) == 1 + RETRIES
        assert len(set(tried(agents))) == 1 + RETRIES
        last = session.server_id
        assert last not in session.tried
        assert house.sessions.view(session).seen.reason == f"no X on {last}"

    run(tmp_path, scenario, "n1", "n2", "n3", "n4")


def test_the_same_server_is_tried_again_only_where_no_other_fits(tmp_path: Path) -> None:
    async def scenario(house: TestHouse, agents: Sequence[LoopingAgent]) -> None:
        [only] = agents
        only.driver.fail_next_start("no X")
        session = await becomes(house, await create(house), State.READY)
        assert (session.server_id, session.generation) == ("n1", 2)
        only.driver.always_fails = "no X again"
        session = await becomes(house, await create(house), State.DELETED)
        assert tried(agents) == ["n1"] * (2 + 1 + RETRIES)
        assert session.reason == "no X again"

    run(tmp_path, scenario, "n1")


@pytest.mark.parametrize("enqueue", [False, True])
def test_a_client_may_want_no_retry(tmp_path: Path, enqueue: bool) -> None:
    async def scenario(house: TestHouse, agents: Sequence[LoopingAgent]) -> None:
        for agent in agents:
            agent.driver.always_fails = "no X"
        id = await create(house, disable_retry=True, enqueue=enqueue)
        session = await becomes(house, id, State.DELETED)
        assert session.reason == "no X"
        assert len(tried(agents)) == 1

    run(tmp_path, scenario, "n1", "n2")


@pytest.mark.parametrize("enqueue", [False, True])
def test_without_another_place_it_waits_where_that_was_asked_for(
    tmp_path: Path, enqueue: bool
) -> None:
    async def scenario(house: TestHouse, agents: Sequence[LoopingAgent]) -> None:
        [only] = agents
        only.driver.always_fails = "no X"
        only.driver.may_start.clear()
        id = await create(house, enqueue=enqueue)
        # Closed while the start is under way: when that fails, there is no other place.
        await house.servers.close([Closing("n1", force=True)])
        only.driver.may_start.set()
        if not enqueue:
            assert (await becomes(house, id, State.DELETED)).reason == "no X"
            assert tried(agents) == ["n1"]
            return
        await waits(house, id)
        seen = house.sessions.view(await house.session(id)).seen
        assert (seen.state, seen.reason) == (State.CREATING, "no X")
        only.driver.always_fails = None
        await house.servers.open(["n1"])
        await becomes(house, id, State.READY)

    run(tmp_path, scenario, "n1")
