"""The use cases of a broker over a real store queue, without doors: one broker, and two at once."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import io
import logging
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from PIL import Image

from deskfleet.broker.service import housekeeping, placing, screenshots
from deskfleet.broker.service.access import Audience
from deskfleet.broker.service.replica import Replica
from deskfleet.broker.service.screenshots import (
    CROWDED,
    FULL,
    LATE,
    NO_INSTANT,
    NO_PICTURE,
    NO_SUCH_SESSION,
    Shot,
    Wish,
)
from deskfleet.broker.service.servers import NOT_FOUND, Closing, Code
from deskfleet.broker.service.sessions import NO_ROOM, Deletion, PermissionsUpdate
from deskfleet.broker.service.sessions import NO_SUCH_SESSION as NO_SUCH_SESSION_TO_DELETE
from deskfleet.broker.stores.group_commit import Changes, GroupCommit
from deskfleet.broker.stores.memory import MemoryStore
from deskfleet.core import server
from deskfleet.core.change import ChangeSet, Check, Drop, Put
from deskfleet.core.placement import Refusal
from deskfleet.core.records import (
    AgentClient,
    ApiClient,
    Broker,
    Facts,
    Intent,
    Link,
    Phase,
    Report,
    Revision,
    Server,
    Session,
    SessionRequest,
    SigningKey,
    SoftwareStatement,
)
from deskfleet.core.server import Unavailability, told_bytes
from deskfleet.core.session import State, Substate, replace
from deskfleet.errors import (
    Conflict,
    Forbidden,
    Missing,
    ProtocolError,
    Stale,
    StoreFailed,
    Unauthenticated,
    Unavailable,
)
from deskfleet.ports import Lost, Picture
from deskfleet.wire.messages import (
    FactsChanged,
    Observed,
    Screenshot,
    TakeScreenshot,
)
from deskfleet.wire.messages import (
    Refusal as LinkRefusal,
)
from support.builders import (
    NOON,
    CountingIds,
    FakeClock,
    a_broker,
    a_link,
    a_report,
    a_request,
    a_server,
    a_session,
    some_facts,
)
from support.house import (
    BEAT_SECONDS,
    LIMIT_SECONDS,
    PlayedAgent,
    TestHouse,
    a_house,
    run,
    running,
    signing_key,
    state,
    stored,
)
from support.waiting import soon


async def create(house: TestHouse, *requests: SessionRequest) -> list[Session]:
    """Create sessions that are all granted."""
    outcomes = await house.sessions.create(requests or (a_request(),))
    return [outcome for outcome in outcomes if isinstance(outcome, Session)]


async def refused(house: TestHouse, request: SessionRequest) -> str:
    [outcome] = await house.sessions.create([request])
    assert isinstance(outcome, Refusal)
    return outcome.reason


class TestPlacing:
    def test_an_answer_that_says_yes_is_in_the_store(self) -> None:
        async def scenario(house: TestHouse) -> None:
            await PlayedAgent(house, "n1").connect()
            [session] = await create(house, a_request(autorun_file_arguments=("a",)))
            assert stored(house.store, Session) == [session]
            assert (session.server_id, session.generation) == ("n1", 1)
            [server] = stored(house.store, Server)
            assert isinstance(server, Server)
            assert server.placements == 1

        run(scenario)

    def test_a_refusal_is_explained_and_leaves_nothing(self) -> None:
        async def scenario(house: TestHouse) -> None:
            reason = await refused(house, a_request())
            assert "no dcv server found for placement" in reason
            await PlayedAgent(house, "n1", some_facts(max_virtual_sessions=0)).connect()
            assert "1 of 1 are full" in await refused(house, a_request())
            assert stored(house.store, Session) == []

        run(scenario)

    def test_a_batch_fills_the_seats_and_no_more(self) -> None:
        async def scenario(house: TestHouse) -> None:
            for id in ("n1", "n2"):
                await PlayedAgent(house, id, some_facts(id, max_virtual_sessions=3)).connect()
            outcomes = await house.sessions.create([a_request() for _ in range(10)])
            assert [isinstance(one, Session) for one in outcomes] == [True] * 6 + [False] * 4
            assert [house.replica.fleet.seats(id).taken for id in ("n1", "n2")] == [3, 3]

        run(scenario)

    def test_two_brokers_never_give_away_one_seat_twice(self) -> None:
        async def whole() -> None:
            store = MemoryStore()
            async with a_house(store) as one, a_house(store, broker_id="b2") as two:
                facts = some_facts(max_virtual_sessions=7, max_sessions_per_user=3)
                await PlayedAgent(one, "n1", facts).connect()
                await one.beat()
                await two.replica.catch_up()
                houses = [one, two]
                outcomes = await asyncio.gather(
                    *(
                        houses[n % 2].sessions.create([a_request(owner=f"user{n % 3}")])
                        for n in range(40)
                    )
                )
                granted = [one for [one] in outcomes if isinstance(one, Session)]
                assert len(granted) == 7
                assert max(Counter(one.request.owner for one in granted).values()) <= 3
                assert len(stored(store, Session)) == 7

        asyncio.run(whole())

    def test_who_no_longer_waits_spoils_nothing_for_others(self) -> None:
        async def scenario(house: TestHouse) -> None:
            await PlayedAgent(house, "n1").connect()
            gone = [asyncio.create_task(create(house)) for _ in range(3)]
            stay = [asyncio.create_task(create(house)) for _ in range(3)]
            await asyncio.sleep(0)
            for task in gone:
                task.cancel()
            assert len(await asyncio.gather(*stay)) == 3
            assert all(task.cancelled() for task in await _ended(gone))

        run(scenario)


async def _ended(tasks: list[asyncio.Task[Any]]) -> list[asyncio.Task[Any]]:
    await asyncio.gather(*tasks, return_exceptions=True)
    return tasks


class TestTheQueue:
    def test_a_request_waits_until_a_server_comes(self) -> None:
        async def scenario(house: TestHouse) -> None:
            [session] = await create(house, a_request(enqueue=True))
            view = house.sessions.view(session)
            assert (view.seen.state, view.seen.substate) == (
                State.CREATING,
                Substate.SESSION_PLACING,
            )
            agent = await PlayedAgent(house, "n1").connect()
            await agent.run(session.id)
            assert await state(house, session.id) is State.READY

        run(scenario)

    def test_the_oldest_that_fits_is_first_and_nobody_overtakes(self) -> None:
        async def scenario(house: TestHouse) -> None:
            waiting = []
            for number in range(3):
                house.clock.advance(1)
                waiting += await create(house, a_request(name=f"q{number}", enqueue=True))
            house.clock.advance(1)
            agent = PlayedAgent(house, "n1", some_facts(max_virtual_sessions=2))
            connecting = asyncio.create_task(agent.connect())
            newcomer = await house.sessions.create([a_request(enqueue=True)])
            await connecting
            await soon(lambda: len(list(house.replica.fleet.sessions_on("n1"))) == 2)
            placed = {one.id for one in house.replica.fleet.sessions_on("n1")}
            assert placed == {waiting[0].id, waiting[1].id}
            [late] = newcomer
            assert isinstance(late, Session)
            assert [one.id for one in house.replica.fleet.waiting()] == [waiting[2].id, late.id]

        run(scenario)

    def test_who_does_not_fit_does_not_hold_up_who_does(self) -> None:
        async def scenario(house: TestHouse) -> None:
            [picky] = await create(house, a_request(enqueue=True, requirements="tag:gpu = 'yes'"))
            [modest] = await create(house, a_request(enqueue=True))
            agent = await PlayedAgent(house, "n1").connect()
            await agent.wanted(modest.id)
            assert (await house.session(picky.id)).server_id is None

        run(scenario)

    def test_it_has_an_end(self) -> None:
        async def scenario(house: TestHouse) -> None:
            await create(house, *[a_request(enqueue=True)] * 2)
            assert (await refused(house, a_request(enqueue=True))).endswith("; the queue is full")

        run(scenario, queue=2)

    def test_who_leaves_it_in_this_moment_makes_room(self) -> None:
        async def scenario(house: TestHouse) -> None:
            session = a_session("q1", enqueue=True)
            facts = some_facts(max_virtual_sessions=1)
            await house.write(
                session, a_server(), facts, a_link(broker_id="b1"), a_server("n2", open=False)
            )
            [late] = await create(house, a_request(enqueue=True))
            assert (await house.session("q1")).server_id == "n1"
            assert [one.id for one in house.replica.fleet.waiting()] == [late.id]

        # The placer has nothing to do before the newcomer comes: nobody tells it of the queue.
        run(scenario, queue=1)

    def test_nothing_starts_after_its_deadline(self) -> None:
        async def scenario(house: TestHouse) -> None:
            [session] = await create(house, a_request(enqueue=True))
            house.clock.advance(60)
            await PlayedAgent(house, "n1").connect()
            await soon(lambda: not house.replica.fleet.waiting())
            ended = await house.session(session.id)
            assert (ended.server_id, ended.reason) == (None, "no place came free in time")
            assert await state(house, session.id) is State.DELETED

        run(scenario, wait=60)

    def test_what_can_never_be_placed_does_not_wait(self) -> None:
        async def scenario(house: TestHouse) -> None:
            reason = await refused(house, a_request(enqueue=True, requirements="tag:gpu ="))
            assert "column" in reason
            reason = await refused(house, a_request(enqueue=True, requirements="server:X = '1'"))
            assert reason.startswith("Server property server:X not found")
            assert house.replica.fleet.waiting() == []

        run(scenario)

    def test_deleting_takes_it_out(self) -> None:
        async def scenario(house: TestHouse) -> None:
            [session] = await create(house, a_request(enqueue=True))
            assert await house.sessions.delete([Deletion(session.id, "alice")]) == [State.DELETING]
            await PlayedAgent(house, "n1").connect()
            assert await state(house, session.id) is State.DELETED
            assert house.replica.fleet.seats("n1").taken == 0

        run(scenario)


class TestFailedStarts:
    def test_another_server_is_tried_until_it_is_enough(self) -> None:
        async def scenario(house: TestHouse) -> None:
            agents = {id: await PlayedAgent(house, id).connect() for id in ("n1", "n2", "n3")}
            [session] = await create(house)
            tried = []
            for generation in (1, 2, 3):
                placed = await house.session(session.id)
                assert placed.generation == generation
                assert placed.server_id is not None
                tried.append(placed.server_id)
                agent = agents[placed.server_id]
                desire = await agent.wanted(session.id)
                await agent.report(desire, Phase.FAILED, reason=f"no X {generation}")
                await soon(lambda: not house.replica.fleet.waiting())
            assert sorted(tried) == ["n1", "n2", "n3"]
            ended = await house.session(session.id)
            assert ended.ended_at is not None
            assert ended.reason == "no X 3"
            assert all(house.replica.fleet.seats(id).taken == 0 for id in agents)

        run(scenario)

    def test_a_client_may_want_no_retry(self) -> None:
        async def scenario(house: TestHouse) -> None:
            agent = await PlayedAgent(house, "n1").connect()
            [session] = await create(house, a_request(disable_retry=True))
            await agent.report(await agent.wanted(session.id), Phase.FAILED, reason="no X")
            assert await state(house, session.id) is State.DELETED

        run(scenario)

    def test_without_another_place_it_waits_only_where_that_was_asked_for(self) -> None:
        async def scenario(house: TestHouse) -> None:
            agent = await PlayedAgent(house, "n1").connect()
            sessions = await create(house, a_request(), a_request(enqueue=True))
            for session in sessions:
                await agent.wanted(session.id)
            await house.servers.close([Closing("n1", force=True)])
            for session in sessions:
                await agent.report(await agent.wanted(session.id), Phase.FAILED, reason="no X")
            [impatient, patient] = sessions
            await soon(lambda: not house.replica.fleet.seats("n1").taken)
            await soon(lambda: len(house.replica.fleet.waiting()) == 1)
            assert await state(house, impatient.id) is State.DELETED
            assert (await house.session(impatient.id)).reason == "no X"
            assert [one.id for one in house.replica.fleet.waiting()] == [patient.id]

        run(scenario)


class UnsteadyStore(MemoryStore):
    """Fails as a real store may, as often as a test says."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[Exception | None] = []
        """Of the next commits, one after the other; None lets one through."""
        self.armed_for: type[object] = Session

    def commit(self, change_sets: Sequence[ChangeSet]) -> Sequence[Revision | Lost]:
        about = any(
            isinstance(change, Put) and isinstance(change.record, self.armed_for)
            for one in change_sets
            for change in one
        )
        failure = self.failures.pop(0) if about and self.failures else None
        if failure is not None:
            raise failure
        return super().commit(change_sets)


