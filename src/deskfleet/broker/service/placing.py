"""Gives sessions their places.

All requests that wait at one moment are placed in one decision and one commit, so requests of
one broker never race each other for a seat; requests of two brokers do, and the loser decides
again. Sessions that wait in the queue come first (`core/queue.py`).

The queue is looked at when a server became better or somebody's time is over, and not more often
than every `GAP_SECONDS`; a newcomer never waits for that. No pass keeps the event loop for much
longer than `PASS_SECONDS`, however many wait for however odd servers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from deskfleet.broker.service.liveness import Liveness
from deskfleet.broker.service.replica import Entries, Replica
from deskfleet.core import session as sessions
from deskfleet.core.change import ChangeSet, Stored
from deskfleet.core.queue import Moment, Outcome, Pass, QueueLimits
from deskfleet.core.records import Broker, Session, SessionRequest
from deskfleet.core.session import Stage
from deskfleet.errors import StoreFailed, Unavailable
from deskfleet.ports import Clock, Ids

BATCH = 500
"""Newcomers placed in one commit: small enough to be decided again after a lost race."""
GAP_SECONDS = 0.05
PASS_SECONDS = 0.05
BUSY_SECONDS = 0.1
"""When the queue is looked at again after the store was too busy to write."""
ENDING = "this broker is ending; try again"


@dataclass(slots=True)
class _Waiter:
    session: Session
    placed: asyncio.Future[Outcome]


class Placing:
    def __init__(
        self, replica: Replica, liveness: Liveness, clock: Clock, ids: Ids, limits: QueueLimits
    ) -> None:
        self._replica = replica
        self._fleet = replica.fleet
        self._liveness = liveness
        self._clock = clock
        self._ids = ids
        self._limits = limits
        self._newcomers: list[_Waiter] = []
        self._wanted = asyncio.Event()
        self._has_ended = False
        self._alarm: asyncio.Handle | None = None
        # uvloop's handle of what is due at once doesn't know when it is due.
        self._alarm_at = 0.0
        self._not_before = 0.0
        self._judged: dict[str, Moment] = {}
        self._seen = Moment(-1, -1)
        """Up to here the queue knows of all that became better."""
        self._follows_load = False
        self._alive = liveness.alive()
        replica.subscribe(self._notice)

    def look_again(self) -> None:
        """Say that something changed which may let a waiting session find a place."""
        self._look_after(0.0)

    async def create(self, request: SessionRequest) -> Outcome:
        """Place a new session, or let it wait where its client asked for that, or refuse it."""
        if self._has_ended:
            raise Unavailable(ENDING)
        session = sessions.new(self._ids.uuid(), request, self._clock.now())
        waiter = _Waiter(session, asyncio.get_running_loop().create_future())
        self._newcomers.append(waiter)
        self._wanted.set()
        return await waiter.placed

    async def run(self) -> None:
        """Place whatever wants a place, until cancelled."""
        loop = asyncio.get_running_loop()
        if self._fleet.count_waiting():
            self._wanted.set()
        batch: list[_Waiter] = []
        try:
            while True:
                await self._wanted.wait()
                self._wanted.clear()
                self._not_before = loop.time() + GAP_SECONDS
                batch, self._newcomers = self._newcomers[:BATCH], self._newcomers[BATCH:]
                await self._place(batch)
                if self._newcomers:
                    self._wanted.set()
                # A pass with nothing to write waits for nobody; others want their turn too.
                await asyncio.sleep(0)
        finally:
            # Nobody must wait for an answer that nobody gives any more.
            self._has_ended = True
            for waiter in (*batch, *self._newcomers):
                if not waiter.placed.done():
                    waiter.placed.set_exception(Unavailable(ENDING))

    def _notice(self, entries: Entries) -> None:
        """Look at the queue again where anything of this may help somebody in it."""
        if not self._fleet.count_waiting():
            return
        candidates = self._fleet.candidates
        if (
            candidates.improved.moment > self._seen.improved
            or (self._follows_load and candidates.moved.moment > self._seen.moved)
            or any(self._is_news(entry.record) for entry in entries if isinstance(entry, Stored))
        ):
            self.look_again()

    def _is_news(self, record: object) -> bool:
        if isinstance(record, Broker):
            return record.id not in self._alive
        return (
            isinstance(record, Session)
            and record.id not in self._judged
            and sessions.stage(record) is Stage.WAITING
        )

    def _look_after(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        due = max(loop.time() + seconds, self._not_before)
        if self._alarm is not None:
            if self._alarm_at <= due:
                return
            self._alarm.cancel()
        self._alarm, self._alarm_at = loop.call_at(due, self._ring), due

    def _ring(self) -> None:
        self._alarm = None
        self._wanted.set()

    async def _place(self, batch: Sequence[_Waiter]) -> None:
        newcomers = [waiter.session for waiter in batch]
        try:
            done = await self._replica.decide(lambda: self._decide(newcomers))
        except (Unavailable, StoreFailed) as error:
            for waiter in batch:
                if not waiter.placed.done():
                    waiter.placed.set_exception(error)
            if isinstance(error, StoreFailed):
                raise
            # Sessions in the queue lost the same race: look again soon.
            self._look_after(BUSY_SECONDS)
            return
        for waiter, outcome in zip(batch, done.outcomes, strict=False):
            if not waiter.placed.done():
                waiter.placed.set_result(outcome)
        self._newcomers[:0] = batch[len(done.outcomes) :]
        self._remember(done)

    def _decide(self, newcomers: Sequence[Session]) -> tuple[Pass, ChangeSet]:
        alive = self._liveness.alive()
        if not alive <= self._alive:
            # The servers of a broker that is back may take what they could not take without it.
            self._judged = {}
        self._alive = alive
        began = self._clock.monotonic()
        one = Pass(
            self._fleet,
            self._clock.now(),
            self._limits,
            reachable=self._liveness.reachable_now(),
            judged=self._judged,
            is_late=lambda: self._clock.monotonic() - began >= PASS_SECONDS,
        )
        one.decide(newcomers)
        return one, one.change_set()

    def _remember(self, done: Pass) -> None:
        self._judged = done.judged
        self._seen = done.moment
        self._follows_load = done.follows_load
        if not done.finished:
            self._wanted.set()
        elif done.oldest is not None:
            left = done.oldest + self._limits.wait - self._clock.now()
            self._look_after(max(0.0, left.total_seconds()))
