"""What a listener bears from strangers: each connection ends, and none keeps others out.

Limits are made short, and every test waits for what it expects, not for the limit.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from deskfleet import connections, listener
from deskfleet.gate import Gate, vouch
from deskfleet.listener import bind, listening, port_of
from deskfleet.tls import server_context
from support.entrance import run, until, write_certificate

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
SHORT = 0.2
LONG = 30.0
"""No limit of a test that doesn't expect it; long enough for any machine."""


class App:
    """An application that does what strangers could make one do."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.cut = 0
        self.app = Starlette(
            routes=[
                Route("/", self.answer),
                Route("/known", self.known),
                Route("/slow", self.slow),
                Route("/large", self.large),
                Route("/read", self.read, methods=["POST"]),
                Route("/ignore", self.answer, methods=["POST"]),
                WebSocketRoute("/socket", self.socket),
                WebSocketRoute("/closed", self.closed),
            ]
        )

    async def answer(self, _request: Request) -> Response:
        return Response(b"ok")

    async def known(self, request: Request) -> Response:
        vouch(request.scope)
        return Response(b"ok")

    async def slow(self, _request: Request) -> Response:
        await self.go_on.wait()
        return Response(b"ok")

    async def large(self, _request: Request) -> Response:
        return Response(b"x" * 5_000_000)

    async def read(self, request: Request) -> Response:
        try:
            return Response(b"%d" % len(await request.body()))
        except ClientDisconnect:
            self.cut += 1
            return Response(status_code=499)

    async def closed(self, socket: WebSocket) -> None:
        await socket.send_denial_response(Response(b"no", status_code=403))

    async def socket(self, socket: WebSocket) -> None:
        vouch(socket.scope)
        await socket.accept()
        try:
            while True:
                await socket.send_text(await socket.receive_text())
        except WebSocketDisconnect:
            pass


class Door:
    def __init__(self, app: App, port: int, context: ssl.SSLContext, gate: Gate) -> None:
        self.app, self.port, self.context, self.gate = app, port, context, gate

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("localhost", self.port, ssl=self.context)

    async def say(self, *parts: bytes) -> bytes:
        """Send parts, and return all that comes until the door hangs up."""
        reader, writer = await self.connect()
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
            return await asyncio.wait_for(reader.read(), LONG)
        except ConnectionError:
            return b""
        finally:
            writer.transport.abort()

    async def emptied(self) -> None:
        await until(lambda: self.gate.taken == 0, "all seats to be given back")
        assert not self.gate.strangers


@pytest.fixture(autouse=True)
def only_wanted_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_SECONDS", "BODY_SECONDS", "IDLE_SECONDS", "STALLED_SECONDS"):
        monkeypatch.setattr(connections, name, LONG)
    monkeypatch.setattr(listener, "GOODBYE_SECONDS", SHORT)


@asynccontextmanager
async def opened(folder: Path, **limits: int) -> AsyncIterator[Door]:
    certificate = folder / "door.pem"
    write_certificate(certificate)
    app, gate = App(), Gate(**limits)
    context = server_context(certificate, certificate)
    with closing(bind("127.0.0.1", 0, "tests")) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, NARROW)
        async with listening(app.app, bound, context, gate=gate):
            trust = ssl.create_default_context(cafile=str(certificate))
            yield Door(app, port_of(bound), trust, gate)


def at(folder: Path, story: Callable[[Door], Awaitable[None]], **limits: int) -> None:
    async def scene() -> None:
        async with opened(folder, **limits) as door:
            await story(door)
            await door.emptied()

    run(scene())


HEAD = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc"
CHUNKED = b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"


@pytest.mark.parametrize("beginning", [HEAD, CHUNKED])
def test_a_body_has_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beginning: bytes
) -> None:
    monkeypatch.setattr(connections, "BODY_SECONDS", SHORT)

    async def story(door: Door) -> None:
        answer = await door.say(beginning % b"/read")
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.endswith(b'{"error": "The body did not arrive within 0.2 s."}')
        await until(lambda: door.app.cut == 1, "the application to be told")
        # Whether the application reads it or not.
        answer = await door.say(beginning % b"/ignore")
        assert answer.startswith(b"HTTP/1.1 200 ")

    at(tmp_path, story)


async def patience(writer: asyncio.StreamWriter, closed: asyncio.Task[bytes], drop: bytes) -> None:
    """Send drops until the door hangs up."""
    deadline = time.monotonic() + LONG / 2
    while not closed.done():
        assert time.monotonic() < deadline, "the door never hung up"
        writer.write(drop)
        await asyncio.wait([closed], timeout=SHORT / 4)


@pytest.mark.parametrize(
    ("limit", "first", "drop"),
    [
        ("HEAD_SECONDS", b"", b"\r\n"),
        ("HEAD_SECONDS", b"GET / HTTP/1.1\r\n", b"X: y\r\n"),
        ("HEAD_SECONDS", GET + b"GET", b"T"),
        ("BODY_SECONDS", CHUNKED % b"/read", b"1\r\nx\r\n"),
        ("BODY_SECONDS", CHUNKED % b"/ignore", b"1\r\nx\r\n"),
        ("BODY_SECONDS", CHUNKED % b"/ignore" + b"0\r\n", b"X: y\r\n"),
        ("IDLE_SECONDS", GET, b"\r\n"),
        ("IDLE_SECONDS", GET * 3, b"\r\n"),
    ],
)
def test_drops_prolong_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, first: bytes, drop: bytes
) -> None:
    monkeypatch.setattr(connections, limit, SHORT)

    async def story(door: Door) -> None:
        reader, writer = await door.connect()
        writer.write(first)
        closed = asyncio.create_task(reader.read())
        await patience(writer, closed, drop)
        await asyncio.gather(closed, return_exceptions=True)
        writer.transport.abort()

    at(tmp_path, story)


@pytest.mark.parametrize("path", [b"/", b"/large"])
def test_who_reads_no_answers_is_hung_up_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: bytes
) -> None:
    monkeypatch.setattr(connections, "STALLED_SECONDS", SHORT)
    monkeypatch.setattr(connections, "IDLE_SECONDS", SHORT)

    async def story(door: Door) -> None:
        def pipeline() -> ssl.SSLSocket:
            bare = socket.create_connection(("localhost", door.port))
            raw = door.context.wrap_socket(bare, server_hostname="localhost")
            raw.sendall(GET.replace(b"/", path, 1) * 100)
            return raw

        with await asyncio.to_thread(pipeline):
            await door.emptied()

    at(tmp_path, story)


UPGRADE = b"\r\n".join(
    [
        b"GET /socket HTTP/1.1",
        b"Host: x",
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==",
        b"\r\n",
    ]
)
HELLO_FRAME = b"\x81\x82\0\0\0\0hi"


def test_what_has_its_reason_to_last_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow answer, a WebSocket at rest, and a connection that is used again and again."""
    # What is used must be used in time, whatever else the machine does meanwhile.
    limit = 1.5
    for name in ("HEAD_SECONDS", "BODY_SECONDS", "IDLE_SECONDS", "STALLED_SECONDS"):
        monkeypatch.setattr(connections, name, limit)
    monkeypatch.setattr(listener, "HANDSHAKE_SECONDS", limit)

    async def story(door: Door) -> None:
        slow_reader, slow_writer = await door.connect()
        slow_writer.write(GET.replace(b"/", b"/slow", 1))
        used_reader, used_writer = await door.connect()
        async with connect(f"wss://localhost:{door.port}/socket", ssl=door.context) as socket:
            # All limits have passed once an idle connection is closed.
            idle, _writer = await door.connect()
            closed = asyncio.create_task(idle.read())
            while not closed.done():
                used_writer.write(GET)
                await used_reader.readuntil(b"ok")
                await asyncio.wait([closed], timeout=limit / 50)
            used_writer.write(UPGRADE)
            await used_reader.readuntil(b"\r\n\r\n")
            idle, _writer = await door.connect()
            await idle.read()
            await socket.send("still here")
            assert await socket.recv() == "still here"
        used_writer.write(HELLO_FRAME)
        assert await used_reader.readexactly(4) == b"\x81\x02hi"
        door.app.go_on.set()
        await asyncio.wait_for(slow_reader.readuntil(b"ok"), LONG)
        for writer in (slow_writer, used_writer):
            writer.transport.abort()

    at(tmp_path, story)


