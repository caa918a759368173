"""Keeps each linked server on its way to what is wanted of it.

An `AgentSession` is the broker's side of one link: it writes what the agent says, under the
fence of the link's epoch, and sends the whole desired set whenever the fleet has changed for
that server, and every minute in any case. A store that is busy delays what is written, the newest
of it, and ends no link.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from deskfleet.broker.service.camera import Camera
from deskfleet.broker.service.observing import (
    Fence,
    desires,
    open_link,
    take_facts,
    take_observed,
)
from deskfleet.broker.service.replica import Replica
from deskfleet.core.change import Change, ChangeSet, Put
from deskfleet.core.records import Link
from deskfleet.core.session import replace
from deskfleet.errors import Unavailable
from deskfleet.ports import Clock
from deskfleet.wire.link import BrokerLink
from deskfleet.wire.messages import (
    Desire,
    FactsChanged,
    FromAgent,
    FromBroker,
    Hello,
    Observation,
    Observed,
    PicturePart,
    Screenshot,
    Welcome,
)

log = logging.getLogger(__name__)

FULL_SET_SECONDS = 60.0
LOAD_SECONDS = 30.0
AGAIN_SECONDS = 1.0
"""When what an agent said is written again, more or less, where the store was too busy."""

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
        self._unwritten: dict[type, FromAgent] = {}
        """The newest of what the agent said, of each kind."""
        self._news = asyncio.Event()
        self.written = asyncio.Event()
        """Set while nothing waits to be written."""
        self.written.set()
        self.camera = Camera(send)
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

    def take(self, message: FromAgent) -> None:
        """Take in a message of an open link; `write` acts on it, or on a newer one of its kind."""
        if isinstance(message, PicturePart | Screenshot):
            self.camera.hear(message)
        elif isinstance(message, Observation | FactsChanged):
            self._unwritten[type(message)] = message
            self.written.clear()
            self._news.set()

    async def write(self) -> None:
        """Act on what the agent says, until the link ends.

        A store that is busy ends no link: the agent would only come again, and say it all anew.
        """
        while True:
            await self._news.wait()
            self._news.clear()
            while self._unwritten:
                kind = next(iter(self._unwritten))
                message = self._unwritten.pop(kind)
                try:
                    await self.hear(message)
                except Unavailable as error:
                    self._unwritten.setdefault(kind, message)
                    about = {"server_id": self.server_id, "reason": error.message}
                    log.warning("link.not-written", extra=about)
                    await asyncio.sleep(random.uniform(0.5, 1.5) * AGAIN_SECONDS)  # noqa: S311
            self.written.set()

    async def hear(self, message: FromAgent) -> None:
        """Act on a message of an open link.

        Raises `Stale` when the link was superseded, and `Unavailable` when the store is too busy.
        """
        match message:
            case Observation():
                self._observed = message.observed
                await self._write(lambda: self._consequences(message.observed))
                self._tell_of_turned_away()
                # What it observed may ask for a stop that no record would bring about.
                self._dirty.set()
            case FactsChanged():
                facts = replace(message.facts, id=self.server_id)
                now = self._house.clock.monotonic()
                even_load = now - self._load_written_at >= LOAD_SECONDS
                await self._write(lambda: take_facts(self._fleet, facts, even_load=even_load))
                if even_load:
                    self._load_written_at = now
            case PicturePart() | Screenshot():
                self.camera.hear(message)

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

    # The desired set

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
                # What can't be read now is with the next set, or as soon as it is known here.
                with contextlib.suppress(Unavailable):
                    await self._house.replica.catch_up()
            self._dirty.clear()
            wanted = desires(self._fleet, self.server_id, self._observed)
            if wanted != self._sent:
                self._sent, self._sent_at = wanted, clock.monotonic()
                await self._send(self.link.desired(self._fleet.revision, tuple(wanted.values())))

    # The end

    def end(self) -> None:
        self.link.end()
        self.ended.set()
        self.camera.end()
