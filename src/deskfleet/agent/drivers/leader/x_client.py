"""As much of an X client as a session leader needs (X11 protocol, version 11.0).

A client library would take the cookie from the environment, and hide the waiting.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

from .display import COOKIE_NAME, X_SOCKETS
from .ended import Ended

BACKGROUND = 0x2B3A4A


class XConnection:
    """As much of an X client as it takes to see a window manager arrive."""

    WINDOW = 33

    def __init__(
        self,
        number: int,
        cookie: bytes,
        wait: Callable[[int, float | None], None],
        deadline: float | None,
    ) -> None:
        """`wait` returns when a descriptor can be read; it may raise what ends the session."""
        self._wait, self._deadline = wait, deadline
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(f"{X_SOCKETS}{number}")
        self._socket.sendall(
            struct.pack("<BxHHHHxx", ord("l"), 11, 0, len(COOKIE_NAME), len(cookie))
            + _padded(COOKIE_NAME)
            + _padded(cookie)
        )
        status, length = struct.unpack("<B5xH", self._read(8))
        answer = self._read(4 * length)
        if status != 1:
            raise Ended("X refused its own cookie")
        vendor, formats = struct.unpack_from("<16xHxxxB", answer)
        (self._root,) = struct.unpack_from("<I", answer, 32 + vendor + -vendor % 4 + 8 * formats)
        name = b"_NET_SUPPORTING_WM_CHECK"
        self._send(16, 0, struct.pack("<Hxx", len(name)) + _padded(name))
        (self._check,) = struct.unpack_from("<8xI", self._reply())

    def prepare_root(self) -> None:
        """Paint the root window, and ask to be told of its properties."""
        back_pixel, event_mask, property_change = 1 << 1, 1 << 11, 1 << 22
        values = struct.pack(
            "<IIII", self._root, back_pixel | event_mask, BACKGROUND, property_change
        )
        self._send(2, 0, values)
        self._send(61, 0, struct.pack("<IHHHH", self._root, 0, 0, 0, 0))

    def wait_for_window_manager(self, deadline: float) -> None:
        self._deadline = deadline
        while not self._window_manager_answers():
            self._packet()

    def close(self) -> None:
        self._socket.close()

    def _window_manager_answers(self) -> bool:
        self._send(20, 0, struct.pack("<IIIII", self._root, self._check, self.WINDOW, 0, 1))
        return struct.unpack_from("<16xI", self._reply()) != (0,)

    def _send(self, opcode: int, detail: int, body: bytes) -> None:
        self._socket.sendall(struct.pack("<BBH", opcode, detail, 1 + len(body) // 4) + body)

    def _reply(self) -> bytes:
        while True:
            packet = self._packet()
            if packet[0] == 1:
                return packet
            if packet[0] == 0:
                raise Ended(f"X answered with error {packet[1]}")

    def _packet(self) -> bytes:
        head = self._read(32)
        return head + self._read(4 * struct.unpack_from("<4xI", head)[0] if head[0] == 1 else 0)

    def _read(self, size: int) -> bytes:
        got = b""
        while len(got) < size:
            self._wait(self._socket.fileno(), self._deadline)
            part = self._socket.recv(size - len(got))
            if not part:
                raise Ended("X closed the connection")
            got += part
        return got


def _padded(field: bytes) -> bytes:
    return field + bytes(-len(field) % 4)
