"""Waiting for a condition, with a limit, instead of sleeping for luck."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Return as soon as the condition holds; fail where it doesn't within the limit."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {seconds} s: {condition}")
        time.sleep(0.005)


async def soon(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Do the same in an event loop, which goes on meanwhile."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {seconds} s: {condition}")
        await asyncio.sleep(0.002)
