"""The security headers of every answer, and that nothing of it may be kept or framed.

The desktop's page needs its own script and style, pictures that it decodes itself (`data:`), and
WebSockets to where it came from; nothing else may be loaded, and no string becomes markup.
"""

from __future__ import annotations

import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'{socket}; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)

_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "clipboard-read=(self), clipboard-write=(self), fullscreen=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


_HOST = re.compile(r"[A-Za-z0-9.:\[\]-]{1,255}")


def _policy(host: str) -> str:
    """Return the content policy of one host; not every browser takes 'self' to include wss."""
    return _POLICY.format(socket=f" wss://{host}" if _HOST.fullmatch(host) else "")


class SecurityHeaders:
    """Adds the headers to whatever the application answers, refused WebSockets included."""

    _STARTS = ("http.response.start", "websocket.http.response.start")

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] in self._STARTS:
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers["Content-Security-Policy"] = _policy(Headers(scope=scope).get("host", ""))
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, send_with_headers)
