"""GroupCommit: few store calls for many callers, and no answer older than its question."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

import pytest

from deskfleet.broker.stores.group_commit import GroupCommit
from deskfleet.broker.stores.memory import MemoryStore
from deskfleet.core.change import ABSENT, ChangeSet, Check, Drop, Put, Stored, Tombstone
from deskfleet.core.records import Broker, Revision
from deskfleet.errors import Compacted, Stale, StoreFailed, Unavailable
from deskfleet.ports import Lost, Store
from support.stores import Faults, FaultyStore, pair


class WatchedStore:
    """A memory store that counts calls, and holds each one back while its gate is shut."""

    def __init__(self) -> None:
        self.inner = MemoryStore()
        self.gate = threading.Event()
        self.gate.set()
        self.calls: list[str] = []
        self.sizes: list[int] = []
        self.threads: set[int] = set()
        self.inside = threading.Event()
        self.raising: Exception | None = None
        self.closed = False

    def _enter(self, name: str) -> None:
        self.calls.append(name)
        self.threads.add(threading.get_ident())
        self.inside.set()
        assert self.gate.wait(timeout=10)
        if self.raising is not None:
            raise self.raising

    def load(self) -> tuple[Revision, Iterable[Stored]]:
        self._enter("load")
        return self.inner.load()

    def changes(self, since: Revision) -> tuple[Revision, Sequence[Stored | Tombstone]]:
        # The question is answered as of its beginning: what a slow database would say.
        answer: tuple[Revision, Sequence[Stored | Tombstone]] | Compacted
        try:
            answer = self.inner.changes(since)
        except Compacted as error:
            answer = error
        self._enter("changes")
        if isinstance(answer, Compacted):
            raise answer
        return answer

    def commit(self, change_sets: Sequence[ChangeSet]) -> Sequence[Revision | Lost]:
        self._enter("commit")
        self.sizes.append(len(change_sets))
        return self.inner.commit(change_sets)

    def compact(self, before: Revision) -> None:
        self._enter("compact")
        self.inner.compact(before)

    def glance(self) -> Revision | None:
        return self.inner.glance()

    def close(self) -> None:
        self.closed = True


def run(
    scenario: Callable[[GroupCommit], Coroutine[Any, Any, None]], store: Store, limit: int = 500
) -> None:
    """Run a scenario, and close in the end whatever happened."""

    async def whole() -> None:
        group = GroupCommit(store, limit=limit)
        try:
            await asyncio.wait_for(scenario(group), timeout=30)
        finally:
            await asyncio.wait_for(group.close(), timeout=10)

    asyncio.run(whole())


async def until_inside(store: WatchedStore) -> None:
    """Wait until the store thread is held back in a call."""
    assert await asyncio.to_thread(store.inside.wait, 10)


def put(name: str, beat: int = 0, expect: Revision = ABSENT) -> ChangeSet:
    return (Put(Broker(id=name, url="u", beat=beat), expect),)


def test_a_commit_is_seen_by_changes_and_load() -> None:
    async def scenario(group: GroupCommit) -> None:
        start, stored = await group.load()
        assert stored == []
        revision = await group.commit(put("a"))
        expected = [Stored(revision, Broker(id="a", url="u"))]
        assert await group.changes(start) == (revision, expected)
        assert await group.load() == (revision, expected)

    run(scenario, MemoryStore())


def test_a_lost_race_is_stale_and_names_the_key() -> None:
    async def scenario(group: GroupCommit) -> None:
        results = await asyncio.gather(
            *(group.commit(put("seat", beat=n)) for n in range(10)), return_exceptions=True
        )
        assert [type(result) for result in results] == [int] + [Stale] * 9
        with pytest.raises(Stale, match="broker seat"):
            await group.commit((Check("broker", "seat", ABSENT),))

    run(scenario, MemoryStore())


def test_a_hundred_readers_share_a_query() -> None:
    store = WatchedStore()

    async def scenario(group: GroupCommit) -> None:
        start, _ = await group.load()
        revision = await group.commit(put("a"))
        store.calls.clear()
        answers = await asyncio.gather(*(group.changes(start) for _ in range(100)))
        assert {answer[0] for answer in answers} == {revision}
        # One in the best case; the thread may have begun while the hundred were still coming.
        assert 1 <= len(store.calls) <= 3

    run(scenario, store)


def test_readers_who_come_during_a_query_share_the_next_one() -> None:
    store = WatchedStore()

    async def scenario(group: GroupCommit) -> None:
        store.gate.clear()
        first = asyncio.create_task(group.changes(1))
        await until_inside(store)
        later = [asyncio.create_task(group.changes(1)) for _ in range(100)]
        await asyncio.sleep(0)
        store.gate.set()
        await asyncio.gather(first, *later)
        assert store.calls == ["changes", "changes"]
        assert len(store.threads) == 1
        assert threading.get_ident() not in store.threads

    run(scenario, store)


def test_writers_who_wait_share_transactions_of_bounded_size() -> None:
    store = WatchedStore()

    async def scenario(group: GroupCommit) -> None:
        store.gate.clear()
        first = asyncio.create_task(group.commit(put("first")))
        await until_inside(store)
        rest = [asyncio.create_task(group.commit(put(str(n)))) for n in range(100)]
        await asyncio.sleep(0)
        store.gate.set()
        revisions = await asyncio.gather(first, *rest)
        assert store.sizes == [1, 40, 40, 20]
        assert revisions == sorted(set(revisions))

    run(scenario, store, limit=40)


def test_a_read_never_predates_its_call() -> None:
    store = WatchedStore()

    async def scenario(group: GroupCommit) -> None:
        start, _ = await group.load()
        store.inside.clear()
        store.gate.clear()
        early = asyncio.create_task(group.changes(start))
        await until_inside(store)
        # Another broker writes while the first query is under way; who asks now must see it.
        [revision] = store.inner.commit([put("other")])
        late = asyncio.create_task(group.changes(start))
        await asyncio.sleep(0)
        store.gate.set()
        assert (await early)[0] == start
        assert (await late)[0] == revision

    run(scenario, store)


def test_readers_never_fall_behind_writers_of_another_broker() -> None:
    shared = MemoryStore()
    slow = FaultyStore(shared, 3, Faults(delay=0.5, longest_delay=0.002))

    async def scenario(group: GroupCommit) -> None:
        async def read() -> None:
            for _ in range(40):
                [written] = shared.commit([()])
                assert isinstance(written, int)
                since = max(written - 5, 2)
                revision, changed = await group.changes(since)
                assert revision >= written
                assert [item.revision for item in changed] == list(range(since + 1, revision + 1))
                await asyncio.sleep(0)

        def write() -> None:
            for number in range(4000):
                shared.commit([put(f"w{number}")])

        shared.commit([put("first")])
        await asyncio.gather(asyncio.to_thread(write), *(read() for _ in range(20)))

    run(scenario, slow)


def test_each_reader_gets_what_is_after_its_own_revision() -> None:
    store = WatchedStore()

    async def scenario(group: GroupCommit) -> None:
        revisions = [await group.commit(put(str(n))) for n in range(5)]
        store.gate.clear()
        store.inside.clear()
        first = asyncio.create_task(group.changes(revisions[-1]))
        await until_inside(store)
        store.calls.clear()
        asked = [asyncio.create_task(group.changes(since)) for since in (6, 2, 4, 2, 1)]
        await asyncio.sleep(0)
        store.gate.set()
        await first
        answers = await asyncio.gather(*asked)
        assert [[item.revision for item in changed] for _, changed in answers] == [
            [],
            [3, 4, 5, 6],
            [5, 6],
            [3, 4, 5, 6],
            [2, 3, 4, 5, 6],
        ]
        assert store.calls == ["changes"]

    run(scenario, store)


def test_compaction_fails_only_those_who_are_behind() -> None:
    store = WatchedStore()

    async def scenario(group: GroupCommit) -> None:
        start, _ = await group.load()
        first = await group.commit(put("a"))
        last = await group.commit((Drop("broker", "a", first),))
        await group.compact(last + 1)
        store.gate.clear()
        store.inside.clear()
        held = asyncio.create_task(group.changes(last))
        await until_inside(store)
        tasks = [asyncio.create_task(group.changes(since)) for since in (start, last, first, 99)]
        await asyncio.sleep(0)
        store.gate.set()
        await held
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        kinds = [type(answer) for answer in answers]
        assert kinds == [Compacted, tuple, Compacted, Compacted]

    run(scenario, store)


def test_a_cancelled_waiter_neither_undoes_nor_blocks_a_commit() -> None:
    store = WatchedStore()

    async def scenario(group: GroupCommit) -> None:
        store.gate.clear()
        running = asyncio.create_task(group.commit(put("running")))
        await until_inside(store)
        queued = asyncio.create_task(group.commit(put("queued")))
        reader = asyncio.create_task(group.changes(1))
        other = asyncio.create_task(group.commit(put("other")))
        await asyncio.sleep(0)
        for task in (running, queued, reader):
            task.cancel()
        assert all(
            isinstance(result, asyncio.CancelledError)
            for result in await asyncio.gather(running, queued, reader, return_exceptions=True)
        )
        store.gate.set()
        await other
        _, stored = await group.load()
        assert {item.record.id for item in stored} == {"running", "queued", "other"}

    run(scenario, store)


def test_a_failed_store_is_told_to_everyone_and_never_asked_again() -> None:
    store = WatchedStore()

    async def scenario(group: GroupCommit) -> None:
        store.gate.clear()
        first = asyncio.create_task(group.commit(put("first")))
        await until_inside(store)
        waiting = [
            asyncio.create_task(group.commit(put("second"))),
            asyncio.create_task(group.changes(1)),
            asyncio.create_task(group.load()),
        ]
        await asyncio.sleep(0)
        store.raising = StoreFailed("the disk is on fire")
        store.gate.set()
        results = await asyncio.gather(first, *waiting, return_exceptions=True)
        assert [str(result) for result in results] == ["the disk is on fire"] * 4
        asked = len(store.calls)
        store.raising = None
        assert group.glance() is None
        with pytest.raises(StoreFailed, match="on fire"):
            await group.commit(put("third"))
        with pytest.raises(StoreFailed, match="on fire"):
            await group.changes(1)
        assert (len(store.calls), asked) == (1, 1)

    run(scenario, store)
    assert store.closed


def test_busy_is_told_to_its_group_and_forgotten() -> None:
    store = WatchedStore()

    async def scenario(group: GroupCommit) -> None:
        store.raising = Unavailable("busy")
        results = await asyncio.gather(
            group.commit(put("a")), group.commit(put("b")), return_exceptions=True
        )
        assert [type(result) for result in results] == [Unavailable, Unavailable]
        store.raising = None
        assert await group.commit(put("a")) > ABSENT

    run(scenario, store)


def test_a_change_set_that_cannot_be_written_fails_alone() -> None:
    store = WatchedStore()

    async def scenario(group: GroupCommit) -> None:
        store.gate.clear()
        first = asyncio.create_task(group.commit(put("first")))
        await until_inside(store)
        rest = [asyncio.create_task(group.commit(put(name))) for name in ("a", "\ud800", "b")]
        await asyncio.sleep(0)
        store.gate.set()
        await first
        results = await asyncio.gather(*rest, return_exceptions=True)
        assert [type(result) for result in results] == [int, UnicodeEncodeError, int]

    run(scenario, store)


def test_closing_finishes_what_waits_and_refuses_what_comes() -> None:
    store = WatchedStore()

    async def scenario() -> None:
        group = GroupCommit(store)
        store.gate.clear()
        first = asyncio.create_task(group.commit(put("first")))
        await until_inside(store)
        waiting = [asyncio.create_task(group.commit(put(str(n)))) for n in range(5)]
        await asyncio.sleep(0)
        closing = [asyncio.create_task(group.close()) for _ in range(2)]
        await asyncio.sleep(0)
        assert group.glance() is None
        with pytest.raises(StoreFailed, match="closed"):
            await group.commit(put("late"))
        assert not store.closed
        store.gate.set()
        assert len(await asyncio.gather(first, *waiting)) == 6
        await asyncio.gather(*closing)
        assert store.closed

    asyncio.run(asyncio.wait_for(scenario(), timeout=20))
    assert len(list(store.inner.load()[1])) == 6


def test_an_event_loop_that_dies_loses_no_commit() -> None:
    store = WatchedStore()
    store.gate.clear()

    async def scenario() -> None:
        task = asyncio.create_task(GroupCommit(store).commit(put("a")))
        await until_inside(store)
        task.cancel()

    asyncio.run(scenario())
    store.gate.set()
    limit = time.monotonic() + 5
    while not list(store.inner.load()[1]) and time.monotonic() < limit:
        time.sleep(0.005)
    assert len(list(store.inner.load()[1])) == 1


@pytest.mark.parametrize("seed", range(5))
def test_whatever_fails_an_acknowledged_pair_is_whole_and_there(seed: int) -> None:
    shared = MemoryStore()
    faulty = FaultyStore(
        shared,
        seed,
        Faults(before=0.02, after=0.02, conflict=0.2, delay=0.2, longest_delay=0.001),
    )
    acked: set[str] = set()
    stale: set[str] = set()

    async def scenario(group: GroupCommit) -> None:
        async def write(writer: int) -> None:
            for number in range(60):
                name = f"{seed}-{writer}-{number}"
                try:
                    await group.commit(pair(name, 3))
                except Stale:
                    stale.add(name)
                else:
                    acked.add(name)

        results = await asyncio.gather(*(write(n) for n in range(8)), return_exceptions=True)
        assert all(result is None or isinstance(result, StoreFailed) for result in results)

    run(scenario, faulty)
    held = {item.record.id for item in shared.load()[1]}
    assert {id[:-2] for id in held if id.endswith("-a")} == {
        id[:-2] for id in held if id.endswith("-b")
    }
    assert {f"{name}-a" for name in acked} <= held
    assert not {f"{name}-a" for name in stale} & held
    assert stale
