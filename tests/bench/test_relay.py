"""The way of a desktop's bytes to a browser, beside a plain copy from socket to socket."""

from __future__ import annotations

import base64
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.carrier import SESSION, carrier
from support.measuring import MB, ratio, spread, told

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]

BYTES = 256 * MB
ROUNDS = 9
LIMIT_SECONDS = 60.0
FLOOR = 0.05
"""TLS and frames cost; but a relay that falls below this share has begun to copy by hand."""


def test_a_desktop_reaches_its_browser_at_a_good_part_of_a_copy(tmp_path: Path) -> None:
    with desktop(tmp_path / "rfb") as path, ExitStack() as stack:
        through = stack.enter_context(carrier("entrance", path))
        beside = stack.enter_context(carrier("copy", path))
        cookie = admission(through)
        relayed, copied = [], []
        for _ in range(ROUNDS):
            with browser(through, cookie) as connection:
                relayed.append(rate(connection))
            with socket.create_connection(("127.0.0.1", beside["port"])) as connection:
                copied.append(rate(connection))
    share = ratio(relayed, copied)
    told("relay", relay_MB_per_s=spread(relayed), copy_MB_per_s=spread(copied), ratio=share)
    assert share >= FLOOR


@contextmanager
def desktop(path: Path) -> Iterator[Path]:
    """Serve a socket that sends to each who connects all that there is, and then ends."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        threading.Thread(target=send_to_all, args=(listener,), daemon=True).start()
        yield path
        # Wakes the thread, which sees that it is over.
        listener.shutdown(socket.SHUT_RDWR)


def send_to_all(listener: socket.socket) -> None:
    block = os.urandom(MB)
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            for _ in range(BYTES // MB):
                connection.sendall(block)


def admission(entrance: dict[str, Any]) -> str:
    """Swap the token for a cookie as the page does."""
    origin = f"https://localhost:{entrance['port']}"
    trust = ssl.create_default_context(cafile=entrance["certificate"])
    with httpx.Client(base_url=origin, verify=trust, trust_env=False) as http:
        answer = http.post(
            "/connect",
            json={"sessionId": SESSION, "authToken": entrance["token"]},
            headers={"Origin": origin},
        )
        assert answer.status_code == 204, answer.text
        return "; ".join(f"{name}={value}" for name, value in http.cookies.items())


@contextmanager
def browser(entrance: dict[str, Any], cookie: str) -> Iterator[ssl.SSLSocket]:
    """Open the WebSocket by hand: a library's client would cost more than the relay."""
    trust = ssl.create_default_context(cafile=entrance["certificate"])
    with (
        socket.create_connection(("127.0.0.1", entrance["port"])) as plain,
        trust.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=True) as secure,
    ):
        origin = f"https://localhost:{entrance['port']}"
        lines = [
            f"GET /rfb/{SESSION}?page=bench HTTP/1.1",
            f"Host: localhost:{entrance['port']}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Protocol: binary",
            f"Origin: {origin}",
            f"Cookie: {cookie}",
        ]
        secure.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        head = secure.recv(12)
        assert head == b"HTTP/1.1 101", head
        yield secure


def rate(connection: socket.socket) -> float:
    """Take in everything and return how many MB came in a second."""
    connection.settimeout(LIMIT_SECONDS)
    buffer = bytearray(MB)
    taken, began = 0, time.perf_counter()
    while taken < BYTES:
        size = connection.recv_into(buffer)
        assert size, f"it ended after {taken} bytes"
        taken += size
    return taken / MB / (time.perf_counter() - began)
