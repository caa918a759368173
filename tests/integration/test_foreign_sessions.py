"""Sessions that deskfleet did not create, and whose ids their servers chose: `console`, mostly."""

from __future__ import annotations

import pytest

from deskfleet.broker.service import observing
from deskfleet.broker.service.observing import take_observed
from deskfleet.broker.service.sessions import NO_SUCH_SESSION, Deletion
from deskfleet.core.placement import Refusal
from deskfleet.core.records import Intent, Phase, Report, Session, Type
from deskfleet.core.session import State, replace
from deskfleet.errors import Conflict
from deskfleet.wire.messages import Desired, Observed
from support.builders import NOON, a_request, a_spec
from support.house import PlayedAgent, TestHouse, run, running, state, stored

CONSOLE = "console"


def begin(agent: PlayedAgent, owner: str = "ann") -> None:
    report = Report(id=CONSOLE, server_id=agent.server_id, generation=0, phase=Phase.RUNNING)
    shown = running(CONSOLE, owner=owner, type=Type.CONSOLE)
    agent.observed[CONSOLE] = Observed(report=report, running=shown)


async def found(house: TestHouse, server_id: str) -> PlayedAgent:
    """Connect a server on which a console session runs."""
    agent = PlayedAgent(house, server_id)
    begin(agent)
    return await agent.connect()


async def deleted(house: TestHouse, agent: PlayedAgent, id: str) -> None:
    answers = await house.sessions.delete([Deletion(id, "ann")])
    assert answers == [State.DELETING]
    await agent.report(await agent.wanted(CONSOLE, Intent.STOP), Phase.ENDED)
    assert await state(house, id) is State.DELETED
    del agent.observed[CONSOLE]


def stops(agent: PlayedAgent) -> int:
    return sum(
        desire.intent is Intent.STOP
        for message in agent.said
        if isinstance(message, Desired)
        for desire in message.desires
    )


def test_one_that_begins_again_after_its_end_is_shown_and_left_alone() -> None:
    async def scenario(house: TestHouse) -> None:
        agent = await found(house, "n1")
        assert await state(house, CONSOLE) is State.READY
        await deleted(house, agent, CONSOLE)
        asked = stops(agent)
        begin(agent)
        await agent.tell()
        assert await state(house, CONSOLE) is State.READY
        await agent.wanted(CONSOLE, Intent.RUN)
        assert stops(agent) == asked

    run(scenario)


def show(agent: PlayedAgent, *ids: str, phase: Phase = Phase.RUNNING) -> None:
    """Let sessions run on a server, and no others that nobody asked for."""
    agent.observed = {
        id: Observed(
            report=Report(id=id, server_id=agent.server_id, generation=0, phase=phase),
            running=running(id) if phase is Phase.RUNNING else None,
        )
        for id in ids
    }


def test_of_one_server_so_many_are_adopted_and_no_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(observing, "MOST_ADOPTED", 3)

    async def scenario(house: TestHouse) -> None:
        agent = PlayedAgent(house, "n1")
        show(agent, "a", "b")
        await agent.connect()
        assert "sessions.not-adopted" not in caplog.text
        show(agent, "a", "b", "c", "d", "e")
        await agent.tell()
        assert {one.id for one in stored(house.store, Session)} == {"a", "b", "c"}
        # Others under other ids take no more room, nor do those that have ended leave some.
        show(agent, "a", "b", "c", phase=Phase.ENDED)
        await agent.tell()
        show(agent, "f", "g")
        await agent.tell()
        assert {one.id for one in stored(house.store, Session)} == {"a", "b", "c"}
        told = [record for record in caplog.records if record.message == "sessions.not-adopted"]
        assert [(one.server_id, one.sessions) for one in told] == [("n1", 2)]  # type: ignore[attr-defined]
        # One that begins again under its id takes the place of the one before.
        show(agent, "a")
        await agent.tell()
        assert await state(house, "a") is State.READY
        other = PlayedAgent(house, "n2")
        show(other, "x")
        await other.connect()
        assert await state(house, "x") is State.READY
        house.clock.advance(3600)
        await house.sweep()
        show(agent, "a", "f", "g", "h")
        await agent.tell()
        ours = {one.id for one in stored(house.store, Session)} - {"x"}
        assert ours == {"a", "f", "g"}

    run(scenario)


def test_one_that_is_too_large_is_not_adopted() -> None:
    async def scenario(house: TestHouse) -> None:
        agent = PlayedAgent(house, "n1")
        for id, count in (("s1", 20), ("s2", 40)):
            report = Report(id=id, server_id="n1", generation=1, phase=Phase.RUNNING)
            asked = a_request(autorun_file_arguments=("x" * 4_000,) * count)
            shown = running(id, generation=1, owner="alice")
            session = Session(id=id, request=asked, created_at=NOON, generation=1)
            agent.observed[id] = Observed(report=report, running=shown, spec=a_spec(session))
        await agent.connect()
        assert {one.id for one in stored(house.store, Session)} == {"s1"}

    run(scenario)


def test_two_servers_may_use_the_same_id() -> None:
    async def scenario(house: TestHouse) -> None:
        one, two = await found(house, "n1"), await found(house, "n2")
        other = f"{CONSOLE}@n2"
        assert {session.id for session in stored(house.store, Session)} == {CONSOLE, other}
        assert [await state(house, id) for id in (CONSOLE, other)] == [State.READY, State.READY]
        # Each server hears of its own one, by the name that it gave it.
        assert [(await agent.wanted(CONSOLE)).intent for agent in (one, two)] == [Intent.RUN] * 2
        await deleted(house, two, other)
        assert await state(house, CONSOLE) is State.READY
        assert stops(one) == 0

    run(scenario)


