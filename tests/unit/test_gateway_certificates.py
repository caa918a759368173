"""The files that a connection gateway and its brokers are given."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from deskfleet.errors import SetupFailed
from deskfleet.gateway_certificates import demand_certificate, make_gateway_files

NOW = datetime.now(UTC)


def test_key_certificate_and_trust_file(tmp_path: Path) -> None:
    files = make_gateway_files(tmp_path / "new" / "resolver-creds", NOW, force=False)
    names = {path.name for path in files.key.parent.iterdir()}
    assert names == {"dcv_gateway_key.pem", "dcv_gateway_cert.pem", "dcv_gateway_trust.pem"}
    assert files.key.stat().st_mode & 0o777 == 0o600
    assert files.trust.stat().st_mode & 0o777 == 0o644
    assert files.key.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----"), "PKCS#8"
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    authority = x509.load_pem_x509_certificate(files.trust.read_bytes())
    certificate.verify_directly_issued_by(authority)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert certificate.public_key() == key.public_key()
    assert certificate.public_key() != authority.public_key()
    purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert files.ends_at == certificate.not_valid_after_utc == authority.not_valid_after_utc


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    files = make_gateway_files(tmp_path, NOW, force=False)
    before = files.key.read_bytes()
    files.trust.unlink()
    with pytest.raises(SetupFailed, match=r"has dcv_gateway_key\.pem, dcv_gateway_cert\.pem"):
        make_gateway_files(tmp_path, NOW, force=False)
    assert files.key.read_bytes() == before
    assert not files.trust.exists()
    make_gateway_files(tmp_path, NOW, force=True)
    assert files.key.read_bytes() != before
    assert files.trust.exists()


def test_a_folder_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupFailed, match="file"):
        make_gateway_files(tmp_path / "file" / "creds", NOW, force=False)


def test_a_trust_file_that_is_none(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with pytest.raises(SetupFailed, match=r"nothing\.pem"):
        demand_certificate(context, tmp_path / "nothing.pem")
    for content in (b"", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\nx\n"):
        (tmp_path / "bad.pem").write_bytes(content)
        with pytest.raises(SetupFailed, match=r"bad\.pem"):
            demand_certificate(context, tmp_path / "bad.pem")
