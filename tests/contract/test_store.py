"""The contract of the `Store` port: one suite for every adapter."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deskfleet.broker.stores.memory import MemoryStore
from deskfleet.broker.stores.sql import SqlStore
from deskfleet.core.change import ABSENT, Change, Check, Drop, Put, Stored, Tombstone
from deskfleet.core.records import (
    KINDS,
    AgentClient,
    ApiClient,
    AuthServer,
    Aws,
    Broker,
    Cpu,
    DnsMapping,
    Endpoint,
    Facts,
    Gpu,
    Host,
    Intent,
    Link,
    Os,
    Phase,
    Record,
    Report,
    Revision,
    Server,
    ServerIdType,
    Session,
    SessionRequest,
    SigningKey,
    SoftwareStatement,
    TokenUse,
    Type,
    kind_of,
)
from deskfleet.errors import Compacted, StoreFailed
from deskfleet.ports import Lost, Store
from support.stores import Faults, FaultyStore, pair

NOON = datetime(2024, 2, 29, 12, 0, 0, 123456, tzinfo=UTC)

Open = Callable[[], Store]
"""Gives one more handle on the same store."""


@pytest.fixture(params=["memory", "sqlite"])
def another(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    handles: list[Store] = []
    shared = MemoryStore()

    def open_one() -> Store:
        store: Store = shared
        if request.param == "sqlite":
            store = SqlStore(f"sqlite:///{tmp_path}/store.db")
        handles.append(store)
        return store

    yield open_one
    for store in handles:
        store.close()


@pytest.fixture
def store(another: Open) -> Store:
    return another()


def broker(name: str, beat: int = 0) -> Broker:
    return Broker(id=name, url="https://broker.test:8445", beat=beat)


def commit(store: Store, *changes: Change) -> Revision:
    [outcome] = store.commit([changes])
    assert isinstance(outcome, int), outcome
    return outcome


def lost_key(store: Store, *changes: Change) -> tuple[str, str]:
    [outcome] = store.commit([changes])
    assert isinstance(outcome, Lost), outcome
    return outcome.key


def everything(store: Store) -> dict[tuple[str, str], Stored]:
    _, stored = store.load()
    return {(kind_of(item.record), item.record.id): item for item in stored}


def test_an_empty_store_has_a_revision_above_absent(store: Store) -> None:
    revision, stored = store.load()
    assert revision > ABSENT
    assert list(stored) == []
    now, changed = store.changes(revision)
    assert (now, list(changed)) == (revision, [])


def test_a_record_comes_back_with_its_revision(store: Store, another: Open) -> None:
    revision = commit(store, Put(broker("b"), ABSENT))
    for one in (store, another()):
        found, stored = one.load()
        assert found == revision
        assert list(stored) == [Stored(revision, broker("b"))]


def test_changes_are_the_newest_states_oldest_change_first(store: Store, another: Open) -> None:
    start, _ = store.load()
    first = commit(store, Put(broker("a"), ABSENT))
    second = commit(store, Put(broker("b"), ABSENT))
    third = commit(store, Put(broker("a", beat=1), first))
    for one in (store, another()):
        revision, changed = one.changes(start)
        assert revision == third
        assert list(changed) == [Stored(second, broker("b")), Stored(third, broker("a", beat=1))]
        assert list(one.changes(second)[1]) == [Stored(third, broker("a", beat=1))]
        assert list(one.changes(third)[1]) == []


def test_a_drop_leaves_a_tombstone_and_absence(store: Store) -> None:
    first = commit(store, Put(broker("a"), ABSENT))
    second = commit(store, Drop("broker", "a", first))
    assert everything(store) == {}
    assert list(store.changes(first)[1]) == [Tombstone(second, "broker", "a")]
    assert lost_key(store, Put(broker("a", beat=9), second)) == ("broker", "a")
    third = commit(store, Put(broker("a", beat=2), ABSENT))
    assert list(store.changes(first)[1]) == [Stored(third, broker("a", beat=2))]


def test_dropping_what_is_absent_writes_nothing(store: Store) -> None:
    start, _ = store.load()
    assert commit(store, Drop("broker", "never", ABSENT)) == start
    assert list(store.changes(start)[1]) == []


def test_revisions_only_grow_and_one_change_set_shares_one(store: Store) -> None:
    start, _ = store.load()
    outcomes = store.commit([pair(str(n), 5) for n in range(20)])
    assert list(outcomes) == list(range(start + 1, start + 21))
    by_revision: dict[Revision, list[str]] = {}
    for item in store.changes(start)[1]:
        assert isinstance(item, Stored)
        by_revision.setdefault(item.revision, []).append(item.record.id)
    assert {revision: sorted(ids) for revision, ids in by_revision.items()} == {
        start + 1 + n: [f"{n}-a", f"{n}-b"] for n in range(20)
    }


def test_what_writes_nothing_takes_no_revision(store: Store) -> None:
    revision = commit(store, Put(broker("a"), ABSENT))
    assert commit(store) == revision
    assert commit(store, Check("broker", "a", revision)) == revision
    assert list(store.commit([])) == []
    assert store.load()[0] == revision


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (Put(broker("there"), ABSENT), ("broker", "there")),
        (Put(broker("there"), 1), ("broker", "there")),
        (Put(broker("gone"), 3), ("broker", "gone")),
        (Drop("broker", "there", 1), ("broker", "there")),
        (Drop("broker", "there", ABSENT), ("broker", "there")),
        (Drop("server", "there", 2), ("server", "there")),
        (Check("broker", "there", 1), ("broker", "there")),
        (Check("broker", "there", ABSENT), ("broker", "there")),
        (Check("broker", "never", 2), ("broker", "never")),
    ],
)
def test_a_failed_precondition_loses_the_whole_change_set(
    store: Store, change: Change, key: tuple[str, str]
) -> None:
    assert commit(store, Put(broker("there"), ABSENT)) == 2
    assert commit(store, Put(broker("gone"), ABSENT)) == 3
    before = commit(store, Drop("broker", "gone", 3)), everything(store)
    good = Put(broker("good"), ABSENT)
    assert lost_key(store, good, change) == key
    assert lost_key(store, change, good) == key
    assert (store.load()[0], everything(store)) == before


def test_checks_that_hold_let_the_writes_through(store: Store) -> None:
    fence = commit(store, Put(Link(id="s", broker_id="b", epoch=1), ABSENT))
    revision = commit(
        store,
        Check("link", "s", fence),
        Check("session", "none", ABSENT),
        Put(broker("a"), ABSENT),
    )
    assert everything(store)["broker", "a"].revision == revision
    assert everything(store)["link", "s"].revision == fence


def test_a_later_change_set_sees_the_earlier_and_a_lost_one_fails_alone(store: Store) -> None:
    start, _ = store.load()
    outcomes = store.commit(
        [
            (Put(broker("a"), ABSENT),),
            (Put(broker("a", beat=99), ABSENT), Put(broker("never"), ABSENT)),
            (Put(broker("a", beat=1), start + 1), Put(broker("b"), ABSENT)),
            (Drop("broker", "b", start + 2),),
            (Check("broker", "b", ABSENT), Put(broker("c"), ABSENT)),
            (Check("broker", "b", start + 2),),
        ]
    )
    assert list(outcomes) == [
        start + 1,
        Lost(("broker", "a")),
        start + 2,
        start + 3,
        start + 4,
        Lost(("broker", "b")),
    ]
    assert list(store.changes(start)[1]) == [
        Stored(start + 2, broker("a", beat=1)),
        Tombstone(start + 3, "broker", "b"),
        Stored(start + 4, broker("c")),
    ]


def test_a_key_that_is_written_twice_in_one_call_counts_once_and_last(store: Store) -> None:
    start, _ = store.load()
    store.commit(
        [
            (Put(broker("a"), ABSENT),),
            (Put(broker("b"), ABSENT),),
            (Put(broker("a", beat=1), start + 1),),
        ]
    )
    last = Stored(start + 3, broker("a", beat=1))
    assert list(store.changes(start)[1]) == [Stored(start + 2, broker("b")), last]
    assert list(store.changes(start + 2)[1]) == [last]


def test_compaction_forgets_tombstones_and_says_so(store: Store, another: Open) -> None:
    start, _ = store.load()
    kept = commit(store, Put(broker("kept"), ABSENT))
    gone = commit(store, Put(broker("gone"), ABSENT))
    dropped = commit(store, Drop("broker", "gone", gone))
    late = commit(store, Put(broker("late"), ABSENT))
    last = commit(store, Drop("broker", "late", late))
    store.compact(last)
    for one in (store, another()):
        for since in (start, kept, gone):
            with pytest.raises(Compacted):
                one.changes(since)
        assert list(one.changes(dropped)[1]) == [Tombstone(last, "broker", "late")]
        assert one.load() == (last, [Stored(kept, broker("kept"))])
    assert commit(store, Put(broker("gone"), ABSENT)) == last + 1


def test_compaction_without_tombstones_costs_no_reader_anything(store: Store) -> None:
    start, _ = store.load()
    revision = commit(store, Put(broker("a"), ABSENT))
    store.compact(revision + 1000)
    assert list(store.changes(start)[1]) == [Stored(revision, broker("a"))]
    commit(store, Drop("broker", "a", revision))
    store.compact(revision + 1000)
    assert list(store.changes(revision + 1)[1]) == []
    with pytest.raises(Compacted):
        store.changes(revision)
    store.compact(1)
    with pytest.raises(Compacted):
        store.changes(revision)


def test_a_glance_tells_the_newest_revision_of_all_handles(store: Store, another: Open) -> None:
    other = another()
    for number in range(20):
        revision = commit(store if number % 2 else other, Put(broker(f"b{number}"), ABSENT))
        assert store.glance() == other.glance() == revision
    store.commit([(Check("broker", "b0", ABSENT),)])
    assert store.glance() == revision == store.changes(revision)[0]


def test_a_reader_ahead_of_the_store_must_load(store: Store) -> None:
    revision, _ = store.load()
    with pytest.raises(Compacted):
        store.changes(revision + 1)


def test_one_of_two_racing_handles_wins_each_round(another: Open) -> None:
    rounds = 150
    handles = (another(), another())
    gate = threading.Barrier(2)

    def race(side: int) -> list[bool]:
        won = []
        for number in range(rounds):
            gate.wait(timeout=20)
            [outcome] = handles[side].commit([(Put(broker(f"slot-{number}", side), ABSENT),)])
            won.append(isinstance(outcome, int))
        return won

    with ThreadPoolExecutor(2) as pool:
        left, right = pool.map(race, (0, 1))
    assert [a != b for a, b in zip(left, right, strict=True)] == [True] * rounds
    for number, won in enumerate(right):
        assert everything(handles[0])["broker", f"slot-{number}"].record == broker(
            f"slot-{number}", int(won)
        )


def test_racing_counters_lose_no_increment_and_readers_miss_nothing(another: Open) -> None:
    target = 100
    first = another()
    start = commit(first, Put(broker("n"), ABSENT))

    def count(store: Store) -> None:
        done = 0
        while done < target:
            held = everything(store)["broker", "n"]
            assert isinstance(held.record, Broker)
            step = Put(broker("n", held.record.beat + 1), held.revision)
            done += isinstance(store.commit([(step,)])[0], int)

    def follow(store: Store) -> list[Revision]:
        seen, beats = start, [0]
        while beats[-1] < 2 * target:
            revision, changed = store.changes(seen)
            assert revision >= seen
            for item in changed:
                assert isinstance(item, Stored)
                assert isinstance(item.record, Broker)
                assert item.record.beat == beats[-1] + item.revision - seen
                beats.append(item.record.beat)
            seen = revision
        return beats

    with ThreadPoolExecutor(3) as pool:
        followed = pool.submit(follow, another())
        for job in [pool.submit(count, first), pool.submit(count, another())]:
            job.result(timeout=60)
        assert followed.result(timeout=60)[-1] == 2 * target


def test_a_big_batch_and_a_big_change_set(store: Store, another: Open) -> None:
    outcomes = store.commit([(Put(broker(f"one-{n}"), ABSENT),) for n in range(2000)])
    assert len(set(outcomes)) == 2000
    whole = commit(store, *(Put(broker(f"whole-{n}"), ABSENT) for n in range(3000)))
    last = commit(store, *(Drop("broker", f"whole-{n}", whole) for n in range(3000)))
    held = everything(another())
    assert len(held) == 2000
    assert len(store.changes(whole)[1]) == 3000
    assert store.load()[0] == last


@pytest.mark.parametrize("id", ["", "zwölf 東京 🖥", "nul\0inside", "it's; --\"%_", "x" * 4000])
def test_any_text_is_an_id_and_a_value(store: Store, another: Open, id: str) -> None:
    record = Broker(id=id, url=f"{id}\0{id}")
    revision = commit(store, Put(record, ABSENT), Put(broker("nul"), ABSENT))
    assert everything(another())["broker", id] == Stored(revision, record)
    last = commit(store, Check("broker", "nul", revision), Drop("broker", id, revision))
    assert list(store.changes(revision)[1]) == [Tombstone(last, "broker", id)]


def test_kinds_are_apart(store: Store) -> None:
    first = commit(store, Put(Server(id="x", registered_at=NOON), ABSENT))
    second = commit(store, Put(Link(id="x", broker_id="b", epoch=1), ABSENT))
    commit(store, Drop("server", "x", first))
    assert everything(store) == {
        ("link", "x"): Stored(second, Link(id="x", broker_id="b", epoch=1))
    }


def test_every_kind_of_record_comes_back_equal(store: Store, another: Open) -> None:
    examples = every_record()
    assert {kind_of(record) for record in examples} == set(KINDS)
    revision = commit(store, *(Put(record, ABSENT) for record in examples))
    expected = {(kind_of(record), record.id): Stored(revision, record) for record in examples}
    assert everything(another()) == expected
    _, changed = store.changes(revision - 1)
    assert len(changed) == len(examples)
    assert all(item in expected.values() for item in changed)


def test_what_cannot_be_encoded_changes_nothing(store: Store) -> None:
    before = store.load()[0]
    with pytest.raises(UnicodeEncodeError):
        store.commit([(Put(broker("good"), ABSENT),), (Put(broker("\ud800"), ABSENT),)])
    assert store.load() == (before, [])
    commit(store, Put(broker("good"), ABSENT))


def every_record() -> Sequence[Record]:
    request = SessionRequest(
        name="Büro",
        owner="martha",
        type=Type.CONSOLE,
        dcv_gl_enabled=False,
        max_concurrent_clients=0,
        autorun_file_arguments=("a", ""),
        permissions_file="W3Blcm1pc3Npb25zXQ==",
        requirements="tag:color = 'pink'",
        enqueue=True,
    )
    host = Host(
        os=Os(family="linux", name="Debian"),
        memory_total=2**40,
        memory_used=1,
        cpu=Cpu(number_of_cpus=2),
        load=(0.1, 2.5, 1e-9),
        gpus=(Gpu(vendor="NVIDIA"), Gpu()),
        logged_in_users=("a", "b"),
        aws=Aws(region="eu-central-1"),
    )
    return [
        Session(
            id="1",
            request=request,
            created_at=NOON,
            intent=Intent.STOP,
            server_id="s",
            generation=3,
            tried=("x", "y"),
            ended_at=NOON,
            reason="was \N{SKULL}",
        ),
        Report(
            id="1",
            server_id="s",
            generation=3,
            phase=Phase.ENDED,
            connections=2,
            last_disconnection_at=NOON,
        ),
        Server(id="s", registered_at=NOON, open=False, placements=7),
        Link(id="s", broker_id="b", epoch=2**53, up=False),
        Facts(
            id="s",
            hostname="h",
            ip="fe80::1",
            host=host,
            driver="xvnc",
            version="1",
            agent_version="2",
            boot_id="3",
            endpoints=(Endpoint(ip_address="10.0.0.1", port=8443, web_url_path=None),),
            tags={"Ort": "東京", "": ""},
            types=(Type.VIRTUAL, Type.CONSOLE),
        ),
        Broker(id="b", url="https://b", beat=2**62),
        ApiClient(id="c", name="n", secret_hash=bytes(range(256)), created_at=NOON, active=False),
        AgentClient(id="s", name="n", secret_hash=b"", created_at=NOON),
        SoftwareStatement(id="w", statement_hash=b"\0\xff", issued_at=NOON),
        AuthServer(id="https://login.example.org/jwks.json", registered_at=NOON),
        SigningKey(id="k", public_pem="-----", sealed=b"\x80", created_at=NOON),
        DnsMapping(id="Ip/::1", server_id_type=ServerIdType.IP, server_id="::1", internal_name="a"),
        TokenUse(id="j", expires_at=NOON, client_address="::1"),
    ]


class TestFaultyStore:
    """The fake for faults does what it says, and nothing else."""

    def test_without_faults_it_is_the_store_itself(self, store: Store) -> None:
        faulty = FaultyStore(store, 1, Faults())
        revision = commit(faulty, *pair("p", 1))
        assert faulty.load() == store.load()
        assert faulty.changes(revision - 1) == store.changes(revision - 1)

    def test_an_error_before_writes_nothing(self, store: Store) -> None:
        with pytest.raises(StoreFailed):
            FaultyStore(store, 1, Faults(before=1)).commit([pair("p", 1)])
        assert everything(store) == {}

    def test_an_error_after_has_written_all(self, store: Store) -> None:
        with pytest.raises(StoreFailed):
            FaultyStore(store, 1, Faults(after=1)).commit([pair("p", 1)])
        assert len(everything(store)) == 2

    def test_a_conflict_is_lost_and_writes_nothing_and_seeds_repeat(self, another: Open) -> None:
        store = another()

        def run(seed: int, prefix: str) -> list[bool]:
            faulty = FaultyStore(store, seed, Faults(conflict=0.5))
            return [
                isinstance(outcome, Lost)
                for outcome in faulty.commit([pair(f"{prefix}{n}", 1) for n in range(40)])
            ]

        first, again, other = run(7, "a"), run(7, "b"), run(8, "c")
        assert first == again
        assert first != other
        assert 0 < sum(first) < 40
        for number, lost in enumerate(first):
            assert (("broker", f"a{number}-a") in everything(store)) is not lost
