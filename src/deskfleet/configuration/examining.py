"""A configuration file, looked at line by line: which settings it gives, and what is wrong.

The settings are those of any dataclass whose fields say in their metadata what they mean, which
values they may have (`rule`) and whether they are `secret`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from deskfleet.configuration import toml
from deskfleet.configuration.files import (
    Content,
    content_of,
    why_changeable,
    why_foreign,
    why_readable,
)
from deskfleet.configuration.notes import MASK, Note, Translation, Verdict, nearest
from deskfleet.configuration.values import convert
from deskfleet.errors import SetupFailed

NO_LINE = "(file)"
"""Stands for a key where a note is about the file as such, or about what stands beside it."""
_SHOWN = 200

Original = Callable[[Content], Translation | None]
"""Reads a file of the original product; None where it isn't one."""


@dataclass(frozen=True, slots=True)
class Examined:
    """A file as settings, with a note for everything that is in it."""

    path: Path
    values: Mapping[str, Any]
    notes: tuple[Note, ...]

    def problem(self, note: Note) -> str | None:
        """Return what is wrong there, in a line for an administrator; None where nothing is."""
        if note.verdict not in {Verdict.WRONG, Verdict.MISSING}:
            return None
        if note.key == NO_LINE:
            return note.text
        where = "" if note.line is None else f", line {note.line}"
        return f"{self.path}{where}: {note.key}: {note.text}"


def examine(kind: type[Any], file: Path, original: Original) -> Examined:
    """Read a file. Raises `SetupFailed` only where nothing can be read."""
    content = content_of(file)
    try:
        translation = original(content) or _own(kind, content)
    except ValueError as error:
        raise SetupFailed(f"{file} can't be read: {error}") from error
    notes = [*_exposure(content, translation), *translation.notes]
    values: dict[str, Any] = {}
    for name, given in translation.values.items():
        try:
            values[name] = convert_setting(kind, name, given.value)
        except ValueError as error:
            wrong = dataclasses.replace(given.note, verdict=Verdict.WRONG, text=str(error))
            notes = [wrong if note == given.note else note for note in notes]
    return Examined(file, values, tuple(sorted(notes, key=_place)))


def convert_setting(kind: type[Any], name: str, value: Any) -> Any:
    """Return a value as a setting has it. Raises `ValueError` with why not, and `KeyError`."""
    setting = fields_of(kind)[name]
    try:
        return convert(value, get_type_hints(kind)[name], setting.metadata.get("rule"))
    except ValueError:
        if setting.metadata.get("secret"):
            raise ValueError("it is not a text") from None
        raise


def fields_of(kind: type[Any]) -> dict[str, dataclasses.Field[Any]]:
    return {one.name: one for one in dataclasses.fields(kind)}


def _place(note: Note) -> tuple[bool, int]:
    # What the file lacks comes after what it has.
    return note.line is None and note.key != NO_LINE, note.line or 0


def _own(kind: type[Any], content: Content) -> Translation:
    """Read deskfleet's own TOML, whose names are those of the settings."""
    text = toml.decode(content.text)
    lines, known, result = toml.lines(text), fields_of(kind), Translation()
    for name, value in toml.parse(text).items():
        line = lines.get(name)
        if name in known:
            is_secret = bool(known[name].metadata.get("secret"))
            shown = MASK if is_secret else str(value)[:_SHOWN]
            result.is_private |= is_secret and bool(value)
            result.use(name, value, Note(name, Verdict.USED, line, shown, name))
        else:
            why = f"it is not a setting{nearest(name, known)}"
            result.notes.append(Note(name[:_SHOWN], Verdict.WRONG, line, text=why))
    return result


def _exposure(content: Content, translation: Translation) -> Iterator[Note]:
    """Note what others could do to a file, or read in it."""
    foreign = why_foreign(content)
    changeable = None if foreign else why_changeable(content)
    readable = why_readable(content) if translation.is_private else None
    for text in (foreign, changeable, readable):
        if text is not None:
            yield Note(NO_LINE, Verdict.WRONG, text=text)
