"""What a server can take, and the reason where it can't."""

from __future__ import annotations

import pytest

from deskfleet.core.records import Facts, Type
from deskfleet.core.server import (
    MOST_TOLD_BYTES,
    NO_SEATS,
    Seats,
    Unavailability,
    is_full,
    no_seat_for,
    unavailability,
)
from support.builders import a_server, a_session, some_facts

BOTH = (Type.VIRTUAL, Type.CONSOLE)


def seats(*owners: str, console: bool = False) -> Seats:
    """Return the seats of virtual sessions of these owners, and perhaps a console session."""
    taken = Seats()
    for number, owner in enumerate(owners):
        taken.add(a_session(f"v{number}", owner=owner))
    if console:
        taken.add(a_session("c", type=Type.CONSOLE))
    return taken


class TestSeats:
    def test_what_is_counted_out_again_leaves_nothing(self) -> None:
        taken = seats("alice", "bob", "alice", console=True)
        assert (taken.console, taken.virtual, taken.taken) == (1, 3, 4)
        assert taken.owners == {"alice": 2, "bob": 1}
        for owner in ("alice", "bob", "alice"):
            taken.add(a_session(owner=owner), -1)
        taken.add(a_session(type=Type.CONSOLE), -1)
        assert taken == NO_SEATS

    def test_a_copy_is_apart(self) -> None:
        taken = seats("alice")
        copy = taken.copy()
        copy.add(a_session(owner="alice"))
        assert taken.owners == {"alice": 1}

    def test_a_console_session_is_nobodys_virtual_seat(self) -> None:
        assert seats(console=True).owners == {}


@pytest.mark.parametrize(
    ("facts", "taken", "full"),
    [
        (some_facts(), seats(), False),
        (some_facts(max_virtual_sessions=0), seats(), True),
        (some_facts(max_virtual_sessions=2), seats("a"), False),
        (some_facts(max_virtual_sessions=2), seats("a", "b"), True),
        (some_facts(max_virtual_sessions=2), seats("a", "b", "c"), True),
        (some_facts(), seats(*"abcdefgh"), False),
        (some_facts(), seats(console=True), True),
        (some_facts(types=BOTH, max_virtual_sessions=0), seats(), False),
        (some_facts(types=BOTH, max_virtual_sessions=1), seats("a"), True),
        (some_facts(types=(Type.CONSOLE,)), seats(), False),
        (some_facts(types=(Type.CONSOLE,)), seats("a"), True),
        (some_facts(types=()), seats(), True),
        # The limit of one owner fills nobody else's seats.
        (some_facts(max_sessions_per_user=1), seats("a"), False),
    ],
)
def test_full_means_that_nobody_fits(facts: Facts, taken: Seats, *, full: bool) -> None:
    assert is_full(facts, taken) is full


def test_a_server_is_full_of_whose_sessions_no_more_can_be_told() -> None:
    taken = seats("a")
    taken.told_bytes = MOST_TOLD_BYTES - 1
    assert not is_full(some_facts(), taken)
    taken.add(a_session(owner="b"))
    assert is_full(some_facts(types=BOTH), taken)
    assert unavailability(a_server(), some_facts(), taken, reachable=True) == "SERVER_FULL"


class TestUnavailability:
    def test_the_first_reason_wins(self) -> None:
        facts = some_facts(
            unhealthy="no X", foreign_user="eve", max_virtual_sessions=0, types=(Type.VIRTUAL,)
        )
        closed, opened = a_server(open=False), a_server()
        well = some_facts(foreign_user="eve", max_virtual_sessions=0)
        full = some_facts(max_virtual_sessions=0)
        assert [
            unavailability(closed, facts, NO_SEATS, reachable=False),
            unavailability(closed, facts, NO_SEATS, reachable=True),
            unavailability(opened, None, NO_SEATS, reachable=True),
            unavailability(opened, facts, NO_SEATS, reachable=True),
            unavailability(opened, well, NO_SEATS, reachable=True),
            unavailability(opened, full, NO_SEATS, reachable=True),
            unavailability(opened, some_facts(), NO_SEATS, reachable=True),
        ] == [
            Unavailability.UNREACHABLE_AGENT,
            Unavailability.SERVER_CLOSED,
            Unavailability.UNKNOWN,
            Unavailability.UNHEALTHY_DCV_SERVER,
            Unavailability.EXISTING_LOGGED_IN_USER,
            Unavailability.SERVER_FULL,
            None,
        ]


@pytest.mark.parametrize(
    ("facts", "taken", "type", "reason"),
    [
        (some_facts(), seats(), Type.CONSOLE, "can't run console sessions"),
        (some_facts(types=(Type.CONSOLE,)), seats(), Type.VIRTUAL, "can't run virtual sessions"),
        (some_facts(types=BOTH), seats(), Type.CONSOLE, None),
        (some_facts(types=BOTH), seats("bob"), Type.CONSOLE, "are full"),
        (some_facts(types=BOTH), seats(console=True), Type.CONSOLE, "are full"),
        (some_facts(types=BOTH), seats(console=True), Type.VIRTUAL, "are full"),
        (some_facts(max_virtual_sessions=1), seats("bob"), Type.VIRTUAL, "are full"),
        (some_facts(max_virtual_sessions=2), seats("bob"), Type.VIRTUAL, None),
        (some_facts(max_sessions_per_user=1), seats("bob"), Type.VIRTUAL, None),
        (
            some_facts(max_sessions_per_user=1),
            seats("alice"),
            Type.VIRTUAL,
            "have no seat left for this owner",
        ),
    ],
)
def test_why_there_is_no_seat(facts: Facts, taken: Seats, type: Type, reason: str | None) -> None:
    assert no_seat_for(facts, taken, type, "alice") == reason
