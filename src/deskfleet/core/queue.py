"""One pass over all that wants a place: those that wait, oldest first, then the newcomers.

Laws: of those that wait the oldest that fits is first; a newcomer never overtakes an older one
that would fit; nothing is placed after its deadline; no more than `QueueLimits.size` wait.

What keeps a pass cheap: who was refused looks again only at servers that became better since, and
wishes that differ in nothing but their owner share one refusal. A pass that is late all the same
stops, and the next one goes on from there, oldest first again.

Pure: it reads no clock, and what it decides is written by its caller, who keeps `judged` for the
next pass once that is done.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from deskfleet.core import platforms
from deskfleet.core import session as sessions
from deskfleet.core.change import ABSENT, Change, ChangeSet, Put
from deskfleet.core.fleet import Fleet, Reachable
from deskfleet.core.placement import Placement, Refusal, Tally, parse_once, place
from deskfleet.core.records import Server, Session
from deskfleet.errors import RequirementsInvalid

Outcome: TypeAlias = Session | Refusal

SHARE = 8
"""Where more than one in so many servers became better, all are looked at."""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    size: int
    wait: timedelta


@dataclass(frozen=True, slots=True)
class Moment:
    """How far the ledgers of a fleet's candidates had come."""

    improved: int
    moved: int


_NEVER = Moment(-1, -1)
_NOTHING_NEW = Refusal("no server became better since")


class Pass:
    def __init__(
        self,
        fleet: Fleet,
        now: datetime,
        limits: QueueLimits,
        *,
        reachable: Reachable,
        judged: Mapping[str, Moment],
        is_late: Callable[[], bool],
    ) -> None:
        """`judged` tells at which moment each waiting session was refused."""
        self.judged: dict[str, Moment] = {}
        self.follows_load = False
        """Whether anybody waits for a server with less load."""
        self.oldest: datetime | None = None
        """Since when the one waits that has waited longest of those that go on waiting."""
        self.finished = True
        """Whether all that wait, and all newcomers, have been judged."""
        self.outcomes: list[Outcome] = []
        """Of the newcomers that have been judged, in their order."""
        self._fleet, self._now, self._limits = fleet, now, limits
        self._reachable, self._before, self._is_late = reachable, judged, is_late
        candidates = fleet.candidates
        self.moment = Moment(candidates.improved.moment, candidates.moved.moment)
        self._tally = Tally(fleet)
        self._room = limits.size
        self._written: dict[str, Session] = {}
        self._placements: dict[str, int] = {}
        self._refused: dict[Hashable, Refusal] = {}
        self._searches = 0
        self._better: dict[tuple[bool, int], frozenset[str] | None] = {}

    def decide(self, newcomers: Sequence[Session]) -> None:
        for session in self._fleet.waiting():
            self._judge_waiting(session)
        for session in newcomers:
            if not self.finished or self._must_stop():
                self.finished = False
                return
            self.outcomes.append(self._admit(session))

    def change_set(self) -> ChangeSet:
        changes: list[Change] = [
            Put(session, self._fleet.revision_of(Session, session.id) or ABSENT)
            for session in self._written.values()
        ]
        for server_id, count in self._placements.items():
            server = self._fleet.server(server_id)
            if server is not None:
                counted = sessions.replace(server, placements=server.placements + count)
                changes.append(Put(counted, self._fleet.revision_of(Server, server_id)))
        return tuple(changes)

    def _judge_waiting(self, session: Session) -> None:
        if self._now - sessions.waits_since(session) >= self._limits.wait:
            self._write(sessions.end(session, self._now, _why_expired(session)))
            return
        since = self._before.get(session.id, _NEVER)
        if not self.finished or (since != self.moment and self._must_stop()):
            # Nobody younger is judged before: an older one might take the same seat.
            self.finished = False
            self._wait(session, since)
        elif self._place(session, since) is None:
            return
        elif session.request.enqueue:
            self._wait(session, self.moment)
        else:
            self._write(sessions.end(session, self._now, session.reason))

    def _admit(self, session: Session) -> Outcome:
        refusal = self._place(session, _NEVER)
        if refusal is None:
            return self._written[session.id]
        if not session.request.enqueue:
            return refusal
        if self._room <= 0:
            return Refusal(f"{refusal.reason}; the queue is full")
        queued = sessions.replace(session, reason=f"queued: {refusal.reason}")
        self._write(queued)
        self._wait(queued, self.moment)
        return queued

    def _wait(self, session: Session, since: Moment) -> None:
        self._room -= 1
        began = sessions.waits_since(session)
        self.oldest = began if self.oldest is None else min(self.oldest, began)
        self.judged[session.id] = since

    def _must_stop(self) -> bool:
        # Each pass gets somewhere: the first search is always made.
        return self._searches > 0 and self._is_late()

    def _place(self, session: Session, since: Moment) -> Refusal | None:
        """Find a place among the servers that became better since, and write it down."""
        request = session.request
        try:
            follows_load = parse_once(request.requirements or "").follows_load
        except RequirementsInvalid as error:
            return Refusal(error.message)
        self.follows_load |= follows_load
        tick = since.moved if follows_load else since.improved
        among = self._better_since(tick, follows_load=follows_load)
        if among is not None and not among:
            return _NOTHING_NEW
        # Once refused, the same wish is refused for the rest of this pass: seats only get fewer.
        demands = platforms.demands_of(request)
        wish = (request.type, request.requirements, demands, None if among is None else tick)
        refusal = self._refused.get(wish) or self._refused.get((request.owner, *wish))
        if refusal is not None:
            return refusal
        self._searches += 1
        answer = place(
            request,
            self._fleet,
            self._tally,
            reachable=self._reachable,
            avoid=session.tried,
            among=among,
        )
        if isinstance(answer, Refusal):
            self._refused[(request.owner, *wish) if answer.personal else wish] = answer
            return answer
        self._take(session, answer)
        return None

    def _better_since(self, tick: int, *, follows_load: bool) -> frozenset[str] | None:
        """Return the servers worth a look for who was refused at a moment; None for all."""
        if tick < 0:
            return None
        key = follows_load, tick
        if key not in self._better:
            candidates = self._fleet.candidates
            ledger = candidates.moved if follows_load else candidates.improved
            better = frozenset(ledger.since(tick))
            self._better[key] = None if len(better) * SHARE > len(candidates) + SHARE else better
        return self._better[key]

    def _take(self, session: Session, placement: Placement) -> None:
        placed = sessions.place(session, placement.server_id)
        self._tally.take(placement.server_id, placed)
        self._placements[placement.server_id] = self._placements.get(placement.server_id, 0) + 1
        self._write(placed)

    def _write(self, session: Session) -> None:
        self._written[session.id] = session


def _why_expired(session: Session) -> str:
    why = "no place came free in time"
    return f"{why} after a start had failed: {session.reason}" if session.tried else why
