"""SQLite under what goes wrong: killed processes, full and failing disks, wrong files."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from deskfleet.broker.stores import local_file
from deskfleet.broker.stores.memory import MemoryStore
from deskfleet.broker.stores.sql import SqlStore
from deskfleet.core.change import ABSENT, ChangeSet, Put
from deskfleet.core.records import Broker, Revision
from deskfleet.errors import SetupFailed, StoreFailed, Unavailable
from deskfleet.ports import Store
from support.stores import pair

TESTS = Path(__file__).parents[1]


def url_of(path: Path) -> str:
    return f"sqlite:///{path}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("mounting a small file system needs root and mount(8)")
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"a small file system can't be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def start_child(path: Path, name: str, count: int, size: int, *wrap: str) -> subprocess.Popen[str]:
    """Start a program that commits pairs and prints each that is acknowledged."""
    program = [sys.executable, "-m", "support.stores", url_of(path), name, str(count), str(size)]
    folders = os.pathsep.join([str(TESTS), *sys.path])
    return subprocess.Popen(
        [*wrap, *program],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": folders},
        start_new_session=True,
    )


def acked_in(lines: list[str]) -> dict[str, Revision]:
    """Read the ledger of a child; a last line that was cut off was not told."""
    whole = [line.split() for line in lines if line.endswith("\n")]
    return {words[1]: int(words[2]) for words in whole if words[0] == "acked"}


def held_in(store: Store) -> dict[str, Revision]:
    """Return the pairs of a store, after a check that none is half there."""
    held = {item.record.id: item.revision for item in store.load()[1]}
    for id, revision in held.items():
        twin = id[:-1] + ("b" if id.endswith("a") else "a")
        assert held.get(twin) == revision, id
    return {id[:-2]: revision for id, revision in held.items() if id.endswith("-a")}


def test_kill_9_loses_nothing_that_was_acknowledged(path: Path) -> None:
    SqlStore(url_of(path)).close()
    ledger: dict[str, Revision] = {}
    limit = time.monotonic() + 3
    cycles = 0
    # Two cycles at least, however slow the machine is.
    while cycles < 2 or time.monotonic() < limit:
        children = [start_child(path, f"{cycles}-{side}", 10**6, 3000) for side in range(2)]
        try:
            for child in children:
                assert child.stdout is not None
                for _ in range(5 + 40 * (cycles % 5)):
                    line = child.stdout.readline()
                    ledger |= acked_in([line])
        finally:
            for child in children:
                os.killpg(child.pid, signal.SIGKILL)
        for child in children:
            assert child.stdout is not None
            ledger |= acked_in(child.stdout.readlines())
            child.wait(timeout=10)
            child.stdout.close()
        store = SqlStore(url_of(path))
        assert ledger.items() <= held_in(store).items()
        store.close()
        cycles += 1
    assert len(ledger) > 20


def test_a_full_disk_ends_the_store_and_loses_nothing(small_disk: Path) -> None:
    path = small_disk / "store.db"
    store = SqlStore(url_of(path))
    acked: dict[str, Revision] = {}

    def fill() -> None:
        for number in range(1000):
            [revision] = store.commit([pair(str(number), 5000)])
            assert isinstance(revision, int)
            acked[str(number)] = revision

    for call in (fill, lambda: store.commit([pair("x", 1)]), store.load, lambda: store.changes(1)):
        with pytest.raises(StoreFailed, match="full"):
            call()
    assert acked
    store.close()
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    again = SqlStore(url_of(path))
    held = held_in(again)
    assert acked.items() <= held.items()
    assert len(held) <= len(acked) + 1
    [revision] = again.commit([pair("again", 5000)])
    assert isinstance(revision, int)
    again.close()


def test_there_is_no_store_where_it_does_not_fit(small_disk: Path) -> None:
    path = small_disk / "store.db"
    refusals = []
    for room in range(0, 400, 4):
        (small_disk / "ballast").write_bytes(bytes((1024 - room) * 1024))
        try:
            SqlStore(url_of(path)).close()
            break
        except SetupFailed as error:
            refusals.append(error.message)
            # What was made is whole, so that the next start finds a store or a clean folder.
            left = {one.name for one in small_disk.iterdir()}
            assert not [name for name in left if name.startswith(".")], (room, left)
    else:
        pytest.fail("it never fitted")
    assert len(refusals) > 3
    assert not [message for message in refusals if not FULL.search(message)]
    store = SqlStore(url_of(path))
    assert held_in(store) == {}
    store.close()


FULL = re.compile(r"SQLITE_FULL|SQLITE_IOERR_SHM|No space left")


def strace(path: Path, inject: str, only: Path | None = None) -> list[str]:
    """Return the words that start strace with a fault, or skip the test."""
    program = shutil.which("strace")
    probe = [program or "", "-qq", "-o", "/dev/null", "true"]
    if program is None or subprocess.run(probe, check=False).returncode:
        pytest.skip("failing system calls need strace and the right to trace")
    where = ["-P", str(only)] if only is not None else []
    return [program, "-qq", "-o", str(path.with_suffix(".trace")), *where, "-e", inject]


# The second sync is SQLite's own of the folder; it ignores errors there, which is why the store
# has already done the same (see the test of the log's name).
@pytest.mark.parametrize("when", [1, 3, 4, 5, 6])
def test_one_failed_sync_is_the_end(path: Path, when: int) -> None:
    wrap = strace(path, f"inject=fsync,fdatasync:error=EIO:when={when}")
    SqlStore(url_of(path)).close()
    with start_child(path, "p", 30, 100, *wrap) as child:
        output = child.communicate(timeout=30)[0].splitlines(keepends=True)
    words = [line.split()[0] for line in output]
    # Whatever was acknowledged came before the failure; nothing was afterwards.
    assert words.count("failed") >= 1
    assert "acked" not in words[words.index("failed") :]
    if "acked" in words:
        assert words[-3:] == ["failed", "failed", "ended"]
    store = SqlStore(url_of(path))
    assert acked_in(output).items() <= held_in(store).items()
    store.close()


def test_a_failed_sync_of_a_checkpoint_is_the_end_too(path: Path) -> None:
    wrap = strace(path, "inject=fsync,fdatasync:error=EIO:when=1", only=path)
    SqlStore(url_of(path)).close()
    with start_child(path, "p", 30, 2**20, *wrap) as child:
        output = child.communicate(timeout=60)[0].splitlines(keepends=True)
    words = [line.split()[0] for line in output]
    assert 2 <= words.count("acked") < 30
    assert words[-3:] == ["failed", "failed", "ended"]
    store = SqlStore(url_of(path))
    assert acked_in(output).items() <= held_in(store).items()
    store.close()


def test_each_commit_is_synced_before_it_is_acknowledged(path: Path) -> None:
    wrap = strace(path, "trace=fsync,fdatasync,write")
    SqlStore(url_of(path)).close()
    with start_child(path, "p", 10, 100, *wrap) as child:
        child.communicate(timeout=30)
    calls = path.with_suffix(".trace").read_text().splitlines()
    acks = [number for number, call in enumerate(calls) if 'write(1, "acked' in call]
    assert len(acks) == 10
    for before, ack in pairwise(acks):
        assert any("sync(" in call for call in calls[before:ack])


def test_the_name_of_the_log_is_durable_before_the_first_commit(path: Path) -> None:
    wrap = strace(path, "trace=openat,fsync,fdatasync,write")
    SqlStore(url_of(path)).close()
    with start_child(path, "p", 1, 100, *wrap) as child:
        child.communicate(timeout=30)
    calls = path.with_suffix(".trace").read_text().splitlines()
    [ack] = [number for number, call in enumerate(calls) if 'write(1, "acked' in call]
    made = next(n for n, call in enumerate(calls) if f"{path}-wal" in call and "O_CREAT" in call)
    opened = [
        (n, call.split(" = ")[-1].strip())
        for n, call in enumerate(calls[:ack])
        if call.startswith("openat") and f'"{path.parent}"' in call
    ]
    synced = [
        n
        for n, descriptor in opened
        for call in calls[n : n + 2]
        if n > made and call.startswith(f"fsync({descriptor})") and call.endswith("= 0")
    ]
    # SQLite's own is an fdatasync, and its errors go unheard.
    assert len(synced) == 1


def test_the_log_is_folded_back_before_it_grows_large(path: Path) -> None:
    store = SqlStore(url_of(path))
    for number in range(60):
        store.commit([pair(str(number), 2**20)])
    assert path.stat().st_size > 60 * 2**20
    assert path.with_name("store.db-wal").stat().st_size < 40 * 2**20
    store.close()


def test_it_survives_being_opened_again(path: Path) -> None:
    store = SqlStore(url_of(path))
    outcomes = store.commit([pair("a", 1), pair("b", 1)])
    store.close()
    again = SqlStore(url_of(path))
    assert list(held_in(again).values()) == list(outcomes)
    assert again.commit([pair("c", 1)]) == [outcomes[1] + 1]  # type: ignore[operator]
    again.close()


def test_a_closed_store_says_so(path: Path) -> None:
    store = SqlStore(url_of(path))
    store.close()
    store.close()
    with pytest.raises(StoreFailed, match="closed"):
        store.load()


def test_no_file_of_a_store_is_readable_by_others(path: Path) -> None:
    before = os.umask(0)
    try:
        store = SqlStore(url_of(path))
        store.commit([pair("a", 1)])
        modes = {one.name: one.stat().st_mode & 0o777 for one in path.parent.iterdir()}
        store.close()
    finally:
        os.umask(before)
    assert modes == {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600}


def test_a_file_that_others_may_read_is_refused(path: Path) -> None:
    SqlStore(url_of(path)).close()
    path.chmod(0o640)
    with pytest.raises(SetupFailed, match=r"mode 640.*0600"):
        SqlStore(url_of(path))


def test_many_who_start_at_once_agree_on_one_file(path: Path) -> None:
    gate = threading.Barrier(8)
    stores: list[SqlStore] = []

    def begin() -> None:
        gate.wait(timeout=10)
        stores.append(SqlStore(url_of(path)))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(stores) == 8
    for number, store in enumerate(stores):
        store.commit([pair(str(number), 1)])
    assert len(held_in(stores[0])) == 8
    for store in stores:
        store.close()
    assert [one.name for one in path.parent.iterdir()] == ["store.db"]


def test_who_comes_second_with_a_new_file_keeps_the_first(path: Path) -> None:
    def build(mine: Path) -> None:
        mine.write_text("second")
        path.write_text("first")

    local_file.create_whole(path, build)
    assert path.read_text() == "first"
    assert [one.name for one in path.parent.iterdir()] == ["store.db"]


def test_waiting_in_vain_is_unavailable_and_writes_nothing(path: Path) -> None:
    store = SqlStore(url_of(path), busy_timeout=0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable):
        store.commit([pair("a", 1)])
    assert held_in(store) == {}
    other.execute("ROLLBACK")
    store.commit([pair("a", 1)])
    assert list(held_in(store)) == ["a"]
    other.close()
    store.close()


def test_a_glance_waits_for_nobody_and_sees_only_what_is_committed(path: Path) -> None:
    store = SqlStore(url_of(path))
    other = sqlite3.connect(path, isolation_level=None)
    before = store.glance()
    assert before is not None
    other.execute("BEGIN IMMEDIATE")
    other.execute("UPDATE counter SET revision = revision + 1")
    assert store.glance() == before
    other.execute("COMMIT")
    assert store.glance() == before + 1
    other.close()
    store.close()
    assert store.glance() is None


def test_a_newer_schema_is_refused(path: Path) -> None:
    SqlStore(url_of(path)).close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE counter SET schema_version = 2")
    raw.close()
    with pytest.raises(SetupFailed, match="newer"):
        SqlStore(url_of(path))


def test_a_kind_from_the_future_is_passed_over(path: Path) -> None:
    store = SqlStore(url_of(path))
    with sqlite3.connect(path) as raw:
        raw.execute("INSERT INTO records VALUES ('hologram', 'h', 2, '{}')")
        raw.execute("UPDATE counter SET revision = 2")
    raw.close()
    assert store.load() == (2, [])
    assert store.changes(1) == (2, [])
    store.close()


def test_a_record_that_cannot_be_read_fails_by_name_without_its_body(path: Path) -> None:
    store = SqlStore(url_of(path))
    with sqlite3.connect(path) as raw:
        raw.execute("INSERT INTO records VALUES ('broker', 'b7', 2, x'7b7365637265747d')")
        raw.execute("UPDATE counter SET revision = 2")
    raw.close()
    with pytest.raises(StoreFailed, match=r"broker.*b7") as caught:
        store.load()
    assert "secret" not in caught.value.message
    store.close()


def test_what_is_not_a_database_is_refused(path: Path) -> None:
    path.write_bytes(b"not a database at all, but long enough to look at" * 100)
    path.chmod(0o600)
    with pytest.raises(SetupFailed, match="not a database"):
        SqlStore(url_of(path))


def test_the_database_of_something_else_is_refused_and_left_alone(path: Path) -> None:
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE recipes (name)")
    raw.close()
    path.chmod(0o600)
    with pytest.raises(SetupFailed, match="not a store of deskfleet"):
        SqlStore(url_of(path))
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT name FROM sqlite_master").fetchall() == [("recipes",)]
    raw.close()


def test_a_damaged_file_is_refused_at_the_start(path: Path) -> None:
    store = SqlStore(url_of(path))
    store.commit([pair(str(number), 500) for number in range(200)])
    store.close()
    damage(path)
    with pytest.raises(SetupFailed, match=r"damaged|malformed"):
        SqlStore(url_of(path))


def test_a_file_that_is_damaged_under_way_ends_the_store(path: Path) -> None:
    filled = SqlStore(url_of(path))
    filled.commit([pair(str(number), 500) for number in range(2000)])
    filled.close()
    store = SqlStore(url_of(path))
    damage(path)
    with pytest.raises(StoreFailed):
        store.load()
    with pytest.raises(StoreFailed):
        store.commit([pair("x", 1)])
    store.close()


def damage(path: Path) -> None:
    """Overwrite all but the first pages."""
    with path.open("r+b") as file:
        file.seek(6 * 4096)
        file.write(b"\xa5" * (path.stat().st_size - 6 * 4096))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sqlite://", "plain file"),
        ("sqlite:///:memory:", "plain file"),
        ("sqlite:////tmp/x.db?mode=ro&uri=true", "plain file"),
        ("sqlite:////no/such/folder/store.db", "does not exist: /no/such/folder"),
        ("sqlite:////proc/store.db", "can't be opened"),
        ("postgresql://user:hunter2@db/fleet", "not supported: postgresql; sqlite:///FILE is$"),
        ("nonsense", "URL"),
    ],
)
def test_a_url_that_cannot_serve_is_refused(url: str, reason: str) -> None:
    with pytest.raises(SetupFailed, match=reason) as caught:
        SqlStore(url)
    assert "hunter2" not in caught.value.message


MOUNTS = b"""\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
40 27 0:30 / /srv rw shared:1 - nfs4 files:/export rw
41 40 0:31 / /srv/local rw - xfs /dev/vdb rw
42 27 0:32 / /mnt/with\\040space rw master:2 propagate_from:1 - fuse.sshfs host: rw
43 27 0:33 / /over rw - ext4 /dev/vdc rw
44 27 0:34 / /over rw - cifs //host/share rw
45 27 0:35 / /mnt/\xc3\xbc\x0c\xff\\134x rw - fuse.sshfs host: rw
"""


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("/", "ext4"),
        ("/var/lib/deskfleet", "ext4"),
        ("/srv", "nfs4"),
        ("/srv/fleet", "nfs4"),
        ("/srv/local/fleet", "xfs"),
        ("/srvx", "ext4"),
        ("/mnt/with space/a", "fuse.sshfs"),
        ("/over", "cifs"),
        (os.fsdecode(b"/mnt/\xc3\xbc\x0c\xff\\x/a"), "fuse.sshfs"),
    ],
)
def test_the_file_system_of_a_folder(folder: str, expected: str) -> None:
    assert local_file.file_system(MOUNTS, folder) == expected


def test_a_network_file_system_is_refused_by_name(tmp_path: Path) -> None:
    mounts = MOUNTS + f"50 27 0:40 / {tmp_path} rw - nfs4 files:/export rw\n".encode()
    with pytest.raises(SetupFailed, match=r"network file system \(nfs4\)"):
        local_file.check_folder(tmp_path / "store.db", mounts)
    local_file.check_folder(tmp_path / "store.db", MOUNTS)


def test_a_quiet_question_costs_one_small_statement(path: Path) -> None:
    """Guard the hot path: the plan of `changes` looks rows up, it never scans or sorts them."""
    store = SqlStore(url_of(path))
    store.commit([(Put(Broker(id=str(n), url="u"), ABSENT),) for n in range(100)])
    text = str(store._schema.changes.compile(store._connection.engine))
    explained = store._connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", (101, 1))
    plan = [row[-1] for row in explained]
    assert any("revision>?" in step for step in plan), plan
    assert not [step for step in plan if "SCAN" in step or "TEMP B-TREE" in step], plan
    store.close()


def test_memory_and_sqlite_tell_the_same_story(path: Path) -> None:
    sqlite, memory = SqlStore(url_of(path)), MemoryStore()
    batches: list[list[ChangeSet]] = [
        [pair("a", 1)],
        [pair("a", 2), pair("b", 1)],
        [],
        [()],
        [pair("c", 3)],
    ]
    for batch in batches:
        assert list(sqlite.commit(batch)) == list(memory.commit(batch))
        assert sqlite.load() == memory.load()
    sqlite.close()
