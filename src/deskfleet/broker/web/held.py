"""Answers that hold pictures: sent piece by piece, and their room left when their client has them.

A whole one would lie in the buffers of a connection for as long as a slow client needs for it, and
the limit for taking what was sent would be one for all of it.
"""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import ExitStack

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deskfleet.broker.service.room import Room

PIECE_BYTES = 1024 * 1024


async def held(answering: Awaitable[Response], room: Room) -> Response:
    """Return an answer that leaves its room when it is sent; without one it is left at once."""
    with ExitStack() as failed:
        failed.callback(room.leave)
        answer = _Held(await answering, room)
        failed.pop_all()
    return answer


class _Held(Response):
    def __init__(self, answer: Response, room: Room) -> None:
        self.status_code, self.background = answer.status_code, None
        self.body, self.raw_headers = answer.body, answer.raw_headers
        self._room = room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._room:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            # Each is sent when there is space for it, and the empty one when all are on their way.
            for at in range(0, len(self.body), PIECE_BYTES):
                piece = self.body[at : at + PIECE_BYTES]
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
