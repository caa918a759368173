"""Who is connected to which desktop: the truth behind NumOfConnections and LastDisconnectionTime.

Owns the list of live visits and the instant of the last departure of each session. A visit takes
its seat before anything is opened for it, so that a limit can't be passed by two that come at
once, and counts as a connection from its arrival until its leaving. Nothing here waits; all of it
runs in the one event loop of the entrance.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum

from deskfleet.ports import Clock


class Close(IntEnum):
    """Why the entrance ends a WebSocket, as its close code. The page asks again after each."""

    GONE = 1000
    PROTOCOL = 1002
    REFUSED = 4403
    RECHECK = 4410
    REPLACED = 4411
    FULL = 4429
    UNREACHABLE = 4503


@dataclass(eq=False, kw_only=True)
class Visit:
    """One browser's connection to one desktop."""

    session_id: str
    user: str
    page: str
    """Names the page that connects; a page has one connection at most."""
    supervises: bool
    """The owner, or someone who may be there without the owner."""
    asked_to_end: asyncio.Future[Close] = field(repr=False)
    arrived: bool = False

    def end(self, reason: Close) -> None:
        """Ask for the end of this visit, whatever it waits for."""
        if not self.asked_to_end.done():
            self.asked_to_end.set_result(reason)


class Attendance:
    """The live visits of all sessions of this server."""

    def __init__(
        self, clock: Clock, on_change: Callable[[str], None] = lambda _session_id: None
    ) -> None:
        self.on_change = on_change
        self._clock = clock
        self._visits: dict[str, list[Visit]] = {}
        self._last_disconnections: dict[str, datetime] = {}

    def visitors(self, session_id: str) -> tuple[str, ...]:
        """Return the user of each connection."""
        visits = self._visits.get(session_id, ())
        return tuple(sorted(visit.user for visit in visits if visit.arrived))

    def last_disconnection_at(self, session_id: str) -> datetime | None:
        return self._last_disconnections.get(session_id)

    def close_all(self, session_id: str) -> None:
        """End all live connections of a session; those that still may will come back."""
        for visit in tuple(self._visits.get(session_id, ())):
            visit.end(Close.RECHECK)

    def forget(self, session_id: str) -> None:
        """End all connections of a session that is no more, and drop what is known of it."""
        self.close_all(session_id)
        # Whoever leaves later leaves nothing behind.
        self._visits.pop(session_id, None)
        self._last_disconnections.pop(session_id, None)

    def has_supervisor(self, session_id: str) -> bool:
        return any(visit.supervises for visit in self._visits.get(session_id, ()))

    def enter(
        self, *, session_id: str, user: str, page: str, supervises: bool, limit: int | None
    ) -> Visit | None:
        """Take a seat, None when all are taken.

        An older visit of the same page makes room: after a network blink the old connection
        may take a minute to be found dead, and must not keep its own successor out.
        """
        visits = self._visits.get(session_id, [])
        older = [visit for visit in visits if (visit.user, visit.page) == (user, page)]
        if limit is not None and len(visits) - len(older) >= limit:
            return None
        visit = Visit(
            session_id=session_id,
            user=user,
            page=page,
            supervises=supervises,
            asked_to_end=asyncio.get_running_loop().create_future(),
        )
        visits.append(visit)
        self._visits[session_id] = visits
        for replaced in older:
            replaced.end(Close.REPLACED)
            self.leave(replaced)
        return visit

    def arrive(self, visit: Visit) -> None:
        """Count a visit as a connection: its desktop has been reached."""
        if visit in self._visits.get(visit.session_id, ()):
            visit.arrived = True
            self.on_change(visit.session_id)

    def leave(self, visit: Visit) -> None:
        """Give the seat back; leaving twice is leaving once."""
        visits = self._visits.get(visit.session_id, [])
        if visit not in visits:
            return
        visits.remove(visit)
        if visit.supervises and not self.has_supervisor(visit.session_id):
            self._end_unsupervised(visits)
        if not visits:
            self._visits.pop(visit.session_id, None)
        if visit.arrived:
            self._last_disconnections[visit.session_id] = self._clock.now()
            self.on_change(visit.session_id)

    def _end_unsupervised(self, visits: list[Visit]) -> None:
        for visit in visits:
            visit.end(Close.REFUSED)
