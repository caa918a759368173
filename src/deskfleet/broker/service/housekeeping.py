"""What a broker does without being asked: beat, poll, and forget what has had its time.

Everything here is safe to run twice, on two brokers, with old information: each write has its
precondition, and losing a race means that somebody else did the work.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

from deskfleet.broker.service.liveness import Liveness
from deskfleet.broker.service.placing import Placing
from deskfleet.broker.service.replica import Replica
from deskfleet.broker.service.signing_keys import outlived
from deskfleet.broker.service.silence import Silence
from deskfleet.broker.service.verifier import spent
from deskfleet.core.change import ABSENT, Change, ChangeSet, Check, Drop, Put
from deskfleet.core.records import (
    Broker,
    Facts,
    Link,
    Report,
    Server,
    Session,
    SigningKey,
    TokenUse,
)
from deskfleet.core.session import end, ended_until, replace
from deskfleet.errors import Unavailable
from deskfleet.ports import Clock

log = logging.getLogger(__name__)

SWEEP_SECONDS = 5.0
DEAD_BROKER_SECONDS = 300.0
"""Long after nobody needs the record of a dead broker any more."""
SWEEP_BATCH = 500
KEPT_TOMBSTONES = 100_000
"""A broker that lags by more revisions than this loads everything again."""


@dataclass(frozen=True, slots=True)
class Retention:
    ended_sessions: timedelta
    silent_servers_seconds: float
    tokens: timedelta = timedelta(days=1)
    """The longest life of a token that any of the fleet's keys signs."""
    silent_sessions_seconds: float | None = None
    """When the sessions of a silent server end; never where it is None."""


