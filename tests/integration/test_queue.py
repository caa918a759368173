"""The queue of a broker: who is first, for how long, across restarts, and what wakes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import pytest

from deskfleet.broker.service.placing import GAP_SECONDS
from deskfleet.broker.stores.sql import SqlStore
from deskfleet.core.placement import Refusal
from deskfleet.core.records import Facts, Os, Phase, Session, SessionRequest, Type
from deskfleet.core.session import State, Substate, replace
from deskfleet.system import SystemClock
from deskfleet.wire.messages import FactsChanged
from support.builders import (
    FakeClock,
    a_broker,
    a_link,
    a_request,
    a_server,
    a_session,
    some_facts,
)
from support.house import BEAT_SECONDS, PlayedAgent, TestHouse, a_house
from support.waiting import soon

Scenario = Callable[[TestHouse], Coroutine[Any, Any, None]]


def run(scenario: Scenario, **house: Any) -> None:
    async def whole() -> None:
        async with asyncio.timeout(60), a_house(**house) as built:
            await scenario(built)

    asyncio.run(whole())


async def create(house: TestHouse, **fields: Any) -> Session:
    [outcome] = await house.sessions.create([a_request(enqueue=True, **fields)])
    assert isinstance(outcome, Session)
    return outcome


async def refused(house: TestHouse, request: SessionRequest) -> str:
    [outcome] = await house.sessions.create([request])
    assert isinstance(outcome, Refusal)
    return outcome.reason


def place_of(house: TestHouse, session: Session) -> str | None:
    current = house.replica.fleet.session(session.id)
    assert current is not None
    return current.server_id


class Passes:
    """Counts how often the queue is looked at."""

    def __init__(self, house: TestHouse) -> None:
        self.count = 0
        self._decide = house.placing._decide
        house.placing._decide = self._counted  # type: ignore[method-assign]

    def _counted(self, newcomers: Any) -> Any:
        self.count += 1
        return self._decide(newcomers)


def is_at_rest(house: TestHouse) -> bool:
    """Tell whether the queue will not be looked at before somebody's time is over."""
    placing, now = house.placing, asyncio.get_running_loop().time()
    is_set = placing._alarm is not None and placing._alarm_at < now + 5
    return not (is_set or placing._wanted.is_set())


class TestOrder:
    def test_one_seat_after_the_other_goes_to_who_waits_longest(self) -> None:
        async def scenario(house: TestHouse) -> None:
            waiting = []
            for number in range(4):
                house.clock.advance(1)
                waiting.append(await create(house, owner=f"user{number}"))
            agent = PlayedAgent(house, "n1", some_facts(max_virtual_sessions=1))
            await agent.connect()
            for session in waiting:
                desire = await agent.run(session.id)
                later = waiting[waiting.index(session) + 1 :]
                assert all(place_of(house, one) is None for one in later)
                await agent.report(desire, Phase.ENDED, reason="logged out")

        run(scenario)

    def test_the_oldest_that_is_feasible_is_first(self) -> None:
        async def scenario(house: TestHouse) -> None:
            picky = await create(house, requirements="tag:gpu = 'yes'")
            house.clock.advance(1)
            console = await create(house, type=Type.CONSOLE)
            house.clock.advance(1)
            modest = await create(house)
            await PlayedAgent(house, "n1", some_facts(max_virtual_sessions=1)).connect()
            await soon(lambda: place_of(house, modest) == "n1")
            facts = some_facts("n2", types=(Type.VIRTUAL, Type.CONSOLE), gpu="yes")
            await PlayedAgent(house, "n2", facts).connect()
            await soon(lambda: place_of(house, picky) == "n2")
            assert place_of(house, console) is None

        run(scenario)


