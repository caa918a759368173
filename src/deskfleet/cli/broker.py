"""`deskfleet broker …`: run a broker, and look after who may speak to it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer

from deskfleet.broker import main as broker_main
from deskfleet.broker.service.access import Access
from deskfleet.broker.service.auth_servers import AuthServers
from deskfleet.broker.service.jwks import ALGORITHMS
from deskfleet.cli.program import failing_well, log_to, run
from deskfleet.core.records import AuthServer
from deskfleet.settings import BrokerSettings, read
from deskfleet.system import SystemClock

app = typer.Typer(no_args_is_help=True, help="Run a broker, and look after who may speak to it.")

T = TypeVar("T")
P = TypeVar("P")

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


@app.command("renew-auth-server-api-key")
def renew_auth_server_api_key(
    state: State = None, store: Store = None, config: Config = None
) -> None:
    """Sign tokens with a new key from now on. Tokens that were given stay valid for their life."""
    _with_access(state, store, config, lambda access: access.renew_signing_key())
    typer.echo("Keys renewed.")


@app.command("register-auth-server")
def register_auth_server(
    url: Annotated[str, typer.Option(help="https URL of its JSON Web Key Set.")],
    algorithm: Annotated[
        str | None,
        typer.Option(
            help=f"The one algorithm of its tokens: {', '.join(ALGORITHMS)}."
            " By default the usual one of each key's kind."
        ),
    ] = None,
    issuer: Annotated[
        str | None, typer.Option(help="What its tokens must have as `iss`; no other server may.")
    ] = None,
    audience: Annotated[
        str | None, typer.Option(help="What its tokens must have in `aud`.")
    ] = None,
    scope: Annotated[
        str | None, typer.Option(help="Words that its tokens must have in `scope`, all of them.")
    ] = None,
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="Its host may have a private address.")
    ] = False,
    state: State = None,
    store: Store = None,
    config: Config = None,
) -> None:
    """Let tokens of an external authorization server open the API; again to change how."""
    server = AuthServer(
        id=url,
        registered_at=SystemClock().now(),
        algorithm=algorithm,
        issuer=issuer,
        audience=audience,
        scope=scope,
        allow_private=allow_private,
    )
    trouble = _with_auth_servers(state, store, config, lambda servers: servers.register(server))
    typer.echo("Jwk url registered.")
    if trouble is not None:
        typer.echo(f"warning: its keys can't be read from here now: {trouble}", err=True)
    if audience is None and scope is None:
        typer.echo(
            "warning: every access token of this server opens the API, whatever it was made for;"
            " --audience or --scope would tell them apart",
            err=True,
        )


@app.command("list-auth-servers")
def list_auth_servers(
    details: Annotated[
        bool, typer.Option("--details", help="Print all of each registration, as JSON.")
    ] = False,
    state: State = None,
    store: Store = None,
    config: Config = None,
) -> None:
    """List the external authorization servers."""
    found = _with_auth_servers(state, store, config, lambda servers: servers.listed())
    if details:
        shown = [_registration(server) for server in found]
        typer.echo(msgspec.json.format(msgspec.json.encode(shown)).decode())
    else:
        urls = ", ".join(f'"{server.id}"' for server in found)
        typer.echo(f"Urls: [ {urls} ]" if urls else "Urls: [ ]")


@app.command("unregister-auth-server")
def unregister_auth_server(
    url: Annotated[str, typer.Option(help="URL that it was registered with.")],
    state: State = None,
    store: Store = None,
    config: Config = None,
) -> None:
    """Let tokens of an external authorization server open nothing any more, from now on."""
    _with_auth_servers(state, store, config, lambda servers: servers.unregister(url))
    # No blank after "url": the words of the original, which scripts look for.
    typer.echo(f"Jwk url{url} unregistered")


def _registration(server: AuthServer) -> dict[str, Any]:
    fields = msgspec.structs.asdict(server)
    return {"url": fields.pop("id"), **fields}


def _with_access(
    state: Path | None,
    store: str | None,
    config: Path | None,
    use: Callable[[Access], Awaitable[T]],
) -> T:
    return _with(broker_main.access_only, state, store, config, use)


def _with_auth_servers(
    state: Path | None,
    store: str | None,
    config: Path | None,
    use: Callable[[AuthServers], Awaitable[T]],
) -> T:
    return _with(broker_main.auth_servers_only, state, store, config, use)


def _with(
    opened: Callable[[BrokerSettings], AbstractAsyncContextManager[P]],
    state: Path | None,
    store: str | None,
    config: Path | None,
    use: Callable[[P], Awaitable[T]],
) -> T:
    """Use one part of a fleet over its store, whether a broker runs or not."""

    async def main() -> T:
        settings = read(
            BrokerSettings,
            file=config,
            environment=os.environ,
            flags={"state": state, "store": store},
        )
        async with opened(settings) as part:
            return await use(part)

    with failing_well():
        return asyncio.run(main())
