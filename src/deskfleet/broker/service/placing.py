"""Gives sessions their places.

All requests that wait at one moment are placed in one decision and one commit, so requests of
one broker never race each other for a seat; requests of two brokers do, and the loser decides
again. Sessions that wait in the queue come first, oldest first: a newcomer never overtakes an
older one that would fit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeAlias

from deskfleet.broker.service.liveness import Liveness
from deskfleet.broker.service.replica import Replica
from deskfleet.core import session as sessions
from deskfleet.core.change import ABSENT, Change, ChangeSet, Put
from deskfleet.core.placement import Placement, Refusal, Tally, place
from deskfleet.core.records import Server, Session, SessionRequest
from deskfleet.errors import RequirementsInvalid, StoreFailed, Unavailable
from deskfleet.ports import Clock, Ids

Outcome: TypeAlias = Session | Refusal

BATCH = 500
"""Newcomers placed in one commit: small enough to be decided again after a lost race."""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    size: int
    wait: timedelta


@dataclass(slots=True)
class _Waiter:
    session: Session
    placed: asyncio.Future[Outcome]


class Placing:
    def __init__(
        self, replica: Replica, liveness: Liveness, clock: Clock, ids: Ids, limits: QueueLimits
    ) -> None:
        self._replica = replica
        self._liveness = liveness
        self._clock = clock
        self._ids = ids
        self._limits = limits
        self._newcomers: list[_Waiter] = []
        self._wanted = asyncio.Event()

    def look_again(self) -> None:
        """Say that something changed which may let a waiting session find a place."""
        self._wanted.set()

    async def create(self, request: SessionRequest) -> Outcome:
        """Place a new session, or let it wait where its client asked for that, or refuse it."""
        session = sessions.new(self._ids.uuid(), request, self._clock.now())
        waiter = _Waiter(session, asyncio.get_running_loop().create_future())
        self._newcomers.append(waiter)
        self._wanted.set()
        return await waiter.placed

    async def run(self) -> None:
        """Place whatever wants a place, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            batch, self._newcomers = self._newcomers[:BATCH], self._newcomers[BATCH:]
            if self._newcomers:
                self._wanted.set()
            await self._place(batch)

    async def _place(self, batch: Sequence[_Waiter]) -> None:
        newcomers = [waiter.session for waiter in batch]
        try:
            outcomes = await self._replica.decide(lambda: self._decide(newcomers))
        except (Unavailable, StoreFailed) as error:
            for waiter in batch:
                if not waiter.placed.done():
                    waiter.placed.set_exception(error)
            if isinstance(error, StoreFailed):
                raise
            # Sessions in the queue lost the same race: look again soon.
            asyncio.get_running_loop().call_later(0.1, self.look_again)
            return
        for waiter, outcome in zip(batch, outcomes, strict=True):
            if not waiter.placed.done():
                waiter.placed.set_result(outcome)

    def _decide(self, newcomers: Sequence[Session]) -> tuple[list[Outcome], ChangeSet]:
        decision = _Decision(self._replica, self._liveness)
        now = self._clock.now()
        room = self._limits.size
        for session in self._replica.fleet.waiting():
            if now - session.created_at >= self._limits.wait:
                decision.write(sessions.end(session, now, "no place came free in time"))
            elif decision.place(session) is None:
                continue
            elif session.request.enqueue:
                room -= 1
            else:
                decision.write(sessions.end(session, now, session.reason))
        outcomes: list[Outcome] = []
        for session in newcomers:
            refusal = decision.place(session)
            if refusal is None:
                outcomes.append(decision.written(session))
            elif session.request.enqueue and room > 0:
                room -= 1
                decision.write(session)
                outcomes.append(session)
            elif session.request.enqueue:
                outcomes.append(Refusal(f"{refusal.reason}; the queue is full"))
            else:
                outcomes.append(refusal)
        return outcomes, decision.change_set()


class _Decision:
    """One pass over all that wants a place, and what it writes."""

    def __init__(self, replica: Replica, liveness: Liveness) -> None:
        self._fleet = replica.fleet
        self._liveness = liveness
        self._tally = Tally(self._fleet)
        self._sessions: dict[str, Session] = {}
        self._placements: dict[str, int] = {}
        self._refused: dict[tuple[SessionRequest, tuple[str, ...]], Refusal] = {}

    def place(self, session: Session) -> Refusal | None:
        # Once refused, the same wish is refused for the rest of this pass: seats only get fewer.
        wish = (sessions.replace(session.request, name=""), session.tried)
        refusal = self._refused.get(wish)
        if refusal is not None:
            return refusal
        try:
            answer = place(
                session.request,
                self._fleet,
                self._tally,
                reachable=self._liveness.is_reachable,
                avoid=session.tried,
            )
        except RequirementsInvalid as error:
            return Refusal(error.message)
        if isinstance(answer, Refusal):
            self._refused[wish] = answer
            return answer
        self._take(session, answer)
        return None

    def _take(self, session: Session, placement: Placement) -> None:
        placed = sessions.place(session, placement.server_id)
        self._tally.take(placement.server_id, placed)
        self._placements[placement.server_id] = self._placements.get(placement.server_id, 0) + 1
        self.write(placed)

    def write(self, session: Session) -> None:
        self._sessions[session.id] = session

    def written(self, session: Session) -> Session:
        return self._sessions[session.id]

    def change_set(self) -> ChangeSet:
        changes: list[Change] = [
            Put(session, self._fleet.revision_of(Session, session.id) or ABSENT)
            for session in self._sessions.values()
        ]
        for server_id, count in self._placements.items():
            server = self._fleet.server(server_id)
            if server is not None:
                counted = sessions.replace(server, placements=server.placements + count)
                changes.append(Put(counted, self._fleet.revision_of(Server, server_id)))
        return tuple(changes)
