"""What became of each line of a configuration file: the words that all readers of files share."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

MASK = "********"
_HINTS = 20
"""Looking for the nearest name takes some milliseconds: a file of nothing but mistakes gets no more
hints than that."""
_LONGEST_NAME = 100
_NEAR = 0.6
_SAME_WORD = 0.8
_ALL_WORDS = 0.8


class Verdict(StrEnum):
    USED = "used"
    DEFAULT = "default"
    """The file says nothing; this is what its format has in that case."""
    IGNORED = "ignored"
    OVERRIDDEN = "overridden"
    """Said again further down."""
    UNKNOWN = "unknown"
    WRONG = "wrong"
    MISSING = "missing"
    """Wrong, unless the environment or an option has it."""


@dataclass(frozen=True, slots=True)
class Note:
    """One line of the file, or one key that it lacks (`line` None)."""

    key: str
    verdict: Verdict
    line: int | None = None
    value: str = ""
    """As the file has it; masked where it is a secret."""
    setting: str = ""
    text: str = ""
    """Why it is ignored, or what is wrong."""
    is_urgent: bool = False
    """Somebody asked for what they don't get."""

    @property
    def place(self) -> str:
        return self.key if self.line is None else f"line {self.line}: {self.key}"


@dataclass(frozen=True, slots=True)
class Given:
    """A value for a setting, and the note of the line that gave it."""

    value: Any
    note: Note


@dataclass(slots=True)
class Translation:
    """A file as settings: values by the settings' names, and a note for everything in it."""

    values: dict[str, Given] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    is_private: bool = False
    """Not everybody may read such a file: it holds passwords, or its format has it so."""
    _strangers: int = 0

    def use(self, setting: str, value: Any, note: Note) -> None:
        self.values[setting] = Given(value, note)
        self.notes.append(note)

    def default(self, key: str, setting: str, value: Any) -> None:
        """Use what the format of the file has where the file says nothing."""
        note = Note(key, Verdict.DEFAULT, value=str(value), setting=setting)
        self.use(setting, value, note)

    def unknown(self, key: str, line: int | None, known: Iterable[str]) -> None:
        """Note a key that nobody knows, with the nearest one that is known."""
        self._strangers += 1
        hint = nearest(key, known) if self._strangers <= _HINTS else ""
        self.notes.append(Note(key[:_LONGEST_NAME], Verdict.UNKNOWN, line, text=hint.lstrip("; ")))


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a question for the known name that looks most like this one, or nothing.

    Small and large letters and the signs between words are all the same; and so is a name that has
    all the words of this one among others: `gateway-port` is short for something. Of names that
    are as near, the first is meant.
    """
    if len(name) > _LONGEST_NAME:
        return ""
    words = _words(name)
    near = max(known, key=lambda one: _nearness(words, _words(one)), default="")
    return f"; did you mean {near}?" if _nearness(words, _words(near)) >= _NEAR else ""


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[-_.\s]+", name.casefold()) if word]


def _nearness(words: list[str], others: list[str]) -> float:
    """Return how much two names look alike, from 0 to 1."""
    alike = _likeness("-".join(words), "-".join(others))
    found = [word for word in words if any(_likeness(word, one) >= _SAME_WORD for one in others)]
    if len(words) < 2 or len(found) < len(words):
        return alike
    return max(alike, _ALL_WORDS + (1 - _ALL_WORDS) * len(words) / (len(others) + 1))


def _likeness(one: str, other: str) -> float:
    matcher = difflib.SequenceMatcher(None, one, other)
    # Bounds of the ratio, which cost less than it does.
    if min(matcher.real_quick_ratio(), matcher.quick_ratio()) < _NEAR:
        return 0.0
    return matcher.ratio()
