"""A screen as a picture: made smaller if asked, never larger, and encoded.

Blocking and heavy on the processor (tens of milliseconds); it belongs into a thread. PNG is
compressed lightly: the time goes into zlib, and pictures travel once. Pillow is loaded with the
first picture: most agents never take one, and it is 4 MB.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from deskfleet.errors import Invalid

if TYPE_CHECKING:
    from PIL import Image

_JPEG_QUALITY = 80
_PNG_LEVEL = 1
_FORMATS = {"png": "png", "jpeg": "jpeg", "jpg": "jpeg"}


def picture_format(asked: str) -> str:
    """Return `png` or `jpeg`."""
    try:
        return _FORMATS[asked.lower()]
    except KeyError:
        raise Invalid(f"{asked!r} is no format of screenshots (png, jpeg)") from None


def encode(screen: Image.Image, *, max_width: int, max_height: int, format: str) -> bytes:
    """Return the screen, RGB or RGBX, in a format of `picture_format`, with its aspect kept."""
    from PIL.Image import Resampling  # noqa: PLC0415 - see above

    screen.thumbnail((max(1, max_width), max(1, max_height)), Resampling.BILINEAR)
    content = io.BytesIO()
    if format == "png":
        # PNG doesn't know pixels with a byte that means nothing.
        plain = screen.convert("RGB") if screen.mode == "RGBX" else screen
        plain.save(content, "png", compress_level=_PNG_LEVEL)
    else:
        screen.save(content, "jpeg", quality=_JPEG_QUALITY)
    return content.getvalue()
