"""Keeps what was made of each session for as long as it would come out the same.

Portals read the same sessions again and again, between few changes. What is kept of a session is
dropped when its record, its report, or its server's facts or link change; whether the broker that
holds the link lives is asked at each look, for brokers die without a word.

Law: what is given is what would be made now. Must not: hold what a client's request says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from deskfleet.broker.service.liveness import Liveness
from deskfleet.broker.service.replica import Entries, Replica
from deskfleet.core.records import Session

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Kept(Generic[T]):
    made: T
    server_id: str | None
    holder_id: str
    """The broker that holds the server's link; empty where there is no link."""
    holder_alive: bool


class Showing(Generic[T]):
    def __init__(self, replica: Replica, liveness: Liveness, make: Callable[[Session], T]) -> None:
        """`make` may look at nothing but the session, its report, and its server."""
        self._fleet = replica.fleet
        self._is_alive = liveness.is_alive
        self._make = make
        self._kept: dict[str, _Kept[T]] = {}
        self._on_server: dict[str, set[str]] = {}
        replica.subscribe(self._drop_changed)

    def of(self, sessions: Iterable[Session]) -> list[T]:
        """Return what is made of each of these sessions of the fleet as caught up."""
        known, is_alive = self._kept, self._is_alive
        return [
            kept.made
            if (kept := known.get(session.id)) and is_alive(kept.holder_id) is kept.holder_alive
            else self._remake(session)
            for session in sessions
        ]

    def _remake(self, session: Session) -> T:
        server_id = session.server_id
        link = None if server_id is None else self._fleet.link(server_id)
        holder_id = "" if link is None else link.broker_id
        kept = _Kept(self._make(session), server_id, holder_id, self._is_alive(holder_id))
        self._kept[session.id] = kept
        if server_id is not None:
            self._on_server.setdefault(server_id, set()).add(session.id)
        return kept.made

    def _drop_changed(self, entries: Entries) -> None:
        for entry in entries:
            kind, id = entry.key
            if kind in {"session", "report"}:
                self._drop(id)
            elif kind in {"facts", "link"}:
                for session_id in list(self._on_server.get(id, ())):
                    self._drop(session_id)

    def _drop(self, session_id: str) -> None:
        kept = self._kept.pop(session_id, None)
        if kept is None or kept.server_id is None:
            return
        beside = self._on_server[kept.server_id]
        beside.remove(session_id)
        if not beside:
            del self._on_server[kept.server_id]
