"""A program that carries bytes from a UNIX socket to whoever connects, in one of two ways.

`entrance`: as the product does, through its entrance, over TLS and a WebSocket. `copy`: by the
plainest loop between two sockets, which is what the entrance is measured by. Prints one JSON
object of what a client needs, and serves until standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deskfleet.agent.desktop.desktops import Desktop
from deskfleet.core.permissions import OWNER_ONLY
from support.entrance import entrance, run

SESSION = "5f2b5a1e-9f4e-4c52-8a35-5d1f0a2b7c11"
OWNER = "alice"
COPY_BYTES = 128 * 1024


@contextmanager
def carrier(how: str, desktop: Path) -> Iterator[dict[str, Any]]:
    """Run the program beside a desktop's socket and yield what it says of itself."""
    command = [sys.executable, "-m", "support.carrier", how, str(desktop)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        yield json.loads(program.stdout.readline())
        program.stdin.close()
        assert program.wait(20) == 0


async def _enter(desktop: Path) -> None:
    shown = Desktop(
        session_id=SESSION,
        owner=OWNER,
        socket=desktop,
        max_clients=None,
        name="a desktop",
        permissions=OWNER_ONLY,
    )
    async with entrance(desktop.parent, shown) as at:
        token = at.verifier.token(SESSION, OWNER)
        _say(port=at.port, certificate=str(at.certificate), token=token)
        await asyncio.to_thread(sys.stdin.buffer.read)


def _copy(desktop: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_copy_for_all, args=(listener, desktop), daemon=True).start()
        _say(port=listener.getsockname()[1])
        sys.stdin.buffer.read()


def _copy_for_all(listener: socket.socket, desktop: Path) -> None:
    buffer = memoryview(bytearray(COPY_BYTES))
    while True:
        client, _ = listener.accept()
        with client, socket.socket(socket.AF_UNIX) as source:
            source.connect(str(desktop))
            while size := source.recv_into(buffer):
                client.sendall(buffer[:size])


def _say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def main(how: str, desktop: Path) -> None:
    if how == "entrance":
        run(_enter(desktop))
    else:
        _copy(desktop)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