class TestWhenTheStoreFails:
    def test_who_waits_for_a_place_is_told_and_the_broker_ends(self) -> None:
        store = UnsteadyStore()

        async def scenario(house: TestHouse) -> None:
            await PlayedAgent(house, "n1").connect()
            store.failures = [StoreFailed("disk full")]
            outcomes = await asyncio.gather(
                *(house.sessions.create([a_request()]) for _ in range(3)), return_exceptions=True
            )
            assert [type(one) for one in outcomes] == [StoreFailed] * 3
            with pytest.raises(StoreFailed):
                await house.placer

        run(scenario, store=store)

    def test_a_store_that_is_busy_costs_one_answer(self) -> None:
        store = UnsteadyStore()

        async def scenario(house: TestHouse) -> None:
            await PlayedAgent(house, "n1").connect()
            store.failures = [Unavailable("the store is busy")]
            with pytest.raises(Unavailable):
                await create(house)
            assert len(await create(house)) == 1

        run(scenario, store=store)

    def test_what_was_written_of_a_batch_is_answered_whatever_became_of_the_rest(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(placing, "BATCH", 2)
        store = UnsteadyStore()

        async def scenario(house: TestHouse) -> None:
            await PlayedAgent(house, "n1").connect()
            wishes = [a_request(name=f"desk {number}") for number in range(6)]
            store.failures = [None, Unavailable("the store is busy; try again"), None]
            outcomes = await house.sessions.create(wishes)
            names = {
                session.id: session.request.name for session in house.replica.fleet.each(Session)
            }
            granted = [one for one in outcomes if isinstance(one, Session)]
            assert {one.id for one in granted} == set(names)
            assert sorted(names.values()) == ["desk 0", "desk 1", "desk 4", "desk 5"]
            busy = Refusal("Not now: the store is busy; try again.")
            assert outcomes[2:4] == [busy, busy]
            # Where nothing was written, all of it may be asked for again.
            store.failures = [Unavailable("busy")] * 3
            with pytest.raises(Unavailable):
                await house.sessions.create([*wishes, a_request(requirements="tag:no = 'x'")])
            assert house.replica.fleet.count(Session) == 4
            store.failures = [None, StoreFailed("disk full")]
            outcomes = await house.sessions.create(wishes)
            reasons = [one.reason for one in outcomes if isinstance(one, Refusal)]
            unknown = "The store can't be reached: whether the session was created isn't known."
            assert reasons == [
                unknown,
                unknown,
                *["Not now: this broker is ending; try again."] * 2,
            ]
            assert house.replica.fleet.count(Session) == 6
            with pytest.raises(StoreFailed):
                await house.placer

        run(scenario, store=store)

    def test_the_queue_is_looked_at_again_afterwards(self) -> None:
        store = UnsteadyStore()

        async def scenario(house: TestHouse) -> None:
            [session] = await create(house, a_request(enqueue=True))
            store.failures = [Unavailable("the store is busy")]
            agent = await PlayedAgent(house, "n1").connect()
            await agent.wanted(session.id)

        run(scenario, store=store)

    def test_a_beat_that_could_not_be_written_is_not_the_last(self) -> None:
        store = UnsteadyStore()
        store.armed_for = Broker

        async def scenario(house: TestHouse) -> None:
            store.failures = [Unavailable("busy")]
            beating = asyncio.create_task(house.housekeeping.beat(0.001))
            await soon(lambda: len(stored(store, Broker)) == 1)
            beating.cancel()

        run(scenario, store=store)


class TestDeleting:
    def test_a_running_session_ends_when_its_server_says_so(self) -> None:
        async def scenario(house: TestHouse) -> None:
            agent = await PlayedAgent(house, "n1").connect()
            [session] = await create(house)
            await agent.run(session.id)
            deletion = Deletion(session.id, "alice")
            assert await house.sessions.delete([deletion, deletion]) == [State.DELETING] * 2
            assert await state(house, session.id) is State.DELETING
            assert house.replica.fleet.seats("n1").taken == 1
            desire = await agent.wanted(session.id, Intent.STOP)
            await agent.report(desire, Phase.ENDED)
            assert await state(house, session.id) is State.DELETED
            assert house.replica.fleet.seats("n1").taken == 0
            assert await house.sessions.delete([deletion]) == [
                Refusal("The requested dcvSession does not exist")
            ]

        run(scenario)

    def test_strangers_see_nothing_to_delete(self) -> None:
        async def scenario(house: TestHouse) -> None:
            await PlayedAgent(house, "n1").connect()
            [session] = await create(house)
            for id, owner in ((session.id, "bob"), (session.id, ""), ("nothing", "alice")):
                answers = await house.sessions.delete([Deletion(id, owner, force=True)])
                assert answers == [Refusal("The requested dcvSession does not exist")]
            assert len(stored(house.store, Session)) == 1

        run(scenario)

    def test_by_force_it_is_gone_at_once_and_comes_back_while_it_runs(self) -> None:
        async def scenario(house: TestHouse) -> None:
            agent = await PlayedAgent(house, "n1").connect()
            asked = a_request(
                permissions_file=permissions("[permissions]\n%owner% allow builtin\n"),
                max_concurrent_clients=3,
                storage_root="%home%",
            )
            [session] = await house.sessions.create([asked])
            assert isinstance(session, Session)
            known = (await agent.run(session.id)).spec
            answers = await house.sessions.delete([Deletion(session.id, "alice", force=True)])
            assert answers == [State.DELETING]
            assert stored(house.store, Session) == stored(house.store, Report) == []
            await agent.desired(lambda wanted: not wanted)
            agent.observed[session.id] = replace(
                agent.observed[session.id],
                running=running(session.id, owner="alice", generation=1),
            )
            await agent.tell()
            # What it was asked to be is not known yet: with guesses it would lose its permissions.
            assert stored(house.store, Session) == []
            agent.observed[session.id] = replace(agent.observed[session.id], spec=known)
            house.clock.advance(60)
            await agent.tell()
            adopted = await house.session(session.id)
            assert (adopted.adopted, adopted.generation, adopted.request) == (True, 1, asked)
            assert adopted.created_at == session.created_at
            assert (await agent.wanted(session.id)).spec.request == asked

        run(scenario)

    def test_by_force_one_that_has_ended_is_not_listed_any_more(self) -> None:
        async def scenario(house: TestHouse) -> None:
            ended = a_session("s1", server="n1", ended_at=NOON)
            await house.write(ended, a_report(ended, phase=Phase.ENDED), a_session("s2"))
            by_force = Deletion("s1", "alice", force=True)
            asked = [Deletion("s1", "alice"), by_force, by_force, Deletion("s2", "alice"), by_force]
            done = State.DELETING
            assert await house.sessions.delete(asked) == [GONE, done, done, done, done]
            assert [one.id for one in stored(house.store, Session) if isinstance(one, Session)] == [
                "s2"
            ]
            assert stored(house.store, Report) == []
            # The other one waited, so that it has ended, too.
            again = [Deletion("s2", "alice"), Deletion("s2", "alice", force=True), by_force]
            assert await house.sessions.delete(again) == [GONE, done, GONE]
            assert stored(house.store, Session) == []

        run(scenario)

    def test_a_report_of_before_does_not_undo_a_delete(self) -> None:
        async def scenario(house: TestHouse) -> None:
            agent = await PlayedAgent(house, "n1").connect()
            [session] = await create(house)
            desire = await agent.run(session.id)
            await house.sessions.delete([Deletion(session.id, "alice")])
            await agent.report(desire, Phase.ENDED)
            await agent.report(desire, Phase.RUNNING)
            assert await state(house, session.id) is State.DELETED
            # What runs in spite of having ended is to be stopped.
            assert (await agent.wanted(session.id, Intent.STOP)).spec.generation == 1

        run(scenario)


def permissions(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class TestPermissions:
    def test_new_ones_reach_the_server(self) -> None:
        async def scenario(house: TestHouse) -> None:
            agent = await PlayedAgent(house, "n1").connect()
            [session] = await create(house)
            await agent.wanted(session.id)
            file = permissions("[permissions]\nbob allow display\n")
            updates = [
                PermissionsUpdate(session.id, "alice", file),
                PermissionsUpdate(session.id, "bob", file),
                PermissionsUpdate("nothing", "alice", file),
            ]
            answers = await house.sessions.update_permissions(updates)
            assert answers == [
                None,
                Refusal("The requested dcvSession does not exist"),
                Refusal("The requested dcvSession does not exist"),
            ]
            await agent.desired(
                lambda wanted: wanted[session.id].spec.request.permissions_file == file
            )

        run(scenario)

    def test_where_no_more_can_be_told_none_are_made_longer_and_nothing_is_placed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def scenario(house: TestHouse) -> None:
            agent = await PlayedAgent(house, "n1").connect()
            [session] = await create(house)
            await agent.wanted(session.id)
            long = permissions("[permissions]\nbob allow display\n" + "\n" * 99)
            short = permissions("[permissions]\n")
            told = told_bytes(replace(session.request, permissions_file=short))
            monkeypatch.setattr(server, "MOST_TOLD_BYTES", told + 1)
            updates = [PermissionsUpdate(session.id, "alice", file) for file in (long, short)]
            for update, answer in ((0, None), (0, None), (1, None), (0, None)):
                assert await house.sessions.update_permissions([updates[update]]) == [answer]
            longer = PermissionsUpdate(session.id, "alice", permissions("\n" * 999))
            assert await house.sessions.update_permissions([longer]) == [NO_ROOM]
            [refused] = await house.sessions.create([a_request()])
            assert isinstance(refused, Refusal)
            assert refused.reason.endswith("1 of 1 are full")
            await agent.desired(
                lambda wanted: wanted[session.id].spec.request.permissions_file == long
            )

        run(scenario)

    def test_a_file_that_is_none_changes_nothing(self) -> None:
        async def scenario(house: TestHouse) -> None:
            await PlayedAgent(house, "n1").connect()
            [session] = await create(house)
            bad = permissions("[permissions]\n%any% allow flying\n")
            [answer] = await house.sessions.update_permissions(
                [PermissionsUpdate(session.id, "alice", bad)]
            )
            assert answer is not None
            assert answer.reason.startswith("PermissionsFile: Line 2: ")
            assert await house.session(session.id) == session
            assert await refused(house, a_request(permissions_file=bad)) == answer.reason

        run(scenario)


class TestConnecting:
    def test_a_token_opens_its_session_for_its_user(self) -> None:
        async def scenario(house: TestHouse) -> None:
            await house.write(signing_key())
            agent = await PlayedAgent(house, "n1").connect()
            [session] = await create(house)
            with pytest.raises(Conflict, match="CREATING: it is neither in READY"):
                await house.sessions.connect(session.id, "bob")
            await agent.run(session.id)
            view, token = await house.sessions.connect(session.id, "DOMAIN\\bob")
            assert view.session.id == session.id
            assert await house.verifier.admit(session.id, token) == "DOMAIN\\bob"
            other = (await house.sessions.connect(session.id, "DOMAIN\\bob"))[1]
            assert other != token
            with pytest.raises(Missing):
                await house.verifier.admit("another", token)
            await house.sessions.delete([Deletion(session.id, "alice")])
            with pytest.raises(Missing):
                await house.verifier.admit(session.id, token)

        run(scenario)

    def test_nobody_connects_to_what_is_not_there(self) -> None:
        async def scenario(house: TestHouse) -> None:
            with pytest.raises(Missing, match="not found"):
                await house.sessions.connect("nothing", "bob")

        run(scenario)

    def test_a_token_of_an_earlier_placement_is_void(self) -> None:
        async def scenario(house: TestHouse) -> None:
            session = a_session("s1", server="n1")
            await house.write(
                signing_key(),
                a_server(),
                some_facts(),
                a_link(broker_id="b1"),
                session,
                a_report(session),
            )
            _, token = await house.sessions.connect("s1", "bob")
            await house.write(replace(session, generation=2))
            with pytest.raises(Missing):
                await house.verifier.admit("s1", token)

        run(scenario)

    def test_a_server_that_is_silent_makes_it_unknown_and_back(self) -> None:
        async def scenario(house: TestHouse) -> None:
            agent = await PlayedAgent(house, "n1").connect()
            [session] = await create(house)
            await agent.run(session.id)
            await agent.part()
            assert await state(house, session.id) is State.READY  # a restart is not seen
            await soon(lambda: not house.liveness.is_reachable("n1"))
            assert await state(house, session.id) is State.UNKNOWN
            again = PlayedAgent(house, "n1")
            again.observed = agent.observed
            await again.connect()
            assert await state(house, session.id) is State.READY
            assert again.epoch == agent.epoch + 1

        run(scenario)


class TestSelecting:
    def test_ids_owners_and_tags_all_have_to_match(self) -> None:
        async def scenario(house: TestHouse) -> None:
            await house.write(
                a_server(),
                some_facts(gpu="yes"),
                a_session("s1", server="n1"),
                a_session("s2", owner="bob", server="n1"),
                a_session("s3", server="n2"),
                a_session("s4"),
            )

            def found(
                ids: Sequence[str] = (),
                owners: Sequence[str] = (),
                tags: Sequence[tuple[str, str]] = (),
            ) -> list[str]:
                return [id for _, id in house.sessions.select(ids, owners, tags)]

            assert found() == ["s1", "s2", "s3", "s4"]
            assert found(["s4", "s1", "s1", "x"]) == ["s1", "s4"]
            assert found(owners=["alice"]) == ["s1", "s3", "s4"]
            assert found(owners=["alice", "bob"]) == []
            assert found(owners=["nobody"]) == []
            assert found(tags=[("gpu", "yes")]) == ["s1", "s2"]
            assert found(["s2", "s3"], ["bob"], [("gpu", "yes")]) == ["s2"]
            assert found(tags=[("gpu", "yes"), ("gpu", "no")]) == []
            after = house.sessions.select(["s1", "s3"], [], [], after=(NOON, "s1"))
            assert [id for _, id in after] == ["s3"]

        run(scenario)

    def test_servers_that_have_said_nothing_yet_are_not_listed(self) -> None:
        async def scenario(house: TestHouse) -> None:
            await house.write(a_server("n1"), some_facts("n1"), a_server("n2"))
            assert [one.id for one in house.servers.select([])] == ["n1"]
            assert [one.id for one in house.servers.select(["n2", "n1"])] == ["n1"]
            assert list(house.servers.select(["n9"])) == []

        run(scenario)


class TestServers:
    def test_a_closed_one_takes_nothing_until_it_is_opened(self) -> None:
        async def scenario(house: TestHouse) -> None:
            agent = await PlayedAgent(house, "n1").connect()
            assert await house.servers.close([Closing("n1"), Closing("n1")]) == [None, None]
            assert "1 of 1 are closed" in await refused(house, a_request())
            [waiting] = await create(house, a_request(enqueue=True))
            assert await house.servers.open(["n1", "n1", "n9"]) == [None, None, NOT_FOUND]
            await agent.wanted(waiting.id)

        run(scenario)

    def test_sessions_keep_it_open_unless_it_is_forced(self) -> None:
        async def scenario(house: TestHouse) -> None:
            agent = await PlayedAgent(house, "n1").connect()
            [session] = await create(house)
            [failure] = await house.servers.close([Closing("n1")])
            assert failure is not None
            assert failure.code is Code.HAS_SESSIONS
            assert await house.servers.close([Closing("n1", force=True)]) == [None]
            await agent.run(session.id)
            assert await state(house, session.id) is State.READY
            assert await house.servers.close([Closing("n9")]) == [NOT_FOUND]

        run(scenario)

    def test_closing_and_placing_at_once_never_both_win(self) -> None:
        async def scenario(house: TestHouse) -> None:
            for id in map(str, range(20)):
                await house.write(a_server(id), some_facts(id), a_link(id, broker_id="b1"))
                closed, placed = await asyncio.gather(
                    house.servers.close([Closing(id)]),
                    house.sessions.create([a_request(requirements=f"server:Id = '{id}'")]),
                )
                assert (closed == [None]) is isinstance(placed[0], Refusal)

        run(scenario)


class TestAccess:
    LIFE = timedelta(hours=1)

    def test_a_client_and_its_token(self) -> None:
        async def scenario(house: TestHouse) -> None:
            await house.write(signing_key())
            access = house.access
            client = await access.register_api_client("portal")
            token = access.api_token(client.client_id, client.client_password, life=self.LIFE)
            assert access.api_client(token).name == "portal"
            [record] = stored(house.store, ApiClient)
            assert isinstance(record, ApiClient)
            assert client.client_password.encode() not in record.secret_hash
            await house.write(replace(record, active=False))
            with pytest.raises(Unauthenticated, match="not active"):
                access.api_client(token)
            with pytest.raises(Unauthenticated):
                access.api_token(client.client_id, client.client_password, life=self.LIFE)

        run(scenario)

    def test_a_wrong_password_and_a_wrong_id_look_alike(self) -> None:
        async def scenario(house: TestHouse) -> None:
            client = await house.access.register_api_client("portal")
            tries = [(client.client_id, "wrong"), ("nobody", client.client_password), ("x", "x")]
            messages = set()
            for id, password in tries:
                with pytest.raises(Unauthenticated) as caught:
                    house.access.api_token(id, password, life=self.LIFE)
                messages.add(caught.value.message)
                # An id that isn't known is not its own password.
                with pytest.raises(Unauthenticated):
                    house.access.agent_token(id, id, life=self.LIFE)
            assert len(messages) == 1

        run(scenario, ids=CountingIds())

    def test_a_token_made_for_one_door_opens_no_other(self) -> None:
        async def scenario(house: TestHouse) -> None:
            await house.write(signing_key())
            for audience in Audience:
                token = house.access.sign(audience, {"sub": "x"}, self.LIFE)
                for other in Audience:
                    if other is audience:
                        assert house.access.verify(other, token)["sub"] == "x"
                    else:
                        with pytest.raises(Unauthenticated, match="not valid"):
                            house.access.verify(other, token)

        run(scenario)

    def test_tokens_expire_remembered_or_not(self) -> None:
        async def scenario(house: TestHouse) -> None:
            await house.write(signing_key())
            remembered = house.access.sign(Audience.API, {}, self.LIFE)
            fresh = house.access.sign(Audience.API, {}, self.LIFE)
            house.access.verify(Audience.API, remembered)
            house.clock.advance(3599)
            house.access.verify(Audience.API, remembered)
            house.clock.advance(1)
            for token in (remembered, fresh):
                with pytest.raises(Unauthenticated, match="expired"):
                    house.access.verify(Audience.API, token)

        run(scenario)

    def test_tokens_of_the_future_are_void(self) -> None:
        async def scenario(house: TestHouse) -> None:
            await house.write(signing_key())
            house.clock.advance(3600)
            token = house.access.sign(Audience.API, {}, self.LIFE)
            house.clock.advance(-3600)
            with pytest.raises(Unauthenticated):
                house.access.verify(Audience.API, token)

        run(scenario)

    @pytest.mark.parametrize("token", ["", "x", "a.b.c", "é.é.é", "A" * 9000, "..", "e30.e30."])
    def test_what_is_no_token(self, token: str) -> None:
        async def scenario(house: TestHouse) -> None:
            with pytest.raises(Unauthenticated):
                house.access.verify(Audience.API, token)

        run(scenario)

    def test_an_agent_enrols_by_a_statement_that_is_active(self) -> None:
        async def scenario(house: TestHouse) -> None:
            await house.write(signing_key())
            access = house.access
            with pytest.raises(Forbidden):
                await access.register_agent("anything", "n1")
            statement = await access.generate_software_statement()
            agent = await access.register_agent(statement, "n1")
            assert [one.id for one in stored(house.store, Server)] == [agent.client_id]
            token = access.agent_token(agent.client_id, agent.client_password, life=self.LIFE)
            assert (await access.agent(token)).id == agent.client_id
            with pytest.raises(Unauthenticated):
                access.api_token(agent.client_id, agent.client_password, life=self.LIFE)
            [issued] = stored(house.store, SoftwareStatement)
            [client] = stored(house.store, AgentClient)
            assert isinstance(issued, SoftwareStatement)
            assert isinstance(client, AgentClient)
            assert statement.encode() not in issued.statement_hash
            await house.write(replace(issued, active=False), replace(client, active=False))
            with pytest.raises(Forbidden, match="no longer active"):
                await access.register_agent(statement, "n2")
            with pytest.raises(Unauthenticated):
                await access.agent(token)

        run(scenario)

    def test_two_brokers_that_start_at_once_make_one_key(self) -> None:
        async def whole() -> None:
            store = MemoryStore()
            async with a_house(store) as one, a_house(store, broker_id="b2") as two:
                with pytest.raises(Unauthenticated):
                    one.access.sign(Audience.API, {}, self.LIFE)
                await asyncio.gather(
                    one.access.ensure_signing_key(), two.access.ensure_signing_key()
                )
                await one.access.ensure_signing_key()
                assert len(stored(store, SigningKey)) == 1
                await one.replica.catch_up()
                await two.replica.catch_up()
                token = one.access.sign(Audience.API, {"sub": "x"}, self.LIFE)
                assert two.access.verify(Audience.API, token)["sub"] == "x"

        asyncio.run(whole())

    def test_the_newest_key_signs_and_the_older_ones_still_verify(self) -> None:
        async def scenario(house: TestHouse) -> None:
            await house.write(signing_key())
            old = house.access.sign(Audience.API, {}, self.LIFE)
            house.clock.advance(1)
            await house.access.renew_signing_key()
            new = house.access.sign(Audience.API, {}, self.LIFE)
            assert (
                house.access.verify(Audience.API, new)["jti"]
                != house.access.verify(Audience.API, old)["jti"]
            )
            assert house.replica.fleet.count(SigningKey) == 2

        run(scenario)


class TestLiveness:
    def test_a_broker_lives_as_long_as_new_beats_are_seen(self) -> None:
        async def whole() -> None:
            store, clock = MemoryStore(), FakeClock()
            async with a_house(store, clock=clock) as one, a_house(store, broker_id="b2") as two:
                assert not one.liveness.is_alive("b2")
                assert one.liveness.is_alive("b1")
                await two.beat()
                await PlayedAgent(two, "n1").connect()
                await one.replica.catch_up()
                assert one.liveness.is_reachable("n1")
                assert [broker.id for broker in one.liveness.others()] == ["b2"]
                clock.advance(4 * BEAT_SECONDS - 0.1)
                assert one.liveness.is_reachable("n1")
                clock.advance(0.2)
                await one.replica.catch_up()
                assert not one.liveness.is_reachable("n1")
                assert one.liveness.others() == []
                await two.beat()
                await one.replica.catch_up()
                assert one.liveness.is_reachable("n1")

        asyncio.run(whole())

    def test_a_stop_in_order_is_no_worse_than_a_crash(self) -> None:
        """The agents that a broker held have found another before anybody misses them."""

        async def whole() -> None:
            store, clock = MemoryStore(), FakeClock()
            async with a_house(store, clock=clock) as one, a_house(store, broker_id="b2") as two:
                await two.beat()
                await PlayedAgent(two, "n1").connect()
                await two.links.close()
                await two.housekeeping.retire()
                await one.replica.catch_up()
                assert one.liveness.others() == []
                # Who starts now, in its place perhaps, has not missed them either.
                async with a_house(store, clock=clock, broker_id="b3") as three:
                    clock.advance(4 * BEAT_SECONDS - 0.1)
                    for house in (one, three):
                        assert house.liveness.is_reachable("n1")
                        assert house.liveness.reachable_now()("n1")
                    clock.advance(0.2)
                    for house in (one, three):
                        assert not house.liveness.is_reachable("n1")
                        assert not house.liveness.reachable_now()("n1")

        asyncio.run(whole())

    def test_a_link_that_is_down_is_not_reachable(self) -> None:
        async def scenario(house: TestHouse) -> None:
            await house.write(a_link("n1", broker_id="b1"), a_link("n2", broker_id="b1", up=False))
            reachable = house.liveness.is_reachable
            assert [reachable(id) for id in ("n1", "n2", "n3")] == [True, False, False]

        run(scenario)


GONE = Refusal(NO_SUCH_SESSION_TO_DELETE)


def shown(house: TestHouse) -> set[str]:
    return {place[1] for place in house.sessions.select((), (), ())}


class TestHousekeeping:
    def test_ended_sessions_are_forgotten_after_their_time(self) -> None:
        async def scenario(house: TestHouse) -> None:
            ended = a_session("s1", server="n1", ended_at=NOON)
            late = a_session("s2", ended_at=NOON + timedelta(seconds=1))
            await house.write(ended, a_report(ended), late, a_session("s3"))
            house.clock.advance(3599)
            await house.sweep()
            assert len(stored(house.store, Session)) == 3
            house.clock.advance(1)
            await house.sweep()
            assert {one.id for one in stored(house.store, Session)} == {"s2", "s3"}
            assert stored(house.store, Report) == []

        run(scenario)

    def test_they_are_shown_for_exactly_their_time_whenever_they_are_swept_away(self) -> None:
        async def scenario(house: TestHouse) -> None:
            other = a_session("s2", owner="bob", created_at=NOON + timedelta(seconds=1))
            await house.write(a_session("s1", server="n1", ended_at=NOON), other)
            house.clock.advance(3599.9)
            assert shown(house) == {"s1", "s2"}
            house.clock.advance(0.1)
            assert shown(house) == {"s2"}
            assert {place[1] for place in house.sessions.select((), ["alice"], ())} == set()
            assert {place[1] for place in house.sessions.select(["s1", "s2"], (), ())} == {"s2"}
            with pytest.raises(Missing):
                await house.sessions.connect("s1", "alice")
            assert await house.sessions.delete([Deletion("s1", "alice")]) == [GONE]
            assert len(stored(house.store, Session)) == 2

        run(scenario)

    def test_where_they_are_not_shown_at_all_no_clock_has_a_say(self) -> None:
        async def scenario(house: TestHouse) -> None:
            # Ended by a broker whose clock is ahead.
            await house.write(a_session("s1", ended_at=NOON + timedelta(hours=1)))
            assert shown(house) == set()
            await house.sweep()
            assert stored(house.store, Session) == []

        run(scenario, shown=timedelta(0))

    def test_any_number_is_forgotten_in_one_sweep(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(housekeeping, "SWEEP_BATCH", 2)
        monkeypatch.setattr(housekeeping, "SWEEP_SECONDS", 0.01)

        async def scenario(house: TestHouse) -> None:
            await house.write(*(a_session(f"s{n}", ended_at=NOON) for n in range(7)))
            house.clock.advance(3600)
            before = house.replica.fleet.revision
            sweeping = asyncio.create_task(house.housekeeping.sweep())
            await asyncio.sleep(0)
            monkeypatch.setattr(housekeeping, "SWEEP_SECONDS", 3600.0)
            await soon(lambda: house.replica.fleet.count(Session) == 0)
            assert house.replica.fleet.revision == before + 4
            sweeping.cancel()

        run(scenario)

    def test_silent_servers_are_forgotten_unless_sessions_are_there(self) -> None:
        async def scenario(house: TestHouse) -> None:
            link = a_link("n1", up=False)
            await house.write(
                *(a_server(id) for id in ("n1", "n2", "n3")),
                *(some_facts(id) for id in ("n1", "n2")),
                link,
                a_link("n3", broker_id="b1"),
                a_session("s1", server="n2"),
            )
            await house.sweep()
            house.clock.advance(1799)
            await house.sweep()
            assert len(stored(house.store, Server)) == 3
            house.clock.advance(1)
            await house.sweep()
            assert {one.id for one in stored(house.store, Server)} == {"n2", "n3"}
            assert {one.id for one in stored(house.store, Facts)} == {"n2"}
            # Its epoch has to go on growing when it comes back.
            agent = await PlayedAgent(house, "n1").connect()
            assert agent.epoch > link.epoch
            assert (await house.servers.open(["n1"])) == [None]

        run(scenario)

    def test_a_silent_server_with_sessions_is_shown_no_longer_and_they_are(self) -> None:
        async def scenario(house: TestHouse) -> None:
            session = a_session("s1", server="n1")
            link = a_link("n1", broker_id="b1", up=False)
            known = a_server("n1", registered_at=NOON - timedelta(days=1))
            await house.write(known, some_facts("n1"), link, session, a_report(session))
            await house.write(a_server("n2"), some_facts("n2"), a_link("n2", broker_id="b1"))
            await house.sweep()
            house.clock.advance(1800)
            await house.sweep()
            assert [one.id for one in house.servers.select(())] == ["n2"]
            assert [one.id for one in house.servers.select(["n1"])] == []
            assert await house.servers.open(["n1"]) == [NOT_FOUND]
            assert await house.servers.close([Closing("n1", force=True)]) == [NOT_FOUND]
            view = house.sessions.view(await house.session("s1"))
            assert (view.seen.state, view.facts) == (State.UNKNOWN, some_facts("n1"))
            refusal = (await house.sessions.create([a_request(requirements="tag:no = 'x'")]))[0]
            assert isinstance(refusal, Refusal)
            assert "1 of 1" in refusal.reason, "it is not counted among those that may take one"
            # Nothing more is written of it, until it is heard again.
            revision = house.replica.fleet.revision
            await house.sweep()
            assert house.replica.fleet.revision == revision
            agent = PlayedAgent(house, "n1")
            agent.observed = {"s1": Observed(report=a_report(session))}
            await agent.connect()
            assert agent.epoch > link.epoch + 1
            assert [one.id for one in house.servers.select(())] == ["n1", "n2"]
            assert await state(house, "s1") is State.READY
            assert house.replica.fleet.server("n1") == known

        run(scenario)

    def test_it_is_forgotten_when_nothing_hangs_on_it_any_more(self) -> None:
        async def scenario(house: TestHouse) -> None:
            session = a_session("s1", server="n1")
            await house.write(a_server("n1"), some_facts("n1"), session)
            await house.sweep()
            house.clock.advance(1800)
            await house.sweep()
            assert len(stored(house.store, Server)) == 1
            await house.sessions.delete([Deletion("s1", "alice", force=True)])
            await house.sweep()
            assert stored(house.store, Server) == stored(house.store, Facts) == []

        run(scenario)

    def test_a_closed_server_is_still_closed_however_long_it_was_away(self) -> None:
        async def scenario(house: TestHouse) -> None:
            await house.write(a_server("n1"), some_facts("n1"), a_link("n1", up=False))
            assert await house.servers.close([Closing("n1")]) == [None]
            await house.sweep()
            house.clock.advance(1800)
            await house.sweep()
            assert list(house.servers.select(())) == []
            assert stored(house.store, Facts) == [], "only that it is closed is still to be known"
            revision = house.replica.fleet.revision
            await house.sweep()
            assert house.replica.fleet.revision == revision
            # One that begins anew knows it for one that isn't shown, and counts from there.
            house.clock.advance(1_000_000)
            await house.sweep()
            foreign = Report(id="own", server_id="n1", generation=0, phase=Phase.RUNNING)
            agent = PlayedAgent(house, "n1")
            agent.observed = {"own": Observed(report=foreign, running=running("own"))}
            await agent.connect()
            [server] = house.servers.select(())
            view = house.servers.view(server)
            assert view.unavailability is Unavailability.SERVER_CLOSED
            assert view.seats.taken == 1
            assert await house.servers.open(["n1"]) == [None]

        run(scenario)

    def test_a_link_that_is_held_all_the_same_ends_when_its_server_is_shown_no_longer(
        self,
    ) -> None:
        async def whole() -> None:
            clock, store = FakeClock(), MemoryStore()
            async with a_house(store, clock=clock) as one, a_house(store, broker_id="b2") as two:
                agent = await PlayedAgent(two, "n1").connect()
                await two.write(a_session("s1", server="n1"))
                # Nobody has heard a beat of the second broker, so its servers are silent.
                await one.replica.catch_up()
                await one.sweep()
                clock.advance(1800)
                await one.sweep()
                known = one.replica.fleet.server("n1")
                assert known is not None
                assert not known.listed
                await two.replica.catch_up()
                await agent.session.ended.wait()
                with pytest.raises(Stale):
                    await agent.tell()
                again = await PlayedAgent(two, "n1").connect()
                assert again.epoch > agent.epoch
                await one.replica.catch_up()
                assert [server.id for server in one.servers.select(())] == ["n1"]

        asyncio.run(whole())

    def test_one_that_was_never_linked_is_not_forgotten_while_it_links(self) -> None:
        async def whole() -> None:
            clock, store = FakeClock(), MemoryStore()
            async with a_house(store, clock=clock) as one, a_house(store, broker_id="b2") as two:
                await one.write(a_server("n1"), a_server("n2", open=False))
                await one.sweep()
                clock.advance(1800)
                _, decided = one.housekeeping._decide_sweep()
                for id in ("n1", "n2"):
                    await PlayedAgent(two, id).connect()
                with pytest.raises(Stale):
                    await one.replica.commit(decided)

        asyncio.run(whole())

    def test_a_server_that_was_heard_meanwhile_starts_anew(self) -> None:
        async def scenario(house: TestHouse) -> None:
            await house.write(a_server("n1"))
            await house.sweep()
            house.clock.advance(1700)
            await house.write(a_link("n1", broker_id="b1"))
            await house.sweep()
            await house.write(a_link("n1", broker_id="b1", up=False))
            house.clock.advance(200)
            await house.sweep()
            assert len(stored(house.store, Server)) == 1

        run(scenario)

    def test_dead_brokers_are_forgotten_and_living_ones_beat(self) -> None:
        async def scenario(house: TestHouse) -> None:
            await house.write(a_broker("b2"))
            await house.beat()
            await house.beat()
            house.clock.advance(300)
            await house.sweep()
            assert len(stored(house.store, Broker)) == 2
            house.clock.advance(4 * BEAT_SECONDS + 1)
            await house.sweep()
            assert stored(house.store, Broker) == [replace(house.broker, beat=2)]
            await house.housekeeping.retire()
            await house.beat()
            assert stored(house.store, Broker) == [replace(house.broker, beat=3, retired=True)]
            await house.housekeeping.retire()

        run(scenario)

    def test_a_poke_is_as_good_as_a_poll(self) -> None:
        async def whole() -> None:
            store = MemoryStore()
            async with a_house(store) as one, a_house(store, broker_id="b2") as two:
                polling = asyncio.create_task(one.housekeeping.poll(3600))
                await two.write(a_server("n1"))
                one.housekeeping.poke()
                await soon(lambda: one.replica.fleet.server("n1"))
                polling.cancel()

        asyncio.run(whole())


class TestLinks:
    def test_an_agent_of_another_version_is_told_so(self) -> None:
        async def scenario(house: TestHouse) -> None:
            agent = PlayedAgent(house, "n1")
            with pytest.raises(ProtocolError, match="version"):
                await agent.connect(version=2)
            [answer] = agent.said
            assert isinstance(answer, LinkRefusal)
            assert "version 1" in answer.reason
            assert answer.retry_after_seconds > 0
            assert stored(house.store, Link) == []
            assert house.links.of("n1") is None

        run(scenario)

    def test_anything_but_a_hello_is_no_beginning(self) -> None:
        async def scenario(house: TestHouse) -> None:
            agent = PlayedAgent(house, "n1")
            with pytest.raises(ProtocolError):
                await house.links.greet(agent.session, Screenshot(request=1))

        run(scenario)

    def test_a_server_can_not_speak_for_another(self) -> None:
        async def scenario(house: TestHouse) -> None:
            mine = await PlayedAgent(house, "n1").connect()
            other = await PlayedAgent(house, "n2", some_facts("n1", gpu="stolen")).connect()
            [session] = await create(house, a_request(requirements="server:Id = 'n1'"))
            desire = await mine.wanted(session.id)
            await other.report(desire, Phase.FAILED, reason="sabotage")
            await other.report(desire, Phase.ENDED)
            assert (await house.session(session.id)).server_id == "n1"
            facts = house.replica.fleet.facts("n1")
            assert facts is not None
            assert facts.tags == {}
            own = house.replica.fleet.facts("n2")
            assert own is not None
            assert own.tags == {"gpu": "stolen"}

        run(scenario)

    def test_what_an_old_link_says_is_refused(self) -> None:
        async def whole() -> None:
            store = MemoryStore()
            async with a_house(store) as one, a_house(store, broker_id="b2") as two:
                old = await PlayedAgent(one, "n1").connect()
                [session] = await create(one)
                desire = await old.wanted(session.id)
                new = await PlayedAgent(two, "n1").connect()
                assert new.epoch == old.epoch + 1
                with pytest.raises(Stale):
                    await old.report(desire, Phase.RUNNING)
                # The old one's broker has seen it on that occasion, and ends the link.
                assert old.session.ended.is_set()
                await old.part()
                await asyncio.sleep(0.1)  # more than the grace
                await two.replica.catch_up()
                link = two.replica.fleet.link("n1")
                assert link == Link(id="n1", broker_id="b2", epoch=new.epoch)

        asyncio.run(whole())

    def test_the_same_broker_ends_the_older_link(self) -> None:
        async def scenario(house: TestHouse) -> None:
            old = await PlayedAgent(house, "n1").connect()
            new = await PlayedAgent(house, "n1").connect()
            assert old.session.ended.is_set()
            await old.part()
            assert house.links.of("n1") is new.session

        run(scenario)

    def test_a_slow_welcome_does_not_end_a_younger_link(self) -> None:
        async def scenario(house: TestHouse) -> None:
            release = asyncio.Event()

            class SlowAgent(PlayedAgent):
                async def _take(self, message: Any) -> None:
                    await release.wait()
                    await super()._take(message)

            old = SlowAgent(house, "n1")
            greeting = asyncio.create_task(old.connect())
            await soon(lambda: house.replica.fleet.link("n1"))
            new = await PlayedAgent(house, "n1").connect()
            release.set()
            await asyncio.gather(greeting, return_exceptions=True)
            assert house.links.of("n1") is new.session
            assert not new.session.ended.is_set()
            assert old.session.ended.is_set()
            await old.part()

        run(scenario)

    def test_an_agent_that_is_gone_before_its_welcome_is_lost(self) -> None:
        async def scenario(house: TestHouse) -> None:
            agent = PlayedAgent(house, "n1")
            agent.deaf = Unavailable("the server was lost meanwhile")
            with pytest.raises(Unavailable):
                await agent.connect()
            house.links.part(agent.session)
            await soon(lambda: not house.liveness.is_reachable("n1"))

        run(scenario)

    def test_a_loss_is_written_even_if_the_store_is_busy_at_first(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = UnsteadyStore()
        store.armed_for = Link

        async def scenario(house: TestHouse) -> None:
            agent = await PlayedAgent(house, "n1").connect()
            store.failures = [Unavailable("busy"), Unavailable("busy")]
            await agent.part()
            await soon(lambda: not house.liveness.is_reachable("n1"))

        with caplog.at_level(logging.WARNING):
            run(scenario, store=store)
        told = [record.message for record in caplog.records]
        assert told.count("link.loss-not-written") == 2

    def test_who_comes_back_in_time_was_never_lost(self) -> None:
        async def scenario(house: TestHouse) -> None:
            agent = await PlayedAgent(house, "n1").connect()
            await agent.part()
            again = await PlayedAgent(house, "n1").connect()
            await asyncio.sleep(0.1)  # more than the grace
            assert house.liveness.is_reachable("n1")
            assert house.links.of("n1") is again.session

        run(scenario)

    def test_load_is_written_seldom_and_what_matters_at_once(self) -> None:
        async def scenario(house: TestHouse) -> None:
            agent = await PlayedAgent(house, "n1").connect()
            fleet = house.replica.fleet

            async def say(facts: Facts) -> Revision:
                await agent.session.hear(FactsChanged(epoch=agent.epoch, facts=facts))
                return fleet.revision_of(Facts, "n1")

            before = fleet.revision_of(Facts, "n1")
            assert await say(some_facts(load=(1.0, 1.0, 1.0))) == before
            tagged = await say(some_facts(load=(2.0, 1.0, 1.0), gpu="yes"))
            assert tagged > before
            house.clock.advance(31)
            assert await say(some_facts(load=(3.0, 1.0, 1.0), gpu="yes")) > tagged
            told = fleet.facts("n1")
            assert told is not None
            assert told.host.load == (3.0, 1.0, 1.0)

        run(scenario)

    def test_load_that_could_not_be_written_is_due_still(self) -> None:
        store = UnsteadyStore()
        store.armed_for = Facts

        async def scenario(house: TestHouse) -> None:
            agent = await PlayedAgent(house, "n1").connect()
            house.clock.advance(31)
            moved = FactsChanged(epoch=agent.epoch, facts=some_facts(load=(3.0, 1.0, 1.0)))
            store.failures = [Unavailable("the store is busy")]
            with pytest.raises(Unavailable):
                await agent.session.hear(moved)
            # As its writer does: what could not be written is written again.
            await agent.session.hear(moved)
            told = house.replica.fleet.facts("n1")
            assert told is not None
            assert told.host.load == (3.0, 1.0, 1.0)

        run(scenario, store=store)

    def test_what_an_agent_says_of_times_can_not_hurt_a_reader(self) -> None:
        async def scenario(house: TestHouse) -> None:
            agent = await PlayedAgent(house, "n1").connect()
            beyond = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=23)))
            abroad = datetime(2030, 1, 1, 5, tzinfo=timezone(timedelta(hours=5)))
            for id, at in (("s1", beyond), ("s2", abroad)):
                session = a_session(id, server="n1", generation=0)
                agent.observed[id] = Observed(
                    report=a_report(session, last_disconnection_at=at),
                    running=running(id, created_at=at),
                )
            await agent.tell()
            [first, second] = [await house.session(id) for id in ("s1", "s2")]
            assert first.created_at == house.clock.now()
            assert second.created_at == datetime(2030, 1, 1, tzinfo=UTC)
            reports = [house.replica.fleet.report(id) for id in ("s1", "s2")]
            assert [one and one.last_disconnection_at for one in reports] == [
                None,
                datetime(2030, 1, 1, tzinfo=UTC),
            ]

        run(scenario)

    def test_a_running_session_does_not_start_again(self) -> None:
        async def scenario(house: TestHouse) -> None:
            agent = await PlayedAgent(house, "n1").connect()
            [session] = await create(house)
            desire = await agent.run(session.id)
            await agent.report(desire, Phase.STARTING, last_disconnection_at=NOON)
            assert await state(house, session.id) is State.READY
            # Neither does a report without it take away when its client left.
            await agent.report(desire, Phase.RUNNING, connections=1)
            report = house.replica.fleet.report(session.id)
            assert report is not None
            assert (report.connections, report.last_disconnection_at) == (1, NOON)
            assert (await agent.desired(lambda one: one[session.id].started)) is not None

        run(scenario)


def a_png(width: int, height: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width, height)).save(content, "png")
    return content.getvalue()