def test_one_keeps_its_id_when_the_other_is_gone() -> None:
    async def scenario(house: TestHouse) -> None:
        one, two = await found(house, "n1"), await found(house, "n2")
        await deleted(house, one, CONSOLE)
        house.clock.advance(3600)
        await house.sweep()
        await two.tell()
        assert [session.id for session in stored(house.store, Session)] == [f"{CONSOLE}@n2"]
        assert house.replica.fleet.seats("n2").taken == 1
        # It ends, and the next one there may have the id as it is.
        await deleted(house, two, f"{CONSOLE}@n2")
        begin(two)
        await two.tell()
        assert await state(house, CONSOLE) is State.READY

    run(scenario)


def test_a_server_may_name_another_as_we_would() -> None:
    async def scenario(house: TestHouse) -> None:
        await found(house, "n1")
        two = PlayedAgent(house, "n2")
        begin(two)
        lookalike = two.observed[CONSOLE]
        report = replace(lookalike.report, id=f"{CONSOLE}@n2")
        two.observed[f"{CONSOLE}@n2"] = replace(lookalike, report=report)
        observed = tuple(two.observed.values())
        changes = take_observed(house.replica.fleet, "n2", observed, NOON, retries=2).changes
        assert len({one.key for one in changes}) == len(changes) == 2
        await two.connect()
        kept = stored(house.store, Session)
        assert {one.id for one in kept} == {CONSOLE, f"{CONSOLE}@n2"}
        assert (await house.session(f"{CONSOLE}@n2")).local_id == CONSOLE

    run(scenario)


def test_what_no_client_could_find_is_not_connected_to() -> None:
    async def scenario(house: TestHouse) -> None:
        await house.access.ensure_signing_key()
        await found(house, "n1")
        await found(house, "n2")
        await house.sessions.connect(CONSOLE, "ann")
        with pytest.raises(Conflict, match="an id of its own"):
            await house.sessions.connect(f"{CONSOLE}@n2", "ann")

    run(scenario)


def test_one_that_is_forgotten_by_force_comes_back_on_its_own_server() -> None:
    async def scenario(house: TestHouse) -> None:
        await found(house, "n1")
        two = await found(house, "n2")
        other = f"{CONSOLE}@n2"
        await two.wanted(CONSOLE)
        answers = await house.sessions.delete([Deletion(other, "ann", force=True)])
        assert answers == [State.DELETING]
        await two.desired(lambda wanted: CONSOLE not in wanted)
        await two.tell()
        assert await state(house, other) is State.READY
        assert stops(two) == 0

    run(scenario)


def test_the_end_of_one_servers_leaves_its_id_to_that_server() -> None:
    """No server changes what is another's, not even the memory of it."""

    async def scenario(house: TestHouse) -> None:
        one = await found(house, "n1")
        await deleted(house, one, CONSOLE)
        await found(house, "n2")
        assert await state(house, CONSOLE) is State.DELETED
        assert await state(house, f"{CONSOLE}@n2") is State.READY

    run(scenario)


def test_the_console_of_the_next_user_is_not_the_one_of_the_last() -> None:
    """One ended and the other began between two looks: nobody has told of an end."""

    async def scenario(house: TestHouse) -> None:
        agent = await found(house, "n1")
        await agent.wanted(CONSOLE)
        assert await house.sessions.delete([Deletion(CONSOLE, "ann")]) == [State.DELETING]
        begin(agent, owner="bob")
        await agent.tell()
        session = await house.session(CONSOLE)
        assert (session.request.owner, await state(house, CONSOLE)) == ("bob", State.READY)
        wanted = await agent.desired(lambda one: one[CONSOLE].intent is Intent.RUN)
        assert wanted[CONSOLE].spec.request.owner == "bob"
        assert await house.sessions.delete([Deletion(CONSOLE, "ann")]) == [Refusal(NO_SUCH_SESSION)]

    run(scenario)


async def created(house: TestHouse, agent: PlayedAgent) -> str:
    [session] = await house.sessions.create([a_request()])
    assert isinstance(session, Session)
    await agent.run(session.id)
    return session.id


def test_sessions_of_a_machine_that_was_enrolled_anew_are_left_alone() -> None:
    async def scenario(house: TestHouse) -> None:
        old = await PlayedAgent(house, "old").connect()
        id = await created(house, old)
        await old.part()
        new = PlayedAgent(house, "new")
        report = replace(old.observed[id].report, server_id="new")
        shown = running(id, owner="alice", generation=report.generation)
        spec = a_spec(await house.session(id))
        new.observed[id] = Observed(report=report, running=shown, spec=spec)
        await new.connect()
        assert await state(house, f"{id}@new") is State.READY
        assert (await new.wanted(id)).intent is Intent.RUN
        assert stops(new) == 0

    run(scenario)


def test_one_whose_record_was_lost_on_its_server_is_not_stopped() -> None:
    async def scenario(house: TestHouse) -> None:
        agent = await PlayedAgent(house, "n1").connect()
        id = await created(house, agent)
        desire = await agent.wanted(id)
        await agent.report(desire, Phase.ENDED)
        assert await state(house, id) is State.DELETED
        report = Report(id=id, server_id="n1", generation=0, phase=Phase.RUNNING)
        agent.observed[id] = Observed(report=report, running=running(id, owner="alice"))
        await agent.tell()
        assert await state(house, f"{id}@n1") is State.READY
        assert stops(agent) == 0

    run(scenario)
