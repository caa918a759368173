"""Java's properties format, as `java.util.Properties` documents it, with line numbers.

Laws: any text gives an answer, in one pass. What the format leaves no room for (a broken unicode
escape) is told with its line, and costs that line alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_BLANK = " \t\f"
_LINE_END = re.compile(r"\r\n|\r|\n")
_ESCAPE = re.compile(r"\\(u[0-9A-Fa-f]{4}|u|.|\Z)", re.DOTALL)
_SPOKEN = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Entry:
    """A key with its value; `problem` is why it can't be read, where it can't."""

    line: int
    key: str
    value: str
    problem: str = ""


def decode(content: bytes) -> str:
    """Return the text of a file: UTF-8 where it is that, else Latin-1, the format's own."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def parse(text: str) -> list[Entry]:
    """Return the entries in their order; a key may come several times."""
    return [_entry(number, line) for number, line in _logical_lines(text)]


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Join what a backslash at the end continues; drop comments and blank lines."""
    parts: list[str] = []
    began = 0
    for number, natural in enumerate(_LINE_END.split(text), 1):
        line = natural.lstrip(_BLANK)
        if not parts:
            # A comment is one even where a backslash before it continues an empty line.
            if not line or line[0] in "#!":
                continue
            began = number
        is_continued = _is_continued(line)
        part = line[:-1] if is_continued else line
        if part:
            parts.append(part)
        if parts and not is_continued:
            yield began, "".join(parts)
            parts = []
    if parts:
        yield began, "".join(parts)


def _is_continued(line: str) -> bool:
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


def _entry(number: int, line: str) -> Entry:
    end = _key_end(line)
    rest = line[end:].lstrip(_BLANK)
    if rest[:1] in {"=", ":"}:
        rest = rest[1:].lstrip(_BLANK)
    try:
        return Entry(number, _unescaped(line[:end]), _unescaped(rest))
    except ValueError as error:
        return Entry(number, line[:end], "", str(error))


def _key_end(line: str) -> int:
    position = 0
    while position < len(line) and line[position] not in "=: \t\f":
        position += 2 if line[position] == "\\" else 1
    return min(position, len(line))


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    plain = _ESCAPE.sub(_meant, text)
    if _SURROGATE.search(plain):
        # Characters beyond the first 65,536 are written as two escapes.
        plain = plain.encode("utf-16", "surrogatepass").decode("utf-16")
    return plain


def _meant(escape: re.Match[str]) -> str:
    what = escape[1]
    if what == "u":
        raise ValueError(r"\u needs four hexadecimal digits")
    if len(what) == 5:
        return chr(int(what[1:], 16))
    return _SPOKEN.get(what, what)
