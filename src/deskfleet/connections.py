"""One connection of a stranger, on uvicorn's protocols: nothing that it waits for waits for ever.

Every stretch of a request has a limit in seconds, which what arrives meanwhile doesn't prolong:
its head, its body, the pause before the next one. Answers take what they take, but whoever doesn't
read them is hung up on. A WebSocket that was accepted is its application's to end, and pings find
out whether somebody is still there.
"""

from __future__ import annotations

import asyncio
import json
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from deskfleet.gate import SEAT, Seat

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from uvicorn._types import ASGISendEvent

MAX_HEAD_BYTES = 256 * 1024
"""Of all of a request but its body: head, trailers, what chunks say beyond their sizes. Counted in
whole reads, which may hold more than that."""
CHUNK_BYTES = 5
"""A digit and two ends of lines. So much comes with each chunk, and some clients send words, one a
chunk."""
HEAD_SECONDS = 10.0
BODY_SECONDS = 30.0
IDLE_SECONDS = 75.0
"""Longer than proxies and load balancers keep a connection in reserve, 60 by default: who hangs up
while the other one sends a request costs its client that request."""
STALLED_SECONDS = 30.0
"""For a peer to take what fits into no buffer any more."""
PIECE_BYTES = 32 * 1024
"""Of an answer, in the buffers of a connection: all of it would have one limit for being taken."""
_ONLY_TLS = (b"strict-transport-security", b"max-age=31536000")
"""For a year, browsers that have come once come by https alone."""


class _Stretch(Enum):
    """What a connection waits for."""

    FIRST = auto()
    HEAD = auto()
    BODY = auto()
    ANSWER = auto()
    LAST = auto()
    """An answer, and after it a refusal of what followed its request."""
    NEXT = auto()
    NOTHING = auto()


def _limit(stretch: _Stretch) -> float | None:
    """Return how many seconds a stretch may take, None where others see to that."""
    if stretch is _Stretch.NEXT:
        return IDLE_SECONDS
    if stretch is _Stretch.FIRST or stretch is _Stretch.HEAD:
        return HEAD_SECONDS
    return BODY_SECONDS if stretch is _Stretch.BODY else None


