"""What the entrance remembers of a token between the navigation and the swap."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from deskfleet.agent.desktop import verdicts
from deskfleet.agent.desktop.verdicts import KEPT_SECONDS, Verdicts
from deskfleet.errors import Unavailable
from support.builders import FakeClock

ASK = ("s1", "a token", "10.0.0.9")


class SingleUse:
    """A broker whose tokens are good once."""

    def __init__(self) -> None:
        self.asked = 0
        self.spent: set[str] = set()
        self.answering = asyncio.Event()
        self.answering.set()
        self.away = False

    async def __call__(self, session_id: str, token: str, address: str) -> str | None:
        self.asked += 1
        await self.answering.wait()
        if self.away:
            raise Unavailable
        if token in self.spent:
            return None
        self.spent.add(token)
        return "alice"


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def test_a_look_is_remembered_until_the_swap_and_no_longer() -> None:
    async def scenario() -> None:
        broker = SingleUse()
        kept = Verdicts(broker, FakeClock())
        assert [await kept.look(*ASK), await kept.look(*ASK)] == ["alice", "alice"]
        assert await kept.take(*ASK) == "alice"
        assert broker.asked == 1
        assert await kept.take(*ASK) is None
        assert await kept.look(*ASK) is None
        assert broker.asked == 3

    run(scenario())


@pytest.mark.parametrize(
    "other", [("s2", "a token", "10.0.0.9"), ("s1", "a token", "10.0.0.8"), ("s1", "b", "10.0.0.9")]
)
def test_only_for_the_same_session_token_and_address(other: tuple[str, str, str]) -> None:
    async def scenario() -> None:
        broker = SingleUse()
        kept = Verdicts(broker, FakeClock())
        await kept.look(*ASK)
        await kept.look(*other)
        assert broker.asked == 2

    run(scenario())


def test_it_is_forgotten_in_time() -> None:
    async def scenario() -> None:
        broker, clock = SingleUse(), FakeClock()
        kept = Verdicts(broker, clock)
        await kept.look(*ASK)
        clock.advance(KEPT_SECONDS - 1)
        assert await kept.look(*ASK) == "alice"
        clock.advance(1)
        assert await kept.take(*ASK) is None
        assert not kept._asked

    run(scenario())


def test_two_at_once_ask_once_and_of_two_swaps_one_wins() -> None:
    async def scenario() -> None:
        broker = SingleUse()
        kept = Verdicts(broker, FakeClock())
        broker.answering.clear()
        looks = [asyncio.create_task(kept.look(*ASK)) for _ in range(2)]
        await asyncio.sleep(0)
        broker.answering.set()
        assert await asyncio.gather(*looks) == ["alice", "alice"]
        assert broker.asked == 1
        swaps = await asyncio.gather(kept.take(*ASK), kept.take(*ASK))
        assert list(swaps) == ["alice", None]

    run(scenario())


def test_a_browser_that_goes_away_does_not_lose_the_answer() -> None:
    async def scenario() -> None:
        broker = SingleUse()
        kept = Verdicts(broker, FakeClock())
        broker.answering.clear()
        look = asyncio.create_task(kept.look(*ASK))
        await asyncio.sleep(0)
        look.cancel()
        broker.answering.set()
        assert await kept.take(*ASK) == "alice"
        assert broker.asked == 1

    run(scenario())


def test_a_failure_is_asked_again() -> None:
    async def scenario() -> None:
        broker = SingleUse()
        kept = Verdicts(broker, FakeClock())
        broker.away = True
        with pytest.raises(Unavailable):
            await kept.look(*ASK)
        broker.away = False
        assert await kept.take(*ASK) == "alice"

    run(scenario())


def test_a_bounded_number_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "MOST", 3)

    async def scenario() -> None:
        kept = Verdicts(SingleUse(), FakeClock())
        for number in range(10):
            await kept.look("s1", f"token {number}", "10.0.0.9")
        assert len(kept._asked) == 3
        assert not [key for key in kept._asked if b"token" in key]

    run(scenario())
