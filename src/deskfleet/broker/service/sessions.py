"""What clients ask of sessions: create, describe, delete, change permissions, connect.

Each function answers for one request as a whole; the parts of a batch fail alone, with a reason.
What is decided is committed before the answer; nothing here waits for a server. Where `mine` names
an owner, only their sessions are there; those of others look like sessions that don't exist, and so
does what has ended long ago and is still to be swept away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from deskfleet.broker.service.access import Access, Audience
from deskfleet.broker.service.liveness import Liveness
from deskfleet.broker.service.placing import Placing
from deskfleet.broker.service.replica import Replica
from deskfleet.broker.service.selection import Selection
from deskfleet.broker.service.showing import Showing
from deskfleet.core import permissions, platforms
from deskfleet.core import session as rules
from deskfleet.core.change import Change, ChangeSet, Drop, Put
from deskfleet.core.fleet import Place, Tag
from deskfleet.core.placement import Refusal, parse_once
from deskfleet.core.queue import Outcome
from deskfleet.core.records import ApiClient, Facts, Report, Session, SessionRequest
from deskfleet.core.server import has_told_all, told_bytes
from deskfleet.core.session import Seen, Stage, State
from deskfleet.errors import (
    Conflict,
    Forbidden,
    Missing,
    PermissionsInvalid,
    RequirementsInvalid,
    StoreFailed,
    Unavailable,
)
from deskfleet.ports import Clock

T = TypeVar("T")

NO_SUCH_SESSION = "The requested dcvSession does not exist"
"""Compared by clients, letter by letter."""
NO_ROOM = Refusal("PermissionsFile: those of all sessions on this server are too long together.")


@dataclass(frozen=True, slots=True)
class SessionView:
    """A session as it stands, for an answer."""

    session: Session
    seen: Seen
    report: Report | None
    facts: Facts | None


@dataclass(frozen=True, slots=True)
class Deletion:
    session_id: str
    owner: str
    force: bool = False


@dataclass(frozen=True, slots=True)
class PermissionsUpdate:
    session_id: str
    owner: str
    permissions_file: str


class Sessions:
    def __init__(
        self,
        replica: Replica,
        liveness: Liveness,
        placing: Placing,
        access: Access,
        clock: Clock,
        *,
        token_life: timedelta,
        shown: timedelta,
    ) -> None:
        """`shown` is for how long sessions are there for clients after their end."""
        self._replica = replica
        self._fleet = replica.fleet
        self._liveness = liveness
        self._placing = placing
        self._access = access
        self._clock = clock
        self._token_life = token_life
        self._shown = shown

    async def create(
        self, requests: Sequence[SessionRequest], *, mine: str | None = None
    ) -> list[Outcome]:
        """Create sessions; the outcomes stand in the order of the requests.

        What can't be written now is refused alone where others are written: those are there, and
        their client must know of them. Raises `Unavailable`, or `StoreFailed`, where none is.
        """
        outcomes = await asyncio.gather(
            *(self._create(request, mine) for request in requests), return_exceptions=True
        )
        is_written = any(isinstance(one, Session) for one in outcomes)
        return [_refused(one, others_are_written=is_written) for one in outcomes]

    async def _create(self, request: SessionRequest, mine: str | None) -> Outcome:
        if mine is not None and request.owner != mine:
            return Refusal(f"This client may create sessions of {mine} only.")
        refusal = _check_platform(request) or _check_requirements(request.requirements)
        if refusal is None and request.permissions_file is not None:
            refusal = _check_permissions(request.permissions_file)
        return refusal or await self._placing.create(request)

    def view(self, session: Session) -> SessionView:
        report = self._fleet.report(session.id)
        if report is not None and not rules.is_about(report, session):
            report = None
        server_id = session.server_id
        reachable = server_id is not None and self._liveness.is_reachable(server_id)
        return SessionView(
            session=session,
            seen=rules.seen(session, report, reachable=reachable),
            report=report,
            facts=None if server_id is None else self._fleet.facts(server_id),
        )

    def showing(self, make: Callable[[SessionView], T]) -> Showing[T]:
        """Keep what `make` makes of sessions until their views change."""
        return Showing(self._replica, self._liveness, lambda session: make(self.view(session)))

    def select(
        self,
        ids: Collection[str],
        owners: Collection[str],
        tags: Collection[Tag],
        after: Place | None = None,
    ) -> Iterator[Place]:
        """Find the places of the sessions that fit all that is given, oldest first.

        The caller has caught up, and lets nothing happen until it has taken what it wants.
        """
        return Selection(self._fleet, ids, owners, tags).places(after, self._ended_until())

    async def delete(
        self, deletions: Sequence[Deletion], *, mine: str | None = None
    ) -> list[Refusal | State]:
        return await self._replica.decide(lambda: self._decide_deletions(deletions, mine))

    def _decide_deletions(
        self, deletions: Sequence[Deletion], mine: str | None
    ) -> tuple[list[Refusal | State], ChangeSet]:
        changes: dict[str, tuple[Change, ...]] = {}
        answers: list[Refusal | State] = []
        for deletion in deletions:
            session = self._owned(deletion.session_id, deletion.owner, mine)
            if session is not None and deletion.force:
                # Also one that has ended: it shall not be listed any more.
                changes[session.id] = self._forget(session)
            elif session is None or rules.stage(session) is Stage.ENDED:
                answers.append(Refusal(NO_SUCH_SESSION))
                continue
            elif session.id not in changes:
                deleted = rules.delete(session, self._clock.now())
                if deleted is not session:
                    expect = self._fleet.revision_of(Session, session.id)
                    changes[session.id] = (Put(deleted, expect),)
            answers.append(State.DELETING)
        return answers, tuple(change for group in changes.values() for change in group)

    def _forget(self, session: Session) -> tuple[Change, ...]:
        # Without a report this asks that none has come meanwhile: it would be left behind alone.
        return (
            Drop("session", session.id, self._fleet.revision_of(Session, session.id)),
            Drop("report", session.id, self._fleet.revision_of(Report, session.id)),
        )

    async def update_permissions(
        self, updates: Sequence[PermissionsUpdate], *, mine: str | None = None
    ) -> list[Refusal | None]:
        return await self._replica.decide(lambda: self._decide_permissions(updates, mine))

    def _decide_permissions(
        self, updates: Sequence[PermissionsUpdate], mine: str | None
    ) -> tuple[list[Refusal | None], ChangeSet]:
        changes: dict[str, Change] = {}
        answers: list[Refusal | None] = []
        for update in updates:
            session = self._owned(update.session_id, update.owner, mine)
            if session is None or rules.stage(session) is Stage.ENDED:
                answers.append(Refusal(NO_SUCH_SESSION))
                continue
            # Nothing is not an empty file, which would shut everybody out.
            refusal = (
                _check_permissions(update.permissions_file)
                if update.permissions_file
                else Refusal("PermissionsFile is required.")
            )
            request = rules.replace(session.request, permissions_file=update.permissions_file)
            refusal = refusal or self._check_room(session, request)
            answers.append(refusal)
            if refusal is None:
                changes[session.id] = Put(
                    rules.replace(session, request=request),
                    self._fleet.revision_of(Session, session.id),
                )
        return answers, tuple(changes.values())

    def _check_room(self, session: Session, request: SessionRequest) -> Refusal | None:
        """Refuse what makes longer what an agent is told that can't be told any more."""
        is_longer = told_bytes(request) > told_bytes(session.request)
        server_id = session.server_id
        if is_longer and server_id is not None and has_told_all(self._fleet.seats(server_id)):
            return NO_ROOM
        return None

    async def connect(
        self,
        session_id: str,
        user: str,
        *,
        mine: str | None = None,
        client: ApiClient | None = None,
    ) -> tuple[SessionView, str]:
        """Return a session and a fresh token that lets `user` connect to it.

        The token ends with those of the `client` that it is for. Any user name is served: what a
        user may do is decided where the session runs. Raises
        `Missing`, or `Conflict` for a session that is not READY; `Forbidden` where `mine` is
        another user, whatever the session.
        """
        if mine is not None and user != mine:
            raise Forbidden("this client may let nobody but its owner into a session")
        await self._replica.catch_up()
        session = self.find(session_id, mine)
        if session is None:
            raise Missing("The requested session is not found")
        view = self.view(session)
        if view.seen.state is not State.READY:
            raise Conflict(
                f"The session is {view.seen.state}: it is neither in READY state"
                " nor in any other that can be connected to"
            )
        if session.local_id is not None:
            raise Conflict(
                f"Another server has a session {session.local_id!r}, too: no client could tell them"
                " apart. Give each an id of its own to connect to them"
            )
        claims: dict[str, Any] = {
            "dcvSessionId": session.id,
            "dcvSessionOwner": session.request.owner,
            "dcvSessionUser": user,
            "dcvSessionGeneration": session.generation,
        }
        if client is not None:
            claims |= {"client_id": client.id, "era": client.token_era}
        return view, self._access.sign(Audience.CONNECT, claims, self._token_life)

    def find(self, session_id: str, mine: str | None) -> Session | None:
        """Return a session of the fleet as caught up, None where it isn't there for the caller."""
        session = self._fleet.session(session_id)
        if session is None or rules.is_over(session, self._ended_until()):
            return None
        return None if mine is not None and session.request.owner != mine else session

    def _ended_until(self) -> datetime:
        return rules.ended_until(self._clock.now(), self._shown)

    def _owned(self, session_id: str, owner: str, mine: str | None) -> Session | None:
        # A foreign session looks like one that doesn't exist.
        session = self.find(session_id, mine)
        return session if session is not None and session.request.owner == owner else None


def _refused(outcome: Outcome | BaseException, *, others_are_written: bool) -> Outcome:
    """Return an outcome for the answer; raise what went wrong where nothing was written."""
    if not isinstance(outcome, BaseException):
        return outcome
    if not others_are_written or not isinstance(outcome, Unavailable | StoreFailed):
        raise outcome
    if isinstance(outcome, StoreFailed):
        return Refusal("The store can't be reached: whether the session was created isn't known.")
    return Refusal(f"Not now: {outcome.message}.")


def _check_platform(request: SessionRequest) -> Refusal | None:
    reason = platforms.refusal_of(request)
    return None if reason is None else Refusal(reason)


def _check_requirements(requirements: str | None) -> Refusal | None:
    try:
        parse_once(requirements or "")
    except RequirementsInvalid as error:
        return Refusal(error.message)
    return None


def _check_permissions(permissions_file: str) -> Refusal | None:
    try:
        permissions.decode(permissions_file)
    except PermissionsInvalid as error:
        return Refusal(f"PermissionsFile: {error.message}")
    return None
