"""An answer that holds pictures keeps its room until it is sent, and no longer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.responses import Response
from starlette.types import Message

from deskfleet.broker.service.room import Room
from deskfleet.broker.web.held import held


async def never() -> Message:
    raise AssertionError("nobody reads the request")


async def answering(body: bytes) -> Response:
    return Response(body, status_code=200, media_type="application/json")


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_its_room_is_left_when_it_is_sent(size: int) -> None:
    room, sent = Room(10, "full"), list[dict[str, Any]]()
    room.take(7)

    async def send(message: Message) -> None:
        assert room.taken == 7
        sent.append(dict(message))

    async def scenario() -> None:
        whole = bytes(range(256)) * (size // 256 + 1)
        answer = await held(answering(whole[:size]), room)
        assert (answer.status_code, room.taken) == (200, 7)
        await answer({"type": "http"}, never, send)
        assert room.taken == 0
        start, *pieces = sent
        assert dict(start["headers"])[b"content-length"] == str(size).encode()
        assert b"".join(piece["body"] for piece in pieces) == whole[:size]

    asyncio.run(scenario())


def test_whatever_goes_wrong_its_room_is_left() -> None:
    async def failing() -> Response:
        raise LookupError("before the answer")

    async def gone(_message: Message) -> None:
        raise OSError("the client has gone")

    async def scenario() -> None:
        room = Room(10, "full")
        room.take(7)
        with pytest.raises(LookupError):
            await held(failing(), room)
        assert room.taken == 0
        room.take(7)
        answer = await held(answering(b"x"), room)
        with pytest.raises(OSError, match="gone"):
            await answer({"type": "http"}, never, gone)
        assert room.taken == 0

    asyncio.run(scenario())
