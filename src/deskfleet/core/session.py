"""What a session is, and the only ways it may change.

A session has two halves that are never merged. `Session` is ours: what was asked for and what
was decided. `Report` is its server's: what the agent said last. The state that clients see is
computed from both and from that server's silence, so a silent server makes a session UNKNOWN
without anyone writing it, and a late report can't undo a delete.

Rules: every step of our half goes through `_advance`, and the table is the whole truth; a report
of another generation, or of another server, is not about this session. Nothing leaves ENDED.

A session that deskfleet did not create is the exception to much: its id is chosen by its server,
is unique there only (`console`), and may be used again for the next one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import msgspec

from deskfleet.core.records import Intent, Phase, Report, Session, SessionRequest
from deskfleet.errors import Conflict

replace = msgspec.structs.replace

LATEST = datetime.max.replace(tzinfo=UTC)


class Stage(StrEnum):
    """How far our half of a session has come."""

    WAITING = "waiting"
    PLACED = "placed"
    STOPPING = "stopping"
    ENDED = "ended"


class Step(StrEnum):
    PLACE = "place"
    RELEASE = "release"
    """Take a session that never ran from its server, to be placed again."""
    STOP = "stop"
    END = "end"


TABLE: dict[tuple[Stage, Step], Stage] = {
    (Stage.WAITING, Step.PLACE): Stage.PLACED,
    (Stage.WAITING, Step.END): Stage.ENDED,
    (Stage.PLACED, Step.RELEASE): Stage.WAITING,
    (Stage.PLACED, Step.STOP): Stage.STOPPING,
    (Stage.PLACED, Step.END): Stage.ENDED,
    (Stage.STOPPING, Step.END): Stage.ENDED,
}


class State(StrEnum):
    """The states of the API."""

    CREATING = "CREATING"
    READY = "READY"
    DELETING = "DELETING"
    DELETED = "DELETED"
    UNKNOWN = "UNKNOWN"


class Substate(StrEnum):
    SESSION_PLACING = "SESSION_PLACING"
    PENDING_PREPARATION = "PENDING_PREPARATION"


@dataclass(frozen=True, slots=True)
class Seen:
    """What a client sees of a session."""

    state: State
    substate: Substate | None = None
    reason: str | None = None


def stage(session: Session) -> Stage:
    if session.ended_at is not None:
        return Stage.ENDED
    if session.server_id is None:
        return Stage.WAITING
    return Stage.STOPPING if session.intent is Intent.STOP else Stage.PLACED


def may(session: Session, step: Step) -> bool:
    return (stage(session), step) in TABLE


def _advance(session: Session, step: Step, **fields: object) -> Session:
    before = stage(session)
    if (before, step) not in TABLE:
        raise Conflict(f"a session that is {before} can't {step}")
    return replace(session, **fields)


def new(session_id: str, request: SessionRequest, at: datetime) -> Session:
    return Session(id=session_id, request=request, created_at=at)


def place(session: Session, server_id: str) -> Session:
    return _advance(
        session, Step.PLACE, server_id=server_id, generation=session.generation + 1, reason=None
    )


def release(session: Session, at: datetime, reason: str) -> Session:
    """Send a session whose start has failed back to wait for another place."""
    tried = (*session.tried, session.server_id)
    return _advance(
        session, Step.RELEASE, server_id=None, tried=tried, released_at=at, reason=reason
    )


def waits_since(session: Session) -> datetime:
    """Return since when a waiting session waits."""
    return session.released_at or session.created_at


def stop(session: Session) -> Session:
    return _advance(session, Step.STOP, intent=Intent.STOP)


def end(session: Session, at: datetime, reason: str | None) -> Session:
    return _advance(session, Step.END, intent=Intent.STOP, ended_at=at, reason=reason)


def delete(session: Session, at: datetime) -> Session:
    """Do what a client's delete asks for: a waiting session ends here, another one is stopped."""
    if stage(session) is Stage.WAITING:
        return end(session, at, "deleted while it waited for a place")
    return session if stage(session) is Stage.STOPPING else stop(session)


def name_on_server(session: Session) -> str:
    """Return the id by which a session's server knows it."""
    return session.local_id or session.id


def is_foreign(report: Report) -> bool:
    """Tell whether a report is about a session that deskfleet did not create."""
    return report.generation == 0


def is_another(report: Report, session: Session) -> bool:
    """Tell whether a server reports a session of this id that is none of ours.

    No generation is ever placed on two servers: what has the same one elsewhere is of a machine
    that was enrolled anew, or copied.
    """
    elsewhere = session.server_id not in {None, report.server_id}
    return is_foreign(report) or (elsewhere and report.generation == session.generation)


def is_about(report: Report, session: Session) -> bool:
    return report.server_id == session.server_id and report.generation == session.generation


def has_run(session: Session, report: Report | None) -> bool:
    """Tell whether this generation is known to have run on its server."""
    return session.adopted or (
        report is not None and is_about(report, session) and report.phase is Phase.RUNNING
    )


def settle(session: Session, report: Report, at: datetime, *, retries: int) -> Session:
    """Draw the consequence of a report for our half; the same session where there is none."""
    if stage(session) in {Stage.ENDED, Stage.WAITING} or not is_about(report, session):
        return session
    if report.phase is Phase.ENDED:
        return end(session, at, report.reason)
    if report.phase is not Phase.FAILED:
        return session
    if session.intent is Intent.STOP:
        return end(session, at, session.reason)
    if session.request.disable_retry or len(session.tried) >= retries:
        return end(session, at, report.reason)
    return release(session, at, report.reason or "the start failed")


def ended_until(now: datetime, shown: timedelta) -> datetime:
    """Return until when sessions have ended that nobody is shown any more.

    Where they are not shown at all, no broker's clock has a say in it.
    """
    return now - shown if shown else LATEST


def is_over(session: Session, until: datetime) -> bool:
    return session.ended_at is not None and session.ended_at <= until


def seen(session: Session, report: Report | None, *, reachable: bool) -> Seen:
    """Compute what a client sees. `reachable` tells whether the session's server can be heard."""
    where = stage(session)
    if where is Stage.ENDED:
        return Seen(State.DELETED, reason=session.reason)
    if where is Stage.WAITING:
        return Seen(State.CREATING, Substate.SESSION_PLACING, session.reason)
    if where is Stage.STOPPING:
        reason = None if reachable else "it ends as soon as its server can be reached again"
        return Seen(State.DELETING, reason=reason)
    if not reachable:
        return Seen(State.UNKNOWN, reason="its server can't be reached")
    if has_run(session, report):
        return Seen(State.READY)
    # Its server may say what it waits for.
    waits = report is not None and is_about(report, session) and report.phase is Phase.STARTING
    reason = report.reason if report is not None and waits else None
    return Seen(State.CREATING, Substate.PENDING_PREPARATION, reason)
