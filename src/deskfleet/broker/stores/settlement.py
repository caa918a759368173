"""What becomes of change sets that are committed together.

Owns the meaning of a precondition, for every store alike: a store reads the revisions that its
change sets name, asks `settle`, and writes the rows that come back.

Laws: a change set is settled whole or not at all; a later one sees what an earlier one wrote;
one that is lost changes nothing for the others. A tombstone is absent. All rows of a change set
carry one revision, above every earlier one. A change set that writes nothing takes no revision.
Pure: no IO, and no change to what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from deskfleet.core.change import ABSENT, Change, ChangeSet, Drop, Put
from deskfleet.core.records import Record, Revision
from deskfleet.ports import Lost

Key: TypeAlias = tuple[str, str]
"""The kind and the id of a record."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record as it is written; without a body it is a tombstone."""

    revision: Revision
    body: bytes | None


@dataclass(frozen=True, slots=True)
class Settlement:
    outcomes: list[Revision | Lost]
    """One for each change set, in their order."""
    rows: dict[Key, Row]
    """The last state of each key that is written, oldest revision first."""
    revision: Revision
    """The counter afterwards."""


def settle(
    change_sets: Sequence[ChangeSet],
    revision: Revision,
    current: Mapping[Key, Revision],
    encode: Callable[[Record], bytes],
) -> Settlement:
    """Decide which change sets hold, given the counter and the revisions of what is not absent."""
    known = dict(current)
    rows: dict[Key, Row] = {}
    outcomes: list[Revision | Lost] = []
    for change_set in change_sets:
        keyed = [(change.key, change) for change in change_set]
        lost = _first_lost(keyed, known)
        if lost is not None:
            outcomes.append(Lost(lost))
            continue
        written = _rows_of(keyed, revision + 1, encode)
        if written:
            revision += 1
        for key, row in written:
            rows.pop(key, None)  # so that the rows stay in the order of their revisions
            rows[key] = row
            known[key] = ABSENT if row.body is None else row.revision
        outcomes.append(revision)
    return Settlement(outcomes, rows, revision)


def _first_lost(keyed: Iterable[tuple[Key, Change]], known: Mapping[Key, Revision]) -> Key | None:
    return next((key for key, change in keyed if known.get(key, ABSENT) != change.expect), None)


def _rows_of(
    keyed: Iterable[tuple[Key, Change]], revision: Revision, encode: Callable[[Record], bytes]
) -> list[tuple[Key, Row]]:
    """Return what a change set writes. Dropping what is absent writes nothing."""
    rows: list[tuple[Key, Row]] = []
    for key, change in keyed:
        if isinstance(change, Put):
            rows.append((key, Row(revision, encode(change.record))))
        elif isinstance(change, Drop) and change.expect != ABSENT:
            rows.append((key, Row(revision, None)))
    return rows
