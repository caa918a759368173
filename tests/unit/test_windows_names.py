"""Which names of programs are taken on Windows: one plain way to say one file below a folder."""

from __future__ import annotations

import ntpath
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deskfleet.errors import StartFailed
from deskfleet.machine.windows_programs import components, find_program

ROOT = r"C:\ProgramData\NICE\DcvSessionManagerAgent\autorun"
DEVICES = {
    *("con", "prn", "aux", "nul", "conin$", "conout$"),
    *(f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"),
}
PIECES = [
    *(
        "a",
        "run",
        "RUN",
        "Ünïcode",
        "日本",
        "...",
        "..",
        ".",
        " ",
        "",
        "~",
        "PROGRA~1",
        "a b",
        "-x",
    ),
    *("CON", "nul", "com1", "LPT³", "aux", "NUL ", "con", ".exe", ".EXE", ".txt", ".bat", ".exe."),
    *(":", "::$DATA", "C:", "\\", "/", "\\\\", "\\\\?\\", "\\\\.\\", "//", "?", "*", "<", '"', "|"),
    *(
        "%PATH%",
        "^",
        "&",
        "!",
        "\x00",
        "\n",
        "\x1f",
        "\u202e",
        "\uff0f",
        "\uff0e\uff0e",
        "\uff1a",
        "\uff3c",
        "\ud800",
    ),
]
hostile = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=8).map("".join)


@given(hostile)
@settings(max_examples=500)
@example("run.exe")
@example("in/ner\\run.exe")
@example("run.exe:evil.exe")
@example("nul .exe")
@example("..\\run.exe")
def test_what_is_taken_means_one_file_below_the_folder(name: str) -> None:
    try:
        parts = components(name, "autorun file")
    except StartFailed:
        return
    # What was asked, and no more: the parts are the name, but for doubled separators and dots.
    asked = [part for part in re.split(r"[\\/]", name) if part not in {"", "."}]
    assert parts == asked
    path = ntpath.join(ROOT, *parts)
    assert ntpath.normpath(path) == path
    assert path.startswith(ROOT + "\\")
    assert ntpath.splitdrive(name)[0] == ""
    assert not ntpath.isabs(name)
    for part in parts:
        assert ":" not in part
        assert part.rstrip(". ") == part
        assert part.partition(".")[0].rstrip().lower() not in DEVICES
        assert part.isprintable()


@pytest.mark.parametrize(
    "name",
    [
        *("run.exe", "-run.exe", "--help.cmd", "a b/run.bat", "a\\b\\c.ps1", "./run.com"),
        *("a//b.exe", "Ünïcode.exe", "日本/語.exe", "console.exe", "com10.exe", "a.nul.exe"),
        *("(1).exe", "a'b.exe", "a;b.exe", "\uff0e\uff0e.exe", "x" * 200 + ".exe"),
    ],
)
def test_a_plain_name_is_taken(name: str) -> None:
    assert components(name, "autorun file")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "is not valid"),
        ("\\run.exe", "must be relative"),
        ("/run.exe", "must be relative"),
        ("\\\\server\\share\\run.exe", "must be relative"),
        ("\\\\?\\C:\\run.exe", "must be relative"),
        ("C:run.exe", "must be relative"),
        ("c:\\run.exe", "must be relative"),
        ("..", "must not leave"),
        (".", "must not leave"),
        ("a\\../../run.exe", "must not leave"),
        ("run.exe:x.exe", "a meaning of its own"),
        ("run.exe::$DATA", "a meaning of its own"),
        ("a%PATH%.cmd", "a meaning of its own"),
        ("a&calc.cmd", "a meaning of its own"),
        ("a*.exe", "a meaning of its own"),
        ("run.exe.", "ends with a dot or a blank"),
        ("run.exe ", "ends with a dot or a blank"),
        ("... /run.exe", "ends with a dot or a blank"),
        (" run.exe", "begins with a blank"),
        ("NUL.exe", "name of a device"),
        ("con/run.exe", "name of a device"),
        ("Com1 .exe", "name of a device"),
        ("lpt¹.exe", "name of a device"),
        ("PROGRA~1/run.exe", "short names"),
        ("run.txt", "is not executable"),
        ("run", "is not executable"),
        ("a\nb.exe", "is not valid"),
        ("a\x00.exe", "is not valid"),
        ("a\ud800.exe", "is not valid"),
        ("\u202egpj.exe", "is not valid"),
        ("x" * 300 + ".exe", "at most 255"),
        ("x/" * 600 + "run.exe", "is not valid"),
    ],
)
def test_any_other_name_is_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(StartFailed, match=reason):
        components(name, "autorun file")


class TestWhereItLeads:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "autorun/inner").mkdir(parents=True)
        (tmp_path / "autorun/inner/run.exe").touch()
        (tmp_path / "autorun/inner/dir.exe").mkdir()
        (tmp_path / "outside.exe").touch()
        (tmp_path / "autorun/out.exe").symlink_to(tmp_path / "outside.exe")
        (tmp_path / "autorun/junction").symlink_to(tmp_path / "autorun/inner")
        return tmp_path / "autorun"

    def test_to_a_file_below_the_folder(self, folder: Path) -> None:
        for name in ("inner/run.exe", "inner\\run.exe", ".\\inner//run.exe"):
            assert find_program(folder, name, "autorun file") == folder / "inner/run.exe"

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("out.exe", "a link is on its way"),
            ("junction/run.exe", "a link is on its way"),
            ("inner/none.exe", "No such file"),
            ("inner/dir.exe", "is not a file"),
        ],
    )
    def test_to_nothing_else(self, folder: Path, name: str, reason: str) -> None:
        with pytest.raises(StartFailed, match=reason):
            find_program(folder, name, "autorun file")

    def test_the_system_s_own_answer_counts(self, folder: Path) -> None:
        """A name that the system takes for another file than it says is refused, whatever it is."""

        def another(path: str) -> str:
            return path.replace("run.exe", "other.exe")

        with pytest.raises(StartFailed, match="a link is on its way"):
            find_program(folder, "inner/run.exe", "autorun file", another)

        def gone(_path: str) -> str:
            raise FileNotFoundError(2, "no such folder")

        with pytest.raises(StartFailed, match="folder of autorun files can't be opened"):
            find_program(folder, "inner/run.exe", "autorun file", gone)
