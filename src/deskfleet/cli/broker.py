"""`deskfleet broker …`: run a broker, and look after who may speak to it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from deskfleet.broker import main as broker_main
from deskfleet.broker.service.access import Access
from deskfleet.cli.program import failing_well, log_to, run
from deskfleet.settings import BrokerSettings, read

app = typer.Typer(no_args_is_help=True, help="Run a broker, and look after who may speak to it.")

T = TypeVar("T")

State = Annotated[Path | None, typer.Option(help="Folder of keys, certificates and store.")]
Store = Annotated[str | None, typer.Option(help="URL of the store, for example sqlite:///FILE.")]
Config = Annotated[Path | None, typer.Option(help="TOML file with settings.")]


@app.command("run")
def run_broker(
    state: State = None,
    store: Store = None,
    config: Config = None,
    client_port: Annotated[int | None, typer.Option(help="Port for API clients.")] = None,
    agent_port: Annotated[int | None, typer.Option(help="Port for agents.")] = None,
    advertise: Annotated[
        str | None, typer.Option(help="Host name by which other brokers reach this one.")
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Run a broker until it is interrupted. Several on one store are one fleet."""

    async def main(stop: asyncio.Event) -> None:
        log_to(None, log_level)
        settings = read(
            BrokerSettings,
            file=config,
            environment=os.environ,
            flags={
                "state": state,
                "store": store,
                "client_port": client_port,
                "agent_port": agent_port,
                "advertise": advertise,
            },
        )
        async with broker_main.running(settings) as doors:
            typer.echo(
                f"broker ready: API clients on port {doors.client_port},"
                f" agents on port {doors.agent_port}, authority in {doors.ca_file}",
                err=True,
            )
            await stop.wait()

    run(main)


@app.command("register-api-client")
def register_api_client(
    client_name: Annotated[
        str, typer.Option("--client-name", "--name", "-cn", help="What the client is called.")
    ],
    state: State = None,
    store: Store = None,
    config: Config = None,
) -> None:
    """Register an API client and print its id and password. The password is shown only now."""
    credentials = _with_access(
        state, store, config, lambda access: access.register_api_client(client_name)
    )
    typer.echo(f"client-id: {credentials.client_id}")
    typer.echo(f"client-password: {credentials.client_password}")


@app.command("generate-software-statement")
def generate_software_statement(
    state: State = None, store: Store = None, config: Config = None
) -> None:
    """Print a statement that lets agents enrol."""
    statement = _with_access(
        state, store, config, lambda access: access.generate_software_statement()
    )
    typer.echo("software-statement:")
    typer.echo(statement)


def _with_access(
    state: Path | None,
    store: str | None,
    config: Path | None,
    use: Callable[[Access], Awaitable[T]],
) -> T:
    async def main() -> T:
        settings = read(
            BrokerSettings,
            file=config,
            environment=os.environ,
            flags={"state": state, "store": store},
        )
        async with broker_main.access_only(settings) as access:
            return await use(access)

    with failing_well():
        return asyncio.run(main())
