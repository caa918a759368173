"""Who a client is, and the access token that says so.

A token is fetched when it is first needed, renewed at 80 % of its life, and replaced when the
broker refuses it. A token that was given ready-made is never renewed.

Must not: show a password or a token in a message or a representation.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec

RENEW_AT = 0.8
"""Of a token's life."""


@dataclass(frozen=True, slots=True)
class ClientPassword:
    """An API client, as `register-api-client` made it."""

    client_id: str
    password: str = field(repr=False)
    token_url: str | None = None
    """Of another authorization server than the broker."""


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A token that somebody else fetched."""

    token: str = field(repr=False)


Credentials: TypeAlias = ClientPassword | AccessToken


class Grant(msgspec.Struct, frozen=True):
    """The answer of a token endpoint (RFC 6749, 5.1)."""

    access_token: str
    expires_in: float = math.inf
    """Seconds."""


class Tokens:
    """The token of one client. Threads that need one at the same time share one request."""

    def __init__(self, fetch: Callable[[], Grant], monotonic: Callable[[], float]) -> None:
        self._fetch = fetch
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._token: str | None = None
        self._renew_at = -math.inf

    def current(self) -> str:
        with self._lock:
            if self._token is None or self._monotonic() >= self._renew_at:
                return self._renew()
            return self._token

    def replace(self, refused: str) -> str:
        """Return another token than the one that was refused."""
        with self._lock:
            if self._token is None or self._token == refused:
                return self._renew()
            return self._token

    def _renew(self) -> str:
        asked_at = self._monotonic()
        self._token = None
        grant = self._fetch()
        self._token = grant.access_token
        self._renew_at = asked_at + RENEW_AT * grant.expires_in
        return grant.access_token
