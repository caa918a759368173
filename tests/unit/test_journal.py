"""The agent's journal and identity: what was written is there after the end, however it came."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import stat
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

import deskfleet.agent.journal as journal_module
from deskfleet.agent import identity
from deskfleet.agent.identity import Identity
from deskfleet.agent.journal import Journal
from deskfleet.agent.journal_file import (
    LONGEST_BYTES,
    MOST_OVER,
    REWRITE_LINES,
    Entry,
    Failure,
    JournalFile,
    Line,
)
from deskfleet.core.records import Phase
from deskfleet.errors import SetupFailed, Unavailable
from deskfleet.machine import here
from deskfleet.ports import SessionSpec
from support.builders import a_request
from support.fake_hosts import Disk
from support.out_of_threads import out_of_threads


def entry(generation: int = 1, phase: Phase = Phase.RUNNING, reason: str | None = None) -> Entry:
    spec = SessionSpec(session_id="s1", generation=generation, request=a_request())
    return Entry(spec=spec, phase=phase, reason=reason)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


@contextmanager
def opened(path: Path) -> Iterator[JournalFile]:
    with closing(JournalFile(path)) as journal:
        yield journal


def put(journal: JournalFile, id: str, entry: Entry | None) -> None:
    assert journal.write([Line(id=id, entry=entry)]) == [None]


class TestJournalFile:
    def test_the_last_line_of_a_session_counts(self, path: Path) -> None:
        with opened(path) as journal:
            put(journal, "s1", entry(phase=Phase.STARTING))
            put(journal, "s2", entry(2))
            put(journal, "s1", entry(phase=Phase.FAILED, reason="no 'X'\nhere"))
            put(journal, "s2", None)
            put(journal, "s3", entry())
            put(journal, "s4", None)
        with opened(path) as journal:
            assert journal.memory.entries == {
                "s1": entry(phase=Phase.FAILED, reason="no 'X'\nhere"),
                "s3": entry(),
            }
            assert journal.memory.entries["s1"].generation == 1

    def test_it_is_on_the_disk_before_write_returns(self, path: Path) -> None:
        # No close: the end of an agent that was killed.
        journal = JournalFile(path)
        put(journal, "s1", entry())
        with opened(path) as reader:
            assert reader.memory.entries == {"s1": entry()}
        journal.close()

    def test_nobody_else_reads_it(self, path: Path) -> None:
        with opened(path) as journal:
            put(journal, "s1", entry())
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert list(path.parent.iterdir()) == [path]

    @pytest.mark.parametrize("cut", [1, 10, 40])
    def test_a_line_that_was_cut_short_costs_itself_only(
        self, path: Path, cut: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        with opened(path) as journal:
            put(journal, "s1", entry())
            put(journal, "s1", entry(2))
        path.write_bytes(path.read_bytes()[:-cut])
        with caplog.at_level(logging.WARNING), opened(path) as journal:
            # Without its line end alone, the line is whole.
            assert journal.memory.entries == {"s1": entry(2 if cut == 1 else 1)}
            put(journal, "s2", entry())
        assert bool(caplog.records) is (cut != 1)
        with opened(path) as journal:
            assert set(journal.memory.entries) == {"s1", "s2"}

    @pytest.mark.parametrize("noise", [b"\0" * 100, b"\xff\xfe\n", b"{}\n", b'{"id":1}\n', b"\n\n"])
    def test_noise_is_passed_over(self, path: Path, noise: bytes) -> None:
        with opened(path) as journal:
            put(journal, "s1", entry())
        path.write_bytes(noise + b"\n" + path.read_bytes() + noise)
        with opened(path) as journal:
            assert journal.memory.entries == {"s1": entry()}

    def test_a_bit_that_flipped_is_never_believed(self, path: Path) -> None:
        with opened(path) as journal:
            put(journal, "s1", entry(reason="as it was"))
            put(journal, "s2", entry(2))
        whole = path.read_bytes()
        for at in range(0, len(whole) * 8, 5):
            flipped = bytearray(whole)
            flipped[at // 8] ^= 1 << at % 8
            path.write_bytes(flipped)
            with opened(path) as journal:
                written = {"s1": entry(reason="as it was"), "s2": entry(2)}
                assert journal.memory.entries.items() <= written.items(), at

    def test_a_folder_that_takes_nothing_is_told_in_a_sentence(self, tmp_path: Path) -> None:
        with pytest.raises(SetupFailed, match=r"journal can't be used: .*/gone/journal"):
            JournalFile(tmp_path / "gone" / "journal.jsonl")

    def test_history_is_dropped_in_time(self, path: Path) -> None:
        with opened(path) as journal:
            put(journal, "kept", entry())
            for number in range(REWRITE_LINES + 10):
                put(journal, "s1", entry(number))
            lines = path.read_bytes().splitlines()
            assert len(lines) < 20
            put(journal, "s2", entry())
        with opened(path) as journal:
            assert set(journal.memory.entries) == {"kept", "s1", "s2"}
            assert journal.memory.entries["s1"].generation == REWRITE_LINES + 9

    def test_what_is_over_is_known_when_all_else_is_forgotten(self, path: Path) -> None:
        with opened(path) as journal:
            put(journal, "s1", entry(3))
            for line in (Line(id="s1", over=3), Line(id="s1", over=2), Line(id="s2", over=1)):
                assert journal.write([line]) == [None]
            put(journal, "s2", entry(2))
            put(journal, "s3", entry())
            put(journal, "s3", None)
        for _ in range(2):
            # Once as it was written, and once as it was rewritten at the start.
            with opened(path) as journal:
                assert journal.memory.over == {"s1": 3, "s2": 1}
                assert journal.memory.entries == {"s2": entry(2)}

    def test_so_much_is_known_to_be_over_and_the_oldest_is_dropped(self, path: Path) -> None:
        with opened(path) as journal:
            lines = [Line(id=f"s{number}", over=1) for number in range(MOST_OVER)]
            journal.write([*lines, Line(id="s0", over=2), Line(id="more", over=1)])
            for number in range(REWRITE_LINES + 100):
                put(journal, "s", entry(number))
            assert len(path.read_bytes().splitlines()) < MOST_OVER + REWRITE_LINES
        with opened(path) as journal:
            over = journal.memory.over
            assert len(over) == MOST_OVER
            assert "s1" not in over
            assert (over["s0"], over["s2"], over["more"]) == (2, 1, 1)

    def test_a_rewrite_that_was_cut_short_leaves_the_old_file(self, path: Path) -> None:
        with opened(path) as journal:
            put(journal, "s1", entry())
        path.with_name(f"{path.name}.new").write_bytes(b'{"id":"s9","en')
        with opened(path) as journal:
            assert set(journal.memory.entries) == {"s1"}
        assert not path.with_name(f"{path.name}.new").exists()

    def test_lines_that_come_together_are_one_write(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: list[int] = []
        monkeypatch.setattr(here, "sync_content", synced.append)
        with opened(path) as journal:
            lines = [Line(id=f"s{number}", entry=entry(number)) for number in range(100)]
            assert journal.write(lines) == [None] * 100
            assert len(synced) == 1
        with opened(path) as journal:
            assert len(journal.memory.entries) == 100

    def test_what_does_not_fit_keeps_nothing_else_out(self, path: Path) -> None:
        with opened(path) as journal:
            put(journal, "s0", entry())
            long = Line(id="s2", entry=entry(reason="x" * 2000))
            with room_for(1000):
                lines = [Line(id="s1", entry=entry()), long, Line(id="s0")]
                assert journal.write(lines) == [None, "File too large", None]
            assert journal.memory.entries == {"s1": entry()}
        with opened(path) as journal:
            assert journal.memory.entries == {"s1": entry()}

    def test_after_a_failure_all_is_as_it_was_until_the_disk_takes_something(
        self, path: Path
    ) -> None:
        with opened(path) as journal:
            put(journal, "s1", entry())
            both = [Line(id="s1", entry=entry(2)), Line(id="s1", entry=entry(3))]
            with room_for(10):
                assert journal.write(both) == ["File too large"] * 2
            with room_for(LONGEST_BYTES - 1):
                # It would do for what there is, and not for what may come.
                journal.mend()
                assert (journal.memory.entries, journal.torn) == ({"s1": entry()}, True)
            journal.mend()
            assert list(path.parent.iterdir()) == [path]
            assert (journal.memory.entries, journal.torn) == ({"s1": entry()}, False)
            put(journal, "s2", entry())
        with opened(path) as journal:
            assert journal.memory.entries == {"s1": entry(), "s2": entry()}

    def test_what_can_not_be_written_at_all_fails_alone(self, path: Path) -> None:
        with opened(path) as journal:
            broken = Line(id="s2", entry=entry(reason="\udcff"))
            first, second, third = journal.write([Line(id="s1", entry=entry()), broken, broken])
            assert (first, journal.memory.entries, journal.torn) == (None, {"s1": entry()}, False)
            assert second == third
            assert second


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes; as on a full disk, what fits of a write is written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class CountedFile(JournalFile):
    """Counts how often it is written to; its disk may be full."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.writes: list[list[str]] = []
        self.full = False

    def write(self, lines: Sequence[Line]) -> list[Failure | None]:
        self.writes.append([line.id for line in lines])
        return ["full"] * len(lines) if self.full else super().write(lines)


