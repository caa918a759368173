"""An OpenID provider with Authlib in it: discovery, a key set, and tokens for client credentials.

What it gives out is made by Authlib, not by hand: access tokens after RFC 9068 (`at+jwt`),
metadata after RFC 8414, errors after RFC 6749. Nobody can log in here: browsers have no business
with brokers.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

from authlib.oauth2.rfc6749 import AuthorizationServer, ClientMixin, OAuth2Request
from authlib.oauth2.rfc6749.grants import ClientCredentialsGrant
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from authlib.oauth2.rfc8414 import AuthorizationServerMetadata
from authlib.oauth2.rfc9068 import JWTBearerTokenGenerator
from joserfc.jwk import ECKey, KeyParameters, KeySet, RSAKey

from support.tls_server import Answer, Asked, tls_server

DISCOVERY = "/.well-known/openid-configuration"
KEYS = "/keys"
TOKEN = "/token"
AUDIENCE = "fleet"
LIFE_SECONDS = 300
AUTHENTICATION = ("client_secret_basic",)


@dataclass(frozen=True)
class Registered(ClientMixin):
    """A client of the provider; it has all of its scopes unless it asks for fewer."""

    id: str
    secret: str
    scopes: frozenset[str]

    def get_client_id(self) -> str:
        return self.id

    def check_client_secret(self, client_secret: str) -> bool:
        return secrets.compare_digest(self.secret, client_secret)

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method in AUTHENTICATION

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type == ClientCredentialsGrant.GRANT_TYPE

    def get_allowed_scope(self, scope: Any) -> str:
        asked = self.scopes if scope is None else set(scope.split())
        return " ".join(sorted(self.scopes & asked))


class Keys:
    """Signs with the newest of its keys, and publishes them all."""

    def __init__(self, algorithm: str) -> None:
        self.algorithm = algorithm
        self._keys = [self._made()]

    def _made(self) -> RSAKey | ECKey:
        parameters: KeyParameters = {
            "alg": self.algorithm,
            "use": "sig",
            "kid": secrets.token_hex(8),
        }
        if self.algorithm == "ES256":
            return ECKey.generate_key("P-256", parameters)
        return RSAKey.generate_key(2048, parameters)

    def renew(self) -> None:
        self._keys.insert(0, self._made())

    @property
    def signing(self) -> KeySet:
        return KeySet([self._keys[0]])

    @property
    def published(self) -> dict[str, Any]:
        return dict(KeySet(list(self._keys)).as_dict(private=False))


class _Tokens(JWTBearerTokenGenerator):
    def __init__(self, issuer: str, keys: Keys) -> None:
        super().__init__(issuer, keys.algorithm, expires_generator=LIFE_SECONDS)
        self._keys = keys

    def get_jwks(self) -> KeySet:
        return self._keys.signing

    def get_audiences(self, client: ClientMixin, user: object, scope: str) -> str:
        return AUDIENCE


class Provider(AuthorizationServer):
    """The grants and endpoints; `answer` is how the server that holds it asks."""

    def __init__(self, address: str, algorithm: str) -> None:
        super().__init__()
        self.issuer = address
        self.keys = Keys(algorithm)
        self._clients: dict[str, Registered] = {}
        self.register_grant(ClientCredentialsGrant)
        self.register_token_generator("default", _Tokens(address, self.keys))

    def client(self, id: str, *scopes: str) -> Registered:
        """Register a client."""
        made = Registered(id, secrets.token_urlsafe(24), frozenset(scopes))
        self._clients[id] = made
        return made

    def answer(self, asked: Asked) -> Answer:
        path = urlsplit(asked.url).path
        if (asked.method, path) == ("POST", TOKEN):
            return self._granted(asked)
        if (asked.method, path) == ("GET", DISCOVERY):
            return _json(200, self._metadata())
        if (asked.method, path) == ("GET", KEYS):
            return _json(200, self.keys.published)
        return _json(404, {"error": "not_found"})

    def _granted(self, asked: Asked) -> Answer:
        # It is what `handle_response` makes of it, not what the library's types say.
        answer: Any = self.create_token_response(asked)
        assert isinstance(answer, Answer)
        return answer

    def _metadata(self) -> Mapping[str, Any]:
        told = AuthorizationServerMetadata(
            issuer=self.issuer,
            token_endpoint=self.issuer + TOKEN,
            jwks_uri=self.issuer + KEYS,
            response_types_supported=["none"],
            grant_types_supported=[ClientCredentialsGrant.GRANT_TYPE],
            token_endpoint_auth_methods_supported=list(AUTHENTICATION),
        )
        told.validate()
        return told

    # What Authlib asks of whatever it is built into.

    def query_client(self, client_id: str) -> ClientMixin:
        # The library takes None for "unknown", which its types leave out.
        return cast("ClientMixin", self._clients.get(client_id))

    def save_token(self, token: object, request: OAuth2Request) -> None:
        """Keep nothing: what a token says is in it."""

    def send_signal(self, name: str, *_: object, **__: object) -> None:
        """Tell nobody."""

    def create_oauth2_request(self, request: Asked) -> OAuth2Request:
        made = OAuth2Request(request.method, request.url, headers=dict(request.headers.items()))
        made.payload = BasicOAuth2Payload(dict(parse_qsl(request.body.decode())))
        return made

    def handle_response(self, status: int, body: Any, headers: Any) -> Answer:
        return _json(status, body, dict(headers))


def _json(status: int, body: object, headers: Mapping[str, str] | None = None) -> Answer:
    named = {"Content-Type": "application/json", **(headers or {})}
    return Answer(json.dumps(body).encode(), status, named)


@contextmanager
def openid_provider(folder: Path, algorithm: str) -> Iterator[Provider]:
    """Run a provider on loopback, which signs with RS256 or ES256.

    The folder's `ca.pem` vouches for it.
    """
    with tls_server(folder, lambda address: Provider(address, algorithm)) as provider:
        yield provider
