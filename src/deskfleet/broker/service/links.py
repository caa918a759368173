"""Knows the agent links that this broker holds, and who may open one.

A server that is lost is only marked as such after a grace, so that an agent's restart is not
seen by clients; a link that another broker has taken over ends by itself, and so does one whose
agent is not to be let in any more.
"""

from __future__ import annotations

import asyncio
import logging
import random

from deskfleet.broker.service.admission import Admission
from deskfleet.broker.service.convergence import AgentSession, Convergence, Send
from deskfleet.broker.service.replica import Entries
from deskfleet.core.change import ChangeSet, Put, Stored
from deskfleet.core.records import AgentClient, Link, Record, Report, Session
from deskfleet.core.session import replace
from deskfleet.errors import Forbidden, ProtocolError, Stale, StoreFailed, Unavailable
from deskfleet.wire.messages import VERSION, FromAgent, Hello

log = logging.getLogger(__name__)

OTHER_VERSION_SECONDS = 60.0
"""When an agent of another version may ask again, more or less: it waits for an update."""
BUSY_SECONDS = 3.0
"""When an agent may ask again, more or less, where the store was too busy for it."""
CROWDED = "too many agents come at once"


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
        try:
            welcome = await agent.open(hello)
        except Unavailable as error:
            # An agent that is cut off without a word comes again at once.
            wait = BUSY_SECONDS * random.uniform(0.5, 1.5)  # noqa: S311
            await agent.say(agent.link.refuse(error.message, wait))
            raise
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
            # This broker says that it ends, or is silent, which tells as much as a lost link.
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
        for entry in entries:
            if isinstance(entry, Stored):
                self._tell(entry.record)
            elif isinstance(entry.dropped, Session):
                self._tell(entry.dropped)

    def _tell(self, record: Record) -> None:
        if isinstance(record, Session):
            # It may still run where it was tried.
            for server_id in {record.server_id, *record.tried}:
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
