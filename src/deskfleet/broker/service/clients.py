"""The clients of a fleet, API clients and agents alike: an administrator's work.

Laws: nobody is ever forgotten, only made inactive, so that what a log says of an id keeps its
meaning; who is made inactive loses the tokens that were given for good, also when activated again.
Changing what already is so changes nothing, and is no error. Enrolling is `Access`'s part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from deskfleet.broker.service.access import Credentials, fresh_password
from deskfleet.broker.service.replica import Replica
from deskfleet.core.access import Rights, check_restrictions, rights_of
from deskfleet.core.change import Put
from deskfleet.core.records import AgentClient, ApiClient
from deskfleet.core.session import replace
from deskfleet.errors import Missing
from deskfleet.ports import Ids, Signer

C = TypeVar("C", ApiClient, AgentClient)


class Clients:
    def __init__(self, replica: Replica, ids: Ids, signer: Signer) -> None:
        self._replica = replica
        self._ids = ids
        self._signer = signer

    async def listed(self, kind: type[C]) -> list[C]:
        """Return all clients of a kind, active or not, oldest first."""
        await self._replica.catch_up()
        clients = self._replica.fleet.each(kind)
        return sorted(clients, key=lambda one: (one.created_at, one.id))

    async def deactivate(self, kind: type[C], client_id: str) -> None:
        """Let a client in no more, from now on. Raises `Missing`."""
        await self._change(kind, client_id, _deactivated)

    async def activate(self, kind: type[C], client_id: str) -> None:
        """Let a client in again, with its old password. Raises `Missing`."""
        await self._change(kind, client_id, lambda one: replace(one, active=True))

    async def renew_password(self, client_id: str, *, keep_tokens: bool) -> Credentials:
        """Give an API client a new password; the old one is good for nothing from now on.

        So are the tokens that were given for it, unless they are to be kept for their life.
        Raises `Missing`.
        """
        password = fresh_password(self._ids)
        digest = self._signer.hash(password)

        def renewed(client: ApiClient) -> ApiClient:
            era = client.token_era + (not keep_tokens)
            return replace(client, secret_hash=digest, token_era=era)

        await self._change(ApiClient, client_id, renewed)
        return Credentials(client_id, password)

    async def restrict(self, client_id: str, change: Callable[[Rights], Rights]) -> Rights:
        """Change what an API client may do, and return that. Its tokens follow at once.

        Raises `Missing` and `Invalid`.
        """

        def restricted(client: ApiClient) -> ApiClient:
            rights = change(rights_of(client))
            check_restrictions(rights)
            return replace(client, scopes=rights.scopes, owner=rights.owner)

        return rights_of(await self._change(ApiClient, client_id, restricted))

    async def _change(self, kind: type[C], client_id: str, change: Callable[[C], C]) -> C:
        fleet = self._replica.fleet

        def decision() -> tuple[C | None, tuple[Put, ...]]:
            before = fleet.get(kind, client_id)
            if before is None:
                return None, ()
            after = change(before)
            if after == before:
                return before, ()
            return after, (Put(after, fleet.revision_of(kind, client_id)),)

        changed = await self._replica.decide(decision)
        if changed is None:
            raise Missing(f"there is no {_NAMES[kind]} with the id {client_id}")
        return changed


_NAMES: dict[type[ApiClient | AgentClient], str] = {
    ApiClient: "API client",
    AgentClient: "agent client",
}


def _deactivated(client: C) -> C:
    if not client.active:
        return client
    return replace(client, active=False, token_era=client.token_era + 1)
