"""The laws of a fleet, checked on every change set at the instant at which it is written.

The auditor keeps a fleet of its own, and trusts nobody: it asks of each change set what was there
before, who wrote it, and under which fence. What clients were told is a ledger beside it.

A law that is broken is written down, not raised: the product may not swallow it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from deskfleet.core import session as rules
from deskfleet.core.change import Change, ChangeSet, Check, Drop, Put, Stored, Tombstone
from deskfleet.core.fleet import Fleet
from deskfleet.core.records import (
    Broker,
    Facts,
    Intent,
    Link,
    Phase,
    Report,
    Revision,
    Server,
    Session,
    Type,
)
from deskfleet.core.session import TABLE, Stage, State, stage

FORWARD = {State.CREATING: 0, State.READY: 1, State.DELETING: 2, State.DELETED: 3}
STEPS = {(before, after) for (before, _), after in TABLE.items()}


class LawBroken(AssertionError):
    """The fleet did what it must never do."""


class Verdict:
    """What was found so far."""

    def __init__(self) -> None:
        self.broken: list[str] = []

    def must(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.broken.append(otherwise)

    def check(self) -> None:
        if self.broken:
            raise LawBroken("; ".join(self.broken[:5]))


class Auditor:
    def __init__(
        self, verdict: Verdict, begin: Revision, runs_on: Callable[[str, Session], bool]
    ) -> None:
        self.truth = Fleet()
        self.truth.revision = begin
        self.known: set[str] = set()
        """All sessions that ever were."""
        self.delete_wanted: set[str] = set()
        self.force_wanted: set[str] = set()
        self.forced: set[str] = set()
        """Dropped on demand, and not adopted since."""
        self.purged: set[str] = set()
        """Dropped because they had ended long ago."""
        self.permissions: dict[str, list[str | None]] = {}
        """The permissions files that each session has had."""
        self.forgetful: set[str] = set()
        """Servers whose agents may have lost what was asked of their sessions."""
        self.commits = 0
        self._must = verdict.must
        self._runs_on = runs_on
        """Tells whether a session runs on a server, whatever anybody says; another one under the
        same id is another one."""
        self._ran: dict[str, int] = {}
        self.places: dict[tuple[str, int], str] = {}
        self._state: dict[str, State] = {}

    def has_run(self, session_id: str) -> bool:
        """Tell whether a server has ever said that it runs."""
        return session_id in self._ran

    def committed(self, author: str, change_set: ChangeSet, revision: Revision) -> None:
        writes = [change for change in change_set if not isinstance(change, Check)]
        if not writes:
            return
        self.commits += 1
        self._must(revision == self.truth.revision + 1, f"revision {revision} is out of order")
        fence = _fence(change_set)
        self._check_fence(author, change_set, fence)
        for change in writes:
            self._check(author, change, change_set, fence)
        placed = self._newly_placed(writes)
        for change in writes:
            self.truth.apply(_entry(change, revision))
        self._check_result(writes)
        for session in placed:
            self._check_place(session)

    # What a change set may write

    def _check_fence(self, author: str, change_set: ChangeSet, fence: str | None) -> None:
        for change in change_set:
            if isinstance(change, Put) and isinstance(change.record, Link):
                self._check_link(author, change_set, change.record)
        if fence is None:
            return
        opens = any(
            change.key == ("link", fence) and isinstance(change, Put) for change in change_set
        )
        link = self.truth.link(fence)
        self._must(
            opens or (link is not None and link.broker_id == author),
            f"{author} writes for {fence}, whose link it does not hold",
        )
        for change in change_set:
            self._must(self._is_own(change, fence), f"{fence} changes {change.key}")

    def _check_link(self, author: str, change_set: ChangeSet, new: Link) -> None:
        old = self.truth.link(new.id)
        next_epoch = (old.epoch if old else 0) + 1
        if new.up:
            good = new.broker_id == author and new.epoch == next_epoch
        elif old is not None and new.epoch == old.epoch:
            good = old.broker_id == author and new == rules.replace(old, up=False)
        else:
            forgotten = any(change.key == ("server", new.id) for change in change_set)
            good = forgotten and new.epoch == next_epoch
        self._must(good, f"{author} turns {old} into {new}")

    def _is_own(self, change: Change, server_id: str) -> bool:
        """Tell whether a change made for a server is to a row of its own."""
        if change.key[0] in {"link", "server", "facts"}:
            return change.key[1] == server_id
        session = self.truth.session(change.key[1])
        if isinstance(change, Put) and isinstance(change.record, Report):
            return change.record.server_id == server_id
        if session is None:
            return (
                isinstance(change, Put)
                and isinstance(change.record, Session)
                and change.record.server_id == server_id
            )
        return change.key[0] == "session" and session.server_id == server_id

    def _check(self, author: str, change: Change, change_set: ChangeSet, fence: str | None) -> None:
        match change:
            case Put(record=Session() as new):
                self._check_session(self.truth.session(new.id), new, change_set, fence)
            case Put(record=Report() as report):
                self._check_report(report, change_set, fence)
            case Put(record=Facts() as facts):
                self._must(fence == facts.id, f"the facts of {facts.id} come from nowhere")
            case Put(record=Broker() as broker):
                old = self.truth.get(Broker, broker.id)
                self._must(broker.id == author, f"{author} beats for {broker.id}")
                self._must(old is None or broker.beat > old.beat, f"{broker.id} beats backwards")
            case Put(record=Server() as server):
                self._check_server(server, change_set, fence)
            case Drop(kind="session", id=id):
                self._check_drop(id)
            case Drop(kind="server", id=id):
                self._must(not self.truth.seats(id).taken, f"{id} is forgotten with its sessions")
                known = self.truth.server(id)
                self._must(known is not None and known.open, f"{id} is closed, and is forgotten")
                self._must(self._ends_link(id, change_set), f"{id} is forgotten, its link is not")

    def _check_server(self, new: Server, change_set: ChangeSet, fence: str | None) -> None:
        old = self.truth.server(new.id)
        if old is None:
            self._must(new.open and new.listed, f"{new.id} begins as {new}")
            return
        # Who opens and closes writes nothing else.
        alone = all(isinstance(one, Put) and one.key[0] == "server" for one in change_set)
        self._must(new.open is old.open or alone, f"{new.id} is turned, and nobody asked")
        self._must(not alone or old.listed, f"{new.id} is turned, and isn't shown to anybody")
        if old.listed and not new.listed:
            ended = self._ends_link(new.id, change_set)
            self._must(ended, f"{new.id} is shown no longer, and its link goes on")
        elif new.listed and not old.listed:
            self._must(fence == new.id, f"{new.id} is shown again without its link")

    def _ends_link(self, server_id: str, change_set: ChangeSet) -> bool:
        """Tell whether no link that a server has had counts after a change set."""
        written = [one.record for one in change_set if isinstance(one, Put)]
        ended = [one for one in written if isinstance(one, Link) and one.id == server_id]
        return self.truth.link(server_id) is None or any(not one.up for one in ended)

    def _check_session(
        self, old: Session | None, new: Session, change_set: ChangeSet, fence: str | None
    ) -> None:
        if old is None or _succeeds(new, old):
            self._check_new(new, change_set, fence)
        else:
            self._check_step(old, new, fence)
        place = new.server_id
        if place is not None:
            first = self.places.setdefault((new.id, new.generation), place)
            self._must(first == place, f"{new.id} is on {first} and on {place} at once")
        self.known.add(new.id)
        self.permissions.setdefault(new.id, []).append(new.request.permissions_file)

    def _check_new(self, new: Session, change_set: ChangeSet, fence: str | None) -> None:
        if not new.adopted:
            self._must(new.id not in self.known, f"{new.id} is created twice")
            return
        own_id = new.generation > 0
        self._must(not (own_id and new.id in self.purged), f"{new.id} was deleted and comes back")
        had = self.permissions.get(new.id) if own_id else None
        as_it_was = not had or new.request.permissions_file in had
        whole = as_it_was or new.server_id in self.forgetful
        self._must(whole, f"{new.id} is adopted with permissions that it never had")
        self.purged.discard(new.id)
        self.places.pop((new.id, 0), None)
        self._must(fence == new.server_id, f"{new.id} is adopted without its server's link")
        runs = any(
            isinstance(change, Put)
            and isinstance(change.record, Report)
            and change.record.id == new.id
            and change.record.phase is Phase.RUNNING
            for change in change_set
        )
        self._must(runs, f"{new.id} is adopted though it does not run")
        self.forced.discard(new.id)
        self._state.pop(new.id, None)
        self._ran[new.id] = new.generation

    def _check_step(self, old: Session, new: Session, fence: str | None) -> None:
        before, after = stage(old), stage(new)
        self._must(before is not Stage.ENDED, f"{old.id} is changed after its end")
        if before is not after:
            self._must((before, after) in STEPS, f"{old.id} goes from {before} to {after}")
            told = before in {Stage.PLACED, Stage.STOPPING} and after is not Stage.STOPPING
            self._must(not told or fence == old.server_id, f"{old.id} is {after}, and nobody said")
            if told and old.server_id is not None:
                runs = self._runs_on(old.server_id, old)
                self._must(not runs, f"{old.id} is {after}, and still runs on {old.server_id}")
        else:
            same = (old.generation, old.server_id) == (new.generation, new.server_id)
            self._must(same, f"{old.id} is moved while it is {before}")
        placed = after is Stage.PLACED and before is Stage.WAITING
        self._must(
            new.generation == old.generation + placed,
            f"{old.id}: generation {old.generation} becomes {new.generation}",
        )
        self._must(
            old.intent is Intent.RUN or new.intent is Intent.STOP, f"{old.id} is wanted again"
        )
        if after is Stage.STOPPING:
            self._must(old.id in self.delete_wanted, f"{old.id} is stopped and nobody asked")
        moved = placed or after is Stage.WAITING
        self._must(not (moved and old.id in self._ran), f"{old.id} has run and is placed again")

    def _check_report(self, report: Report, change_set: ChangeSet, fence: str | None) -> None:
        self._must(fence == report.server_id, f"{report.id} is reported without a link")
        session = self.truth.session(report.id)
        for change in change_set:
            if isinstance(change, Put) and isinstance(change.record, Session):
                session = session or (change.record if change.record.id == report.id else None)
        about = session is not None and is_about(report, session)
        self._must(about, f"a report of {report.id} is about another placement of it")
        if report.phase is Phase.RUNNING:
            self._ran[report.id] = report.generation

    def _check_drop(self, id: str) -> None:
        session = self.truth.session(id)
        ended = session is not None and session.ended_at is not None
        self._must(ended or id in self.force_wanted, f"{id} is dropped and nobody asked")
        # Who forces a session out may see it again, also where it was called ended.
        (self.forced if id in self.force_wanted else self.purged).add(id)
        self._state.pop(id, None)
        self._ran.pop(id, None)

    # What must hold afterwards

    def _newly_placed(self, writes: Iterable[Change]) -> list[Session]:
        new = [change.record for change in writes if isinstance(change, Put)]
        return [
            session
            for session in new
            if isinstance(session, Session)
            and stage(session) is Stage.PLACED
            and not session.adopted
            and ((old := self.truth.session(session.id)) is None or stage(old) is Stage.WAITING)
        ]

    def _check_result(self, writes: Iterable[Change]) -> None:
        for change in writes:
            if not isinstance(change, Put):
                alone = change.kind == "session" and self.truth.report(change.id) is not None
                self._must(not alone, f"the report of {change.id} is left behind")
                continue
            record = change.record
            if isinstance(record, Session | Report):
                self._check_state(record.id)
            if isinstance(record, Link) and record.up:
                shown = self.truth.server(record.id)
                linked = shown is not None and shown.listed
                self._must(linked, f"{record.id} is linked, and not shown")
            if isinstance(record, Report):
                known = self.truth.session(record.id) is not None
                self._must(known, f"a report of {record.id} stands alone")

    def _check_state(self, id: str) -> None:
        session = self.truth.session(id)
        if session is None:
            return
        state = rules.seen(session, self.truth.report(id), reachable=True).state
        before = self._state.get(id, state)
        self._must(FORWARD[state] >= FORWARD[before], f"{id} goes back from {before} to {state}")
        self._state[id] = state

    def _check_place(self, session: Session) -> None:
        """Check the seats of a session that has just been placed, and of those beside it."""
        server = self.truth.server(session.server_id or "")
        facts = self.truth.facts(session.server_id or "")
        if server is None or facts is None:
            self._must(server is not None, f"{session.id} is placed on a forgotten server")
            return
        self._must(server.open, f"{session.id} is placed on {server.id}, which is closed")
        self._must(server.listed, f"{session.id} is placed on {server.id}, which nobody is shown")
        beside = [one.request for one in self.truth.sessions_on(server.id)]
        consoles = [one for one in beside if one.type is Type.CONSOLE]
        virtual = [one for one in beside if one.type is Type.VIRTUAL]
        owned = [one for one in virtual if one.owner == session.request.owner]
        self._must(len(consoles) <= 1, f"{server.id} has {len(consoles)} console sessions")
        self._must(not (consoles and virtual), f"{server.id} has both kinds of sessions")
        self._must(len(virtual) <= facts.max_virtual_sessions, f"{server.id} is over-full")
        self._must(
            len(owned) <= facts.max_sessions_per_user or session.request.type is Type.CONSOLE,
            f"{server.id} has {len(owned)} sessions of {session.request.owner}",
        )


def _fence(change_set: ChangeSet) -> str | None:
    """Return the server for whose link a change set is written."""
    for change in change_set:
        if isinstance(change, Check) and change.kind == "link":
            return change.id
        if isinstance(change, Put) and isinstance(change.record, Link) and change.record.up:
            return change.record.id
    return None


def _succeeds(new: Session, old: Session) -> bool:
    """Tell whether a server has begun another session under an id of its own choice."""
    foreign = new.adopted and old.adopted and new.generation == old.generation == 0
    other = stage(old) is Stage.ENDED or new.request.owner != old.request.owner
    return foreign and other and new.server_id == old.server_id


def is_about(report: Report, session: Session) -> bool:
    """Say it in words of our own: what is checked can't be the measure."""
    return (report.server_id, report.generation) == (session.server_id, session.generation)


