"""What an encoded picture says of itself. It comes from a server and goes to clients: nobody here
decodes it, and nothing is believed of it that isn't written where it must be.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_BYTES = 24 * 1024 * 1024
"""Of all screens of a session: one of 3840x2160 of which no pixel is like the next fits, as PNG."""
MOST_PIXELS = 32_767
"""Of a side: no screen of X has more, so no program need be asked for more."""

_PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_JPEG = b"\xff\xd8\xff"
_MOST_SEGMENTS = 256
"""That may stand before the size of a JPEG; who encodes a screen writes less than ten."""
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of the segments that begin with the size."""


@dataclass(frozen=True, slots=True)
class Look:
    """What kind of picture it is. Sizes are pixels."""

    format: str
    width: int
    height: int


def look(content: bytes) -> Look | None:
    """Read the head of a PNG or a JPEG; None for anything else."""
    if content.startswith(_PNG):
        width, height = content[16:20], content[20:24]
        return _look("png", width, height, whole=len(content) > 24)
    return _look_at_jpeg(content) if content.startswith(_JPEG) else None


def _look_at_jpeg(content: bytes) -> Look | None:
    at = 2
    for _ in range(_MOST_SEGMENTS):
        head = content[at : at + 9]
        if len(head) < 9 or head[0] != 0xFF:
            return None
        if head[1] in _FRAMES:
            return _look("jpeg", head[7:9], head[5:7], whole=True)
        # At least its own two bytes, else it would stand still.
        at += 2 + max(2, int.from_bytes(head[2:4], "big"))
    return None


def _look(format: str, width: bytes, height: bytes, *, whole: bool) -> Look | None:
    size = int.from_bytes(width, "big"), int.from_bytes(height, "big")
    return Look(format, *size) if whole and min(size) > 0 else None
