"""Holds one link to a broker, for ever: connects, speaks, and connects again.

How long it waits in between is a matter of `Backoff`, unless a broker that is crowded has said when
to come again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Coroutine
from typing import Any, Protocol, cast

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

from deskfleet.agent.backoff import Backoff, Trouble
from deskfleet.agent.broker_door import BrokerDoor
from deskfleet.agent.identity import Identity
from deskfleet.agent.loop import Loop
from deskfleet.core.pictures import MOST_BYTES
from deskfleet.core.records import Facts
from deskfleet.core.server import differ_in_load_only
from deskfleet.errors import DeskfleetError, Forbidden, Missing, ProtocolError, Unavailable
from deskfleet.ports import Clock, SessionDriver
from deskfleet.wire.bounds import cut
from deskfleet.wire.link import AgentLink
from deskfleet.wire.messages import (
    MAX_SET_BYTES,
    Desired,
    Message,
    Refusal,
    Screenshot,
    TakeScreenshot,
    Welcome,
    decode_from_broker,
    encode,
    in_parts,
)

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 5.0
"""An attempt that fails sooner had an answer of some kind."""
LONGEST_TOLD_SECONDS = 600.0
"""However long a broker says to wait."""
CLOSE_SECONDS = 1.0
PING_BEATS = 1.5
"""How often a broker has to show that it is there; it is given up after two of these."""
COALESCE_SECONDS = 0.005
"""Changes within this time go in one observation."""
COALESCE_COSTS = 20
"""So many times of what it takes to look at all sessions passes before the next look: of a large
set, each change alone would cost more than all the rest."""
FULL_SET_SECONDS = 60.0
SCREENSHOTS_AT_ONCE = 4
REFUSED = {401, 403}


async def first_end(*steps: Coroutine[Any, Any, None]) -> None:
    """Run all steps until one ends or fails; end the others and pass its failure on."""
    tasks = [asyncio.create_task(step) for step in steps]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Socket(ClientConnection):
    """Knows for how long nothing has come, not even a part of a message."""

    _heard_at = 0.0

    @property
    def silent_seconds(self) -> float:
        return self.loop.time() - self._heard_at

    def data_received(self, data: bytes) -> None:
        self._heard_at = self.loop.time()
        super().data_received(data)


class FactsReader(Protocol):
    def __call__(self) -> Awaitable[Facts]: ...


class Uplink:
    def __init__(
        self,
        door: BrokerDoor,
        identity: Identity,
        loop: Loop,
        driver: SessionDriver,
        read_facts: FactsReader,
        clock: Clock,
        changed: asyncio.Event,
        update_seconds: float = 0.0,
    ) -> None:
        """Facts are read every `update_seconds`, and with each beat where that is 0."""
        self._door = door
        self._identity = identity
        self._loop = loop
        self._driver = driver
        self._read_facts = read_facts
        self._clock = clock
        self._changed = changed
        self._update_seconds = update_seconds
        self._pictures = asyncio.Semaphore(SCREENSHOTS_AT_ONCE)
        self._shots: set[asyncio.Task[None]] = set()
        self._told: Facts | None = None
        """What the broker was told last."""
        self.linked = asyncio.Event()
        """Set while a broker listens."""

    async def run(self) -> None:
        """Keep a link up, until cancelled."""
        backoff = Backoff(self._clock.monotonic())
        while True:
            began, trouble = self._clock.monotonic(), Trouble.ABSENT
            try:
                told = await self._hold()
            except (DeskfleetError, OSError, WebSocketException, TimeoutError) as error:
                log.warning("link.lost", extra={"url": self._door.url, "reason": str(error)})
                told = None
                if _is_refusal(error) or self._clock.monotonic() - began > ANSWER_SECONDS:
                    trouble = Trouble.BUSY
            except Exception:
                # An agent without a link is of no use; whatever it was, the next link may hold.
                log.exception("link.failed", extra={"url": self._door.url})
                told = None
            now = self._clock.monotonic()
            if self.linked.is_set():
                self.linked.clear()
                trouble = Trouble.ABSENT
                backoff.linked(began, now)
            if told is None:
                self._door.turn()
                told = backoff.wait(trouble, now)
            await asyncio.sleep(told)

    async def _hold(self) -> float:
        """Hold one link. Returns only where it is refused for now: in how many seconds to come."""
        token = await self._door.token(self._identity)
        try:
            return await self._hold_with(token)
        except InvalidStatus as error:
            if error.response.status_code in REFUSED:
                self._door.drop_token()
            raise

    async def _hold_with(self, token: str) -> float:
        url = self._door.url.replace("https:", "wss:", 1) + "/agent/link"
        async with connect(
            url,
            ssl=self._door.context,
            additional_headers={"Authorization": f"Bearer {token}"},
            compression=None,
            max_size=MAX_SET_BYTES,
            open_timeout=CONNECT_SECONDS,
            close_timeout=CLOSE_SECONDS,
            ping_interval=None,
            proxy=None,
            create_connection=_Socket,
        ) as opened:
            socket = cast(_Socket, opened)
            link = AgentLink(self._clock.monotonic())
            refusal = await self._greet(socket, link)
            if refusal is not None:
                log.warning("link.put-off", extra={"url": self._door.url, "reason": refusal.reason})
                return min(max(0.0, refusal.retry_after_seconds), LONGEST_TOLD_SECONDS)
            log.info("link.opened", extra={"url": self._door.url, "epoch": link.epoch})
            self.linked.set()
            try:
                await first_end(
                    self._listen(socket, link),
                    self._report(socket, link),
                    self._beat(socket, link),
                    self._watch(socket, link),
                )
            finally:
                # Nobody waits for them any more, and the next link wants their turns.
                for shot in self._shots:
                    shot.cancel()
        raise Unavailable("the link has ended")

    async def _greet(self, socket: ClientConnection, link: AgentLink) -> Refusal | None:
        facts = self._told = await self._read_facts()
        self._changed.clear()
        await _send(socket, link.hello(facts, self._loop.observed()))
        async with asyncio.timeout(CONNECT_SECONDS):
            answer = await self._receive(socket, link)
        if isinstance(answer, Refusal):
            return answer
        if not isinstance(answer, Welcome):
            raise ProtocolError("the broker did not answer the hello")
        return None

    async def _receive(self, socket: ClientConnection, link: AgentLink) -> Message | None:
        return link.receive(decode_from_broker(await socket.recv()), self._clock.monotonic())

    async def _listen(self, socket: ClientConnection, link: AgentLink) -> None:
        while True:
            message = await self._receive(socket, link)
            if isinstance(message, Desired):
                self._loop.want(message.desires)
            elif isinstance(message, TakeScreenshot):
                shot = asyncio.create_task(self._shoot(socket, message))
                self._shots.add(shot)
                shot.add_done_callback(self._shots.discard)

    async def _report(self, socket: ClientConnection, link: AgentLink) -> None:
        last, sent_at = None, 0.0
        while True:
            now = self._clock.monotonic()
            observed = self._loop.observed()
            text = None
            if observed != last or now - sent_at >= FULL_SET_SECONDS:
                last, sent_at = observed, now
                text = encode(link.observation(observed, now))
            pause = max(COALESCE_SECONDS, COALESCE_COSTS * (self._clock.monotonic() - now))
            if text is not None:
                await socket.send(text, text=True)
            # What changes nothing, a full desired set for example, must not put off the full set.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(sent_at + FULL_SET_SECONDS - now):
                    await self._changed.wait()
            await asyncio.sleep(pause)
            self._changed.clear()

    async def _beat(self, socket: ClientConnection, link: AgentLink) -> None:
        """Send a heartbeat as often as the broker asked for, or instead of one what has changed.

        The load, which always has, is sent when it is due, and all else at once.
        """
        every = self._update_seconds or link.heartbeat_seconds
        due = self._clock.monotonic() + every
        while True:
            # A beat that comes a little before the facts would come for nothing.
            wait = min(link.heartbeat_seconds, due - self._clock.monotonic())
            await asyncio.sleep(max(0.0, wait))
            facts, is_due = await self._read_facts(), self._clock.monotonic() >= due
            if is_due or not self._update_seconds:
                due = self._clock.monotonic() + every
                is_due = True
            if self._is_news(facts, even_load=is_due):
                self._told = facts
                await _send(socket, link.facts(facts, self._clock.monotonic()))
                continue
            heartbeat = link.heartbeat(self._clock.monotonic())
            if heartbeat is not None:
                await _send(socket, heartbeat)

    def _is_news(self, facts: Facts, *, even_load: bool) -> bool:
        if facts == self._told:
            return False
        return even_load or (self._told is not None and not differ_in_load_only(self._told, facts))

    async def _watch(self, socket: _Socket, link: AgentLink) -> None:
        """See that the broker is there, at the pace that it set itself.

        Whatever comes tells so: a pong may stand in line behind a long set.
        """
        limit = PING_BEATS * link.heartbeat_seconds
        while True:
            try:
                async with asyncio.timeout(limit):
                    await (await socket.ping())
            except TimeoutError as error:
                if socket.silent_seconds > limit:
                    raise Unavailable("the broker is silent") from error
            else:
                await asyncio.sleep(limit)

    async def _shoot(self, socket: ClientConnection, wish: TakeScreenshot) -> None:
        """Take a screenshot and send it, unless nobody waits for it any more."""
        until = self._clock.monotonic() + wish.seconds
        try:
            # Until they are sent, pictures take memory.
            async with self._pictures:
                self._check_awaited(until)
                for message in in_parts(await self._screenshot(wish)):
                    self._check_awaited(until)
                    await _send(socket, message)
        except (Unavailable, WebSocketException) as error:
            facts = {"session_id": wish.session_id, "reason": str(error)}
            log.info("screenshot.not-sent", extra=facts)

    def _check_awaited(self, until: float) -> None:
        if self._clock.monotonic() >= until:
            raise Unavailable("nobody waits for it any more")

    async def _screenshot(self, wish: TakeScreenshot) -> Screenshot:
        try:
            pictures = await self._driver.screenshot(
                wish.session_id,
                max_width=wish.max_width,
                max_height=wish.max_height,
                format=wish.format,
            )
        except Missing as error:
            return Screenshot(request=wish.request, missing=True, reason=cut(error.message))
        except (DeskfleetError, OSError) as error:
            return Screenshot(request=wish.request, reason=cut(str(error)))
        size = sum(len(picture.content) for picture in pictures)
        if size > MOST_BYTES:
            reason = f"the screenshot has {size:,} bytes; {MOST_BYTES:,} may be sent"
            return Screenshot(request=wish.request, reason=reason)
        return Screenshot(request=wish.request, pictures=tuple(pictures))


async def _send(socket: ClientConnection, message: Message) -> None:
    await socket.send(encode(message), text=True)


def _is_refusal(error: Exception) -> bool:
    """Tell whether a broker has answered, and lets this agent in no more than others now."""
    unreached = isinstance(error, Unavailable) and error.__cause__ is not None
    return isinstance(error, InvalidStatus | Forbidden | Unavailable) and not unreached
