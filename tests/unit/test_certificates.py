"""The private authority, the certificates it issues, and the TLS they are used with."""

from __future__ import annotations

import logging
import os
import ssl
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from deskfleet.certificates import (
    CERTIFICATE_LIFE,
    Authority,
    Names,
    ensure_authority,
    ensure_server_certificate,
    machine_names,
    names_of,
)
from deskfleet.errors import SetupFailed
from deskfleet.tls import client_context, server_context

NAMES = names_of({"desk1", "desk1.example.org", "localhost", "192.0.2.7", "127.0.0.1", "::1"})


class ManualClock:
    def __init__(self, now: datetime) -> None:
        self.instant = now

    def now(self) -> datetime:
        return self.instant


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime.now(UTC))


@pytest.fixture
def authority(tmp_path: Path, clock: ManualClock) -> Authority:
    return ensure_authority(tmp_path / "ca", clock)


def loaded(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> tuple[str | None, str]:
    """Shake hands in memory; return the TLS version and the cipher suite."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(10):
        waiting = []
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                waiting.append(end)
        if not waiting:
            cipher = ends[0].cipher()
            assert cipher is not None
            return ends[0].version(), cipher[0]
    raise AssertionError("the handshake does not end")


class TestAuthority:
    def test_is_made_once_with_safe_modes(self, tmp_path: Path, clock: ManualClock) -> None:
        old = os.umask(0)
        try:
            first = ensure_authority(tmp_path / "a" / "ca", clock)
        finally:
            os.umask(old)
        again = ensure_authority(tmp_path / "a" / "ca", clock)
        assert first.certificate == again.certificate
        assert mode(tmp_path / "a/ca/ca.key") == 0o600
        assert mode(tmp_path / "a/ca/ca.pem") == 0o644
        assert sorted(p.name for p in (tmp_path / "a/ca").iterdir()) == ["ca.key", "ca.pem"]

    def test_modes_heed_no_umask(self, tmp_path: Path, clock: ManualClock) -> None:
        old = os.umask(0o777)
        try:
            (tmp_path / "ca").mkdir()
            (tmp_path / "ca").chmod(0o755)
            ensure_authority(tmp_path / "ca", clock)
        finally:
            os.umask(old)
        assert (mode(tmp_path / "ca/ca.key"), mode(tmp_path / "ca/ca.pem")) == (0o600, 0o644)

    def test_lasts_ten_years(self, authority: Authority, clock: ManualClock) -> None:
        left = authority.certificate.not_valid_after_utc - clock.now()
        assert timedelta(days=3640) < left < timedelta(days=3660)
        assert isinstance(authority.key, ec.EllipticCurvePrivateKey)
        assert isinstance(authority.key.curve, ec.SECP256R1)

    def test_is_renewed_with_its_key_before_it_ends(
        self, authority: Authority, tmp_path: Path, clock: ManualClock
    ) -> None:
        issued, _ = ensure_server_certificate(authority, tmp_path, "broker", clock, NAMES)
        clock.instant += timedelta(days=365 * 9)
        renewed = ensure_authority(tmp_path / "ca", clock)
        assert renewed.certificate != authority.certificate
        assert renewed.certificate.subject == authority.certificate.subject
        assert renewed.certificate.not_valid_after_utc > clock.now() + timedelta(days=3640)
        loaded(issued).verify_directly_issued_by(renewed.certificate)
        later, _ = ensure_server_certificate(renewed, tmp_path, "broker", clock, NAMES)
        loaded(later).verify_directly_issued_by(authority.certificate)

    def test_half_made_is_completed(self, tmp_path: Path, clock: ManualClock) -> None:
        first = ensure_authority(tmp_path, clock)
        (tmp_path / "ca.pem").unlink()
        again = ensure_authority(tmp_path, clock)
        assert again.certificate.public_key() == first.certificate.public_key()

    def test_without_its_key_is_trusted_but_issues_nothing(
        self, authority: Authority, tmp_path: Path, clock: ManualClock
    ) -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "ca.pem").write_bytes(authority.certificate_path.read_bytes())
        theirs = ensure_authority(elsewhere, clock)
        assert theirs.key is None
        assert not (elsewhere / "ca.key").exists()
        with pytest.raises(SetupFailed, match=r"no ca\.key"):
            ensure_server_certificate(theirs, elsewhere, "agent", clock, NAMES)
        assert not (elsewhere / "agent.key").exists()

    def test_without_its_key_leaves_a_given_pair_alone(
        self,
        authority: Authority,
        tmp_path: Path,
        clock: ManualClock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        given, _ = ensure_server_certificate(authority, tmp_path, "agent", clock, NAMES)
        before = given.read_bytes()
        theirs = Authority(authority.certificate, authority.certificate_path, None)
        with caplog.at_level(logging.WARNING):
            ensure_server_certificate(theirs, tmp_path, "agent", clock, names_of({"new"}))
        assert given.read_bytes() == before
        assert [r.message for r in caplog.records] == ["certificate.due"]

    def test_of_two_fleets_is_refused(self, tmp_path: Path, clock: ManualClock) -> None:
        ensure_authority(tmp_path / "one", clock)
        ensure_authority(tmp_path / "two", clock)
        (tmp_path / "one/ca.key").replace(tmp_path / "two/ca.key")
        with pytest.raises(SetupFailed, match="do not belong together"):
            ensure_authority(tmp_path / "two", clock)

    @pytest.mark.parametrize("exposed", [0o604, 0o640, 0o660, 0o666])
    def test_with_a_key_that_others_can_read_is_refused(
        self, tmp_path: Path, clock: ManualClock, exposed: int
    ) -> None:
        ensure_authority(tmp_path, clock)
        (tmp_path / "ca.key").chmod(exposed)
        with pytest.raises(SetupFailed, match=r"ca\.key is readable by others"):
            ensure_authority(tmp_path, clock)

    @pytest.mark.parametrize("name", ["ca.key", "ca.pem"])
    def test_broken_files_are_named(self, tmp_path: Path, clock: ManualClock, name: str) -> None:
        ensure_authority(tmp_path, clock)
        (tmp_path / name).write_text("nonsense")
        with pytest.raises(SetupFailed, match=name):
            ensure_authority(tmp_path, clock)

    def test_in_an_impossible_folder_is_a_message(self, tmp_path: Path, clock: ManualClock) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(SetupFailed, match="Not a directory"):
            ensure_authority(tmp_path / "file" / "ca", clock)


ONE_START = """
import sys
from pathlib import Path
from deskfleet.certificates import ensure_authority, ensure_server_certificate, names_of
from deskfleet.system import SystemClock
print("ready", flush=True)
sys.stdin.readline()
folder, clock = Path(sys.argv[1]), SystemClock()
authority = ensure_authority(folder, clock)
ensure_server_certificate(authority, folder, "up", clock, names_of({"localhost"}))
print(authority.certificate.fingerprint(authority.certificate.signature_hash_algorithm).hex())
"""


class TestFirstStartsAtOnce:
    def test_of_processes_agree(self, tmp_path: Path) -> None:
        starts = [
            subprocess.Popen(
                [sys.executable, "-c", ONE_START, str(tmp_path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(3)
        ]
        for start in starts:
            assert start.stdout is not None
            assert start.stdout.readline() == "ready\n"
        for start in starts:
            assert start.stdin is not None
            start.stdin.write("go\n")
            start.stdin.flush()
        prints = {start.communicate(timeout=30)[0] for start in starts}
        assert [start.returncode for start in starts] == [0, 0, 0]
        assert len(prints) == 1
        names = {"ca.key", "ca.pem", "up.key", "up.pem"}
        assert {path.name for path in tmp_path.iterdir()} == names
        server_context(tmp_path / "up.pem", tmp_path / "up.key")

    def test_of_threads_agree_every_time(self, tmp_path: Path, clock: ManualClock) -> None:
        for attempt in range(10):
            folder = tmp_path / str(attempt)
            found: list[x509.Certificate] = []
            gate = threading.Barrier(4)

            def start(
                folder: Path = folder,
                found: list[x509.Certificate] = found,
                gate: threading.Barrier = gate,
            ) -> None:
                gate.wait(10)
                authority = ensure_authority(folder, clock)
                ensure_server_certificate(authority, folder, "up", clock, NAMES)
                found.append(authority.certificate)

            threads = [threading.Thread(target=start) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
            assert len(found) == 4
            assert len(set(found)) == 1
            server_context(folder / "up.pem", folder / "up.key")


class TestServerCertificate:
    def test_holds_every_name_and_is_kept(
        self, authority: Authority, tmp_path: Path, clock: ManualClock
    ) -> None:
        path, key = ensure_server_certificate(authority, tmp_path, "broker", clock, NAMES)
        certificate = loaded(path)
        held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert set(held.get_values_for_type(x509.DNSName)) == NAMES.hosts
        assert set(held.get_values_for_type(x509.IPAddress)) == NAMES.addresses
        assert (mode(path), mode(key)) == (0o644, 0o600)
        assert certificate.not_valid_after_utc - clock.now() <= CERTIFICATE_LIFE
        before = path.read_bytes()
        ensure_server_certificate(authority, tmp_path, "broker", clock, names_of({"desk1"}))
        assert path.read_bytes() == before

    def test_is_issued_anew_for_a_new_name(
        self, authority: Authority, tmp_path: Path, clock: ManualClock
    ) -> None:
        path, key = ensure_server_certificate(authority, tmp_path, "broker", clock, NAMES)
        before = key.read_bytes()
        more = Names(NAMES.hosts | {"new.example.org"}, NAMES.addresses)
        ensure_server_certificate(authority, tmp_path, "broker", clock, more)
        held = loaded(path).extensions.get_extension_for_class(x509.SubjectAlternativeName)
        assert "new.example.org" in held.value.get_values_for_type(x509.DNSName)
        assert key.read_bytes() == before

    @pytest.mark.parametrize(("days", "anew"), [(230, False), (250, True), (400, True), (-2, True)])
    def test_is_issued_anew_at_two_thirds_of_its_life(
        self, authority: Authority, tmp_path: Path, clock: ManualClock, days: int, *, anew: bool
    ) -> None:
        path, _ = ensure_server_certificate(authority, tmp_path, "broker", clock, NAMES)
        before = path.read_bytes()
        clock.instant += timedelta(days=days)
        ensure_server_certificate(authority, tmp_path, "broker", clock, NAMES)
        assert (path.read_bytes() != before) == anew

    def test_of_another_authority_or_key_or_none_is_replaced(
        self, authority: Authority, tmp_path: Path, clock: ManualClock
    ) -> None:
        other = ensure_authority(tmp_path / "other", clock)
        path, key = ensure_server_certificate(other, tmp_path, "broker", clock, NAMES)
        ensure_server_certificate(authority, tmp_path, "broker", clock, NAMES)
        loaded(path).verify_directly_issued_by(authority.certificate)
        key.unlink()
        ensure_server_certificate(authority, tmp_path, "broker", clock, NAMES)
        server_context(path, key)
        path.write_text("nonsense")
        ensure_server_certificate(authority, tmp_path, "broker", clock, NAMES)
        server_context(path, key)

    def test_with_a_key_that_others_can_read_is_refused(
        self, authority: Authority, tmp_path: Path, clock: ManualClock
    ) -> None:
        _, key = ensure_server_certificate(authority, tmp_path, "broker", clock, NAMES)
        key.chmod(0o644)
        with pytest.raises(SetupFailed, match="readable by others"):
            ensure_server_certificate(authority, tmp_path, "broker", clock, NAMES)


class TestTls:
    @pytest.fixture
    def pair(self, authority: Authority, tmp_path: Path, clock: ManualClock) -> tuple[Path, Path]:
        return ensure_server_certificate(authority, tmp_path, "broker", clock, NAMES)

    @pytest.mark.parametrize("name", ["desk1", "desk1.example.org", "192.0.2.7", "::1"])
    def test_is_trusted_under_every_name(
        self, authority: Authority, pair: tuple[Path, Path], name: str
    ) -> None:
        client = client_context(authority.certificate_path)
        # What Python 3.13 and newer ask of certificates by default.
        client.verify_flags |= ssl.VERIFY_X509_STRICT
        assert handshake(server_context(*pair), client, name)[0] == "TLSv1.3"

    def test_is_not_trusted_under_another_name(
        self, authority: Authority, pair: tuple[Path, Path]
    ) -> None:
        client = client_context(authority.certificate_path)
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            handshake(server_context(*pair), client, "desk2")

    def test_of_a_stranger_is_not_trusted(
        self, pair: tuple[Path, Path], tmp_path: Path, clock: ManualClock
    ) -> None:
        other = ensure_authority(tmp_path / "other", clock)
        for client in (client_context(other.certificate_path), client_context(None)):
            with pytest.raises(ssl.SSLCertVerificationError):
                handshake(server_context(*pair), client, "desk1")

    def test_of_version_1_2_is_forward_secret(
        self, authority: Authority, pair: tuple[Path, Path]
    ) -> None:
        client = client_context(authority.certificate_path)
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        version, suite = handshake(server_context(*pair), client, "desk1")
        assert version == "TLSv1.2"
        assert suite.startswith("ECDHE-")
        for context in (server_context(*pair), client):
            for cipher in context.get_ciphers():
                assert cipher["name"].startswith(("ECDHE-", "TLS_")), cipher
                assert cipher["aead"], cipher
            assert context.options & ssl.OP_NO_COMPRESSION
            assert context.minimum_version == ssl.TLSVersion.TLSv1_2

    def test_verifies_always(self) -> None:
        context = client_context(None)
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert context.check_hostname

    def test_key_of_a_group_may_be_used(self, pair: tuple[Path, Path]) -> None:
        pair[1].chmod(0o640)
        server_context(*pair)
        pair[1].chmod(0o644)
        with pytest.raises(SetupFailed, match="readable by others"):
            server_context(*pair)

    def test_files_that_can_not_be_used_are_named(
        self, authority: Authority, pair: tuple[Path, Path], tmp_path: Path
    ) -> None:
        with pytest.raises(SetupFailed, match="missing"):
            server_context(tmp_path / "missing", pair[1])
        with pytest.raises(SetupFailed, match="can't be used"):
            server_context(authority.certificate_path, pair[1])
        with pytest.raises(SetupFailed, match="missing"):
            client_context(tmp_path / "missing")
        (tmp_path / "empty").write_text("")
        with pytest.raises(SetupFailed, match="empty"):
            client_context(tmp_path / "empty")

    def test_encrypted_key_is_refused_and_nobody_is_asked(self, pair: tuple[Path, Path]) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        pair[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"word"),
            )
        )
        with pytest.raises(SetupFailed, match="can't be used"):
            server_context(*pair)


class TestNames:
    def test_of_this_machine_hold_the_local_ones(self) -> None:
        names = machine_names(("fleet.example.org", "198.51.100.9"), lambda: "Desk1.example.org.")
        assert {"localhost", "fleet.example.org", "desk1.example.org"} <= names.hosts
        assert {"127.0.0.1", "::1", "198.51.100.9"} <= {str(a) for a in names.addresses}

    def test_do_not_wait_for_a_name_server_that_is_silent(self) -> None:
        answer = threading.Event()

        def resolve() -> str:
            answer.wait(30)
            return "late.example.org"

        begin = time.monotonic()
        names = machine_names(resolve=resolve)
        answer.set()
        assert time.monotonic() - begin < 10
        assert "localhost" in names.hosts
        assert "late.example.org" not in names.hosts

    def test_do_without_a_name_server_that_fails(self) -> None:
        def resolve() -> str:
            raise OSError("no name server")

        assert "localhost" in machine_names(resolve=resolve).hosts

    def test_are_sorted_out(self) -> None:
        names = names_of(
            {"Desk-1", "*.example.org", "fe80::1%eth0", "[2001:db8::1]", "", "a b", "ü"}
        )
        assert names.hosts == {"desk-1", "*.example.org"}
        assert {str(a) for a in names.addresses} == {"fe80::1", "2001:db8::1"}
