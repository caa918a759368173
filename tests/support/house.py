"""A broker without its doors: all use cases over a store, in one event loop, with a clock that
a test sets; and agents that are played by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from deskfleet.broker.service.access import Access
from deskfleet.broker.service.convergence import AgentSession, Convergence
from deskfleet.broker.service.housekeeping import Housekeeping, Retention
from deskfleet.broker.service.links import Links
from deskfleet.broker.service.liveness import Liveness
from deskfleet.broker.service.placing import Placing
from deskfleet.broker.service.replica import Replica
from deskfleet.broker.service.resolver import Resolver
from deskfleet.broker.service.screenshots import Screenshots, Shot, Wish
from deskfleet.broker.service.servers import Servers
from deskfleet.broker.service.sessions import Sessions
from deskfleet.broker.service.signing_keys import fresh_key
from deskfleet.broker.service.verifier import Verifier
from deskfleet.broker.stores.group_commit import GroupCommit
from deskfleet.broker.stores.memory import MemoryStore
from deskfleet.core.change import Put
from deskfleet.core.placement import Refusal
from deskfleet.core.queue import QueueLimits
from deskfleet.core.records import (
    AgentClient,
    Broker,
    Facts,
    Intent,
    Phase,
    Record,
    Report,
    Session,
    SigningKey,
    Type,
)
from deskfleet.core.session import State
from deskfleet.ports import Ids, Running, Store
from deskfleet.system import SystemIds
from deskfleet.wire.messages import (
    VERSION,
    Desire,
    Desired,
    FromBroker,
    Hello,
    Observation,
    Observed,
    Welcome,
)
from support.builders import NOON, FakeClock, FastSigner, some_facts

BEAT_SECONDS = 3.0
GRACE_SECONDS = 0.02
RETRIES = 2
SHOWN = timedelta(hours=1)
LIMIT_SECONDS = 20.0


@functools.cache
def signing_key() -> SigningKey:
    """Make one key for all tests: it takes a good part of a second."""
    return fresh_key("first", FastSigner(), NOON)


@dataclass(frozen=True)
class TestHouse:
    """All parts of one broker."""

    __test__ = False

    broker: Broker
    clock: FakeClock
    store: Store
    commits: GroupCommit
    replica: Replica
    liveness: Liveness
    access: Access
    placing: Placing
    sessions: Sessions
    verifier: Verifier
    resolver: Resolver
    servers: Servers
    links: Links
    screenshots: Screenshots
    housekeeping: Housekeeping
    placer: asyncio.Task[None]
    agents: list[asyncio.Task[None]]
    """What the ends of played agents do on the broker's side."""

    async def write(self, *records: Record) -> None:
        """Put records into the store as they are, whatever was there."""
        await self.replica.catch_up()
        fleet = self.replica.fleet
        await self.replica.commit(
            tuple(Put(one, fleet.revision_of(type(one), one.id)) for one in records)
        )

    async def session(self, id: str) -> Session:
        await self.replica.catch_up()
        session = self.replica.fleet.session(id)
        assert session is not None
        return session

    async def sweep(self) -> None:
        await self.replica.decide(self.housekeeping._decide_sweep)

    async def beat(self) -> None:
        await self.replica.decide(self.housekeeping._decide_beat)


@contextlib.asynccontextmanager
async def a_house(
    store: Store | None = None,
    *,
    broker_id: str = "b1",
    clock: FakeClock | None = None,
    ids: Ids | None = None,
    queue: int = 100,
    wait: float = 1800.0,
    single_use: bool = False,
    shown: timedelta = SHOWN,
    ask_broker: Callable[[Broker, Wish], Coroutine[Any, Any, Shot]] | None = None,
) -> AsyncIterator[TestHouse]:
    """Run a broker's use cases; several may share one store."""
    clock = clock or FakeClock()
    store = store or MemoryStore()
    ids = ids or SystemIds()
    commits = GroupCommit(store)
    replica = Replica(commits)
    broker = Broker(id=broker_id, url=f"https://{broker_id}.example:8445")
    liveness = Liveness(replica, clock, broker_id=broker_id, beat_seconds=BEAT_SECONDS)
    await replica.load()
    access = Access(replica, clock, ids, FastSigner())
    placing = Placing(replica, liveness, clock, ids, QueueLimits(queue, timedelta(seconds=wait)))
    sessions = Sessions(
        replica, liveness, placing, access, clock, token_life=timedelta(minutes=60), shown=shown
    )
    links = Links(
        Convergence(replica, clock, broker_id, 10.0, RETRIES), grace_seconds=GRACE_SECONDS
    )
    placer = asyncio.create_task(placing.run())
    house = TestHouse(
        broker=broker,
        clock=clock,
        store=store,
        commits=commits,
        replica=replica,
        liveness=liveness,
        access=access,
        placing=placing,
        sessions=sessions,
        verifier=Verifier(replica, access, single_use=single_use),
        resolver=Resolver(replica, sessions),
        servers=Servers(replica, liveness, placing),
        links=links,
        screenshots=Screenshots(replica, liveness, sessions, links, ask_broker or _nobody),
        housekeeping=Housekeeping(
            replica,
            liveness,
            placing,
            clock,
            broker,
            Retention(shown, silent_servers_seconds=1800),
        ),
        placer=placer,
        agents=[],
    )
    try:
        yield house
    finally:
        await links.close()
        for task in (placer, *house.agents):
            task.cancel()
        await asyncio.gather(placer, *house.agents, return_exceptions=True)
        await commits.close()


