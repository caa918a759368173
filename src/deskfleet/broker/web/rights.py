"""What a caller may do, on its way from the guard of a route to its handler.

Law: a handler that asks for rights which nobody has settled fails; it doesn't go on without.
"""

from __future__ import annotations

from starlette.requests import Request

from deskfleet.core.access import Rights

_KEY = "deskfleet.rights"


def settle(request: Request, rights: Rights) -> None:
    request.scope[_KEY] = rights


def settled(request: Request) -> Rights:
    rights = request.scope[_KEY]
    assert isinstance(rights, Rights)
    return rights
