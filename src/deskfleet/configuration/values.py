"""Which values a setting may have: texts, numbers and words become what the setting is, or not.

Every function raises `ValueError` with words for an administrator.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Any, get_args

Rule = Callable[[Any], None]

MOST = 2**31 - 1
"""What the field's configuration files use for "never" and "no limit"; all arithmetic holds it."""
LONGEST_TEXT = 4096
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def number(least: float, most: float = MOST) -> Rule:
    """Return the rule for a number from `least` to `most`."""

    def check(value: float) -> None:
        if value < least:
            raise ValueError(f"{value} is too small: {least} is the least")
        if value > most:
            raise ValueError(f"{value} is too large: {most} is the most")

    return check


def port(value: int) -> None:
    if not 0 <= value <= 65_535:
        raise ValueError(f"{value} is not a port: 0 to 65535 are")


def one_of(*words: str) -> Rule:
    def check(value: str) -> None:
        if value not in words:
            raise ValueError(f"{value!r} is not one of {', '.join(words)}")

    return check


def urls(value: str) -> None:
    """Check one or more https URLs, with commas between."""
    for url in value.split(","):
        if not re.fullmatch(r"https://[^\s/?#@]+(/[^\s?#]*)?", url.strip()):
            raise ValueError(f"{url.strip()!r} is not the URL of a broker: https://HOST:PORT")


def size(value: str) -> None:
    """Check the size of a screen: WIDTHxHEIGHT in pixels."""
    found = re.fullmatch(r"([1-9][0-9]{1,4})x([1-9][0-9]{1,4})", value, re.ASCII)
    if found is None or max(int(found[1]), int(found[2])) > 32_767:
        raise ValueError(f"{value!r} is not a size such as 1280x800")


def convert(value: Any, kind: Any, rule: Rule | None = None) -> Any:
    """Return `value` as `kind` (a type, or one that may be None), checked by `rule`.

    An empty text is None where that may be.
    """
    wanted, may_be_none = _parts(kind)
    if value is None or (may_be_none and isinstance(value, str) and not value.strip()):
        if may_be_none:
            return None
        raise ValueError("there is no value")
    converted = _converted(value, wanted)
    if rule is not None:
        rule(converted)
    return converted


def _parts(kind: Any) -> tuple[Any, bool]:
    parts = get_args(kind)
    wanted = next((part for part in parts if part is not NoneType), kind)
    return wanted, NoneType in parts


def _converted(value: Any, wanted: Any) -> Any:
    if wanted is bool:
        return truth(value)
    if wanted in {int, float}:
        return _number(value, wanted)
    if wanted is str and not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    if wanted is Path and not isinstance(value, str | Path):
        raise ValueError(f"{value!r} is not a path")
    text = str(value)
    if "\0" in text or len(text) > LONGEST_TEXT:
        raise ValueError("it holds a NUL, or is too long")
    if wanted is Path and not text.strip():
        raise ValueError("there is no path")
    return wanted(value)


def _number(value: Any, wanted: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{value!r} is not a number")  # noqa: TRY004 - a value for administrators
    if wanted is int and isinstance(value, float):
        raise ValueError(f"{value} is not a whole number")
    try:
        found = wanted(value)
    except (ValueError, OverflowError):
        kind = "a whole number" if wanted is int else "a number"
        raise ValueError(f"{str(value)[:100]!r} is not {kind}") from None
    if not math.isfinite(found):
        raise ValueError(f"{value} is not a finite number")
    return found


def truth(value: Any) -> bool:
    """Return what a word for yes or no means: the one reader of such words."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in _TRUTH:
        return _TRUTH[value.strip().lower()]
    raise ValueError(f"{value!r} is neither true nor false")
