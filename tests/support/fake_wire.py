"""Agent links without a network: ordered streams that a test may hold, cut, and play tricks on.

A `Line` is one connection. Its agent's end looks like a client connection of `websockets`, its
broker's end like a WebSocket of Starlette, as far as the product uses them. While a direction is
held, what was sent waits; then the test lets messages through, doubles them, or loses them. An
end may be deaf: the other is gone, and it doesn't know. What was on its way when the agent's end
closed may still arrive.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Self, TypeAlias

from starlette.websockets import WebSocketDisconnect
from websockets.exceptions import ConnectionClosedError

from deskfleet.wire.messages import Welcome, decode_from_broker
from support.virtual_time import VirtualLoop

Said: TypeAlias = deque[tuple[float, str]]
"""Messages and when they were sent."""


class Direction:
    """One way of a line."""

    def __init__(self) -> None:
        self.held = False
        self.swallowed = False
        """Nothing that is sent arrives any more, and nobody is told."""
        self.waiting: deque[str] = deque()
        self.closed = False
        self._inbox: asyncio.Queue[str | None] = asyncio.Queue()

    def send(self, text: str) -> None:
        if self.closed or self.swallowed:
            return
        if self.held:
            self.waiting.append(text)
        else:
            self._inbox.put_nowait(text)

    def deliver(self) -> None:
        """Let the oldest message through."""
        if self.waiting and not self.closed:
            self._inbox.put_nowait(self.waiting.popleft())

    def double(self) -> None:
        if self.waiting:
            self.inject(self.waiting[0])

    def lose(self) -> None:
        if self.waiting:
            self.waiting.popleft()

    def release(self) -> None:
        self.held = False
        while self.waiting and not self.closed:
            self.deliver()

    def inject(self, text: str) -> None:
        """Let a message arrive that was sent before."""
        if not self.closed:
            self._inbox.put_nowait(text)

    def close(self) -> None:
        """Tell the receiver that the line is cut; what has arrived is still read."""
        if not self.closed:
            self.closed = True
            self._inbox.put_nowait(None)

    async def receive(self) -> str | None:
        text = await self._inbox.get()
        if text is None:
            self._inbox.put_nowait(None)
        return text


class Line:
    def __init__(
        self,
        loop: VirtualLoop,
        server_id: str,
        broker: str,
        said: Said,
        told: Said,
    ) -> None:
        self.server_id = server_id
        self.broker = broker
        self.up = Direction()
        """From the agent to the broker."""
        self.down = Direction()
        self.epoch = 0
        """Of the link, once its broker has welcomed the agent."""
        self._said = said
        self._told = told
        self.agent_knows_end = False
        self.broker_knows_end = False
        self._loop = loop
        self._pings: list[asyncio.Future[float]] = []

    def say(self, text: str) -> None:
        """Send from the agent's end."""
        if '"type":"observation"' in text:
            self._said.append((self._loop.seconds, text))
        self.up.send(text)

    def tell(self, text: str) -> None:
        """Send from the broker's end."""
        if '"type":"desired"' in text:
            self._told.append((self._loop.seconds, text))
        elif '"type":"welcome"' in text:
            welcome = decode_from_broker(text)
            assert isinstance(welcome, Welcome)
            self.epoch = welcome.epoch
        self.down.send(text)

    @property
    def seconds(self) -> float:
        """Return the virtual time."""
        return self._loop.seconds

    @property
    def is_over(self) -> bool:
        return self.agent_knows_end and self.broker_knows_end

    @property
    def is_whole(self) -> bool:
        """Tell whether both ends believe in it, rightly."""
        return not (
            self.agent_knows_end
            or self.broker_knows_end
            or self.up.swallowed
            or self.down.swallowed
        )

    def cut(self, *, agent: bool = True, broker: bool = True) -> None:
        """End the line; an end that isn't told goes on talking to nobody."""
        if broker:
            self.broker_knows_end = True
            self.up.close()
        else:
            self.down.swallowed = True
        if agent:
            self.agent_knows_end = True
            self.down.close()
            return
        self.up.swallowed = True

    def ping(self) -> asyncio.Future[float]:
        """Ask the broker's end for a sign of life, which comes as soon as the line lets it."""
        pong: asyncio.Future[float] = self._loop.create_future()
        self._pings.append(pong)
        if not self.up.held and not self.down.held:
            self._pong()
        return pong

    def _pong(self) -> None:
        if self.is_whole:
            for pong in self._pings:
                if not pong.done():
                    pong.set_result(0.0)
            self._pings.clear()

    def hang_up(self) -> None:
        """Close the agent's end; the broker reads what is under way, and then sees it."""
        self.agent_knows_end = True
        self.down.close()
        if not self.up.held:
            self.flush()

    def flush(self) -> None:
        self.up.release()
        self.down.release()
        self._pong()
        if self.agent_knows_end:
            self.broker_knows_end = True
            self.up.close()


class AgentEnd:
    """What `websockets.connect` gives an agent."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._heard_at = line.seconds

    @property
    def silent_seconds(self) -> float:
        return self._line.seconds - self._heard_at

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._line.hang_up()

    async def recv(self) -> str:
        text = await self._line.down.receive()
        if text is None:
            raise ConnectionClosedError(None, None)
        self._heard_at = self._line.seconds
        return text

    async def send(self, content: bytes, *, text: bool) -> None:
        assert text
        if self._line.agent_knows_end:
            raise ConnectionClosedError(None, None)
        self._line.say(content.decode())

    async def ping(self) -> asyncio.Future[float]:
        if self._line.agent_knows_end:
            raise ConnectionClosedError(None, None)
        return self._line.ping()


class BrokerEnd:
    """A WebSocket as the broker's door sees it."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self.headers = {"authorization": f"Bearer {line.server_id}"}
        self.scope: dict[str, object] = {}

    async def accept(self) -> None: ...

    async def receive_text(self) -> str:
        text = await self._line.up.receive()
        if text is None:
            raise WebSocketDisconnect
        return text

    async def send_text(self, text: str) -> None:
        if self._line.broker_knows_end:
            raise WebSocketDisconnect
        self._line.tell(text)

    async def close(self, code: int = 1000) -> None:
        line = self._line
        line.broker_knows_end = True
        line.up.close()
        if not line.down.swallowed:
            line.agent_knows_end = True
            line.down.close()
