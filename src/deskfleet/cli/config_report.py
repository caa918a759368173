"""What a configuration file is good for, told line by line: used, ignored, wrong.

It is looked at as a start would, by this user and with the environment that is there now. No secret
is printed, and no control character that a file may hold.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from deskfleet.cli.output import as_json, clean
from deskfleet.cli.program import CANT_RUN
from deskfleet.configuration.examining import NO_LINE, Examined, fields_of
from deskfleet.configuration.notes import MASK, Note, Verdict
from deskfleet.errors import SetupFailed
from deskfleet.machine import here
from deskfleet.observe import redact
from deskfleet.settings import AgentSettings, BrokerSettings, layered

ERRORS = {Verdict.WRONG, Verdict.MISSING}
File = Annotated[Path, typer.Argument(help="The file to explain.")]


class Form(StrEnum):
    text = "text"
    json = "json"


Output = Annotated[Form, typer.Option(help="How to print it.")]
Look = Callable[[Mapping[str, Any]], Iterable[tuple[str, str]]]
"""Looks at what the settings name; gives a setting and what is wrong there."""
Attempt = Callable[[], object]
"""Does a part of what a start does, and changes nothing. Raises `SetupFailed`."""


def report(
    kind: type[BrokerSettings | AgentSettings], file: Path, output: Form, look: Look
) -> None:
    """Print what becomes of a file; ends with an error where a program would not start with it."""
    try:
        found = layered(kind, file, environment=os.environ, flags={})
        examined = _looked_at(found, look)
    except SetupFailed as error:
        note = Note(NO_LINE, Verdict.WRONG, text=error.message)
        examined = Examined(file, {}, (note,))
    if output is Form.json:
        typer.echo(as_json(_members(kind, examined)))
    else:
        for line in _lines(kind, examined):
            typer.echo(clean(line))
    if any(note.verdict in ERRORS for note in examined.notes):
        raise typer.Exit(CANT_RUN)


def unusable_folder(folder: Path) -> str | None:
    """Return why a program would not start with a folder, as far as that can be told without it."""
    try:
        # Whoever asks: a program runs as who owns its folder.
        here.refuse_unsafe_folder(folder, folder.stat().st_uid if folder.exists() else None)
        there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
        if not there.is_dir():
            return f"the folder {folder} can't be used: {there} is not a folder"
        if not os.access(there, os.W_OK | os.X_OK):
            return f"the folder {folder} can't be used: {there} can't be written to"
    except SetupFailed as error:
        return error.message
    except OSError as error:
        return f"the folder {folder} can't be used: {error.strerror}"
    return None


def refusals(attempts: Iterable[tuple[str, Attempt]]) -> Iterator[tuple[str, str]]:
    """Make attempts, each with the setting that would be to blame; give what was refused."""
    for setting, attempt in attempts:
        try:
            attempt()
        except SetupFailed as error:
            yield setting, error.message


def _looked_at(examined: Examined, look: Look) -> Examined:
    wrong: dict[str, str] = {}
    for setting, why in look(examined.values):
        wrong.setdefault(setting, why)
    blamed: set[str] = set()

    def judged(note: Note) -> Note:
        if note.verdict in {Verdict.USED, Verdict.DEFAULT} and note.setting in wrong:
            blamed.add(wrong[note.setting])
            return dataclasses.replace(note, verdict=Verdict.WRONG, text=wrong[note.setting])
        return note

    notes = [judged(note) for note in examined.notes]
    # What the file doesn't say can be wrong, too: a default, or a variable of the environment.
    for setting, why in wrong.items():
        if why not in blamed:
            blamed.add(why)
            notes.append(Note(setting, Verdict.WRONG, text=why))
    return dataclasses.replace(examined, notes=tuple(notes))


def _lines(kind: type[BrokerSettings | AgentSettings], examined: Examined) -> Iterator[str]:
    for note in examined.notes:
        where = "" if note.line is None else f"line {note.line}"
        yield f"{where:<9} {note.verdict:<10} {_story(kind, examined, note)}"
    counts = Counter(note.verdict for note in examined.notes)
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    yield f"{examined.path}: {told or 'nothing in it'}"


def _story(kind: type[BrokerSettings | AgentSettings], examined: Examined, note: Note) -> str:
    if note.verdict in {Verdict.USED, Verdict.DEFAULT}:
        setting = f"{note.setting} = {_value(kind, examined, note.setting)}"
        return f"{note.key}: {setting}" + (f" ({note.text})" if note.text else "")
    said = f" = {redact(note.value)}" if note.value and note.verdict in ERRORS else ""
    return f"{note.key}{said}" + (f": {note.text}" if note.text else "")


def _members(kind: type[BrokerSettings | AgentSettings], examined: Examined) -> dict[str, Any]:
    lines = [
        {
            "line": note.line,
            "key": note.key,
            "verdict": note.verdict.value,
            "value": redact(note.value) or None,
            "setting": note.setting or None,
            "setting_value": _value(kind, examined, note.setting)
            if note.verdict in {Verdict.USED, Verdict.DEFAULT}
            else None,
            "text": note.text or None,
        }
        for note in examined.notes
    ]
    is_good = not any(note.verdict in ERRORS for note in examined.notes)
    return {"file": str(examined.path), "good": is_good, "notes": lines}


def _value(kind: type[BrokerSettings | AgentSettings], examined: Examined, setting: str) -> str:
    if fields_of(kind)[setting].metadata.get("secret"):
        return MASK
    value = examined.values.get(setting)
    return str(value).lower() if isinstance(value, bool) else redact(str(value))
