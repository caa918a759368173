"""The certificate of a connection gateway, and the listener that demands one.

A certificate is made together with an authority of its own, whose key is thrown away: nothing else
will ever be signed by it, so who has a certificate that the trust file vouches for is the gateway
that was given this one. The fleet's authority can't take its place: it signs servers.

Laws: nothing is replaced unasked. The key is readable by its owner alone; the other two files by
everybody, since they are for the broker's user and hold no secret.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deskfleet.errors import SetupFailed
from deskfleet.keystores import trusted
from deskfleet.system import write_private

KEY_FILE = "dcv_gateway_key.pem"
CERTIFICATE_FILE = "dcv_gateway_cert.pem"
TRUST_FILE = "dcv_gateway_trust.pem"
FOLDER = "resolver-creds"
"""All four names are where administrators of the original look."""

LIFE = timedelta(days=3652)
"""Of what is carried to its place by hand; the fleet's authority lives as long."""
BACKDATED = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class GatewayFiles:
    key: Path
    certificate: Path
    trust: Path
    ends_at: datetime


def make_gateway_files(folder: Path, now: datetime, *, force: bool) -> GatewayFiles:
    """Make key, certificate and trust file. Raises `SetupFailed`, also for files that are there."""
    paths = folder / KEY_FILE, folder / CERTIFICATE_FILE, folder / TRUST_FILE
    there = [path.name for path in paths if path.exists() or path.is_symlink()]
    if there and not force:
        raise SetupFailed(
            f"{folder} has {', '.join(there)} already, and a gateway may depend on them;"
            " --force replaces them"
        )
    key, certificate, authority = _signed(now)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_private(paths[0], private)
        for path, public in zip(paths[1:], (certificate, authority), strict=True):
            write_private(path, public.public_bytes(serialization.Encoding.PEM))
            path.chmod(0o644)
    except OSError as error:
        raise SetupFailed(f"{error.filename or folder}: {error.strerror or error}") from error
    return GatewayFiles(*paths, certificate.not_valid_after_utc)


def demand_certificate(context: ssl.SSLContext, trust_file: Path, password: str = "") -> None:
    """Let a listener refuse, in the handshake, whoever shows no certificate of the trust file.

    The file is PEM or PKCS#12, which the password opens.
    """
    context.load_verify_locations(cadata=trusted(trust_file, password))
    context.verify_mode = ssl.CERT_REQUIRED


def _signed(
    now: datetime,
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate, x509.Certificate]:
    """Return a gateway's key, its certificate, and the authority that has signed it."""
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = _name("deskfleet gateway authority", authority_key)
    authority = (
        _builder(issuer, issuer, authority_key, now, of_authority=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    certificate = (
        _builder(_name("deskfleet gateway", key), issuer, key, now, of_authority=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(issuer_id, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    return key, certificate, authority


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
    *,
    of_authority: bool,
) -> x509.CertificateBuilder:
    public_key = key.public_key()
    usage = x509.KeyUsage(
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
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + LIFE)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(usage, critical=True)
    )


def _name(what: str, key: ec.EllipticCurvePrivateKey) -> x509.Name:
    """Name after the key: several trust files in one are told apart by it."""
    digest = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest.hex()[:12]
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{what} {digest}")])
