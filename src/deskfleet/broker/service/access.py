"""Who may speak to a broker, and the tokens that say so.

All tokens are RS256 JWTs signed by the fleet's newest signing key, each with its own audience,
so that a token made for one door opens no other. What was verified is remembered until it
expires; whether its client is still active, and in the same era, is asked each time. Secrets are
kept as HMACs under a key that is not in the store; a wrong id costs the same as a wrong password.
"""

from __future__ import annotations

import base64
import hmac
import json
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, TypeVar

import jwt

from deskfleet import __version__
from deskfleet.broker.service.replica import Replica
from deskfleet.broker.service.signing_keys import SigningKeys
from deskfleet.broker.service.tokens import LEEWAY_SECONDS, head_of
from deskfleet.core.access import EVERYTHING, Rights, check_restrictions
from deskfleet.core.change import ABSENT, ChangeSet, Put
from deskfleet.core.records import AgentClient, ApiClient, Server, SoftwareStatement
from deskfleet.core.session import replace
from deskfleet.errors import Forbidden, Invalid, InvalidToken, Unauthenticated
from deskfleet.ports import Clock, Ids, Signer

ALGORITHM = "RS256"
ISSUER = "deskfleet"
REMEMBERED_TOKENS = 10_000
MAX_CLIENT_NAME = 256
"""Characters."""

C = TypeVar("C", ApiClient, AgentClient)


