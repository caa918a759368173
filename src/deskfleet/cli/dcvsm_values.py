"""How `dcvsm` reads the values of its options, where the library for command lines has no word.

Law: what is refused is refused by the name of its option, before anything is sent.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Collection, Sequence
from typing import NoReturn
from urllib.parse import quote

from deskfleet.errors import Invalid

ENQUEUE = "--enqueue-request"


def spelled_out(arguments: Sequence[str], valued: Collection[str]) -> list[str]:
    """Give each bare --enqueue-request its value.

    What follows an option of `valued` is that option's, whatever it looks like. The command takes
    no arguments but options, so what follows --enqueue-request is its value or another option.
    """
    rest, told = deque(arguments), list[str]()
    while rest:
        argument = rest.popleft()
        if argument == ENQUEUE:
            told.append(f"{ENQUEUE}={rest.popleft() if rest and rest[0][:1] != '-' else 'true'}")
            continue
        told.append(argument)
        if argument in valued and rest:
            told.append(rest.popleft())
    return told


def segment(option: str, value: str) -> str:
    """Return a value as a part of a path, where `.` and `..` would lead elsewhere."""
    if value in {"", ".", ".."}:
        raise Invalid(f"{option} can't be {value!r}")
    try:
        return quote(value, safe="")
    except UnicodeEncodeError:
        raise Invalid(f"{option} is not UTF-8 text") from None


def ids(option: str, text: str) -> tuple[str, ...]:
    return listed(option, text) or _none(option)


def _none(option: str) -> NoReturn:
    raise Invalid(f"{option} names nothing")


def listed(option: str, text: str | None) -> tuple[str, ...]:
    """Read a list with commas; quotes keep one that is part of a value."""
    try:
        rows = list(csv.reader([text or ""], skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise Invalid(f"{option} is not a list with commas: {error}") from None
    return tuple(part for row in rows for each in row if (part := each.strip()))


def truth(option: str, value: str) -> bool:
    if value.lower() not in {"true", "false"}:
        raise Invalid(f"{option} {value} is neither true nor false")
    return value.lower() == "true"
