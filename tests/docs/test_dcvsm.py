"""The page about dcvsm says what the program does: its options, settings, places and codes."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath

import pytest

from deskfleet.cli.dcvsm_call import ReturnCode
from deskfleet.cli.dcvsm_commands import COMMANDS
from deskfleet.cli.dcvsm_config import SETTINGS, TOKEN_VARIABLE, Setting, places
from support import commands_reference
from support import dcvsm_reference as made

PAGE = made.PAGE.read_text()


def test_every_command_and_option_is_on_the_page() -> None:
    written = commands_reference.generated_part(PAGE)
    assert written == made.reference(), (
        "run: PYTHONPATH=tests python tests/support/dcvsm_reference.py"
    )
    assert written.count("### dcvsm ") == len(COMMANDS) == 9


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_every_setting_is_on_the_page(setting: Setting) -> None:
    assert made.setting_row(setting) in PAGE


def test_no_setting_is_on_the_page_that_is_gone() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| `[")]
    assert len(rows) == len(SETTINGS)
    assert f"`{TOKEN_VARIABLE}`" in PAGE


def test_every_return_code_is_on_the_page() -> None:
    assert set(commands_reference.return_codes(PAGE)) == {int(code) for code in ReturnCode}


def test_every_place_of_the_file_is_on_the_page() -> None:
    names = {"XDG_CONFIG_HOME": "/$XDG_CONFIG_HOME"}
    unix = [*places(names, PurePosixPath("/INSTALL")), *places({"HOME": "/~"}, PurePosixPath("/"))]
    windows = places({"UserProfile": "%UserProfile%"}, PureWindowsPath("INSTALL"))
    for place in (*unix[:3], windows[0]):
        assert f"`{str(place).removeprefix('/')}`" in PAGE
