"""How seats at a door are counted."""

from __future__ import annotations

import pytest

from deskfleet.gate import SEAT, Gate, Seat, vouch


def taken(gate: Gate, address: str, count: int) -> list[Seat]:
    """Take seats until there is none for this address; fail where there are not so many."""
    seats = []
    while (seat := gate.enter(address)) is not None:
        seats.append(seat)
    assert len(seats) == count
    return seats


def test_strangers_are_counted_by_their_address() -> None:
    gate = Gate(most=100, most_strangers=3)
    seats = taken(gate, "192.0.2.1", 3)
    taken(gate, "192.0.2.2", 3)
    seats[0].vouch()
    seats[0].vouch()
    taken(gate, "192.0.2.1", 1)
    seats[1].leave()
    seats[1].leave()
    taken(gate, "192.0.2.1", 1)
    assert gate.taken == 7


@pytest.mark.parametrize(
    ("one", "other"),
    [("2001:db8::1", "2001:db8:0:0:ffff::2"), ("192.0.2.1", "::ffff:192.0.2.1"), ("?", "?")],
)
def test_one_host_has_one_address(one: str, other: str) -> None:
    gate = Gate(most=100, most_strangers=2)
    assert gate.enter(one)
    assert gate.enter(other)
    assert gate.enter(one) is None
    assert gate.enter("2001:db8:0:1::1")


def test_one_address_never_fills_a_door() -> None:
    gate = Gate(most=10)
    taken(gate, "192.0.2.1", 5)
    for seat in taken(gate, "192.0.2.2", 5):
        seat.vouch()
    assert gate.enter("192.0.2.3") is None


def test_nothing_is_kept_of_who_has_left() -> None:
    gate = Gate()
    for number in range(100):
        seat = gate.enter(f"192.0.2.{number}")
        assert seat is not None
        seat.leave()
        seat.vouch()
    assert (gate.taken, len(gate.strangers)) == (0, 0)


def test_an_application_vouches_for_a_request() -> None:
    gate = Gate(most=10, most_strangers=1)
    seat = gate.enter("192.0.2.1")
    vouch({"state": {SEAT: seat}})
    assert gate.enter("192.0.2.1")
    # Where no listener is around it, there are no seats.
    vouch({"state": {}})
    vouch({})
