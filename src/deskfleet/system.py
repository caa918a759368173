"""The real clock, the real randomness, and the keys that stay out of the store.

The keys are derived from one secret file (`keys/store.key`, mode 0600) that all brokers of a
fleet share; the store alone is worth nothing to a thief.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from deskfleet.errors import SetupFailed
from deskfleet.machine import here


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()


class SystemIds:
    def uuid(self) -> str:
        # As uuid.uuid4 does it, in a third of the time: each answer carries one.
        digits = os.urandom(16).hex()
        variant = "89ab"[int(digits[16], 16) & 3]
        first, second, third = digits[:8], digits[8:12], digits[13:16]
        return f"{first}-{second}-4{third}-{variant}{digits[17:20]}-{digits[20:]}"

    def secret(self) -> str:
        return secrets.token_urlsafe(32)


class KeyFileSigner:
    """Hashes secrets and seals keys under the 32 bytes of one file."""

    _NONCE_BYTES = 12

    def __init__(self, key: bytes) -> None:
        self._pepper = hashlib.blake2b(key, person=b"deskfleet-pepper").digest()
        self._seal = AESGCM(hashlib.blake2b(key, digest_size=32, person=b"deskfleet-seal").digest())

    def hash(self, secret: str) -> bytes:
        return hmac.digest(self._pepper, secret.encode(), "sha256")

    def seal(self, plain: bytes) -> bytes:
        nonce = os.urandom(self._NONCE_BYTES)
        return nonce + self._seal.encrypt(nonce, plain, None)

    def unseal(self, sealed: bytes) -> bytes:
        nonce, box = sealed[: self._NONCE_BYTES], sealed[self._NONCE_BYTES :]
        try:
            return self._seal.decrypt(nonce, box, None)
        except InvalidTag as error:
            raise SetupFailed(
                "the store was written with another store.key than the one found here"
            ) from error


def open_key_file(path: Path) -> KeyFileSigner:
    """Read the key file, or make it on first use. Two first uses at once agree on one key."""
    if not path.exists():
        _create_key_file(path)
    mode = here.exposure(path.stat(), 0o077)
    if mode is not None:
        raise SetupFailed(f"{path} is readable by others (mode {mode}); make it 0600")
    key = path.read_bytes()
    if len(key) != 32:
        raise SetupFailed(f"{path} does not hold a 32-byte key")
    return KeyFileSigner(key)


def _create_key_file(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    mine = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_EXCL | here.BINARY, 0o600)
    try:
        os.write(descriptor, secrets.token_bytes(32))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    try:
        os.link(mine, path)
    except FileExistsError:
        pass
    finally:
        mine.unlink()
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring to the disk which files a folder holds: a rename alone may be lost with the power."""
    here.sync_folder(folder)


def write_private(path: Path, content: bytes) -> None:
    """Replace a file that nobody else may read; afterwards it is on the disk, whole."""
    fresh = path.with_name(f"{path.name}.new")
    # What is there is a draft that was cut short, or somebody's link to a file to be overwritten.
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | here.BINARY, 0o600)
    try:
        # All of it or an error: on a disk that is almost full, a single write may write a part.
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        here.replace(fresh, path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
