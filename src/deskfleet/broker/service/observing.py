"""What a server's reports change: pure decisions over the fleet.

Laws: only the server that a session is placed on, in the generation that it is placed with, can
say anything of it; what it says is written under the fence of its link; a session that deskfleet
did not create is adopted, and never stopped unless a client asks for it. But no server fills the
store: of what it names by itself, so much is adopted and no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from deskfleet.core.change import ABSENT, Change, Check, Put
from deskfleet.core.fleet import Fleet
from deskfleet.core.records import (
    Facts,
    Intent,
    Link,
    Phase,
    Report,
    Server,
    Session,
    SessionRequest,
)
from deskfleet.core.server import differ_in_load_only
from deskfleet.core.session import (
    Stage,
    has_run,
    is_about,
    is_another,
    is_foreign,
    name_on_server,
    replace,
    settle,
    stage,
)
from deskfleet.errors import Stale
from deskfleet.ports import Running, SessionSpec
from deskfleet.wire.messages import Desire, Observed

ALIVE = {Phase.STARTING, Phase.RUNNING}
HAVING_RUN = {Phase.STARTING: Phase.RUNNING, Phase.FAILED: Phase.ENDED}
"""What has run is not on its way to run, nor did its start fail, whatever its server says: a
session that was READY goes nowhere but to its end."""


MOST_ADOPTED = 1_000
"""Of one server, those that have ended and are still here among them."""
MOST_ADOPTED_BYTES = 128 * 1024
"""Of one session: what was asked for, with the longest permissions file, fits."""


class Taken(NamedTuple):
    """What follows from an observed set."""

    changes: list[Change]
    turned_away: int
    """How many sessions were not adopted: they are too many, or too large."""


@dataclass(frozen=True, slots=True)
class Fence:
    """The link that a message came on."""

    server_id: str
    broker_id: str
    epoch: int

    def check(self, fleet: Fleet) -> Check:
        """Return the precondition of all that is written for this link.

        Raises `Stale` where the link is not the server's only one any more.
        """
        link = fleet.link(self.server_id)
        if link is None or (link.broker_id, link.epoch) != (self.broker_id, self.epoch):
            raise Stale(f"the link of {self.server_id} has been superseded")
        return Check("link", self.server_id, fleet.revision_of(Link, self.server_id))


def open_link(fleet: Fleet, server_id: str, broker_id: str, now: datetime) -> list[Change]:
    """Make this broker the holder of a server's link, with a new epoch."""
    old = fleet.link(server_id)
    epoch = 1 if old is None else old.epoch + 1
    link = Link(id=server_id, broker_id=broker_id, epoch=epoch)
    changes: list[Change] = [Put(link, fleet.revision_of(Link, server_id))]
    server = fleet.server(server_id)
    if server is None:
        # It was forgotten while it was away.
        changes.append(Put(Server(id=server_id, registered_at=now), ABSENT))
    elif not server.listed:
        shown = replace(server, listed=True)
        changes.append(Put(shown, fleet.revision_of(Server, server_id)))
    return changes


def take_facts(fleet: Fleet, facts: Facts, *, even_load: bool) -> list[Change]:
    """Write what is new; what moves every few seconds only where `even_load` says so."""
    old = fleet.facts(facts.id)
    if old is not None and (old == facts or (not even_load and differ_in_load_only(old, facts))):
        return []
    return [Put(facts, fleet.revision_of(Facts, facts.id))]


def kept_id(fleet: Fleet, server_id: str, report: Report) -> str:
    """Return the id under which we keep what a server reports.

    It is the server's own but for a session of which we know another one with that id, or did when
    it began.
    """
    known, qualified = fleet.session(report.id), f"{report.id}@{server_id}"
    if known is not None and not is_another(replace(report, server_id=server_id), known):
        return report.id
    kept = fleet.session(qualified)
    if kept is not None and kept.local_id == report.id and stage(kept) is not Stage.ENDED:
        return qualified
    if known is None:
        return report.id
    if known.server_id != server_id:
        return qualified
    # Of what we placed here, a generation that its agent has forgotten is still the same session.
    is_over = stage(known) is Stage.ENDED and not known.adopted
    return qualified if is_over else report.id


def take_observed(
    fleet: Fleet, server_id: str, observed: Iterable[Observed], now: datetime, *, retries: int
) -> Taken:
    """Draw the consequences of a whole observed set."""
    changes: list[Change] = []
    taken: set[str] = set()
    adopted = turned_away = 0
    room: int | None = None
    for one in observed:
        id = kept_id(fleet, server_id, one.report)
        # Two names may be kept under one id: that of the first is its.
        if id in taken:
            continue
        taken.add(id)
        report = replace(
            one.report,
            id=id,
            server_id=server_id,
            last_disconnection_at=in_utc(one.report.last_disconnection_at),
        )
        session = fleet.session(report.id)
        if session is None or _is_succeeded(session, report, one.running):
            found = _adopt(fleet, server_id, one, report, now)
            if found and session is None:
                room = _room_on(fleet, server_id) if room is None else room
                if adopted >= room or _is_too_large(found):
                    turned_away += 1
                    continue
            adopted += bool(found)
            changes += found
        elif is_about(report, session) and stage(session) is not Stage.ENDED:
            changes += _take_report(fleet, session, report, now, retries=retries)
    server = fleet.server(server_id)
    if adopted and server is not None and server.listed:
        # Seats are taken: whoever is placing a session on this server must look again. Nobody is
        # where it isn't listed, and the link that changes that writes this record, too.
        counted = replace(server, placements=server.placements + adopted)
        changes.append(Put(counted, fleet.revision_of(Server, server_id)))
    return Taken(changes, turned_away)


