"""The fleet's private certificate authority, and the servers' certificates.

An authority is a folder of `ca.pem` (0644, to be copied to whoever must trust the fleet) and
`ca.key` (0600, which never leaves). Without `ca.key` it can be trusted but issues nothing.

Laws: a key file is written once and never again, a certificate only for the key beside it, each
whole or not at all; so two programs that start at once, and one that is killed at any instant,
leave a pair that fits. A certificate is issued anew before it ends, and when the machine has a
name or address that it lacks. A key that others can read is refused.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import secrets
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

import psutil
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deskfleet.errors import SetupFailed
from deskfleet.machine import here

log = logging.getLogger(__name__)

AUTHORITY_LIFE = timedelta(days=3652)
CERTIFICATE_LIFE = timedelta(days=365)
BACKDATED = timedelta(days=1)
"""Clocks of a fleet differ; a certificate is good on a machine whose clock is behind."""

_FULL_NAME_SECONDS = 1.0
_HOST_NAME = re.compile(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?", re.ASCII)

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class WallClock(Protocol):
    def now(self) -> datetime:
        """Return the wall clock, aware, UTC."""


@dataclass(frozen=True, slots=True)
class Names:
    """What a machine is called: host names and IP addresses."""

    hosts: frozenset[str]
    addresses: frozenset[IpAddress]

    def covers(self, wanted: Names) -> bool:
        return wanted.hosts <= self.hosts and wanted.addresses <= self.addresses


@dataclass(frozen=True, slots=True)
class Authority:
    certificate: x509.Certificate
    certificate_path: Path
    key: ec.EllipticCurvePrivateKey | None
    """None where only `ca.pem` is: the authority lives on another machine."""


def ensure_authority(folder: Path, clock: WallClock) -> Authority:
    """Open the authority in the folder; make it on first use.

    A folder with only `ca.pem` gives an authority that can't issue. The certificate is renewed,
    with the same key and name, in its last fifth: copies of the old one stay good to its end.
    """
    certificate_path, key_path = folder / "ca.pem", folder / "ca.key"
    with explained(folder):
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        # The key is always written first, so a certificate without one was brought here.
        if certificate_path.exists() and not key_path.exists():
            return Authority(_read_certificate(certificate_path), certificate_path, None)
        key = _ensure_key(key_path)
        if not certificate_path.exists():
            _write_once(certificate_path, _pem(_sign_authority(key, clock.now())), 0o644)
        certificate = _read_certificate(certificate_path)
        if certificate.public_key() != key.public_key():
            raise SetupFailed(f"{certificate_path} and {key_path} do not belong together")
        if _spent(certificate, clock.now()) > 4 / 5:
            certificate = _sign_authority(key, clock.now())
            _replace(certificate_path, _pem(certificate), 0o644)
            log.info("authority.renewed", extra={"path": str(certificate_path)})
    return Authority(certificate, certificate_path, key)


def ensure_server_certificate(
    authority: Authority, folder: Path, name: str, clock: WallClock, names: Names
) -> tuple[Path, Path]:
    """Return the paths of the certificate and key `name`, issued now where that is due.

    Due is a certificate that lacks one of `names`, has lived two thirds of its life, or is not
    of this authority and key. An authority that can't issue leaves a pair that is there as it is.
    """
    certificate_path, key_path = folder / f"{name}.pem", folder / f"{name}.key"
    with explained(folder):
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        if authority.key is None and not (certificate_path.exists() and key_path.exists()):
            raise SetupFailed(
                f"{certificate_path} is missing and can't be issued here: there is no ca.key beside"
                f" {authority.certificate_path}. Issue it where the authority lives"
            )
        key = _ensure_key(key_path)
        due = _why_due(certificate_path, key, authority, clock.now(), names)
        facts = {"path": str(certificate_path), "reason": due}
        if due is not None and authority.key is None:
            log.warning("certificate.due", extra=facts)
        elif due is not None and authority.key is not None:
            issued = _sign_server(authority, authority.key, key, name, clock.now(), names)
            _replace(certificate_path, _pem(issued), 0o644)
            log.info("certificate.issued", extra=facts)
    return certificate_path, key_path


def machine_names(extra: Sequence[str] = (), resolve: Callable[[], str] = socket.getfqdn) -> Names:
    """Return every name and address of this machine, localhost's too, and `extra` ones.

    Waits at most a second for `resolve`, which may ask a name server for the full name. A name
    that no certificate can hold is left out.
    """
    host = socket.gethostname()
    texts = {host, host.partition(".")[0], "localhost", "127.0.0.1", "::1", *extra}
    texts.update(
        found.address
        for addresses in psutil.net_if_addrs().values()
        for found in addresses
        if found.family in {socket.AF_INET, socket.AF_INET6}
    )
    texts.add(_full_name(resolve, _FULL_NAME_SECONDS))
    return names_of(texts)


def names_of(texts: Sequence[str] | set[str]) -> Names:
    """Sort texts into host names and addresses; IPv6 scopes are dropped."""
    hosts, addresses = set(), set()
    for text in texts:
        try:
            addresses.add(ipaddress.ip_address(text.partition("%")[0].strip("[]")))
        except ValueError:
            if _HOST_NAME.fullmatch(text):
                hosts.add(text.lower())
    return Names(frozenset(hosts), frozenset(addresses))


def _full_name(resolve: Callable[[], str], limit_seconds: float) -> str:
    """Return the machine's full name, empty where no name server gives it in time."""
    answers: list[str] = []

    def ask() -> None:
        try:
            answers.append(resolve())
        except (OSError, UnicodeError) as error:
            log.info("name.unknown", extra={"reason": str(error)})

    # A daemon: a name server that doesn't answer must not keep the program from ending.
    thread = threading.Thread(target=ask, name="full-name", daemon=True)
    thread.start()
    thread.join(limit_seconds)
    return answers[0].rstrip(".") if answers else ""


