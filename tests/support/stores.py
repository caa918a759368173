"""Stores for tests: one that fails on purpose, and a program that commits until it is killed.

`FaultyStore` misbehaves only as a real store may: an error before a commit (nothing is written),
an error after it (all is written, and nobody knows), slowness, and lost races. Which call is hit
comes from its seed alone, so that a failing run can be run again.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from deskfleet.broker.stores.sql import SqlStore
from deskfleet.core.change import ABSENT, ChangeSet, Put, Stored, Tombstone
from deskfleet.core.records import Broker, Revision
from deskfleet.errors import DeskfleetError, StoreFailed
from deskfleet.ports import Lost, Store


@dataclass(frozen=True, kw_only=True)
class Faults:
    """How likely each fault is, from 0 to 1, for each call (a conflict: for each change set)."""

    before: float = 0.0
    after: float = 0.0
    conflict: float = 0.0
    delay: float = 0.0
    longest_delay: float = 0.005


class FaultyStore:
    """Wraps a store. `armed` may be switched off, for the part of a test that looks at the end."""

    def __init__(self, inner: Store, seed: int, faults: Faults) -> None:
        self._inner = inner
        self._random = random.Random(seed)
        self._faults = faults
        self.armed = True

    def load(self) -> tuple[Revision, Iterable[Stored]]:
        self._before()
        return self._inner.load()

    def changes(self, since: Revision) -> tuple[Revision, Sequence[Stored | Tombstone]]:
        self._before()
        return self._inner.changes(since)

    def commit(self, change_sets: Sequence[ChangeSet]) -> Sequence[Revision | Lost]:
        self._before()
        lost = [bool(one) and self._hit(self._faults.conflict) for one in change_sets]
        spared = [one for one, is_lost in zip(change_sets, lost, strict=True) if not is_lost]
        outcomes = iter(self._inner.commit(spared))
        told = [
            Lost(one[0].key) if is_lost else next(outcomes)
            for one, is_lost in zip(change_sets, lost, strict=True)
        ]
        if self._hit(self._faults.after):
            raise StoreFailed("injected after the commit: it is written")
        return told

    def compact(self, before: Revision) -> None:
        self._before()
        self._inner.compact(before)

    def glance(self) -> Revision | None:
        """Never tell, so that every catch-up meets the faults of `changes`."""
        return None

    def close(self) -> None:
        self._inner.close()

    def _before(self) -> None:
        if self._hit(self._faults.delay):
            time.sleep(self._random.random() * self._faults.longest_delay)
        if self._hit(self._faults.before):
            raise StoreFailed("injected before the call: nothing is written")

    def _hit(self, chance: float) -> bool:
        return self.armed and self._random.random() < chance


def pair(name: str, size: int) -> ChangeSet:
    """Return a change set of two new records that must appear together."""
    return tuple(Put(Broker(id=f"{name}-{half}", url="x" * size), ABSENT) for half in ("a", "b"))


def commit_and_tell(url: str, name: str, count: int, size: int) -> None:
    """Commit pairs one by one and print each once it is acknowledged; after a failure, go on once.

    Prints `acked NAME REVISION`, `failed CODE`, and `ended`.
    """
    try:
        store = SqlStore(url)
    except DeskfleetError as error:
        print("failed", error.code, flush=True)
        return
    failures = 0
    for number in range(count):
        try:
            [revision] = store.commit([pair(f"{name}-{number}", size)])
        except DeskfleetError as error:
            print("failed", error.code, flush=True)
            failures += 1
            if failures > 1:
                break
        else:
            print("acked", f"{name}-{number}", revision, flush=True)
    print("ended", flush=True)


if __name__ == "__main__":
    commit_and_tell(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
