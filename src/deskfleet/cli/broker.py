"""`deskfleet broker …`: run a broker, and look after who may speak to it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Annotated

import typer

from deskfleet.broker import administration
from deskfleet.broker import main as broker_main
from deskfleet.cli import (
    broker_auth_servers,
    broker_clients,
    broker_config,
    broker_gateway,
    broker_statements,
)
from deskfleet.cli.over_store import (
    Config,
    Form,
    Output,
    State,
    Store,
    original_json,
    tell,
    using,
)
from deskfleet.cli.program import configured, run
from deskfleet.settings import BrokerSettings

app = typer.Typer(no_args_is_help=True, help="Run a broker, and look after who may speak to it.")

LOG_FILE = "broker.log"


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
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Run a broker until it is interrupted. Several on one store are one fleet."""

    async def main(stop: asyncio.Event) -> None:
        flags = {
            "state": state,
            "store": store,
            "client_port": client_port,
            "agent_port": agent_port,
            "advertise": advertise,
            "log_level": log_level,
        }
        settings = configured(BrokerSettings, config, flags, LOG_FILE)
        async with broker_main.running(settings) as doors:
            gateways = doors.gateway_port
            typer.echo(
                f"broker ready: API clients on port {doors.client_port},"
                f" agents on port {doors.agent_port},"
                + (f" connection gateways on port {gateways}," if gateways else "")
                + f" authority in {doors.ca_file}",
                err=True,
            )
            await stop.wait()

    run(main)


def _finite(seconds: float | None) -> float | None:
    if seconds is not None and not math.isfinite(seconds):
        raise typer.BadParameter("it has to be a number of seconds")
    return seconds


@app.command("describe-brokers")
def describe_brokers(
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0,
            callback=_finite,
            help="Listen for no longer, even if `alive` is null then: it can't be told.",
        ),
    ] = None,
    output: Output = Form.TEXT,
    state: State = None,
    store: Store = None,
    config: Config = None,
) -> None:
    """List the brokers, and which of them live.

    It listens until it has heard all of them, or for as long as brokers wait for each other before
    they call one dead: four beats. A broker that was stopped in order is not listed.
    """
    found = using(administration.watch_only, state, store, config, lambda one: one.look(seconds))
    shown = [{"id": one.broker.id, "url": one.broker.url, "alive": one.alive} for one in found]
    tell(output, f"Brokers\n{original_json(shown)}", shown)


COMMANDS: tuple[Callable[..., None], ...] = (
    broker_clients.register_api_client,
    broker_clients.describe_api_clients,
    broker_clients.unregister_api_client,
    broker_clients.activate_api_client,
    broker_clients.renew_api_client_password,
    broker_clients.restrict_api_client,
    broker_statements.generate_software_statement,
    broker_statements.describe_software_statements,
    broker_statements.deactivate_software_statement,
    broker_statements.activate_software_statement,
    broker_clients.describe_agent_clients,
    broker_clients.unregister_agent_client,
    broker_clients.activate_agent_client,
    broker_auth_servers.register_auth_server,
    broker_auth_servers.list_auth_servers,
    broker_auth_servers.unregister_auth_server,
    broker_auth_servers.renew_auth_server_api_key,
    broker_config.check_config,
    broker_gateway.register_server_dns_mappings,
    broker_gateway.describe_server_dns_mappings,
    broker_gateway.gen_gateway_certificates,
)
"""Each is called as its function is, with hyphens."""

for command in COMMANDS:
    app.command(command.__name__.replace("_", "-"))(command)
