"""Answers that hold pictures: their room is left when their client has them."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import ExitStack

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deskfleet.broker.service.room import Room


async def held(answering: Awaitable[Response], room: Room) -> Response:
    """Return an answer that leaves its room when it is sent; without one it is left at once."""
    with ExitStack() as failed:
        failed.callback(room.leave)
        answer = _Held(await answering, room)
        failed.pop_all()
    return answer


class _Held(Response):
    def __init__(self, answer: Response, room: Room) -> None:
        self.status_code = answer.status_code
        self._answer, self._room = answer, room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._room:
            await self._answer(scope, receive, send)