def _room_on(fleet: Fleet, server_id: str) -> int:
    """Return how many more sessions may be adopted of a server."""
    return MOST_ADOPTED - sum(one.adopted for one in fleet.sessions_ever_on(server_id))


def _is_too_large(adoption: Iterable[Put]) -> bool:
    return any(len(msgspec.json.encode(one.record)) > MOST_ADOPTED_BYTES for one in adoption)


def _take_report(
    fleet: Fleet, session: Session, report: Report, now: datetime, *, retries: int
) -> list[Change]:
    changes: list[Change] = []
    old = fleet.report(report.id)
    if has_run(session, old):
        report = replace(report, phase=HAVING_RUN.get(report.phase, report.phase))
    if old is not None and is_about(old, session) and report.last_disconnection_at is None:
        report = replace(report, last_disconnection_at=old.last_disconnection_at)
    if old != report:
        changes.append(Put(report, fleet.revision_of(Report, report.id)))
    settled = settle(session, report, now, retries=retries)
    if settled is not session:
        changes.append(Put(settled, fleet.revision_of(Session, session.id)))
    elif old is None and changes:
        # A first report must not be left behind alone by a session that is dropped meanwhile.
        changes.append(Check("session", session.id, fleet.revision_of(Session, session.id)))
    return changes


def _is_succeeded(session: Session, report: Report, running: Running | None) -> bool:
    """Tell whether a server runs another session under an id of its own choice.

    The one before may have ended between two looks, with nobody to tell of it.
    """
    foreign = session.adopted and session.generation == 0 and is_foreign(report)
    if not foreign or running is None or report.phase is not Phase.RUNNING:
        return False
    begun = in_utc(running.created_at)
    return (
        stage(session) is Stage.ENDED
        or running.owner != session.request.owner
        or begun not in {None, session.created_at}
    )


def _adopt(fleet: Fleet, server_id: str, one: Observed, report: Report, now: datetime) -> list[Put]:
    running, spec = one.running, _spec_of(one)
    if running is None or spec is None or report.phase is not Phase.RUNNING:
        return []
    own_id = one.report.id
    session = Session(
        id=report.id,
        local_id=None if own_id == report.id else own_id,
        request=spec.request,
        created_at=in_utc(spec.created_at or running.created_at) or now,
        server_id=server_id,
        generation=report.generation,
        adopted=True,
    )
    return [
        Put(session, fleet.revision_of(Session, session.id)),
        Put(report, fleet.revision_of(Report, report.id)),
    ]


def _spec_of(one: Observed) -> SessionSpec | None:
    """Return what an observed session was asked to be, None before its agent has told it."""
    running = one.running
    if is_foreign(one.report) and running is not None:
        request = SessionRequest(name=running.name, owner=running.owner, type=running.type)
        return SessionSpec(session_id=running.session_id, generation=0, request=request)
    return one.spec


def in_utc(told: datetime | None) -> datetime | None:
    """Return an instant in UTC, None for one that the calendar of UTC doesn't reach."""
    try:
        return None if told is None else told.astimezone(UTC)
    except OverflowError:
        return None


def desires(fleet: Fleet, server_id: str, observed: Sequence[Observed]) -> dict[str, Desire]:
    """Compute the whole desired set of a server, by the ids under which we keep the sessions.

    It names what is placed there and, to be stopped, what runs there in spite of having ended or
    having been placed anew. What it doesn't name is left alone.
    """
    wanted = {
        session.id: Desire(
            spec=_spec(session, session.generation, session.intent),
            intent=session.intent,
            started=has_run(session, fleet.report(session.id)),
        )
        for session in fleet.sessions_on(server_id)
    }
    for one in observed:
        report = one.report
        id = kept_id(fleet, server_id, report)
        session = fleet.session(id)
        if session is None or report.phase not in ALIVE or id in wanted:
            continue
        if is_another(replace(report, server_id=server_id), session):
            # It is adopted, or will be.
            continue
        spec = _spec(session, report.generation, Intent.STOP)
        wanted[id] = Desire(spec=spec, intent=Intent.STOP)
    return wanted


def _spec(session: Session, generation: int, intent: Intent) -> SessionSpec:
    request = session.request
    if intent is Intent.STOP and request.permissions_file is not None:
        # By far the longest part of a set, and of no use to what is to end.
        request = replace(request, permissions_file=None)
    return SessionSpec(
        session_id=name_on_server(session),
        generation=generation,
        request=request,
        created_at=session.created_at,
    )