def test_a_connection_that_says_nothing_never_gets_to_tls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "HANDSHAKE_SECONDS", SHORT)

    async def story(door: Door) -> None:
        with socket.create_connection(("localhost", door.port)):
            await until(lambda: door.gate.taken == 1, "the seat")
            await door.emptied()
        with socket.create_connection(("localhost", door.port)) as bare:
            bare.sendall(GET)
            await door.emptied()

    at(tmp_path, story)


def test_trailers_have_an_end(tmp_path: Path) -> None:
    async def story(door: Door) -> None:
        trailer = b"X-Padding: " + b"x" * 60_000 + b"\r\n"
        started = time.monotonic()
        for path in (b"/read", b"/ignore"):
            await door.say(CHUNKED % path, b"0\r\n", *[trailer] * 200)
        assert time.monotonic() - started < LONG / 2
        # Of a body itself any number of bytes may come: that is the application's to limit.
        body = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        said = await door.say(CHUNKED % b"/read", *[body] * 20, b"0\r\n\r\n" + CLOSING)
        assert b"%d" % (3 + 20 * 0x10000) in said

    at(tmp_path, story)


CLOSING = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def test_the_end_of_a_body_is_not_the_next_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has its answer before its body is sent goes on with the connection, as clients do."""
    monkeypatch.setattr(connections, "MAX_HEAD_BYTES", 1000)

    async def story(door: Door) -> None:
        # One record of TLS, so one read: a body that ends, and a head that begins.
        head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 9009\r\n\r\nabc"
        for path in (b"/read", b"/ignore"):
            said = await door.say(head % path, b"x" * 9006 + CLOSING)
            assert said.count(b"200 OK") == 2
            said = await door.say(head % path, b"x" * 9006 + CLOSING[:-2], b"X: %b" % (b"y" * 2000))
            assert said.endswith(b'{"error": "The head of the request is too large."}')

    at(tmp_path, story)


async def is_let_in(door: Door) -> bool:
    try:
        return b"200 OK" in await door.say(CLOSING)
    except OSError:
        return False


def test_strangers_of_one_address_have_some_seats_alone(tmp_path: Path) -> None:
    async def story(door: Door) -> None:
        held = [await door.connect() for _ in range(2)]
        assert not await is_let_in(door)
        # Who is known doesn't count.
        for reader, writer in held:
            writer.write(GET.replace(b"/", b"/known", 1))
            await reader.readuntil(b"ok")
        assert await is_let_in(door)
        url = f"wss://localhost:{door.port}/socket"
        async with connect(url, ssl=door.context), connect(url, ssl=door.context):
            assert door.gate.taken == 4
            strangers = [await door.connect() for _ in range(2)]
            assert not await is_let_in(door)
        for _, writer in (*held, *strangers):
            writer.transport.abort()
        await door.emptied()
        assert await is_let_in(door)

    at(tmp_path, story, most=10, most_strangers=2)


def test_who_shows_a_certificate_is_no_stranger(tmp_path: Path) -> None:
    async def main() -> None:
        write_certificate(both := tmp_path / "both.pem")
        context, trust = server_context(both, both), ssl.create_default_context(cafile=str(both))
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(both)
        trust.load_cert_chain(both)
        gate = Gate(most=10)
        with closing(bind("127.0.0.1", 0, "tests")) as bound:
            async with listening(App().app, bound, context, gate=gate):
                port = port_of(bound)
                reader, writer = await asyncio.open_connection("localhost", port, ssl=trust)
                writer.write(GET)
                await reader.readuntil(b"ok")
                assert (gate.taken, gate.strangers.total()) == (1, 0)
                writer.transport.abort()

    run(main())


@pytest.mark.parametrize(
    ("host", "told"),
    [
        (b"broker.example.org:8443", True),
        (b"notlocalhost", True),
        (b"localhost", False),
        (b"LocalHost:8443", False),
        (b"a.localhost:8443", False),
    ],
)
def test_browsers_are_told_to_come_by_https_alone(
    tmp_path: Path, host: bytes, *, told: bool
) -> None:
    async def story(door: Door) -> None:
        asked = b"GET %s HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n"
        for path in (b"/", b"/missing"):
            said = (await door.say(asked % path)).lower()
            assert (b"\r\nstrict-transport-security: max-age=31536000\r\n" in said) == told

    at(tmp_path, story)


def test_a_refused_websocket_is_no_error_of_ours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(door: Door) -> None:
        url = f"wss://localhost:{door.port}/closed"
        with pytest.raises(InvalidStatus) as refused:
            await connect(url, ssl=door.context, proxy=None)
        answer = refused.value.response
        assert (answer.status_code, answer.body) == (403, b"no")

    with caplog.at_level(logging.WARNING):
        at(tmp_path, story)
    assert caplog.records == []


def test_there_are_so_many_seats_and_no_more(tmp_path: Path) -> None:
    async def story(door: Door) -> None:
        held = []
        for _ in range(4):
            reader, writer = await door.connect()
            writer.write(GET.replace(b"/", b"/known", 1))
            await reader.readuntil(b"ok")
            held.append(writer)
        assert not await is_let_in(door)
        held.pop().transport.abort()
        await until(lambda: door.gate.taken == 3, "a seat to be given back")
        assert await is_let_in(door)
        for writer in held:
            writer.transport.abort()

    at(tmp_path, story, most=4)


NARROW = 64 * 1024
"""What little a kernel keeps of an answer for a client that is slow."""


@pytest.mark.parametrize("last", [b"", b"Connection: close\r\n"])
def test_an_answer_takes_what_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: bytes
) -> None:
    """No limit of the whole is shorter than what a slow client needs that goes on reading."""
    limit, size = 1.0, 5_000_000
    for name in ("IDLE_SECONDS", "STALLED_SECONDS"):
        monkeypatch.setattr(connections, name, limit)
    monkeypatch.setattr(listener, "GOODBYE_SECONDS", limit)

    async def story(door: Door) -> None:
        def read_slowly() -> tuple[int, float]:
            bare = socket.socket()
            bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, NARROW)
            bare.connect(("127.0.0.1", door.port))
            began, got = time.monotonic(), 0
            with door.context.wrap_socket(bare, server_hostname="localhost") as client:
                client.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n%b\r\n" % last)
                while got < size and (part := client.recv(NARROW)):
                    got += len(part)
                    time.sleep(len(part) / size * 4 * limit)
            return got, time.monotonic() - began

        got, took = await asyncio.to_thread(read_slowly)
        assert got >= size
        assert took > 3 * limit

    at(tmp_path, story)


def test_who_sends_is_there_also_where_its_pong_is_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a slow line a pong stands in line behind a long message."""
    # Both ends are in this program: what keeps it from running for half a second must not count.
    limit = 0.8
    monkeypatch.setattr(listener, "PING_SECONDS", limit)

    async def story(door: Door) -> None:
        reader, writer = await door.connect()
        writer.write(UPGRADE)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"\x81\xc0\0\0\0\0")
        for _ in range(64):
            writer.write(b"x")
            await asyncio.sleep(limit / 16)
        said = await asyncio.wait_for(reader.readuntil(b"\x81\x40" + b"x" * 64), LONG)
        assert said.count(b"\x89\x04") == 1
        # Whoever says nothing any more is found out all the same.
        await asyncio.wait_for(reader.read(), LONG)
        writer.transport.abort()

    at(tmp_path, story)


