"""What sessions left is tried again until it is gone, a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from deskfleet.agent.drivers import xvnc_remains
from deskfleet.agent.drivers.xvnc_remains import REPEATED_AT_ONCE, Remains

LIMIT_SECONDS = 10.0


class Clearing:
    """Clears what may go by now; each attempt comes out when a test says so."""

    def __init__(self) -> None:
        self.may_go: set[str] = set()
        self.tried: list[str] = []
        self.fails: list[Exception] = []
        self.answers = asyncio.Event()
        self.answers.set()
        self.at_once = self.most_at_once = 0
        self._news = asyncio.Event()

    def __call__(self, key: str) -> asyncio.Future[bool]:
        if self.fails:
            raise self.fails.pop(0)
        return asyncio.ensure_future(self._attempt(key))

    async def _attempt(self, key: str) -> bool:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await self.answers.wait()
        await asyncio.sleep(0)
        self.at_once -= 1
        self.tried.append(key)
        self._news.set()
        return key in self.may_go

    async def until_tried(self, times: int) -> None:
        async with asyncio.timeout(LIMIT_SECONDS):
            while len(self.tried) < times:
                self._news.clear()
                await self._news.wait()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xvnc_remains, "AGAIN_SECONDS", 0.01)


def play(scene: Callable[[Clearing, Remains], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        clearing = Clearing()
        remains = Remains(clearing)
        await scene(clearing, remains)
        await remains.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(whole())


def test_what_is_gone_at_once_is_not_known_any_more() -> None:
    async def scene(clearing: Clearing, remains: Remains) -> None:
        clearing.may_go = {"a"}
        remnant = remains.begin("a", "s-1")
        assert remains.of("s-1") == {remnant.gone}
        assert await remnant.tried
        await remnant.gone
        assert remains.of("s-1") == set()
        assert clearing.tried == ["a"]

    play(scene)


def test_what_stays_is_known_and_tried_until_it_is_gone() -> None:
    async def scene(clearing: Clearing, remains: Remains) -> None:
        remnant = remains.begin("a", "s-1")
        assert not await remnant.tried
        assert remains.begin("a", "s-1") is remnant
        assert remains.of("s-2") == set()
        await clearing.until_tried(3)
        assert remains.of("s-1") == {remnant.gone}
        assert not remnant.gone.done()
        clearing.may_go = {"a"}
        await asyncio.wait_for(remnant.gone, LIMIT_SECONDS)
        assert remains.of("s-1") == set()

    play(scene)


def test_without_a_thread_nothing_is_gone() -> None:
    async def scene(clearing: Clearing, remains: Remains) -> None:
        clearing.may_go, clearing.fails = {"a"}, [RuntimeError("can't start new thread")] * 2
        remnant = remains.begin("a", None)
        assert not await remnant.tried
        await asyncio.wait_for(remnant.gone, LIMIT_SECONDS)
        assert clearing.tried == ["a"]

    play(scene)


def test_few_are_repeated_at_once() -> None:
    async def scene(clearing: Clearing, remains: Remains) -> None:
        for number in range(20):
            await remains.begin(str(number), None).tried
        clearing.most_at_once = 0
        await clearing.until_tried(60)
        assert clearing.most_at_once == REPEATED_AT_ONCE

    play(scene)


def test_closing_cuts_no_attempt_short_and_begins_none() -> None:
    async def scene(clearing: Clearing, remains: Remains) -> None:
        assert not await remains.begin("waits", None).tried
        clearing.answers.clear()
        under_way = remains.begin("under way", None)
        await asyncio.sleep(0)
        closing = asyncio.create_task(remains.close())
        await asyncio.sleep(0.05)
        assert not closing.done()
        clearing.answers.set()
        await closing
        assert clearing.tried.count("under way") == 1
        assert not await under_way.tried

    play(scene)
