"""The key sets of external authorization servers, kept for a while.

Laws: a set is read anew after ten minutes, and when a token names a key that is not in it; but no
server is asked more often than once in 30 s, whatever tokens arrive. While a server is away the
last good set goes on serving, and nobody waits for it who could be served. Whoever waits for the
same reading waits for one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from deskfleet.broker.service.jwks import Keys, pick, read_keys
from deskfleet.core.records import AuthServer
from deskfleet.errors import Forbidden, Invalid, Unavailable
from deskfleet.ports import Clock

log = logging.getLogger(__name__)

Fetch: TypeAlias = Callable[[AuthServer], Awaitable[bytes]]
"""Returns the body at a server's URL. Raises `Unavailable`, or `Forbidden` for a bad address."""

FRESH_SECONDS = 600.0
RETRY_SECONDS = 30.0


@dataclass(slots=True)
class _Kept:
    server: AuthServer
    keys: Keys | None = None
    read_at: float = float("-inf")
    tried_at: float = float("-inf")
    failed: bool = False
    reading: asyncio.Task[None] | None = None


class KeySets:
    def __init__(self, clock: Clock, fetch: Fetch) -> None:
        self._clock = clock
        self._fetch = fetch
        self._kept: dict[str, _Kept] = {}

    def current(self, server: AuthServer) -> Keys | None:
        """Return the keys to verify by now; None where they must be read before."""
        kept = self._of(server)
        now = self._clock.monotonic()
        fresh = now - kept.read_at < FRESH_SECONDS or now - kept.tried_at < RETRY_SECONDS
        return kept.keys if fresh else None

    async def refresh(self, server: AuthServer, kid: str | None) -> bool:
        """Read a server's keys if that is due, and say whether there are any, old ones included."""
        kept = self._of(server)
        if kept.reading is None and self._is_due(kept, kid):
            kept.tried_at = self._clock.monotonic()
            kept.reading = asyncio.create_task(self._read(kept))
        can_serve = kept.keys is not None and pick(kept.keys, kid) is not None
        if kept.reading is not None and not (can_serve and kept.failed):
            # Shielded: others wait for the same reading.
            await asyncio.shield(kept.reading)
        return kept.keys is not None

    def forget_all_but(self, servers: frozenset[str]) -> None:
        for gone in self._kept.keys() - servers:
            del self._kept[gone]

    async def aclose(self) -> None:
        readings = [kept.reading for kept in self._kept.values() if kept.reading is not None]
        for reading in readings:
            reading.cancel()
        await asyncio.gather(*readings, return_exceptions=True)

    def _of(self, server: AuthServer) -> _Kept:
        kept = self._kept.get(server.id)
        # Registered anew, it may have another algorithm, and its keys other uses.
        if kept is None or (kept.server is not server and kept.server != server):
            kept = self._kept[server.id] = _Kept(server)
        return kept

    def _is_due(self, kept: _Kept, kid: str | None) -> bool:
        now = self._clock.monotonic()
        if now - kept.tried_at < RETRY_SECONDS:
            return False
        stale = now - kept.read_at >= FRESH_SECONDS
        return stale or kept.keys is None or pick(kept.keys, kid) is None

    async def _read(self, kept: _Kept) -> None:
        try:
            keys = read_keys(await self._fetch(kept.server), kept.server.algorithm)
        except (Unavailable, Invalid, Forbidden) as error:
            kept.failed = True
            log.warning(
                "auth-server.unread", extra={"url": kept.server.id, "reason": error.message}
            )
        else:
            kept.failed = False
            kept.read_at = self._clock.monotonic()
            # The same keys stay the same object: what was verified by them stays remembered.
            if keys != kept.keys:
                kept.keys = keys
                log.info("auth-server.read", extra={"url": kept.server.id, "keys": sorted(keys)})
        finally:
            kept.reading = None
