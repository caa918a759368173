"""`deskfleet broker …`: whose tokens open the API: this fleet's, and those of other servers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer

from deskfleet.broker import main as broker_main
from deskfleet.broker.service.auth_servers import AuthServers
from deskfleet.broker.service.jwks import ALGORITHMS
from deskfleet.cli.output import Output as Messages
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
from deskfleet.core.records import AuthServer
from deskfleet.system import SystemClock

T = TypeVar("T")


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
    output: Output = Form.TEXT,
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
    tell(output, "Jwk url registered.", _registration(server))
    if trouble is not None:
        _warn(f"its keys can't be read from here now: {trouble}")
    if audience is None and scope is None:
        _warn(
            "every access token of this server opens the API, whatever it was made for;"
            " --audience or --scope would tell them apart"
        )


def _warn(text: str) -> None:
    """Say what is no mistake and may not be meant, where nothing that is asked for is printed."""
    Messages().tell(f"warning: {text}")


def list_auth_servers(
    output: Output = Form.TEXT,
    state: State = None,
    store: Store = None,
    config: Config = None,
) -> None:
    """List the external authorization servers. JSON has all of each registration."""
    found = _with_auth_servers(state, store, config, lambda servers: servers.listed())
    urls = [server.id for server in found]
    tell(output, f"Urls: {original_json(urls)}", [_registration(server) for server in found])


def unregister_auth_server(
    url: Annotated[str, typer.Option(help="URL that it was registered with.")],
    output: Output = Form.TEXT,
    state: State = None,
    store: Store = None,
    config: Config = None,
) -> None:
    """Let tokens of an external authorization server open nothing any more, from now on."""
    _with_auth_servers(state, store, config, lambda servers: servers.unregister(url))
    # No blank after "url": the words of the original, which scripts look for.
    tell(output, f"Jwk url{url} unregistered", {"url": url, "registered": False})


def renew_auth_server_api_key(
    output: Output = Form.TEXT,
    state: State = None,
    store: Store = None,
    config: Config = None,
) -> None:
    """Sign tokens with a new key from now on. Tokens that were given stay valid for their life."""
    using(broker_main.access_only, state, store, config, lambda access: access.renew_signing_key())
    tell(output, "Keys renewed.", {"renewed": True})


def _registration(server: AuthServer) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(msgspec.structs.asdict(server))
    return {"url": fields.pop("id"), **fields}


def _with_auth_servers(
    state: Path | None,
    store: str | None,
    config: Path | None,
    use: Callable[[AuthServers], Awaitable[T]],
) -> T:
    return using(broker_main.auth_servers_only, state, store, config, use)
