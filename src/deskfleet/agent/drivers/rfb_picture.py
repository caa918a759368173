"""One look at a desktop: connect to its RFB socket, take one whole frame, go.

RFB 3.8 (RFC 6143) with raw pixels. The server may be its owner's to tamper with, so nothing that
it says is believed: sizes have limits, the whole look has a deadline, and a picture is in memory
once only, one large one at a time. Blocking.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deskfleet.errors import Unavailable

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 4 * 3840 * 2160
"""Four monitors of 4K; each pixel takes four bytes."""
LARGE_PIXELS = 3840 * 2160
"""A desktop with more is large."""
MAX_TEXT_BYTES = 32 * 1024 * 1024
_CHUNK_BYTES = 512 * 1024
"""Room for the longest row that there can be."""
_VERSION = b"RFB 003.008\n"
_NO_SECURITY = 1
_UPDATE, _COLOURS, _BELL, _CUT_TEXT = 0, 1, 2, 3
_RAW = 0
_RED_GREEN_BLUE = struct.pack(">BBBBHHHBBBxxx", 32, 24, 0, 1, 255, 255, 255, 0, 8, 16)


@contextmanager
def take_picture(
    display: Path, limit_seconds: float, large: threading.Lock
) -> Iterator[Image.Image]:
    """Give what a desktop shows now; raise `Unavailable` where no picture can be had.

    `large` is held as long as a large picture is in use; to wait for it is part of the limit.
    """
    with ExitStack() as held:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                look = _Look(connection, time.monotonic() + limit_seconds)
                picture = look.at(display, large, held)
        except (OSError, struct.error) as error:
            raise Unavailable(f"the desktop gives no picture: {error}") from error
        yield picture


class _Look:
    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection, self._deadline = connection, deadline
        self._chunk = memoryview(bytearray(_CHUNK_BYTES))

    def at(self, display: Path, large: threading.Lock, held: ExitStack) -> Image.Image:
        self._arm()
        self._connection.connect(str(display))
        width, height = self._shake_hands()
        if width * height > LARGE_PIXELS:
            if not large.acquire(timeout=self._left()):
                raise TimeoutError("another large picture took too long")
            held.callback(large.release)
        self._connection.sendall(
            b"\0\0\0\0"
            + _RED_GREEN_BLUE
            + struct.pack(">BxHi", 2, 1, _RAW)
            + struct.pack(">BBHHHH", 3, 0, 0, 0, width, height)
        )
        pixels, missing = bytearray(width * height * 4), width * height
        frame = memoryview(pixels)
        while missing > 0:
            missing -= self._update(frame, width, height)
        from PIL import Image  # noqa: PLC0415 - see pictures.py

        # Of all layouts in which a server may send pixels, the only one that Pillow takes as it is.
        return Image.frombuffer("RGBX", (width, height), pixels, "raw", "RGBX", 0, 1)

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
        self._skip(_limited(name_length, MAX_TEXT_BYTES))
        if not _limited(width * height, MAX_PIXELS):
            raise OSError("it has no screen")
        return width, height

    def _update(self, frame: memoryview, width: int, height: int) -> int:
        """Read one message, and return how many pixels it brought."""
        kind = self._number(">B")
        if kind == _UPDATE:
            count = self._number(">xH")
            return sum(self._rectangle(frame, width, height) for _ in range(count))
        if kind == _COLOURS:
            self._skip(6 * self._number(">x2xH"))
        elif kind == _CUT_TEXT:
            self._skip(_limited(self._number(">3xI"), MAX_TEXT_BYTES))
        elif kind != _BELL:
            raise OSError(f"it sent a message of unknown kind {kind}")
        return 0

    def _rectangle(self, frame: memoryview, width: int, height: int) -> int:
        x: int
        y: int
        w: int
        h: int
        x, y, w, h, encoding = struct.unpack(">HHHHi", self._read(12))
        if encoding != _RAW or x + w > width or y + h > height:
            raise OSError("it sent a rectangle that was not asked for")
        if w == width:
            self._fill(frame[y * width * 4 : (y + h) * width * 4])
        elif w > 0:
            self._rows(frame, width, range(y, y + h), range(x * 4, (x + w) * 4))
        return w * h

    def _rows(self, frame: memoryview, width: int, rows: range, columns: range) -> None:
        """Read a rectangle, as many of its rows at once as there is room for."""
        size = len(columns)
        at_once = len(self._chunk) // size
        while rows:
            some, rows = rows[:at_once], rows[at_once:]
            self._fill(self._chunk[: len(some) * size])
            for number, row in enumerate(some):
                start = row * width * 4 + columns.start
                frame[start : start + size] = self._chunk[number * size : (number + 1) * size]

    def _number(self, layout: str) -> int:
        (number,) = struct.unpack(layout, self._read(struct.calcsize(layout)))
        return int(number)

    def _read(self, size: int) -> bytes:
        got = bytearray(size)
        self._fill(memoryview(got))
        return bytes(got)

    def _skip(self, size: int) -> None:
        while size > 0:
            some = self._chunk[:size]
            self._fill(some)
            size -= len(some)

    def _fill(self, view: memoryview) -> None:
        while view:
            self._arm()
            count = self._connection.recv_into(view)
            if count == 0:
                raise OSError("it closed the connection")
            view = view[count:]

    def _arm(self) -> None:
        self._connection.settimeout(self._left())

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("it took too long")
        return left


def _limited(size: int, limit: int) -> int:
    if size > limit:
        raise OSError("it announced more than it may")
    return size
