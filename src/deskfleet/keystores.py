"""Certificates that an administrator brings: PEM or PKCS#12, as listeners and trust need them.

What a file is, its content says. Java's own format can't be read, and is refused with the one
command that converts it. Law: a key that comes out of a PKCS#12 file reaches no disk in clear.
"""

from __future__ import annotations

import secrets
import shlex
import ssl
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs12

from deskfleet.certificates import explained
from deskfleet.errors import SetupFailed
from deskfleet.tls import show

_JAVA = {b"\xfe\xed\xfe\xed": "JKS", b"\xce\xce\xce\xce": "JCEKS"}
_PEM = b"-----BEGIN "
_DER_SEQUENCE = b"\x30"
_MAX_BYTES = 1024 * 1024


def show_file(context: ssl.SSLContext, certificate: Path, key: Path | None, password: str) -> None:
    """Let a listener show a file's certificate and the ones above it.

    `key` None: the certificate's file holds it too; PKCS#12 always does. Raises `SetupFailed`.
    """
    content = _content(certificate)
    if _is_pem(content):
        if key is not None:
            _content(key)
        show(context, certificate, key or certificate, password)
        return
    if key is not None:
        raise SetupFailed(
            f"{certificate} is PKCS#12, which holds its key: leave out the key file {key}"
        )
    bundle = _bundle(certificate, content, password)
    if bundle.key is None or bundle.cert is None:
        raise SetupFailed(f"{certificate} holds no certificate with its key")
    chain = [bundle.cert, *bundle.additional_certs]
    once = secrets.token_hex(32)
    sealed = bundle.key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(once.encode()),
    )
    # OpenSSL takes both from files only.
    with explained(certificate), tempfile.TemporaryDirectory(prefix="deskfleet-") as folder:
        pems = Path(folder) / "chain.pem", Path(folder) / "key.pem"
        pems[0].write_bytes(b"".join(_pem(one.certificate) for one in chain))
        pems[1].touch(0o600)
        pems[1].write_bytes(sealed)
        show(context, *pems, once)


def trusted(file: Path, password: str = "") -> str:
    """Return all certificates of a file as PEM. Raises `SetupFailed`, also where there are none."""
    content = _content(file)
    if _is_pem(content):
        try:
            found = x509.load_pem_x509_certificates(content)
        except ValueError as error:
            raise SetupFailed(f"{file} holds no certificates that can be read") from error
    else:
        bundle = _bundle(file, content, password)
        all_of_it = [bundle.cert, *bundle.additional_certs]
        found = [one.certificate for one in all_of_it if one is not None]
    if not found:
        raise SetupFailed(f"{file} holds no certificates")
    return b"".join(_pem(one) for one in found).decode()


def _content(file: Path) -> bytes:
    """Read a file that may be what is wanted."""
    try:
        with file.open("rb") as opened:
            content = opened.read(_MAX_BYTES + 1)
    except OSError as error:
        raise SetupFailed(f"{file} can't be read: {error.strerror or error}") from error
    kind = _JAVA.get(content[:4])
    if kind is not None:
        # Some give their Java key stores the name of what they are not.
        suffix = ".p12" if file.suffix.lower() != ".p12" else ".pfx"
        target = shlex.quote(str(file.with_suffix(suffix)))
        raise SetupFailed(
            f"{file} is a Java key store ({kind}), which only Java reads; convert it with the same"
            f" password, and name the new file: keytool -importkeystore -srckeystore"
            f" {shlex.quote(str(file))} -destkeystore {target} -deststoretype PKCS12"
        )
    if len(content) > _MAX_BYTES or not (_is_pem(content) or content[:1] == _DER_SEQUENCE):
        raise SetupFailed(f"{file} is neither PEM nor PKCS#12")
    return content


def _is_pem(content: bytes) -> bool:
    return _PEM in content


def _bundle(file: Path, content: bytes, password: str) -> pkcs12.PKCS12KeyAndCertificates:
    try:
        return pkcs12.load_pkcs12(content, password.encode() or None)
    except ValueError as error:
        raise SetupFailed(
            f"{file} can't be opened: the password is missing or wrong, or it is not PKCS#12"
        ) from error


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
