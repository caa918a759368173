"""The page about the commands says what the commands say of themselves."""

from __future__ import annotations

from support import commands_reference as made

PAGE = made.PAGE.read_text()


def test_every_command_and_option_is_on_the_page() -> None:
    written = made.generated_part(PAGE)
    assert written == made.reference(), "run: python tests/support/commands_reference.py"


def test_every_return_code_is_on_the_page() -> None:
    assert set(made.return_codes(PAGE)) == made.known_codes()


def test_every_option_of_the_connection_is_on_the_page() -> None:
    before = PAGE.partition(made.BEGIN)[0]
    for option in made.connection_options():
        assert f"`{option}`" in before
