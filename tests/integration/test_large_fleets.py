"""What is done on the event loop for one thing costs as much in a large fleet as in a small one.

Counted in steps, and compared between fleets of which one is several times as large.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, cast

import pytest

from deskfleet.broker.service.house import House
from deskfleet.broker.service.selection import Selection
from deskfleet.broker.service.silence import Silence
from deskfleet.broker.web.api import Api, Defaults
from deskfleet.core.change import Drop, Stored
from deskfleet.core.records import Facts, Record, Session, TokenUse
from support.builders import NOON, a_link, a_server, a_session, some_facts
from support.counting import steps
from support.house import PlayedAgent, TestHouse, a_house

SMALL, LARGE = 30, 300
ALIKE = 1.3

Measured = Callable[[TestHouse, int], Coroutine[Any, Any, int]]


def ratio(measured: Measured) -> float:
    """Return how many times as much it costs in the large fleet."""

    async def at(size: int) -> int:
        async with a_house() as house:
            await house.write(*a_fleet_of(size))
            return await measured(house, size)

    small, large = (asyncio.run(at(size)) for size in (SMALL, LARGE))
    assert small > 20
    return large / small


def a_fleet_of(size: int) -> list[Record]:
    """Return servers with two sessions each, one of which has ended; a tenth has the tag `gpu`."""
    records: list[Record] = []
    for number in range(size):
        id, at = f"n{number}", NOON + timedelta(seconds=number)
        gpu = "yes" if number % 10 == 0 else None
        records += [
            a_server(id, registered_at=at),
            some_facts(id, gpu=gpu, tags={"of": str(number % 5), "all": "x", "id": id}),
            a_link(id, broker_id="b1"),
            a_session(f"run-{number}", server=id, owner=id, created_at=at),
            a_session(f"old-{number}", server=id, created_at=at, ended_at=NOON),
            TokenUse(id=f"t{number}", expires_at=NOON + timedelta(hours=1)),
        ]
    return records


def test_servers_by_their_ids() -> None:
    async def measured(house: TestHouse, size: int) -> int:
        list(house.servers.select(["n1"]))
        assert [one.id for one in house.servers.select(["n9", "n1", "n1"])] == ["n1", "n9"]
        return steps(lambda: list(house.servers.select(["n9", "n1"])))

    assert ratio(measured) < ALIKE


@pytest.mark.parametrize(
    ("tags", "owners"),
    [
        ([("id", "n20")], []),
        ([("id", "n20")] * 1_000, []),
        ([("all", "x"), ("of", "0"), ("id", "n20")], []),
        ([("id", "n20"), ("id", "n10")], []),
        ([], ["n20"]),
        ([("all", "x")], ["n20"] * 1_000),
        ([], ["n20", "n10"]),
    ],
)
def test_the_sessions_of_a_tag_or_an_owner(tags: list[tuple[str, str]], owners: list[str]) -> None:
    async def measured(house: TestHouse, size: int) -> int:
        def ask() -> list[Any]:
            return list(house.sessions.select((), owners, tags))

        ask()
        return steps(ask)

    assert ratio(measured) < ALIKE


def test_a_page_of_the_sessions_of_a_tag_that_all_have() -> None:
    async def measured(house: TestHouse, size: int) -> int:
        def ask() -> list[Any]:
            tags = [("all", "x")]
            rows = Selection(house.replica.fleet, (), (), tags, page=10).places(None, NOON)
            return [next(rows) for _ in range(10)]

        ask()
        return steps(ask)

    # It grows with the root of the fleet's size, until that many are walked.
    assert ratio(measured) < 4


def test_a_session_that_is_dropped() -> None:
    async def measured(house: TestHouse, size: int) -> int:
        agents = [await PlayedAgent(house, f"n{number}").connect() for number in range(size // 3)]
        for agent in agents:
            await agent.desired(lambda _wanted: True)
        fleet = house.replica.fleet
        drop = Drop("session", "run-5", fleet.revision_of(Session, "run-5"))
        told: list[Any] = []
        house.replica.subscribe(told.append)
        await house.replica.commit((drop,))
        # Who held it is told of it, in the end.
        await agents[5].desired(lambda wanted: not wanted)
        [entries] = [one for one in told if any(entry.key == drop.key for entry in one)]
        return steps(lambda: house.links._spread(entries))

    assert ratio(measured) < ALIKE


def test_a_sweep_with_nothing_to_do() -> None:
    async def measured(house: TestHouse, size: int) -> int:
        await house.beat()
        house.housekeeping._decide_sweep()
        return steps(house.housekeeping._decide_sweep)

    assert ratio(measured) < ALIKE


def test_looking_who_is_silent() -> None:
    async def measured(house: TestHouse, size: int) -> int:
        silence = Silence(house.replica, house.liveness, house.clock)
        fleet = house.replica.fleet
        fleet.apply(Stored(fleet.revision + 1, a_link("n3", broker_id="b1", up=False)))
        fleet.apply(Stored(fleet.revision + 1, a_link("n4", broker_id="gone")))
        silence.look()
        assert sorted(silence.of_at_least(0)) == ["n3", "n4"]
        return steps(silence.look)

    assert ratio(measured) < ALIKE


def test_no_answer_is_kept_of_a_server_that_is_gone() -> None:
    async def whole() -> None:
        async with a_house() as house:
            api = Api(cast(House, house), Defaults(160, 100, "png", 50, 150))
            for number in range(5):
                facts = some_facts(f"n{number}")
                await house.write(facts)
                assert api._server(facts) is api._server(facts)
                fleet = house.replica.fleet
                drop = Drop("facts", facts.id, fleet.revision_of(Facts, facts.id))
                await house.replica.commit((drop,))
            assert not api._server_shapes

    asyncio.run(whole())
