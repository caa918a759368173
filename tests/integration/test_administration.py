"""Clients, statements and brokers as an administrator's commands see and change them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from deskfleet.broker.service.clients import Clients
from deskfleet.broker.service.statements import Statements
from deskfleet.broker.service.watch import Watch
from deskfleet.broker.stores.memory import MemoryStore
from deskfleet.core.access import EVERYTHING, Rights, rights_of
from deskfleet.core.records import AgentClient, ApiClient, SoftwareStatement
from deskfleet.core.session import replace
from deskfleet.errors import Forbidden, Invalid, InvalidToken, Missing, Unauthenticated
from deskfleet.system import SystemClock, SystemIds
from support.builders import NOON, FastSigner, a_broker
from support.house import PlayedAgent, TestHouse, a_house, signing_key
from support.waiting import soon

LIFE = timedelta(hours=1)
LIMIT_SECONDS = 20.0


def run(scenario: Callable[[TestHouse], Awaitable[None]], **house: Any) -> None:
    async def whole() -> None:
        async with a_house(**house) as opened:
            await opened.write(signing_key())
            await scenario(opened)

    asyncio.run(whole())


def clients_of(house: TestHouse) -> Clients:
    return Clients(house.replica, SystemIds(), FastSigner())


def statements_of(house: TestHouse) -> Statements:
    return Statements(house.replica, FastSigner())


class TestClients:
    def test_who_is_deactivated_loses_its_tokens_for_good(self) -> None:
        async def scenario(house: TestHouse) -> None:
            access, clients = house.access, clients_of(house)
            given = await access.register_api_client("portal")
            id, password = given.client_id, given.client_password
            old = access.api_token(id, password, life=LIFE)
            assert access.api_client(old).id == id
            await clients.deactivate(ApiClient, id)
            with pytest.raises(InvalidToken, match="not active"):
                access.api_client(old)
            with pytest.raises(Unauthenticated):
                access.api_token(id, password, life=LIFE)
            await clients.activate(ApiClient, id)
            with pytest.raises(InvalidToken, match="revoked"):
                access.api_client(old)
            assert access.api_client(access.api_token(id, password, life=LIFE)).active

        run(scenario)

    def test_changing_what_already_is_so_writes_nothing(self) -> None:
        async def scenario(house: TestHouse) -> None:
            clients = clients_of(house)
            given = await house.access.register_api_client("portal")
            await clients.deactivate(ApiClient, given.client_id)
            before = house.replica.fleet.revision
            await clients.deactivate(ApiClient, given.client_id)
            [listed] = await clients.listed(ApiClient)
            assert (listed.active, house.replica.fleet.revision) == (False, before)

        run(scenario)

    @pytest.mark.parametrize("keep_tokens", [False, True])
    def test_a_new_password_ends_the_old_one(self, keep_tokens: bool) -> None:
        async def scenario(house: TestHouse) -> None:
            access, clients = house.access, clients_of(house)
            given = await access.register_api_client("portal")
            token = access.api_token(given.client_id, given.client_password, life=LIFE)
            fresh = await clients.renew_password(given.client_id, keep_tokens=keep_tokens)
            assert fresh.client_id == given.client_id
            assert fresh.client_password != given.client_password
            with pytest.raises(Unauthenticated):
                access.api_token(given.client_id, given.client_password, life=LIFE)
            if keep_tokens:
                assert access.api_client(token).id == given.client_id
            else:
                with pytest.raises(InvalidToken, match="revoked"):
                    access.api_client(token)
            again = access.api_token(fresh.client_id, fresh.client_password, life=LIFE)
            assert access.api_client(again).id == given.client_id

        run(scenario)

    def test_a_restriction_changes_only_what_it_names(self) -> None:
        async def scenario(house: TestHouse) -> None:
            clients = clients_of(house)
            given = await house.access.register_api_client("portal", Rights(("create",), "ada"))
            id = given.client_id

            async def restricted(**change: Any) -> Rights:
                return await clients.restrict(
                    id, lambda now: Rights(**{"scopes": now.scopes, "owner": now.owner, **change})
                )

            assert await restricted(owner="bob") == Rights(("create",), "bob")
            assert await restricted(scopes=()) == Rights((), "bob")
            assert await restricted(owner=None) == EVERYTHING
            with pytest.raises(Invalid):
                await restricted(owner="ada", scopes=("servers",))
            [listed] = await clients.listed(ApiClient)
            assert rights_of(listed) == EVERYTHING

        run(scenario)

    @pytest.mark.parametrize("name", ["", "a\x1b[2Jb", "n" * 257])
    def test_names_that_are_none(self, name: str) -> None:
        async def scenario(house: TestHouse) -> None:
            with pytest.raises(Invalid, match="name"):
                await house.access.register_api_client(name)

        run(scenario)

    def test_the_kinds_do_not_mix_and_nobody_is_made_up(self) -> None:
        async def scenario(house: TestHouse) -> None:
            clients = clients_of(house)
            api = await house.access.register_api_client("portal")
            agent = await house.access.register_any_agent("n1")
            for change in (clients.deactivate, clients.activate):
                with pytest.raises(Missing, match=agent.client_id):
                    await change(ApiClient, agent.client_id)
                with pytest.raises(Missing, match=api.client_id):
                    await change(AgentClient, api.client_id)
            with pytest.raises(Missing):
                await clients.renew_password(agent.client_id, keep_tokens=True)
            with pytest.raises(Missing):
                await clients.restrict("nobody", lambda now: now)

        run(scenario)


class TestStatements:
    def test_a_text_is_kept_sealed_and_found_by_text_or_id(self) -> None:
        async def scenario(house: TestHouse) -> None:
            access, statements = house.access, statements_of(house)
            text = await access.generate_software_statement()
            [view] = await statements.listed()
            assert view.text == text
            assert view.statement.sealed is not None
            assert text.encode() not in view.statement.sealed
            for name in (text, view.statement.id, f"{text}\n"):
                await statements.deactivate(name)
                with pytest.raises(Forbidden):
                    await access.register_agent(text, "n1")
                await statements.activate(name)
                await access.register_agent(text, "n1")
            for wrong in ("", "x", text[:-1], view.statement.id.upper()):
                with pytest.raises(Missing):
                    await statements.deactivate(wrong)

        run(scenario)

    def test_one_whose_text_was_not_kept(self) -> None:
        async def scenario(house: TestHouse) -> None:
            digest = FastSigner().hash("old text")
            old = SoftwareStatement(id="old", statement_hash=digest, issued_at=NOON)
            await house.write(old)
            statements = statements_of(house)
            [view] = await statements.listed()
            assert (view.text, view.statement) == (None, old)
            await statements.deactivate("old text")
            [view] = await statements.listed()
            assert not view.statement.active

        run(scenario)


class TestRevokedAgents:
    def test_the_link_ends_and_the_server_is_lost(self) -> None:
        async def scenario(house: TestHouse) -> None:
            agent = await house.access.register_any_agent("n1")
            other = await house.access.register_any_agent("n2")
            played = await PlayedAgent(house, agent.client_id).connect()
            stays = await PlayedAgent(house, other.client_id).connect()
            assert house.liveness.is_reachable(agent.client_id)
            await clients_of(house).deactivate(AgentClient, agent.client_id)
            async with asyncio.timeout(LIMIT_SECONDS):
                await played.session.ended.wait()
            await played.part()
            await soon(lambda: not house.liveness.is_reachable(agent.client_id))
            assert not stays.session.ended.is_set()
            assert house.liveness.is_reachable(other.client_id)

        run(scenario)

    def test_one_that_is_revoked_while_it_links_is_not_held(self) -> None:
        """The news may come between the check of its token and the moment its link is held."""

        async def scenario(house: TestHouse) -> None:
            agent = await house.access.register_any_agent("n1")
            played = PlayedAgent(house, agent.client_id)
            await clients_of(house).deactivate(AgentClient, agent.client_id)
            with pytest.raises(Forbidden, match="revoked"):
                await played.connect()
            assert played.said == []
            await played.part()
            await soon(lambda: not house.liveness.is_reachable(agent.client_id))
            assert house.links.of(agent.client_id) is None

        run(scenario)

    def test_the_link_ends_also_where_it_is_activated_before_anybody_looked(self) -> None:
        store = MemoryStore()

        async def scenario(house: TestHouse) -> None:
            agent = await house.access.register_any_agent("n1")
            played = await PlayedAgent(house, agent.client_id).connect()
            async with a_house(store, broker_id="b2") as other:
                await clients_of(other).deactivate(AgentClient, agent.client_id)
                await clients_of(other).activate(AgentClient, agent.client_id)
            await house.replica.catch_up()
            assert played.session.ended.is_set()
            await played.part()
            again = await PlayedAgent(house, agent.client_id).connect()
            assert not again.session.ended.is_set()

        run(scenario, store=store)

    def test_one_that_was_let_in_before_that_is_not_held(self) -> None:
        async def scenario(house: TestHouse) -> None:
            agent = await house.access.register_any_agent("n1")
            played = PlayedAgent(house, agent.client_id)
            await clients_of(house).deactivate(AgentClient, agent.client_id)
            await clients_of(house).activate(AgentClient, agent.client_id)
            with pytest.raises(Forbidden, match="revoked"):
                await played.connect()

        run(scenario)


class TestWatch:
    BEAT = 0.2

    def watch(self, house: TestHouse) -> Watch:
        return Watch(house.replica, SystemClock(), self.BEAT)

    def test_who_beats_lives_and_who_is_silent_for_four_beats_is_dead(self) -> None:
        async def scenario(house: TestHouse) -> None:
            await house.write(a_broker("b2"), a_broker("b3"))
            watch = self.watch(house)
            beating = asyncio.create_task(_beat_for_ever(house, "b3", self.BEAT))
            seen = await watch.look()
            beating.cancel()
            assert [(one.broker.id, one.alive) for one in seen] == [("b2", False), ("b3", True)]

        run(scenario)

    def test_nothing_is_said_of_whom_it_did_not_hear_for_long_enough(self) -> None:
        async def scenario(house: TestHouse) -> None:
            await house.write(a_broker("b2", beat=10**9))
            [seen] = await self.watch(house).look(0.0)
            assert seen.alive is None

        run(scenario)

    def test_who_has_said_that_it_ends_is_not_listened_for(self) -> None:
        async def scenario(house: TestHouse) -> None:
            await house.write(a_broker("b2", beat=7, retired=True))
            assert await self.watch(house).look() == []

        run(scenario)

    def test_it_ends_as_soon_as_all_are_heard_or_gone(self) -> None:
        async def scenario(house: TestHouse) -> None:
            assert await self.watch(house).look() == []
            await house.write(a_broker("b2"))
            # Four beats of an hour: it would not end within the test.
            watch = Watch(house.replica, SystemClock(), 3600.0)
            looking = asyncio.create_task(watch.look())
            await asyncio.sleep(0)
            await house.write(a_broker("b2", beat=1))
            async with asyncio.timeout(LIMIT_SECONDS):
                [seen] = await looking
            assert seen.alive is True

        run(scenario)


async def _beat_for_ever(house: TestHouse, id: str, every: float) -> None:
    beat = 0
    while True:
        beat += 1
        await house.write(replace(a_broker(id), beat=beat))
        await asyncio.sleep(every)
