"""Values in ascending order, for indexes that change much more often than they are read.

Changes are gathered and taken in when somebody looks: a few are moved one by one, many by one sort
of what is nearly sorted already. Values are distinct; equal ones are one.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Any, Generic, TypeVar

T = TypeVar("T", bound=Any)

FEW = 32
"""Up to one change in so many values costs less one by one."""


class Ordered(Generic[T]):
    def __init__(self) -> None:
        self._values: list[T] = []
        self._added: set[T] = set()
        self._removed: set[T] = set()

    def __len__(self) -> int:
        return len(self._values) + len(self._added) - len(self._removed)

    def add(self, value: T) -> None:
        """Take in a value that isn't here."""
        self._added.add(value)

    def remove(self, value: T) -> None:
        """Let go of a value that is here."""
        if value in self._added:
            self._added.remove(value)
        else:
            self._removed.add(value)

    def values(self) -> list[T]:
        """Return the values as they stand; they may move as soon as one is added or removed."""
        changes = len(self._added) + len(self._removed)
        if changes:
            if changes * FEW <= len(self._values):
                self._move_each()
            else:
                self._sort()
            self._added, self._removed = set(), set()
        return self._values

    def _move_each(self) -> None:
        for value in self._removed:
            del self._values[bisect_left(self._values, value)]
        for value in self._added:
            insort(self._values, value)

    def _sort(self) -> None:
        if self._removed:
            self._values = [value for value in self._values if value not in self._removed]
        self._values += self._added
        self._values.sort()
