"""One look at a desktop: connect to its RFB socket, take one whole frame, go.

RFB 3.8 (RFC 6143) with raw pixels. The server may be its owner's to tamper with, so nothing that
it says is believed: sizes have limits, and the whole look has a deadline. Blocking.
"""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING

from deskfleet.errors import Unavailable

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 64 * 1024 * 1024
MAX_TEXT_BYTES = 32 * 1024 * 1024
_VERSION = b"RFB 003.008\n"
_NO_SECURITY = 1
_UPDATE, _COLOURS, _BELL, _CUT_TEXT = 0, 1, 2, 3
_RAW = 0
_BLUE_GREEN_RED = struct.pack(">BBBBHHHBBBxxx", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)


def take_picture(display: Path, limit_seconds: float) -> Image.Image:
    """Return what a desktop shows now; raise `Unavailable` where no picture can be had."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            return _Look(connection, time.monotonic() + limit_seconds).at(display)
    except (OSError, struct.error) as error:
        raise Unavailable(f"the desktop gives no picture: {error}") from error


class _Look:
    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection, self._deadline = connection, deadline

    def at(self, display: Path) -> Image.Image:
        self._arm()
        self._connection.connect(str(display))
        width, height = self._shake_hands()
        self._connection.sendall(
            b"\0\0\0\0"
            + _BLUE_GREEN_RED
            + struct.pack(">BxHi", 2, 1, _RAW)
            + struct.pack(">BBHHHH", 3, 0, 0, 0, width, height)
        )
        frame = bytearray(width * height * 4)
        missing = width * height
        while missing > 0:
            missing -= self._update(frame, width, height)
        from PIL import Image  # noqa: PLC0415 - see pictures.py

        return Image.frombuffer("RGB", (width, height), bytes(frame), "raw", "BGRX", 0, 1)

    def _shake_hands(self) -> tuple[int, int]:
        """Return the width and the height of the screen."""
        if not self._read(12).startswith(b"RFB 003."):
            raise OSError("it does not speak RFB")
        self._connection.sendall(_VERSION)
        if _NO_SECURITY not in self._read(self._number(">B")):
            raise OSError("it wants a password")
        self._connection.sendall(bytes([_NO_SECURITY]))
        if self._number(">I") != 0:
            raise OSError("it refuses the connection")
        self._connection.sendall(b"\1")
        width, height, name_length = struct.unpack(">HH16xI", self._read(24))
        self._read(_limited(name_length, MAX_TEXT_BYTES))
        _limited(width * height, MAX_PIXELS)
        return width, height

    def _update(self, frame: bytearray, width: int, height: int) -> int:
        """Read one message, and return how many pixels it brought."""
        kind = self._number(">B")
        if kind == _UPDATE:
            count = self._number(">xH")
            return sum(self._rectangle(frame, width, height) for _ in range(count))
        if kind == _COLOURS:
            self._read(6 * self._number(">x2xH"))
        elif kind == _CUT_TEXT:
            self._read(_limited(self._number(">3xI"), MAX_TEXT_BYTES))
        elif kind != _BELL:
            raise OSError(f"it sent a message of unknown kind {kind}")
        return 0

    def _rectangle(self, frame: bytearray, width: int, height: int) -> int:
        x: int
        y: int
        w: int
        h: int
        x, y, w, h, encoding = struct.unpack(">HHHHi", self._read(12))
        if encoding != _RAW or x + w > width or y + h > height:
            raise OSError("it sent a rectangle that was not asked for")
        pixels = self._read(w * h * 4)
        if w == width:
            frame[y * width * 4 : (y + h) * width * 4] = pixels
            return w * h
        for row in range(h):
            start = ((y + row) * width + x) * 4
            frame[start : start + w * 4] = pixels[row * w * 4 : (row + 1) * w * 4]
        return w * h

    def _number(self, layout: str) -> int:
        (number,) = struct.unpack(layout, self._read(struct.calcsize(layout)))
        return int(number)

    def _read(self, size: int) -> bytes:
        got = bytearray(size)
        view, filled = memoryview(got), 0
        while filled < size:
            self._arm()
            count = self._connection.recv_into(view[filled:])
            if count == 0:
                raise OSError("it closed the connection")
            filled += count
        return bytes(got)

    def _arm(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("it took too long")
        self._connection.settimeout(left)


def _limited(size: int, limit: int) -> int:
    if size > limit:
        raise OSError("it announced more than it may")
    return size
