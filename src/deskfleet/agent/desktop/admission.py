"""Who has been let in: what a connection token is swapped for.

Owns the cookie that admits a browser to one session, and the reading of the claims that a token
makes about itself. The cookie is sealed with a key of this server's agent and says all there is to
say, so an admission outlives network blinks, reloads of the page and the agent itself. It is worth
nothing once its session has ended, or when it has not been renewed for twelve hours.

The claims of a token are read without trust: they say what to ask the verifier, never the answer.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jwt
import msgspec

from deskfleet.errors import SetupFailed
from deskfleet.ports import Clock, Signer

_LIFE_SECONDS = 12 * 3600.0
_RENEWAL_SECONDS = 3600.0
_MOST_COOKIE_CHARACTERS = 2048
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
    try:
        return Claims(
            session_id, float(expires_at) if isinstance(expires_at, int | float) else None
        )
    except OverflowError:
        return None


class Admission(msgspec.Struct, frozen=True, array_like=True):
    """What a cookie says."""

    session_id: str
    user: str
    granted_at: float
    """Seconds since the epoch, by the wall clock: the agent may have been started anew since."""


def cookie_name(session_id: str) -> str:
    """Return the cookie of one session; several sessions may be open in one browser."""
    return f"__Host-deskfleet-{hashlib.sha256(session_id.encode()).hexdigest()[:16]}"


class Admissions:
    """All admissions to the desktops of this server; none of them is kept here."""

    def __init__(self, clock: Clock, signer: Signer) -> None:
        self._clock = clock
        self._signer = signer

    def grant(self, session_id: str, user: str) -> str:
        """Let a verified user in: return what the session's cookie is to hold."""
        admission = Admission(session_id, user, self._clock.now().timestamp())
        sealed = self._signer.seal(msgspec.json.encode(admission))
        return base64.urlsafe_b64encode(sealed).decode().rstrip("=")

    def find(self, session_id: str, cookies: Mapping[str, str]) -> Admission | None:
        """Return the admission that a browser's cookies carry for a session."""
        admission = self._unseal(cookies.get(cookie_name(session_id), ""))
        if admission is None or admission.session_id != session_id:
            return None
        age = self._clock.now().timestamp() - admission.granted_at
        return admission if age < _LIFE_SECONDS else None

    def renewal(self, admission: Admission) -> str | None:
        """Return a fresh cookie for one that is getting on in years."""
        age = self._clock.now().timestamp() - admission.granted_at
        return self.grant(admission.session_id, admission.user) if age > _RENEWAL_SECONDS else None

    def ended(self, cookies: Mapping[str, str], is_alive: Callable[[str], bool]) -> list[str]:
        """Return the cookies of sessions that are over; no WebSocket opens with fifty of them."""
        admissions = {name: self._unseal(cookie) for name, cookie in cookies.items()}
        return [
            name
            for name, admission in admissions.items()
            if admission is not None and not is_alive(admission.session_id)
        ]

    def _unseal(self, cookie: str) -> Admission | None:
        if not cookie or len(cookie) > _MOST_COOKIE_CHARACTERS:
            return None
        try:
            sealed = base64.urlsafe_b64decode(cookie + "=" * (-len(cookie) % 4))
            return msgspec.json.decode(self._signer.unseal(sealed), type=Admission)
        except (SetupFailed, ValueError, binascii.Error, msgspec.MsgspecError):
            return None
