"""What a driver looks up before a start: who the owner is, which programs there are.

A user directory is asked, which may be slow or silent. Law: that holds up starts alone, and those
not for ever. All else of the agent has other threads, or a server would be called lost for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from deskfleet.agent.threads import Threads
from deskfleet.errors import StartFailed

THREADS = 8
LIMIT_SECONDS = 60.0
"""With the wait for a thread."""

T = TypeVar("T")


class Lookups:
    def __init__(self) -> None:
        self._threads = Threads(THREADS, "lookups")

    async def of(self, look_up: Callable[[], T]) -> T:
        """Look something up; raise `StartFailed` where it can't be had in time."""
        try:
            async with asyncio.timeout(LIMIT_SECONDS):
                return await self._threads(look_up)
        except TimeoutError:
            raise StartFailed(
                "its owner and its programs could not be looked up within"
                f" {LIMIT_SECONDS:g} seconds"
            ) from None

    def close(self) -> None:
        self._threads.close()
