"""What a browser may say to a desktop: a filter of the RFB 3.8 stream from client to server.

Owns the framing of that direction and the decision, message by message, what passes. It buffers
no more than one short message; the text of a clipboard passes through as it comes.

Laws: bytes in, bytes out, no IO. However the input is cut, the output is the same. With all
rights the output equals the input, apart from three rewrites: `shared` is forced, encodings that
this filter doesn't know are taken out (so that no message can be negotiated that it couldn't
frame), and the extended clipboard is spoken for a client that may not copy. What it can't frame
raises `ProtocolError`, and the connection must end. The other direction is not filtered: a client
that may not copy is protected by what the server is told of it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from deskfleet.core.permissions import Feature
from deskfleet.errors import ProtocolError

_SET_PIXEL_FORMAT = 0
_SET_ENCODINGS = 2
_UPDATE_REQUEST = 3
_KEY = 4
_POINTER = 5
_CUT_TEXT = 6
_CONTINUOUS_UPDATES = 150
_FENCE = 248
_SET_DESKTOP_SIZE = 251
_QEMU = 255

_FIXED_LENGTHS = {
    _SET_PIXEL_FORMAT: 20,
    _UPDATE_REQUEST: 10,
    _KEY: 8,
    _POINTER: 6,
    _CONTINUOUS_UPDATES: 10,
    _QEMU: 12,
}

_MOST_ENCODINGS = 256
_MOST_FENCE_BYTES = 64
_MOST_CLIPBOARD_BYTES = 32 << 20

_VERSION_BYTES = 12
_VERSIONS = (b"RFB 003.007\n", b"RFB 003.008\n")
_SECURITY_NONE = 1

_EXTENDED_CLIPBOARD = 0xC0A1E5CE - (1 << 32)
_CURSORS = frozenset((-239, 0x574D5664))
# No 3- or 7-byte variants of known messages, no private ones: extended mouse buttons (-316),
# xvp (-309) and gii (-305) are left out on purpose.
_KNOWN_ENCODINGS = frozenset(
    {0, 1, 2, 5, 6, 7, 16, 21, 50, -260}
    | set(range(-32, -22))  # JPEG quality
    | set(range(-256, -246))  # compression
    | {-223, -224, -258, -261, -307, -308, -312, -313, _EXTENDED_CLIPBOARD}
    | _CURSORS
)

_ENCODINGS_HEADER = struct.Struct(">BxH")
_CUT_TEXT_HEADER = struct.Struct(">B3xi")
_CLIPBOARD_FLAGS = struct.Struct(">I")
_FENCE_HEADER = struct.Struct(">B3xIB")
_DESKTOP_SIZE_HEADER = struct.Struct(">BxHHBx")
_SCREEN_BYTES = 16

_TEXT = 1
_CAPS, _REQUEST, _PEEK, _NOTIFY, _PROVIDE = (1 << bit for bit in range(24, 29))

_CONTROL_CODES = frozenset((0x1D, 0x9D))
_ALT_CODES = frozenset((0x38, 0xB8))
_DELETE_CODES = frozenset((0x53, 0xD3))
_CONTROL_SYMBOLS = frozenset((0xFFE3, 0xFFE4))
_ALT_SYMBOLS = frozenset((0xFFE7, 0xFFE8, 0xFFE9, 0xFFEA))
_DELETE_SYMBOLS = frozenset((0xFFFF, 0xFF9F))


@dataclass(frozen=True, slots=True)
class Rights:
    """What one connection may do, in the terms of RFB."""

    see: bool
    cursor: bool
    keyboard: bool
    attention: bool
    """Ctrl+Alt+Delete."""
    pointer: bool
    resize: bool
    copy: bool
    """Take the desktop's clipboard."""
    paste: bool
    """Set the desktop's clipboard."""


def rights_of(features: Collection[Feature]) -> Rights:
    """Say what a set of granted features means here; who controls nothing resizes nothing."""
    keyboard, pointer = Feature.KEYBOARD in features, Feature.MOUSE in features
    return Rights(
        see=Feature.DISPLAY in features,
        cursor=Feature.POINTER in features,
        keyboard=keyboard,
        attention=keyboard and Feature.KEYBOARD_SAS in features,
        pointer=pointer,
        resize=keyboard or pointer,
        copy=Feature.CLIPBOARD_COPY in features,
        paste=Feature.CLIPBOARD_PASTE in features,
    )


