"""What clients ask of servers: describe, open, close."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from deskfleet.broker.service.liveness import Liveness
from deskfleet.broker.service.placing import Placing
from deskfleet.broker.service.replica import Replica
from deskfleet.core.change import Change, ChangeSet, Put
from deskfleet.core.fleet import Place, place_of
from deskfleet.core.records import Facts, Server
from deskfleet.core.server import Seats, Unavailability, unavailability
from deskfleet.core.session import replace


class Code(StrEnum):
    """Failure codes of opening and closing. Public and append-only."""

    NOT_FOUND = "DCV_SERVER_NOT_FOUND"
    HAS_SESSIONS = "DCV_SERVER_HAS_SESSIONS"


@dataclass(frozen=True, slots=True)
class Failure:
    code: Code
    reason: str


NOT_FOUND = Failure(Code.NOT_FOUND, "Dcv server not found.")
"""Compared by clients, letter by letter."""


@dataclass(frozen=True, slots=True)
class ServerView:
    server: Server
    facts: Facts
    seats: Seats
    unavailability: Unavailability | None


@dataclass(frozen=True, slots=True)
class Closing:
    server_id: str
    force: bool = False


class Servers:
    def __init__(self, replica: Replica, liveness: Liveness, placing: Placing) -> None:
        self._replica = replica
        self._fleet = replica.fleet
        self._liveness = liveness
        self._placing = placing

    def select(self, ids: Collection[str], after: Place | None = None) -> Iterator[Server]:
        """Yield the servers after a place that have said what they are, oldest first.

        The caller has caught up.
        """
        fleet = self._fleet
        wanted = self._wanted(ids, after) if ids else fleet.listed(Server, after)
        for id in wanted:
            server = fleet.server(id)
            if server is not None and fleet.facts(id) is not None:
                yield server

    def _wanted(self, ids: Collection[str], after: Place | None) -> Iterator[str]:
        known = (server for id in set(ids) if (server := self._fleet.server(id)) is not None)
        places = sorted(place_of(server) for server in known if server.listed)
        return (id for at, id in places if after is None or (at, id) > after)

    def view(self, server: Server) -> ServerView:
        facts = self._fleet.facts(server.id)
        assert facts is not None  # `select` leaves out servers without
        seats = self._fleet.seats(server.id)
        reachable = self._liveness.is_reachable(server.id)
        return ServerView(
            server, facts, seats, unavailability(server, facts, seats, reachable=reachable)
        )

    async def open(self, ids: Sequence[str]) -> list[Failure | None]:
        answers = await self._replica.decide(
            lambda: self._decide([Closing(id, force=True) for id in ids], opened=True)
        )
        self._placing.look_again()
        return answers

    async def close(self, closings: Sequence[Closing]) -> list[Failure | None]:
        return await self._replica.decide(lambda: self._decide(closings, opened=False))

    def _decide(
        self, closings: Sequence[Closing], *, opened: bool
    ) -> tuple[list[Failure | None], ChangeSet]:
        changes: dict[str, Change] = {}
        answers: list[Failure | None] = []
        for closing in closings:
            server = self._fleet.server(closing.server_id)
            failure = self._obstacle(server, closing)
            answers.append(failure)
            if server is not None and failure is None and server.open is not opened:
                changes[server.id] = Put(
                    replace(server, open=opened), self._fleet.revision_of(Server, server.id)
                )
        return answers, tuple(changes.values())

    def _obstacle(self, server: Server | None, closing: Closing) -> Failure | None:
        if server is None or not server.listed:
            return NOT_FOUND
        taken = self._fleet.seats(server.id).taken
        if taken and not closing.force:
            told = "1 session runs" if taken == 1 else f"{taken} sessions run"
            return Failure(
                Code.HAS_SESSIONS,
                f"{told} on the server; close it with Force to leave running what runs.",
            )
        return None
