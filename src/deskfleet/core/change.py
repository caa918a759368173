"""What a decision asks the store to write, and under which condition.

A change set is written whole or not at all. Every write in it names the revision that it was
decided on (`ABSENT` for "must not exist"), so that a decision made on old information fails as
`Stale` instead of overwriting somebody else's. `Check` is a condition without a write: the
fence of an agent link, for example.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from deskfleet.core.records import Record, Revision, kind_of

ABSENT: Revision = 0
"""The revision of what does not exist; the store's counter starts above it."""


@dataclass(frozen=True, slots=True)
class Put:
    record: Record
    expect: Revision

    @property
    def key(self) -> tuple[str, str]:
        return kind_of(self.record), self.record.id


@dataclass(frozen=True, slots=True)
class Drop:
    kind: str
    id: str
    expect: Revision

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.id


@dataclass(frozen=True, slots=True)
class Check:
    kind: str
    id: str
    expect: Revision

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.id


Change: TypeAlias = Put | Drop | Check
ChangeSet: TypeAlias = tuple[Change, ...]
"""Keys are distinct within one change set."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A record as the store holds it."""

    revision: Revision
    record: Record

    @property
    def key(self) -> tuple[str, str]:
        return kind_of(self.record), self.record.id


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What the store says of a record that was dropped."""

    revision: Revision
    kind: str
    id: str
    dropped: Record | None = None
    """The record, where whoever tells of it knew it."""

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.id
