"""Which keys of a key set may verify tokens, and by which one algorithm."""

from __future__ import annotations

from typing import Any

import pytest

from deskfleet.broker.service.jwks import ALGORITHMS, pick, read_keys
from deskfleet.errors import Invalid
from support.auth_server import jwk, key_set, private_key

RSA = private_key("RSA-2048")


def algorithms(*keys: dict[str, Any], algorithm: str | None = None) -> dict[str, str]:
    return {kid: one.algorithm for kid, one in read_keys(key_set(*keys), algorithm).items()}


@pytest.mark.parametrize(
    ("kind", "usual"),
    [("RSA-2048", "RS256"), ("P-256", "ES256"), ("P-384", "ES384"), ("Ed25519", "EdDSA")],
)
def test_each_kind_has_its_usual_algorithm(kind: str, usual: str) -> None:
    assert algorithms(jwk(private_key(kind), "k")) == {"k": usual}


@pytest.mark.parametrize("kind", ["RSA-1024", "P-521"])
def test_keys_that_are_weak_or_odd_are_passed_over(kind: str) -> None:
    assert algorithms(jwk(private_key(kind), "bad"), jwk(RSA, "good")) == {"good": "RS256"}


def test_a_huge_key_is_passed_over() -> None:
    huge = {**jwk(RSA, "k"), "n": "_" * 2800}
    assert algorithms(huge) == {}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_pinned_algorithm_leaves_only_the_keys_that_fit(algorithm: str) -> None:
    kinds = {"RSA-2048": "RP", "P-256": "ES256", "P-384": "ES384", "Ed25519": "EdDSA"}
    found = algorithms(*(jwk(private_key(kind), kind) for kind in kinds), algorithm=algorithm)
    fitting = [kind for kind, those in kinds.items() if algorithm == those]
    assert found == dict.fromkeys(fitting or ["RSA-2048"], algorithm)


@pytest.mark.parametrize(
    ("more", "pinned", "expected"),
    [
        ({"alg": "RS512"}, None, "RS512"),
        ({"alg": "PS256"}, None, "PS256"),
        ({"alg": "RS512"}, "RS512", "RS512"),
        ({"alg": "RS512"}, "RS256", None),
        ({"alg": "HS256"}, None, None),
        ({"alg": "none"}, None, None),
        ({"alg": "ES256"}, None, None),
        ({"alg": "RSA-OAEP"}, None, None),
        ({"use": "sig"}, None, "RS256"),
        ({"use": "enc"}, None, None),
        ({"key_ops": ["verify"]}, None, "RS256"),
        ({"key_ops": ["encrypt"]}, None, None),
        ({"kty": "oct", "k": "AAAA"}, None, None),
        ({"kty": "EC"}, None, None),
        ({"n": ""}, None, None),
        ({"n": "!"}, None, None),
        ({"e": "AA"}, None, None),
        ({"kid": 5}, None, None),
        ({"x5c": ["ignored"]}, None, "RS256"),
    ],
)
def test_what_a_key_says_of_itself(
    more: dict[str, Any], pinned: str | None, expected: str | None
) -> None:
    told = algorithms({**jwk(RSA, "k"), **more}, jwk(RSA, "good"), algorithm=pinned)
    assert told.get("k") == expected
    assert "good" in told


def test_a_private_key_that_leaked_into_the_set_is_read_as_its_public_half() -> None:
    assert algorithms({**jwk(RSA, "k"), "d": "AQAB", "p": "AQAB", "q": "AQAB"}) == {"k": "RS256"}


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"keys":{}}', b"\xff", b"[" * 100_000])
def test_what_is_no_key_set(body: bytes) -> None:
    with pytest.raises(Invalid, match="no JSON Web Key Set"):
        read_keys(body, None)


def test_the_first_of_two_keys_of_one_name_counts() -> None:
    first, second = private_key("RSA-2048"), private_key("P-256")
    [key] = read_keys(key_set(jwk(first, "k"), jwk(second, "k")), None).values()
    assert key.key == first.public_key()


def test_a_token_without_a_name_means_the_only_key() -> None:
    one = read_keys(key_set(jwk(RSA, None)), None)
    two = read_keys(key_set(jwk(RSA, None), jwk(private_key("P-256"), None)), None)
    assert pick(one, None) is not None
    assert pick(two, None) is None
    assert pick(one, "other") is None
    assert len(two) == 2
