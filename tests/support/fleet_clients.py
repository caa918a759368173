"""What clients ask of a fleet, and the ledger of what they were told.

Each call runs beside everything else and may be answered much later, or never; only an answer
counts. What a yes says must be in the store when it is given, and the auditor sees to it that it
stays there.
"""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from deskfleet.broker.service.placing import ENDING
from deskfleet.broker.service.servers import Closing, Failure
from deskfleet.broker.service.sessions import Deletion, PermissionsUpdate
from deskfleet.core.placement import Refusal
from deskfleet.core.queue import Outcome
from deskfleet.core.records import Session, SessionRequest
from deskfleet.core.session import Stage, State, replace, stage
from deskfleet.errors import StoreFailed, Unavailable
from support.fake_brokers import BrokerNode
from support.fleet_world import World


class Clients:
    def __init__(self, world: World) -> None:
        self._world = world
        self._auditor = world.auditor
        self._must = world.verdict.must
        self._turning: Counter[str] = Counter()
        """Calls under way that open or close a server."""
        self._turned: Counter[str] = Counter()
        """All such calls."""
        self._updates = 0
        self._batches = 0
        self.created: dict[str, None] = {}
        """What some client was told to have been created."""
        self.calls = 0
        self.answers = 0

    def create(self, node: BrokerNode, requests: Sequence[SessionRequest]) -> None:
        self._batches += 1
        name = f"batch {self._batches}"
        named = [replace(request, name=name) for request in requests]
        task = self._call(node, node.sessions.create(named), self._created)
        task.add_done_callback(lambda done: self._refused(name, done))

    def _refused(self, name: str, task: asyncio.Task[Any]) -> None:
        """Check that nothing was written of a batch that has to be asked for again."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Unavailable) and str(error) != ENDING:
            there = [
                one.id for one in self._auditor.truth.each(Session) if one.request.name == name
            ]
            self._must(not there, f"{there} are there, and their client was told to come again")

    def _created(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Session):
                self._must(outcome.id in self._auditor.known, f"{outcome.id} is not in the store")
                self.created[outcome.id] = None

    def delete(self, node: BrokerNode, session_id: str, owner: str, *, force: bool) -> None:
        session = self._auditor.truth.session(session_id)
        owned = session is not None and session.request.owner == owner
        if owned and force:
            self._auditor.force_wanted.add(session_id)
        if owned:
            self._auditor.delete_wanted.add(session_id)

        def answered(answers: list[Refusal | State]) -> None:
            [answer] = answers
            if isinstance(answer, Refusal):
                return
            self._must(owned, f"{session_id} is deleted by somebody else")
            left = self._auditor.truth.session(session_id)
            if session_id not in self._auditor.force_wanted:
                gone = left is not None and stage(left) in {Stage.STOPPING, Stage.ENDED}
                self._must(gone, f"{session_id} is said to be deleted, and is not: {left}")

        self._call(node, node.sessions.delete([Deletion(session_id, owner, force)]), answered)

    def permit(self, node: BrokerNode, session_id: str, owner: str) -> None:
        self._updates += 1
        text = f"; {self._updates}\n[permissions]\n%owner% allow builtin\n"
        file = base64.b64encode(text.encode()).decode()

        def answered(answers: list[Refusal | None]) -> None:
            if answers == [None]:
                known = self._auditor.permissions.get(session_id, [])
                self._must(file in known, f"the permissions of {session_id} are not stored")

        update = PermissionsUpdate(session_id, owner, file)
        self._call(node, node.sessions.update_permissions([update]), answered)

    def open(self, node: BrokerNode, server_id: str) -> None:
        self._turn(node, server_id, node.servers.open([server_id]), opened=True)

    def close(self, node: BrokerNode, server_id: str, *, force: bool) -> None:
        closing = node.servers.close([Closing(server_id, force)])
        self._turn(node, server_id, closing, opened=False)

    def _turn(
        self,
        node: BrokerNode,
        server_id: str,
        call: Coroutine[Any, Any, list[Failure | None]],
        *,
        opened: bool,
    ) -> None:
        alone = not self._turning[server_id]
        self._turning[server_id] += 1
        self._turned[server_id] += 1
        count = self._turned[server_id]

        def answered(answers: list[Failure | None]) -> None:
            server = self._auditor.truth.server(server_id)
            undisturbed = alone and count == self._turned[server_id]
            if answers == [None] and undisturbed and server is not None:
                self._must(server.open is opened, f"{server_id} is not {opened} as was answered")

        task = self._call(node, call, answered)
        task.add_done_callback(lambda _done: self._turning.subtract([server_id]))

    def _call(
        self,
        node: BrokerNode,
        call: Coroutine[Any, Any, Any],
        answered: Callable[[Any], None],
    ) -> asyncio.Task[Any]:
        self.calls += 1

        def done(task: asyncio.Task[Any]) -> None:
            if task.cancelled():
                return
            error = task.exception()
            if error is None:
                self.answers += 1
                answered(task.result())
            else:
                known = isinstance(error, Unavailable | StoreFailed)
                self._must(known, f"a call failed: {error!r}")

        task = self._world.loop.begin(node.name, call)
        task.add_done_callback(done)
        return task
