"""Where a session's server is found: what connection gateways ask.

Only sessions that can be connected to are found. Must not: change anything, or say more of a
session than its server's name, port and path.
"""

from __future__ import annotations

from dataclasses import dataclass

from deskfleet.broker.service.replica import Replica
from deskfleet.broker.service.sessions import Sessions
from deskfleet.core.dns_names import name_of
from deskfleet.core.placement import Refusal
from deskfleet.core.session import State

TRANSPORTS = ("HTTP", "QUIC")
"""What an endpoint may speak."""


@dataclass(frozen=True, slots=True)
class Found:
    dns_name: str
    port: int
    web_url_path: str


@dataclass(frozen=True, slots=True)
class NotFound:
    """Why there is nowhere to go."""

    reason: str
    is_nameless: bool = False
    """There is a server, but nobody has said by which name it is reached."""


class Resolver:
    def __init__(self, replica: Replica, sessions: Sessions) -> None:
        self._replica = replica
        self._sessions = sessions

    async def resolve(self, session_id: str, transport: str) -> Found | NotFound:
        await self._replica.catch_up()
        session = self._replica.fleet.session(session_id)
        if session is None:
            return NotFound("there is no such session")
        if session.local_id is not None:
            return NotFound(f"another server has a session {session.local_id!r}, too")
        view = self._sessions.view(session)
        if view.seen.state is not State.READY or view.facts is None:
            return NotFound(f"the session is {view.seen.state}")
        endpoint = next((one for one in view.facts.endpoints if one.protocol == transport), None)
        if endpoint is None:
            return NotFound(f"server {view.facts.id} has no endpoint for {transport}")
        name = name_of(self._replica.fleet, view.facts, endpoint)
        if isinstance(name, Refusal):
            return NotFound(name.reason, is_nameless=True)
        return Found(name, endpoint.port, endpoint.web_url_path or "/")