async def _nobody(broker: Broker, wish: Wish) -> Shot:
    return Refusal(f"nobody asks {broker.id}")


class PlayedAgent:
    """An agent that does what the test does, over a link without a wire."""

    def __init__(self, house: TestHouse, server_id: str, facts: Facts | None = None) -> None:
        self.house = house
        self.server_id = server_id
        self.facts = facts or some_facts(server_id)
        self.said: list[FromBroker] = []
        self.observed: dict[str, Observed] = {}
        self.news = asyncio.Event()
        client = house.replica.fleet.get(AgentClient, server_id)
        era = 0 if client is None else client.token_era
        self.session: AgentSession = house.links.new(server_id, self._take, era=era)
        self.converging: asyncio.Task[None] | None = None
        self.deaf: Exception | None = None
        """What sending to this agent raises."""

    async def _take(self, message: FromBroker) -> None:
        if self.deaf is not None:
            raise self.deaf
        self.said.append(message)
        self.news.set()

    async def connect(self, version: int = VERSION) -> PlayedAgent:
        observed = tuple(self.observed.values())
        hello = Hello(version=version, facts=self.facts, observed=observed)
        await self.house.links.greet(self.session, hello)
        self.converging = asyncio.create_task(self.session.converge())
        self.house.agents.append(self.converging)
        return self

    async def part(self) -> None:
        """Lose the link."""
        if self.converging is not None:
            self.converging.cancel()
            await asyncio.gather(self.converging, return_exceptions=True)
        self.house.links.part(self.session)

    @property
    def epoch(self) -> int:
        return next(one.epoch for one in self.said if isinstance(one, Welcome))

    async def desired(self, wanted: Callable[[dict[str, Desire]], bool]) -> dict[str, Desire]:
        """Wait until the newest desired set fulfils a condition."""
        async with asyncio.timeout(LIMIT_SECONDS):
            while True:
                self.news.clear()
                sets = [one for one in self.said if isinstance(one, Desired)]
                newest = {one.spec.session_id: one for one in sets[-1].desires} if sets else None
                if newest is not None and wanted(newest):
                    return newest
                await self.news.wait()

    async def wanted(self, session_id: str, intent: Intent = Intent.RUN) -> Desire:
        """Wait until this is wanted of a session."""
        newest = await self.desired(
            lambda one: session_id in one and one[session_id].intent is intent
        )
        return newest[session_id]

    async def report(self, desire: Desire, phase: Phase, **fields: Any) -> None:
        """Report one session, and all that was reported before."""
        spec = desire.spec
        report = Report(
            id=spec.session_id,
            server_id=self.server_id,
            generation=spec.generation,
            phase=phase,
            **fields,
        )
        self.observed[spec.session_id] = Observed(report=report)
        await self.tell()

    async def tell(self) -> None:
        observed = tuple(self.observed.values())
        await self.session.hear(Observation(epoch=self.epoch, serial=0, observed=observed))

    async def run(self, session_id: str) -> Desire:
        """Let a session be READY as soon as it is wanted."""
        desire = await self.wanted(session_id)
        await self.report(desire, Phase.RUNNING)
        return desire


def running(session_id: str, **fields: Any) -> Running:
    return Running(
        **{
            "session_id": session_id,
            "generation": 0,
            "owner": "root",
            "type": Type.VIRTUAL,
            **fields,
        }
    )


def run(scenario: Callable[[TestHouse], Coroutine[Any, Any, None]], **house: Any) -> None:
    """Play a scenario in a house of its own, to which `house` goes."""

    async def whole() -> None:
        async with asyncio.timeout(30), a_house(**house) as built:
            await scenario(built)

    asyncio.run(whole())


async def state(house: TestHouse, id: str) -> State:
    return house.sessions.view(await house.session(id)).seen.state


def stored(store: Store, kind: type[Record]) -> Sequence[Record]:
    """Return what a store holds of one kind, asked directly."""
    return [one.record for one in store.load()[1] if isinstance(one.record, kind)]
