"""The filter of what browsers say to desktops: framing, permissions, rewrites."""

from __future__ import annotations

import random
import struct
from dataclasses import fields, replace

import pytest

from deskfleet.agent.desktop.rfb import RfbFilter, Rights, rights_of
from deskfleet.core.permissions import Feature
from deskfleet.errors import ProtocolError

ALL = Rights(**{field.name: True for field in fields(Rights)})
VIEW_ONLY = rights_of({Feature.DISPLAY, Feature.POINTER})

EXTENDED_CLIPBOARD = struct.unpack(">i", b"\xc0\xa1\xe5\xce")[0]
CAPS, REQUEST, PEEK, NOTIFY, PROVIDE = (1 << bit for bit in range(24, 29))

HELLO = b"RFB 003.008\n" + b"\x01" + b"\x01"


def encodings(*wanted: int) -> bytes:
    return struct.pack(f">BxH{len(wanted)}i", 2, len(wanted), *wanted)


def cut_text(text: bytes) -> bytes:
    return struct.pack(">B3xi", 6, len(text)) + text


def extended(flags: int, body: bytes = b"") -> bytes:
    return struct.pack(">B3xiI", 6, -(4 + len(body)), flags) + body


def key(symbol: int, *, down: bool = True) -> bytes:
    return struct.pack(">BBxxI", 4, down, symbol)


def qemu_key(symbol: int, code: int, *, down: bool = True) -> bytes:
    return struct.pack(">BBHII", 255, 0, down, symbol, code)


PIXEL_FORMAT = struct.pack(">Bxxx16x", 0)
UPDATE_REQUEST = struct.pack(">BBHHHH", 3, 1, 0, 0, 800, 600)
POINTER = struct.pack(">BBHH", 5, 1, 10, 20)
CONTINUOUS = struct.pack(">BBHHHH", 150, 1, 0, 0, 800, 600)
FENCE = struct.pack(">B3xIB", 248, 0, 5) + b"fence"
SIZE = struct.pack(">BxHHBx", 251, 1000, 672, 1) + struct.pack(">IHHHHI", 0, 0, 0, 1000, 672, 0)
ENCODINGS = encodings(1, 7, 16, 0, -32, -256, -223, -308, -312, -313, EXTENDED_CLIPBOARD)

# What a browser that plays by the rules says: nothing of it needs a rewrite.
CONVERSATION = [
    HELLO,
    PIXEL_FORMAT,
    ENCODINGS,
    UPDATE_REQUEST,
    CONTINUOUS,
    FENCE,
    SIZE,
    key(0x61),
    key(0x61, down=False),
    qemu_key(0x62, 48),
    POINTER,
    cut_text(b"plain text"),
    cut_text(b""),
    extended(CAPS | REQUEST | NOTIFY | PROVIDE | 1, b"\0\0\0\0"),
    extended(REQUEST | 1),
    extended(NOTIFY | 1),
    extended(PROVIDE | 1, bytes(range(256)) * 40),
    POINTER,
]


def filtered(rights: Rights, *messages: bytes) -> bytes:
    return RfbFilter(rights).feed(HELLO + b"".join(messages))[len(HELLO) :]


def fragmented(rights: Rights, stream: bytes, seed: int) -> bytes:
    dice = random.Random(seed)
    client_filter, out, at = RfbFilter(rights), b"", 0
    while at < len(stream):
        step = dice.choice((1, 2, 3, 7, 20, 100, 5000))
        out += client_filter.feed(stream[at : at + step])
        at += step
    return out


def message_types(stream: bytes) -> list[int]:
    """Frame what came out, with framing rules that are not the filter's own code."""
    types, at = [], 0
    while at < len(stream):
        kind = stream[at]
        types.append(kind)
        if kind == 2:
            at += 4 + 4 * struct.unpack_from(">H", stream, at + 2)[0]
        elif kind == 6:
            at += 8 + abs(struct.unpack_from(">i", stream, at + 4)[0])
        elif kind == 248:
            at += 9 + stream[at + 8]
        elif kind == 251:
            at += 8 + 16 * stream[at + 6]
        else:
            at += {0: 20, 3: 10, 4: 8, 5: 6, 150: 10, 255: 12}[kind]
    assert at == len(stream)
    return types


@pytest.mark.parametrize(
    "rights", [ALL, VIEW_ONLY, replace(ALL, copy=False), replace(ALL, attention=False)]
)
def test_any_fragmentation_gives_the_same_bytes(rights: Rights) -> None:
    stream = b"".join(CONVERSATION)
    whole = RfbFilter(rights).feed(stream)
    assert all(fragmented(rights, stream, seed) == whole for seed in range(300))


def test_with_all_rights_nothing_is_changed() -> None:
    stream = b"".join(CONVERSATION)
    assert RfbFilter(ALL).feed(stream) == stream


def test_view_only_passes_no_input() -> None:
    out = filtered(VIEW_ONLY, *CONVERSATION[1:])
    types = message_types(out)
    assert {4, 5, 251, 255}.isdisjoint(types)
    assert types.count(6) == 1, "only the announcement that the filter itself makes"
    assert {0, 2, 3, 150, 248} <= set(types)


