"""`deskfleet agent run`: one agent, for the server it runs on.

The options are handed over, as `name=value`, to a program that takes this process's place
(`agent_program`): the libraries that read them, and what these bring along, would be a third of
the memory of an agent that runs for months.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deskfleet.cli.config_report import File, Form, Output
from deskfleet.machine import here

app = typer.Typer(no_args_is_help=True, help="Run an agent on a server.")


@app.callback()
def agent() -> None:
    """Run an agent on a server."""


@app.command("check-config")
def check_config(file: File, output: Output = Form.text) -> None:
    """Explain a configuration file: what is used, ignored, and wrong. Nothing is started."""
    # It loads all of an agent, which `run` leaves to another program.
    from deskfleet.cli.agent_config import explain  # noqa: PLC0415

    explain(file, output)


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
    driver: Annotated[str | None, typer.Option(help="xvnc, dcv or simulated.")] = None,
    desktop_port: Annotated[int | None, typer.Option(help="Port for browsers.")] = None,
    tags_folder: Annotated[Path | None, typer.Option(help="Folder of *.toml tag files.")] = None,
    allow_root_sessions: Annotated[
        bool, typer.Option("--allow-root-sessions", help="Let root own sessions.")
    ] = False,
    config: Annotated[
        Path | None, typer.Option(help="TOML file with settings, or an agent.conf.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
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
        "log_level": log_level,
    }
    here.become(
        "deskfleet.cli.agent_program",
        [str(config or ""), *(f"{name}={v}" for name, v in flags.items() if v is not None)],
    )
