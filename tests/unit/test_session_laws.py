"""The laws of one session: its table, and what any report of any server can do to it.

The machine plays a store and servers that may say anything, about their own sessions and about
those of others: late, doubled, or plainly false. What is said may be wrong; what comes of it may
never break a law.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from itertools import product

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from deskfleet.broker.service.observing import take_observed
from deskfleet.core import session as rules
from deskfleet.core.change import ABSENT, Change, Check, Put, Stored, Tombstone
from deskfleet.core.fleet import Fleet
from deskfleet.core.records import (
    KINDS,
    Intent,
    Link,
    Phase,
    Report,
    Server,
    Session,
    SessionRequest,
    Type,
)
from deskfleet.core.session import TABLE, Stage, State, Step, stage
from deskfleet.errors import Conflict
from deskfleet.ports import Running
from deskfleet.wire.messages import Observed

NOW = datetime(2030, 1, 1, tzinfo=UTC)
SERVERS = ("alpha", "beta", "gamma")
FORWARD = {State.CREATING: 0, State.READY: 1, State.DELETING: 2, State.DELETED: 3}
RETRIES = 2


def request(*, disable_retry: bool = False) -> SessionRequest:
    return SessionRequest(name="desk", owner="ann", type=Type.VIRTUAL, disable_retry=disable_retry)


def in_stage(wanted: Stage) -> Session:
    waiting = rules.new("s", request(), NOW)
    placed = rules.place(waiting, "alpha")
    return {
        Stage.WAITING: waiting,
        Stage.PLACED: placed,
        Stage.STOPPING: rules.stop(placed),
        Stage.ENDED: rules.end(placed, NOW, "over"),
    }[wanted]


def take(session: Session, step: Step) -> Session:
    match step:
        case Step.PLACE:
            return rules.place(session, "beta")
        case Step.RELEASE:
            return rules.release(session, NOW, "no luck")
        case Step.STOP:
            return rules.stop(session)
        case Step.END:
            return rules.end(session, NOW, "over")


@pytest.mark.parametrize(("before", "step"), list(product(Stage, Step)))
def test_every_pair_of_stage_and_step_has_its_case(before: Stage, step: Step) -> None:
    session = in_stage(before)
    after = TABLE.get((before, step))
    assert rules.may(session, step) is (after is not None)
    if after is None:
        with pytest.raises(Conflict):
            take(session, step)
    else:
        assert stage(take(session, step)) is after


@pytest.mark.parametrize("before", list(Stage))
def test_a_delete_leads_to_the_end_from_everywhere(before: Stage) -> None:
    session = in_stage(before)
    if before is Stage.ENDED:
        with pytest.raises(Conflict):
            rules.delete(session, NOW)
        return
    deleted = rules.delete(session, NOW)
    assert stage(deleted) in {Stage.STOPPING, Stage.ENDED}
    assert deleted.intent is Intent.STOP


def test_nothing_leads_out_of_the_end() -> None:
    assert not [step for before, step in TABLE if before is Stage.ENDED]


@given(
    before=st.sampled_from(Stage),
    server_id=st.sampled_from(SERVERS),
    generation=st.integers(0, 3),
    phase=st.sampled_from(Phase),
    retries=st.integers(0, 2),
)
def test_a_late_or_foreign_report_changes_nothing(
    before: Stage, server_id: str, generation: int, phase: Phase, retries: int
) -> None:
    session = in_stage(before)
    report = Report(id="s", server_id=server_id, generation=generation, phase=phase)
    settled = rules.settle(session, report, NOW, retries=retries)
    if before in {Stage.ENDED, Stage.WAITING} or not rules.is_about(report, session):
        assert settled is session
    else:
        assert (server_id, generation) == ("alpha", 1)
        assert (settled is session) is (phase in {Phase.STARTING, Phase.RUNNING})


def test_what_a_start_waits_for_is_seen_until_it_has_come_out() -> None:
    session = in_stage(Stage.PLACED)
    waits = Report(
        id="s", server_id="alpha", generation=1, phase=Phase.STARTING, reason="the disk is full"
    )
    assert rules.seen(session, waits, reachable=True) == rules.Seen(
        State.CREATING, rules.Substate.PENDING_PREPARATION, "the disk is full"
    )
    for other in (
        rules.replace(waits, server_id="beta"),
        rules.replace(waits, generation=2),
        rules.replace(waits, phase=Phase.RUNNING),
    ):
        assert rules.seen(session, other, reachable=True).reason is None


@given(
    before=st.sampled_from(Stage),
    phase=st.none() | st.sampled_from(Phase),
    reachable=st.booleans(),
)
def test_what_is_seen_is_what_is_known(before: Stage, phase: Phase | None, reachable: bool) -> None:
    session = in_stage(before)
    report = None
    if phase is not None:
        report = Report(id="s", server_id="alpha", generation=1, phase=phase)
    state = rules.seen(session, report, reachable=reachable).state
    if before is Stage.ENDED:
        assert state is State.DELETED
    elif before is Stage.STOPPING:
        assert state is State.DELETING
    elif before is Stage.WAITING:
        assert state is State.CREATING
    elif not reachable:
        assert state is State.UNKNOWN
    else:
        assert state is (State.READY if phase is Phase.RUNNING else State.CREATING)


class SessionMachine(RuleBasedStateMachine):
    """Sessions in one fleet, and servers that say what they like of any of them."""

    def __init__(self) -> None:
        super().__init__()
        self.fleet = Fleet()
        self.now = NOW
        self.count = 0
        self.states: dict[str, State] = {}
        self.ran: dict[str, int] = {}
        self.before: dict[str, Session] = {}
        for id in SERVERS:
            self.write(
                [
                    Put(Server(id=id, registered_at=NOW), ABSENT),
                    Put(Link(id=id, broker_id="b", epoch=1), ABSENT),
                ]
            )

    def write(self, changes: list[Change]) -> None:
        keys = [change.key for change in changes]
        assert len(set(keys)) == len(keys)
        revision = self.fleet.revision + 1
        for change in changes:
            kind, id = change.key
            assert change.expect == self.fleet.revision_of(KINDS[kind], id)
        for change in changes:
            if isinstance(change, Put):
                self.fleet.apply(Stored(revision, change.record))

    def put(self, session: Session) -> None:
        self.write([Put(session, self.fleet.revision_of(Session, session.id))])

    def pick(self, which: int) -> Session | None:
        sessions = sorted(self.fleet.each(Session), key=lambda session: session.id)
        return sessions[which % len(sessions)] if sessions else None

    @precondition(lambda self: self.count < 6)
    @rule(disable_retry=st.booleans())
    def create(self, disable_retry: bool) -> None:
        self.count += 1
        self.put(rules.new(f"s{self.count}", request(disable_retry=disable_retry), self.now))

    @rule(which=st.integers(0, 5), server_id=st.sampled_from(SERVERS))
    def place(self, which: int, server_id: str) -> None:
        session = self.pick(which)
        if session and rules.may(session, Step.PLACE):
            self.put(rules.place(session, server_id))

    @rule(which=st.integers(0, 5))
    def delete(self, which: int) -> None:
        session = self.pick(which)
        if session and stage(session) is not Stage.ENDED:
            self.put(rules.delete(session, self.now))

    @rule(which=st.integers(0, 5))
    def force(self, which: int) -> None:
        session = self.pick(which)
        if session is None:
            return
        revision = self.fleet.revision + 1
        self.fleet.apply(Tombstone(revision, "session", session.id))
        self.fleet.apply(Tombstone(revision, "report", session.id))
        for known in (self.states, self.ran, self.before):
            known.pop(session.id, None)

    @rule(
        server_id=st.sampled_from(SERVERS),
        signed=st.sampled_from(SERVERS),
        ids=st.lists(st.integers(1, 7), min_size=1, max_size=3),
        behind=st.integers(-1, 2),
        phase=st.sampled_from(Phase),
        runs=st.booleans(),
    )
    def report(
        self, server_id: str, signed: str, ids: list[int], behind: int, phase: Phase, runs: bool
    ) -> None:
        observed = []
        for number in ids:
            id = f"s{number}" if number <= self.count else f"foreign-{number}"
            session = self.fleet.session(id)
            generation = max(0, (session.generation if session else 0) - behind)
            running = Running(session_id=id, generation=generation, owner="ann", type=Type.VIRTUAL)
            report = Report(id=id, server_id=signed, generation=generation, phase=phase)
            observed.append(Observed(report=report, running=running if runs else None))
        changes = take_observed(self.fleet, server_id, observed, self.now, retries=RETRIES).changes
        self.check_own(server_id, changes)
        self.write(changes)

    @rule(seconds=st.integers(1, 100))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    def check_own(self, server_id: str, changes: list[Change]) -> None:
        """A server's report reaches its own rows and nobody else's."""
        for change in changes:
            if isinstance(change, Check):
                continue
            assert isinstance(change, Put)
            record = change.record
            if isinstance(record, Report):
                assert record.server_id == server_id
            elif isinstance(record, Server):
                assert record.id == server_id
            else:
                assert isinstance(record, Session)
                old = self.fleet.session(record.id)
                assert (record if old is None else old).server_id == server_id
                assert old is not None or record.adopted
                assert record.local_id is None or record.id == f"{record.local_id}@{server_id}"

    @invariant()
    def the_laws_hold(self) -> None:
        for session in self.fleet.each(Session):
            old = self.before.get(session.id)
            if old is not session:
                self.check(old, session)
            self.before[session.id] = session
            self.check_state(session)
        for report in self.fleet.each(Report):
            assert self.fleet.session(report.id) is not None

    def check(self, old: Session | None, new: Session) -> None:
        if old is None:
            return
        if succeeds(new, old):
            # Its server has begun another one under an id of its own choice.
            self.states.pop(new.id)
            return
        steps = {after for (before, _), after in TABLE.items() if before is stage(old)}
        assert stage(new) in {stage(old), *steps}
        assert stage(old) is not Stage.ENDED, "the end is the end"
        placed = stage(old) is Stage.WAITING and stage(new) is Stage.PLACED
        assert new.generation == old.generation + placed
        assert old.intent is Intent.RUN or new.intent is Intent.STOP
        assert session_stays(old, new) or new.id not in self.ran, "it ran, and is placed again"

    def check_state(self, session: Session) -> None:
        report = self.fleet.report(session.id)
        state = rules.seen(session, report, reachable=True).state
        assert FORWARD[state] >= FORWARD[self.states.get(session.id, state)]
        self.states[session.id] = state
        if state is State.READY:
            self.ran[session.id] = session.generation
        away = rules.seen(session, report, reachable=False).state
        assert away in {state, State.UNKNOWN}


def succeeds(new: Session, old: Session) -> bool:
    foreign = new.adopted and new.generation == old.generation == 0
    return foreign and stage(old) is Stage.ENDED and new.server_id == old.server_id


def session_stays(old: Session, new: Session) -> bool:
    return (old.server_id, old.generation) == (new.server_id, new.generation)


PARTS = 10 if os.environ.get("CI") == "true" else 1
EXAMPLES, STEPS = 400, 62
ENOUGH_STEPS = 20_000
"""Of one part; continuous integration takes ten, so 200,000 steps."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", range(PARTS))
def test_no_report_breaks_a_law(part: int) -> None:
    """In parts, because Hypothesis remembers every step of one; each part has its own seed."""
    steps = 0

    @seed(part)
    class Counted(SessionMachine):
        @invariant()
        def counts(self) -> None:
            nonlocal steps
            steps += 1

    run_state_machine_as_test(
        Counted,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    # The invariant is also checked once before the first step of each example.
    assert steps - EXAMPLES >= ENOUGH_STEPS
