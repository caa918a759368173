"""`deskfleet broker …`: the clients of the API and the agents, and what each may do."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from deskfleet.broker import administration
from deskfleet.broker import main as broker_main
from deskfleet.broker.service.access import Credentials
from deskfleet.broker.service.clients import Clients
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
from deskfleet.core.access import Rights, Scope, rights_of, scopes_of
from deskfleet.core.records import AgentClient, ApiClient
from deskfleet.errors import Invalid

T = TypeVar("T")

ClientId = Annotated[str, typer.Option(help="Id of the client.")]
SCOPES = f"What the client may do, of {', '.join(Scope)}; again, or with commas, for several."
OWNER = "Whose sessions alone the client may see and act on."


def register_api_client(
    client_name: Annotated[
        str, typer.Option("--client-name", "--name", "-cn", help="What the client is called.")
    ],
    scope: Annotated[
        list[str] | None, typer.Option(help=f"{SCOPES} Without it, everything.")
    ] = None,
    owner: Annotated[str | None, typer.Option(help=f"{OWNER} Without it, everybody's.")] = None,
    output: Output = Form.TEXT,
    state: State = None,
    store: Store = None,
    config: Config = None,
) -> None:
    """Register an API client and print its id and password. The password is shown only now."""
    rights = Rights(_scopes(scope), owner)
    credentials = using(
        broker_main.access_only,
        state,
        store,
        config,
        lambda access: access.register_api_client(client_name, rights),
    )
    _tell_credentials(output, credentials)


def describe_api_clients(
    output: Output = Form.TEXT,
    state: State = None,
    store: Store = None,
    config: Config = None,
) -> None:
    """List the API clients. JSON has their restrictions, too."""
    found = _with_clients(state, store, config, lambda clients: clients.listed(ApiClient))
    shown = [{**_client(one), **_rights(rights_of(one))} for one in found]
    _tell_list(output, "Api clients", shown)


def unregister_api_client(
    client_id: ClientId,
    output: Output = Form.TEXT,
    state: State = None,
    store: Store = None,
    config: Config = None,
) -> None:
    """Let an API client in no more: its password and all of its tokens open nothing from now on."""
    _with_clients(state, store, config, lambda one: one.deactivate(ApiClient, client_id))
    tell(output, f"Client {client_id} unregistered.", {"id": client_id, "active": False})


def activate_api_client(
    client_id: ClientId,
    output: Output = Form.TEXT,
    state: State = None,
    store: Store = None,
    config: Config = None,
) -> None:
    """Let an API client in again that was unregistered, with its old password."""
    _with_clients(state, store, config, lambda one: one.activate(ApiClient, client_id))
    tell(output, f"Client {client_id} activated.", {"id": client_id, "active": True})


def renew_api_client_password(
    client_id: ClientId,
    keep_tokens: Annotated[
        bool,
        typer.Option(
            "--keep-tokens", help="Tokens that were given stay good for their life, an hour."
        ),
    ] = False,
    output: Output = Form.TEXT,
    state: State = None,
    store: Store = None,
    config: Config = None,
) -> None:
    """Print a new password for an API client; the old one, and its tokens, end at once."""
    credentials = _with_clients(
        state, store, config, lambda one: one.renew_password(client_id, keep_tokens=keep_tokens)
    )
    _tell_credentials(output, credentials)


def restrict_api_client(
    client_id: ClientId,
    scope: Annotated[list[str] | None, typer.Option(help=SCOPES)] = None,
    owner: Annotated[str | None, typer.Option(help=OWNER)] = None,
    all_scopes: Annotated[
        bool, typer.Option("--all-scopes", help="It may do everything again.")
    ] = False,
    any_owner: Annotated[
        bool, typer.Option("--any-owner", help="It may act on everybody's sessions again.")
    ] = False,
    output: Output = Form.TEXT,
    state: State = None,
    store: Store = None,
    config: Config = None,
) -> None:
    """Change what an API client may do, from now on; what isn't named stays as it is."""
    if (all_scopes and scope) or (any_owner and owner is not None):
        raise Invalid("--all-scopes and --any-owner lift what --scope and --owner restrict to")
    change: dict[str, Any] = {}
    if scope or all_scopes:
        change["scopes"] = _scopes(scope)
    if owner is not None or any_owner:
        change["owner"] = owner
    if not change:
        raise Invalid("one of --scope, --owner, --all-scopes and --any-owner is wanted")
    rights = _with_clients(
        state,
        store,
        config,
        lambda one: one.restrict(client_id, lambda now: dataclasses.replace(now, **change)),
    )
    scopes = ", ".join(rights.scopes) or "everything"
    whose = "everybody's sessions" if rights.owner is None else f"sessions of {rights.owner}"
    tell(
        output,
        f"Client {client_id} may do: {scopes}; on {whose}.",
        {"id": client_id, **_rights(rights)},
    )


def describe_agent_clients(
    output: Output = Form.TEXT,
    state: State = None,
    store: Store = None,
    config: Config = None,
) -> None:
    """List the agents that have enrolled. The id of each is that of its server."""
    found = _with_clients(state, store, config, lambda clients: clients.listed(AgentClient))
    _tell_list(output, "Session manager agent clients", [_client(one) for one in found])


def unregister_agent_client(
    client_id: ClientId,
    output: Output = Form.TEXT,
    state: State = None,
    store: Store = None,
    config: Config = None,
) -> None:
    """Let an agent in no more, and end its link: its server can't be reached from then on."""
    _with_clients(state, store, config, lambda one: one.deactivate(AgentClient, client_id))
    tell(output, f"agent client {client_id} unregistered", {"id": client_id, "active": False})


def activate_agent_client(
    client_id: ClientId,
    output: Output = Form.TEXT,
    state: State = None,
    store: Store = None,
    config: Config = None,
) -> None:
    """Let an agent in again that was unregistered; it comes by itself."""
    _with_clients(state, store, config, lambda one: one.activate(AgentClient, client_id))
    tell(output, f"agent client {client_id} activated", {"id": client_id, "active": True})


def _scopes(words: list[str] | None) -> tuple[str, ...]:
    scopes = scopes_of(words or ())
    if words and not scopes:
        # An empty word, of a variable that isn't set for example, must not mean everything.
        raise Invalid(f"--scope is empty; there are {', '.join(Scope)}")
    return scopes


def _client(client: ApiClient | AgentClient) -> dict[str, Any]:
    return {
        "name": client.name,
        "id": client.id,
        "active": client.active,
        "created-at": client.created_at.isoformat(),
    }


def _rights(rights: Rights) -> dict[str, Any]:
    """Show restrictions; null where there is none."""
    return {"scopes": list(rights.scopes) or None, "owner": rights.owner}


def _tell_list(output: Form, title: str, clients: list[dict[str, Any]]) -> None:
    known = [{key: one[key] for key in ("name", "id", "active")} for one in clients]
    tell(output, f"{title}\n{original_json(known)}", clients)


def _tell_credentials(output: Form, credentials: Credentials) -> None:
    id, password = credentials.client_id, credentials.client_password
    # Two lines that scripts of the field look for by a regular expression.
    text = f"client-id: {id}\nclient-password: {password}"
    tell(output, text, {"client-id": id, "client-password": password})


def _with_clients(
    state: Path | None,
    store: str | None,
    config: Path | None,
    use: Callable[[Clients], Awaitable[T]],
) -> T:
    return using(administration.clients_only, state, store, config, use)
