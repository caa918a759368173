"""The example files of the original product, with other values in them."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import NameOID

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
BROKER_FILE = EXAMPLES / "session-manager-broker.properties"
AGENT_FILE = EXAMPLES / "agent.conf"


def with_values(example: Path, values: Mapping[str, object]) -> str:
    """Return an example whose keys have these values instead; all of them must be in it."""
    text = example.read_text()
    for key, value in values.items():
        line = re.compile(rf"^{re.escape(key)} = .*$", re.MULTILINE)
        # As it is: in a pattern, backslashes would mean something.
        text, count = line.subn(f"{key} = {value}".replace("\\", r"\\"), text)
        assert count == 1, key
    return text


def write(path: Path, text: str, mode: int = 0o640) -> Path:
    """Write a file that only its owner can change, whatever the umask."""
    path.write_text(text)
    path.chmod(mode)
    return path


class Brought:
    """A key and a certificate for this machine that signs itself, as an administrator has them."""

    def __init__(self, host: str = "localhost") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "brought")])
        now = dt.datetime.now(dt.UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self.key, hashes.SHA256())
        )

    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self, password: str = "") -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, _sealed(password)
        )

    def pkcs12(self, password: str = "") -> bytes:
        return pkcs12.serialize_key_and_certificates(
            b"broker", self.key, self.certificate, None, _sealed(password)
        )

    def trust_store(self, password: str) -> bytes:
        """Return certificates without a key, as a Java trust store is."""
        return pkcs12.serialize_key_and_certificates(
            None, None, None, [self.certificate], _sealed(password)
        )


def _sealed(password: str) -> serialization.KeySerializationEncryption:
    if not password:
        return serialization.NoEncryption()
    return serialization.BestAvailableEncryption(password.encode())