class RfbFilter:
    """One connection's stream from client to server."""

    def __init__(self, rights: Rights) -> None:
        self._rights = rights
        self._rest = b""
        self._read: Callable[[bytes, int, bytearray], int] = self._read_version
        self._text_left = 0
        self._text_passes = False
        self._attention = _Attention()

    def feed(self, data: bytes) -> bytes:
        """Take what came from the client and return what goes on to the server.

        Raises `ProtocolError` for what can't be framed; the filter is of no use afterwards.
        """
        data = self._rest + data if self._rest else data
        out = bytearray()
        at = 0
        while used := self._read(data, at, out):
            at += used
        self._rest = data[at:]
        return bytes(out)

    # Each reader looks at `data` from `at` on, adds what passes to `out`, and returns how many
    # bytes it has used: 0 means that the message isn't complete yet.

    def _read_version(self, data: bytes, at: int, out: bytearray) -> int:
        version = data[at : at + _VERSION_BYTES]
        if len(version) < _VERSION_BYTES:
            return 0
        if version not in _VERSIONS:
            raise ProtocolError("only RFB 3.7 and 3.8 are spoken here")
        out += version
        self._read = self._read_security
        return _VERSION_BYTES

    def _read_security(self, data: bytes, at: int, out: bytearray) -> int:
        if at >= len(data):
            return 0
        if data[at] != _SECURITY_NONE:
            raise ProtocolError("the entrance has authenticated this client already")
        out.append(_SECURITY_NONE)
        self._read = self._read_init
        return 1

    def _read_init(self, data: bytes, at: int, out: bytearray) -> int:
        if at >= len(data):
            return 0
        out.append(1)
        if not self._rights.copy:
            out += _announce_only()
        self._read = self._read_message
        return 1

    def _read_message(self, data: bytes, at: int, out: bytearray) -> int:
        if at >= len(data):
            return 0
        kind = data[at]
        length = _FIXED_LENGTHS.get(kind)
        if length is None:
            return self._read_long_message(kind, data, at, out)
        message = data[at : at + length]
        if len(message) < length:
            return 0
        if self._passes(kind, message):
            out += message
        return length

    def _read_long_message(self, kind: int, data: bytes, at: int, out: bytearray) -> int:
        if kind == _SET_ENCODINGS:
            return self._read_encodings(data, at, out)
        if kind == _CUT_TEXT:
            return self._read_cut_text(data, at, out)
        if kind == _FENCE:
            return _copy(data, at, out, length=_fence_length(data, at), passes=True)
        if kind == _SET_DESKTOP_SIZE:
            return _copy(data, at, out, length=_size_length(data, at), passes=self._rights.resize)
        raise ProtocolError(f"message type {kind} is not known here")

    def _passes(self, kind: int, message: bytes) -> bool:
        if kind in (_UPDATE_REQUEST, _CONTINUOUS_UPDATES):
            return self._rights.see
        if kind == _POINTER:
            return self._rights.pointer
        if kind in (_KEY, _QEMU):
            return self._key_passes(kind, message)
        return True

    def _key_passes(self, kind: int, message: bytes) -> bool:
        code = 0
        if kind == _KEY:
            down, symbol = struct.unpack_from(">xBxxI", message)
        else:
            submessage, down, symbol, code = struct.unpack_from(">xBHII", message)
            if submessage != 0:
                raise ProtocolError("only key events are known of the QEMU messages")
        asks = self._attention.asks(symbol, code, down=bool(down))
        return self._rights.keyboard and (self._rights.attention or not asks)

    def _read_encodings(self, data: bytes, at: int, out: bytearray) -> int:
        if len(data) - at < _ENCODINGS_HEADER.size:
            return 0
        count: int = _ENCODINGS_HEADER.unpack_from(data, at)[1]
        if count > _MOST_ENCODINGS:
            raise ProtocolError("too many encodings")
        length = _ENCODINGS_HEADER.size + 4 * count
        if len(data) - at < length:
            return 0
        wanted = struct.unpack_from(f">{count}i", data, at + _ENCODINGS_HEADER.size)
        out += _set_encodings(self._permitted(wanted))
        return length

    def _permitted(self, wanted: Sequence[int]) -> list[int]:
        allowed = _KNOWN_ENCODINGS if self._rights.cursor else _KNOWN_ENCODINGS - _CURSORS
        kept = [encoding for encoding in wanted if encoding in allowed]
        if not self._rights.copy and _EXTENDED_CLIPBOARD not in kept:
            # Without it the server would send each copied text unasked.
            kept.append(_EXTENDED_CLIPBOARD)
        return kept

    def _read_cut_text(self, data: bytes, at: int, out: bytearray) -> int:
        if len(data) - at < _CUT_TEXT_HEADER.size:
            return 0
        length: int = _CUT_TEXT_HEADER.unpack_from(data, at)[1]
        flags = _CLIPBOARD_FLAGS.size if length < 0 else 0
        header = _CUT_TEXT_HEADER.size + flags
        if abs(length) > _MOST_CLIPBOARD_BYTES or abs(length) < flags:
            raise ProtocolError("a clipboard message of an impossible length")
        if len(data) - at < header:
            return 0
        self._text_passes = self._cut_text_passes(length, data, at)
        self._text_left = abs(length) - flags
        if self._text_passes:
            out += data[at : at + header]
        self._read = self._read_text
        return header

    def _cut_text_passes(self, length: int, data: bytes, at: int) -> bool:
        if length >= 0:
            return self._rights.paste
        flags: int = _CLIPBOARD_FLAGS.unpack_from(data, at + _CUT_TEXT_HEADER.size)[0]
        if flags & _CAPS:
            return self._rights.copy
        asks, offers = flags & (_REQUEST | _PEEK), flags & (_NOTIFY | _PROVIDE)
        return (self._rights.copy or not asks) and (self._rights.paste or not offers)

    def _read_text(self, data: bytes, at: int, out: bytearray) -> int:
        if self._text_left == 0:
            self._read = self._read_message
            return self._read_message(data, at, out)
        part = data[at : at + self._text_left]
        if self._text_passes:
            out += part
        self._text_left -= len(part)
        return len(part)


