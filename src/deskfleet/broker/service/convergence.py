"""Keeps each linked server on its way to what is wanted of it.

An `AgentSession` is the broker's side of one link: it writes what the agent says, under the
fence of the link's epoch, and sends the whole desired set whenever the fleet has changed for
that server, and every minute in any case. `Links` knows the links that this broker holds.

A server that is lost is only marked as such after a grace, so that an agent's restart is not
seen by clients; a link that another broker has taken over ends by itself, and so does one whose
agent is not to be let in any more.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from deskfleet.broker.service.admission import Admission
from deskfleet.broker.service.observing import (
    Fence,
    desires,
    kept_id,
    open_link,
    take_facts,
    take_observed,
)
from deskfleet.broker.service.replica import Entries, Replica
from deskfleet.core.change import Change, ChangeSet, Put, Tombstone
from deskfleet.core.records import AgentClient, Link, Record, Report, Session
from deskfleet.core.session import name_on_server, replace
from deskfleet.errors import (
    Forbidden,
    Missing,
    ProtocolError,
    Stale,
    StoreFailed,
    Unavailable,
)
from deskfleet.ports import Clock, Picture
from deskfleet.wire.link import BrokerLink
from deskfleet.wire.messages import (
    VERSION,
    Desire,
    FactsChanged,
    FromAgent,
    FromBroker,
    Hello,
    Observation,
    Observed,
    Screenshot,
    TakeScreenshot,
    Welcome,
)

log = logging.getLogger(__name__)

FULL_SET_SECONDS = 60.0
LOAD_SECONDS = 30.0
SCREENSHOT_SECONDS = 10.0
OTHER_VERSION_SECONDS = 60.0
"""When an agent of another version may ask again, more or less: it waits for an update."""
CROWDED = "too many agents come at once"

Send = Callable[[FromBroker], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Convergence:
    """What all links of a broker share."""

    replica: Replica
    clock: Clock
    broker_id: str
    heartbeat_seconds: float
    retries: int


class AgentSession:
    def __init__(self, house: Convergence, server_id: str, send: Send, era: int) -> None:
        self.server_id = server_id
        self.era = era
        """Of the token that it was let in with: it ends with that, also when it may come again."""
        self.link = BrokerLink(house.clock.monotonic(), house.heartbeat_seconds)
        self._house = house
        self._fleet = house.replica.fleet
        self._send = send
        self._observed: tuple[Observed, ...] = ()
        self._turned_away = 0
        """Sessions of the last observed set that were not adopted."""
        self._has_told = False
        self._sent: dict[str, Desire] | None = None
        self._sent_at = house.clock.monotonic()
        self._dirty = asyncio.Event()
        self._load_written_at = house.clock.monotonic()
        self._screenshots: dict[int, asyncio.Future[Screenshot]] = {}
        self._requests = 0
        self.ended = asyncio.Event()

    async def open(self, hello: Hello) -> Welcome:
        """Take over the server's link; the welcome is still to be sent."""
        fleet, house = self._fleet, self._house
        facts = replace(hello.facts, id=self.server_id)

        def decision() -> tuple[int, ChangeSet]:
            now = house.clock.now()
            changes = open_link(fleet, self.server_id, house.broker_id, now)
            changes += take_facts(fleet, facts, even_load=True)
            changes += self._consequences(hello.observed)
            link = changes[0]
            assert isinstance(link, Put)
            assert isinstance(link.record, Link)
            return link.record.epoch, tuple(changes)

        epoch = await house.replica.decide(decision)
        self._observed = hello.observed
        self._tell_of_turned_away()
        self._dirty.set()
        log.info("link.opened", extra={"server_id": self.server_id, "epoch": epoch})
        return self.link.welcome(epoch)

    async def say(self, message: FromBroker) -> None:
        await self._send(message)

    async def hear(self, message: FromAgent) -> None:
        """Act on a message of an open link. Raises `Stale` when the link was superseded."""
        match message:
            case Observation():
                self._observed = message.observed
                await self._write(lambda: self._consequences(message.observed))
                self._tell_of_turned_away()
                # What it observed may ask for a stop that no record would bring about.
                self._dirty.set()
            case FactsChanged():
                facts = replace(message.facts, id=self.server_id)
                even_load = self._is_load_due()
                await self._write(lambda: take_facts(self._fleet, facts, even_load=even_load))
            case Screenshot():
                waiting = self._screenshots.pop(message.request, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)

    async def _write(self, decision: Callable[[], list[Change]]) -> None:
        fence = Fence(self.server_id, self._house.broker_id, self.link.epoch)

        def fenced() -> tuple[None, ChangeSet]:
            check = fence.check(self._fleet)
            changes = decision()
            return None, (check, *changes) if changes else ()

        await self._house.replica.decide(fenced)

    def _consequences(self, observed: Sequence[Observed]) -> list[Change]:
        taken = take_observed(
            self._fleet,
            self.server_id,
            observed,
            self._house.clock.now(),
            retries=self._house.retries,
        )
        self._turned_away = taken.turned_away
        return taken.changes

    def _tell_of_turned_away(self) -> None:
        """Log, once for a link, that a server names more sessions than are adopted."""
        if self._turned_away and not self._has_told:
            self._has_told = True
            facts = {"server_id": self.server_id, "sessions": self._turned_away}
            log.warning("sessions.not-adopted", extra=facts)

    def _is_load_due(self) -> bool:
        now = self._house.clock.monotonic()
        if now - self._load_written_at < LOAD_SECONDS:
            return False
        self._load_written_at = now
        return True

    # The desired set

    def concerns(self, session_ids: set[str]) -> bool:
        """Tell whether any of these sessions is, or was, on this server."""
        seen = (kept_id(self._fleet, self.server_id, one.report) for one in self._observed)
        return any(id in session_ids for id in (*seen, *(self._sent or ())))

    def look_again(self) -> None:
        self._dirty.set()

    async def converge(self) -> None:
        """Send the desired set whenever it has changed, until the link ends."""
        clock = self._house.clock
        while True:
            # Counted from the last set that was sent: what changes nothing must not put it off.
            due = self._sent_at + FULL_SET_SECONDS - clock.monotonic()
            try:
                async with asyncio.timeout(due):
                    await self._dirty.wait()
            except TimeoutError:
                self._sent = None
                await self._house.replica.catch_up()
            self._dirty.clear()
            wanted = desires(self._fleet, self.server_id, self._observed)
            if wanted != self._sent:
                self._sent, self._sent_at = wanted, clock.monotonic()
                await self._send(self.link.desired(self._fleet.revision, tuple(wanted.values())))

    # Screenshots

    async def take_screenshot(
        self, session_id: str, *, max_width: int, max_height: int, format: str
    ) -> tuple[Picture, ...]:
        session = self._fleet.session(session_id)
        self._requests += 1
        number = self._requests
        waiting = self._screenshots[number] = asyncio.get_running_loop().create_future()
        try:
            await self._send(
                TakeScreenshot(
                    request=number,
                    session_id=session_id if session is None else name_on_server(session),
                    max_width=max_width,
                    max_height=max_height,
                    format=format,
                )
            )
            async with asyncio.timeout(SCREENSHOT_SECONDS):
                answer: Screenshot = await waiting
        except TimeoutError as error:
            raise Unavailable("the server did not send a screenshot in time") from error
        finally:
            self._screenshots.pop(number, None)
        if answer.missing:
            raise Missing(answer.reason)
        if answer.reason is not None:
            raise Unavailable(answer.reason)
        return answer.pictures

    def awaits(self, message: FromAgent) -> bool:
        """Tell whether a message is the answer to what this broker has asked."""
        return isinstance(message, Screenshot) and message.request in self._screenshots

    def end(self) -> None:
        self.link.end()
        self.ended.set()
        for waiting in self._screenshots.values():
            if not waiting.done():
                waiting.set_exception(Unavailable("the server was lost meanwhile"))


