"""Tags from files: which value wins, what is refused, and when files are read again."""

from __future__ import annotations

import logging
import os
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskfleet.agent.tags import KEY, MAX_FILE_BYTES, TagsFolder, reserved_tags


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "tags"
    made.mkdir()
    return made


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records]


class TestLimits:
    def test_a_value_that_is_too_long_for_the_wire_is_refused(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (folder / "a.toml").write_text(f'long = "{"x" * 4097}"\n{"k" * 4097} = 1\nfits = "x"\n')
        assert TagsFolder([folder]).read() == {"fits": "x"}
        assert events(caplog) == ["tags.refused"] * 2

    def test_of_too_many_the_first_are_told_and_the_log_says_so_once(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        for name in "ab":
            lines = (f"{name}{number} = 1\n" for number in range(500))
            (folder / f"{name}.toml").write_text("".join(lines))
        tags = TagsFolder([folder])
        for _ in range(2):
            told = tags.read()
            assert len(told) == 900
            assert {"a0", "a499", "b0", "b399"} <= set(told)
        assert events(caplog) == ["tags.too-many"]


class TestReading:
    def test_later_files_and_folders_win(self, folder: Path, tmp_path: Path) -> None:
        (folder / "20.toml").write_text('color = "blue"\nsize = "big"\n')
        (folder / "10.toml").write_text('color = "pink"\nrack = "r1"\n')
        second = tmp_path / "second"
        second.mkdir()
        (second / "00.toml").write_text('size = "small"\n')
        tags = TagsFolder([folder, second]).read()
        assert tags == {"color": "blue", "rack": "r1", "size": "small"}

    def test_other_files_are_none(self, folder: Path) -> None:
        (folder / "a.toml.bak").write_text('a = "x"\n')
        (folder / ".hidden.toml").write_text('b = "x"\n')
        (folder / "folder.toml").mkdir()
        (folder / "dangling.toml").symlink_to("nowhere")
        os.mkfifo(folder / "pipe.toml")
        assert TagsFolder([folder, folder / "missing"]).read() == {}

    def test_numbers_and_booleans_become_text(self, folder: Path) -> None:
        (folder / "a.toml").write_text("seats = 12\nratio = 0.5\ngpu = true\nold = false\n")
        tags = TagsFolder([folder]).read()
        assert tags == {"seats": "12", "ratio": "0.5", "gpu": "true", "old": "false"}

    def test_a_mistake_costs_its_own_line_only(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (folder / "a.toml").write_text(
            '"dcv:os-family" = "windows"\n"dcv:x" = "y"\nrack-1 = "r"\n1st = "x"\n"" = "x"\n'
            '"é" = "x"\n"a\\n" = "x"\nlist = [1]\nday = 2026-01-01\n'
            'good = "yes"\n[table]\nk = "v"\n'
        )
        tags = TagsFolder([folder])
        assert tags.read() == {"good": "yes"}
        assert events(caplog) == ["tags.refused"] * 10
        assert tags.read() == {"good": "yes"}
        assert len(caplog.records) == 10

    def test_names_the_file_and_key_of_a_mistake(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (folder / "a.toml").write_text('"dcv:x" = "y"\n')
        TagsFolder([folder]).read()
        told = caplog.records[0].__dict__
        assert (told["path"], told["key"]) == (str(folder / "a.toml"), "dcv:x")
        assert "reserved" in told["reason"]


class TestReadingAgain:
    def test_follows_changes_and_removals(self, folder: Path) -> None:
        (folder / "a.toml").write_text('a = "1"\n')
        tags = TagsFolder([folder])
        assert tags.read() == {"a": "1"}
        (folder / "a.toml").write_text('a = "22"\n')
        (folder / "b.toml").write_text('b = "3"\n')
        assert tags.read() == {"a": "22", "b": "3"}
        (folder / "a.toml").unlink()
        assert tags.read() == {"b": "3"}

    def test_sees_a_file_replaced_with_its_old_size_and_time(self, folder: Path) -> None:
        (folder / "a.toml").write_text('a = "1"\n')
        tags = TagsFolder([folder])
        tags.read()
        before = (folder / "a.toml").stat()
        (folder / "new").write_text('a = "2"\n')
        os.utime(folder / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
        (folder / "new").replace(folder / "a.toml")
        assert tags.read() == {"a": "2"}

    def test_reads_nothing_where_nothing_changed(self, folder: Path) -> None:
        path = folder / "a.toml"
        path.write_text('a = "1"\n')
        tags = TagsFolder([folder])
        tags.read()
        opened: list[str] = []
        watching = True

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            if watching and event == "open" and str(arguments[0]).startswith(str(folder)):
                opened.append(str(arguments[0]))

        sys.addaudithook(watch)
        assert tags.read() == {"a": "1"}
        assert opened == []
        path.write_text('a = "22"\n')
        opened.clear()
        assert tags.read() == {"a": "22"}
        watching = False
        assert opened == [str(path)]

    @pytest.mark.parametrize(
        "broken", [b"a = ", b"\xff\xfe", b'a = "1"\na = "2"\n', b"#" * (MAX_FILE_BYTES + 1)]
    )
    def test_keeps_what_a_broken_file_last_said(
        self, folder: Path, caplog: pytest.LogCaptureFixture, broken: bytes
    ) -> None:
        (folder / "a.toml").write_text('a = "1"\n')
        (folder / "b.toml").write_text('b = "1"\n')
        tags = TagsFolder([folder])
        tags.read()
        (folder / "a.toml").write_bytes(broken)
        (folder / "b.toml").write_text('b = "22"\n')
        for _ in range(3):
            assert tags.read() == {"a": "1", "b": "22"}
        assert events(caplog) == ["tags.file-broken"]
        (folder / "a.toml").write_text('a = "mended"\n')
        assert tags.read() == {"a": "mended", "b": "22"}

    def test_a_file_broken_from_the_start_says_nothing(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (folder / "a.toml").write_text("= nonsense")
        (folder / "b.toml").write_text('b = "1"\n')
        tags = TagsFolder([folder])
        assert tags.read() == tags.read() == {"b": "1"}
        assert events(caplog) == ["tags.file-broken"]

    def test_a_folder_that_can_not_be_listed_keeps_its_tags(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (folder / "a.toml").write_text('a = "1"\n')
        tags = TagsFolder([folder])
        tags.read()
        folder.rename(folder.with_name("aside"))
        folder.write_text("a file in the folder's place")
        with caplog.at_level(logging.WARNING):
            assert tags.read() == tags.read() == {"a": "1"}
        assert events(caplog) == ["tags.unreadable"]
        folder.unlink()
        assert tags.read() == {}


TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)


@given(st.dictionaries(TEXTS, TEXTS, max_size=5))
def test_only_keys_of_the_grammar_come_through(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, str]
) -> None:
    folder = tmp_path_factory.mktemp("tags")
    text = "".join(f"{quoted(key)} = {quoted(value)}\n" for key, value in content.items())
    (folder / "a.toml").write_bytes(text.encode())
    assert tomllib.loads(text) == content
    accepted = {key: value for key, value in content.items() if KEY.fullmatch(key)}
    assert TagsFolder([folder]).read() == accepted


def quoted(text: str) -> str:
    return '"' + "".join(f"\\U{ord(c):08X}" for c in text) + '"'


def test_reserved_tags_are_texts() -> None:
    assert reserved_tags(os_family="linux", max_virtual_sessions=-1, max_sessions_per_user=1) == {
        "dcv:os-family": "linux",
        "dcv:max-virtual-sessions": "-1",
        "dcv:max-concurrent-sessions-per-user": "1",
    }