class _Attention:
    """Follows Ctrl and Alt, by symbol and by scan code alike."""

    def __init__(self) -> None:
        self._held: set[tuple[str, int, int]] = set()

    def asks(self, symbol: int, code: int, *, down: bool) -> bool:
        """Take a key event and say whether it completes Ctrl+Alt+Delete."""
        code = (code & 0x7F) | (0x80 if code & 0xE080 else 0)
        for name, symbols, codes in (
            ("control", _CONTROL_SYMBOLS, _CONTROL_CODES),
            ("alt", _ALT_SYMBOLS, _ALT_CODES),
        ):
            if symbol in symbols or code in codes:
                (self._held.add if down else self._held.discard)((name, symbol, code))
        deletes = symbol in _DELETE_SYMBOLS or code in _DELETE_CODES
        return deletes and down and {name for name, *_ in self._held} == {"control", "alt"}


def _announce_only() -> bytes:
    """Say, in a client's name, that it wants no text before it asks for it.

    A TigerVNC server otherwise sends up to 20 MiB of each copied text unasked. What the client
    asks for later is dropped, so that it hears of copied text but never gets any.
    """
    caps = struct.pack(">II", _CAPS | _REQUEST | _NOTIFY | _TEXT, 0)
    cut_text = _CUT_TEXT_HEADER.pack(_CUT_TEXT, -len(caps)) + caps
    return _set_encodings([_EXTENDED_CLIPBOARD]) + cut_text


def _set_encodings(encodings: Sequence[int]) -> bytes:
    header = _ENCODINGS_HEADER.pack(_SET_ENCODINGS, len(encodings))
    return header + struct.pack(f">{len(encodings)}i", *encodings)


def _fence_length(data: bytes, at: int) -> int:
    if len(data) - at < _FENCE_HEADER.size:
        return 0
    payload: int = _FENCE_HEADER.unpack_from(data, at)[2]
    if payload > _MOST_FENCE_BYTES:
        raise ProtocolError("a fence that is too long")
    return _FENCE_HEADER.size + payload


def _size_length(data: bytes, at: int) -> int:
    if len(data) - at < _DESKTOP_SIZE_HEADER.size:
        return 0
    screens: int = _DESKTOP_SIZE_HEADER.unpack_from(data, at)[3]
    return _DESKTOP_SIZE_HEADER.size + _SCREEN_BYTES * screens


def _copy(data: bytes, at: int, out: bytearray, *, length: int, passes: bool) -> int:
    """Take a whole message; a length of 0 says that even its header isn't whole."""
    if length == 0 or len(data) - at < length:
        return 0
    if passes:
        out += data[at : at + length]
    return length
