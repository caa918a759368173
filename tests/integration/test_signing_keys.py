"""The keys that sign: renewed at once, and kept until nothing that they signed is valid."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

import pytest

from deskfleet.broker.service.access import Audience
from deskfleet.broker.service.signing_keys import MARGIN, outlived
from deskfleet.broker.stores.memory import MemoryStore
from deskfleet.core.records import SigningKey
from deskfleet.errors import InvalidToken
from support.builders import NOON, FakeClock
from support.house import TestHouse, a_house, signing_key, stored

LIFE = timedelta(hours=1)
DAY = timedelta(days=1).total_seconds()

Scenario = Callable[[TestHouse], Coroutine[Any, Any, None]]


def run(scenario: Scenario, **house: Any) -> None:
    async def whole() -> None:
        async with asyncio.timeout(30), a_house(**house) as built:
            await built.write(signing_key())
            await scenario(built)

    asyncio.run(whole())


def sign(house: TestHouse, life: timedelta = LIFE) -> str:
    return house.access.sign(Audience.API, {"sub": "x"}, life)


def key_of(token: str) -> str:
    head = token.partition(".")[0]
    return str(json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))["kid"])


def test_a_new_key_signs_at_once_whatever_the_clock_says() -> None:
    async def scenario(house: TestHouse) -> None:
        # The machine that renews may be behind the one that made the first key.
        house.clock.advance(-3600)
        for _ in range(2):
            before = sign(house)
            await house.access.renew_signing_key()
            assert key_of(sign(house)) != key_of(before)
            assert house.access.verify(Audience.API, before)["sub"] == "x"
        assert len(stored(house.store, SigningKey)) == 3

    run(scenario)


def test_an_old_key_stays_for_the_longest_token_life() -> None:
    async def scenario(house: TestHouse) -> None:
        await house.access.renew_signing_key()
        house.clock.advance(DAY + MARGIN.total_seconds() - 1)
        await house.sweep()
        assert {one.id for one in stored(house.store, SigningKey)} > {"first"}
        house.clock.advance(2)
        await house.sweep()
        [left] = stored(house.store, SigningKey)
        assert left.id == key_of(sign(house)) != "first"
        house.clock.advance(100 * DAY)
        await house.sweep()
        assert stored(house.store, SigningKey) == [left]

    run(scenario)


def test_a_key_that_is_gone_verifies_nothing() -> None:
    async def scenario(house: TestHouse) -> None:
        other = sign(house, timedelta(days=30))
        house.access.verify(Audience.API, sign(house, timedelta(days=30)))
        await house.access.renew_signing_key()
        house.clock.advance(2 * DAY)
        await house.sweep()
        with pytest.raises(InvalidToken):
            house.access.verify(Audience.API, other)

    run(scenario)


def test_each_key_waits_for_its_own_successor() -> None:
    async def scenario(house: TestHouse) -> None:
        house.clock.advance(10 * DAY)
        await house.access.renew_signing_key()
        fleet = house.replica.fleet
        now = house.clock.now()
        # However old it is: it was used until a moment ago.
        assert outlived(fleet, now + LIFE, LIFE) == []
        assert [key.id for key in outlived(fleet, now + LIFE + 2 * MARGIN, LIFE)] == ["first"]
        assert outlived(fleet, NOON, LIFE) == []

    run(scenario)


def test_two_who_renew_at_once_and_a_broker_that_knows_neither_key() -> None:
    async def whole() -> None:
        store, clock = MemoryStore(), FakeClock()
        async with (
            asyncio.timeout(30),
            a_house(store, clock=clock) as one,
            a_house(store, broker_id="b2", clock=clock) as two,
        ):
            await one.write(signing_key())
            await asyncio.gather(one.access.renew_signing_key(), two.access.renew_signing_key())
            assert len({key.id for key in stored(store, SigningKey)}) == 3
            await one.replica.catch_up()
            await two.replica.catch_up()
            assert key_of(sign(one)) == key_of(sign(two))
            await one.access.renew_signing_key()
            token = sign(one)
            with pytest.raises(InvalidToken):
                two.access.verify(Audience.API, token)
            await two.replica.catch_up()
            assert two.access.verify(Audience.API, token)["sub"] == "x"

    asyncio.run(whole())
