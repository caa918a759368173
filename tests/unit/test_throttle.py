"""Token buckets: what they let through, what they forget, and whose bucket counts a request."""

from __future__ import annotations

import random
from typing import Any

import pytest

from deskfleet.broker.web.throttle import Buckets, Limits, Pace, Throttle, too_many
from support.builders import FakeClock


class TestPace:
    def test_a_burst_is_free_and_then_so_many_a_second_are_read(self) -> None:
        clock = FakeClock()
        pace = Pace(clock.monotonic)
        began = clock.monotonic()
        for number in range(1_000):
            wait = pace.take(100)
            assert wait == pytest.approx(0.02 if number >= 200 else 0.0)
            clock.advance(wait)
        assert clock.monotonic() - began == pytest.approx(800 / 50)
        clock.advance(60)
        assert [pace.take(100) for _ in range(200)] == [0.0] * 200

    def test_a_long_message_counts_for_several(self) -> None:
        clock = FakeClock()
        pace = Pace(clock.monotonic)
        waits = [pace.take(4 * 1024 * 1024) for _ in range(4)]
        assert waits == pytest.approx([0.0, 0.0, 0.0, (4 * 65 - 200) / 50])


def let_through(buckets: Buckets[str], key: str, tries: int) -> int:
    return sum(buckets.take(key) == 0.0 for _ in range(tries))


class TestBuckets:
    def test_a_burst_then_the_rate(self) -> None:
        clock = FakeClock()
        buckets: Buckets[str] = Buckets(1000, 1.0, clock.monotonic)
        assert let_through(buckets, "a", 1500) == 1000
        clock.advance(0.1)
        assert let_through(buckets, "a", 1500) == 100
        clock.advance(60)
        assert let_through(buckets, "a", 1500) == 1000

    def test_one_caller_costs_no_other(self) -> None:
        buckets: Buckets[str] = Buckets(3, 1.0, FakeClock().monotonic)
        assert let_through(buckets, "a", 10) == 3
        assert let_through(buckets, "b", 10) == 3

    def test_the_wait_that_is_told_is_enough_and_no_more(self) -> None:
        clock = FakeClock()
        buckets: Buckets[str] = Buckets(5, 60.0, clock.monotonic)
        assert let_through(buckets, "a", 5) == 5
        wait = buckets.take("a")
        assert wait == pytest.approx(12.0)
        assert buckets.wait("a") == pytest.approx(wait)
        clock.advance(wait - 0.01)
        assert buckets.take("a") > 0
        clock.advance(0.02)
        assert buckets.wait("a") == 0.0
        assert buckets.take("a") == 0.0

    def test_what_is_refused_is_not_counted(self) -> None:
        clock = FakeClock()
        buckets: Buckets[str] = Buckets(10, 1.0, clock.monotonic)
        assert let_through(buckets, "a", 10_000) == 10
        clock.advance(0.1)
        assert let_through(buckets, "a", 10) == 1

    def test_never_more_than_the_rate_over_a_long_time(self) -> None:
        chance, clock = random.Random(7), FakeClock()
        buckets: Buckets[str] = Buckets(50, 1.0, clock.monotonic)
        passed, started = 0, clock.monotonic()
        for _ in range(20_000):
            clock.advance(chance.expovariate(400))
            passed += buckets.take("a") == 0.0
        spent = clock.monotonic() - started
        assert 50 * spent * 0.99 <= passed <= 50 * spent + 50

    def test_a_generation_that_is_dropped_had_no_effect_any_more(self) -> None:
        chance, clock = random.Random(3), FakeClock()
        few: Buckets[str] = Buckets(4, 1.0, clock.monotonic)
        alone = {key: Buckets[str](4, 1.0, clock.monotonic) for key in "abcdef"}
        for number in range(5000):
            clock.advance(chance.expovariate(30))
            key = chance.choice("abcdef")
            few.take(str(number))  # what is new makes it look for room
            assert few.take(key) == alone[key].take(key)

    def test_a_flood_of_keys_takes_bounded_memory(self) -> None:
        buckets: Buckets[str] = Buckets(5, 60.0, FakeClock().monotonic, most=100)
        for number in range(10_000):
            buckets.take(str(number))
            assert len(buckets) <= 200


def scope(client: str | None = "192.0.2.1", *forwarded: str) -> dict[str, Any]:
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    return {"client": (client, 1) if client else None, "headers": [(b"host", b"x"), *headers]}


class TestAddresses:
    @pytest.mark.parametrize(
        ("request_scope", "believed", "counted"),
        [
            (scope(), False, "192.0.2.1"),
            (scope("192.0.2.1", "198.51.100.9"), False, "192.0.2.1"),
            (scope("192.0.2.1", "198.51.100.9"), True, "198.51.100.9"),
            # What the client wrote itself stands first.
            (scope("192.0.2.1", "10.0.0.1, 198.51.100.9"), True, "198.51.100.9"),
            (scope("192.0.2.1", "10.0.0.1", "198.51.100.9"), True, "198.51.100.9"),
            (scope("192.0.2.1", "nonsense"), True, "192.0.2.1"),
            (scope("192.0.2.1", ""), True, "192.0.2.1"),
            (scope("2001:db8:1:2:3:4:5:6"), False, "2001:db8:1:2::"),
            (scope("::ffff:192.0.2.7"), False, "192.0.2.7"),
            (scope(None), False, ""),
        ],
    )
    def test_which_address_counts(
        self, request_scope: dict[str, Any], believed: bool, counted: str
    ) -> None:
        throttle = Throttle(Limits(forwarded_for=believed), FakeClock().monotonic)
        assert throttle.address(request_scope) == counted


class TestLogins:
    def test_wrong_passwords_of_one_client_at_one_address(self) -> None:
        clock = FakeClock()
        throttle = Throttle(Limits(), clock.monotonic)
        for _ in range(5):
            assert throttle.login("192.0.2.1", "portal") == 0.0
            throttle.login_refused("192.0.2.1", "portal")
        assert 0 < throttle.login("192.0.2.1", "portal") <= 12
        assert throttle.login("192.0.2.1", "other") == 0.0
        assert throttle.login("192.0.2.2", "portal") == 0.0
        clock.advance(12.1)
        assert throttle.login("192.0.2.1", "portal") == 0.0

    def test_many_clients_of_one_address(self) -> None:
        throttle = Throttle(Limits(), FakeClock().monotonic)
        for number in range(10):
            assert throttle.login("192.0.2.1", str(number)) == 0.0
            throttle.login_refused("192.0.2.1", str(number))
        assert 0 < throttle.login("192.0.2.1", "portal") < 0.11
        assert throttle.login("192.0.2.2", "portal") == 0.0


def test_zero_is_no_limit() -> None:
    throttle = Throttle(Limits(requests_per_second=0), FakeClock().monotonic)
    assert not any(throttle.call("a") for _ in range(5000))


def test_who_must_wait_is_told_in_whole_seconds() -> None:
    assert too_many(0.001).headers["retry-after"] == "1"
    assert too_many(11.2).headers["retry-after"] == "12"
    assert bytes(too_many(1).body) == b'{"error":"Too many requests"}'
