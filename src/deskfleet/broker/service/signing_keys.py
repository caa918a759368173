"""The keys that sign a fleet's tokens: made, renewed, and dropped when nothing they signed lives.

Laws: the newest key signs, all keys in the store verify. A renewed key is used at once; the older
ones stay until the longest token life after it has passed. "Newest" never goes back, whatever the
clock of the machine where a key is made says. Private keys are in the store only sealed.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from deskfleet.broker.service.replica import Replica
from deskfleet.core.change import ABSENT, ChangeSet, Put
from deskfleet.core.fleet import Fleet
from deskfleet.core.records import SigningKey
from deskfleet.core.session import replace
from deskfleet.errors import InvalidToken
from deskfleet.ports import Clock, Ids, Signer

KEY_BITS = 2048
MARGIN = timedelta(minutes=10)
"""For the clocks of several brokers, and for who signs on before the news of a new key arrives."""


class SigningKeys:
    def __init__(self, replica: Replica, clock: Clock, ids: Ids, signer: Signer) -> None:
        self._replica = replica
        self._clock = clock
        self._ids = ids
        self._signer = signer
        self._private: dict[str, rsa.RSAPrivateKey] = {}
        self._public: dict[str, rsa.RSAPublicKey] = {}

    async def ensure(self) -> None:
        """Make the fleet's first key; of two brokers that start at once, one does."""
        if self.newest() is None:
            # Made outside of the decision: it takes a good part of a second.
            first = fresh_key("first", self._signer, self._clock.now())
            await self._replica.decide(
                lambda: (None, () if self.newest() else (Put(first, ABSENT),))
            )

    async def renew(self) -> None:
        """Make a new key, which signs from now on; what the older ones signed stays valid."""
        made = fresh_key(self._ids.uuid(), self._signer, self._clock.now())

        def decision() -> tuple[None, ChangeSet]:
            newest = self.newest()
            if newest is None or newest.created_at < made.created_at:
                return None, (Put(made, ABSENT),)
            later = newest.created_at + timedelta(microseconds=1)
            return None, (Put(replace(made, created_at=later), ABSENT),)

        await self._replica.decide(decision)

    def newest(self) -> SigningKey | None:
        return max(self._replica.fleet.each(SigningKey), key=_age, default=None)

    def private(self, key: SigningKey) -> rsa.RSAPrivateKey:
        private = self._private.get(key.id)
        if private is None:
            loaded = serialization.load_pem_private_key(self._signer.unseal(key.sealed), None)
            assert isinstance(loaded, rsa.RSAPrivateKey)
            private = self._private[key.id] = loaded
        return private

    def public(self, key_id: str | None) -> rsa.RSAPublicKey:
        """Return the key of this id. Raises `InvalidToken` where the fleet has none."""
        key = None if key_id is None else self._replica.fleet.get(SigningKey, key_id)
        if key is None:
            raise InvalidToken("the token is not valid")
        public = self._public.get(key.id)
        if public is None:
            loaded = serialization.load_pem_public_key(key.public_pem.encode())
            assert isinstance(loaded, rsa.RSAPublicKey)
            public = self._public[key.id] = loaded
        return public


def fresh_key(key_id: str, signer: Signer, now: datetime) -> SigningKey:
    private = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
    pem = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return SigningKey(
        id=key_id, public_pem=public.decode(), sealed=signer.seal(pem), created_at=now
    )


def outlived(fleet: Fleet, now: datetime, token_life: timedelta) -> list[SigningKey]:
    """Return the keys that were superseded so long ago that no token of theirs is valid."""
    keys = sorted(fleet.each(SigningKey), key=_age)
    return [key for key, newer in pairwise(keys) if now > newer.created_at + token_life + MARGIN]


def _age(key: SigningKey) -> tuple[Any, str]:
    return key.created_at, key.id
