"""The reference of dcvsm, made of the program itself.

`PYTHONPATH=tests python tests/support/dcvsm_reference.py` writes it into `docs/reference/dcvsm.md`,
between the two marks; a test compares the two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer.main

from deskfleet.cli.dcvsm import PROGRAM, application
from deskfleet.cli.dcvsm_config import Setting
from support import commands_reference

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "dcvsm.md"
BEGIN, END = "<!-- commands: begin -->", "<!-- commands: end -->"


def reference() -> str:
    """Return the generated part of the page."""
    root: Any = typer.main.get_command(application())
    sections = [_section([PROGRAM], root, f"{PROGRAM} [OPTIONS] COMMAND [ARGS]...")]
    for name, command in root.commands.items():
        sections.append(_section([PROGRAM, name], command, f"{PROGRAM} {name} [OPTIONS]"))
    return "\n\n".join(sections)


def setting_row(setting: Setting) -> str:
    options = ", ".join(f"`{name}`" for name in setting.options)
    variable = f"`{setting.variable}`" if setting.variable else ""
    cells = (f"`[{setting.section}]` `{setting.key}`", options, variable, setting.meaning)
    return f"| {' | '.join(cells)} |".replace("  ", " ")


def _section(path: list[str], command: Any, usage: str) -> str:
    lines = [f"### {' '.join(path)}", "", " ".join(command.help.split()), "", f"    {usage}", ""]
    lines += ["| Option | Meaning | Default |", "|---|---|---|"]
    return "\n".join([*lines, *(commands_reference._row(each) for each in command.params)])


def rewrite() -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{reference()}\n\n{END}{after}")


if __name__ == "__main__":
    rewrite()
