"""The pictures that one agent is asked for, put together from their parts.

Law: nothing is kept of what nobody has asked for, and of the rest no more than there may be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from deskfleet.core.pictures import MOST_BYTES
from deskfleet.core.session import replace
from deskfleet.errors import Missing, TooLarge, Unavailable
from deskfleet.ports import Picture
from deskfleet.wire.messages import PicturePart, Screenshot, TakeScreenshot

MOST_PICTURES = 16
"""Of one session: a screen each."""
TOO_LARGE = f"the server sent a screenshot of more than {MOST_BYTES:,} bytes"

Pictures: TypeAlias = tuple[Picture, ...]


class _Exposure:
    """What has come of one screenshot."""

    def __init__(self) -> None:
        self.whole: asyncio.Future[Screenshot] = asyncio.get_running_loop().create_future()
        self._parts: dict[int, bytearray] = {}
        self._size = 0

    def add(self, message: PicturePart | Screenshot) -> None:
        """Take in what came. Raises `TooLarge`."""
        if isinstance(message, PicturePart):
            self._count(message.content)
            if 0 <= message.picture < MOST_PICTURES:
                self._parts.setdefault(message.picture, bytearray()).extend(message.content)
            return
        self._count(*(picture.content for picture in message.pictures))
        pictures = tuple(
            replace(picture, content=bytes(self._parts.get(place, b"")) + picture.content)
            for place, picture in enumerate(message.pictures)
        )
        self.whole.set_result(replace(message, pictures=pictures))

    def _count(self, *contents: bytes) -> None:
        self._size += sum(map(len, contents))
        if self._size > MOST_BYTES:
            raise TooLarge(TOO_LARGE)


class Camera:
    def __init__(self, send: Callable[[TakeScreenshot], Awaitable[None]]) -> None:
        self._send = send
        self._asked: dict[int, _Exposure] = {}
        self._count = 0

    async def take(
        self, session_id: str, *, max_width: int, max_height: int, format: str, until: float
    ) -> Pictures:
        """Ask the agent; raises `Missing`, `TooLarge`, and `Unavailable` with its reason.

        The caller waits until the event loop's time is `until`.
        """
        self._count += 1
        number = self._count
        exposure = self._asked[number] = _Exposure()
        try:
            await self._send(
                TakeScreenshot(
                    request=number,
                    session_id=session_id,
                    max_width=max_width,
                    max_height=max_height,
                    format=format,
                    seconds=until - asyncio.get_running_loop().time(),
                )
            )
            answer = await exposure.whole
        finally:
            self._asked.pop(number, None)
        if answer.missing:
            raise Missing(answer.reason)
        if answer.reason is not None:
            raise Unavailable(answer.reason)
        return answer.pictures

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
        for exposure in self._asked.values():
            if not exposure.whole.done():
                exposure.whole.set_exception(Unavailable("the server was lost meanwhile"))
        self._asked.clear()
