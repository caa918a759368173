"""Pokes of other brokers: one that is out of reach is left alone for a while."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from deskfleet.broker.service.access import Access
from deskfleet.broker.web.peers import UNREACHED_SECONDS, PeerClient
from deskfleet.core.records import Broker

NEAR, FAR = Broker(id="near", url="https://near"), Broker(id="far", url="https://far")


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime(2026, 5, 1, tzinfo=UTC)


class Net:
    """A network in which `far` can't be reached, or does not answer until it is let."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.was_asked = asyncio.Event()
        self.is_down = True
        self.answers = asyncio.Event()
        self.answers.set()

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.host)
        self.was_asked.set()
        await self.answers.wait()
        if self.is_down and request.url.host == "far":
            raise httpx.ConnectTimeout("no answer")
        return httpx.Response(204)


def peers(net: Net, clock: Clock) -> PeerClient:
    access = SimpleNamespace(sign=lambda *_: "token")
    http = httpx.AsyncClient(transport=httpx.MockTransport(net))
    return PeerClient(cast(Access, access), http, cast(Any, clock))


def test_a_broker_out_of_reach_is_poked_again_later(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        net, clock = Net(), Clock()
        client = peers(net, clock)
        for _ in range(5):
            await client.poke(FAR)
            await client.poke(NEAR)
            clock.seconds += 2
        assert net.asked == ["far", *["near"] * 5]
        (told,) = caplog.records
        assert (told.message, told.__dict__["url"]) == ("poke.lost", "https://far")
        assert "no answer" in told.__dict__["reason"]
        clock.seconds += UNREACHED_SECONDS
        net.is_down = False
        for _ in range(3):
            await client.poke(FAR)
        assert net.asked[6:] == ["far"] * 3

    asyncio.run(scenario())


@pytest.mark.parametrize("is_down", [True, False])
def test_one_poke_at_a_time(is_down: bool) -> None:
    async def scenario() -> None:
        net = Net()
        net.is_down = is_down
        net.answers.clear()
        client = peers(net, Clock())
        first = asyncio.create_task(client.poke(FAR))
        await asyncio.wait_for(net.was_asked.wait(), 10)
        await client.poke(FAR)
        await client.poke(FAR)
        assert net.asked == ["far"]
        net.answers.set()
        await first
        await client.poke(FAR)
        assert net.asked == ["far"] * (1 if is_down else 2)

    asyncio.run(scenario())
