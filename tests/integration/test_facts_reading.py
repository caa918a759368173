"""How an agent reads its facts: one reading at a time, and none that keeps it from ending."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from deskfleet.agent import identity
from deskfleet.agent import main as agent_main
from deskfleet.agent.facts import FactsSource
from deskfleet.agent.identity import Identity
from deskfleet.agent.uplink import Uplink
from deskfleet.core.records import Facts
from deskfleet.settings import AgentSettings
from support.builders import some_facts
from support.waiting import soon


class SlowMachine:
    """Says what it is only when it may: its tags are on a drive of the network that is away."""

    def __init__(self) -> None:
        self.may_say = threading.Event()
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()

    def read(self, *_: Any) -> Facts:
        with self._lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        self.may_say.wait(30)
        with self._lock:
            self.at_once -= 1
        return some_facts()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SlowMachine:
    slow = SlowMachine()
    monkeypatch.setattr(FactsSource, "read", slow.read)
    return slow


@pytest.fixture
def uplinks(monkeypatch: pytest.MonkeyPatch) -> list[Uplink]:
    made: list[Uplink] = []

    class Seen(Uplink):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            made.append(self)

    monkeypatch.setattr(agent_main, "Uplink", Seen)
    return made


def settings(state: Path) -> AgentSettings:
    identity.write(state, Identity("server-1", "secret"))
    return AgentSettings(
        state=state,
        broker_url="https://localhost:1",
        driver="simulated",
        desktop_host="127.0.0.1",
        desktop_port=0,
    )


def test_the_next_one_begins_when_the_one_before_has_come_out(
    tmp_path: Path, machine: SlowMachine, uplinks: list[Uplink]
) -> None:
    async def story() -> None:
        async with agent_main.running(settings(tmp_path)):
            # As where a link is lost meanwhile: the next one begins with the facts, too.
            given_up = asyncio.create_task(_facts(uplinks))
            await soon(lambda: machine.at_once == 1)
            given_up.cancel()
            await asyncio.gather(given_up, return_exceptions=True)
            again = asyncio.create_task(_facts(uplinks))
            # Whatever the other one needs to begin has come after the answer to this.
            for _ in range(3):
                await asyncio.to_thread(lambda: None)
            assert machine.most_at_once == 1
            machine.may_say.set()
            assert await again == some_facts()
            assert machine.most_at_once == 1

    asyncio.run(story())


def test_an_agent_ends_while_its_machine_does_not_say_what_it_is(
    tmp_path: Path, machine: SlowMachine, uplinks: list[Uplink]
) -> None:
    async def story() -> None:
        async with agent_main.running(settings(tmp_path)):
            reading = asyncio.create_task(_facts(uplinks))
            await soon(lambda: machine.at_once == 1)
            reading.cancel()

    asyncio.run(story())
    assert machine.at_once == 1
    machine.may_say.set()


async def _facts(uplinks: list[Uplink]) -> Facts:
    return await uplinks[0]._read_facts()
