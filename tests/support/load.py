"""A load client in a process of its own: keep-alive TLS connections, the same requests again and
again.

Reads one JSON object on standard input and prints one on standard output. Its requests are bytes
that were made before, and its answers are told apart by their length alone, so that it costs less
than any server it is pointed at.
"""

from __future__ import annotations

import asyncio
import resource
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import cast

import msgspec
import uvloop

TLS_BUFFER_BYTES = 256 * 1024


class Load(msgspec.Struct, frozen=True):
    """What to send, to whom, for how long."""

    port: int
    ca_file: str
    request: bytes
    more_requests: tuple[bytes, ...] = ()
    """To be sent in turn with the first one, by all connections together."""
    connections: int = 16
    warm_up_seconds: float = 0.3
    seconds: float = 2.0


class Result(msgspec.Struct, frozen=True):
    answers: int
    """All, those of the warm-up too."""
    answers_per_second: float
    client_seconds_per_answer: float
    """The client's own processor time, to see that it is not what is measured."""


def request_bytes(path: str, body: bytes, token: str | None = None) -> bytes:
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{authorization}"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def run_load(load: Load) -> Result:
    """Run a load in a process of its own; fail with what it says where anything went wrong."""
    done = subprocess.run(
        [sys.executable, __file__],
        input=msgspec.json.encode(load),
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    return msgspec.json.decode(done.stdout, type=Result)


@dataclass(slots=True)
class _Count:
    answers: int = 0


class _Connection(asyncio.Protocol):
    """Sends the next request as soon as an answer is whole."""

    def __init__(
        self, requests: Iterator[bytes], count: _Count, failed: asyncio.Future[None]
    ) -> None:
        self._requests, self._count, self._failed = requests, count, failed
        self._expected = 0
        self._got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        if not self._got and not data.startswith(b"HTTP/1.1 200 "):
            self._fail(f"another answer: {data[:300]!r}")
            return
        self._got = self._got + data if self._got else data
        if not self._expected:
            self._expected = _length(self._got)
        if not self._expected or len(self._got) < self._expected:
            return
        if len(self._got) > self._expected:
            self._fail("an answer of another length")
            return
        self._got, self._expected = b"", 0
        self._count.answers += 1
        self._transport.write(next(self._requests))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the connection was lost: {exc}")

    def _fail(self, why: str) -> None:
        if not self._failed.done():
            self._failed.set_exception(AssertionError(why))


def _length(answer: bytes) -> int:
    """Return how long an answer is by its own head, 0 while that is not whole."""
    head, end, _ = answer.partition(b"\r\n\r\n")
    if not end:
        return 0
    _, _, rest = head.lower().partition(b"\r\ncontent-length:")
    return len(head) + len(end) + int(rest.partition(b"\r\n")[0])


async def _apply(load: Load) -> Result:
    loop = asyncio.get_running_loop()
    context = ssl.create_default_context(cafile=load.ca_file)
    failed: asyncio.Future[None] = loop.create_future()
    count = _Count()
    requests = cycle((load.request, *load.more_requests))
    transports = [
        (
            await loop.create_connection(
                lambda: _Connection(requests, count, failed),
                "127.0.0.1",
                load.port,
                ssl=context,
                server_hostname="localhost",
            )
        )[0]
        for _ in range(load.connections)
    ]
    await _unless(failed, load.warm_up_seconds)
    began, spent, answered = loop.time(), _processor(), count.answers
    await _unless(failed, load.seconds)
    answers = count.answers - answered
    result = Result(
        answers=count.answers,
        answers_per_second=answers / (loop.time() - began),
        client_seconds_per_answer=(_processor() - spent) / max(1, answers),
    )
    failed.cancel()
    for transport in transports:
        transport.abort()
    return result


async def _unless(failed: asyncio.Future[None], seconds: float) -> None:
    done, _ = await asyncio.wait([failed], timeout=seconds)
    if done:
        failed.result()


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    load = msgspec.json.decode(sys.stdin.buffer.read(), type=Load)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(_apply(load))
    sys.stdout.buffer.write(msgspec.json.encode(result))


if __name__ == "__main__":
    main()