def test_a_body_may_come_in_crumbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_HEAD_BYTES", 1000)

    async def story(door: Door) -> None:
        crumb = b"1\r\nx\r\n"
        said = await door.say(CHUNKED % b"/read", *[crumb * 100] * 20, b"0\r\n\r\n" + CLOSING)
        assert b"\r\n\r\n2003HTTP" in said
        # What else a chunk may bring is counted, and nothing is gained by crumbs.
        extended = b"1;x=%b\r\nx\r\n" % (b"y" * 100)
        said = await door.say(CHUNKED % b"/read", crumb * 1000, *[extended] * 20)
        assert said.endswith(b'{"error": "The head of the request is too large."}')

    at(tmp_path, story)


SLOW = GET.replace(b"/", b"/slow", 1)


@pytest.mark.parametrize(
    "wrong", [b"no HTTP\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"x" * 2000, b"GET  HTTP/1.1\r\n\r\n"]
)
def test_no_refusal_stands_in_for_the_answer_to_another_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: bytes
) -> None:
    """Who was told no to something that is done would ask for it once more."""
    monkeypatch.setattr(connections, "MAX_HEAD_BYTES", 1000)

    async def story(door: Door) -> None:
        reader, writer = await door.connect()
        writer.write(SLOW + wrong)
        await asyncio.sleep(0)
        writer.write(b"and more")
        answer = asyncio.create_task(reader.read())
        await asyncio.wait([answer], timeout=SHORT)
        door.app.go_on.set()
        said = await asyncio.wait_for(answer, LONG)
        assert [part[:3] for part in said.split(b"HTTP/1.1 ")] == [b"", b"200", b"400"]
        writer.transport.abort()

    at(tmp_path, story)


def test_a_late_body_interrupts_no_other_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "BODY_SECONDS", SHORT)

    async def story(door: Door) -> None:
        # The first answer has not come by then.
        assert await door.say(SLOW + HEAD % b"/read") == b""
        door.app.go_on.set()

    at(tmp_path, story)


def test_who_asks_before_it_sends_a_body_may_keep_it(tmp_path: Path) -> None:
    """Told no, some clients don't send it, and use the connection again if they may."""
    asking = b"POST %s HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n"

    async def story(door: Door) -> None:
        said = await door.say(asking % b"/ignore")
        assert said.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nconnection: close\r\n" in said
        # Who has begun to send it, or was told to, has used the connection up for nothing else.
        for path in (b"/ignore", b"/read"):
            said = await door.say(asking % path + b"abc", b"abcabc" + CLOSING)
            assert said.count(b"HTTP/1.1 200 ") == 2

    at(tmp_path, story)