class TestWhatWakesIt:
    @pytest.mark.parametrize("how", ["seat", "open", "register", "tags", "healthy", "deleted"])
    def test_a_place_that_comes_free_is_taken_at_once(self, how: str) -> None:
        async def scenario(house: TestHouse) -> None:
            facts = some_facts(max_virtual_sessions=0 if how in {"register", "tags"} else 1)
            agent = await PlayedAgent(house, "n1", facts).connect()
            session: Session | None = None
            if how in {"seat", "deleted"}:
                [first] = await house.sessions.create([a_request()])
                assert isinstance(first, Session)
                desire = await agent.run(first.id)
            elif how == "open":
                await house.servers.close([])
                await house.write(a_server(open=False))
            elif how == "healthy":
                await hear(agent, replace(facts, unhealthy="no X"))
            wish = {"requirements": "tag:gpu = 'yes'"} if how == "tags" else {}
            session = await create(house, **wish)
            await soon(lambda: is_at_rest(house))
            assert place_of(house, session) is None
            if how in {"seat", "deleted"}:
                await agent.report(desire, Phase.ENDED, reason="logged out")
            elif how == "open":
                await house.servers.open(["n1"])
            elif how == "register":
                await PlayedAgent(house, "n2").connect()
            elif how == "tags":
                await hear(agent, some_facts(gpu="yes"))
            else:
                await hear(agent, facts)
            await soon(lambda: session is not None and place_of(house, session) is not None)

        run(scenario)

    def test_a_broker_that_is_back_brings_its_servers_back(self) -> None:
        async def scenario(house: TestHouse) -> None:
            other = a_broker("other", beat=1)
            await house.write(other, a_server(), some_facts(), a_link(broker_id="other"))
            house.clock.advance(10 * BEAT_SECONDS)
            session = await create(house)
            await soon(lambda: is_at_rest(house))
            assert place_of(house, session) is None
            await house.write(replace(other, beat=2))
            await soon(lambda: place_of(house, session) == "n1")

        run(scenario)

    def test_what_can_not_help_does_not_wake_it(self) -> None:
        async def scenario(house: TestHouse) -> None:
            agent = await PlayedAgent(house, "n1", some_facts(max_virtual_sessions=1)).connect()
            [first] = await house.sessions.create([a_request()])
            assert isinstance(first, Session)
            desire = await agent.run(first.id)
            session = await create(house)
            await soon(lambda: is_at_rest(house))
            passes = Passes(house)
            for step in range(20):
                house.clock.advance(31)
                await hear(agent, busy(agent.facts, step))
                await agent.report(desire, Phase.RUNNING, connections=step)
                await house.beat()
                assert is_at_rest(house)
            assert passes.count == 0
            assert place_of(house, session) is None

        run(scenario)

    def test_load_wakes_it_where_somebody_waits_for_less(self) -> None:
        async def scenario(house: TestHouse) -> None:
            calm = "server:Host.CpuLoadAverage.OneMinute < 1"
            agent = await PlayedAgent(house, "n1", busy(some_facts(), 9)).connect()
            session = await create(house, requirements=calm)
            await soon(lambda: is_at_rest(house))
            house.clock.advance(31)
            await hear(agent, busy(agent.facts, 0))
            await soon(lambda: place_of(house, session) == "n1")

        run(scenario)

    def test_many_changes_make_few_passes(self) -> None:
        async def scenario(house: TestHouse) -> None:
            agent = await PlayedAgent(house, "n1", some_facts(gpu="no")).connect()
            session = await create(house, requirements="tag:gpu = 'yes'")
            await soon(lambda: is_at_rest(house))
            passes = Passes(house)
            loop = asyncio.get_running_loop()
            began = loop.time()
            for step in range(300):
                await hear(agent, some_facts(gpu="no", tags={"step": str(step)}))
            await hear(agent, some_facts(gpu="yes"))
            await soon(lambda: place_of(house, session) == "n1")
            assert passes.count <= (loop.time() - began) / GAP_SECONDS + 2

        run(scenario)

    def test_a_newcomer_does_not_wait_for_the_next_pass(self) -> None:
        async def scenario(house: TestHouse) -> None:
            await PlayedAgent(house, "n1").connect()
            loop = asyncio.get_running_loop()
            took = []
            for _ in range(9):
                began = loop.time()
                await create(house)
                took.append(loop.time() - began)
            assert min(took) < GAP_SECONDS

        run(scenario)


