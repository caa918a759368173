"""Which groups a user is in, asked of a user directory that may be slow or silent.

Threads of its own do the asking, so that nothing else of the agent ever waits for a directory, and
one of them at most for each user: who comes again while that is being asked waits for the same
answer. Answers are not kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from deskfleet.agent.threads import Threads
from deskfleet.errors import Unavailable

THREADS = 4
LIMIT_SECONDS = 5.0
"""Less than a page waits for an answer."""


class Groups:
    def __init__(self, ask: Callable[[str], frozenset[str]]) -> None:
        self._ask = ask
        self._threads = Threads(THREADS, "groups")
        self._asked: dict[str, asyncio.Future[frozenset[str]]] = {}

    async def of(self, user: str) -> frozenset[str]:
        """Return the names of a user's groups; raise `Unavailable` where nobody says in time."""
        asked = self._asked.get(user)
        if asked is None:
            asked = self._asked[user] = self._threads(partial(self._ask, user))
            asked.add_done_callback(lambda done: self._answered(user, done))
        try:
            async with asyncio.timeout(LIMIT_SECONDS):
                return await asyncio.shield(asked)
        except OSError as error:
            raise Unavailable("the user directory doesn't answer") from error

    def _answered(self, user: str, done: asyncio.Future[frozenset[str]]) -> None:
        del self._asked[user]
        if not done.cancelled():
            # Whoever waited for it may have given up.
            done.exception()
