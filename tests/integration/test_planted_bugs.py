"""Proof that the laws bite: each planted bug must be found.

Every bug takes one guard away, in one place, as a careless change might. The fleet's machine
(`test_fleet_laws`) runs until a law is broken; a bug that it lets pass fails the test, for then a
law that guards against it is missing, or is not looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from hypothesis import Phase as Stretch

from deskfleet.agent.journal import Journal
from deskfleet.agent.journal_file import Line
from deskfleet.agent.loop import Generations, Loop, Step
from deskfleet.broker.service import convergence, observing
from deskfleet.broker.service.convergence import AgentSession
from deskfleet.broker.service.housekeeping import Housekeeping
from deskfleet.broker.service.links import Links
from deskfleet.broker.service.observing import Fence, Taken
from deskfleet.broker.service.replica import Replica
from deskfleet.broker.service.sessions import Sessions
from deskfleet.broker.stores import settlement
from deskfleet.core import session as rules
from deskfleet.core.change import ABSENT, Change, ChangeSet, Check, Drop, Put
from deskfleet.core.fleet import Fleet
from deskfleet.core.records import (
    Facts,
    Link,
    Phase,
    Report,
    Revision,
    Server,
    Session,
)
from deskfleet.errors import Unavailable
from deskfleet.ports import SessionSpec
from deskfleet.wire.link import AgentLink
from deskfleet.wire.messages import Desire, Desired, FromAgent, FromBroker
from support import fleet_stories as stories
from support.fleet_laws import LawBroken
from support.fleet_machine import FleetMachine, run
from support.fleet_stories import Story, tell
from support.fleet_world import use_fake_wire

T = TypeVar("T")
Planting = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Bug:
    plant: Planting
    story: Story | None
    """What shows it, where the machine would need long to come upon that."""


PLANTED: dict[str, Bug] = {}
EXAMPLES = 120
"""Several times what any bug without a story takes."""


def planted(name: str, story: Story | None = None) -> Callable[[Planting], Planting]:
    def plant(planting: Planting) -> Planting:
        PLANTED[name] = Bug(planting, story)
        return planting

    return plant


@planted("a link that was superseded may still write", stories.a_report_comes_late)
def _(patch: pytest.MonkeyPatch) -> None:
    def check(fence: Fence, fleet: Fleet) -> Check:
        return Check("link", fence.server_id, fleet.revision_of(Link, fence.server_id))

    patch.setattr(Fence, "check", check)


@planted("a report of an older generation is taken for this one", stories.it_fails_and_comes_back)
def _(patch: pytest.MonkeyPatch) -> None:
    _about(patch, lambda report, session: report.server_id == session.server_id)


@planted("a server ends the sessions of others")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(observing, "is_another", lambda report, _session: rules.is_foreign(report))
    _about(patch, lambda report, session: report.generation == session.generation)


def _about(patch: pytest.MonkeyPatch, is_about: Callable[[Report, Session], bool]) -> None:
    for module in (rules, observing):
        patch.setattr(module, "is_about", is_about)


@planted("placing does not guard the seats with the server's revision", stories.two_brokers_race)
def _(patch: pytest.MonkeyPatch) -> None:
    strict = Replica.commit

    async def commit(replica: Replica, change_set: ChangeSet) -> Revision:
        return await strict(
            replica,
            tuple(
                change
                for change in change_set
                if not (isinstance(change, Put) and isinstance(change.record, Server))
                or replica.fleet.server(change.record.id) is None
            ),
        )

    patch.setattr(Replica, "commit", commit)


@planted("adopting does not take seats", stories.adopted_meanwhile)
def _(patch: pytest.MonkeyPatch) -> None:
    whole = observing.take_observed

    def take_observed(fleet: Fleet, server_id: str, *rest: Any, **how: Any) -> Taken:
        taken = whole(fleet, server_id, *rest, **how)
        left = [change for change in taken.changes if change.key != ("server", server_id)]
        return taken._replace(changes=left)

    patch.setattr(convergence, "take_observed", take_observed)


@planted("an agent listens to desired sets of older links and serials", stories.told_twice)
def _(patch: pytest.MonkeyPatch) -> None:
    strict = AgentLink.receive

    def receive(link: AgentLink, message: FromBroker, now: float) -> FromBroker | None:
        taken = strict(link, message, now)
        return message if isinstance(message, Desired) else taken

    patch.setattr(AgentLink, "receive", receive)


@planted("the journal does not reach the disk", stories.killed_before_it_is_heard)
def _(patch: pytest.MonkeyPatch) -> None:
    async def put(journal: Journal, line: Line) -> None:
        journal._memory.take(line)

    patch.setattr(Journal, "_put", put)


@planted("a session is begun while its intent is on its way to the disk")
def _(patch: pytest.MonkeyPatch) -> None:
    careful = Loop._note

    async def note(loop: Loop, spec: SessionSpec, phase: Phase, reason: str | None = None) -> None:
        noting = asyncio.ensure_future(careful(loop, spec, phase, reason))
        if phase is not Phase.STARTING:
            await noting

    patch.setattr(Loop, "_note", note)


@planted("a session is begun though its intent could not be written", stories.its_disk_is_full)
def _(patch: pytest.MonkeyPatch) -> None:
    careful = Journal._put

    async def put(journal: Journal, line: Line) -> None:
        with contextlib.suppress(Unavailable):
            await careful(journal, line)

    patch.setattr(Journal, "_put", put)


@planted("a session that is known to have run is begun again", stories.reinstalled)
def _(patch: pytest.MonkeyPatch) -> None:
    careful = Loop._take_on

    def take_on(loop: Loop, desire: Desire, running: Generations) -> Step:
        return careful(loop, rules.replace(desire, started=False), running)

    patch.setattr(Loop, "_take_on", take_on)


@planted("the end of a session is noted before it is stopped", stories.it_will_not_stop)
def _(patch: pytest.MonkeyPatch) -> None:
    careful = Loop._stop

    async def stop(loop: Loop, spec: SessionSpec) -> None:
        await loop._note(spec, Phase.ENDED)
        await careful(loop, spec)

    patch.setattr(Loop, "_stop", stop)


@planted("an agent never forgets what is over")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Loop, "_leave", lambda loop, entry, running: None)


@planted("a session that dies by itself is not noticed")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Loop, "_ended", lambda loop, session_id, reason: loop._on_change())


@planted("a deleted session is called ended before its server has said so")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rules, "delete", lambda session, at: rules.end(session, at, "deleted"))


@planted("anybody may delete anything")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Sessions, "_owned", lambda sessions, id, owner: sessions._fleet.session(id))


@planted("a client is answered before the commit")
def _(patch: pytest.MonkeyPatch) -> None:
    async def decide(replica: Replica, decision: Callable[[], tuple[T, ChangeSet]]) -> T:
        await replica.catch_up()
        answer, change_set = decision()
        if change_set:
            commit = asyncio.ensure_future(replica.commit(change_set))
            commit.add_done_callback(lambda done: done.cancelled() or done.exception())
        return answer

    patch.setattr(Replica, "decide", decide)


@planted("a replica does not catch up before it answers")
def _(patch: pytest.MonkeyPatch) -> None:
    async def catch_up(replica: Replica) -> None: ...

    patch.setattr(Replica, "catch_up", catch_up)


@planted("the store takes a record for absent without looking", stories.greeted_twice)
def _(patch: pytest.MonkeyPatch) -> None:
    strict = settlement._first_lost

    def first_lost(keyed: Sequence[Any], known: Any) -> Any:
        return strict([one for one in keyed if one[1].expect != ABSENT], known)

    patch.setattr(settlement, "_first_lost", first_lost)


@planted("the store does not look at preconditions")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(settlement, "_first_lost", lambda keyed, known: None)


@planted("a link is taken over under the old epoch")
def _(patch: pytest.MonkeyPatch) -> None:
    strict = observing.open_link

    def open_link(fleet: Fleet, server_id: str, *rest: Any) -> list[Any]:
        [first, *others] = strict(fleet, server_id, *rest)
        old = fleet.link(server_id)
        if old is not None:
            assert isinstance(first, Put)
            first = Put(rules.replace(first.record, epoch=old.epoch), first.expect)
        return [first, *others]

    patch.setattr(convergence, "open_link", open_link)


@planted("a link is not given up when another broker takes it over")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Fence, "check", lambda fence, fleet: Check("broker", "nobody", ABSENT))


@planted("a store that is busy ends a link", stories.a_store_is_busy)
def _(patch: pytest.MonkeyPatch) -> None:
    async def write(agent: AgentSession) -> None:
        while True:
            await agent._news.wait()
            agent._news.clear()
            while agent._unwritten:
                await agent.hear(agent._unwritten.popitem()[1])
            agent.written.set()

    patch.setattr(AgentSession, "write", write)


@planted("what a store was too busy for is not written later", stories.a_store_is_busy)
def _(patch: pytest.MonkeyPatch) -> None:
    careful = AgentSession.hear

    async def hear(agent: AgentSession, message: FromAgent) -> None:
        with contextlib.suppress(Unavailable):
            await careful(agent, message)

    patch.setattr(AgentSession, "hear", hear)


@planted("a server is forgotten under the feet of its link", stories.stuck_for_long)
def _(patch: pytest.MonkeyPatch) -> None:
    whole = Housekeeping._forget_server

    def forget(chores: Housekeeping, server_id: str) -> list[Any]:
        return [change for change in whole(chores, server_id) if change.key[0] != "link"]

    patch.setattr(Housekeeping, "_forget_server", forget)


@planted("a server is forgotten, and with it that it was closed", stories.closed_and_away)
def _(patch: pytest.MonkeyPatch) -> None:
    def forget(chores: Housekeeping, server_id: str) -> list[Any]:
        fleet = chores._fleet
        link = fleet.link(server_id)
        assert link is not None
        ended = rules.replace(link, epoch=link.epoch + 1, up=False)
        return [
            Drop("server", server_id, fleet.revision_of(Server, server_id)),
            Put(ended, fleet.revision_of(Link, server_id)),
        ]

    patch.setattr(Housekeeping, "_forget_server", forget)


@planted("a server that comes back is not shown again", stories.away_with_a_session)
def _(patch: pytest.MonkeyPatch) -> None:
    whole = observing.open_link

    def open_link(fleet: Fleet, server_id: str, *rest: Any) -> list[Any]:
        known = fleet.server(server_id) is not None
        return whole(fleet, server_id, *rest)[: 1 if known else 2]

    patch.setattr(convergence, "open_link", open_link)


@planted("a seat that was left stays taken in memory")
def _(patch: pytest.MonkeyPatch) -> None:
    whole = Fleet._reindex_session

    def reindex(fleet: Fleet, id: str, old: Session | None, new: Session | None) -> None:
        seats = old and old.server_id and fleet._seats.get(old.server_id)
        whole(fleet, id, old, new)
        if old and seats and new and new.ended_at is not None and old.ended_at is None:
            seats.add(old)

    patch.setattr(Fleet, "_reindex_session", reindex)


@planted("what is stored of a server is not told to placement")
def _(patch: pytest.MonkeyPatch) -> None:
    def forgetful(fleet: Fleet, id: str, old: Facts | None, new: Facts | None) -> None: ...

    patch.setattr(Fleet, "_reindex_facts", forgetful)


@planted("a server that is lost is never marked as lost", stories.it_goes_dark)
def _(patch: pytest.MonkeyPatch) -> None:
    async def mark_lost(links: Links, server_id: str, epoch: int) -> None: ...

    patch.setattr(Links, "_mark_lost", mark_lost)


@planted("a first report does not ask for its session", stories.dropped_while_it_begins)
def _(patch: pytest.MonkeyPatch) -> None:
    whole = observing.take_observed

    def take_observed(*what: Any, **how: Any) -> Taken:
        taken = whole(*what, **how)
        left: list[Change] = [one for one in taken.changes if not isinstance(one, Check)]
        return taken._replace(changes=left)

    patch.setattr(convergence, "take_observed", take_observed)


@planted("a drop does not ask for reports it has not heard", stories.dropped_on_old_news)
def _(patch: pytest.MonkeyPatch) -> None:
    whole = Sessions._forget

    def forget(sessions: Sessions, session: Session) -> tuple[Change, ...]:
        return tuple(change for change in whole(sessions, session) if change.expect != ABSENT)

    patch.setattr(Sessions, "_forget", forget)


@planted("an end that comes with the start is not noticed", stories.over_before_it_is_told)
def _(patch: pytest.MonkeyPatch) -> None:
    attentive = Loop._ended

    def ended(loop: Loop, session_id: str, reason: str) -> None:
        if session_id not in loop._tasks:
            attentive(loop, session_id, reason)

    patch.setattr(Loop, "_ended", ended)


@planted("a write fails when the read after it fails", stories.welcomed_by_nobody)
def _(patch: pytest.MonkeyPatch) -> None:
    async def commit(replica: Replica, change_set: ChangeSet) -> Revision:
        revision = await replica._commits.commit(change_set)
        await replica.catch_up()
        return revision

    patch.setattr(Replica, "commit", commit)


@pytest.mark.parametrize("story", [bug.story for bug in PLANTED.values() if bug.story])
def test_nothing_is_found_without_a_bug(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_wire(monkeypatch)
    tell(story)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", list(PLANTED))
def test_a_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bug = PLANTED[name]
    use_fake_wire(monkeypatch)
    bug.plant(monkeypatch)
    with pytest.raises(LawBroken):
        drive() if bug.story is None else tell(bug.story)


def drive() -> None:
    run(
        FleetMachine,
        max_examples=EXAMPLES,
        stateful_step_count=80,
        derandomize=True,
        phases=(Stretch.generate,),
        report_multiple_bugs=False,
    )
