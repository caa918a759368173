"""The real clock, ids, keys and ports."""

from __future__ import annotations

import contextlib
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from deskfleet.errors import SetupFailed
from deskfleet.listener import bind, port_of
from deskfleet.system import (
    KeyFileSigner,
    SystemClock,
    SystemIds,
    open_key_file,
    sync_folder,
    write_private,
)


def test_the_clock_is_aware_and_grows() -> None:
    clock = SystemClock()
    assert clock.now().utcoffset() == timedelta(0)
    assert clock.monotonic() <= clock.monotonic()


def test_ids_do_not_repeat() -> None:
    ids = SystemIds()
    uuids = {ids.uuid() for _ in range(100)}
    assert len(uuids) == 100
    assert all(str(UUID(one)) == one for one in uuids)
    secrets = {ids.secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(len(one) >= 43 for one in secrets)


class TestSigner:
    def test_what_is_sealed_comes_back_and_never_looks_the_same(self) -> None:
        signer = KeyFileSigner(b"k" * 32)
        sealed = [signer.seal(b"private"), signer.seal(b"private")]
        assert sealed[0] != sealed[1]
        assert b"private" not in sealed[0]
        assert [signer.unseal(one) for one in sealed] == [b"private", b"private"]

    def test_another_key_opens_nothing_and_hashes_otherwise(self) -> None:
        signer, other = KeyFileSigner(b"k" * 32), KeyFileSigner(b"l" * 32)
        assert signer.hash("secret") == signer.hash("secret") != other.hash("secret")
        with pytest.raises(SetupFailed, match=r"another store\.key"):
            other.unseal(signer.seal(b"private"))

    @pytest.mark.parametrize("place", [0, 12, -1])
    def test_what_was_tampered_with_does_not_open(self, place: int) -> None:
        signer = KeyFileSigner(b"k" * 32)
        sealed = bytearray(signer.seal(b"private"))
        sealed[place] ^= 1
        with pytest.raises(SetupFailed):
            signer.unseal(bytes(sealed))

    def test_hashing_and_sealing_use_two_keys(self) -> None:
        signer = KeyFileSigner(b"k" * 32)
        with pytest.raises(SetupFailed):
            signer.unseal(signer.hash("x") + signer.hash("y"))


class TestKeyFile:
    def test_it_is_made_once_and_for_its_owner_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "keys" / "store.key"
        sealed = open_key_file(path).seal(b"x")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert list(path.parent.iterdir()) == [path]
        assert open_key_file(path).unseal(sealed) == b"x"

    def test_two_first_uses_agree(self, tmp_path: Path) -> None:
        path = tmp_path / "store.key"
        with ThreadPoolExecutor(8) as pool:
            signers = list(pool.map(lambda _: open_key_file(path), range(8)))
        assert len({signer.hash("x") for signer in signers}) == 1
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
    def test_what_others_can_read_is_no_secret(self, tmp_path: Path, mode: int) -> None:
        path = tmp_path / "store.key"
        open_key_file(path)
        path.chmod(mode)
        with pytest.raises(SetupFailed, match="readable by others"):
            open_key_file(path)

    @pytest.mark.parametrize("content", [b"", b"short", b"x" * 33])
    def test_a_file_of_another_size_is_no_key(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "store.key"
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(SetupFailed, match="32-byte key"):
            open_key_file(path)


def test_a_private_file_is_written_through_no_link(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_text("kept")
    (tmp_path / "file.new").symlink_to(victim)
    write_private(path, b"first")
    (tmp_path / "file.new").write_text("the draft of a program that was killed")
    write_private(path, b"second")
    assert (path.read_text(), victim.read_text()) == ("second", "kept")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {one.name for one in tmp_path.iterdir()} == {"victim", "file"}


def test_only_a_folder_can_be_synced(tmp_path: Path) -> None:
    sync_folder(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        sync_folder(tmp_path / "file")


class TestBinding:
    """A port that can't be had is found out first, and said in one sentence."""

    def test_a_free_one(self) -> None:
        with contextlib.closing(bind("127.0.0.1", 0, "tests")) as bound:
            assert port_of(bound) > 0
            assert not bound.getblocking()

    def test_one_that_is_taken(self) -> None:
        with contextlib.closing(bind("127.0.0.1", 0, "tests")) as bound:
            with pytest.raises(SetupFailed) as caught:
                bind("127.0.0.1", port_of(bound), "others")
            assert f"port {port_of(bound)} for others is taken" in caught.value.message

    @pytest.mark.parametrize(
        ("host", "port"), [("127.0.0.1", 70_000), ("127.0.0.1", -1), ("192.0.2.1", 0)]
    )
    def test_one_that_is_none(self, host: str, port: int) -> None:
        with pytest.raises(SetupFailed, match=f"port {port} for tests") as caught:
            bind(host, port, "tests")
        assert len(caught.value.message.splitlines()) == 1
