"""Threads beside an event loop: what they take they make, once, and no program waits for them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from deskfleet.agent.threads import Threads
from support.out_of_threads import out_of_threads

LIMIT_SECONDS = 20.0

ENDLESS = """
import asyncio, threading
from deskfleet.agent.desktop import groups

async def main():
    groups.LIMIT_SECONDS = 0.0
    asked = threading.Event()
    silent = groups.Groups(lambda _user: asked.set() or threading.Event().wait())
    try:
        await silent.of("carol")
    except groups.Unavailable:
        print("it was not waited for", flush=True)
    await asyncio.to_thread(asked.wait, 20)

asyncio.run(main())
"""


def test_so_many_calls_at_once_and_the_others_after_them() -> None:
    async def story() -> None:
        threads, may_end = Threads(2, "test"), threading.Event()
        both = threading.Barrier(3)

        def call() -> str:
            both.wait(LIMIT_SECONDS)
            may_end.wait(LIMIT_SECONDS)
            return threading.current_thread().name

        first = [threads(call), threads(call)]
        third = threads(lambda: "third")
        await asyncio.to_thread(both.wait, LIMIT_SECONDS)
        assert not third.done()
        may_end.set()
        assert await asyncio.gather(*first, third) == ["test", "test", "third"]
        threads.close()

    asyncio.run(story())


def test_a_failure_is_told_and_the_thread_goes_on() -> None:
    async def story() -> None:
        threads = Threads(1, "test")
        with pytest.raises(ZeroDivisionError):
            await threads(lambda: 1 // 0)
        assert await threads(lambda: "on") == "on"
        threads.close()

    asyncio.run(story())


def test_what_is_cancelled_before_its_turn_is_not_made() -> None:
    async def story() -> None:
        threads, may_end = Threads(1, "test"), threading.Event()
        made: list[str] = []
        first = threads(lambda: may_end.wait(LIMIT_SECONDS))
        threads(lambda: made.append("cancelled")).cancel()
        last = threads(lambda: made.append("last"))
        # The event loop passes it on in its next round.
        await asyncio.sleep(0)
        may_end.set()
        await asyncio.gather(first, last)
        assert made == ["last"]
        threads.close()

    asyncio.run(story())


def test_what_was_taken_before_the_end_is_made_and_nothing_later() -> None:
    async def story() -> None:
        threads = Threads(2, "test")
        taken = threads(lambda: "made")
        threads.close()
        assert await taken == "made"
        with pytest.raises(RuntimeError, match="closed"):
            threads(lambda: "late")

    asyncio.run(story())


def test_a_machine_that_is_out_of_threads_makes_calls_by_those_that_are_there() -> None:
    async def story() -> None:
        threads, may_end = Threads(2, "test"), threading.Event()
        made: list[str] = []
        first = threads(lambda: may_end.wait(LIMIT_SECONDS))
        with out_of_threads():
            second = threads(lambda: made.append("second"))
        may_end.set()
        await asyncio.gather(first, second)
        assert made == ["second"]
        threads.close()

    asyncio.run(story())


def test_a_program_ends_while_a_user_directory_is_silent() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", ENDLESS], capture_output=True, timeout=60, check=True, text=True
    )
    assert ended.stdout == "it was not waited for\n"
