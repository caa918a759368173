"""One TLS listener: an ASGI application on a socket, inside somebody else's event loop.

The socket is bound before anything else is started, so that a taken port is found out first.
Signals belong to the program, not to a listener.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any

import uvicorn

from deskfleet.connections import IDLE_SECONDS, Http, WebSocket, in_pieces
from deskfleet.errors import SetupFailed
from deskfleet.gate import MOST_CONNECTIONS, SEAT, Gate, Seat
from deskfleet.machine import here
from deskfleet.observe import seldom

log = logging.getLogger(__name__)

BACKLOG = 2048
GRACE_SECONDS = 3
"""For requests that run when a listener ends; sockets that stay open don't hold it up longer."""
MAX_WEBSOCKET_BYTES = 4 * 1024 * 1024
PING_SECONDS = 20.0
"""How often it is seen whether somebody is still at a WebSocket, and how long nothing may come."""
HANDSHAKE_SECONDS = 10.0
GOODBYE_SECONDS = 5.0
"""For a peer to hang up its side of TLS, and to take what is still to be sent."""
EXHAUSTED_SECONDS = 1.0


def bind(host: str, port: int, what: str) -> socket.socket:
    """Take a port, 0 for any free one. Raises `SetupFailed` with one sentence that names it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        here.claim_address(bound)
        bound.bind((host, port))
        # Listening at once: two programs may bind the same port, but only one can listen.
        bound.listen(BACKLOG)
        bound.setblocking(False)
    except OverflowError as error:
        bound.close()
        raise SetupFailed(f"port {port} for {what} is not a port: 0 to 65535 are") from error
    except (TypeError, UnicodeError) as error:
        bound.close()
        raise SetupFailed(f"port {port} for {what} can't be had: {host!r} is no host") from error
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise SetupFailed(
                f"port {port} for {what} is taken by another program; choose another one"
            ) from error
        raise SetupFailed(
            f"port {port} for {what} can't be had on {host}: {error.strerror}"
        ) from error
    return bound


def port_of(bound: socket.socket) -> int:
    port: int = bound.getsockname()[1]
    return port


class _Server(uvicorn.Server):
    """Accepts as uvicorn does, but lets in only who has a seat, and holds TLS to limits."""

    def __init__(self, config: uvicorn.Config, gate: Gate) -> None:
        super().__init__(config)
        self.servers = []
        self._gate = gate
        self._accepting: set[asyncio.Task[None]] = set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        for bound in sockets or ():
            self._begin(self._accept(bound))
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        await super().shutdown(sockets)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._accepting.add(task)
        task.add_done_callback(self._accepting.discard)

    async def _accept(self, bound: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(bound)
            except ConnectionError:
                continue  # who came has gone already
            except OSError as error:
                # Out of files or memory: those who wait are let in when there are some again.
                log.warning("listener.exhausted", extra={"reason": error.strerror, **seldom("")})
                await asyncio.sleep(EXHAUSTED_SECONDS)
                continue
            seat = self._gate.enter(address[0])
            if seat is None:
                log.warning(
                    "connection.refused", extra={"address": address[0], **seldom(address[0])}
                )
                connection.close()
            else:
                self._begin(self._greet(connection, seat))

    async def _greet(self, connection: socket.socket, seat: Seat) -> None:
        """Hand a connection to a protocol once TLS stands."""

        def protocol() -> Http:
            return Http(config=self.config, server_state=self.server_state, app_state={SEAT: seat})

        is_open = False
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                protocol,
                connection,
                ssl=self.config.ssl,
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=GOODBYE_SECONDS,
            )
            is_open = True
        except OSError:
            pass  # gone, silent, or no TLS: strangers try all of that
        finally:
            if not is_open:
                seat.leave()


def new_gate(files_each: int = 1) -> Gate:
    """Make a gate for as many connections as this program has room for, and no more than it bears.

    `files_each` says how many files each takes; a quarter of all is left for others.
    """
    return Gate(min(MOST_CONNECTIONS, here.most_files() * 3 // 4 // files_each))


@contextlib.asynccontextmanager
async def listening(
    app: Any,
    bound: socket.socket,
    context: ssl.SSLContext,
    *,
    max_message_bytes: int = MAX_WEBSOCKET_BYTES,
    gate: Gate | None = None,
) -> AsyncIterator[None]:
    """Serve `app` over TLS on a bound socket for as long as the context is entered.

    Nothing that a client says of its own address is believed, and WebSockets are bounded. Who has
    no seat at the gate is hung up on; several listeners may share one.
    """
    config = uvicorn.Config(
        in_pieces(app),
        access_log=False,
        log_config=None,
        log_level="warning",
        proxy_headers=False,
        lifespan="off",
        server_header=False,
        http=Http,
        ws=WebSocket,
        ws_max_size=max_message_bytes,
        ws_per_message_deflate=False,
        ws_ping_interval=PING_SECONDS,
        ws_ping_timeout=PING_SECONDS,
        timeout_keep_alive=int(IDLE_SECONDS),
        timeout_graceful_shutdown=GRACE_SECONDS,
        ssl_context_factory=lambda _config, _default: context,
    )
    server = _Server(config, gate or new_gate())
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    try:
        while not server.started:
            if serving.done():
                serving.result()
                raise SetupFailed("a listener ended before it had begun")
            await asyncio.sleep(0.001)
        yield
    finally:
        server.should_exit = True
        await _end(server, serving)


async def _end(server: uvicorn.Server, serving: asyncio.Task[None]) -> None:
    """Wait for what is being answered, but not for idle clients to hang up their side of TLS."""
    while not serving.done():
        if not server.server_state.tasks:
            server.force_exit = True
        await asyncio.wait([serving], timeout=0.02)
    serving.result()
