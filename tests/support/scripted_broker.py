"""A broker that is not deskfleet's: it answers what a test wrote down, and keeps what it was asked.

Plain HTTP on loopback. It gives any client the access token `TOKEN`, unless it is told otherwise.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "access-token-of-the-scripted-broker"
TOKEN_PATH = "/oauth2/token"


@dataclass(frozen=True)
class Answer:
    body: Any = field(default_factory=dict)
    """Text goes out as it is, everything else as JSON."""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    never: bool = False
    """The request is taken and not answered until the broker ends."""


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    authorization: str
    body: Any


class ScriptedBroker:
    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: list[Asked] = []
        self.answers: dict[str, Answer] = {}
        self.ended = threading.Event()
        self.granted()

    def granted(self) -> None:
        """Forget the script, and give tokens to everybody."""
        self.asked.clear()
        self.answers = {TOKEN_PATH: Answer({"access_token": TOKEN, "expires_in": 60})}

    @property
    def calls(self) -> list[Asked]:
        """Return what was asked of the API itself."""
        return [each for each in self.asked if not each.path.startswith(TOKEN_PATH)]

    def answer(self, path: str) -> Answer:
        return self.answers.get(path.partition("?")[0], Answer({"error": "not scripted"}, 404))


@contextmanager
def scripted_broker() -> Iterator[ScriptedBroker]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            authorization = self.headers.get("Authorization", "")
            body = _json(content)
            broker.asked.append(Asked(self.command, self.path, authorization, body))
            answer = broker.answer(self.path)
            if answer.never:
                broker.ended.wait(60)
                return
            self._send(answer)

        do_GET = do_POST = do_PUT = answer  # noqa: N815 (http.server's)

        def _send(self, answer: Answer) -> None:
            text = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *arguments: object) -> None:
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    broker = ScriptedBroker(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield broker
    finally:
        broker.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content.decode()
