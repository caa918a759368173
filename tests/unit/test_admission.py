"""A crowd of agents at one broker's door: all get in, in good time, and at a rate it can bear."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable

import pytest

from deskfleet.broker.service.admission import (
    BURST_SECONDS,
    FARTHEST_SECONDS,
    LATE_SECONDS,
    LINKS_PER_SECOND,
    Admission,
)


class Time:
    now = 500.0

    def __call__(self) -> float:
        return self.now


def crowd(
    count: int,
    rate: float,
    *,
    delay: Callable[[], float] = lambda: 0.0,
    arrive: Callable[[], float] = lambda: 0.0,
) -> tuple[dict[str, float], Counter[str]]:
    """Let so many come; return when each was let in, and how often each was refused.

    `delay` is how much later than it was told one comes.
    """
    time, dice = Time(), random.Random(0)
    began = time.now
    admission = Admission(time, per_second=rate, uniform=dice.uniform)
    coming = [(began + arrive(), f"n{number}") for number in range(count)]
    heapq.heapify(coming)
    entered: dict[str, float] = {}
    refused: Counter[str] = Counter()
    while coming:
        time.now, who = heapq.heappop(coming)
        wait = admission.knock(who)
        if wait == 0.0:
            entered[who] = time.now - began
        else:
            refused[who] += 1
            heapq.heappush(coming, (time.now + wait + delay(), who))
        assert len(admission._turns) <= rate * (FARTHEST_SECONDS + LATE_SECONDS)
    return entered, refused


def test_a_small_fleet_is_never_refused() -> None:
    entered, refused = crowd(int(LINKS_PER_SECOND * BURST_SECONDS), LINKS_PER_SECOND)
    assert set(entered.values()) == {0.0}
    assert not refused


def test_ten_thousand_at_once_are_in_within_a_minute_and_refused_once() -> None:
    entered, refused = crowd(10_000, LINKS_PER_SECOND)
    assert len(entered) == 10_000
    assert max(entered.values()) < 60
    assert max(refused.values()) == 1


def test_nobody_starves_who_comes_later_than_told_and_among_newcomers() -> None:
    dice = random.Random(1)
    entered, refused = crowd(
        6_000,
        LINKS_PER_SECOND,
        delay=lambda: dice.uniform(0, 2),
        arrive=lambda: dice.uniform(0, 20),
    )
    assert len(entered) == 6_000
    assert max(entered.values()) < 40
    assert max(refused.values()) == 1


def test_a_crowd_beyond_a_minute_is_asked_again_and_comes_in_as_fast_as_it_can() -> None:
    entered, refused = crowd(10_000, 50.0)
    assert max(entered.values()) < 1.3 * 10_000 / 50.0
    assert max(refused.values()) <= 6


@pytest.mark.parametrize("rate", [5.0, 200.0])
def test_no_more_come_in_than_can_be_served(rate: float) -> None:
    dice = random.Random(2)
    entered, _ = crowd(2_000, rate, delay=lambda: dice.uniform(0, 0.5))
    for second in range(int(max(entered.values()))):
        within = sum(second < at <= second + 1 for at in entered.values())
        assert within <= 1.5 * rate + rate * BURST_SECONDS


def test_who_comes_too_early_keeps_its_turn() -> None:
    time = Time()
    admission = Admission(time, per_second=1.0)
    admission.knock("a")
    admission.knock("b")
    assert admission.knock("c") == pytest.approx(1.0)
    time.now += 0.4
    assert admission.knock("c") == pytest.approx(0.6)
    assert admission.knock("d") == pytest.approx(1.6)
    time.now += 0.6
    assert admission.knock("c") == 0.0


def test_a_turn_is_not_kept_for_ever() -> None:
    time = Time()
    admission = Admission(time, per_second=1.0)
    for who in "abc":
        admission.knock(who)
    time.now += 1.0 + LATE_SECONDS
    assert admission.knock("d") == 0.0
    assert not admission._turns


def test_a_rest_is_not_saved_up() -> None:
    time = Time()
    admission = Admission(time, per_second=10.0)
    time.now += 3600
    waits = [admission.knock(str(number)) for number in range(30)]
    assert waits[:11] == [0.0] * 11
    assert waits[11:] == pytest.approx([0.1 * n for n in range(1, 20)])