def _entry(change: Change, revision: Revision) -> Stored | Tombstone:
    if isinstance(change, Put):
        return Stored(revision, change.record)
    return Tombstone(revision, *change.key)


def portrait(fleet: Fleet) -> dict[str, Any]:
    """Return all that a fleet knows, in a form that can be compared."""
    return {
        "records": fleet._records,
        "seats": {
            id: (seats.console, seats.virtual, dict(seats.owners))
            for id, seats in fleet._seats.items()
            if seats.taken
        },
        "on_server": {id: set(ids) for id, ids in fleet._on_server.items()},
        "of_server": {id: set(ids) for id, ids in fleet._of_server.items()},
        "held": {id: set(ids) for id, ids in fleet.held.items()},
        "unheld": set(fleet.unheld),
        "of_owner": {owner: set(ids) for owner, ids in fleet._of_owner.items()},
        "unlisted": set(fleet.unlisted),
        "tagged": {tag: set(ids) for tag, ids in fleet._tagged.items()},
        "waiting": list(fleet._waiting.values()),
        "over": {kind: list(order.values()) for kind, order in fleet._over.items()},
        "order": {kind: list(order.values()) for kind, order in fleet._order.items()},
        "ranks": [rank[:3] for rank in fleet.candidates.ranked()],
        "candidates": {
            id: (one.server, one.facts, one.seats, one.load)
            for id, one in fleet.candidates._each.items()
        },
    }
