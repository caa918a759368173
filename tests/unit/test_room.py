"""Room: never more is taken than there is, of the whole as of a part, and all is given back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskfleet.broker.service.room import Room
from deskfleet.errors import TooLarge


def test_what_does_not_fit_takes_nothing_and_says_why() -> None:
    whole = Room(10, "all is full")
    part = Room(6, "this is full", within=whole)
    part.take(6)
    assert not part.was_short
    with pytest.raises(TooLarge, match="this is full"):
        part.take(1)
    assert (part.was_short, whole.was_short) == (True, False)
    with Room(6, "another", within=whole) as other:
        other.take(4)
        with pytest.raises(TooLarge, match="all is full"):
            other.take(1)
        # That is none of its own doing: there may be room in a moment.
        assert not other.was_short
        assert (other.taken, whole.taken) == (4, 10)
    assert (other.taken, whole.taken) == (0, 6)
    part.leave()
    part.leave()
    assert (part.taken, whole.taken) == (0, 0)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9) | st.none())))
def test_the_whole_has_what_its_parts_have(steps: list[tuple[int, int | None]]) -> None:
    whole = Room(20, "whole")
    middle = Room(15, "middle", within=whole)
    rooms = [Room(12, "a", within=middle), Room(12, "b", within=middle), Room(12, "c", whole)]
    for which, count in steps:
        room, before = rooms[which], whole.taken
        if count is None:
            room.leave()
        else:
            try:
                room.take(count)
            except TooLarge:
                assert whole.taken == before
        assert middle.taken == rooms[0].taken + rooms[1].taken <= 15
        assert whole.taken == middle.taken + rooms[2].taken <= 20
        assert all(0 <= one.taken <= 12 for one in rooms)
