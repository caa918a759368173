"""`session-manager-broker.properties` as settings of a broker, by the table of its keys.

Laws: every line of the file has a note. An empty value is as good as no line. A key that is said
twice counts as Java counts it: the last time. Original files start as they stand, so a key that
nobody knows is a note and not a mistake. The name of one of deskfleet's own settings is a mistake,
and not a stranger: whoever wrote it wants something, a gateway's certificate perhaps, and the
original never had it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from deskfleet.configuration.broker_keys import KEYS, LOG_FOLDER, STATE, Key
from deskfleet.configuration.files import Content
from deskfleet.configuration.notes import MASK, Note, Translation, Verdict
from deskfleet.configuration.properties import Entry, decode, parse

_BY_NAME = {key.name: key for key in KEYS}
_BY_SETTING = {key.setting: key for key in KEYS if key.setting}
_ANY_CASE = {key.name: key for key in KEYS if key.any_case}
_OLD_HOURS = "delete-session-duration-hours"
_SUGGESTED = sorted(_BY_NAME, key=lambda name: name == _OLD_HOURS)
"""Where several are as near, the first is meant: nobody is led to what is deprecated."""
_EMPTY = "it is empty: the default stays"
_SECONDS = "delete-session-duration-seconds"


def known(name: str) -> Key | None:
    """Return the table's row for a key as a file spells it."""
    return _BY_NAME.get(name) or _ANY_CASE.get(name.lower())


def key_of(setting: str) -> str:
    """Return the key that says a setting."""
    return _BY_SETTING[setting].name


def read(content: Content, settings: Collection[str]) -> Translation | None:
    """Read the file where it is one; `settings` are the names of all settings."""
    return translate(decode(content.text), settings) if is_one(content) else None


def is_one(content: Content) -> bool:
    """Say whether a file is one: by its suffix, or by its keys, whose dashes no setting has."""
    suffix = content.path.suffix
    if suffix in {".properties", ".toml"}:
        return suffix == ".properties"
    return any(known(entry.key) for entry in parse(decode(content.text)))


def translate(text: str, settings: Collection[str] = ()) -> Translation:
    """Return what a file says, in settings. What is wrong with it is in the notes."""
    # Whatever is in it: the original doesn't start with one that everybody can read.
    result = Translation(is_private=True)
    last: dict[str, Entry] = {}
    entries = parse(text)
    for entry in entries:
        row = known(entry.key)
        last[row.name if row else entry.key] = entry
    said = {name: entry.value for name, entry in last.items() if name in _BY_NAME}
    for entry in entries:
        if entry.key in settings:
            result.notes.append(
                Note(entry.key, Verdict.WRONG, entry.line, text=_why_wrong(entry.key))
            )
        else:
            _translate(entry, last, said, result)
    if "state" not in result.values:
        result.default("session-manager-working-path", "state", STATE)
    if Path(LOG_FOLDER).is_dir():
        result.default("(log folder)", "log_directory", LOG_FOLDER)
    return result


def _why_wrong(setting: str) -> str:
    if setting in _BY_SETTING:
        return f"it is a setting of deskfleet's own TOML; here its name is {key_of(setting)}"
    return (
        "it is a setting of deskfleet's own TOML; this file has no name for it, but the environment"
        f" has: DESKFLEET_{setting.upper()}"
    )


def _translate(
    entry: Entry, last: dict[str, Entry], said: dict[str, str], result: Translation
) -> None:
    row = known(entry.key)
    if entry.problem:
        result.notes.append(Note(entry.key, Verdict.WRONG, entry.line, text=entry.problem))
    elif last[row.name if row else entry.key] is not entry:
        text = f"line {last[row.name if row else entry.key].line} says it again"
        result.notes.append(Note(entry.key, Verdict.OVERRIDDEN, entry.line, text=text))
    elif row is None:
        result.unknown(entry.key, entry.line, _SUGGESTED)
    else:
        _translate_known(entry, row, said, result)


def _translate_known(entry: Entry, row: Key, said: dict[str, str], result: Translation) -> None:
    # The blanks at the end of a line are part of its value: in a password, they may be meant.
    value = entry.value if row.secret else entry.value.strip()

    def note(verdict: Verdict, text: str = "") -> Note:
        shown = MASK if row.secret and value else value
        urgent = verdict is Verdict.IGNORED and bool(value) and row.urgent(value)
        return Note(entry.key, verdict, entry.line, shown, row.setting, text, urgent)

    refusal = (row.refused(said) if row.refused else None) or _unfit(row, value)
    if refusal is not None:
        result.notes.append(note(Verdict.WRONG, refusal))
    elif not row.setting:
        result.notes.append(note(Verdict.IGNORED, row.instead))
    elif not value:
        result.notes.append(note(Verdict.IGNORED, _EMPTY))
    elif row.name == _OLD_HOURS and said.get(_SECONDS, "").strip():
        result.notes.append(note(Verdict.OVERRIDDEN, f"{_SECONDS} counts"))
    else:
        _use(row, value, note(Verdict.USED, row.instead), result)


def _unfit(row: Key, value: str) -> str | None:
    """Return what is wrong with a value that no setting has."""
    try:
        if row.check is not None and value:
            row.check(value)
    except ValueError as error:
        return str(error)
    return None


def _use(row: Key, value: str, note: Note, result: Translation) -> None:
    try:
        result.use(row.setting, row.convert(value), note)
    except ValueError as error:
        result.notes.append(replace(note, verdict=Verdict.WRONG, text=str(error)))
