"""The asynchronous side of a store: many callers, one thread, few calls.

Owns the store thread of a broker and the store itself, which it closes. Whatever change sets wait
at one moment go into one transaction; all who ask for changes at one moment share one query.

Laws: an answer to `changes` comes from a query that began after the question was asked, so that
a read is never stale. A change set that was accepted is written even if nobody waits for it any
longer. A change set that can't be written at all fails alone. The first `StoreFailed` is the
last: everyone who waits and everyone who asks later is told, and the store isn't asked again.
Must not retry: who is told `Stale` or `Unavailable` decides what to do.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from queue import SimpleQueue
from typing import Any, TypeAlias, TypeVar

from deskfleet.core.change import ChangeSet, Stored, Tombstone
from deskfleet.core.records import Revision
from deskfleet.errors import Compacted, Stale, StoreFailed, Unavailable
from deskfleet.ports import Lost, Store

T = TypeVar("T")
Changes: TypeAlias = tuple[Revision, Sequence[Stored | Tombstone]]
Read: TypeAlias = tuple[Revision, asyncio.Future[Changes]]
Write: TypeAlias = tuple[ChangeSet, asyncio.Future[Revision]]
Answer: TypeAlias = tuple[asyncio.Future[Any], object]
"""Who waits, and what for: a value or an exception."""

log = logging.getLogger(__name__)


class GroupCommit:
    """Serves one event loop. `limit` bounds the change sets of one transaction."""

    def __init__(self, store: Store, *, limit: int = 500) -> None:
        self._store = store
        self._limit = limit
        # Filled by the event loop, emptied by the thread; each step on a deque is atomic.
        self._reads: deque[Read] = deque()
        self._writes: deque[Write] = deque()
        self._calls: deque[tuple[Callable[[], object], asyncio.Future[Any]]] = deque()
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._rung = False
        self._failed: StoreFailed | None = None
        self._closed: asyncio.Future[None] | None = None
        # A daemon, because a program that dies without closing must not hang; any commit
        # survives its end.
        self._thread = threading.Thread(target=self._work, name="store", daemon=True)
        self._thread.start()

    async def commit(self, change_set: ChangeSet) -> Revision:
        """Write a change set, durably. Raises `Stale` when a precondition no longer holds."""
        future: asyncio.Future[Revision] = self._waiter()
        self._writes.append((change_set, future))
        self._ring()
        return await future

    async def changes(self, since: Revision) -> Changes:
        """Return what changed after `since`, as of a moment after this call."""
        future: asyncio.Future[Changes] = self._waiter()
        self._reads.append((since, future))
        self._ring()
        return await future

    def glance(self) -> Revision | None:
        """Return the newest revision as of now where it can be told at once, None otherwise."""
        if self._failed is not None or self._closed is not None:
            return None
        return self._store.glance()

    async def load(self) -> tuple[Revision, Sequence[Stored]]:
        """Return everything, as of one revision after this call."""
        return await self._call(self._load)

    async def compact(self, before: Revision) -> None:
        """Forget tombstones of revisions below `before`."""
        await self._call(partial(self._store.compact, before))

    async def close(self) -> None:
        """Finish what waits, then close the store and end the thread."""
        if self._closed is None:
            self._closed = asyncio.get_running_loop().create_future()
            self._ring()
        await asyncio.shield(self._closed)
        self._thread.join()

    async def _call(self, call: Callable[[], T]) -> T:
        future: asyncio.Future[T] = self._waiter()
        self._calls.append((call, future))
        self._ring()
        return await future

    def _waiter(self) -> asyncio.Future[Any]:
        if self._failed is not None:
            raise StoreFailed(self._failed.message) from self._failed
        if self._closed is not None:
            raise StoreFailed("the store is closed")
        return asyncio.get_running_loop().create_future()

    def _ring(self) -> None:
        """Wake the thread, once for all who come before it has begun to look."""
        if not self._rung:
            self._rung = True
            self._bell.put(None)

    def _work(self) -> None:
        """Be the store thread."""
        while True:
            self._bell.get()
            # In this order, so that what is queued from now on rings again, and what was queued
            # before the closing is still served.
            self._rung = False
            closed = self._closed
            while self._round():
                pass
            if closed is not None:
                _tell([(closed, self._outcome(self._store.close))])
                return

    def _round(self) -> bool:
        """Serve what waits now; reads go first, for they are quick. False when nothing did."""
        reads = _take(self._reads, len(self._reads))
        writes = _take(self._writes, self._limit)
        calls = _take(self._calls, len(self._calls))
        if reads:
            self._answer_reads(reads)
        if writes:
            _tell(self._write(writes))
        for call, future in calls:
            _tell([(future, self._attempt(call))])
        return bool(reads or writes or calls)

    def _answer_reads(self, reads: list[Read]) -> None:
        """Ask once, from the oldest revision that is still kept."""
        reads.sort(key=itemgetter(0))
        while reads:
            since = reads[0][0]
            outcome = self._attempt(partial(self._store.changes, since))
            told = reads
            if isinstance(outcome, Compacted):
                told = [read for read in reads if read[0] == since]
            _tell([(future, _from(since, outcome, start)) for start, future in told])
            reads = reads[len(told) :]

    def _write(self, writes: list[Write]) -> list[Answer]:
        change_sets = [change_set for change_set, _ in writes]
        outcome = self._attempt(partial(self._store.commit, change_sets))
        if not isinstance(outcome, Exception):
            return [
                (future, _stale(one) if isinstance(one, Lost) else one)
                for (_, future), one in zip(writes, outcome, strict=True)
            ]
        if isinstance(outcome, StoreFailed | Unavailable) or len(writes) == 1:
            return [(future, outcome) for _, future in writes]
        # One of them can't even be encoded, and so none was written: find out which.
        return [answer for write in writes for answer in self._write([write])]

    def _load(self) -> tuple[Revision, Sequence[Stored]]:
        revision, stored = self._store.load()
        return revision, list(stored)

    def _attempt(self, call: Callable[[], T]) -> T | Exception:
        """Call the store unless it has failed before."""
        return self._failed if self._failed is not None else self._outcome(call)

    def _outcome(self, call: Callable[[], T]) -> T | Exception:
        try:
            return call()
        except StoreFailed as error:
            self._failed = error
            log.critical("store.failed", extra={"reason": error.message})
            return error
        except Exception as error:  # noqa: BLE001  the thread lives on, and who waits is told
            return error


def _take(queue: deque[T], limit: int) -> list[T]:
    return [queue.popleft() for _ in range(min(limit, len(queue)))]


def _from(asked: Revision, outcome: Changes | Exception, since: Revision) -> Changes | Exception:
    """Return the part of an answer that somebody needs who may be ahead of the question."""
    if isinstance(outcome, Exception) or since == asked:
        return outcome
    revision, changed = outcome
    if since > revision:
        return Compacted()
    return revision, [item for item in changed if item.revision > since]


def _stale(lost: Lost) -> Stale:
    kind, id = lost.key
    return Stale(f"{kind} {id} has changed since it was read")


def _tell(answers: list[Answer]) -> None:
    """Bring answers to those who wait, from the store thread."""
    try:
        answers[0][0].get_loop().call_soon_threadsafe(_resolve, answers)
    except RuntimeError:
        # The event loop is gone, and with it everyone who waited.
        log.warning("store.unheard", extra={"answers": len(answers)})


def _resolve(answers: list[Answer]) -> None:
    for future, outcome in answers:
        if future.done():
            continue  # its caller was cancelled
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
