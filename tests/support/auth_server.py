"""What brokers are shown of authorization servers: key sets, and tokens that are signed by hand."""

from __future__ import annotations

import functools
import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from support.tls_server import Answer, Asked, tls_server

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@functools.cache
def private_key(kind: str, which: int = 0) -> PrivateKey:
    """Make one key for all tests: `RSA-<bits>`, `P-256`, `P-384`, `P-521` or `Ed25519`."""
    if kind.startswith("RSA-"):
        return rsa.generate_private_key(65537, int(kind.removeprefix("RSA-")))
    if kind == "Ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    curves = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
    return ec.generate_private_key(curves[kind])


def jwk(key: PrivateKey, kid: str | None, **more: Any) -> dict[str, Any]:
    public: Any = key.public_key()
    if isinstance(key, rsa.RSAPrivateKey):
        members = RSAAlgorithm.to_jwk(public, as_dict=True)
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        members = ECAlgorithm.to_jwk(public, as_dict=True)
    else:
        members = OKPAlgorithm.to_jwk(public, as_dict=True)
    members.pop("key_ops", None)
    return {**members, **({} if kid is None else {"kid": kid}), **more}


def key_set(*keys: Mapping[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()


def signed(
    key: PrivateKey, algorithm: str, kid: str | None, claims: Mapping[str, Any], **head: Any
) -> str:
    """Sign any claims: those that a careful library would not let pass, too."""
    headers = {**({} if kid is None else {"kid": kid}), **head}
    return jwt.PyJWS().encode(json.dumps(claims).encode(), key, algorithm, headers=headers)


class JwksServer:
    """Serves one body, and counts how often it was asked for."""

    def __init__(self, address: str) -> None:
        self.url = f"{address}/.well-known/jwks.json"
        self.body = key_set()
        self.status = 200
        self.headers: dict[str, str] = {}
        self.asked = 0
        self.hosts: list[str] = []

    def answer(self, asked: Asked) -> Answer:
        assert asked.method == "GET"
        self.asked += 1
        self.hosts.append(asked.headers["Host"])
        return Answer(self.body, self.status, self.headers)


@contextmanager
def jwks_server(folder: Path) -> Iterator[tuple[JwksServer, Path]]:
    """Run a server on loopback; yield it with the file of the authority that vouches for it."""
    with tls_server(folder, JwksServer) as server:
        yield server, folder / "ca.pem"


def trusting(ca_file: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ca_file))
