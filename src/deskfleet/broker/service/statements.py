"""The software statements of a fleet: an administrator's work.

Laws: a statement is known by its hash alone; its text is kept only sealed, for the administrator
who wants to see it again. What an agent has enrolled by stays enrolled when its statement is made
inactive. Making one, and enrolling by it, are `Access`'s part.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from deskfleet.broker.service.replica import Replica
from deskfleet.core.change import Put
from deskfleet.core.records import SoftwareStatement
from deskfleet.core.session import replace
from deskfleet.errors import Missing
from deskfleet.ports import Signer


@dataclass(frozen=True, slots=True)
class StatementView:
    statement: SoftwareStatement
    text: str | None
    """None for one that was made before texts were kept."""


class Statements:
    def __init__(self, replica: Replica, signer: Signer) -> None:
        self._replica = replica
        self._signer = signer

    async def listed(self) -> list[StatementView]:
        """Return all statements, active or not, oldest first.

        Raises `SetupFailed` where the store was written with another key file.
        """
        await self._replica.catch_up()
        statements = self._replica.fleet.each(SoftwareStatement)
        ordered = sorted(statements, key=lambda one: (one.issued_at, one.id))
        return [StatementView(one, self._text(one)) for one in ordered]

    async def deactivate(self, text_or_id: str) -> None:
        """Let nobody enrol by a statement any more. Raises `Missing`."""
        await self._set(text_or_id, active=False)

    async def activate(self, text_or_id: str) -> None:
        """Let agents enrol by a statement again. Raises `Missing`."""
        await self._set(text_or_id, active=True)

    def _text(self, statement: SoftwareStatement) -> str | None:
        return None if statement.sealed is None else self._signer.unseal(statement.sealed).decode()

    async def _set(self, text_or_id: str, *, active: bool) -> None:
        fleet = self._replica.fleet

        def decision() -> tuple[bool, tuple[Put, ...]]:
            found = self._find(text_or_id)
            if found is None:
                return False, ()
            if found.active is active:
                return True, ()
            changed = replace(found, active=active)
            return True, (Put(changed, fleet.revision_of(SoftwareStatement, found.id)),)

        if not await self._replica.decide(decision):
            raise Missing("there is no software statement of this text or id")

    def _find(self, text_or_id: str) -> SoftwareStatement | None:
        digest = self._signer.hash(text_or_id.strip())
        for one in self._replica.fleet.each(SoftwareStatement):
            if one.id == text_or_id or hmac.compare_digest(one.statement_hash, digest):
                return one
        return None
