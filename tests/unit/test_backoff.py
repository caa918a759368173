"""How long agents wait: within seconds of a broker that comes back, and not all of them at once."""

from __future__ import annotations

import pytest

from deskfleet.agent.backoff import HEALTHY_SECONDS, LONGEST_SECONDS, Backoff, Trouble


def longest(low: float, high: float) -> float:
    assert low == 0, "the jitter is full"
    return high


def waits(trouble: Trouble, seconds: float) -> list[float]:
    """Return the waits of an agent without luck, until it has been without a link for so long."""
    backoff, now, found = Backoff(0.0, longest), 0.0, []
    while now < seconds:
        found.append(backoff.wait(trouble, now))
        now += found[-1]
    return found


def test_a_busy_broker_is_asked_once_a_minute_in_the_end() -> None:
    assert waits(Trouble.BUSY, 300)[:10] == [0.25, 0.5, 1, 2, 4, 8, 16, 32, 60, 60]


def test_one_that_restarts_is_found_again_within_seconds() -> None:
    assert max(waits(Trouble.ABSENT, 30)) == 3.0


@pytest.mark.parametrize("hours", [0.05, 0.1, 1, 24])
def test_one_that_was_away_for_long_is_found_within_a_tenth_of_that(hours: float) -> None:
    last = waits(Trouble.ABSENT, 3600 * hours)[-1]
    assert last <= max(3.0, 0.1 * 3600 * hours)
    assert last <= LONGEST_SECONDS
    assert last > 10


def test_a_link_that_flaps_keeps_it_at_seconds() -> None:
    backoff, now = Backoff(0.0, longest), 0.0
    for _ in range(1000):
        backoff.linked(now, now + 1)
        wait = backoff.wait(Trouble.ABSENT, now + 1)
        assert wait <= 3.0
        now += 1 + wait


def test_a_healthy_link_ends_all_caution() -> None:
    backoff = Backoff(0.0, longest)
    for _ in range(10):
        backoff.wait(Trouble.BUSY, 0.0)
    backoff.linked(0.0, HEALTHY_SECONDS / 2)
    assert backoff.wait(Trouble.BUSY, 60.0) == LONGEST_SECONDS
    backoff.linked(60.0, 61 + HEALTHY_SECONDS)
    assert backoff.wait(Trouble.ABSENT, 200.0) == 0.25


def test_ten_thousand_do_not_come_in_one_second() -> None:
    came: dict[int, int] = {}
    for _ in range(10_000):
        backoff, now = Backoff(0.0), 0.0
        while now < 60:
            now += backoff.wait(Trouble.BUSY, now)
            came[int(now)] = came.get(int(now), 0) + 1
    later = [count for second, count in came.items() if 10 <= second < 60]
    assert max(later) < 2500
