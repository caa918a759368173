"""A server of a test's own: HTTP over TLS on loopback, vouched for by a private authority."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Protocol, TypeVar

from deskfleet.certificates import ensure_authority, ensure_server_certificate, machine_names
from deskfleet.system import SystemClock
from deskfleet.tls import server_context

NAME = "login.example"
"""What the server's certificate calls it, too; no resolver knows it."""


@dataclass(frozen=True)
class Asked:
    method: str
    url: str
    headers: Message
    body: bytes


@dataclass(frozen=True)
class Answer:
    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class Service(Protocol):
    def answer(self, asked: Asked) -> Answer: ...


S = TypeVar("S", bound=Service)


@contextmanager
def tls_server(folder: Path, make: Callable[[str], S]) -> Iterator[S]:
    """Run a service that is made with its address, `https://localhost:PORT`.

    The folder's `ca.pem` is the authority that vouches for it, and for all others of this folder.
    """
    clock = SystemClock()
    authority = ensure_authority(folder, clock)
    names = machine_names(extra=[NAME])
    certificate, key = ensure_server_certificate(authority, folder, "server", clock, names)
    http = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    address = f"https://localhost:{http.server_address[1]}"
    service = make(address)

    class Answering(BaseHTTPRequestHandler):
        timeout = 10

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked = Asked(self.command, address + self.path, self.headers, body)
            answer = service.answer(asked)
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(answer.body)))
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_POST = answer  # noqa: N815 (http.server's)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    http.RequestHandlerClass = Answering
    http.socket = server_context(certificate, key).wrap_socket(
        http.socket, server_side=True, do_handshake_on_connect=False
    )
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield service
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
