"""What an API client may do: which operations, and for whose sessions.

Rights only take away: a client without any restriction may do all, and one with both may do what
both allow. Scopes are kept as words, so that a word that this version doesn't know allows nothing,
instead of everything. Must not: know who calls, or how that was found out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from deskfleet.core.records import ApiClient
from deskfleet.errors import Forbidden, InsufficientScope, Invalid

MAX_OWNER = 256
"""Characters."""


class Scope(StrEnum):
    """What one operation, or a few of a kind, ask for. Public: words are added, never renamed."""

    DESCRIBE = "describe"
    """See sessions and servers."""
    CREATE = "create"
    DELETE = "delete"
    CONNECT = "connect"
    """Get what lets a user into a session."""
    SCREENSHOTS = "screenshots"
    PERMISSIONS = "permissions"
    SERVERS = "servers"
    """Open and close servers: a matter of everybody's."""


@dataclass(frozen=True, slots=True)
class Rights:
    scopes: tuple[str, ...] = ()
    """None is all of them."""
    owner: str | None = None
    """Whose sessions alone there are for the client, and the one user it may let in."""

    def check(self, scope: Scope) -> None:
        """Raise `InsufficientScope` or `Forbidden` for an operation that is not allowed at all."""
        if self.scopes and scope not in self.scopes:
            raise InsufficientScope(scope=scope)
        if self.owner is not None and scope is Scope.SERVERS:
            raise Forbidden("this client acts for one owner; servers are a matter of everybody's")


EVERYTHING = Rights()


def rights_of(client: ApiClient) -> Rights:
    # The usual client has none, and asks thousands of times a second.
    restricted = client.scopes or client.owner is not None
    return Rights(client.scopes, client.owner) if restricted else EVERYTHING


def scopes_of(words: Iterable[str]) -> tuple[str, ...]:
    """Read scopes as a person writes them: words, or several with commas or blanks between them.

    They come back without repetitions, in their own order. Raises `Invalid`.
    """
    asked = {word for text in words for word in text.replace(",", " ").split()}
    unknown = sorted(asked - set(Scope))
    if unknown:
        raise Invalid(f"{unknown[0]!r} is not a scope; there are {', '.join(Scope)}")
    return tuple(scope.value for scope in Scope if scope in asked)


def check_restrictions(rights: Rights) -> None:
    """Raise `Invalid` for restrictions that can't be meant."""
    owner = rights.owner
    if owner is not None and not (0 < len(owner) <= MAX_OWNER and owner.isprintable()):
        raise Invalid(f"an owner is a name of up to {MAX_OWNER} characters that can be printed")
    if owner is not None and rights.scopes == (Scope.SERVERS,):
        raise Invalid("a client of one owner may neither open nor close servers")
