"""Certificates that are brought: what a file is decides, and what can't be read says what to do."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from deskfleet.errors import SetupFailed
from deskfleet.gateway_certificates import demand_certificate
from deskfleet.keystores import show_file, trusted
from deskfleet.tls import Shown
from support.original_files import Brought
from support.showing import shown_certificate

PASSWORD = "s3cret \u00e4"


@pytest.fixture(scope="module")
def brought() -> Brought:
    return Brought()


def write(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def listener_context(file: Path, key: Path | None, password: str) -> ssl.SSLContext:
    shown = Shown(lambda: (file, file))
    return shown.context(lambda context: show_file(context, file, key, password))


class TestListener:
    def test_pkcs12(self, brought: Brought, tmp_path: Path) -> None:
        file = write(tmp_path / "x.jks", brought.pkcs12(PASSWORD), 0o644)
        context = listener_context(file, None, PASSWORD)
        assert shown_certificate(context) == brought.pem().decode()
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2

    def test_pkcs12_leaves_no_file_behind(
        self, brought: Brought, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "tmp").mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
        listener_context(write(tmp_path / "x.p12", brought.pkcs12(PASSWORD)), None, PASSWORD)
        assert list((tmp_path / "tmp").iterdir()) == []

    def test_pkcs12_where_no_file_can_be_put_is_told(
        self, brought: Brought, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
        file = write(tmp_path / "x.p12", brought.pkcs12(PASSWORD))
        with pytest.raises(SetupFailed, match="none"):
            listener_context(file, None, PASSWORD)

    @pytest.mark.parametrize("password", ["", "s3cret"])
    def test_pem_with_its_key_beside_or_inside(
        self, password: str, brought: Brought, tmp_path: Path
    ) -> None:
        certificate = write(tmp_path / "c.pem", brought.pem(), 0o644)
        key = write(tmp_path / "k.pem", brought.key_pem(password), 0o640)
        both = write(tmp_path / "b.pem", brought.pem() + brought.key_pem(password))
        for context in (
            listener_context(certificate, key, password),
            listener_context(both, None, password),
        ):
            assert shown_certificate(context) == brought.pem().decode()

    @pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")
    def test_what_openssl_makes(self, brought: Brought, tmp_path: Path) -> None:
        both = write(tmp_path / "b.pem", brought.pem() + brought.key_pem())
        file = tmp_path / "o.p12"
        subprocess.run(
            ["openssl", "pkcs12", "-export", "-in", both, "-out", file, "-passout", "pass:x"],
            check=True,
            capture_output=True,
        )
        assert shown_certificate(listener_context(file, None, "x")) == brought.pem().decode()

    @pytest.mark.parametrize("password", ["", "hunter2"])
    def test_a_wrong_password(self, password: str, brought: Brought, tmp_path: Path) -> None:
        file = write(tmp_path / "x.p12", brought.pkcs12(PASSWORD))
        with pytest.raises(SetupFailed, match="password is missing or wrong") as caught:
            listener_context(file, None, password)
        assert "hunter2 " not in f"{caught.value} "
        sealed = write(tmp_path / "x.pem", brought.pem() + brought.key_pem(PASSWORD))
        with pytest.raises(SetupFailed, match="can't be used"):
            listener_context(sealed, None, password)

    @pytest.mark.parametrize(
        ("magic", "kind"), [(b"\xfe\xed\xfe\xed", "JKS"), (b"\xce\xce\xce\xce", "JCEKS")]
    )
    def test_javas_own_format_is_told_with_what_converts_it(
        self, magic: bytes, kind: str, tmp_path: Path
    ) -> None:
        file = write(tmp_path / "Key Store.jks", magic + b"\0\0\0\2")
        for read in (lambda: listener_context(file, None, ""), lambda: trusted(file)):
            with pytest.raises(SetupFailed) as caught:
                read()
            assert f"({kind})" in caught.value.message
            assert caught.value.message.endswith(
                f"keytool -importkeystore -srckeystore '{file}'"
                f" -destkeystore '{tmp_path}/Key Store.p12' -deststoretype PKCS12"
            )

    @pytest.mark.parametrize("name", ["store.p12", "store.P12"])
    def test_one_that_is_named_as_what_it_is_not_is_not_converted_onto_itself(
        self, name: str, tmp_path: Path
    ) -> None:
        file = write(tmp_path / name, b"\xfe\xed\xfe\xed\0\0\0\2")
        with pytest.raises(SetupFailed, match=f"-destkeystore {tmp_path}/store.pfx "):
            trusted(file)

    @pytest.mark.parametrize("content", [b"", b"hello", b"0", b"0\x82" + b"x" * 50, b"\0" * 2**21])
    def test_what_is_neither(self, content: bytes, tmp_path: Path) -> None:
        file = write(tmp_path / "x", content)
        with pytest.raises(SetupFailed, match="PKCS#12"):
            listener_context(file, None, "")

    def test_a_store_without_a_key(self, brought: Brought, tmp_path: Path) -> None:
        file = write(tmp_path / "t.p12", brought.trust_store(PASSWORD))
        with pytest.raises(SetupFailed, match="no certificate with its key"):
            listener_context(file, None, PASSWORD)

    def test_a_file_that_is_not_there(self, brought: Brought, tmp_path: Path) -> None:
        certificate = write(tmp_path / "c.pem", brought.pem())
        with pytest.raises(SetupFailed, match=r"none.pem can't be read"):
            listener_context(certificate, tmp_path / "none.pem", "")
        with pytest.raises(SetupFailed, match=r"none.p12 can't be read"):
            listener_context(tmp_path / "none.p12", None, "")

    def test_a_key_that_everybody_reads(self, brought: Brought, tmp_path: Path) -> None:
        both = write(tmp_path / "b.pem", brought.pem() + brought.key_pem(), 0o644)
        with pytest.raises(SetupFailed, match="readable by others"):
            listener_context(both, None, "")


class TestTrust:
    def test_pem_and_pkcs12_say_the_same(self, brought: Brought, tmp_path: Path) -> None:
        pem = write(tmp_path / "t.pem", b"# ours\n" + brought.pem())
        store = write(tmp_path / "t.p12", brought.trust_store(PASSWORD))
        whole = write(tmp_path / "k.p12", brought.pkcs12(PASSWORD))
        wanted = brought.pem().decode()
        assert trusted(pem) == trusted(store, PASSWORD) == trusted(whole, PASSWORD) == wanted

    def test_files_without_certificates(self, brought: Brought, tmp_path: Path) -> None:
        for content in (brought.key_pem(), b"-----BEGIN CERTIFICATE-----\nx\n"):
            with pytest.raises(SetupFailed, match="holds no certificates"):
                trusted(write(tmp_path / "x.pem", content))

    def test_gateways_may_be_demanded_one_of(self, brought: Brought, tmp_path: Path) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        store = write(tmp_path / "t.p12", brought.trust_store(PASSWORD))
        demand_certificate(context, store, PASSWORD)
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.cert_store_stats()["x509"] == 1


def test_a_key_beside_pkcs12_is_not_left_out_in_silence(brought: Brought, tmp_path: Path) -> None:
    file = write(tmp_path / "x.p12", brought.pkcs12("hunter2"))
    with pytest.raises(SetupFailed, match="leave out the key file"):
        listener_context(file, tmp_path / "none", "hunter2")
