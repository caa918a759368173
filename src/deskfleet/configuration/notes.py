"""What became of each line of a configuration file: the words that all readers of files share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

MASK = "********"
_HINTS = 20
"""Looking for the nearest name takes a millisecond; a file of nothing but mistakes gets no more."""
_LONGEST_NAME = 100


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
    holds_secrets: bool = False
    is_guarded: bool = False
    """Only root, or the user of this program, may own such a file."""
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
    """Return a question for the known name that looks most like this one, or nothing."""
    if len(name) > _LONGEST_NAME:
        return ""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
