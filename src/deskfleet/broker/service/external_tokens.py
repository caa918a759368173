"""Tokens of external authorization servers: which of them open the API, and for whom.

Laws: only a registered server's own keys verify its tokens: where a registration pins an issuer,
no other server's key speaks for it. What a registration asks of a token (issuer, audience, scope)
holds. A verified token is remembered until it expires, its server is registered anew, or its
server's keys change. Reading keys is `KeySets`' part; deciding never waits.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt
import msgspec

from deskfleet.broker.service.jwks import ALGORITHMS, Keys, VerifyingKey, pick
from deskfleet.broker.service.key_sets import RETRY_SECONDS, KeySets
from deskfleet.broker.service.tokens import LEEWAY_SECONDS, head_of
from deskfleet.core.fleet import Fleet
from deskfleet.core.records import AuthServer
from deskfleet.errors import InsufficientScope, InvalidToken, Unavailable
from deskfleet.ports import Clock

REMEMBERED_TOKENS = 10_000
MAX_NAME = 256


@dataclass(frozen=True, slots=True)
class _Verified:
    caller: str
    until: float
    server: AuthServer
    keys: Keys


class ExternalTokens:
    def __init__(self, fleet: Fleet, clock: Clock, key_sets: KeySets) -> None:
        self._fleet = fleet
        self._clock = clock
        self._key_sets = key_sets
        self._jws = jwt.PyJWS(algorithms=list(ALGORITHMS))
        self._verified: OrderedDict[str, _Verified] = OrderedDict()

    @property
    def expected(self) -> bool:
        """Whether any external server is registered."""
        return self._fleet.count(AuthServer) > 0

    def remembered(self, token: str) -> str | None:
        """Return whose token this is where that is known without work."""
        known = self._verified.get(token)
        if known is None or self._clock.now().timestamp() >= known.until:
            return None
        if self._fleet.get(AuthServer, known.server.id) is not known.server:
            return None
        return known.caller if self._key_sets.current(known.server) is known.keys else None

    def caller(self, token: str) -> str | None:
        """Return whose token this is, None where no registered server is known to have made it.

        Raises `InvalidToken` and `InsufficientScope`. The caller has caught up.
        """
        head = head_of(token)
        refused: InvalidToken | None = None
        for server in self._candidates(head.issuer):
            keys = self._key_sets.current(server)
            key = None if keys is None else pick(keys, head.kid)
            if keys is None or key is None:
                continue
            try:
                claims = self._claims(token, key)
            except InvalidToken as error:
                # Of two servers that pin no issuer, both may have a key of this name.
                refused = error
                continue
            return self._admit(token, claims, server, keys)
        if refused is not None:
            raise refused
        return None

    async def learn(self, token: str) -> None:
        """Read the keys that a token needs, where that is due.

        Raises `Unavailable` where a server that may have made it could never be read yet: the
        token may well be good.
        """
        head = head_of(token)
        self._key_sets.forget_all_but(frozenset(one.id for one in self._fleet.each(AuthServer)))
        servers = self._candidates(head.issuer)
        have = await asyncio.gather(*(self._key_sets.refresh(one, head.kid) for one in servers))
        sets = [self._key_sets.current(server) or {} for server in servers]
        if not all(have) and not any(pick(keys, head.kid) for keys in sets):
            raise Unavailable(
                "the authorization server can't be reached", retry_after=int(RETRY_SECONDS)
            )

    async def aclose(self) -> None:
        await self._key_sets.aclose()

    def _candidates(self, issuer: str | None) -> list[AuthServer]:
        servers = list(self._fleet.each(AuthServer))
        pinned = [one for one in servers if one.issuer is not None and one.issuer == issuer]
        return pinned or [one for one in servers if one.issuer is None]

    def _claims(self, token: str, key: VerifyingKey) -> Mapping[str, Any]:
        try:
            payload = self._jws.decode(token, key.key, algorithms=[key.algorithm])
            return msgspec.json.decode(payload, type=dict[str, Any])
        except (jwt.PyJWTError, msgspec.DecodeError, ValueError, TypeError) as error:
            raise InvalidToken("the token is not valid") from error

    def _admit(self, token: str, claims: Mapping[str, Any], server: AuthServer, keys: Keys) -> str:
        until = _until(claims, self._clock.now().timestamp())
        _check_purpose(claims, server)
        caller = _name(claims)
        self._verified[token] = _Verified(caller, until, server, keys)
        if len(self._verified) > REMEMBERED_TOKENS:
            self._verified.popitem(last=False)
        return caller


def _until(claims: Mapping[str, Any], now: float) -> float:
    """Return until when a token is good, by a clock that may be a minute off."""
    times = {name: claims[name] for name in ("exp", "nbf", "iat") if name in claims}
    if "exp" not in times or not all(_is_time(value) for value in times.values()):
        raise InvalidToken("the token is not valid")
    until: float = times.pop("exp") + LEEWAY_SECONDS
    if now >= until:
        raise InvalidToken("the token has expired")
    if any(now < value - LEEWAY_SECONDS for value in times.values()):
        raise InvalidToken("the token is not valid yet")
    return until


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_purpose(claims: Mapping[str, Any], server: AuthServer) -> None:
    if server.issuer is not None and claims.get("iss") != server.issuer:
        raise InvalidToken("the token is of another issuer")
    if claims.get("token_use", "access") != "access":
        # Cognito signs with one key who somebody is, and what they may do.
        raise InvalidToken("the token is no access token")
    if server.audience is not None and server.audience not in _listed(claims.get("aud")):
        raise InvalidToken("the token is for another audience")
    # RFC 8693 and 9068 write `scope` with spaces; others have `scp`, with spaces or as a list.
    told = [*_listed(claims.get("scope")), *_listed(claims.get("scp"))]
    granted = {word for text in told for word in text.split()}
    if server.scope is not None and not granted.issuperset(server.scope.split()):
        raise InsufficientScope(scope=server.scope)


def _listed(value: object) -> list[str]:
    """Return the texts of a claim that may be one text or several."""
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str)]


def _name(claims: Mapping[str, Any]) -> str:
    for claim in ("client_id", "azp", "sub"):
        name = claims.get(claim)
        if isinstance(name, str) and name:
            return name[:MAX_NAME]
    raise InvalidToken("the token names nobody")
