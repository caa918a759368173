"""A server that answers every request with the same bytes, over the product's own listener.

What is left when all work is taken out of an answer: the measure of those that do work. Reads one
JSON object on standard input, prints its port, and serves until standard input ends.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deskfleet.listener import bind, listening, port_of
from deskfleet.tls import server_context


class Constant(msgspec.Struct, frozen=True):
    path: str
    body: bytes
    certificate: str
    key: str


@contextmanager
def constant_server(constant: Constant) -> Iterator[tuple[int, int]]:
    """Yield the port and the pid of such a server."""
    with subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(msgspec.json.encode(constant) + b"\n")
        server.stdin.flush()
        yield int(server.stdout.readline()), server.pid
        server.stdin.close()
        assert server.wait(20) == 0


async def _serve(constant: Constant) -> None:
    async def answer(_request: Request) -> Response:
        return Response(constant.body, media_type="application/json")

    app = Starlette(routes=[Route(constant.path, answer, methods=["POST"])])
    context = server_context(Path(constant.certificate), Path(constant.key))
    with bind("127.0.0.1", 0, "the constant") as bound:
        async with listening(app, bound, context):
            print(port_of(bound), flush=True)
            await asyncio.to_thread(sys.stdin.buffer.read)


def main() -> None:
    constant = msgspec.json.decode(sys.stdin.buffer.readline(), type=Constant)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(constant))


if __name__ == "__main__":
    main()
