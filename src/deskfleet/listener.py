"""One TLS listener: an ASGI application on a socket, inside somebody else's event loop.

The socket is bound before anything else is started, so that a taken port is found out first.
Signals belong to the program, not to a listener.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from deskfleet.errors import SetupFailed
from deskfleet.machine import here

BACKLOG = 2048
GRACE_SECONDS = 3
"""For requests that run when a listener ends; sockets that stay open don't hold it up longer."""
MAX_WEBSOCKET_BYTES = 4 * 1024 * 1024
MAX_HEAD_BYTES = 256 * 1024
"""Of a request, before its body; counted in whole reads, which may hold more than the head."""
HEAD_SECONDS = 10.0
HANDSHAKE_SECONDS = 10.0
GOODBYE_SECONDS = 5.0
"""For a peer to hang up its side of TLS, and to take what is still to be sent."""


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


class _Http(HttpToolsProtocol):
    """HTTP from strangers: the head of a request has limits, in bytes and in seconds."""

    _head_bytes = 0
    _head_limit: asyncio.TimerHandle | None = None
    """Set while a head is awaited."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._await_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head_limit is None or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self.send_400_response("The head of the request is too large.")

    def _await_head(self) -> None:
        self._stop_waiting()
        self._head_bytes = 0
        self._head_limit = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._head_limit is not None:
            self._head_limit.cancel()
            self._head_limit = None


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen as uvicorn does, with limits for TLS, for which it has no settings."""
        config, loop = self.config, asyncio.get_running_loop()

        def connection() -> asyncio.Protocol:
            protocol: asyncio.Protocol = _Http(
                config=config, server_state=self.server_state, app_state=self.lifespan.state
            )
            return protocol

        self.servers = [
            await loop.create_server(
                connection,
                sock=one,
                ssl=config.ssl,
                backlog=config.backlog,
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=GOODBYE_SECONDS,
            )
            for one in sockets or ()
        ]
        self.started = True


@contextlib.asynccontextmanager
async def listening(
    app: Any,
    bound: socket.socket,
    context: ssl.SSLContext,
    *,
    max_message_bytes: int = MAX_WEBSOCKET_BYTES,
) -> AsyncIterator[None]:
    """Serve `app` over TLS on a bound socket for as long as the context is entered.

    Nothing that a client says of its own address is believed, and WebSockets are bounded.
    """
    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        log_level="warning",
        proxy_headers=False,
        lifespan="off",
        server_header=False,
        http=_Http,
        ws="websockets-sansio",
        ws_max_size=max_message_bytes,
        ws_per_message_deflate=False,
        ws_ping_interval=20.0,
        ws_ping_timeout=20.0,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=GRACE_SECONDS,
        ssl_context_factory=lambda _config, _default: context,
    )
    server = _Server(config)
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
