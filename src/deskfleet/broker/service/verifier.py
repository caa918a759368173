"""What desktop servers ask of connection tokens: whom does this one let in?

Laws: a yes that binds or spends a token leaves after that was committed, under the precondition of
what was known of the token's uses; of two brokers that are asked at once, one commits. A no says
as little as possible: its reason is the same for all that is wrong with a token's session. A token
ends with those of the client that it was given to; one that names no client has none to end with.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from deskfleet.broker.service.access import Access, Audience
from deskfleet.broker.service.replica import Replica
from deskfleet.broker.service.signing_keys import MARGIN
from deskfleet.core import session as rules
from deskfleet.core.change import ChangeSet, Put
from deskfleet.core.fleet import Fleet
from deskfleet.core.placement import Refusal
from deskfleet.core.records import ApiClient, TokenUse
from deskfleet.core.session import Stage
from deskfleet.core.token_uses import client_address, use
from deskfleet.errors import Missing


class Verifier:
    def __init__(self, replica: Replica, access: Access, *, single_use: bool = False) -> None:
        self._replica = replica
        self._fleet = replica.fleet
        self._access = access
        self._single_use = single_use

    async def admit(self, session_id: str, token: str, address: str = "") -> str:
        """Return the user that a connection token lets into a session, from this address.

        Raises `Unauthenticated` for a token that is not ours, and `Missing` where it does not
        open this session (any more), or not from there.
        """
        return await self._replica.decide(lambda: self._decide(session_id, token, address))

    def _decide(self, session_id: str, token: str, address: str) -> tuple[str, ChangeSet]:
        claims = self._access.verify(Audience.CONNECT, token)
        session = self._fleet.session(session_id)
        if (
            session is None
            or claims.get("dcvSessionId") != session_id
            or claims.get("dcvSessionGeneration") != session.generation
            or rules.stage(session) is not Stage.PLACED
            or not self._is_of_client(claims)
        ):
            raise Missing("the token does not open this session")
        asked = TokenUse(
            id=str(claims["jti"]),
            expires_at=datetime.fromtimestamp(claims["exp"], UTC),
            client_address=client_address(address),
        )
        news = use(self._fleet.get(TokenUse, asked.id), asked, single_use=self._single_use)
        if isinstance(news, Refusal):
            raise Missing(news.reason)
        expect = self._fleet.revision_of(TokenUse, asked.id)
        return str(claims["dcvSessionUser"]), () if news is None else (Put(news, expect),)

    def _is_of_client(self, claims: Mapping[str, Any]) -> bool:
        """Say whether the client that asked for a token still has its tokens."""
        if "client_id" not in claims:
            # For an external token, where nobody has to say who they are, or from an older version.
            return True
        client = self._fleet.get(ApiClient, str(claims["client_id"]))
        return client is not None and client.active and client.token_era == claims.get("era")


def spent(fleet: Fleet, now: datetime) -> list[str]:
    """Return the tokens of which something is remembered, expired by every broker's clock."""
    return fleet.ended(TokenUse, now - MARGIN - datetime.resolution)