def _why_due(
    path: Path,
    key: ec.EllipticCurvePrivateKey,
    authority: Authority,
    now: datetime,
    names: Names,
) -> str | None:
    """Return why a certificate has to be issued, None when the one that is there is good."""
    if not path.exists():
        return "there is none"
    try:
        found = _read_certificate(path)
        found.verify_directly_issued_by(authority.certificate)
        held = _held_names(found)
    except (SetupFailed, InvalidSignature, ValueError, TypeError, x509.ExtensionNotFound):
        return "it is not of this authority"
    if found.public_key() != key.public_key():
        return "it is not of this key"
    if not held.covers(names):
        return "the machine has new names"
    return "it is old" if _spent(found, now) > 2 / 3 else None


def _held_names(certificate: x509.Certificate) -> Names:
    held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = held.get_values_for_type(x509.IPAddress)
    return Names(
        frozenset(held.get_values_for_type(x509.DNSName)),
        frozenset(a for a in addresses if isinstance(a, IpAddress)),
    )


def _spent(certificate: x509.Certificate, now: datetime) -> float:
    """Return the part of its life that a certificate has lived; before its time counts as all."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return (now - begin) / (end - begin) if now >= begin else 1.0


def _sign_authority(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    """Sign the authority with itself. The name comes from the key: fleets are told apart by it."""
    key_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    name = _subject(f"deskfleet authority {key_id.digest.hex()[:12]}")
    builder = _builder(name, name, key.public_key(), now, now + AUTHORITY_LIFE)
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(of_authority=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def _sign_server(
    authority: Authority,
    authority_key: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePrivateKey,
    name: str,
    now: datetime,
    names: Names,
) -> x509.Certificate:
    issuer = authority.certificate
    end = min(now + CERTIFICATE_LIFE, issuer.not_valid_after_utc)
    builder = _builder(_subject(f"deskfleet {name}"), issuer.subject, key.public_key(), now, end)
    alternatives: list[x509.GeneralName] = [x509.DNSName(host) for host in sorted(names.hosts)]
    alternatives += [x509.IPAddress(address) for address in sorted(names.addresses, key=str)]
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(of_authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(issuer_id, critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .sign(authority_key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _subject(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _key_usage(*, of_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not of_authority,
        key_cert_sign=of_authority,
        crl_sign=of_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _ensure_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read the key, or make it on first use. Two first uses at once agree on one key."""
    if not path.exists():
        made = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        _write_once(path, made, 0o600)
    refuse_exposed(path, 0o077)
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise SetupFailed(f"{path} holds no key that can be read") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SetupFailed(f"{path} is not an elliptic curve key")
    return key


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise SetupFailed(f"{path} holds no certificate") from error


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def refuse_exposed(path: Path, forbidden: int) -> None:
    """Raise `SetupFailed` where a key's mode has any of the forbidden bits."""
    mode = here.exposure(path.stat(), forbidden)
    if mode is not None:
        raise SetupFailed(f"{path} is readable by others (mode {mode}); make it 0600")


@contextmanager
def explained(place: Path) -> Iterator[None]:
    """Turn what the file system says into a message for a person."""
    try:
        yield
    except ssl.SSLError:
        raise
    except OSError as error:
        raise SetupFailed(f"{error.filename or place}: {error.strerror or error}") from error


def _write_once(path: Path, content: bytes, mode: int) -> None:
    """Write a file that isn't there; of several writers at once, the first one's stays."""
    with _written_aside(path, content, mode) as aside, suppress(FileExistsError):
        os.link(aside, path)


def _replace(path: Path, content: bytes, mode: int) -> None:
    with _written_aside(path, content, mode) as aside:
        here.replace(aside, path)


@contextmanager
def _written_aside(path: Path, content: bytes, mode: int) -> Iterator[Path]:
    """Give a new, durable file beside `path`, to be put in place; its mode heeds no umask."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | here.BINARY, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            here.set_mode(descriptor, mode)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        yield aside
    finally:
        aside.unlink(missing_ok=True)
    here.sync_folder(path.parent)
