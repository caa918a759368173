"""Who may speak to a broker, and the tokens that say so.

All tokens are RS256 JWTs signed by the fleet's newest signing key, each with its own audience,
so that a token made for one door opens no other. What was verified is remembered until it
expires. Secrets are kept as HMACs under a key that is not in the store; a wrong id costs the
same as a wrong password.
"""

from __future__ import annotations

import base64
import hmac
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from deskfleet.broker.service.replica import Replica
from deskfleet.core.change import ABSENT, ChangeSet, Put
from deskfleet.core.records import AgentClient, ApiClient, Server, SigningKey, SoftwareStatement
from deskfleet.errors import Forbidden, Unauthenticated
from deskfleet.ports import Clock, Ids, Signer

ALGORITHM = "RS256"
ISSUER = "deskfleet"
KEY_BITS = 2048
LEEWAY_SECONDS = 60
MAX_TOKEN_CHARACTERS = 8192
REMEMBERED_TOKENS = 10_000


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
        self._private: dict[str, rsa.RSAPrivateKey] = {}
        self._public: dict[str, rsa.RSAPublicKey] = {}
        self._verified: OrderedDict[tuple[Audience, str], Mapping[str, Any]] = OrderedDict()

    async def ensure_signing_key(self) -> None:
        """Make the fleet's first signing key; of two brokers that start at once, one does."""
        if self._newest_key() is None:
            # Made outside of the decision: it takes a good part of a second.
            fresh = self._fresh_key("first")
            await self._replica.decide(
                lambda: (None, () if self._newest_key() else (Put(fresh, ABSENT),))
            )

    # Clients

    async def register_api_client(self, name: str) -> Credentials:
        return await self._register(ApiClient, self._ids.uuid(), name)

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
        return await self._register(AgentClient, self._ids.uuid(), name)

    async def generate_software_statement(self) -> str:
        """Return a statement that lets agents enrol, in the form that administrators know."""
        record_id, now = self._ids.uuid(), self._clock.now()
        text = json.dumps(
            {
                "id": record_id,
                "active": True,
                "issuedAt": now.timestamp(),
                "brokerVersion": ISSUER,
                "secret": self._ids.secret(),
            },
            indent=2,
        )
        statement = base64.b64encode(text.encode()).decode()
        record = SoftwareStatement(
            id=record_id, statement_hash=self._signer.hash(statement), issued_at=now
        )
        await self._replica.commit((Put(record, ABSENT),))
        return statement

    async def _register(
        self, kind: type[ApiClient | AgentClient], client_id: str, name: str
    ) -> Credentials:
        secret = base64.b64encode(self._ids.secret().encode()).decode()
        now = self._clock.now()
        client = kind(
            id=client_id, name=name, secret_hash=self._signer.hash(secret), created_at=now
        )
        change_set: ChangeSet = (Put(client, ABSENT),)
        if kind is AgentClient:
            change_set += (Put(Server(id=client_id, registered_at=now), ABSENT),)
        await self._replica.commit(change_set)
        return Credentials(client_id, secret)

    # Tokens

    async def api_token(self, client_id: str, password: str, *, life: timedelta) -> str:
        return await self._client_token(ApiClient, Audience.API, client_id, password, life)

    async def agent_token(self, client_id: str, password: str, *, life: timedelta) -> str:
        return await self._client_token(AgentClient, Audience.AGENT, client_id, password, life)

    def api_client(self, token: str) -> ApiClient:
        """Return whose API token this is. The caller has caught up."""
        client = self._replica.fleet.get(ApiClient, self._subject(Audience.API, token))
        if client is None or not client.active:
            raise Unauthenticated("the client of this token is not active any more")
        return client

    async def server_id(self, token: str) -> str:
        """Return which server's agent this is."""
        await self._replica.catch_up()
        client = self._replica.fleet.get(AgentClient, self._subject(Audience.AGENT, token))
        if client is None or not client.active:
            raise Unauthenticated("the agent of this token is not active any more")
        return client.id

    def sign(self, audience: Audience, claims: Mapping[str, Any], life: timedelta) -> str:
        key = self._newest_key()
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
        return jwt.encode(payload, self._private_key(key), ALGORITHM, headers={"kid": key.id})

    def verify(self, audience: Audience, token: str) -> Mapping[str, Any]:
        """Return the claims of a token that one of our keys signed for this audience."""
        known = self._verified.get((audience, token))
        now = self._clock.now().timestamp()
        if known is not None and now < known["exp"] + LEEWAY_SECONDS:
            return known
        claims = self._decode(audience, token)
        if now >= claims["exp"] + LEEWAY_SECONDS or now < claims["iat"] - LEEWAY_SECONDS:
            raise Unauthenticated("the token has expired")
        self._verified[audience, token] = claims
        if len(self._verified) > REMEMBERED_TOKENS:
            self._verified.popitem(last=False)
        return claims

    def _decode(self, audience: Audience, token: str) -> Mapping[str, Any]:
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise Unauthenticated("the token is too long")
        try:
            key = self._public_key(jwt.get_unverified_header(token).get("kid"))
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
        except (jwt.PyJWTError, ValueError, KeyError, TypeError) as error:
            raise Unauthenticated("the token is not valid") from error
        if not isinstance(claims["exp"], int) or not isinstance(claims["iat"], int):
            raise Unauthenticated("the token is not valid")
        return claims

    async def _client_token(
        self,
        kind: type[ApiClient | AgentClient],
        audience: Audience,
        client_id: str,
        password: str,
        life: timedelta,
    ) -> str:
        await self._replica.catch_up()
        client = self._replica.fleet.get(kind, client_id)
        digest = self._signer.hash(password)
        expected = client.secret_hash if client else self._signer.hash(client_id)
        if not hmac.compare_digest(digest, expected) or client is None or not client.active:
            raise Unauthenticated("unauthorized_client")
        return self.sign(audience, {"sub": client.id, "client_id": client.id}, life)

    def _subject(self, audience: Audience, token: str) -> str:
        return str(self.verify(audience, token).get("sub", ""))

    # Keys

    def _newest_key(self) -> SigningKey | None:
        return max(
            self._replica.fleet.each(SigningKey),
            key=lambda key: (key.created_at, key.id),
            default=None,
        )

    def _fresh_key(self, key_id: str) -> SigningKey:
        private = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
        pem = private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        public = private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return SigningKey(
            id=key_id,
            public_pem=public.decode(),
            sealed=self._signer.seal(pem),
            created_at=self._clock.now(),
        )

    def _private_key(self, key: SigningKey) -> rsa.RSAPrivateKey:
        private = self._private.get(key.id)
        if private is None:
            loaded = serialization.load_pem_private_key(self._signer.unseal(key.sealed), None)
            assert isinstance(loaded, rsa.RSAPrivateKey)
            private = self._private[key.id] = loaded
        return private

    def _public_key(self, key_id: Any) -> rsa.RSAPublicKey:
        public = self._public.get(key_id)
        if public is None:
            key = self._replica.fleet.get(SigningKey, key_id) if isinstance(key_id, str) else None
            if key is None:
                raise Unauthenticated("the token is not valid")
            loaded = serialization.load_pem_public_key(key.public_pem.encode())
            assert isinstance(loaded, rsa.RSAPublicKey)
            public = self._public[key_id] = loaded
        return public