class Http(HttpToolsProtocol):
    """HTTP over one connection, until it becomes a WebSocket."""

    _stretch = _Stretch.FIRST
    _is_new = True
    """Whether the stretch has begun since its limit was set."""
    _timer: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _read_body_bytes = 0
    """Of the last read: bytes of bodies, of the one that began before it as well."""
    _refusal = ""
    """Of what followed a request, to be said after its answer."""
    _would_be_kept = False
    """Whether the connection goes on once a body begins that is waited for with `Expect`."""

    @property
    def _seat(self) -> Seat:
        return cast(Seat, self.app_state[SEAT])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self.transport.set_write_buffer_limits(high=PIECE_BYTES)
        if transport.get_extra_info("peercert"):
            # The handshake has asked for a certificate, and checked it.
            self._seat.vouch()
        self._set_limit()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        self._set_limit()
        self._seat.leave()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._stretch is _Stretch.LAST:
            return
        self._read_body_bytes = 0
        super().data_received(data)
        self._head_bytes += len(data) - self._read_body_bytes
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")
        if self._is_new:
            if self.transport.get_protocol() is not self:
                self._end()
            self._set_limit()

    def on_message_begin(self) -> None:
        self._begin(_Stretch.HEAD)
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._begin(_Stretch.BODY)
        if self.cycle is not None and not _names_this_machine(self.headers):
            self.cycle.default_headers = [*self.cycle.default_headers, _ONLY_TLS]
        if self.cycle is not None and self.expect_100_continue:
            # Who is answered first may keep the body: what came next would be taken for it.
            self._would_be_kept, self.cycle.keep_alive = self.cycle.keep_alive, False

    def on_chunk_header(self) -> None:
        self._read_body_bytes += CHUNK_BYTES

    def on_body(self, body: bytes) -> None:
        self._read_body_bytes += len(body)
        self._keep()
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._keep()
        super().on_message_complete()
        is_answered = self.cycle is not None and self.cycle.response_complete
        self._begin(_Stretch.NEXT if is_answered else _Stretch.ANSWER)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.cycle.response_complete or self.transport.is_closing():
            return
        # Of a request whose body is still on its way, the body's limit holds.
        if self._stretch is _Stretch.ANSWER:
            self._begin(_Stretch.NEXT)
            self._set_limit()
        elif self._stretch is _Stretch.LAST:
            self.send_400_response(self._refusal)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._resumed()

    def _end(self) -> None:
        """Wait for nothing more: the connection is lost, or a WebSocket."""
        self._begin(_Stretch.NOTHING)
        self._resumed()

    def _resumed(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _keep(self) -> None:
        if self._would_be_kept:
            self._would_be_kept, self.cycle.keep_alive = False, True

    def _begin(self, stretch: _Stretch) -> None:
        self._stretch, self._is_new = stretch, True

    def _set_limit(self) -> None:
        self._is_new = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        seconds = _limit(self._stretch)
        if seconds is not None and not self.transport.is_closing():
            late = self._refuse_late if self._stretch is _Stretch.BODY else self.transport.close
            self._timer = self.loop.call_later(seconds, late)

    def _refuse_late(self) -> None:
        self.send_400_response(f"The body did not arrive within {BODY_SECONDS:g} s.")

    def send_400_response(self, msg: str) -> None:
        """Say no as the doors do, and hang up.

        What came whole before has its answer first, and nothing is said in the middle of one.
        """
        in_body, cycle = self._stretch is _Stretch.BODY, self.cycle
        if not in_body and cycle is not None and not cycle.response_complete:
            self._refusal = msg
            self._begin(_Stretch.LAST)
            return
        if not (in_body and cycle is not None and (cycle.response_started or self.pipeline)):
            body = json.dumps({"error": msg}).encode()
            self.transport.write(
                b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body)
            )
        self.transport.close()


def _names_this_machine(headers: list[tuple[bytes, bytes]]) -> bool:
    """Say whether a request was sent to `localhost`.

    There, browsers would take our word for whatever else runs on the machine, on any port.
    """
    for name, value in headers:
        if name == b"host":
            return (b"." + value.lower().partition(b":")[0]).endswith(b".localhost")
    return False


class WebSocket(WebSocketsSansIOProtocol):
    """What a connection goes on as when it asks for a WebSocket."""

    _heard_at = 0.0

    def data_received(self, data: bytes) -> None:
        self._heard_at = self.loop.time()
        super().data_received(data)

    def keepalive_timeout(self) -> None:
        """Hang up where nothing has come for as long as a pong may take: it may stand in line."""
        left = self._heard_at + (self.ping_timeout or 0.0) - self.loop.time()
        if left > 0:
            self.pong_timer = self.loop.call_later(left, self.keepalive_timeout)
        else:
            super().keepalive_timeout()

    def connection_lost(self, exc: Exception | None) -> None:
        cast(Seat, self.app_state[SEAT]).leave()
        super().connection_lost(exc)

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and self.close_sent:
            # A refusal ends the handshake, too; uvicorn would log that the application never did.
            self.handshake_complete = True


def in_pieces(app: Any) -> ASGIApp:
    """Have the answers of an application sent piece by piece, each when there is space for it.

    What is slow, and goes on reading, would otherwise run into the limits for who doesn't.
    """

    async def sending(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_pieces(message: Message) -> None:
            body = message.get("body", b"")
            if len(body) <= PIECE_BYTES:
                await send(message)
                return
            for at in range(0, len(body), PIECE_BYTES):
                piece = body[at : at + PIECE_BYTES]
                await send({**message, "body": piece, "more_body": True})
            # The end, too, waits for space: nobody hangs up before.
            await send({**message, "body": b""})

        await app(scope, receive, send_in_pieces if scope["type"] == "http" else send)

    return sending
