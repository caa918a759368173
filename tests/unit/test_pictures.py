"""What a picture says of itself is read from its head alone, and nothing is taken for one."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deskfleet.core.pictures import Look, look


def encoded(format: str, width: int, height: int, **how: object) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width, height), "navy").save(content, format, **how)
    return content.getvalue()


@given(width=st.integers(1, 600), height=st.integers(1, 600))
def test_a_png_and_a_jpeg_say_how_large_they_are(width: int, height: int) -> None:
    assert look(encoded("png", width, height)) == Look("png", width, height)
    assert look(encoded("jpeg", width, height)) == Look("jpeg", width, height)


def test_a_jpeg_may_say_much_before() -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description " * 1_000
    picture = encoded("jpeg", 7, 5, progressive=True, exif=exif, comment=b"x" * 5_000)
    assert look(picture) == Look("jpeg", 7, 5)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<svg onload='alert(1)'/>",
        b"GIF89a\x01\x00\x01\x00",
        b"\x89PNG\r\n\x1a\n",
        encoded("png", 5, 5)[:24],
        encoded("png", 5, 5)[:16] + b"\x00" * 40,
        encoded("jpeg", 5, 5)[:20],
        b"\xff\xd8\xff\xe0\x00\x00" * 10_000,
        b"\xff\xd8" + b"\xff\xe0\x00\x02" * 1_000_000,
        b" " + encoded("png", 5, 5),
    ],
)
def test_nothing_else_is_one(content: bytes) -> None:
    assert look(content) is None


@given(st.binary(max_size=300), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"]))
def test_noise_is_read_to_its_end(noise: bytes, head: bytes) -> None:
    seen = look(head + noise)
    assert seen is None or min(seen.width, seen.height) > 0