def test_without_display_no_picture_is_asked_for() -> None:
    out = filtered(replace(ALL, see=False), UPDATE_REQUEST, CONTINUOUS, POINTER)
    assert message_types(out) == [5]


def test_a_desktop_is_always_shared() -> None:
    out = RfbFilter(ALL).feed(b"RFB 003.008\n\x01\x00")
    assert out == b"RFB 003.008\n\x01\x01"


def test_unknown_encodings_are_taken_out() -> None:
    out = filtered(ALL, encodings(7, -316, -309, -305, 9999, 0))
    assert out == encodings(7, 0)


def test_who_may_not_see_the_pointer_gets_it_in_the_picture_only() -> None:
    out = filtered(replace(ALL, cursor=False), encodings(7, -239, 0x574D5664))
    assert out == encodings(7)


class TestNoCopy:
    rights = replace(ALL, copy=False)
    announcement = encodings(EXTENDED_CLIPBOARD) + extended(
        CAPS | REQUEST | NOTIFY | 1, b"\0\0\0\0"
    )

    def test_the_server_is_told_at_once_to_announce_only(self) -> None:
        assert filtered(self.rights) == self.announcement

    def test_a_legacy_client_is_spoken_for(self) -> None:
        out = filtered(self.rights, encodings(7, 0))
        assert out == self.announcement + encodings(7, 0, EXTENDED_CLIPBOARD)

    @pytest.mark.parametrize(
        "flags", [CAPS | PROVIDE | 1, REQUEST | 1, PEEK, REQUEST | PROVIDE | 1, CAPS | NOTIFY]
    )
    def test_nothing_that_could_fetch_text_passes(self, flags: int) -> None:
        assert filtered(self.rights, extended(flags, b"\0\0\0\0"), POINTER) == (
            self.announcement + POINTER
        )

    def test_it_may_still_paste(self) -> None:
        offer = extended(NOTIFY | 1) + extended(PROVIDE | 1, b"text") + cut_text(b"text")
        assert filtered(self.rights, offer) == self.announcement + offer


def test_no_paste_passes_no_text_but_may_copy() -> None:
    rights = replace(ALL, paste=False)
    asks = extended(CAPS | REQUEST | PROVIDE | 1, b"\0\0\0\0") + extended(REQUEST | 1)
    offers = extended(NOTIFY | 1) + extended(PROVIDE | 1, b"text") + cut_text(b"text")
    assert filtered(rights, offers, asks, offers) == asks


@pytest.mark.parametrize(
    ("control", "alt", "delete"),
    [
        (key(0xFFE3), key(0xFFE9), key(0xFFFF)),
        (key(0xFFE4), key(0xFFE7), key(0xFF9F)),
        (qemu_key(0, 0x1D), qemu_key(0, 0x38), qemu_key(0, 0xD3)),
        (qemu_key(0, 0xE01D), qemu_key(0, 0xE038), qemu_key(0, 0xE053)),
        (key(0xFFE3), qemu_key(0, 0xB8), key(0xFFFF)),
    ],
)
def test_ctrl_alt_del_needs_its_own_right(control: bytes, alt: bytes, delete: bytes) -> None:
    rights = replace(ALL, attention=False)
    assert filtered(rights, control, alt, delete) == control + alt
    assert filtered(rights, control, delete) == control + delete
    assert filtered(ALL, control, alt, delete) == control + alt + delete


def test_delete_works_again_after_ctrl_is_up() -> None:
    up = key(0xFFE3, down=False)
    stream = [key(0xFFE3), key(0xFFE9), up, key(0xFFFF)]
    assert filtered(replace(ALL, attention=False), *stream) == b"".join(stream)


@pytest.mark.parametrize(
    "stream",
    [
        b"RFB 003.003\n",
        b"GET / HTTP/1.1\r\n",
        b"RFB 003.008\n\x02",
        HELLO + b"\xfa",
        HELLO + b"\x01" * 20,
        HELLO + struct.pack(">BBHII", 255, 1, 0, 0, 0),
        HELLO + struct.pack(">BxH", 2, 5000),
        HELLO + struct.pack(">B3xIB", 248, 0, 65),
        HELLO + struct.pack(">B3xi", 6, -3),
        HELLO + struct.pack(">B3xi", 6, -(1 << 31)),
        HELLO + struct.pack(">B3xi", 6, 1 << 30),
    ],
)
def test_what_cant_be_framed_ends_the_connection(stream: bytes) -> None:
    with pytest.raises(ProtocolError):
        RfbFilter(ALL).feed(stream)


def test_a_long_text_is_not_kept() -> None:
    client_filter = RfbFilter(ALL)
    client_filter.feed(HELLO + struct.pack(">B3xi", 6, 20 << 20))
    assert len(client_filter.feed(bytes(1 << 20))) == 1 << 20


def test_features_become_rights() -> None:
    assert rights_of(frozenset(Feature)) == ALL
    assert not any(getattr(rights_of(()), field.name) for field in fields(Rights))
    assert not rights_of({Feature.KEYBOARD_SAS}).attention
    seen = {"see", "cursor"}
    assert all(getattr(VIEW_ONLY, field.name) == (field.name in seen) for field in fields(Rights))
