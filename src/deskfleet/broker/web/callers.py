"""Who calls, and what they may do: settled at each door before anything of a request is read.

API clients show a token of this fleet or of a registered authorization server, as the rules allow;
other brokers show one that the fleet's key has signed. A token that isn't known may be signed by a
key that another broker, or its server, has just made: that is looked up once.

What a client of this fleet may do stands in its record, not in its tokens, so a change holds for
those that were given, too: what was committed anywhere before a request came is known to its guard.
What a token of another server is good for, its registration says.
"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from deskfleet.broker.service.access import ISSUER, Audience
from deskfleet.broker.service.house import House
from deskfleet.broker.service.tokens import head_of
from deskfleet.broker.web.routes import Caller
from deskfleet.core.access import EVERYTHING, Rights, rights_of
from deskfleet.core.records import ApiClient
from deskfleet.errors import InvalidToken, Unauthenticated


@dataclass(frozen=True, slots=True)
class Rules:
    """Which tokens open the door for API clients."""

    authorization: bool = True
    """False: nobody has to say who they are."""
    own_tokens: bool = True
    """False: only those of registered authorization servers."""


@dataclass(frozen=True, slots=True)
class Known:
    """Who calls."""

    name: str | None
    """None where that may be anybody."""
    rights: Rights = EVERYTHING
    client: ApiClient | None = None
    """None for who isn't registered with this fleet."""


ANYBODY = Known(None)


class Callers:
    def __init__(self, house: House, rules: Rules) -> None:
        self._access = house.access
        self._external = house.external
        self._replica = house.replica
        self._rules = rules

    async def of(self, kind: Caller, request: Request) -> Known:
        """Return who calls; for API clients, caught up.

        Raises `Unauthenticated` and `InsufficientScope`.
        """
        if kind is Caller.ANYBODY:
            return ANYBODY
        is_open = kind is Caller.CLIENT and not self._rules.authorization
        token = "" if is_open else _bearer(request)
        if kind is Caller.CLIENT:
            # A glance for a fleet at rest; without it who was just shut out gets one more answer.
            # The handlers that read count on it, too: it is the only one on their way.
            await self._replica.catch_up()
        if is_open:
            return ANYBODY
        try:
            return self._known(kind, token)
        except InvalidToken:
            if kind is Caller.PEER:
                await self._replica.catch_up()
            elif self._is_foreign(token):
                await self._external.learn(token)
            else:
                raise
            return self._known(kind, token)

    def _known(self, kind: Caller, token: str) -> Known:
        if kind is Caller.PEER:
            self._access.verify(Audience.BROKER, token)
            return Known("broker")
        known = self._external.remembered(token) if self._external.expected else None
        return Known(known) if known is not None else self._client(token)

    def _client(self, token: str) -> Known:
        try:
            if self._rules.own_tokens:
                client = self._access.api_client(token)
                return Known(client.id, rights_of(client), client)
        except InvalidToken:
            if not self._is_foreign(token):
                raise
        known = self._external.caller(token) if self._is_foreign(token) else None
        if known is None:
            raise InvalidToken("no authorization server that is known here has made the token")
        return Known(known)

    def _is_foreign(self, token: str) -> bool:
        return self._external.expected and head_of(token).issuer != ISSUER


def _bearer(request: Request) -> str:
    # Looked up in the bare scope: Starlette would wrap and decode all headers for this one.
    for name, value in request.scope["headers"]:
        if name == b"authorization":
            scheme, _, token = str(value, "latin-1").partition(" ")
            if scheme.lower() != "bearer":
                raise Unauthenticated("a Bearer token is wanted")
            return token.strip()
    raise Unauthenticated
