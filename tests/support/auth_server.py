"""An authorization server as brokers meet one: keys, tokens, and a key set served over TLS."""

from __future__ import annotations

import functools
import json
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from deskfleet.certificates import ensure_authority, ensure_server_certificate, machine_names
from deskfleet.system import SystemClock
from deskfleet.tls import server_context

NAME = "login.example"
"""What the server's certificate calls it, too; no resolver knows it."""

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

    def __init__(self, url: str) -> None:
        self.url = url
        self.body = key_set()
        self.status = 200
        self.headers: dict[str, str] = {}
        self.asked = 0
        self.hosts: list[str] = []


@contextmanager
def jwks_server(folder: Path) -> Iterator[tuple[JwksServer, Path]]:
    """Run a server on loopback; yield it with the file of the authority that vouches for it."""
    clock = SystemClock()
    authority = ensure_authority(folder, clock)
    names = machine_names(extra=[NAME])
    certificate, key = ensure_server_certificate(authority, folder, "jwks", clock, names)
    http = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    state = JwksServer(f"https://localhost:{http.server_address[1]}/.well-known/jwks.json")

    class Answering(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            state.asked += 1
            state.hosts.append(self.headers["Host"])
            self.send_response(state.status)
            self.send_header("Content-Length", str(len(state.body)))
            for name, value in state.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(state.body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    http.RequestHandlerClass = Answering
    http.socket = server_context(certificate, key).wrap_socket(
        http.socket, server_side=True, do_handshake_on_connect=False
    )
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield state, folder / "ca.pem"
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def trusting(ca_file: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ca_file))