class Audience(StrEnum):
    """The doors of a broker."""

    API = "deskfleet-api"
    AGENT = "deskfleet-agent"
    BROKER = "deskfleet-broker"
    CONNECT = "deskfleet-connect"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A fresh client; the only time that its password is known."""

    client_id: str
    client_password: str


class Access:
    def __init__(self, replica: Replica, clock: Clock, ids: Ids, signer: Signer) -> None:
        self._replica = replica
        self._clock = clock
        self._ids = ids
        self._signer = signer
        self._keys = SigningKeys(replica, clock, ids, signer)
        self._verified: OrderedDict[tuple[Audience, str], Mapping[str, Any]] = OrderedDict()

    async def ensure_signing_key(self) -> None:
        """Make the fleet's first signing key; of two brokers that start at once, one does."""
        await self._keys.ensure()

    async def renew_signing_key(self) -> None:
        """Sign with a new key from now on; tokens that were given stay valid for their life."""
        await self._keys.renew()

    # Clients

    async def register_api_client(self, name: str, rights: Rights = EVERYTHING) -> Credentials:
        """Register a client that may do no more than `rights`. Raises `Invalid`."""
        if not (0 < len(name) <= MAX_CLIENT_NAME and name.isprintable()):
            raise Invalid(
                f"a client's name has up to {MAX_CLIENT_NAME} characters that can be printed"
            )
        check_restrictions(rights)
        return await self._register(ApiClient, name, rights)

    async def register_agent(self, statement: str, name: str) -> Credentials:
        """Enrol an agent by its software statement; its client id is its server's id."""
        await self._replica.catch_up()
        digest = self._signer.hash(statement)
        known = [
            issued
            for issued in self._replica.fleet.each(SoftwareStatement)
            if issued.active and hmac.compare_digest(issued.statement_hash, digest)
        ]
        if not known:
            raise Forbidden("the software statement is unknown or no longer active")
        return await self.register_any_agent(name)

    async def register_any_agent(self, name: str) -> Credentials:
        """Enrol an agent that shows no statement: only where the administrator allows it."""
        return await self._register(AgentClient, name)

    async def generate_software_statement(self) -> str:
        """Return a statement that lets agents enrol, in the form that administrators know."""
        record_id, now = self._ids.uuid(), self._clock.now()
        text = _statement_text(record_id, now, self._ids.secret())
        statement = base64.b64encode(text.encode()).decode()
        record = SoftwareStatement(
            id=record_id,
            statement_hash=self._signer.hash(statement),
            issued_at=now,
            sealed=self._signer.seal(statement.encode()),
        )
        await self._replica.commit((Put(record, ABSENT),))
        return statement

    async def _register(
        self, kind: type[ApiClient | AgentClient], name: str, rights: Rights = EVERYTHING
    ) -> Credentials:
        secret, now = fresh_password(self._ids), self._clock.now()
        client = kind(
            id=self._ids.uuid(), name=name, secret_hash=self._signer.hash(secret), created_at=now
        )
        change_set: ChangeSet
        if isinstance(client, ApiClient):
            restricted = replace(client, scopes=rights.scopes, owner=rights.owner)
            change_set = (Put(restricted, ABSENT),)
        else:
            server = Server(id=client.id, registered_at=now)
            change_set = (Put(client, ABSENT), Put(server, ABSENT))
        await self._replica.commit(change_set)
        return Credentials(client.id, secret)

    # Tokens

    async def catch_up(self) -> None:
        await self._replica.catch_up()

    def api_token(self, client_id: str, password: str, *, life: timedelta) -> str:
        """Return a token for a client that knows its password. The caller has caught up."""
        return self._client_token(ApiClient, Audience.API, client_id, password, life)

    def agent_token(self, client_id: str, password: str, *, life: timedelta) -> str:
        """Do the same for an agent."""
        return self._client_token(AgentClient, Audience.AGENT, client_id, password, life)

    def api_client(self, token: str) -> ApiClient:
        """Return whose API token this is. The caller has caught up."""
        return self._client_of(ApiClient, Audience.API, token)

    async def agent(self, token: str) -> AgentClient:
        """Return which agent this is; its id is its server's."""
        await self._replica.catch_up()
        return self._client_of(AgentClient, Audience.AGENT, token)

    def sign(self, audience: Audience, claims: Mapping[str, Any], life: timedelta) -> str:
        key = self._keys.newest()
        if key is None:
            raise Unauthenticated("the fleet has no signing key")
        now = int(self._clock.now().timestamp())
        payload = {
            "iss": ISSUER,
            "aud": audience.value,
            "iat": now,
            "exp": now + int(life.total_seconds()),
            "jti": self._ids.uuid(),
            **claims,
        }
        return jwt.encode(payload, self._keys.private(key), ALGORITHM, headers={"kid": key.id})

    def verify(self, audience: Audience, token: str) -> Mapping[str, Any]:
        """Return the claims of a token that one of our keys signed for this audience."""
        known = self._verified.get((audience, token))
        now = self._clock.now().timestamp()
        if known is not None and now < known["exp"]:
            return known
        claims = self._decode(audience, token)
        # A slow clock may be shown what was issued a moment ago. The end is the end.
        if now >= claims["exp"] or now < claims["iat"] - LEEWAY_SECONDS:
            raise InvalidToken("the token has expired")
        self._verified[audience, token] = claims
        if len(self._verified) > REMEMBERED_TOKENS:
            self._verified.popitem(last=False)
        return claims

    def _decode(self, audience: Audience, token: str) -> Mapping[str, Any]:
        key = self._keys.public(head_of(token).kid)
        try:
            claims: Mapping[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                audience=audience.value,
                issuer=ISSUER,
                # Times are compared by our clock, above.
                options={
                    "require": ["exp", "iat", "jti"],
                    "verify_exp": False,
                    "verify_iat": False,
                },
            )
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise InvalidToken("the token is not valid") from error
        if not isinstance(claims["exp"], int) or not isinstance(claims["iat"], int):
            raise InvalidToken("the token is not valid")
        return claims

    def _client_token(
        self,
        kind: type[ApiClient | AgentClient],
        audience: Audience,
        client_id: str,
        password: str,
        life: timedelta,
    ) -> str:
        client = self._replica.fleet.get(kind, client_id)
        digest = self._signer.hash(password)
        expected = client.secret_hash if client else self._signer.hash(client_id)
        if not hmac.compare_digest(digest, expected) or client is None or not client.active:
            raise Unauthenticated("unauthorized_client")
        claims = {"sub": client.id, "client_id": client.id, "era": client.token_era}
        return self.sign(audience, claims, life)

    def _client_of(self, kind: type[C], audience: Audience, token: str) -> C:
        claims = self.verify(audience, token)
        client = self._replica.fleet.get(kind, str(claims.get("sub", "")))
        if client is None or not client.active:
            raise InvalidToken("the client of this token is not active any more")
        if claims.get("era", 0) != client.token_era:
            raise InvalidToken("the token has been revoked")
        return client


def fresh_password(ids: Ids) -> str:
    """Return a password as administrators know them: base64 of a UUID, 122 bits of chance."""
    return base64.b64encode(ids.uuid().encode()).decode()


def _statement_text(record_id: str, now: datetime, secret: str) -> str:
    """Return what a statement says: the original's four members, and what makes it a secret.

    The instant has nine decimals, as there, which no float has room for.
    """
    members = {
        "id": json.dumps(record_id),
        "active": "true",
        "issuedAt": f"{math.floor(now.timestamp())}.{now.microsecond:06d}000",
        "brokerVersion": json.dumps(__version__),
        "secret": json.dumps(secret),
    }
    lines = ",\n".join(f'  "{name}" : {value}' for name, value in members.items())
    return f"{{\n{lines}\n}}"
