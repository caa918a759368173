"""The pictures that one agent is asked for, a few at a time, and put together from their parts.

Law: nothing is kept of what nobody has asked for, and of the rest no more than there may be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import TypeAlias

from deskfleet.broker.service.room import Room
from deskfleet.core.pictures import MOST_BYTES
from deskfleet.core.session import replace
from deskfleet.errors import Missing, TooLarge, Unavailable
from deskfleet.ports import Picture
from deskfleet.wire.messages import PicturePart, Screenshot, TakeScreenshot

AT_ONCE = 4
"""An agent takes no more."""
MOST_PICTURES = 16
"""Of one session: a screen each."""
LOST = "the server was lost meanwhile"
TOO_LARGE = f"the server sent a screenshot of more than {MOST_BYTES:,} bytes"

Pictures: TypeAlias = tuple[Picture, ...]


class _Exposure:
    """What has come of one screenshot."""

    def __init__(self, room: Room) -> None:
        self.whole: asyncio.Future[Screenshot] = asyncio.get_running_loop().create_future()
        self.room = Room(MOST_BYTES, TOO_LARGE, within=room)
        self._parts: dict[int, bytearray] = {}

    def add(self, message: PicturePart | Screenshot) -> None:
        """Take in what came. Raises `TooLarge`."""
        if isinstance(message, PicturePart):
            self.room.take(len(message.content))
            if 0 <= message.picture < MOST_PICTURES:
                self._parts.setdefault(message.picture, bytearray()).extend(message.content)
            return
        self.room.take(sum(len(picture.content) for picture in message.pictures))
        pictures = tuple(
            replace(picture, content=bytes(self._parts.get(place, b"")) + picture.content)
            for place, picture in enumerate(message.pictures)
        )
        self.whole.set_result(replace(message, pictures=pictures))


class Camera:
    def __init__(self, send: Callable[[TakeScreenshot], Awaitable[None]]) -> None:
        self._send = send
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._is_over = False
        self._asked: dict[int, _Exposure] = {}
        self._count = 0

    async def take(
        self,
        session_id: str,
        *,
        max_width: int,
        max_height: int,
        format: str,
        until: float,
        room: Room,
    ) -> Pictures:
        """Ask the agent; raises `Missing`, `TooLarge`, and `Unavailable` with its reason.

        The caller waits until the event loop's time is `until`. Pictures that came take `room`.
        """
        async with self._turns:
            if self._is_over:
                raise Unavailable(LOST)
            self._count += 1
            answer = await self._expose(
                TakeScreenshot(
                    request=self._count,
                    session_id=session_id,
                    max_width=max_width,
                    max_height=max_height,
                    format=format,
                    seconds=until - asyncio.get_running_loop().time(),
                ),
                room,
            )
        if answer.missing:
            raise Missing(answer.reason)
        if answer.reason is not None:
            raise Unavailable(answer.reason)
        return answer.pictures

    async def _expose(self, wish: TakeScreenshot, room: Room) -> Screenshot:
        exposure = self._asked[wish.request] = _Exposure(room)
        with ExitStack() as failed:
            failed.callback(self._asked.pop, wish.request, None)
            failed.callback(exposure.room.leave)
            await self._send(wish)
            answer = await exposure.whole
            failed.pop_all()
        return answer

    def awaits(self, message: object) -> bool:
        """Tell whether a message belongs to what was asked for."""
        return isinstance(message, PicturePart | Screenshot) and message.request in self._asked

    def hear(self, message: PicturePart | Screenshot) -> None:
        exposure = self._asked.get(message.request)
        if exposure is None or exposure.whole.done():
            return
        try:
            exposure.add(message)
        except TooLarge as error:
            exposure.whole.set_exception(error)
        if exposure.whole.done():
            # What else comes of it is paced like all that nobody has asked for.
            del self._asked[message.request]

    def end(self) -> None:
        """Tell whoever waits that the server is lost."""
        self._is_over = True
        for exposure in self._asked.values():
            if not exposure.whole.done():
                exposure.whole.set_exception(Unavailable(LOST))
        self._asked.clear()