class TestJournal:
    @staticmethod
    def run(path: Path, scenario: Callable[[Journal, CountedFile, Disk], Awaitable[None]]) -> None:
        async def whole() -> None:
            disk, file = Disk(), CountedFile(path)
            journal = Journal(file, disk.off_loop)
            await scenario(journal, file, disk)
            await journal.close()

        asyncio.run(whole())

    def test_it_is_on_the_disk_before_write_returns(self, path: Path) -> None:
        async def scenario(journal: Journal, file: CountedFile, disk: Disk) -> None:
            disk.stands = True
            writing = asyncio.create_task(journal.write("s1", entry()))
            await disk.has_work.wait()
            assert (journal.entries, writing.done()) == ({}, False)
            disk.go_on()
            await writing
            assert journal.entries == {"s1": entry()}
            with opened(path.with_name("copy")) as copy:
                copy._path.write_bytes(path.read_bytes())
            with opened(path.with_name("copy")) as copy:
                assert copy.memory.entries == journal.entries

        self.run(path, scenario)

    def test_a_machine_that_runs_out_of_threads_notes_on(self, path: Path) -> None:
        async def whole() -> None:
            journal = Journal(JournalFile(path))
            with out_of_threads():
                async with asyncio.timeout(20):
                    await journal.write("s1", entry())
            assert journal.entries == {"s1": entry()}
            await journal.close()

        asyncio.run(whole())

    def test_what_waits_at_one_moment_goes_together(self, path: Path) -> None:
        async def scenario(journal: Journal, file: CountedFile, disk: Disk) -> None:
            await gathered(journal, "s1", "s2", "s3")
            assert file.writes == [["s1", "s2", "s3"]]
            disk.stands = True
            first = asyncio.create_task(gathered(journal, "s4"))
            await disk.has_work.wait()
            rest = asyncio.create_task(gathered(journal, "s5", "s6"))
            await asyncio.sleep(0)
            disk.go_on()
            await asyncio.gather(first, rest)
            assert file.writes[1:] == [["s4"], ["s5", "s6"]]

        self.run(path, scenario)

    def test_what_is_known_is_not_written_again(self, path: Path) -> None:
        async def scenario(journal: Journal, file: CountedFile, disk: Disk) -> None:
            await journal.forget("s1")
            await journal.write("s1", entry())
            await journal.write("s1", entry())
            assert len(file.writes) == 1

        self.run(path, scenario)

    def test_a_failure_is_told_and_changes_nothing(self, path: Path) -> None:
        async def scenario(journal: Journal, file: CountedFile, disk: Disk) -> None:
            await journal.write("s1", entry())
            file.full = True
            with pytest.raises(Unavailable, match="can't be written: full"):
                await journal.forget("s1")
            assert journal.entries == {"s1": entry()}
            file.full = False
            await journal.forget("s1")
            assert journal.entries == {}

        self.run(path, scenario)

    def test_trouble_is_told_until_the_disk_takes_something_again(self, path: Path) -> None:
        async def scenario(journal: Journal, file: CountedFile, disk: Disk) -> None:
            assert journal.trouble() is None
            with room_for(10), pytest.raises(Unavailable):
                await journal.write("s1", entry())
            with room_for(10):
                for _ in range(3):
                    assert journal.trouble() == (
                        "the journal of the agent can't be written: File too large"
                    )
                    await journal._idle.wait()
            # It is asked whether it would, though nothing is to be noted any more.
            assert journal.trouble() is not None
            await journal._idle.wait()
            assert journal.trouble() is None

        self.run(path, scenario)

    def test_a_write_that_succeeds_ends_the_trouble(self, path: Path) -> None:
        async def scenario(journal: Journal, file: CountedFile, disk: Disk) -> None:
            with room_for(10), pytest.raises(Unavailable):
                await journal.write("s1", entry())
            await journal.write("s1", entry())
            assert journal.trouble() is None

        self.run(path, scenario)

    def test_a_disk_that_does_not_answer_is_trouble(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(journal_module, "SLOW_SECONDS", 0.02)

        async def scenario(journal: Journal, file: CountedFile, disk: Disk) -> None:
            disk.stands = True
            writing = asyncio.create_task(journal.write("s1", entry()))
            await disk.has_work.wait()
            assert journal.trouble() is None
            await asyncio.sleep(0.03)
            assert journal.trouble() == "the disk with the journal of the agent hardly answers"
            disk.go_on()
            await writing
            assert journal.trouble() is None

        self.run(path, scenario)

    def test_who_is_cancelled_knows_what_came_of_it(self, path: Path) -> None:
        async def scenario(journal: Journal, file: CountedFile, disk: Disk) -> None:
            disk.stands = True
            writing = asyncio.create_task(journal.write("s1", entry()))
            await disk.has_work.wait()
            writing.cancel()
            await asyncio.sleep(0)
            assert not writing.done()
            disk.go_on()
            await asyncio.wait({writing})
            assert writing.cancelled()
            assert journal.entries == {"s1": entry()}

        self.run(path, scenario)

    def test_a_failure_that_nobody_waits_for_any_more_is_not_called_lost(self, path: Path) -> None:
        async def scenario(journal: Journal, file: CountedFile, disk: Disk) -> None:
            lost: list[dict[str, object]] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, told: lost.append(told))
            file.full = disk.stands = True
            writing = asyncio.create_task(journal.write("s1", entry()))
            await disk.has_work.wait()
            writing.cancel()
            await asyncio.sleep(0)
            disk.go_on()
            await asyncio.wait({writing})
            del writing
            gc.collect()
            assert lost == []

        self.run(path, scenario)

    def test_closing_finishes_what_waits(self, path: Path) -> None:
        async def scenario(journal: Journal, file: CountedFile, disk: Disk) -> None:
            disk.stands = True
            first = asyncio.create_task(gathered(journal, "s1"))
            await disk.has_work.wait()
            second = asyncio.create_task(gathered(journal, "s2"))
            await asyncio.sleep(0)
            closing = asyncio.create_task(journal.close())
            await asyncio.sleep(0.01)
            assert not closing.done()
            disk.go_on()
            await asyncio.gather(first, second, closing)
            with opened(path) as again:
                assert set(again.memory.entries) == {"s1", "s2"}

        self.run(path, scenario)


async def gathered(journal: Journal, *ids: str) -> None:
    await asyncio.gather(*(journal.write(id, entry()) for id in ids))


class TestIdentity:
    def test_it_is_kept_for_its_owner_alone(self, tmp_path: Path) -> None:
        assert identity.read(tmp_path) is None
        who = Identity("server-1", "password")
        identity.write(tmp_path, who)
        assert identity.read(tmp_path) == who
        assert stat.S_IMODE((tmp_path / identity.FILE).stat().st_mode) == 0o600
        identity.write(tmp_path, Identity("server-2", "other"))
        assert identity.read(tmp_path) == Identity("server-2", "other")
        assert [path.name for path in tmp_path.iterdir()] == [identity.FILE]

    @pytest.mark.parametrize("content", [b"", b"{}", b'{"client_id":"x"}', b"\xff"])
    def test_a_broken_one_is_a_persons_to_remove(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / identity.FILE).write_bytes(content)
        with pytest.raises(SetupFailed, match="remove it to enrol"):
            identity.read(tmp_path)

    def test_its_secret_is_not_printed(self) -> None:
        assert "password" not in repr(Identity("server-1", "password"))
