"""The pictures that an agent is asked for: whole, whatever they came in, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from deskfleet.broker.service.camera import AT_ONCE, MOST_PICTURES, Camera, Pictures
from deskfleet.broker.service.room import Room
from deskfleet.core.pictures import MOST_BYTES
from deskfleet.errors import Missing, TooLarge, Unavailable
from deskfleet.ports import Picture
from deskfleet.wire.messages import (
    Heartbeat,
    PicturePart,
    Screenshot,
    TakeScreenshot,
    in_parts,
)
from support.builders import NOON

SECONDS = 20.0
MEBIBYTE = 1024 * 1024


class Asked:
    """A camera, and what its agent was asked."""

    def __init__(self) -> None:
        self.wishes: list[TakeScreenshot] = []
        self.camera = Camera(self._take)
        self.room = Room(4 * MOST_BYTES, "no room")

    async def _take(self, wish: TakeScreenshot) -> None:
        self.wishes.append(wish)

    async def begin(self) -> asyncio.Task[Pictures]:
        until = asyncio.get_running_loop().time() + SECONDS
        taking = asyncio.create_task(
            self.camera.take(
                "s1", max_width=9, max_height=8, format="png", until=until, room=self.room
            )
        )
        await asyncio.sleep(0)
        return taking

    def hear(self, **fields: Any) -> None:
        self.camera.hear(Screenshot(request=self.wishes[-1].request, **fields))

    def part(self, content: bytes, picture: int = 0) -> PicturePart:
        return PicturePart(request=self.wishes[-1].request, picture=picture, content=content)


def play(scenario: Callable[[Asked], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(SECONDS):
            await scenario(Asked())

    asyncio.run(whole())


def a_picture(content: bytes) -> Picture:
    return Picture(format="png", content=content, taken_at=NOON)


@pytest.mark.parametrize("sizes", [(0,), (5,), (MOST_BYTES,), (3, 2 * MEBIBYTE, 4, MEBIBYTE)])
def test_it_is_what_was_sent(sizes: tuple[int, ...]) -> None:
    pictures = tuple(a_picture(bytes([place]) * size) for place, size in enumerate(sizes))

    async def scenario(asked: Asked) -> None:
        taking = await asked.begin()
        [wish] = asked.wishes
        assert (wish.session_id, wish.max_width, wish.max_height) == ("s1", 9, 8)
        assert 0 < wish.seconds <= SECONDS
        for message in in_parts(Screenshot(request=wish.request, pictures=pictures)):
            assert asked.camera.awaits(message)
            asked.camera.hear(message)
        assert await taking == pictures

    play(scenario)


def test_two_at_once_are_kept_apart() -> None:
    async def scenario(asked: Asked) -> None:
        tasks = [await asked.begin() for _ in range(2)]
        wishes = zip(asked.wishes, (b"a", b"b"), strict=True)
        answers = [
            in_parts(Screenshot(request=wish.request, pictures=(a_picture(content * MEBIBYTE),)))
            for wish, content in wishes
        ]
        for messages in zip(*answers, strict=True):
            for message in messages:
                asked.camera.hear(message)
        contents = [(await task)[0].content for task in tasks]
        assert contents == [b"a" * MEBIBYTE, b"b" * MEBIBYTE]

    play(scenario)


def test_more_than_there_may_be_is_no_picture_and_nothing_of_it_is_kept() -> None:
    async def scenario(asked: Asked) -> None:
        for last in (
            asked.part,
            lambda content: Screenshot(
                request=asked.wishes[-1].request, pictures=(a_picture(content),)
            ),
        ):
            taking = await asked.begin()
            for _ in range(MOST_BYTES // MEBIBYTE):
                asked.camera.hear(asked.part(bytes(MEBIBYTE)))
            assert not taking.done()
            asked.camera.hear(last(b"x"))
            assert not asked.camera.awaits(asked.part(b"x"))
            with pytest.raises(TooLarge, match="more than"):
                await taking

    play(scenario)


def test_it_takes_room_and_gives_it_back_where_nothing_came_of_it() -> None:
    async def scenario(asked: Asked) -> None:
        asked.room = Room(5, "no room")
        taking = await asked.begin()
        asked.camera.hear(asked.part(b"abc"))
        assert asked.room.taken == 3
        asked.hear(pictures=(a_picture(b"d"),))
        assert await taking == (a_picture(b"abcd"),)
        assert asked.room.taken == 4
        taking = await asked.begin()
        asked.camera.hear(asked.part(b"e"))
        assert asked.room.taken == 5
        asked.camera.hear(asked.part(b"f"))
        with pytest.raises(TooLarge, match="no room"):
            await taking
        assert asked.room.taken == 4
        taking = await asked.begin()
        asked.camera.hear(asked.part(b"e"))
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking
        assert asked.room.taken == 4

    play(scenario)


def test_a_few_are_taken_at_a_time() -> None:
    async def scenario(asked: Asked) -> None:
        tasks = [await asked.begin() for _ in range(AT_ONCE + 3)]
        assert len(asked.wishes) == AT_ONCE
        asked.hear(pictures=())
        assert await tasks[AT_ONCE - 1] == ()
        await asyncio.sleep(0)
        assert len(asked.wishes) == AT_ONCE + 1
        tasks[0].cancel()
        await asyncio.wait({tasks[0]})
        await asyncio.sleep(0)
        assert len(asked.wishes) == AT_ONCE + 2
        # Who waited for a turn doesn't ask a server that is lost.
        asked.camera.end()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one) for one in done].count(Unavailable) == AT_ONCE + 1
        assert len(asked.wishes) == AT_ONCE + 2

    play(scenario)


def test_parts_of_no_picture_are_not_kept() -> None:
    async def scenario(asked: Asked) -> None:
        taking = await asked.begin()
        for place in (-1, MOST_PICTURES, 2**62):
            asked.camera.hear(asked.part(b"x", place))
        asked.hear(pictures=(a_picture(b"y"),))
        assert await taking == (a_picture(b"y"),)

    play(scenario)


def test_what_nobody_waits_for_is_not_listened_to() -> None:
    async def scenario(asked: Asked) -> None:
        taking = await asked.begin()
        other = Screenshot(request=asked.wishes[-1].request + 1)
        assert not asked.camera.awaits(other)
        assert not asked.camera.awaits(Heartbeat(epoch=1))
        asked.camera.hear(other)
        taking.cancel()
        # Its answer may come before it has found out.
        asked.hear(pictures=())
        asked.camera.end()
        with pytest.raises(asyncio.CancelledError):
            await taking
        assert not asked.camera.awaits(Screenshot(request=asked.wishes[-1].request))

    play(scenario)


def test_reasons_are_passed_on() -> None:
    async def scenario(asked: Asked) -> None:
        taking = await asked.begin()
        asked.hear(missing=True, reason="no such session")
        with pytest.raises(Missing, match="no such session"):
            await taking
        taking = await asked.begin()
        asked.hear(reason="no X")
        with pytest.raises(Unavailable, match="no X"):
            await taking
        taking = await asked.begin()
        asked.camera.end()
        with pytest.raises(Unavailable, match="lost"):
            await taking

    play(scenario)
