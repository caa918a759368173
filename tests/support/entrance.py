"""An entrance on a free loopback port over real TLS, with fakes for what it asks."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import jwt
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from deskfleet.agent.desktop.attendance import Attendance
from deskfleet.agent.desktop.desktops import Desktop
from deskfleet.agent.desktop.entrance import MAX_MESSAGE_BYTES, build_entrance
from deskfleet.errors import Unavailable
from deskfleet.gate import Gate
from deskfleet.listener import bind, listening, port_of
from deskfleet.ports import TokenCheck
from deskfleet.system import SystemClock, open_key_file
from deskfleet.tls import server_context

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run with the event loop that the agent runs with."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


async def until(condition: Callable[[], bool], what: str, limit: float = 20.0) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, f"waited too long for {what}"
        await asyncio.sleep(0.01)


@dataclass
class KnownDesktops:
    """Desktops by hand."""

    known: dict[str, Desktop] = field(default_factory=dict)

    def find(self, session_id: str) -> Desktop | None:
        return self.known.get(session_id)


@dataclass
class Verifier:
    """What a broker does for the entrance: it knows its own tokens."""

    key: str = "a key of thirty-two bytes or more, for HS256"
    reachable: bool = True
    single_use: bool = False
    spent: set[str] = field(default_factory=set)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def token(self, session_id: str, user: str, *, seconds: float = 60, key: str = "") -> str:
        claims = {
            "dcvSessionId": session_id,
            "dcvSessionUser": user,
            "exp": datetime.now(UTC) + timedelta(seconds=seconds),
        }
        return jwt.encode(claims, key or self.key, algorithm="HS256")

    async def __call__(self, session_id: str, token: str, address: str) -> str | None:
        self.asked.append((session_id, address))
        if not self.reachable:
            raise Unavailable
        try:
            claims = jwt.decode(token, self.key, algorithms=["HS256"])
        except jwt.PyJWTError:
            return None
        if self.single_use and token in self.spent:
            return None
        self.spent.add(token)
        user: str = claims["dcvSessionUser"]
        return user if claims["dcvSessionId"] == session_id else None


@dataclass
class RunningEntrance:
    port: int
    certificate: Path
    desktops: KnownDesktops
    verifier: Verifier
    attendance: Attendance
    changes: list[str]
    gate: Gate

    @property
    def origin(self) -> str:
        return f"https://localhost:{self.port}"

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certificate))

    def link(self, session_id: str, user: str) -> str:
        token = self.verifier.token(session_id, user)
        return f"{self.origin}/?authToken={token}#{session_id}"


@asynccontextmanager
async def entrance(
    folder: Path, *desktops: Desktop, check: TokenCheck | None = None, **options: Any
) -> AsyncIterator[RunningEntrance]:
    """Serve an entrance as the agent does, until the block ends; `check` asks a real broker."""
    certificate = folder / "entrance.pem"
    write_certificate(certificate)
    known = KnownDesktops({desktop.session_id: desktop for desktop in desktops})
    changes: list[str] = []
    attendance = Attendance(SystemClock(), changes.append)
    verifier = Verifier()
    signer = open_key_file(folder / "admission.key")
    app = build_entrance(known, check or verifier, attendance, SystemClock(), signer, **options)
    context = server_context(certificate, certificate)
    gate, most = Gate(), MAX_MESSAGE_BYTES
    with closing(bind("127.0.0.1", 0, "desktops")) as bound:
        async with listening(app, bound, context, max_message_bytes=most, gate=gate):
            yield RunningEntrance(
                port_of(bound), certificate, known, verifier, attendance, changes, gate
            )


def write_certificate(path: Path) -> None:
    """Make a key and a certificate for loopback, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "entrance under test")])
    now = datetime.now(UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.touch(mode=0o600)
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