class Housekeeping:
    def __init__(
        self,
        replica: Replica,
        liveness: Liveness,
        placing: Placing,
        clock: Clock,
        broker: Broker,
        retention: Retention,
    ) -> None:
        self._replica = replica
        self._fleet = replica.fleet
        self._liveness = liveness
        self._placing = placing
        self._clock = clock
        self._broker = broker
        self._retention = retention
        self._silence = Silence(replica, liveness, clock)
        self._frozen = False
        self._poked = asyncio.Event()
        self._retired = False

    def poke(self) -> None:
        """Look at the store now: another broker says that it has written."""
        self._poked.set()

    async def beat(self, every_seconds: float) -> None:
        """Show that this broker lives, until cancelled."""
        while True:
            with contextlib.suppress(Unavailable):
                await self._replica.decide(self._decide_beat)
            await asyncio.sleep(every_seconds)

    async def retire(self) -> None:
        """Say with a last beat that this broker ends; its agents have their grace."""
        self._retired = True

        def decision() -> tuple[None, ChangeSet]:
            mine = self._fleet.get(Broker, self._broker.id)
            if mine is None or mine.retired:
                return None, ()
            last = replace(mine, beat=mine.beat + 1, retired=True)
            return None, (Put(last, self._fleet.revision_of(Broker, mine.id)),)

        await self._replica.decide(decision)

    async def poll(self, every_seconds: float) -> None:
        """Catch up with the store regularly, and at once when poked, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every_seconds):
                    await self._poked.wait()
            self._poked.clear()
            with contextlib.suppress(Unavailable):
                await self._replica.catch_up()

    async def sweep(self) -> None:
        """Forget what has had its time, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            with contextlib.suppress(Unavailable):
                while await self._replica.decide(self._decide_sweep):
                    pass
                await self._replica.compact(KEPT_TOMBSTONES)
            if self._fleet.count_waiting():
                self._placing.look_again()

    def _decide_beat(self) -> tuple[None, ChangeSet]:
        if self._retired:
            return None, ()
        mine = self._fleet.get(Broker, self._broker.id) or self._broker
        beaten = Broker(id=mine.id, url=mine.url, beat=mine.beat + 1)
        return None, (Put(beaten, self._fleet.revision_of(Broker, mine.id)),)

    def _decide_sweep(self) -> tuple[bool, ChangeSet]:
        """Decide what to forget; say whether there was too much for once."""
        fleet, now = self._fleet, self._clock.now()
        changes: list[Change] = [
            Drop("broker", broker.id, fleet.revision_of(Broker, broker.id))
            for broker in self._liveness.dead(for_seconds=DEAD_BROKER_SECONDS)
        ]
        ended = fleet.ended(Session, ended_until(now, self._retention.ended_sessions))
        for id in ended[:SWEEP_BATCH]:
            changes.append(Drop("session", id, fleet.revision_of(Session, id)))
            reported = fleet.revision_of(Report, id)
            if reported:
                changes.append(Drop("report", id, reported))
        changes += self._sweep_silent()
        changes += [
            Drop("signing-key", key.id, fleet.revision_of(SigningKey, key.id))
            for key in outlived(fleet, now, self._retention.tokens)
        ]
        uses = spent(fleet, now)
        changes += [
            Drop("token-use", id, fleet.revision_of(TokenUse, id)) for id in uses[:SWEEP_BATCH]
        ]
        return max(len(ended), len(uses)) > SWEEP_BATCH, tuple(changes)

    def _sweep_silent(self) -> list[Change]:
        """Return what silence brings about: for sessions first, then for their servers."""
        self._silence.look()
        changes = self._end_silent_sessions()
        ending = {one.id for one in changes if isinstance(one, Check)}
        silent = self._silence.of_at_least(self._retention.silent_servers_seconds)
        # What hangs on a server that is shown no longer may be over by now.
        for server_id in dict.fromkeys((*self._fleet.unlisted, *silent)):
            if server_id not in ending and len(changes) < SWEEP_BATCH:
                changes += self._forget_server(server_id)
        return changes

    def _forget_server(self, server_id: str) -> list[Change]:
        """Return what takes a server out of all lists, and its records with it if nothing is lost.

        What is lost with them are the sessions on it, which may run on, and that it was closed.
        A link that somebody holds all the same is superseded: the next one shows the server again.
        The link's record stays: its epoch must keep growing when the agent comes back.
        """
        fleet = self._fleet
        server, expect = fleet.server(server_id), fleet.revision_of(Server, server_id)
        if server is None:
            return []
        told, occupied = fleet.revision_of(Facts, server_id), fleet.seats(server_id).taken
        changes: list[Change] = []
        if told and not occupied:
            changes.append(Drop("facts", server_id, told))
        if server.open and not occupied:
            changes.append(Drop("server", server_id, expect))
        elif server.listed:
            changes.append(Put(replace(server, listed=False), expect))
        if not changes:
            return []
        link = fleet.link(server_id)
        if link is None:
            # It was never linked, and must not be at this moment.
            changes.append(Check("link", server_id, ABSENT))
        else:
            ended = replace(link, epoch=link.epoch + 1, up=False)
            changes.append(Put(ended, fleet.revision_of(Link, server_id)))
        return changes

    def _end_silent_sessions(self) -> list[Change]:
        """Return what ends the sessions of servers that have been silent for too long."""
        limit = self._retention.silent_sessions_seconds
        silent = [] if limit is None else self._silence.of_at_least(limit)
        occupied = [id for id in silent if self._fleet.seats(id).taken]
        frozen = bool(occupied) and self._silence.is_mass()
        if frozen and not self._frozen:
            log.error("sessions.kept", extra={"reason": "most servers vanished together"})
        self._frozen = frozen
        changes: list[Change] = []
        for server_id in [] if frozen else occupied:
            if len(changes) < SWEEP_BATCH:
                changes += self._end_sessions_on(server_id, f"its server was silent for {limit} s")
        return changes

    def _end_sessions_on(self, server_id: str, reason: str) -> list[Change]:
        fleet, now = self._fleet, self._clock.now()
        ended: list[Change] = [
            Put(end(session, now, reason), fleet.revision_of(Session, session.id))
            for session in fleet.sessions_on(server_id)
        ]
        # A server that is heard again in this moment keeps its sessions.
        return [Check("link", server_id, fleet.revision_of(Link, server_id)), *ended]


Poke = Callable[[Broker], Awaitable[None]]


class Pokes:
    """Tells the other brokers that there is something new in the store.

    A hint only: who misses it finds out at its next poll. Many commits make one poke.
    """

    def __init__(self, liveness: Liveness, poke: Poke) -> None:
        self._liveness = liveness
        self._poke = poke
        self._wanted = asyncio.Event()

    def want(self) -> None:
        self._wanted.set()

    async def run(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            others = self._liveness.others()
            if others:
                await asyncio.gather(*(self._poke(other) for other in others))
            # At most this often: a burst of commits is one piece of news.
            await asyncio.sleep(0.01)
