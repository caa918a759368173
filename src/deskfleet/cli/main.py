"""The command `deskfleet`: which commands there are, and how each of them ends.

Laws: a program that only asks a broker something loads neither the broker nor the agent, so the
commands in `LATER` are imported when they are called. Every error ends in one line on stderr and
a return code of `output.EXIT_CODES`; a traceback is a bug of ours.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

import typer

from deskfleet import __version__
from deskfleet.cli import connect, servers, sessions, stdout
from deskfleet.cli.connection import speaks_api
from deskfleet.cli.output import ExitCode, Output, exit_code
from deskfleet.errors import DeskfleetError

PROGRAM = "deskfleet"
COMPLETION = "_DESKFLEET_COMPLETE"
"""The environment variable by which a shell asks for completions."""

NOT_TEXT = (
    "a value on the command line or in the environment is not text in the encoding of this locale, "
    + sys.getfilesystemencoding()
)
_UNDECODED = re.compile("[\udc80-\udcff]")
"""What Python puts for such bytes (PEP 383)."""


@dataclass(frozen=True, slots=True)
class Later:
    """A command that is expensive to import: a function, or a Typer application of its own."""

    name: str
    module: str
    attribute: str
    summary: str


LATER = (
    Later("up", "deskfleet.cli.up", "up", "Run a whole fleet on this machine."),
    Later("broker", "deskfleet.cli.broker", "app", "Run and administer a broker."),
    Later("agent", "deskfleet.cli.agent", "app", "Run the agent of a server."),
)

API_COMMANDS: tuple[Callable[..., None], ...] = (
    sessions.create_session,
    sessions.describe_sessions,
    sessions.delete_session,
    sessions.get_session_connection_data,
    sessions.get_session_screenshots,
    sessions.update_session_permissions,
    servers.describe_servers,
    servers.open_servers,
    servers.close_servers,
)


def main() -> NoReturn:
    """Run the command line and end with the code that the shell is told."""
    stdout.prepare()
    sys.exit(_run(sys.argv[1:]))


def _run(arguments: Sequence[str]) -> int:
    try:
        with stdout.printed():
            application(_loaded(arguments))(args=arguments, prog_name=PROGRAM)
    except DeskfleetError as error:
        for line in error.message.splitlines():
            Output().tell(line)
        return exit_code(error)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as error:  # noqa: BLE001 (the last supervisor: it tells the whole story)
        if _is_undecodable(error):
            Output().tell(NOT_TEXT)
            return ExitCode.VALUE
        traceback.print_exc()
        return ExitCode.OTHER
    return ExitCode.OK


def _is_undecodable(error: Exception) -> bool:
    """Tell bytes of the command line or the environment that the locale's encoding doesn't have."""
    return isinstance(error, UnicodeEncodeError) and bool(_UNDECODED.search(error.object))


def application(loaded: Sequence[str]) -> typer.Typer:
    """Build the command line; of the commands in `LATER`, those in `loaded` for real."""
    app = typer.Typer(
        help="Desktops in a browser, on one machine or on a fleet.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for later in LATER:
        _mount(app, later, real=later.name in loaded)
    app.command("connect")(speaks_api(connect.connect, formats=False))
    for command in API_COMMANDS:
        app.command(command.__name__.replace("_", "-"))(speaks_api(command))
    return app


def _loaded(arguments: Sequence[str]) -> list[str]:
    if COMPLETION in os.environ:
        return [later.name for later in LATER]
    return [argument for argument in arguments if not argument.startswith("-")][:1]


def _mount(app: typer.Typer, later: Later, *, real: bool) -> None:
    if not real:
        app.command(later.name, help=later.summary)(_never)
        return
    target: Any = getattr(importlib.import_module(later.module), later.attribute)
    if isinstance(target, typer.Typer):
        app.add_typer(target, name=later.name, help=later.summary)
    else:
        app.command(later.name)(target)


def _never() -> None:
    """Stand for a command in the list of all commands; who names it gets the real one."""
    raise AssertionError


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and end.")
    ] = False,
) -> None:
    pass
