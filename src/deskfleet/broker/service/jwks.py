"""Reads a JSON Web Key Set (RFC 7517): which public keys of it may verify tokens, and how.

Laws: each key verifies by exactly one algorithm, which is the registration's, the set's own or the
usual one of its kind, in this order, and fits its kind; a token has no say. Keys that are small,
odd, secret or not for signatures are passed over, one by one: a set with one bad key stays of use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from deskfleet.errors import Invalid

PublicKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey

RSA_BITS = range(2048, 8192 + 1)
"""Smaller ones are weak; larger ones would take milliseconds to verify."""

RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
CURVES = {"secp256r1": "ES256", "secp384r1": "ES384"}
EDWARDS = "EdDSA"
ALGORITHMS = (*RSA_ALGORITHMS, *CURVES.values(), EDWARDS)


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    algorithm: str
    key: PublicKey


Keys: TypeAlias = Mapping[str, VerifyingKey]
"""By their `kid`; keys without one have names that no token gives by chance."""


class Jwk(msgspec.Struct, omit_defaults=True):
    """The public members of a key: others are not even read."""

    kty: str
    kid: str | None = None
    use: str | None = None
    key_ops: list[str] | None = None
    alg: str | None = None
    n: str = ""
    e: str = ""
    crv: str = ""
    x: str = ""
    y: str = ""


class KeySet(msgspec.Struct):
    keys: list[msgspec.Raw]


def read_keys(body: bytes, algorithm: str | None) -> Keys:
    """Return the keys that are of use for tokens. Raises `Invalid` for what is no key set."""
    try:
        found = msgspec.json.decode(body, type=KeySet)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid("what is there is no JSON Web Key Set") from error
    keys: dict[str, VerifyingKey] = {}
    for place, raw in enumerate(found.keys):
        try:
            told = msgspec.json.decode(raw, type=Jwk)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        usable = _usable(told, algorithm)
        if usable is not None:
            keys.setdefault(f"#{place}" if told.kid is None else told.kid, usable)
    return keys


def pick(keys: Keys, kid: str | None) -> VerifyingKey | None:
    """Return the key that a token names; a token that names none means the only one."""
    if kid is None:
        return next(iter(keys.values())) if len(keys) == 1 else None
    return keys.get(kid)


def _usable(told: Jwk, algorithm: str | None) -> VerifyingKey | None:
    if told.use not in {None, "sig"} or "verify" not in (told.key_ops or ["verify"]):
        return None
    if algorithm is not None and told.alg not in {None, algorithm}:
        return None
    key = _public_key(told)
    if key is None:
        return None
    allowed = _algorithms(key)
    chosen = algorithm or told.alg or next(iter(allowed), None)
    return VerifyingKey(chosen, key) if chosen in allowed and chosen is not None else None


def _public_key(told: Jwk) -> PublicKey | None:
    members = {name: value for name, value in msgspec.to_builtins(told).items() if value}
    try:
        if told.kty == "RSA":
            key: object = RSAAlgorithm.from_jwk(members)
        elif told.kty == "EC":
            key = ECAlgorithm.from_jwk(members)
        elif told.kty == "OKP":
            key = OKPAlgorithm.from_jwk(members)
        else:
            return None
    except (jwt.PyJWTError, ValueError, KeyError):
        return None
    return key if isinstance(key, PublicKey) else None


def _algorithms(key: PublicKey) -> tuple[str, ...]:
    """Return the algorithms that fit a key, the usual one first."""
    if isinstance(key, rsa.RSAPublicKey):
        return RSA_ALGORITHMS if key.key_size in RSA_BITS else ()
    if isinstance(key, ec.EllipticCurvePublicKey):
        return (CURVES[key.curve.name],) if key.curve.name in CURVES else ()
    return (EDWARDS,)
