"""How often an agent reports its load: as often as its file says, without falling silent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, cast

import msgspec
import pytest

from deskfleet.agent.identity import Identity
from deskfleet.agent.uplink import Uplink
from deskfleet.core.records import Facts, Phase, Report
from deskfleet.wire.link import AgentLink
from deskfleet.wire.messages import Observed, Welcome
from support.builders import some_facts
from support.virtual_time import VirtualClock, VirtualLoop

BEAT = 10.0


class Wire:
    """Keeps when what was sent."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._began = loop.time()
        self.sent: list[tuple[float, str]] = []

    async def send(self, data: bytes, **_: Any) -> None:
        kind = msgspec.json.decode(data)["type"]
        self.sent.append((self._loop.time() - self._began, kind))

    def times(self, kind: str) -> list[float]:
        return [at for at, sent in self.sent if sent == kind]


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    loop = VirtualLoop()
    yield loop
    loop.kill("test")
    loop.close()


def beating(
    loop: VirtualLoop, seconds: float, *, changes: bool = True, ill_at: float | None = None
) -> Wire:
    """Run an agent's beat for ten minutes; its load changes with each look, or never."""
    began = loop.time()
    clock, wire, looks = VirtualClock(loop), Wire(loop), iter(range(10, 10_000))

    async def read_facts() -> Facts:
        ill = ill_at is not None and loop.time() - began >= ill_at
        load = (float(next(looks)) if changes else 1.0, 0.0, 0.0)
        return some_facts(load=load, unhealthy="it does not answer" if ill else None)

    link = AgentLink(clock.monotonic())
    link.hello(some_facts(), ())
    link.receive(Welcome(epoch=1, heartbeat_seconds=BEAT), clock.monotonic())
    nobody = cast(Any, None)
    uplink = Uplink(
        nobody, Identity("n1", "x"), nobody, nobody, read_facts, clock, asyncio.Event(), seconds
    )
    # What it says when it greets.
    uplink._told = some_facts(load=(1.0, 0.0, 0.0))
    loop.begin("test", uplink._beat(cast(Any, wire), link))
    loop.advance(600.0)
    return wire


@pytest.mark.parametrize(
    ("seconds", "every"), [(0.0, BEAT), (30.0, 30.0), (4.0, 4.0), (15.0, 15.0)]
)
def test_facts_come_as_often_as_they_should(
    seconds: float, every: float, loop: VirtualLoop
) -> None:
    times = beating(loop, seconds).times("facts")
    assert times == pytest.approx([every * n for n in range(1, int(600 / every) + 1)])


@pytest.mark.parametrize("changes", [True, False])
@pytest.mark.parametrize("seconds", [0.0, 4.0, 15.0, 30.0, 300.0])
def test_an_agent_is_never_silent(seconds: float, changes: bool, loop: VirtualLoop) -> None:
    moments = [0.0, *(at for at, _ in beating(loop, seconds, changes=changes).sent), 600.0]
    gaps = [later - earlier for earlier, later in pairwise(moments)]
    assert max(gaps) < 2 * BEAT


def test_what_has_not_changed_is_not_told_again(loop: VirtualLoop) -> None:
    wire = beating(loop, 30.0, changes=False)
    assert wire.times("facts") == []
    assert len(wire.sent) <= 61


@pytest.mark.parametrize(("cost", "most"), [(0.0, 2000), (0.001, 500), (0.01, 50), (0.1, 6)])
def test_a_large_set_that_changes_all_the_time_is_told_less_often(
    cost: float, most: int, loop: VirtualLoop
) -> None:
    """Of ten seconds, a twentieth is spent on looking at it, whatever a look costs."""
    clock, wire, changed = VirtualClock(loop), Wire(loop), asyncio.Event()

    class Large:
        looks = 0

        def observed(self) -> tuple[Observed, ...]:
            self.looks += 1
            loop.seconds += cost
            report = Report(id=str(self.looks), server_id="n1", generation=1, phase=Phase.RUNNING)
            return (Observed(report=report),)

    async def keep_changing() -> None:
        while True:
            changed.set()
            await asyncio.sleep(0.001)

    large, nobody = Large(), cast(Any, None)
    link = AgentLink(clock.monotonic())
    link.hello(some_facts(), ())
    link.receive(Welcome(epoch=1, heartbeat_seconds=BEAT), clock.monotonic())
    uplink = Uplink(nobody, Identity("n1", "x"), cast(Any, large), nobody, nobody, clock, changed)
    loop.begin("test", uplink._report(cast(Any, wire), link))
    loop.begin("test", keep_changing())
    loop.advance(10.0)
    assert most / 2 <= len(wire.times("observation")) <= most


@pytest.mark.parametrize("seconds", [0.0, 30.0, 300.0])
def test_all_but_the_load_is_told_at_the_next_beat(seconds: float, loop: VirtualLoop) -> None:
    times = beating(loop, seconds, ill_at=42.0).times("facts")
    assert any(at == pytest.approx(50.0) for at in times), times
