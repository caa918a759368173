"""The agent's journal and identity: what was written is there after the end, however it came."""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from deskfleet.agent import identity
from deskfleet.agent.identity import Identity
from deskfleet.agent.journal import REWRITE_LINES, Entry, Journal
from deskfleet.core.records import Phase
from deskfleet.errors import SetupFailed
from deskfleet.ports import SessionSpec
from support.builders import a_request


def entry(generation: int = 1, phase: Phase = Phase.RUNNING, reason: str | None = None) -> Entry:
    spec = SessionSpec(session_id="s1", generation=generation, request=a_request())
    return Entry(spec=spec, phase=phase, reason=reason)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


@contextmanager
def opened(path: Path) -> Iterator[Journal]:
    with closing(Journal(path)) as journal:
        yield journal


class TestJournal:
    def test_the_last_line_of_a_session_counts(self, path: Path) -> None:
        with opened(path) as journal:
            journal.write("s1", entry(phase=Phase.STARTING))
            journal.write("s2", entry(2))
            journal.write("s1", entry(phase=Phase.FAILED, reason="no 'X'\nhere"))
            journal.write("s2", None)
            journal.write("s3", entry())
            journal.write("s4", None)
        with opened(path) as journal:
            assert journal.entries == {
                "s1": entry(phase=Phase.FAILED, reason="no 'X'\nhere"),
                "s3": entry(),
            }
            assert journal.entries["s1"].generation == 1

    def test_it_is_on_the_disk_before_write_returns(self, path: Path) -> None:
        # No close: the end of an agent that was killed.
        journal = Journal(path)
        journal.write("s1", entry())
        with opened(path) as reader:
            assert reader.entries == {"s1": entry()}
        journal.close()

    def test_nobody_else_reads_it(self, path: Path) -> None:
        with opened(path) as journal:
            journal.write("s1", entry())
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert list(path.parent.iterdir()) == [path]

    @pytest.mark.parametrize("cut", [1, 10, 40])
    def test_a_line_that_was_cut_short_costs_itself_only(
        self, path: Path, cut: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        with opened(path) as journal:
            journal.write("s1", entry())
            journal.write("s1", entry(2))
        path.write_bytes(path.read_bytes()[:-cut])
        with caplog.at_level(logging.WARNING), opened(path) as journal:
            # Without its line end alone, the line is whole.
            assert journal.entries == {"s1": entry(2 if cut == 1 else 1)}
            journal.write("s2", entry())
        assert bool(caplog.records) is (cut != 1)
        with opened(path) as journal:
            assert set(journal.entries) == {"s1", "s2"}

    @pytest.mark.parametrize("noise", [b"\0" * 100, b"\xff\xfe\n", b"{}\n", b'{"id":1}\n', b"\n\n"])
    def test_noise_is_passed_over(self, path: Path, noise: bytes) -> None:
        with opened(path) as journal:
            journal.write("s1", entry())
        path.write_bytes(noise + b"\n" + path.read_bytes() + noise)
        with opened(path) as journal:
            assert journal.entries == {"s1": entry()}

    def test_a_bit_that_flipped_is_never_believed(self, path: Path) -> None:
        with opened(path) as journal:
            journal.write("s1", entry(reason="as it was"))
            journal.write("s2", entry(2))
        whole = path.read_bytes()
        for at in range(0, len(whole) * 8, 5):
            flipped = bytearray(whole)
            flipped[at // 8] ^= 1 << at % 8
            path.write_bytes(flipped)
            with opened(path) as journal:
                written = {"s1": entry(reason="as it was"), "s2": entry(2)}
                assert journal.entries.items() <= written.items(), at

    def test_a_folder_that_takes_nothing_is_told_in_a_sentence(self, tmp_path: Path) -> None:
        with pytest.raises(SetupFailed, match=r"journal can't be used: .*/gone/journal"):
            Journal(tmp_path / "gone" / "journal.jsonl")

    def test_history_is_dropped_in_time(self, path: Path) -> None:
        with opened(path) as journal:
            journal.write("kept", entry())
            for number in range(REWRITE_LINES + 10):
                journal.write("s1", entry(number))
            lines = path.read_bytes().splitlines()
            assert len(lines) < 20
            journal.write("s2", entry())
        with opened(path) as journal:
            assert set(journal.entries) == {"kept", "s1", "s2"}
            assert journal.entries["s1"].generation == REWRITE_LINES + 9

    def test_a_rewrite_that_was_cut_short_leaves_the_old_file(self, path: Path) -> None:
        with opened(path) as journal:
            journal.write("s1", entry())
        path.with_name(f"{path.name}.new").write_bytes(b'{"id":"s9","en')
        with opened(path) as journal:
            assert set(journal.entries) == {"s1"}
        assert not path.with_name(f"{path.name}.new").exists()


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
