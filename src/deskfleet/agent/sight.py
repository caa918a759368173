"""The observed set: all that an agent tells of the sessions of its server.

Laws: nobody is told of an outcome that the journal doesn't hold; a set fits into a message, however
many sessions nobody names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import msgspec

from deskfleet.agent.journal_file import Entry
from deskfleet.core.records import Intent, Phase, Report, SessionRequest
from deskfleet.ports import Running, SessionSpec
from deskfleet.wire.messages import Desire, Observed

TOLD_BYTES = 1024 * 1024
"""Of what was asked for of sessions that were not named, in one observed set; the rest is told
when these have been taken up."""


class Visitors(Protocol):
    """Who is connected (`Attendance`)."""

    def visitors(self, session_id: str) -> tuple[str, ...]: ...

    def last_disconnection_at(self, session_id: str) -> datetime | None: ...


@dataclass(frozen=True, slots=True)
class Sight:
    """What is known at one moment."""

    server_id: str
    entries: Mapping[str, Entry]
    running: Mapping[str, Running]
    desires: Mapping[str, Desire] | None
    """None before the first desired set."""
    reasons: Mapping[str, str]
    """Why the last step of a session did not succeed."""
    presence: Visitors

    def observed(self) -> tuple[Observed, ...]:
        """Return the whole observed set."""
        ids = dict.fromkeys([*self.entries, *self.running])
        unnamed = self._unnamed()
        return (*(self._observe(id, unnamed.get(id)) for id in ids), *self._held_up(ids))

    def _unnamed(self) -> dict[str, SessionSpec]:
        """Return what is known of our sessions that run and that nobody wants, or ends."""
        if self.desires is None:
            return {}
        unnamed, told = {}, 0
        for id, one in self.running.items():
            if id in self.desires or not one.generation or told > TOLD_BYTES:
                continue
            entry = self.entries.get(id)
            is_it = entry is not None and entry.generation == one.generation
            spec = entry.spec if entry is not None and is_it else _spec_of(one)
            told += len(msgspec.json.encode(spec))
            unnamed[id] = spec
        return unnamed

    def _held_up(self, known: Collection[str]) -> Iterator[Observed]:
        """Tell of sessions that can't even be noted yet."""
        for id, reason in self.reasons.items():
            desire = (self.desires or {}).get(id)
            if desire is None or desire.intent is Intent.STOP or desire.started or id in known:
                continue
            report = Report(
                id=id,
                server_id=self.server_id,
                generation=desire.spec.generation,
                phase=Phase.STARTING,
                reason=reason,
            )
            yield Observed(report=report)

    def _observe(self, id: str, spec: SessionSpec | None) -> Observed:
        entry, running = self.entries.get(id), self.running.get(id)
        # A session that deskfleet didn't create has no entry: it runs, and that is all.
        phase = entry.phase if entry else Phase.RUNNING
        reason = entry.reason if entry else None
        if phase is Phase.STARTING:
            reason = self.reasons.get(id)
        visitors, connections = self.presence.visitors(id), None
        if running is not None and running.connections is not None:
            visitors, connections = running.visitors, running.connections
        left = None if running is None else running.last_disconnection_at
        return Observed(
            report=Report(
                id=id,
                server_id=self.server_id,
                generation=entry.generation if entry else (running.generation if running else 0),
                phase=phase,
                reason=reason,
                connections=len(visitors) if connections is None else connections,
                visitors=visitors,
                last_disconnection_at=left or self.presence.last_disconnection_at(id),
            ),
            running=running,
            spec=spec,
        )


def _spec_of(running: Running) -> SessionSpec:
    """Return what a driver knows of a session that the journal has lost."""
    request = SessionRequest(name=running.name, owner=running.owner, type=running.type)
    return SessionSpec(
        session_id=running.session_id,
        generation=running.generation,
        request=request,
        created_at=running.created_at,
    )
