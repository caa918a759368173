"""Java's properties format: as its documentation says, with lines, and never in the way."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deskfleet.configuration.properties import Entry, decode, parse

PIECES = st.sampled_from(["\\", "\\u00e4", "\\u", "=", ":", " ", "\t", "\f", "\n", "\r", "#", "!"])
TEXTS = st.lists(PIECES | st.text(max_size=3), max_size=40).map("".join)


def said(text: str) -> dict[str, str]:
    return {entry.key: entry.value for entry in parse(text)}


class TestEntries:
    @pytest.mark.parametrize(
        "line",
        ["key=value", "key = value", "key:value", "key value", "  key\t=\tvalue", "key\fvalue"],
    )
    def test_separators(self, line: str) -> None:
        assert said(line) == {"key": "value"}

    @pytest.mark.parametrize(
        ("line", "key", "value"),
        [
            ("key", "key", ""),
            ("key =", "key", ""),
            ("key = = x", "key", "= x"),
            ("key :=x", "key", "=x"),
            ("=x", "", "x"),
            (r"a\ b\=c = x", "a b=c", "x"),
            (r"key = a\tb\nc\\d\qe", "key", "a\tb\nc\\dqe"),
            (r"key = \u00E4\ud83d\ude00", "key", "\u00e4\U0001f600"),
            ("key = x # no comment", "key", "x # no comment"),
            ("key = x  ", "key", "x  "),
            (r"key = C:\\temp", "key", r"C:\temp"),
            ("key = \u00e4", "key", "\u00e4"),
        ],
    )
    def test_parts(self, line: str, key: str, value: str) -> None:
        assert parse(line) == [Entry(1, key, value)]

    def test_comments_and_blank_lines(self) -> None:
        assert said("# a = 1\n\n  ! b = 2 \\\nc = 3\n \t\f\n") == {"c": "3"}

    def test_lines(self) -> None:
        text = "# one\r\na = 1\r\rb = 2, \\\n    3, \\\r\n\t# 4\nc = 5"
        assert parse(text) == [Entry(2, "a", "1"), Entry(4, "b", "2, 3, # 4"), Entry(7, "c", "5")]

    def test_what_ends_in_the_middle(self) -> None:
        assert said("a = 1\\") == {"a": "1"}
        assert said("a = 1\\\\\nb = 2") == {"a": "1\\", "b": "2"}
        assert said("a = 1\\\n\nb = 2") == {"a": "1", "b": "2"}
        assert said("\\\n\\\n# none\na = 1") == {"a": "1"}

    def test_a_broken_escape_costs_its_own_line(self) -> None:
        first, second = parse("a = \\u12x4\nb = 2")
        assert (first.line, first.key, first.value) == (1, "a", "")
        assert "hexadecimal" in first.problem
        assert second == Entry(2, "b", "2")

    def test_half_a_character_costs_its_own_line(self) -> None:
        first, second = parse("a = \\ud83d\nb = 2")
        assert first.problem
        assert second == Entry(2, "b", "2")

    def test_the_last_of_two_is_there_with_the_first(self) -> None:
        assert [entry.value for entry in parse("a = 1\na = 2")] == ["1", "2"]


class TestDecoding:
    def test_utf_8_or_the_formats_own(self) -> None:
        assert decode("\u00e4".encode()) == "\u00e4"
        assert decode("\u00e4".encode("latin-1")) == "\u00e4"
        assert decode(b"\xef\xbb\xbfa=1") == "a=1"


class TestAnyText:
    @given(TEXTS)
    @example("\\" * 7 + "\n")
    def test_gives_entries(self, text: str) -> None:
        count = len(text.splitlines()) + 1
        for entry in parse(text):
            assert 1 <= entry.line <= count
            entry.value.encode()

    @given(st.binary(max_size=200))
    def test_any_bytes(self, content: bytes) -> None:
        parse(decode(content))

    @given(
        st.dictionaries(
            st.text("abc.-", min_size=1, max_size=8), st.text("xyz=:# 1", max_size=9), max_size=9
        )
    )
    def test_what_is_written_is_read(self, entries: dict[str, str]) -> None:
        text = "".join(f"{key} = {value}\n" for key, value in entries.items())
        # Blanks before a value are no part of it, nor is the sign that follows them.
        assert said(text) == {key: value.lstrip() for key, value in entries.items()}

    @pytest.mark.parametrize("text", ["\\\n", "a\\\n", "\\u", "=", "# \n", "\\\\", " ", "a=\\\n\n"])
    def test_takes_time_in_proportion(self, text: str) -> None:
        began = time.monotonic()
        parse(text * 200_000)
        assert time.monotonic() - began < 20
