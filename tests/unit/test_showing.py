"""What is kept of sessions for answers is what would be made now, and is made when needed."""

from __future__ import annotations

import asyncio
import random

import pytest

from deskfleet.broker.service.sessions import SessionView
from deskfleet.broker.stores.memory import MemoryStore
from deskfleet.core.change import Drop
from deskfleet.core.records import Phase, Record, Report, Session
from deskfleet.core.session import State
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

STEPS = 200
SERVERS = ("n1", "n2")
BROKERS = ("b1", "b2")
SESSIONS = ("s1", "s2", "s3")


def some_record(chance: random.Random, sessions: list[Session]) -> Record:
    """Return a record that may show in a session's row."""
    kind = chance.randrange(6)
    if kind == 0:
        return some_facts(chance.choice(SERVERS), gpu=chance.choice([None, "yes"]))
    if kind == 1:
        broker_id = chance.choice(BROKERS)
        return a_link(chance.choice(SERVERS), broker_id=broker_id, up=chance.random() < 0.8)
    if kind == 2:
        return a_broker(chance.choice(BROKERS), beat=chance.randrange(1000))
    if kind < 5 and sessions:
        phase = chance.choice([Phase.STARTING, Phase.RUNNING, Phase.RUNNING])
        return a_report(chance.choice(sessions), phase, connections=chance.randrange(3))
    return a_session(
        chance.choice(SESSIONS),
        name=chance.choice(["desk", "other desk"]),
        server=chance.choice(SERVERS),
        ended_at=chance.choice([None, None, None, NOON]),
    )


async def happen(chance: random.Random, house: TestHouse, clock: FakeClock) -> None:
    """Let something happen: a write, a record's end, or mere time."""
    await house.replica.catch_up()
    fleet = house.replica.fleet
    what = chance.randrange(4)
    if what == 0:
        clock.advance(chance.choice([0.1, BEAT_SECONDS, 5 * BEAT_SECONDS]))
    elif what == 1 and (keys := [key for key in fleet.all_keys() if key[0] in {"session", "link"}]):
        kind, id = chance.choice(keys)
        revision = fleet._records[kind][id].revision
        await house.replica.commit((Drop(kind, id, revision),))
    else:
        await house.write(some_record(chance, list(fleet.each(Session))))


@pytest.mark.parametrize("seed", range(20))
def test_it_is_what_would_be_made_now_whatever_happens(seed: int) -> None:
    async def scenario() -> None:
        chance, store, clock = random.Random(seed), MemoryStore(), FakeClock()
        async with (
            a_house(store, broker_id="b1", clock=clock) as here,
            a_house(store, broker_id="b2", clock=clock) as there,
        ):
            showing = here.sessions.showing(lambda view: view)
            seen: set[State] = set()
            for _ in range(STEPS):
                await happen(chance, chance.choice([here, there]), clock)
                await here.replica.catch_up()
                sessions = list(here.replica.fleet.each(Session))
                views = [here.sessions.view(session) for session in sessions]
                assert showing.of(session.id for session in sessions) == views
                seen |= {view.seen.state for view in views}
            assert len(seen) >= 3

    asyncio.run(scenario())


def test_it_is_made_once_for_each_change_that_shows() -> None:
    async def scenario() -> None:
        made: list[str] = []

        def make(view: SessionView) -> SessionView:
            made.append(view.session.id)
            return view

        async with a_house() as house:
            session, other = a_session("s1", server="n1"), a_session("s2", server="n2")
            await house.write(session, other, a_link("n1"), some_facts("n1"), a_link("n2"))
            showing = house.sessions.showing(make)

            async def look() -> list[str]:
                made.clear()
                showing.of(house.replica.fleet.listed(Session, None))
                return sorted(made)

            assert await look() == ["s1", "s2"]
            assert await look() == []
            await house.beat()
            assert await look() == []
            await house.write(a_report(session))
            assert await look() == ["s1"]
            await house.write(some_facts("n2"))
            assert await look() == ["s2"]
            await house.replica.commit(
                (Drop("report", "s1", house.replica.fleet.revision_of(Report, "s1")),)
            )
            assert await look() == ["s1"]

    asyncio.run(scenario())


def test_nothing_is_kept_of_what_is_gone() -> None:
    async def scenario() -> None:
        async with a_house() as house:
            await house.write(a_session("s1", server="n1"), a_link("n1"))
            showing = house.sessions.showing(lambda view: view)
            showing.of(house.replica.fleet.listed(Session, None))
            revision = house.replica.fleet.revision_of(Session, "s1")
            await house.replica.commit((Drop("session", "s1", revision),))
            assert showing._kept == {}
            assert showing._server_of == {}
            assert showing._on_server == {}

    asyncio.run(scenario())