class Links:
    """The agent links that this broker holds."""

    def __init__(self, house: Convergence, *, grace_seconds: float) -> None:
        self._house = house
        self._grace_seconds = grace_seconds
        self._admission = Admission(house.clock.monotonic)
        self._held: dict[str, AgentSession] = {}
        self._partings: set[asyncio.Task[None]] = set()
        self._closed = False
        house.replica.subscribe(self._spread)

    def of(self, server_id: str) -> AgentSession | None:
        return self._held.get(server_id)

    def new(self, server_id: str, send: Send, *, era: int) -> AgentSession:
        return AgentSession(self._house, server_id, send, era)

    async def greet(self, agent: AgentSession, message: FromAgent) -> None:
        """Open a link with its first message.

        Raises `Stale` when it was superseded meanwhile, `Forbidden` when its agent was revoked, and
        `Unavailable` when it was told to come again.
        """
        hello = agent.link.receive(message, self._house.clock.monotonic())
        if not isinstance(hello, Hello):
            raise ProtocolError("a link begins with a hello")
        if hello.version != VERSION:
            reason = f"this broker speaks version {VERSION} of the link protocol"
            wait = OTHER_VERSION_SECONDS * random.uniform(0.5, 1.5)  # noqa: S311 - no secret
            await agent.say(agent.link.refuse(reason, wait))
            raise ProtocolError(f"{reason}, the agent version {hello.version}")
        wait = self._admission.knock(agent.server_id)
        if wait > 0:
            log.info("link.put-off", extra={"server_id": agent.server_id, "seconds": wait})
            await agent.say(agent.link.refuse(CROWDED, wait))
            raise Unavailable(CROWDED)
        welcome = await agent.open(hello)
        # Held before it is welcomed: what fails from here on is a link that is lost.
        self._hold(agent)
        if self._is_revoked(agent):
            # The news came before the link was held: nobody would end it.
            raise Forbidden("the agent has been revoked")
        await agent.say(welcome)

    def _hold(self, agent: AgentSession) -> None:
        old = self._held.get(agent.server_id)
        if old is not None:
            if old.link.epoch > agent.link.epoch:
                raise Stale(f"the link of {agent.server_id} has been superseded")
            old.end()
        self._held[agent.server_id] = agent

    def part(self, agent: AgentSession) -> None:
        """Let go of a link that has ended; after the grace the server counts as lost.

        Silence has been waited for already, and whose agent was revoked isn't waited for at all.
        """
        agent.end()
        if self._held.get(agent.server_id) is not agent:
            return
        del self._held[agent.server_id]
        if self._closed:
            # This broker's record goes with it, which tells as much as a lost link.
            return
        log.info("link.lost", extra={"server_id": agent.server_id, "epoch": agent.link.epoch})
        silent = agent.link.is_silent(self._house.clock.monotonic())
        at_once = silent or self._is_revoked(agent)
        grace = 0.0 if at_once else self._grace_seconds
        parting = asyncio.create_task(self._mark_lost(agent.server_id, agent.link.epoch, grace))
        self._partings.add(parting)
        parting.add_done_callback(self._partings.discard)

    def _is_revoked(self, agent: AgentSession) -> bool:
        client = self._house.replica.fleet.get(AgentClient, agent.server_id)
        return client is not None and (not client.active or client.token_era != agent.era)

    async def close(self) -> None:
        self._closed = True
        for agent in list(self._held.values()):
            agent.end()
        for parting in self._partings:
            parting.cancel()
        await asyncio.gather(*self._partings, return_exceptions=True)

    async def _mark_lost(self, server_id: str, epoch: int, grace: float) -> None:
        fleet = self._house.replica.fleet

        def decision() -> tuple[None, ChangeSet]:
            link = fleet.link(server_id)
            if link is None or link.epoch != epoch or not link.up:
                return None, ()
            lost = replace(link, up=False)
            return None, (Put(lost, fleet.revision_of(Link, server_id)),)

        wait = grace
        while True:
            await asyncio.sleep(wait)
            wait = self._grace_seconds
            try:
                await self._house.replica.decide(decision)
            except Unavailable:
                # Until it is written, the server counts as reachable.
                log.warning("link.loss-not-written", extra={"server_id": server_id})
                continue
            except StoreFailed:
                # This broker ends, which tells as much as a lost link.
                pass
            return

    def _spread(self, entries: Entries) -> None:
        """Wake the links that a change concerns; end those that another broker has taken."""
        gone = set()
        for entry in entries:
            if not isinstance(entry, Tombstone):
                self._tell(entry.record)
            elif entry.kind == "session":
                gone.add(entry.id)
        if gone:
            for held in self._held.values():
                if held.concerns(gone):
                    held.look_again()

    def _tell(self, record: Record) -> None:
        if isinstance(record, Session):
            for server_id in {record.server_id, *record.tried[-1:]}:
                self._wake(server_id)
        elif isinstance(record, Report):
            self._wake(record.server_id)
        elif isinstance(record, Link):
            held = self._held.get(record.id)
            if held is not None and record.epoch > held.link.epoch:
                held.end()
        elif isinstance(record, AgentClient):
            held = self._held.get(record.id)
            # The feed gives the newest version alone: it may be active again by now.
            if held is not None and self._is_revoked(held):
                log.warning("link.revoked", extra={"server_id": record.id})
                held.end()

    def _wake(self, server_id: str | None) -> None:
        held = None if server_id is None else self._held.get(server_id)
        if held is not None:
            held.look_again()
