"""TOML with line numbers: the standard library's reader, and a look at where each key stands."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Any

_TABLE = re.compile(r"\s*\[([^\[\]]+)\]")
_KEY = re.compile(r"""\s*((?:[\w-]+|"[^"\n]*"|'[^'\n]*')(?:\s*\.\s*[\w-]+)*)\s*=""")
_FENCE = re.compile(r'"""|\'\'\'')


def decode(content: bytes) -> str:
    """Return the text of a file, without the mark that editors on Windows put before it."""
    return content.decode("utf-8-sig")


def parse(text: str) -> dict[str, Any]:
    """Return the content. Raises `ValueError` with words for a person, which name the line."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def lines(text: str) -> dict[str, int]:
    """Return the line of each key, by its full name (`table.key`), and of each table.

    A key that is written in an odd way may be left out.
    """
    found: dict[str, int] = {}
    for number, name in _names(text):
        found.setdefault(name, number)
    return found


def _names(text: str) -> Iterator[tuple[int, str]]:
    table, fence = "", ""
    for number, line in enumerate(text.split("\n"), 1):
        if not fence:
            header, key = _TABLE.match(line), _KEY.match(line)
            if header is not None:
                table = _plain(header[1])
                yield number, table
            elif key is not None:
                name = _plain(key[1])
                yield number, f"{table}.{name}" if table else name
        for mark in _FENCE.findall(line):
            # Inside of a long text, only its own mark ends it.
            fence = mark if not fence else ("" if mark == fence else fence)


def _plain(name: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in name.split("."))
