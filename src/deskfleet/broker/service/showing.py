"""Keeps what was made of each session for as long as it would come out the same.

Portals read the same sessions again and again, between few changes. What is kept of a session is
dropped when its record, its report, or its server's facts or link change; and, for brokers die
without a word, each look asks which of them live and drops what was made when others did.

Law: what is given is what would be made now. Must not: hold what a client's request says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from deskfleet.broker.service.liveness import Liveness
from deskfleet.broker.service.replica import Entries, Replica
from deskfleet.core.records import Session

T = TypeVar("T")


class Showing(Generic[T]):
    def __init__(self, replica: Replica, liveness: Liveness, make: Callable[[Session], T]) -> None:
        """`make` may look at nothing but the session, its report, and its server."""
        self._fleet = replica.fleet
        self._liveness = liveness
        self._make = make
        self._kept: dict[str, T] = {}
        self._server_of: dict[str, str] = {}
        self._on_server: dict[str, set[str]] = {}
        self._alive = liveness.alive()
        self._dropped: list[Callable[[str], None]] = []
        replica.subscribe(self._drop_changed)

    def of(self, session_ids: Iterable[str]) -> list[T]:
        """Return what is made of each of these sessions of the fleet as caught up."""
        self.refresh()
        return self.kept(session_ids)

    def kept(self, session_ids: Iterable[str]) -> list[T]:
        """Do the same in a look that has begun already (`refresh`)."""
        known = self._kept.get
        return [known(id) or self._remake(id) for id in session_ids]

    def on_drop(self, told: Callable[[str], None]) -> None:
        """Call `told` with each session of which what was made is kept no longer."""
        self._dropped.append(told)

    def is_sure(self) -> bool:
        """Tell whether the same brokers live now as at the beginning of this look."""
        return self._liveness.alive() == self._alive

    def _remake(self, session_id: str) -> T:
        session = self._fleet.session(session_id)
        assert session is not None  # its id comes from the fleet
        made = self._make(session)
        # A broker whose time ran out meanwhile is alive in some of it, and dead in the rest.
        if not self.is_sure():
            return made
        self._kept[session_id] = made
        server_id = session.server_id
        if server_id is not None:
            self._server_of[session_id] = server_id
            self._on_server.setdefault(server_id, set()).add(session_id)
        return made

    def refresh(self) -> None:
        """Drop what was made while other brokers lived than now."""
        alive = self._liveness.alive()
        changed, self._alive = alive ^ self._alive, alive
        if not changed:
            return
        for server_id in list(self._on_server):
            link = self._fleet.link(server_id)
            if link is not None and link.broker_id in changed:
                self._drop_on(server_id)

    def _drop_changed(self, entries: Entries) -> None:
        for entry in entries:
            kind, id = entry.key
            if kind in {"session", "report"}:
                self._drop(id)
            elif kind in {"facts", "link"}:
                self._drop_on(id)

    def _drop_on(self, server_id: str) -> None:
        for session_id in list(self._on_server.get(server_id, ())):
            self._drop(session_id)

    def _drop(self, session_id: str) -> None:
        if self._kept.pop(session_id, None) is None:
            return
        for told in self._dropped:
            told(session_id)
        server_id = self._server_of.pop(session_id, None)
        if server_id is None:
            return
        beside = self._on_server[server_id]
        beside.remove(session_id)
        if not beside:
            del self._on_server[server_id]
