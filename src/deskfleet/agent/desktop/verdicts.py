"""What the broker said of a token, remembered from the page's navigation to the swap.

A token is looked at twice, and may be good for one use only: so the broker is asked once, and its
yes is kept for the seconds until the page swaps the token for its cookie, for the same session and
the same client's address.

Laws: a swap uses up what was remembered; a no is never remembered; who asks while the broker is
being asked gets the same answer. Tokens are kept as digests, a bounded number of them.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass

from deskfleet.ports import Clock, TokenCheck

KEPT_SECONDS = 60.0
"""A slow line loads the page in that time."""
MOST = 10_000


@dataclass(frozen=True, slots=True)
class _Asked:
    answer: asyncio.Task[str | None]
    until: float


class Verdicts:
    def __init__(self, check: TokenCheck, clock: Clock) -> None:
        self._check = check
        self._clock = clock
        self._asked: dict[bytes, _Asked] = {}

    async def look(self, session_id: str, token: str, address: str) -> str | None:
        """Return whom a token lets in, and remember it. Raises `Unavailable`."""
        return await asyncio.shield(self._answer(session_id, token, address))

    async def take(self, session_id: str, token: str, address: str) -> str | None:
        """Return whom a token lets in, for the last time without asking again."""
        answer = self._answer(session_id, token, address)
        # At once: of two swaps with one token, one alone has what was remembered.
        self._asked.pop(_key(session_id, token, address), None)
        return await asyncio.shield(answer)

    def _answer(self, session_id: str, token: str, address: str) -> asyncio.Task[str | None]:
        """Return the broker's answer, which comes even if the browser that asked goes away."""
        self._forget_old()
        key = _key(session_id, token, address)
        asked = self._asked.get(key)
        if asked is None:
            answer = asyncio.create_task(self._ask(session_id, token, address))
            asked = self._asked[key] = _Asked(answer, self._clock.monotonic() + KEPT_SECONDS)
            answer.add_done_callback(lambda done: self._keep_yes_alone(key, done))
        return asked.answer

    async def _ask(self, session_id: str, token: str, address: str) -> str | None:
        return await self._check(session_id, token, address)

    def _keep_yes_alone(self, key: bytes, answer: asyncio.Task[str | None]) -> None:
        asked = self._asked.get(key)
        failed = answer.cancelled() or answer.exception() is not None or answer.result() is None
        if failed and asked is not None and asked.answer is answer:
            del self._asked[key]

    def _forget_old(self) -> None:
        now = self._clock.monotonic()
        while self._asked:
            key, oldest = next(iter(self._asked.items()))
            if now < oldest.until and len(self._asked) < MOST:
                break
            del self._asked[key]


def _key(session_id: str, token: str, address: str) -> bytes:
    return hashlib.sha256(f"{session_id}\0{address}\0{token}".encode()).digest()
