"""Blocks of a listing say what their parts say now, and are joined again only where one changed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import timedelta
from typing import TypeAlias

import pytest

from deskfleet.broker.service.blocks import Blocks
from deskfleet.broker.service.sessions import SessionView
from deskfleet.broker.stores.memory import MemoryStore
from deskfleet.core.change import Change, Drop, Put
from deskfleet.core.records import Phase, Record, Report, Session
from support.builders import (
    NOON,
    FakeClock,
    a_broker,
    a_link,
    a_report,
    a_session,
    some_facts,
)
from support.house import BEAT_SECONDS, TestHouse, a_house

Views: TypeAlias = tuple[SessionView, ...]

STEPS = 120
SERVERS = ("n1", "n2")
TOGETHER = 3


def alone(view: SessionView) -> Views:
    return (view,)


def joined(parts: list[Views]) -> Views:
    return tuple(view for part in parts for view in part)


def some_record(chance: random.Random) -> Record:
    number = chance.randrange(14)
    session = a_session(
        f"s{number}",
        server=chance.choice([None, *SERVERS]),
        created_at=NOON + timedelta(seconds=number % 5),
    )
    kind = chance.randrange(6)
    if kind == 0 and session.server_id is not None:
        return a_report(session, chance.choice(list(Phase)))
    if kind == 1:
        return some_facts(chance.choice(SERVERS), gpu=chance.choice([None, "yes"]))
    if kind == 2:
        return a_link(chance.choice(SERVERS), broker_id=chance.choice(["b1", "b2"]))
    if kind == 3:
        return a_broker("b2", beat=chance.randrange(1000))
    return session


async def happen(chance: random.Random, house: TestHouse) -> None:
    fleet = house.replica.fleet
    what = chance.randrange(8)
    if what == 0:
        house.clock.advance(chance.choice([0.1, 5 * BEAT_SECONDS]))
    elif what == 1 and fleet.count(Session):
        id = chance.choice(list(fleet.listed(Session, None)))
        await decide(house, lambda: Drop("session", id, fleet.revision_of(Session, id)))
    elif what < 6:
        record = some_record(chance)
        await decide(house, lambda: Put(record, fleet.revision_of(type(record), record.id)))


async def decide(house: TestHouse, change: Callable[[], Change]) -> None:
    """Write in spite of the placer, which is at work beside the test."""
    await house.replica.decide(lambda: (None, (change(),)))


@pytest.mark.parametrize("seed", range(20))
def test_they_are_what_the_parts_are_now_whatever_happens(seed: int) -> None:
    async def scenario() -> None:
        chance = random.Random(seed)
        async with a_house(MemoryStore(), broker_id="b1", clock=FakeClock()) as house:
            blocks = Blocks(house.sessions.showing(alone), joined, TOGETHER)
            fleet = house.replica.fleet
            for _ in range(STEPS):
                await happen(chance, house)
                places = list(fleet.places(Session, None))
                start = chance.choice([0, 0, 3, 6, chance.randrange(14)])
                page = places[start : start + chance.choice([3, 7, 100])]
                sessions = [fleet.session(id) for _, id in page]
                expected = tuple(house.sessions.view(one) for one in sessions if one is not None)
                assert joined(blocks.of(page)) == expected
                assert set(blocks._block_of) <= {id for _, id in places}
                in_blocks = [id for one in blocks._kept.values() for _, id in one.places]
                assert len(in_blocks) == len(set(in_blocks))

    asyncio.run(scenario())


def test_one_that_changes_costs_one_block() -> None:
    async def scenario() -> None:
        joins: list[int] = []

        def join(parts: list[Views]) -> Views:
            joins.append(len(parts))
            return joined(parts)

        async with a_house() as house:
            sessions = [a_session(f"s{number}", server="n1") for number in range(8)]
            await house.write(*sessions, a_link("n1"), some_facts("n1"))
            blocks = Blocks(house.sessions.showing(alone), join, TOGETHER)

            def look() -> list[int]:
                joins.clear()
                blocks.of(list(house.replica.fleet.places(Session, None)))
                return joins

            assert look() == [3, 3, 2]
            # What is no whole block is not kept.
            assert look() == [2]
            await house.write(a_report(sessions[4]))
            assert look() == [3, 2]
            await house.replica.commit(
                (Drop("report", "s4", house.replica.fleet.revision_of(Report, "s4")),)
            )
            assert look() == [3, 2]
            await house.write(some_facts("n1", gpu="yes"))
            assert look() == [3, 3, 2]

    asyncio.run(scenario())
