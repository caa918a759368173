"""The reference of all commands, made of the commands themselves.

`python tests/support/commands_reference.py` writes it into `docs/reference/commands.md`, between
the two marks; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
import typer.main

from deskfleet.cli.connection import Invocation, speaks_api
from deskfleet.cli.main import API_COMMANDS, LATER, PROGRAM, application
from deskfleet.cli.output import ExitCode
from deskfleet.cli.program import CANT_RUN

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "commands.md"
BEGIN, END = "<!-- commands: begin -->", "<!-- commands: end -->"

_SPEAKERS = {"connect", *(command.__name__.replace("_", "-") for command in API_COMMANDS)}


def reference() -> str:
    """Return the generated part of the page."""
    root = typer.main.get_command(application([later.name for later in LATER]))
    shared = connection_options()
    sections = (_section(path, command, shared) for path, command in _leaves((PROGRAM,), root))
    return "\n\n".join(sections)


def connection_options() -> set[str]:
    """Return every spelling of the options that all commands of the API have."""

    def nothing(_: Invocation) -> None:
        """Do nothing."""

    app = typer.Typer(add_completion=False)
    app.command()(speaks_api(nothing))
    bare: Any = typer.main.get_command(app)
    return {spelling for each in bare.params for spelling in each.opts}


def generated_part(page: str) -> str:
    return page.partition(BEGIN)[2].partition(END)[0].strip()


def return_codes(page: str) -> dict[int, str]:
    """Return the codes of the page's table, each with its meaning."""
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return {int(row[0]): row[1] for row in rows if row[0].isdigit() and len(row) > 1}


def known_codes() -> set[int]:
    return {CANT_RUN, *(int(code) for code in ExitCode)}


def _leaves(path: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    inner: dict[str, Any] = getattr(command, "commands", {})
    if not inner:
        yield path, command
    for name, each in inner.items():
        yield from _leaves((*path, name), each)


def _section(path: tuple[str, ...], command: Any, shared: set[str]) -> str:
    speaks = path[-1] in _SPEAKERS
    own = [each for each in command.params if not (speaks and each.opts[0] in shared)]
    arguments = [each for each in own if each.param_type_name == "argument"]
    options = [each for each in own if each.param_type_name == "option"]
    usage = " ".join([*path, *(_argument(each) for each in arguments), "[OPTIONS]"])
    lines = [f"## {' '.join(path)}", "", " ".join(command.help.split()), "", f"    {usage}"]
    if own:
        lines += ["", "| Option | Meaning | Default |", "|---|---|---|"]
        lines += [_row(each) for each in (*arguments, *options)]
    if speaks:
        lines += ["", "And the [options of the connection](#options-of-the-connection)."]
    return "\n".join(lines)


def _argument(parameter: Any) -> str:
    name: str = parameter.metavar or parameter.name.upper()
    return name if parameter.required else f"[{name}]"


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        spelled = f"`{parameter.metavar or parameter.name.upper()}`"
    else:
        spelled = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
        if parameter.metavar:
            spelled += f" `{parameter.metavar}`".replace("|", r"\|")
    meaning = " ".join((parameter.help or "").split())
    return f"| {spelled} | {meaning} | {_default(parameter)} |".replace("  ", " ")


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    told = getattr(parameter, "show_default", None)
    default = told if isinstance(told, str) else parameter.default
    if default is None or default is False or default == ():
        return ""
    return f"`{getattr(default, 'value', default)}`"


def rewrite() -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{reference()}\n\n{END}{after}")


if __name__ == "__main__":
    rewrite()
