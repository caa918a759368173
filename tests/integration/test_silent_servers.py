"""The sessions of silent servers: they end only where that was asked for, and never in masses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

from deskfleet.broker.service.housekeeping import Housekeeping, Retention
from deskfleet.core.records import Intent, Phase
from deskfleet.core.session import State
from support.builders import a_link, a_report, a_server, a_session, some_facts
from support.house import PlayedAgent, TestHouse, a_house

LIMIT = 600.0


class Sweeper:
    """Sweeps a house whose administrator gave sessions of silent servers a time."""

    def __init__(self, house: TestHouse, limit: float | None = LIMIT) -> None:
        self.house = house
        retention = Retention(timedelta(hours=1), 1800, silent_sessions_seconds=limit)
        self._housekeeping = Housekeeping(
            house.replica, house.liveness, house.placing, house.clock, house.broker, retention
        )

    async def sweep(self, after: float = 0.0) -> None:
        self.house.clock.advance(after)
        await self.house.beat()
        await self.house.replica.decide(self._housekeeping._decide_sweep)

    async def state(self, session_id: str) -> State:
        return self.house.sessions.view(await self.house.session(session_id)).seen.state

    async def occupy(self, *server_ids: str) -> None:
        """Let each of these servers be linked, and run one session that is named after it."""
        for id in server_ids:
            session = a_session(f"on-{id}", server=id)
            report = a_report(session, phase=Phase.RUNNING)
            link = a_link(id, broker_id="b1")
            await self.house.write(a_server(id), some_facts(id), link, session, report)

    async def silence(self, *server_ids: str) -> None:
        for id in server_ids:
            await self.house.write(a_link(id, broker_id="b1", up=False))


def run(scenario: Callable[[Sweeper], Awaitable[None]], limit: float | None = LIMIT) -> None:
    async def whole() -> None:
        async with a_house() as house:
            await scenario(Sweeper(house, limit))

    asyncio.run(whole())


def test_they_end_after_their_time_with_a_reason() -> None:
    async def scenario(sweeper: Sweeper) -> None:
        await sweeper.occupy("n1", "n2", "n3")
        await sweeper.silence("n1")
        await sweeper.sweep()
        await sweeper.sweep(LIMIT - 1)
        assert await sweeper.state("on-n1") is State.UNKNOWN
        await sweeper.sweep(1)
        assert await sweeper.state("on-n1") is State.DELETED
        assert (await sweeper.house.session("on-n1")).reason == "its server was silent for 600.0 s"
        assert await sweeper.state("on-n2") is State.READY

    run(scenario)


def test_they_stay_where_nobody_asked_for_their_end() -> None:
    async def scenario(sweeper: Sweeper) -> None:
        await sweeper.occupy("n1", "n2", "n3")
        await sweeper.silence("n1")
        await sweeper.sweep()
        await sweeper.sweep(1_000_000)
        assert await sweeper.state("on-n1") is State.UNKNOWN

    run(scenario, None)


def test_a_server_that_was_heard_meanwhile_starts_anew() -> None:
    async def scenario(sweeper: Sweeper) -> None:
        await sweeper.occupy("n1", "n2", "n3")
        await sweeper.silence("n1")
        await sweeper.sweep()
        await sweeper.house.write(a_link("n1", broker_id="b1"))
        await sweeper.sweep(LIMIT - 1)
        await sweeper.silence("n1")
        await sweeper.sweep(2)
        await sweeper.sweep(LIMIT - 1)
        assert await sweeper.state("on-n1") is State.UNKNOWN

    run(scenario)


def test_none_ends_when_most_servers_vanished_within_a_minute() -> None:
    async def scenario(sweeper: Sweeper) -> None:
        await sweeper.occupy("n1", "n2", "n3", "n4", "n5")
        await sweeper.silence("n1")
        await sweeper.sweep()
        await sweeper.silence("n2", "n3")
        await sweeper.sweep(60)
        await sweeper.sweep(10 * LIMIT)
        for server_id in ("n1", "n2", "n3"):
            assert await sweeper.state(f"on-{server_id}") is State.UNKNOWN
        # Back to one that is merely dead.
        await sweeper.house.write(a_link("n2", broker_id="b1"), a_link("n3", broker_id="b1"))
        await sweeper.sweep(5)
        assert await sweeper.state("on-n1") is State.DELETED
        assert await sweeper.state("on-n2") is State.READY

    run(scenario)


def test_the_only_server_of_a_fleet_is_no_mass() -> None:
    async def scenario(sweeper: Sweeper) -> None:
        await sweeper.occupy("n1")
        await sweeper.silence("n1")
        await sweeper.sweep()
        await sweeper.sweep(LIMIT - 1)
        assert await sweeper.state("on-n1") is State.UNKNOWN
        await sweeper.sweep(1)
        assert await sweeper.state("on-n1") is State.DELETED

    run(scenario)


def test_two_are_a_mass_where_there_are_no_others() -> None:
    async def scenario(sweeper: Sweeper) -> None:
        await sweeper.occupy("n1", "n2")
        await sweeper.silence("n1", "n2")
        await sweeper.sweep()
        await sweeper.sweep(LIMIT)
        assert await sweeper.state("on-n1") is State.UNKNOWN

    run(scenario)


def test_half_of_them_is_no_mass_nor_are_those_that_vanish_one_by_one() -> None:
    async def scenario(sweeper: Sweeper) -> None:
        await sweeper.occupy("n1", "n2", "n3", "n4")
        await sweeper.silence("n1", "n2")
        await sweeper.sweep()
        await sweeper.sweep(LIMIT)
        assert await sweeper.state("on-n1") is State.DELETED
        assert await sweeper.state("on-n2") is State.DELETED
        await sweeper.silence("n3")
        await sweeper.sweep()
        await sweeper.sweep(LIMIT)
        assert await sweeper.state("on-n3") is State.DELETED
        assert await sweeper.state("on-n4") is State.READY

    run(scenario)


def test_a_server_is_shown_no_longer_when_its_sessions_end_and_not_forgotten_under_them() -> None:
    async def scenario(sweeper: Sweeper) -> None:
        await sweeper.occupy("n1", "n2", "n3")
        await sweeper.silence("n1")
        await sweeper.sweep()
        # Both times are over in one moment: the sessions end first.
        await sweeper.sweep(1800)
        assert await sweeper.state("on-n1") is State.DELETED
        assert sweeper.house.replica.fleet.server("n1") is not None
        await sweeper.sweep(5)
        assert sweeper.house.replica.fleet.server("n1") is None

    run(scenario)


def test_servers_that_are_shown_no_longer_count_only_with_their_sessions() -> None:
    async def scenario(sweeper: Sweeper) -> None:
        # Closed, empty, and gone for good: they must not stand against the others for ever.
        gone = [a_server(f"gone-{n}", open=False, listed=False) for n in range(5)]
        await sweeper.house.write(*gone)
        await sweeper.occupy("n1", "n2", "n3")
        await sweeper.silence("n1")
        await sweeper.sweep()
        await sweeper.sweep(LIMIT)
        assert await sweeper.state("on-n1") is State.DELETED

    run(scenario)


def test_a_mass_is_shown_no_longer_and_keeps_its_sessions() -> None:
    async def scenario(sweeper: Sweeper) -> None:
        await sweeper.occupy("n1", "n2", "n3")
        await sweeper.silence("n1", "n2")
        await sweeper.sweep()
        await sweeper.sweep(10 * LIMIT)
        await sweeper.sweep(10 * LIMIT)
        assert sorted(sweeper.house.replica.fleet.unlisted) == ["n1", "n2"]
        assert await sweeper.state("on-n1") is State.UNKNOWN
        assert await sweeper.state("on-n2") is State.UNKNOWN

    run(scenario)


def test_a_server_that_comes_back_is_told_to_stop_what_has_ended() -> None:
    async def scenario(sweeper: Sweeper) -> None:
        await sweeper.occupy("n1", "n2", "n3")
        agent = await PlayedAgent(sweeper.house, "n1").connect()
        desire = await agent.wanted("on-n1")
        await agent.report(desire, Phase.RUNNING)
        await agent.part()
        await sweeper.silence("n1")
        await sweeper.sweep()
        await sweeper.sweep(LIMIT)
        again = PlayedAgent(sweeper.house, "n1")
        again.observed = dict(agent.observed)
        await again.connect()
        await again.wanted("on-n1", Intent.STOP)
        assert await sweeper.state("on-n1") is State.DELETED

    run(scenario)
