"""How often, and from where, a connection token may be used."""

from __future__ import annotations

import pytest

from deskfleet.core.records import TokenUse
from deskfleet.core.token_uses import BOUND, MAX_ADDRESS, USED, client_address, is_address, use
from support.builders import NOON


def a_use(address: str | None = None) -> TokenUse:
    return TokenUse(id="jti", expires_at=NOON, client_address=address)


HERE, THERE, NOWHERE = a_use("10.0.0.9"), a_use("10.0.0.10"), a_use()


@pytest.mark.parametrize(
    ("known", "asked", "many", "single"),
    [
        (None, HERE, HERE, HERE),
        # Nothing is known to bind to; but a use it is.
        (None, NOWHERE, None, NOWHERE),
        (HERE, HERE, None, USED),
        (HERE, THERE, BOUND, USED),
        (HERE, NOWHERE, BOUND, USED),
        # Brokers whose settings were changed meanwhile.
        (NOWHERE, HERE, HERE, USED),
        (NOWHERE, NOWHERE, None, USED),
    ],
)
def test_what_becomes_of_a_use(
    known: TokenUse | None, asked: TokenUse, many: object, single: object
) -> None:
    assert use(known, asked, single_use=False) == many
    assert use(known, asked, single_use=True) == single


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.9", "10.0.0.9"),
        (" 10.0.0.9 ", "10.0.0.9"),
        ("10.0.0.9:53412", "10.0.0.9"),
        ("::ffff:10.0.0.9", "10.0.0.9"),
        ("[::ffff:10.0.0.9]:53412", "10.0.0.9"),
        ("2001:DB8::0:1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("", None),
        ("  ", None),
        ("Desk.Example", "desk.example"),
        ("unix:", "unix:"),
        ("x" * 1000, "x" * MAX_ADDRESS),
    ],
)
def test_an_address_has_one_spelling(text: str, address: str | None) -> None:
    assert client_address(text) == address


def test_what_is_an_address() -> None:
    assert all(map(is_address, ["10.0.0.9", "::1", "[::1]:80", "10.0.0.9:1"]))
    assert not any(map(is_address, ["", "desk", "10.0.0", "10.0.0.9.1", "<script>", ":::"]))
