"""Who has been let in: what a connection token is swapped for.

Owns the table of admissions (a random id in a cookie -> session and user) and the reading of the
claims that a token makes about itself. An admission outlives network blinks and reloads of the
page; it ends with its session, or when it has not been used for twelve hours. The table lives in
memory only: a new agent asks browsers for new links.

The claims of a token are read without trust: they say what to ask the verifier, never the answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import jwt

from deskfleet.ports import Clock, Ids

_IDLE_SECONDS = 12 * 3600.0
_MOST_PER_VISITOR = 16
"""A person reloads links; the oldest admissions of the same person to the same session go first."""
_MOST_TOKEN_CHARACTERS = 8192


@dataclass(frozen=True, slots=True)
class Claims:
    """What a connection token says of itself, unverified."""

    session_id: str
    expires_at: float | None


def read_claims(token: str) -> Claims | None:
    """Read a token's claims, None for what isn't a connection token at all."""
    if len(token) > _MOST_TOKEN_CHARACTERS:
        return None
    try:
        payload = jwt.decode(token, options={"verify_signature": False})
    except jwt.PyJWTError:
        return None
    session_id, expires_at = payload.get("dcvSessionId"), payload.get("exp")
    if not isinstance(session_id, str) or not session_id:
        return None
    return Claims(session_id, float(expires_at) if isinstance(expires_at, int | float) else None)


@dataclass(slots=True)
class Admission:
    session_id: str
    user: str
    used_at: float
    """By the monotonic clock."""


def cookie_name(session_id: str) -> str:
    """Return the cookie of one session; several sessions may be open in one browser."""
    return f"__Host-deskfleet-{hashlib.sha256(session_id.encode()).hexdigest()[:16]}"


class Admissions:
    """All admissions of this server."""

    def __init__(self, clock: Clock, ids: Ids) -> None:
        self._clock = clock
        self._ids = ids
        self._table: dict[str, Admission] = {}

    def grant(self, session_id: str, user: str) -> str:
        """Let a verified user in and return the secret that the cookie carries."""
        self._sweep()
        same = [
            key
            for key, admission in self._table.items()
            if (admission.session_id, admission.user) == (session_id, user)
        ]
        for key in same[: max(0, len(same) - _MOST_PER_VISITOR + 1)]:
            del self._table[key]
        key = self._ids.secret()
        self._table[key] = Admission(session_id, user, self._clock.monotonic())
        return key

    def find(self, session_id: str, cookies: Mapping[str, str]) -> Admission | None:
        """Return the admission that a browser's cookies carry for a session, and mark its use."""
        admission = self._table.get(cookies.get(cookie_name(session_id), ""))
        if admission is None or admission.session_id != session_id or self._is_idle(admission):
            return None
        admission.used_at = self._clock.monotonic()
        return admission

    def end(self, session_id: str) -> None:
        """Drop all admissions to a session."""
        for key, admission in tuple(self._table.items()):
            if admission.session_id == session_id:
                del self._table[key]

    def _sweep(self) -> None:
        for key, admission in tuple(self._table.items()):
            if self._is_idle(admission):
                del self._table[key]

    def _is_idle(self, admission: Admission) -> bool:
        return self._clock.monotonic() - admission.used_at > _IDLE_SECONDS
