"""Which external authorization servers are registered: an administrator's work.

A registration is a record like all others: brokers that run learn of it as they learn of
everything, and what it allows ends with it.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from deskfleet.broker.service.jwks import ALGORITHMS, read_keys
from deskfleet.broker.service.key_sets import Fetch
from deskfleet.broker.service.replica import Replica
from deskfleet.core.change import Drop, Put
from deskfleet.core.records import AuthServer
from deskfleet.errors import Invalid, Missing, Unavailable

MAX_URL = 255
"""What the store takes as an id."""
MAX_TEXT = 1024

_SCOPE = re.compile(r"[\x20\x21\x23-\x5b\x5d-\x7e]+")
"""RFC 6749, section 3.3."""


class AuthServers:
    def __init__(self, replica: Replica, fetch: Fetch) -> None:
        self._replica = replica
        self._fetch = fetch

    async def register(self, server: AuthServer) -> str | None:
        """Register a server, or change its registration; return why its keys can't be read now.

        Raises `Invalid`, and `Forbidden` for a private address that is not allowed.
        """
        _check(server)
        trouble = await self._trouble(server)
        await self._replica.decide(
            lambda: (
                None,
                (Put(server, self._replica.fleet.revision_of(AuthServer, server.id)),),
            )
        )
        return trouble

    async def listed(self) -> list[AuthServer]:
        """Return all registrations, oldest first."""
        await self._replica.catch_up()
        servers = self._replica.fleet.each(AuthServer)
        return sorted(servers, key=lambda one: (one.registered_at, one.id))

    async def unregister(self, url: str) -> None:
        """End a registration; its tokens open nothing from now on. Raises `Missing`."""

        def decision() -> tuple[bool, tuple[Drop, ...]]:
            revision = self._replica.fleet.revision_of(AuthServer, url)
            return bool(revision), (Drop("auth-server", url, revision),) if revision else ()

        if not await self._replica.decide(decision):
            raise Missing(f"{url} is not registered")

    async def _trouble(self, server: AuthServer) -> str | None:
        try:
            keys = read_keys(await self._fetch(server), server.algorithm)
        except (Unavailable, Invalid) as error:
            return error.message
        return None if keys else "it has no key that fits"


def _check(server: AuthServer) -> None:
    _check_url(server.id)
    if server.algorithm is not None and server.algorithm not in ALGORITHMS:
        raise Invalid(f"the algorithm must be one of {', '.join(ALGORITHMS)}")
    for text in (server.issuer, server.audience, server.scope):
        if text is not None and not (text.strip() and len(text) <= MAX_TEXT):
            raise Invalid(f"issuer, audience and scope are texts of up to {MAX_TEXT} characters")
    if server.scope is not None and not _SCOPE.fullmatch(server.scope):
        raise Invalid("a scope has printable ASCII characters, but no quotes and backslashes")


def _check_url(url: str) -> None:
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise Invalid(f"the URL must be plain ASCII of up to {MAX_URL} characters")
    try:
        parts = urlsplit(url)
        known = parts.scheme == "https" and parts.hostname and parts.port != 0
    except ValueError as error:
        raise Invalid(f"{url} is not a URL") from error
    if not known:
        raise Invalid(f"{url} is not an https URL")
    if parts.username is not None or parts.fragment:
        raise Invalid("the URL must hold neither credentials nor a fragment")
