"""What goes wrong unforeseen at the entrance: an answer for who asked, and few words in the log.

Strangers may find out how to bring it about, so it is told every ten seconds and not each time.
"""

from __future__ import annotations

import logging
from contextlib import suppress

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deskfleet.observe import seldom

log = logging.getLogger(__name__)

_INTERNAL_ERROR = 1011
_BODY = msgspec.json.encode({"code": "internal", "message": "Something went wrong here."})


class Guard:
    """Lets no exception out of the application, and answers in its place where nothing was."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_begun = False

        async def watched(message: Message) -> None:
            nonlocal is_begun
            is_begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            client = scope.get("client")
            log.exception(
                "request.failed",
                extra={
                    "path": scope["path"],
                    "address": client[0] if client else "",
                    **seldom("", type(error).__name__),
                },
            )
            await _answer(scope, receive, send, is_begun=is_begun)


async def _answer(scope: Scope, receive: Receive, send: Send, *, is_begun: bool) -> None:
    if not is_begun:
        answer = Response(_BODY, status_code=500, media_type="application/json")
        await answer(scope, receive, send)
    elif scope["type"] == "websocket":
        # It may be closed already.
        with suppress(RuntimeError, OSError):
            await send({"type": "websocket.close", "code": _INTERNAL_ERROR})
