"""The way of the bytes between one WebSocket and the UNIX socket of one desktop.

Owns the two pumps and their end. Nothing is queued here: each pump waits until the other side has
taken what it was given, so a browser that doesn't read stops the desktop's socket, and a desktop
that doesn't read stops the browser's. Whatever ends first ends both. What the client says goes
through its filter; what the desktop says is not looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from deskfleet.agent.desktop.attendance import Close
from deskfleet.agent.desktop.rfb import RfbFilter
from deskfleet.errors import ProtocolError, Unavailable
from deskfleet.machine import here

_READ_BYTES = 128 * 1024
_OPEN_SECONDS = 5.0


class DesktopSocket:
    """The desktop's end: an open UNIX socket that speaks RFB."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, path: Path) -> DesktopSocket:
        """Connect; raises `Unavailable` where nobody answers."""
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                return cls(*await here.open_local(path, _READ_BYTES))
        except OSError as error:
            raise Unavailable("the desktop does not answer") from error

    async def read(self) -> bytes:
        return await self._reader.read(_READ_BYTES)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def close(self) -> None:
        """Let go at once; what was not written is of no use to anyone."""
        self._writer.transport.abort()


async def relay(
    browser: WebSocket,
    desktop: DesktopSocket,
    client_filter: RfbFilter,
    asked_to_end: asyncio.Future[Close],
) -> Close:
    """Carry bytes both ways until one side ends or `asked_to_end` is set; say why it ended."""
    pumps = [
        _started(_from_browser(browser, desktop, client_filter)),
        _started(_from_desktop(desktop, browser)),
    ]
    try:
        done, _ = await asyncio.wait([asked_to_end, *pumps], return_when=asyncio.FIRST_COMPLETED)
        if asked_to_end in done:
            return asked_to_end.result()
        return next(pump.result() for pump in pumps if pump in done)
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


def _started(pump: Coroutine[Any, Any, Close]) -> asyncio.Task[Close]:
    return asyncio.create_task(pump)


async def _from_browser(
    browser: WebSocket, desktop: DesktopSocket, client_filter: RfbFilter
) -> Close:
    try:
        while True:
            message = await browser.receive()
            if message["type"] == "websocket.disconnect":
                return Close.GONE
            data = message.get("bytes")
            if data is None:
                return Close.PROTOCOL
            await desktop.write(client_filter.feed(data))
    except ProtocolError:
        return Close.PROTOCOL
    except OSError:
        return Close.UNREACHABLE


async def _from_desktop(desktop: DesktopSocket, browser: WebSocket) -> Close:
    try:
        while data := await desktop.read():
            await browser.send_bytes(data)
    except WebSocketDisconnect:
        return Close.GONE
    except OSError:
        pass
    return Close.UNREACHABLE
