"""What a bearer token is before any key is tried: bounded, and without orders for its reader.

Laws: a token's header may name a key, and nothing else of it is obeyed: the algorithm belongs to
the key, and a header that brings keys, or points to some, is refused. Nothing read here is proven.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import msgspec

from deskfleet.errors import InvalidToken

LEEWAY_SECONDS = 60
"""How far the clocks of those who sign and of those who read may be apart."""
MAX_TOKEN_CHARACTERS = 8192
MAX_HEAD_CHARACTERS = 2732
"""2 KB before base64."""

_ORDERS = frozenset({"crit", "jku", "jwk", "x5u", "x5c"})


class Head(msgspec.Struct, frozen=True):
    """What a token says of itself before its signature is checked."""

    kid: str | None
    issuer: str | None


def head_of(token: str) -> Head:
    """Read which key a token names and who it says has issued it. Raises `InvalidToken`."""
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise InvalidToken("the token is too long")
    head, _, rest = token.partition(".")
    if len(head) > MAX_HEAD_CHARACTERS:
        raise InvalidToken("the token is not valid")
    fields = _part(head)
    kid = fields.get("kid")
    if _ORDERS & fields.keys() or not isinstance(kid, str | None):
        raise InvalidToken("the token is not valid")
    issuer = _part(rest.partition(".")[0]).get("iss")
    return Head(kid, issuer if isinstance(issuer, str) else None)


def _part(text: str) -> Mapping[str, Any]:
    try:
        packed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        return msgspec.json.decode(packed, type=dict[str, Any])
    except (ValueError, msgspec.DecodeError, RecursionError) as error:
        raise InvalidToken("the token is not valid") from error
