"""A TCP proxy that plays the accidents of networks, in a thread of the test.

It knows nothing of what passes through, so real TLS does. Each way has its own faults: `up` is
what the client sends, `down` what the server answers.

* `hold`: nothing passes, not even the news that the other side has hung up: a partition as TCP
  sees it. What was held goes on when it is healed.
* `swallow`: what arrives is lost without a word; TLS finds out when anything arrives again.
* `latency`, `bytes_per_second`, `slice_bytes`: slow, narrow, and in crumbs.
* `strand`: what is open is lost without a word and for good, and whoever comes anew gets through: a
  computer that has changed its network, or a NAT that forgot.
* `reset_all` and `cut_after` end connections with a reset; `refuse` resets whoever comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Self, TypeVar

T = TypeVar("T")

READ_BYTES = 64 * 1024


@dataclass(slots=True)
class Way:
    """One way through the proxy: what is done to all that takes it, from now on."""

    latency: float = 0.0
    bytes_per_second: float | None = None
    slice_bytes: tuple[int, int] | None = None
    """Least and most bytes of each piece that what passes is cut into."""
    swallow: bool = False
    flowing: asyncio.Event = field(default_factory=asyncio.Event)
    passed: int = 0
    """Bytes that came through."""


@dataclass(slots=True, eq=False)
class _Connection:
    client: socket.socket
    server: socket.socket
    bytes_left: int | None
    stranded: bool = False

    def reset(self) -> None:
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.close()


class FaultProxy:
    """Forwards from a free loopback port (`port`) to another one, until its context is left."""

    def __init__(self, behind: int, seed: int = 0) -> None:
        self._behind = behind
        self._random = random.Random(seed)
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._listening.setblocking(False)
        self.port: int = self._listening.getsockname()[1]
        self.url = f"https://localhost:{self.port}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault proxy")
        self._open: dict[_Connection, asyncio.Task[None]] = {}
        self._cuts: list[int] = []
        self._refusing = False
        self.accepted = 0
        self.up = Way()
        self.down = Way()

    def __enter__(self) -> Self:
        self._thread.start()
        self._serving = self._do(lambda: self._loop.create_task(self._serve()))
        self.heal()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    # What a test asks for

    def heal(self) -> None:
        """Let everything pass again, unharmed."""

        def healed() -> None:
            self._cuts.clear()
            self._refusing = False
            for way in (self.up, self.down):
                way.latency, way.bytes_per_second, way.slice_bytes = 0.0, None, None
                way.swallow = False
                way.flowing.set()

        self._do(healed)

    def hold(self, *ways: Way) -> None:
        """Let nothing pass on these ways (both where none is given)."""

        def held() -> None:
            for way in ways or (self.up, self.down):
                way.flowing.clear()

        self._do(held)

    def swallow(self, *ways: Way) -> None:
        for way in ways or (self.up, self.down):
            way.swallow = True

    def strand(self) -> None:
        """Lose all that is open, which neither side hears of."""

        def stranded() -> None:
            for connection in self._open:
                connection.stranded = True

        self._do(stranded)

    def refuse(self) -> None:
        """Reset what is open and whoever comes, until healed."""
        self._refusing = True
        self.reset_all()

    def reset_all(self) -> int:
        """Reset all connections; return how many there were."""

        def reset() -> int:
            for task in self._open.values():
                task.cancel()
            return len(self._open)

        return self._do(reset)

    def cut_after(self, *byte_counts: int) -> None:
        """Reset each of the next connections after so many bytes of both ways together."""
        self._do(lambda: self._cuts.extend(byte_counts))

    @property
    def connections(self) -> int:
        return len(self._open)

    # The work, in the loop of the thread

    def _do(self, call: Callable[[], T]) -> T:
        async def called() -> T:
            return call()

        return asyncio.run_coroutine_threadsafe(called(), self._loop).result(10)

    async def _serve(self) -> None:
        while True:
            # Whoever comes while nothing passes waits at the door, as its SYN would.
            await self.up.flowing.wait()
            client, _ = await self._loop.sock_accept(self._listening)
            self.accepted += 1
            server = socket.socket()
            server.setblocking(False)
            cut = self._cuts.pop(0) if self._cuts else None
            connection = _Connection(client, server, cut)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._refusing:
                connection.reset()
                continue
            task = self._loop.create_task(self._forward(connection))
            self._open[connection] = task
            task.add_done_callback(partial(self._close, connection))

    async def _forward(self, connection: _Connection) -> None:
        pumps: list[asyncio.Task[None]] = []
        try:
            await self._loop.sock_connect(connection.server, ("127.0.0.1", self._behind))
            pumps = [
                self._loop.create_task(self._pump(connection, connection.client, self.up)),
                self._loop.create_task(self._pump(connection, connection.server, self.down)),
            ]
            await asyncio.gather(*pumps)
        except (OSError, asyncio.CancelledError):
            # A half that is broken breaks the other one; it is also how a reset is asked for.
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            connection.reset()

    def _close(self, connection: _Connection, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            # Before it had begun.
            connection.reset()
        connection.client.close()
        connection.server.close()
        del self._open[connection]

    async def _pump(self, connection: _Connection, source: socket.socket, way: Way) -> None:
        sink = connection.server if source is connection.client else connection.client
        while True:
            await way.flowing.wait()
            data = await self._loop.sock_recv(source, READ_BYTES)
            # What arrived meanwhile is held, too.
            await way.flowing.wait()
            if connection.stranded:
                await asyncio.Event().wait()
            if not data:
                with contextlib.suppress(OSError):
                    sink.shutdown(socket.SHUT_WR)
                return
            for piece in self._pieces(data, way):
                await self._pass_on(connection, sink, piece, way)

    async def _pass_on(
        self, connection: _Connection, sink: socket.socket, piece: bytes, way: Way
    ) -> None:
        if way.latency:
            await asyncio.sleep(way.latency)
        if way.bytes_per_second:
            await asyncio.sleep(len(piece) / way.bytes_per_second)
        if connection.bytes_left is not None:
            piece = piece[: connection.bytes_left]
            connection.bytes_left -= len(piece)
        if not way.swallow:
            await self._loop.sock_sendall(sink, piece)
            way.passed += len(piece)
        if connection.bytes_left == 0:
            raise ConnectionResetError("cut")

    def _pieces(self, data: bytes, way: Way) -> list[bytes]:
        if way.slice_bytes is None:
            return [data]
        pieces, at = [], 0
        while at < len(data):
            size = self._random.randint(*way.slice_bytes)
            pieces.append(data[at : at + size])
            at += size
        return pieces

    async def _end(self) -> None:
        self._serving.cancel()
        tasks = [self._serving, *self._open.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listening.close()
