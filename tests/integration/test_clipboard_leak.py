"""What a client that may not copy gets of a real desktop's clipboard: word of it, no text.

Each client is tried twice: with the right to copy it gets the text, or the test would prove
nothing; without it, no bytes of the text are ever sent to it.
"""

from __future__ import annotations

import asyncio
import secrets
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from deskfleet.agent.desktop.rfb import RfbFilter, Rights, rights_of
from deskfleet.core.permissions import Feature
from support.entrance import run
from support.vnc import XDesktop, x_desktop

ALL = rights_of(frozenset(Feature))
HELLO = b"RFB 003.008\n\x01\x01"
CAPS, REQUEST, PEEK, NOTIFY, PROVIDE = (1 << bit for bit in range(24, 29))

RAW_ONLY = struct.pack(">BxHi", 2, 1, 0)
EXTENDED = struct.pack(">BxHii", 2, 2, 0, 0xC0A1E5CE - (1 << 32))
ONE_PIXEL = struct.pack(">BBHHHH", 3, 0, 0, 0, 1, 1)


def caps(flags: int, size: int) -> bytes:
    return struct.pack(">B3xiII", 6, -8, CAPS | flags | 1, size)


def extended(flags: int) -> bytes:
    return struct.pack(">B3xiI", 6, -4, flags)


@dataclass
class Client:
    """A small RFB client behind the filter."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    client_filter: RfbFilter

    def say(self, data: bytes) -> None:
        self.writer.write(self.client_filter.feed(data))

    async def greet(self) -> None:
        self.say(HELLO)
        await self.reader.readexactly(12)
        await self.reader.readexactly((await self.reader.readexactly(1))[0])
        await self.reader.readexactly(4)
        (name,) = struct.unpack(">20xI", await self.reader.readexactly(24))
        await self.reader.readexactly(name)

    async def texts(self) -> list[str]:
        """Return the texts that were sent up to now; the answer to a request is the mark."""
        self.say(ONE_PIXEL)
        found = []
        while (await self.reader.readexactly(1))[0] != 0:
            (length,) = struct.unpack(">3xi", await self.reader.readexactly(7))
            body = await self.reader.readexactly(abs(length))
            found.append(body.decode("latin-1") if length >= 0 else provided(body))
        await self.reader.readexactly(3 + 12 + 4)
        return found


def provided(body: bytes) -> str:
    (flags,) = struct.unpack_from(">I", body)
    if not flags & PROVIDE or flags & CAPS:
        return ""
    # The stream is one for the whole connection: it is flushed, never ended.
    return zlib.decompressobj().decompress(body[4:])[4:].decode()


async def leaks(desktop: XDesktop, rights: Rights, first: bytes, then: bytes) -> bool:
    reader, writer = await asyncio.open_unix_connection(desktop.socket)
    client = Client(reader, writer, RfbFilter(rights))
    secret = f"a secret of the desktop, {secrets.token_hex(4)}"
    try:
        async with asyncio.timeout(20):
            await client.greet()
            client.say(first)
            await client.texts()
            await asyncio.to_thread(desktop.own_clipboard, secret)
            client.say(then)
            # Whatever the server has asked the clipboard's owner for, it was asked before us.
            assert await asyncio.to_thread(desktop.clipboard) == secret
            found = await client.texts() + await client.texts()
            while rights.copy and not any(secret in text for text in found):
                await asyncio.sleep(0.05)
                client.say(then)
                found += await client.texts()
            return any(secret in text for text in found)
    finally:
        writer.close()
        await writer.wait_closed()


CLIENTS = {
    "legacy": (RAW_ONLY, b""),
    "without encodings": (b"", b""),
    "greedy": (EXTENDED + caps(REQUEST | PEEK | NOTIFY | PROVIDE, 1 << 20), b""),
    "asking": (EXTENDED + caps(REQUEST | NOTIFY, 0), extended(PEEK) + extended(REQUEST | 1)),
}


@pytest.fixture(scope="module")
def desktop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[XDesktop]:
    with x_desktop(tmp_path_factory.mktemp("x")) as running:
        yield running


@pytest.mark.parametrize("client", CLIENTS)
def test_only_who_may_copy_gets_text(desktop: XDesktop, client: str) -> None:
    first, then = CLIENTS[client]
    assert run(leaks(desktop, ALL, first, then))
    assert not run(leaks(desktop, replace(ALL, copy=False), first, then))
