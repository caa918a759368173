"""One pass over all that wants a place: order, limits, expiry, and what it need not look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from deskfleet.core.change import Put, Stored
from deskfleet.core.fleet import Fleet
from deskfleet.core.placement import Refusal
from deskfleet.core.queue import Moment, Pass, QueueLimits
from deskfleet.core.records import Record, Session, SessionRequest
from deskfleet.core.session import replace
from support.builders import NOON, a_fleet, a_request, a_server, a_session, some_facts
from support.fleets import apply, fleets, requests, steps

LIMITS = QueueLimits(size=3, wait=timedelta(seconds=60))
NOTHING: Mapping[str, Moment] = {}


def one_pass(
    fleet: Fleet,
    newcomers: Sequence[Session] = (),
    *,
    now: datetime = NOON,
    judged: Mapping[str, Moment] = NOTHING,
    is_late: Callable[[], bool] = lambda: False,
    limits: QueueLimits = LIMITS,
    commit: bool = True,
) -> Pass:
    """Make a pass, and write what it decided into the fleet."""
    done = Pass(fleet, now, limits, reachable=lambda _id: True, judged=judged, is_late=is_late)
    done.decide(newcomers)
    for change in done.change_set() if commit else ():
        assert isinstance(change, Put)
        assert fleet.revision_of(type(change.record), change.record.id) == change.expect
        fleet.apply(Stored(fleet.revision + 1, change.record))
    return done


def waiting(fleet: Fleet) -> list[str]:
    return [session.id for session in fleet.waiting()]


def a_wish(id: str, seconds: int = 0, **fields: object) -> Session:
    at = NOON + timedelta(seconds=seconds)
    return a_session(id, created_at=at, **{"enqueue": True, **fields})


def one_server(seats: int) -> tuple[Record, Record]:
    return a_server(), some_facts(max_virtual_sessions=seats)


def same_wish(
    step: Record | tuple[str, str], wishes: dict[str, SessionRequest]
) -> Record | tuple[str, str]:
    """Return what happens, as what was asked for under an id never changes."""
    if not isinstance(step, Session):
        return step
    return replace(step, request=wishes.setdefault(step.id, step.request))


class TestOrder:
    def test_the_oldest_is_first_and_newcomers_come_last(self) -> None:
        fleet = a_fleet(a_wish("b", 2), a_wish("a", 1), *one_server(1))
        done = one_pass(fleet, [a_wish("new", 3)])
        [new] = done.outcomes
        assert isinstance(new, Session)
        assert new.id == "new"
        placed = fleet.session("a")
        assert placed is not None
        assert (placed.server_id, placed.generation) == ("n1", 1)
        assert waiting(fleet) == ["b", "new"]
        assert done.oldest == NOON + timedelta(seconds=2)

    def test_who_waits_is_told_why_until_there_is_a_place(self) -> None:
        fleet = a_fleet(*one_server(0))
        [new] = one_pass(fleet, [a_wish("new")]).outcomes
        [refusal] = one_pass(fleet, [a_wish("other", enqueue=False)]).outcomes
        assert isinstance(new, Session)
        assert isinstance(refusal, Refusal)
        assert new.reason == f"queued: {refusal.reason}"
        apply(fleet, [some_facts(max_virtual_sessions=1)])
        one_pass(fleet)
        placed = fleet.session("new")
        assert placed is not None
        assert (placed.server_id, placed.reason) == ("n1", None)

    def test_who_does_not_fit_holds_up_nobody(self) -> None:
        picky = a_wish("a", requirements="tag:gpu = 'yes'")
        fleet = a_fleet(picky, a_wish("b", 1), *one_server(1))
        one_pass(fleet)
        assert waiting(fleet) == ["a"]

    def test_a_seat_is_counted_on_its_server(self) -> None:
        fleet = a_fleet(a_wish("a"), a_wish("b", 1), *one_server(2))
        one_pass(fleet)
        server = fleet.server("n1")
        assert server is not None
        assert server.placements == 2

    def test_the_limit_of_one_owner_is_not_anothers(self) -> None:
        mine = [a_wish("a", owner="alice"), a_wish("b", 1, owner="alice")]
        facts = some_facts(max_sessions_per_user=1)
        fleet = a_fleet(*mine, a_wish("c", 2, owner="bob"), a_server(), facts)
        one_pass(fleet)
        assert waiting(fleet) == ["b"]

    def test_a_newcomer_does_not_overtake_whom_a_late_pass_has_not_come_to(self) -> None:
        picky = a_wish("a", requirements="tag:gpu = 'yes'")
        fleet = a_fleet(picky, a_wish("b", 1), *one_server(1))
        newcomer = a_wish("new", 2, requirements="server:Host.Os.Family = 'linux'")
        assert not one_pass(fleet, is_late=lambda: True, commit=False).finished
        first = one_pass(fleet, [newcomer], is_late=lambda: True)
        assert (first.finished, first.outcomes) == (False, [])
        assert waiting(fleet) == ["a", "b"]
        second = one_pass(fleet, [newcomer], judged=first.judged, is_late=lambda: True)
        assert waiting(fleet) == ["a"]
        assert (second.finished, second.outcomes) == (False, [])


class TestLimits:
    def test_a_full_queue_refuses_with_a_reason(self) -> None:
        fleet = a_fleet(a_wish("a"))
        done = one_pass(fleet, [a_wish(f"new{n}", 1) for n in range(3)])
        assert [type(one) for one in done.outcomes] == [Session, Session, Refusal]
        [refusal] = done.outcomes[2:]
        assert isinstance(refusal, Refusal)
        assert refusal.reason.startswith("No DCV server found for the given criteria")
        assert refusal.reason.endswith("no server is registered; the queue is full")
        assert waiting(fleet) == ["a", "new0", "new1"]

    def test_who_gets_a_place_needs_no_room(self) -> None:
        fleet = a_fleet(*[a_wish(n, requirements="tag:x = 'y'") for n in "abc"], *one_server(1))
        done = one_pass(fleet, [a_wish("new", 1)])
        assert [type(one) for one in done.outcomes] == [Session]
        assert waiting(fleet) == ["a", "b", "c"]

    def test_who_does_not_want_to_wait_does_not(self) -> None:
        fleet = a_fleet()
        done = one_pass(fleet, [a_wish("new", enqueue=False)])
        assert [type(one) for one in done.outcomes] == [Refusal]
        assert waiting(fleet) == []

    def test_a_failed_start_without_another_place_waits_only_where_that_was_asked_for(self) -> None:
        failed = a_wish("a", enqueue=False, tried=("n1",), reason="no X")
        fleet = a_fleet(failed, a_wish("b", tried=("n1",), reason="no X"))
        one_pass(fleet)
        ended = fleet.session("a")
        assert ended is not None
        assert (ended.ended_at, ended.reason) == (NOON, "no X")
        assert waiting(fleet) == ["b"]


class TestExpiry:
    def test_nothing_is_placed_after_its_time(self) -> None:
        fleet = a_fleet(a_wish("a"), a_wish("b", 1), *one_server(2))
        done = one_pass(fleet, now=NOON + LIMITS.wait)
        ended = fleet.session("a")
        assert ended is not None
        assert (ended.server_id, ended.ended_at) == (None, NOON + LIMITS.wait)
        assert ended.reason == "no place came free in time"
        placed = fleet.session("b")
        assert placed is not None
        assert placed.server_id == "n1"
        assert done.oldest is None

    def test_after_a_failed_start_its_time_begins_anew(self) -> None:
        failed: dict[str, Any] = {
            "tried": ("n0",),
            "reason": "no X",
            "released_at": NOON + LIMITS.wait,
        }
        fleet = a_fleet(a_wish("a", **failed), *one_server(1))
        one_pass(fleet, now=NOON + LIMITS.wait)
        assert fleet.sessions_on("n1") == [fleet.session("a")]
        fleet = a_fleet(a_wish("a", **failed), a_wish("b", 90))
        done = one_pass(fleet, now=NOON + LIMITS.wait)
        assert done.oldest == NOON + LIMITS.wait
        one_pass(fleet, now=NOON + 2 * LIMITS.wait)
        assert waiting(fleet) == ["b"]
        ended = fleet.session("a")
        assert ended is not None
        assert ended.reason == "no place came free in time after a start had failed: no X"

    def test_it_expires_also_while_a_pass_is_late(self) -> None:
        fleet = a_fleet(a_wish("a", requirements="tag:a = '1'"), a_wish("b"), *one_server(0))
        one_pass(fleet, now=NOON + LIMITS.wait, is_late=lambda: True)
        assert waiting(fleet) == []


class TestMemory:
    def test_who_was_refused_looks_again_only_where_something_is_new(self) -> None:
        fleet = a_fleet(*[a_wish(n, owner=n) for n in "abc"], *one_server(0))
        asked: list[str] = []

        def search(judged: Mapping[str, Moment]) -> Pass:
            asked.clear()
            done = Pass(
                fleet,
                NOON,
                LIMITS,
                reachable=lambda id: asked.append(id) or True,  # type: ignore[func-returns-value]
                judged=judged,
                is_late=lambda: False,
            )
            done.decide([])
            return done

        for number in range(20):
            apply(fleet, [a_server(f"m{number}"), some_facts(f"m{number}", max_virtual_sessions=0)])
        judged = search(NOTHING).judged
        # All three wishes are one: they differ in nothing but their owner. One search asks for
        # one server three times at most.
        assert len(set(asked)) == 21
        assert len(asked) <= 3 * 21
        assert search(judged).judged == judged
        assert asked == []
        apply(fleet, [some_facts("m7", max_virtual_sessions=0, load=(1.0, 1.0, 1.0))])
        judged = search(judged).judged
        assert asked == []
        apply(fleet, [some_facts("m7", max_virtual_sessions=0, gpu="yes")])
        search(judged)
        assert asked == ["m7"]

    def test_who_waits_for_less_load_looks_where_it_has_moved(self) -> None:
        calm = "server:Host.CpuLoadAverage.OneMinute < 1"
        fleet = a_fleet(a_wish("a", requirements=calm), a_server(), some_facts(load=(5.0, 0, 0)))
        apply(fleet, [some_facts(load=(4.0, 0, 0))] * 5)
        first = one_pass(fleet)
        assert first.follows_load
        apply(fleet, [some_facts(load=(0.5, 0, 0))])
        one_pass(fleet, judged=first.judged)
        assert waiting(fleet) == []

    @given(fleet=fleets(), happened=st.lists(steps, max_size=4), late=st.booleans())
    def test_what_is_remembered_changes_no_decision(
        self, fleet: Fleet, happened: list[list[Record | tuple[str, str]]], late: bool
    ) -> None:
        limits = QueueLimits(size=100, wait=timedelta(days=1))
        judged: Mapping[str, Moment] = NOTHING
        wishes = {session.id: session.request for session in fleet.each(Session)}
        for step in [[], *happened]:
            apply(fleet, [same_wish(each, wishes) for each in step])
            # Late ones stop after each search; several together do what one does.
            for _ in range(30):
                without = one_pass(fleet, limits=limits, commit=False)
                done = one_pass(fleet, judged=judged, limits=limits, is_late=lambda: late)
                judged = done.judged
                if done.finished:
                    break
                assert set(done._written) <= set(without._written)
            assert done.finished
            assert set(judged) == set(waiting(fleet))
            assert one_pass(fleet, limits=limits, commit=False).change_set() == ()
            if not late:
                assert done._written == without._written

    @given(fleet=fleets(), wishes=st.lists(requests(), max_size=6))
    def test_a_pass_that_is_late_leaves_no_older_one_behind(
        self, fleet: Fleet, wishes: list[SessionRequest]
    ) -> None:
        newcomers = [
            a_session(f"new{n}", request=wish, created_at=NOON) for n, wish in enumerate(wishes)
        ]
        at_once = one_pass(fleet, newcomers, commit=False)
        judged: Mapping[str, Moment] = NOTHING
        outcomes: list[Session | Refusal] = []
        for _ in range(60):
            done = one_pass(fleet, newcomers[len(outcomes) :], judged=judged, is_late=lambda: True)
            outcomes += done.outcomes
            judged = done.judged
            if done.finished:
                break
        assert done.finished
        assert [type(one) for one in outcomes] == [type(one) for one in at_once.outcomes]
        for session in at_once._written.values():
            now = fleet.session(session.id)
            assert now is not None
            assert now.server_id == session.server_id


def test_requirements_that_no_longer_parse_wait_without_harm() -> None:
    fleet = a_fleet(a_wish("a", requirements="tag:gpu ="), a_wish("b", 1), *one_server(1))
    done = one_pass(fleet, [a_wish("new", request=a_request(requirements="tag:gpu ="))])
    assert [type(one) for one in done.outcomes] == [Refusal]
    assert waiting(fleet) == ["a"]