class TestLimits:
    def test_it_is_full_for_all_brokers_together_and_says_so(self) -> None:
        async def scenario(house: TestHouse) -> None:
            waiting = [await create(house) for _ in range(3)]
            reason = await refused(house, a_request(enqueue=True))
            assert reason.startswith("No DCV server found for the given criteria")
            assert reason.endswith("; the queue is full")
            async with a_house(house.store, broker_id="b2", clock=house.clock, queue=3) as second:
                reason = await refused(second, a_request(enqueue=True))
                assert reason.endswith("; the queue is full")
            await house.replica.catch_up()
            assert len(house.replica.fleet.waiting()) == len(waiting)

        run(scenario, queue=3)

    def test_who_has_waited_too_long_ends_with_a_reason(self) -> None:
        async def scenario(house: TestHouse) -> None:
            early = await create(house)
            house.clock.advance(30)
            late = await create(house)
            seen = house.sessions.view(early).seen
            assert (seen.state, seen.substate) == (State.CREATING, Substate.SESSION_PLACING)
            house.clock.advance(30)
            house.placing.look_again()
            await soon(lambda: len(house.replica.fleet.waiting()) == 1)
            seen = house.sessions.view(await house.session(early.id)).seen
            assert (seen.state, seen.reason) == (State.DELETED, "no place came free in time")
            await PlayedAgent(house, "n1").connect()
            await soon(lambda: place_of(house, late) == "n1")
            assert place_of(house, early) is None

        run(scenario, wait=60)

    def test_time_runs_out_though_nothing_happens(self) -> None:
        async def scenario(house: TestHouse) -> None:
            loop = asyncio.get_running_loop()
            began = loop.time()
            session = await create(house)
            await soon(lambda: not house.replica.fleet.waiting())
            assert loop.time() - began >= 0.3
            assert (await house.session(session.id)).reason == "no place came free in time"

        # The real clock: the alarm that goes off is the event loop's.
        run(scenario, wait=0.3, clock=cast(FakeClock, SystemClock()))


def test_it_survives_a_restart(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'fleet.db'}"

    async def before() -> list[str]:
        async with a_house(SqlStore(url), queue=2) as house:
            waiting = []
            for number in range(2):
                house.clock.advance(1)
                waiting.append((await create(house, name=f"desk {number}")).id)
            return waiting

    async def after(waiting: list[str]) -> None:
        async with a_house(SqlStore(url), queue=2) as house:
            assert [one.id for one in house.replica.fleet.waiting()] == waiting
            assert (await refused(house, a_request(enqueue=True))).endswith("the queue is full")
            agent = PlayedAgent(house, "n1", some_facts(max_virtual_sessions=1))
            await agent.connect()
            await agent.run(waiting[0])
            assert [one.id for one in house.replica.fleet.waiting()] == waiting[1:]

    async def much_later(waiting: list[str]) -> None:
        clock = FakeClock()
        clock.advance(3600)
        async with a_house(SqlStore(url), clock=clock) as house:
            # Nothing happens but the start itself.
            await soon(lambda: not house.replica.fleet.waiting())
            assert (await house.session(waiting[1])).reason == "no place came free in time"

    waiting = asyncio.run(before())
    asyncio.run(after(waiting))
    asyncio.run(much_later(waiting))


def test_odd_wishes_in_numbers_take_several_passes_and_leave_the_loop_to_others() -> None:
    async def scenario(house: TestHouse) -> None:
        passes = Passes(house)
        servers = [f"n{number}" for number in range(2000)]
        made = [(a_server(id), some_facts(id), a_link(id, broker_id="b1")) for id in servers]
        await house.write(*(record for records in made for record in records))
        odd = "tag:x != '{}' and server:Host.Memory.TotalBytes < {}"
        wishes = [a_request(enqueue=True, requirements=odd.format(n, n)) for n in range(300)]
        await house.write(*(a_session(f"q{n}", request=wish) for n, wish in enumerate(wishes)))
        turns = 0
        while len(house.placing._judged) < len(wishes) or not is_at_rest(house):
            await asyncio.sleep(0)
            turns += 1
        assert passes.count > 1
        assert turns >= passes.count
        assert len(house.replica.fleet.waiting()) == len(wishes)

    # The real clock, for a pass looks at it to know when to stop.
    run(scenario, queue=1000, clock=cast(FakeClock, SystemClock()), wait=1e9)


async def hear(agent: PlayedAgent, facts: Facts) -> None:
    """Let an agent tell new facts."""
    agent.facts = facts
    await agent.session.hear(FactsChanged(epoch=agent.epoch, facts=facts))


def busy(facts: Facts, load: float) -> Facts:
    host = replace(facts.host, load=(load, 1.0, 1.0), memory_used=1_000 + int(load), os=Os("linux"))
    return replace(facts, host=host)
