"""A loopback server that speaks as EC2's instance metadata service does, or misbehaves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

IDENTITY = (
    b'{"accountId": "123456789012", "architecture": "x86_64", "availabilityZone": "us-west-2b",'
    b' "billingProducts": null, "imageId": "ami-12345678987654321", "instanceId": "i-123456789",'
    b' "instanceType": "g3s.xlarge", "privateIp": "192.0.2.7", "region": "us-west-2"}'
)
TOKEN = "AQAEAtesttoken=="


class MetadataServer(ThreadingHTTPServer):
    """What it answers is set by the test; `held` keeps answers back until it is set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Requests)
        self.token_status = 200
        self.token = TOKEN.encode()
        self.document = IDENTITY
        self.held = threading.Event()
        self.held.set()
        self.dripping = False
        self.stopped = threading.Event()
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that hang up are part of the tests."""


class _Requests(BaseHTTPRequestHandler):
    server: MetadataServer

    def do_PUT(self) -> None:
        server = self.server
        lives = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        server.asked.append(f"PUT {self.path}")
        good = self.path == "/latest/api/token" and lives.isdigit()
        self._answer(server.token_status if good else 400, server.token)

    def do_GET(self) -> None:
        server = self.server
        server.asked.append(f"GET {self.path}")
        good = self.path == "/latest/dynamic/instance-identity/document"
        allowed = self.headers.get("X-aws-ec2-metadata-token") == server.token.decode("latin-1")
        self._answer((200 if good else 404) if allowed else 401, server.document)

    def _answer(self, status: int, content: bytes) -> None:
        server = self.server
        server.held.wait(30)
        if server.dripping:
            # A byte now and then, so that no single read ever waits for long.
            for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 10_000:
                self.wfile.write(bytes([byte]))
                if server.stopped.wait(0.05):
                    return
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def metadata_server() -> Iterator[MetadataServer]:
    server = MetadataServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.held.set()
        server.stopped.set()
        server.shutdown()
        thread.join(10)
        server.server_close()
