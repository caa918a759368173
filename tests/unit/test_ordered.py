"""An ordered index says what a sorted list would say, however it was changed in between."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deskfleet.core.ordered import Ordered

numbers = st.integers(0, 200)


@given(
    first=st.sets(numbers, max_size=150),
    rounds=st.lists(st.lists(numbers, max_size=12), max_size=6),
)
def test_it_is_sorted_whenever_somebody_looks(first: set[int], rounds: list[list[int]]) -> None:
    index: Ordered[int] = Ordered()
    kept: set[int] = set()
    for changes in [sorted(first, key=lambda number: number * 7 % 31), *rounds]:
        for number in changes:
            if number in kept:
                index.remove(number)
                kept.remove(number)
            else:
                index.add(number)
                kept.add(number)
            assert len(index) == len(kept)
        assert index.values() == sorted(kept)


def test_looking_again_costs_nothing() -> None:
    index: Ordered[int] = Ordered()
    index.add(1)
    assert index.values() is index.values()
