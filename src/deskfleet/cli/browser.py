"""Opens a secret link in a browser without showing it to the other users of this machine.

A browser's arguments can be read by everybody in the process list. So the browser is sent to a
one-time address on the loopback interface, which redirects it to the link. That address is in
the process list, too: on Linux only a connection of the same user is answered, and everywhere
only the first one.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
import webbrowser
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LIMIT = 60.0
"""Seconds until a browser must have come."""

_SOCKET_TABLE = Path("/proc/net/tcp")
_LOOPBACK = "0100007F"
"""127.0.0.1 as the table prints it on a little-endian machine."""


class _Redirect(ThreadingHTTPServer):
    """Gives one link to one visitor."""

    daemon_threads = True

    def __init__(self, link: str) -> None:
        self.path = f"/{secrets.token_urlsafe(32)}"
        self.fetched = threading.Event()
        self._link: str | None = link
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Visitor)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}{self.path}"

    def take(self) -> str | None:
        with self._lock:
            link, self._link = self._link, None
            return link


class _Visitor(BaseHTTPRequestHandler):
    server: _Redirect
    timeout = LIMIT

    def do_GET(self) -> None:
        mine = self.path == self.server.path and _is_own(self.client_address, self.server)
        link = self.server.take() if mine else None
        self.send_response(HTTPStatus.NOT_FOUND if link is None else HTTPStatus.SEE_OTHER)
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Content-Length", "0")
        if link is not None:
            self.send_header("Location", link)
        self.end_headers()
        if link is not None:
            self.server.fetched.set()

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet: this is a terminal."""


def open_in_browser(
    link: str, *, limit: float = LIMIT, launch: Callable[[str], bool] = webbrowser.open
) -> bool:
    """Open the link; return whether a browser came for it within the limit (in seconds)."""
    with _Redirect(link) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            return launch(server.url) and server.fetched.wait(limit)
        finally:
            server.shutdown()


def _is_own(peer: tuple[str, int], server: ThreadingHTTPServer) -> bool:
    """Tell whether a connection to us comes from our own user, as far as the system says."""
    if sys.platform == "win32":
        return True
    try:
        table = _SOCKET_TABLE.read_text()
    except OSError:
        return True
    ends = (f"{_LOOPBACK}:{peer[1]:04X}", f"{_LOOPBACK}:{server.server_port:04X}")
    for line in table.splitlines()[1:]:
        fields = line.split()
        if (fields[1], fields[2]) == ends:
            return int(fields[7]) == os.geteuid()
    return False
