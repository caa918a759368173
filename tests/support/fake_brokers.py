"""Brokers without their listeners: the real services over a store call that a test may hold.

`FakeCommits` stands where `GroupCommit` stands in a program: it asks the store in one order and
answers in the same order. A test may hold all of it (the broker is paused, and acts later on what
it knew before), hold the writes alone (so that somebody else is faster), or let one fail.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any, Protocol, cast

from starlette.websockets import WebSocket

from deskfleet.broker.service.access import Access
from deskfleet.broker.service.convergence import Convergence
from deskfleet.broker.service.external_tokens import ExternalTokens
from deskfleet.broker.service.house import House
from deskfleet.broker.service.housekeeping import Housekeeping, Pokes, Retention
from deskfleet.broker.service.links import Links
from deskfleet.broker.service.liveness import Liveness
from deskfleet.broker.service.paging import Paging
from deskfleet.broker.service.placing import Placing
from deskfleet.broker.service.replica import Replica
from deskfleet.broker.service.resolver import Resolver
from deskfleet.broker.service.screenshots import Screenshots
from deskfleet.broker.service.servers import Servers
from deskfleet.broker.service.sessions import Sessions
from deskfleet.broker.service.verifier import Verifier
from deskfleet.broker.stores.memory import MemoryStore
from deskfleet.broker.web.agents import Agents
from deskfleet.core.change import ChangeSet, Stored, Tombstone
from deskfleet.core.queue import QueueLimits
from deskfleet.core.records import AgentClient, Broker, Revision
from deskfleet.errors import Stale, StoreFailed, Unavailable
from deskfleet.ports import Ids, Lost
from support.fake_wire import BrokerEnd, Line
from support.virtual_time import BEGIN, VirtualClock, VirtualLoop

BEAT_SECONDS = 5.0
HEARTBEAT_SECONDS = 10.0
POLL_SECONDS = 5.0
QUEUE = QueueLimits(4, timedelta(seconds=90))
RETRIES = 1
RETENTION = Retention(timedelta(seconds=900), 240.0)


class Witness(Protocol):
    """Who sees each commit at the instant at which it is written."""

    def committed(self, author: str, change_set: ChangeSet, revision: Revision) -> None: ...


class FakeCommits:
    """The store from the event loop's side."""

    def __init__(self, store: MemoryStore, author: str, witness: Witness) -> None:
        self.paused = False
        self.holds_writes = False
        self.next_fault: str | None = None
        """`busy`: nothing is written; `before` and `after`: the store is gone, and the change set
        was not, or was, written."""
        self.next_read_fails = False
        self.failed = False
        self.lost_races = 0
        self._store = store
        self._author = author
        self._witness = witness
        self._reads: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._writes: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()

    @property
    def waits(self) -> bool:
        return bool(self._writes or self._reads)

    async def load(self) -> tuple[Revision, Sequence[Stored]]:
        return cast(tuple[Revision, Sequence[Stored]], await self._ask(self._load, self._reads))

    async def changes(self, since: Revision) -> tuple[Revision, Sequence[Stored | Tombstone]]:
        answer = await self._ask(lambda: self._changes(since), self._reads)
        return cast(tuple[Revision, Sequence[Stored | Tombstone]], answer)

    async def commit(self, change_set: ChangeSet) -> Revision:
        return cast(Revision, await self._ask(lambda: self._commit(change_set), self._writes))

    async def compact(self, before: Revision) -> None:
        await self._ask(lambda: self._store.compact(before), self._reads)

    def glance(self) -> Revision | None:
        return None if self.paused or self.failed else self._store.glance()

    def resume(self) -> None:
        self.paused = self.holds_writes = False
        self._serve()

    def release_one(self) -> None:
        """Let the oldest write that is held reach the store."""
        if self._writes and not self.paused:
            self._answer(*self._writes.popleft())

    async def _ask(
        self, call: Callable[[], Any], queue: deque[tuple[Callable[[], Any], asyncio.Future[Any]]]
    ) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        queue.append((call, future))
        loop.call_soon(self._serve)
        return await future

    def _serve(self) -> None:
        if self.paused:
            return
        while self._writes and not self.holds_writes:
            self._answer(*self._writes.popleft())
        while self._reads:
            self._answer(*self._reads.popleft())

    def _answer(self, call: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        """Ask the store, though nobody may wait for the answer any more."""
        try:
            if self.failed:
                raise StoreFailed("the store is gone")
            answer = call()
        except Exception as error:  # noqa: BLE001  whoever waits is told
            if not future.done():
                future.set_exception(error)
        else:
            if not future.done():
                future.set_result(answer)

    def _load(self) -> tuple[Revision, Sequence[Stored]]:
        revision, stored = self._store.load()
        return revision, list(stored)

    def _changes(self, since: Revision) -> tuple[Revision, Sequence[Stored | Tombstone]]:
        fails, self.next_read_fails = self.next_read_fails, False
        if fails:
            raise Unavailable("the store is busy")
        return self._store.changes(since)

    def _commit(self, change_set: ChangeSet) -> Revision:
        fault, self.next_fault = self.next_fault, None
        if fault == "busy":
            raise Unavailable("the store is busy")
        if fault == "before":
            self.failed = True
            raise StoreFailed("the store is gone")
        outcome = self._store.commit([change_set])[0]
        if isinstance(outcome, Lost):
            self.lost_races += 1
            raise Stale(f"{outcome.key} has changed")
        self._witness.committed(self._author, change_set, outcome)
        if fault == "after":
            self.failed = True
            raise StoreFailed("the store is gone, who knows what it has written")
        return outcome


class _Doorkeeper(Access):
    """Knows each agent by its server's name."""

    def __init__(self) -> None: ...

    async def agent(self, token: str) -> AgentClient:
        return AgentClient(id=token, name=token, secret_hash=b"", created_at=BEGIN)


class _NoSeal:
    def hash(self, secret: str) -> bytes:
        return secret.encode()

    def seal(self, plain: bytes) -> bytes:
        return plain

    def unseal(self, sealed: bytes) -> bytes:
        return sealed


class BrokerNode:
    """One life of a broker."""

    def __init__(
        self,
        name: str,
        url: str,
        loop: VirtualLoop,
        store: MemoryStore,
        witness: Witness,
        clock: VirtualClock,
        ids: Ids,
        poke: Callable[[Broker], Awaitable[None]],
    ) -> None:
        self.name = name
        """Of this life: another one has another name."""
        self.url = url
        self.commits = FakeCommits(store, name, witness)
        self.clock = clock
        self._loop = loop
        me = Broker(id=name, url=url)
        replica = self.replica = Replica(self.commits)
        self.liveness = Liveness(replica, clock, broker_id=name, beat_seconds=BEAT_SECONDS)
        self.placing = Placing(replica, self.liveness, clock, ids, QUEUE)
        access = _Doorkeeper()
        self.sessions = Sessions(
            replica,
            self.liveness,
            self.placing,
            access,
            clock,
            token_life=timedelta(minutes=1),
            shown=RETENTION.ended_sessions,
        )
        self.servers = Servers(replica, self.liveness, self.placing)
        convergence = Convergence(replica, clock, name, HEARTBEAT_SECONDS, RETRIES)
        self.links = Links(convergence, grace_seconds=HEARTBEAT_SECONDS)
        self.housekeeping = Housekeeping(replica, self.liveness, self.placing, clock, me, RETENTION)
        self._pokes = Pokes(self.liveness, poke)
        replica.after_commit(self._pokes.want)
        house = House(
            replica=replica,
            access=access,
            external=cast(ExternalTokens, None),
            sessions=self.sessions,
            verifier=cast(Verifier, None),
            resolver=cast(Resolver, None),
            servers=self.servers,
            screenshots=cast(Screenshots, None),
            links=self.links,
            housekeeping=self.housekeeping,
            paging=Paging(_NoSeal()),
            clock=clock,
            ids=ids,
        )
        self._agents = Agents(house)

    async def run(self) -> None:
        await self.replica.load()
        async with asyncio.TaskGroup() as chores:
            chores.create_task(self.placing.run())
            chores.create_task(self.housekeeping.beat(BEAT_SECONDS))
            chores.create_task(self.housekeeping.poll(POLL_SECONDS))
            chores.create_task(self.housekeeping.sweep())
            chores.create_task(self._pokes.run())

    def take(self, line: Line) -> None:
        """Serve a new line."""
        self._loop.begin(self.name, self._agents.link(cast(WebSocket, BrokerEnd(line))))

    async def retire(self) -> None:
        await self.links.close()
        with contextlib.suppress(StoreFailed, Unavailable):
            await self.housekeeping.retire()
