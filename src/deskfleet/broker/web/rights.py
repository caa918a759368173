"""Who calls and what they may do, on its way from the guard of a route to its handler.

Law: a handler that asks for rights which nobody has settled fails; it doesn't go on without.
"""

from __future__ import annotations

from starlette.requests import Request

from deskfleet.core.access import Rights
from deskfleet.core.records import ApiClient

_KEY = "deskfleet.rights"
_CLIENT = "deskfleet.client"


def settle(request: Request, rights: Rights, client: ApiClient | None) -> None:
    request.scope[_KEY] = rights
    request.scope[_CLIENT] = client


def settled(request: Request) -> Rights:
    rights = request.scope[_KEY]
    assert isinstance(rights, Rights)
    return rights


def settled_client(request: Request) -> ApiClient | None:
    """Return which client of this fleet calls; None for anybody else."""
    client = request.scope[_CLIENT]
    assert client is None or isinstance(client, ApiClient)
    return client
