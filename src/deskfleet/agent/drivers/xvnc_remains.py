"""What sessions left behind, until it is gone.

The one place that decides over trying again: whatever ended, did not come to run, or was found
dead by a new agent is cleared here, by its key. Laws: what is not gone is tried again for as long
as the driver is open; an attempt is never cut short, not even by cancellation; few are repeated at
once, so that those which can't succeed leave room for everything else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from deskfleet.agent.settling import settled
from deskfleet.observe import seldom

log = logging.getLogger(__name__)

AGAIN_SECONDS = 5.0
REPEATED_AT_ONCE = 2

Clear: TypeAlias = Callable[[str], asyncio.Future[bool]]
"""Begins one attempt to clear what has a key; comes out as whether nothing is left."""


@dataclass(frozen=True, slots=True)
class Remnant:
    """What is left of one start of a session."""

    session_id: str | None
    """None where nothing tells whose it is."""
    tried: asyncio.Future[bool]
    """The first attempt: whether it was enough."""
    gone: asyncio.Task[None]


class Remains:
    def __init__(self, clear: Clear) -> None:
        self._clear = clear
        self._remnants: dict[str, Remnant] = {}
        self._turns = asyncio.Semaphore(REPEATED_AT_ONCE)

    def begin(self, key: str, session_id: str | None) -> Remnant:
        """Clear what has a key, from now on and until it is gone."""
        remnant = self._remnants.get(key)
        if remnant is None:
            tried = asyncio.get_running_loop().create_future()
            gone = asyncio.create_task(self._until_gone(key, tried))
            remnant = self._remnants[key] = Remnant(session_id, tried, gone)
            gone.add_done_callback(lambda _: self._over(key))
        return remnant

    def of(self, session_id: str) -> set[asyncio.Task[None]]:
        """Return what ends when nothing is left of a session; none where nothing is."""
        tasks = [one.gone for one in self._remnants.values() if one.session_id == session_id]
        return {task for task in tasks if not task.done()}

    async def close(self) -> None:
        """Try nothing again; return when what is under way has come out."""
        tasks = [one.gone for one in self._remnants.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_gone(self, key: str, tried: asyncio.Future[bool]) -> None:
        gone = await self._attempt(key)
        _answer(tried, gone=gone)
        while not gone:
            await asyncio.sleep(AGAIN_SECONDS)
            async with self._turns:
                gone = await self._attempt(key)

    def _over(self, key: str) -> None:
        _answer(self._remnants.pop(key).tried, gone=False)

    async def _attempt(self, key: str) -> bool:
        try:
            return await settled(self._clear(key))
        except RuntimeError as error:
            # A machine that is out of threads: nothing has been tried.
            reason = {"session_key": key, "reason": str(error)}
            log.warning("session.clearing-put-off", extra=reason | seldom(key))
            return False


def _answer(question: asyncio.Future[bool], *, gone: bool) -> None:
    if not question.done():
        question.set_result(gone)
