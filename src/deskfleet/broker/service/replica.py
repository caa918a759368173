"""Keeps a `Fleet` equal to the store.

`catch_up` before a decision or an answer: what was committed anywhere before the call is in the
fleet after it. `commit` writes conditionally and takes the result in. Whoever needs to act on
changes subscribes; listeners are called in the event loop, after the fleet has changed, and must
not block. A tombstone tells them what was dropped: the fleet can't say that any more. Retrying a
lost race is the one job of `decide`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, TypeAlias, TypeVar

from deskfleet.core.change import ABSENT, ChangeSet, Drop, Put, Stored, Tombstone
from deskfleet.core.fleet import Fleet
from deskfleet.core.records import Revision
from deskfleet.errors import Compacted, Stale, StoreFailed, Unavailable

Entries: TypeAlias = Sequence[Stored | Tombstone]
Listener: TypeAlias = Callable[[Entries], None]
T = TypeVar("T")

ATTEMPTS = 12
"""Of a decision that keeps losing its races, before the client is told to come again."""


class Commits(Protocol):
    """The store from the event loop's side (`GroupCommit`)."""

    async def load(self) -> tuple[Revision, Sequence[Stored]]: ...

    async def changes(self, since: Revision) -> tuple[Revision, Entries]: ...

    async def commit(self, change_set: ChangeSet) -> Revision: ...

    async def compact(self, before: Revision) -> None: ...

    def glance(self) -> Revision | None: ...


class Replica:
    def __init__(self, commits: Commits) -> None:
        self.fleet = Fleet()
        self._commits = commits
        self._listeners: list[Listener] = []
        self._after_commit: list[Callable[[], None]] = []

    def subscribe(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def after_commit(self, told: Callable[[], None]) -> None:
        """Call `told` after each commit of this broker: other brokers want to be poked."""
        self._after_commit.append(told)

    async def load(self) -> None:
        revision, entries = await self._commits.load()
        self._take(revision, list(entries))

    async def catch_up(self) -> None:
        since = self.fleet.revision
        # A read on a fleet at rest, the usual case, needs no trip to the store's thread.
        if self._commits.glance() == since:
            return
        try:
            revision, entries = await self._commits.changes(since)
        except Compacted:
            await self._reload()
            return
        if revision > self.fleet.revision or entries:
            self._take(revision, entries)

    async def commit(self, change_set: ChangeSet) -> Revision:
        """Write a change set and take it in. Raises `Stale` when a precondition no longer holds."""
        revision = await self._commits.commit(change_set)
        entries = _entries(change_set, revision)
        # What writes nothing has no revision of its own: the one returned may be another's.
        if entries and revision == self.fleet.revision + 1:
            self._take(revision, entries)
        elif revision > self.fleet.revision:
            # It is written, and must not be called undone because the store is too busy to read.
            with contextlib.suppress(Unavailable):
                await self.catch_up()
        for told in self._after_commit:
            told()
        return revision

    async def compact(self, keep: int) -> None:
        """Let the store forget tombstones that are `keep` revisions old."""
        await self._commits.compact(self.fleet.revision - keep)

    async def decide(self, decision: Callable[[], tuple[T, ChangeSet]]) -> T:
        """Catch up, decide, commit; again from the start where the race was lost.

        A decision with nothing to write is answered from the fleet as caught up.
        """
        for attempt in range(ATTEMPTS):
            await self.catch_up()
            answer, change_set = decision()
            if not change_set:
                return answer
            try:
                await self.commit(change_set)
            except Stale:
                await asyncio.sleep(random.uniform(0, 0.002 * 2**attempt))  # noqa: S311
                continue
            return answer
        raise Unavailable("too many changes at once; try again")

    async def _reload(self) -> None:
        """Start over: this replica was away for too long, or the store was set back to a backup."""
        since = self.fleet.revision
        revision, entries = await self._commits.load()
        if revision < since:
            # Restored from a backup, say. What was answered since then can't be taken back, so
            # nothing may be answered from it.
            raise StoreFailed("the store has gone back in time; start this broker anew")
        fresh = {entry.key for entry in entries}
        gone = [
            Tombstone(revision, *key, dropped=self.fleet.record(*key))
            for key in self.fleet.all_keys()
            if key not in fresh
        ]
        self.fleet.clear()
        self._take(revision, [*entries, *gone])

    def _take(self, revision: Revision, entries: Entries) -> None:
        news, known = [], self.fleet.revision
        for entry in entries:
            if entry.revision <= known:
                # Of all that, the fleet has the newest already, and forgets what has been dropped.
                continue
            told = self._with_dropped(entry) if isinstance(entry, Tombstone) else entry
            if self.fleet.apply(entry) or isinstance(entry, Tombstone):
                news.append(told)
        self.fleet.revision = max(self.fleet.revision, revision)
        if news:
            for listener in self._listeners:
                listener(news)

    def _with_dropped(self, entry: Tombstone) -> Tombstone:
        return replace(entry, dropped=entry.dropped or self.fleet.record(*entry.key))


def _entries(change_set: ChangeSet, revision: Revision) -> list[Stored | Tombstone]:
    entries: list[Stored | Tombstone] = []
    for change in change_set:
        if isinstance(change, Put):
            entries.append(Stored(revision, change.record))
        elif isinstance(change, Drop) and change.expect != ABSENT:
            entries.append(Tombstone(revision, change.kind, change.id))
    return entries
