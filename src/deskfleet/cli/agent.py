"""`deskfleet agent run`: one agent, for the server it runs on.

The options are handed over as environment variables to a program that takes this process's place
(`agent_program`): the libraries that read them, and what these bring along, would be a third of
the memory of an agent that runs for months.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from deskfleet.settings import PREFIX

app = typer.Typer(no_args_is_help=True, help="Run an agent on a server.")


@app.callback()
def agent() -> None:
    """Run an agent on a server."""


@app.command("run")
def run_agent(
    state: Annotated[Path | None, typer.Option(help="Folder of identity and journal.")] = None,
    broker_url: Annotated[
        str | None, typer.Option(help="Agent port of a broker; several with commas.")
    ] = None,
    ca_file: Annotated[
        Path | None, typer.Option(help="PEM file of the authority that signed the broker.")
    ] = None,
    software_statement_path: Annotated[
        Path | None, typer.Option(help="File with what lets this agent enrol.")
    ] = None,
    driver: Annotated[str | None, typer.Option(help="xvnc or simulated.")] = None,
    desktop_port: Annotated[int | None, typer.Option(help="Port for browsers.")] = None,
    tags_folder: Annotated[Path | None, typer.Option(help="Folder of *.toml tag files.")] = None,
    allow_root_sessions: Annotated[
        bool, typer.Option("--allow-root-sessions", help="Let root own sessions.")
    ] = False,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings.")] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Run an agent until it is interrupted; its sessions live on."""

    flags = {
        "state": state,
        "broker_url": broker_url,
        "ca_file": ca_file,
        "software_statement_path": software_statement_path,
        "driver": driver,
        "desktop_port": desktop_port,
        "tags_folder": tags_folder,
        "allow_root_sessions": allow_root_sessions or None,
    }
    program = [sys.executable, "-P", "-m", "deskfleet.cli.agent_program", log_level]
    os.execve(  # noqa: S606 - no shell is wanted
        sys.executable,
        [*program, str(config)] if config else program,
        {
            **os.environ,
            **{f"{PREFIX}{name.upper()}": str(v) for name, v in flags.items() if v is not None},
        },
    )