NEVER_IN_UTC = (
    datetime.fromisoformat("0001-01-01T00:00:00+23:59"),
    datetime.fromisoformat("9999-12-31T23:59:59-23:59"),
)


class TestScreenshots:
    PICTURE = Picture(format="png", content=a_png(1, 1), taken_at=NOON)

    def wish(self, id: str) -> Wish:
        return Wish(session_id=id, max_width=1, max_height=1, format="png")

    async def take(self, house: TestHouse, *ids: str) -> list[Shot]:
        with house.screenshots.room() as room:
            return await house.screenshots.take([self.wish(id) for id in ids], room)

    async def asked(self, agent: PlayedAgent, number: int = 1) -> TakeScreenshot:
        """Wait for the nth question of this link."""
        asks: list[TakeScreenshot] = []
        async with asyncio.timeout(LIMIT_SECONDS):
            while len(asks) < number:
                agent.news.clear()
                asks = [one for one in agent.said if isinstance(one, TakeScreenshot)]
                if len(asks) < number:
                    await agent.news.wait()
        return asks[number - 1]

    async def answer(self, agent: PlayedAgent, number: int = 1, **fields: Any) -> None:
        asked = await self.asked(agent, number)
        # An answer to another question helps nobody.
        await agent.session.hear(Screenshot(request=asked.request + 77))
        await agent.session.hear(Screenshot(request=asked.request, **fields))

    def test_its_server_takes_it(self) -> None:
        async def scenario(house: TestHouse) -> None:
            agent = await PlayedAgent(house, "n1").connect()
            [session] = await create(house)
            [early] = await self.take(house, session.id)
            assert early == Refusal("The session is CREATING; only READY sessions have a picture.")
            await agent.run(session.id)
            expected: list[tuple[dict[str, Any], Any]] = [
                ({"pictures": (self.PICTURE,)}, (self.PICTURE,)),
                ({"missing": True, "reason": "x"}, NO_SUCH_SESSION),
                ({"reason": "no X"}, Refusal("no X")),
                ({"pictures": ()}, NO_PICTURE),
                ({"pictures": (self.PICTURE,) * 17}, NO_PICTURE),
                ({"pictures": (self.PICTURE, replace(self.PICTURE, content=b"<svg"))}, NO_PICTURE),
                ({"pictures": (replace(self.PICTURE, format="svg"),)}, NO_PICTURE),
                ({"pictures": (replace(self.PICTURE, format="jpeg"),)}, NO_PICTURE),
                ({"pictures": (replace(self.PICTURE, content=a_png(2, 1)),)}, NO_PICTURE),
                *(
                    ({"pictures": (self.PICTURE, replace(self.PICTURE, taken_at=at))}, NO_INSTANT)
                    for at in NEVER_IN_UTC
                ),
            ]
            for number, (fields, shot) in enumerate(expected, start=1):
                taking = asyncio.create_task(self.take(house, session.id, "nothing"))
                await self.answer(agent, number, **fields)
                assert await taking == [shot, NO_SUCH_SESSION]

        run(scenario)

    async def show(self, house: TestHouse, *server_ids: str) -> list[tuple[str, PlayedAgent]]:
        """Let a session run on each server."""
        shown = []
        for server_id in server_ids:
            agent = await PlayedAgent(house, server_id).connect()
            [session] = await create(house, a_request(requirements=f"server:Id = '{server_id}'"))
            await agent.run(session.id)
            shown.append((session.id, agent))
        return shown

    def asks(self, agent: PlayedAgent) -> list[TakeScreenshot]:
        return [one for one in agent.said if isinstance(one, TakeScreenshot)]

    def test_the_same_is_asked_once_and_stands_in_each_place(self) -> None:
        async def scenario(house: TestHouse) -> None:
            [(id, agent)] = await self.show(house, "n1")
            large = dataclasses.replace(self.wish(id), max_width=2)
            wishes = [self.wish(id), self.wish("nothing"), large, self.wish(id), large]
            with house.screenshots.room() as room:
                taking = asyncio.create_task(house.screenshots.take(wishes, room))
                await self.answer(agent, 1, pictures=(self.PICTURE,))
                other = replace(self.PICTURE, content=a_png(2, 1))
                await self.answer(agent, 2, pictures=(other,))
                small, wide = (self.PICTURE,), (other,)
                assert await taking == [small, NO_SUCH_SESSION, wide, small, wide]
                sizes = [len(one.content) for one in (self.PICTURE, other)]
                assert room.taken == 2 * sum(sizes)
            assert [ask.max_width for ask in self.asks(agent)] == [1, 2]

        run(scenario)

    def test_what_an_answer_has_no_room_for_is_refused_alone(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        size = len(self.PICTURE.content)
        monkeypatch.setattr(screenshots, "MOST_ANSWER_BYTES", 3 * size)
        monkeypatch.setattr(screenshots, "AT_ONCE", 1)
        full, taken = Refusal(FULL), (self.PICTURE,)

        async def scenario(house: TestHouse) -> None:
            shown = await self.show(house, *"abcdefg")
            ids = [id for id, _ in shown]
            for asked, answering in (
                ((ids[0], ids[0], ids[1], ids[0], ids[0]), shown[:2]),
                # The fourth is one too many, and then no other is asked for.
                (ids[2:], shown[2:6]),
            ):
                taking = asyncio.create_task(self.take(house, *asked))
                for _, agent in answering:
                    await self.answer(agent, pictures=(self.PICTURE,))
                assert await taking == [taken, taken, taken, full, full]
            assert [len(self.asks(agent)) for _, agent in shown] == [1, 1, 1, 1, 1, 1, 0]

        run(scenario)

    def test_what_a_broker_has_no_room_for_in_all_its_answers_may_be_asked_for_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(screenshots, "MOST_BYTES_AT_ONCE", len(self.PICTURE.content))

        async def scenario(house: TestHouse) -> None:
            [(id, agent)] = await self.show(house, "n1")

            async def taken(number: int) -> list[Shot]:
                taking = asyncio.create_task(self.take(house, id))
                await self.answer(agent, number, pictures=(self.PICTURE,))
                return await taking

            with house.screenshots.room() as unsent:
                unsent.take(1)
                assert await taken(1) == [Refusal(CROWDED)]
            assert await taken(2) == [(self.PICTURE,)]
            assert await taken(3) == [(self.PICTURE,)]

        run(scenario)

    def test_a_few_of_one_request_are_taken_at_a_time_but_no_server_keeps_others_waiting(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(screenshots, "AT_ONCE", 1)
        monkeypatch.setattr(screenshots, "SCREENSHOT_SECONDS", 1.0)

        async def scenario(house: TestHouse) -> None:
            (one, first), (two, second) = await self.show(house, "n1", "n2")
            monkeypatch.setattr(screenshots, "PATIENCE_SECONDS", LIMIT_SECONDS)
            taking = asyncio.create_task(self.take(house, one, two))
            await self.asked(first)
            assert not self.asks(second)
            await self.answer(first, pictures=(self.PICTURE,))
            await self.answer(second, pictures=(self.PICTURE,))
            assert await taking == [(self.PICTURE,)] * 2
            # The limit is one for all: who had no turn in time is not asked.
            assert await self.take(house, one, two) == [LATE, LATE]
            assert [len(self.asks(agent)) for agent in (first, second)] == [2, 1]
            monkeypatch.setattr(screenshots, "PATIENCE_SECONDS", 0.01)
            taking = asyncio.create_task(self.take(house, one, two))
            await self.answer(second, 2, pictures=(self.PICTURE,))
            assert await taking == [LATE, (self.PICTURE,)]

        run(scenario)

    def test_a_server_that_is_lost_meanwhile_costs_its_picture_only(self) -> None:
        async def scenario(house: TestHouse) -> None:
            agent = await PlayedAgent(house, "n1").connect()
            [session] = await create(house)
            await agent.run(session.id)
            taking = asyncio.create_task(self.take(house, session.id))
            await self.asked(agent)
            agent.session.end()
            assert await taking == [Refusal("the server was lost meanwhile")]
            agent.deaf = Unavailable("the server was lost meanwhile")
            assert await self.take(house, session.id) == [Refusal("the server was lost meanwhile")]

        run(scenario)

    def test_another_brokers_server_is_asked_through_it_once(self) -> None:
        async def whole() -> None:
            store = MemoryStore()
            asked: list[tuple[str, Wish]] = []

            async def ask(broker: Broker, wish: Wish) -> tuple[Picture, ...] | Refusal:
                asked.append((broker.id, wish))
                with two.screenshots.room() as room:
                    return await two.screenshots.take_here(wish, room)

            async with a_house(store, ask_broker=ask) as one, a_house(store, broker_id="b2") as two:
                await two.beat()
                agent = await PlayedAgent(two, "n1").connect()
                [session] = await create(one)
                await two.replica.catch_up()
                await agent.run(session.id)
                taking = asyncio.create_task(self.take(one, session.id))
                await self.answer(agent, pictures=(self.PICTURE,))
                assert await taking == [(self.PICTURE,)]
                assert asked == [("b2", self.wish(session.id))]
                # Who is asked for a server that has left meanwhile does not pass the question on.
                await agent.part()
                assert await self.take(one, session.id) == [
                    Refusal("the session's server can't be reached")
                ]

        asyncio.run(whole())

    def test_an_ended_session_has_none(self) -> None:
        async def scenario(house: TestHouse) -> None:
            await house.write(a_session("s1", server="n1", ended_at=NOON), a_session("s2"))
            assert await self.take(house, "s1", "s2") == [
                NO_SUCH_SESSION,
                Refusal("The session is CREATING; only READY sessions have a picture."),
            ]

        run(scenario)


class TestReplica:
    def test_what_writes_nothing_hides_nothing(self) -> None:
        async def whole() -> None:
            store = MemoryStore()
            one, two = GroupCommit(store), GroupCommit(store)
            replica = Replica(one)
            await replica.load()
            [kept] = [await replica.commit((Put(a_server("n1"), 0),))]
            await two.commit((Put(a_server("n2"), 0),))
            # A condition alone is answered with a revision that is somebody else's.
            await replica.commit((Check("server", "n1", kept),))
            assert replica.fleet.server("n2") is not None
            await two.commit((Put(a_server("n3"), 0),))
            await replica.commit((Drop("server", "nothing", 0),))
            assert replica.fleet.server("n3") is not None
            await one.close()
            await two.close()

        asyncio.run(whole())

    def test_an_answer_that_comes_late_brings_nothing_back(self) -> None:
        class Late(GroupCommit):
            """Keeps the first answer back until it is told."""

            first: asyncio.Event | None = None

            async def changes(self, since: Revision) -> Changes:
                answer = await super().changes(since)
                kept, self.first = self.first, None
                if kept is not None:
                    await kept.wait()
                return answer

            def glance(self) -> None:
                """Say nothing: everybody has to ask."""

        async def whole() -> None:
            store = MemoryStore()
            commits, other = Late(store), GroupCommit(store)
            replica = Replica(commits)
            await replica.load()
            told: list[Any] = []
            replica.subscribe(told.extend)
            commits.first = late = asyncio.Event()
            revision = await other.commit((Put(a_server("n1"), 0),))
            early = asyncio.create_task(replica.catch_up())
            await soon(lambda: commits.first is None)
            await other.commit((Drop("server", "n1", revision),))
            await replica.catch_up()
            seen = list(told)
            late.set()
            await early
            assert replica.fleet.server("n1") is None
            assert told == seen
            await commits.close()
            await other.close()

        asyncio.run(whole())

    def test_after_a_long_absence_it_starts_over(self) -> None:
        async def whole() -> None:
            store = MemoryStore()
            async with a_house(store) as one, a_house(store, broker_id="b2") as two:
                await one.write(a_session("s1", enqueue=True), a_server("n1"))
                await two.replica.catch_up()
                await one.sessions.delete([Deletion("s1", "alice", force=True)])
                await one.write(a_server("n2"), some_facts("n2"))
                await one.replica.compact(keep=-1)
                await two.replica.catch_up()
                assert two.replica.fleet.all_keys() == one.replica.fleet.all_keys()
                assert two.replica.fleet.session("s1") is None
                assert two.replica.fleet.revision == one.replica.fleet.revision

        asyncio.run(whole())

    def test_a_store_that_has_gone_back_in_time_is_not_believed(self) -> None:
        async def whole() -> None:
            store = MemoryStore()
            async with a_house(store) as house:
                await house.write(a_server("n1"))
                await house.write(a_server("n2"))
                store.__dict__.update(MemoryStore().__dict__)
                with pytest.raises(StoreFailed, match="back in time"):
                    await house.replica.catch_up()

        asyncio.run(whole())

    def test_a_decision_that_always_loses_gives_up_in_the_end(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("deskfleet.broker.service.replica.ATTEMPTS", 3)
        tries = []

        async def scenario(house: TestHouse) -> None:
            await house.write(a_server("n1"))

            def decision() -> tuple[None, ChangeSet]:
                tries.append(1)
                return None, (Put(a_server("n1", open=False), 1),)

            with pytest.raises(Unavailable):
                await house.replica.decide(decision)
            assert len(tries) == 3

        run(scenario)
