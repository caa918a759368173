"""API clients that may do less than everything, over HTTPS: a real broker with a played server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

from deskfleet.broker.service.access import Audience
from deskfleet.broker.service.clients import Clients
from deskfleet.broker.stores.memory import MemoryStore
from deskfleet.core.access import EVERYTHING, Rights, Scope
from deskfleet.core.records import ApiClient, Link, Session
from deskfleet.errors import Missing
from deskfleet.system import SystemIds
from support.builders import FastSigner, a_session
from support.house import a_house
from support.played_server import PlayedServer, some_facts
from support.running_broker import RunningBroker, read_all, running_broker
from support.waiting import until

OPERATIONS: list[tuple[str, str, Any, Scope]] = [
    ("POST", "/describeSessions", {}, Scope.DESCRIBE),
    ("POST", "/describeServers", {}, Scope.DESCRIBE),
    ("POST", "/createSessions", [], Scope.CREATE),
    ("POST", "/deleteSessions", [], Scope.DELETE),
    ("POST", "/getSessionScreenshots", [], Scope.SCREENSHOTS),
    ("PUT", "/sessionPermissions", [], Scope.PERMISSIONS),
    ("GET", "/sessionConnectionData/nothing/ada", None, Scope.CONNECT),
    ("POST", "/openServers", [], Scope.SERVERS),
    ("POST", "/closeServers", [], Scope.SERVERS),
]
"""Each with what it asks for; empty where that is enough to be let in."""

LACKING = "The token has not the scope that is wanted here."
GONE = "The requested dcvSession does not exist"
NOT_FOUND = {"error": "The requested session is not found", "RequestId": None}
PERMISSIONS = "W3Blcm1pc3Npb25zXQolb3duZXIlIGFsbG93IGJ1aWx0aW4K"


@dataclass
class World:
    broker: RunningBroker
    server: PlayedServer
    http: httpx.Client

    def client(self, rights: Rights = EVERYTHING) -> str:
        """Register a client and return its id."""
        access = self.broker.house.access
        return self.broker.call(access.register_api_client("restricted", rights)).client_id

    def restrict(self, client_id: str, rights: Rights) -> None:
        clients = Clients(self.broker.house.replica, SystemIds(), FastSigner())
        self.broker.call(clients.restrict(client_id, lambda _: rights))

    def ask(
        self, client_id: str, path: str, body: Any = None, method: str = "POST"
    ) -> httpx.Response:
        token = self.broker.sign(Audience.API, sub=client_id)
        headers = {"Authorization": f"Bearer {token}"}
        return self.http.request(method, path, json=body, headers=headers)

    def answer(self, client_id: str, path: str, body: Any = None, method: str = "POST") -> Any:
        answer = self.ask(client_id, path, body, method)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def connect(self, client_id: str, session_id: str, user: str) -> httpx.Response:
        return self.ask(client_id, f"/sessionConnectionData/{session_id}/{user}", method="GET")

    def ready(self, owner: str) -> str:
        """Create a session as the broker's own client, and wait until it runs."""
        body = [{"Name": "desk", "Owner": owner, "Type": "VIRTUAL"}]
        all_may = self.broker.client.client_id
        [made] = self.answer(all_may, "/createSessions", body)["SuccessfulList"]
        id = str(made["Id"])

        def state() -> str:
            [seen] = self.answer(all_may, "/describeSessions", {"SessionIds": [id]})["Sessions"]
            return str(seen["State"])

        until(lambda: state() == "READY")
        return id


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_broker(tmp_path_factory.mktemp("restricted") / "state") as broker:
        url = f"https://localhost:{broker.doors.agent_port}"
        facts = some_facts("n1")
        host = type(facts.host)(
            os=facts.host.os,
            memory_total=1,
            memory_used=0,
            logged_in_users=("ada", "bob", "root"),
        )
        facts = some_facts("n1", host=host)
        server = PlayedServer(url, broker.doors.ca_file, broker.statement, facts)
        with server, broker.http(broker.doors.client_port) as http:
            until(lambda: broker.house.replica.fleet.get(Link, server.id))
            yield World(broker, server, http)


class TestScopes:
    @pytest.mark.parametrize("scope", Scope)
    def test_one_opens_its_own_operations_alone(self, world: World, scope: Scope) -> None:
        client = world.client(Rights((scope.value,)))
        for method, path, body, wanted in OPERATIONS:
            answer = world.ask(client, path, body, method)
            if wanted is scope:
                # There is no such session; but who may ask is told so.
                assert answer.status_code == (404 if method == "GET" else 200), answer.text
                continue
            assert (answer.status_code, answer.json()) == (403, {"error": LACKING})
            assert answer.headers["www-authenticate"] == (
                f'Bearer error="insufficient_scope", error_description="{LACKING}",'
                f' scope="{wanted.value}"'
            )

    def test_without_any_all_are_open(self, world: World) -> None:
        client = world.client()
        for method, path, body, _ in OPERATIONS:
            assert world.ask(client, path, body, method).status_code in {200, 404}

    def test_a_word_of_another_version_opens_nothing(self, world: World) -> None:
        client = world.client(Rights(("of-another-version",)))
        statuses = {
            world.ask(client, path, b, method).status_code for method, path, b, _ in OPERATIONS
        }
        assert statuses == {403}

    def test_a_refusal_comes_before_anything_is_read(self, world: World) -> None:
        client = world.client(Rights(("describe",)))
        assert world.ask(client, "/createSessions", {"no": "list"}).status_code == 403

    def test_a_change_holds_for_tokens_that_were_given(self, world: World) -> None:
        client = world.client()
        token = world.broker.sign(Audience.API, sub=client)

        def status() -> int:
            headers = {"Authorization": f"Bearer {token}"}
            return world.http.post("/deleteSessions", json=[], headers=headers).status_code

        assert status() == 200
        world.restrict(client, Rights(("create",)))
        assert status() == 403
        world.restrict(client, Rights(("create", "delete")))
        assert status() == 200


@pytest.fixture
def unseen(tmp_path: Path) -> Iterator[tuple[RunningBroker, MemoryStore]]:
    """Run a broker that looks for what others have changed with a request only."""
    store = MemoryStore()
    with running_broker(
        tmp_path / "state", store, poll_seconds=3600.0, broker_beat_seconds=3600.0
    ) as broker:
        yield broker, store


def deactivate_elsewhere(store: MemoryStore, client_id: str) -> None:
    async def deactivated() -> None:
        async with a_house(store, broker_id="elsewhere") as other:
            clients = Clients(other.replica, SystemIds(), FastSigner())
            await clients.deactivate(ApiClient, client_id)

    asyncio.run(deactivated())


class TestChangesElsewhere:
    CREATE: ClassVar[Any] = [
        {"Name": "n", "Owner": "bob", "Type": "VIRTUAL", "EnqueueRequest": True}
    ]

    def test_the_next_request_is_refused_already(
        self, unseen: tuple[RunningBroker, MemoryStore]
    ) -> None:
        broker, store = unseen
        deactivate_elsewhere(store, broker.client.client_id)
        with broker.http(broker.doors.client_port) as http:
            headers = {"Authorization": f"Bearer {broker.token}"}
            answer = http.post("/createSessions", headers=headers, json=self.CREATE)
        assert answer.status_code == 401, answer.text
        assert broker.house.replica.fleet.count(Session) == 0

    def test_a_request_whose_body_was_held_back_is_refused(
        self, unseen: tuple[RunningBroker, MemoryStore]
    ) -> None:
        broker, store = unseen
        body = json.dumps(self.CREATE).encode()
        head = (
            "POST /createSessions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Authorization: Bearer {broker.token}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with broker.raw(broker.doors.client_port) as wire:
            wire.sendall(head.encode() + body[:1])
            # Nothing tells that the guard has let it in; it certainly has before this is over.
            time.sleep(1.0)
            deactivate_elsewhere(store, broker.client.client_id)
            wire.sendall(body[1:])
            answer = read_all(wire)
        assert answer.startswith(b"HTTP/1.1 401"), answer
        assert broker.house.replica.fleet.count(Session) == 0


@pytest.mark.parametrize("authorization", [True, False])
def test_a_read_has_what_was_committed_elsewhere(tmp_path: Path, authorization: bool) -> None:
    store = MemoryStore()
    with running_broker(
        tmp_path / "state",
        store,
        poll_seconds=3600.0,
        broker_beat_seconds=3600.0,
        enable_authorization=authorization,
    ) as broker:

        async def written() -> None:
            async with a_house(store, broker_id="elsewhere") as other:
                await other.write(a_session("s1"))

        asyncio.run(written())
        headers = {"Authorization": f"Bearer {broker.token}"} if authorization else {}
        with broker.http(broker.doors.client_port) as http:
            answer = http.post("/describeSessions", headers=headers, json={})
        assert [one["Id"] for one in answer.json()["Sessions"]] == ["s1"]


def test_connection_tokens_end_with_the_client_that_asked_for_them(world: World) -> None:
    session = world.ready("ada")
    leaves, stays = world.client(), world.client()
    admit = world.broker.house.verifier.admit
    tokens = [
        world.connect(one, session, "ada").json()["ConnectionToken"] for one in (leaves, stays)
    ]
    assert [world.broker.call(admit(session, token)) for token in tokens] == ["ada", "ada"]
    clients = Clients(world.broker.house.replica, SystemIds(), FastSigner())
    world.broker.call(clients.deactivate(ApiClient, leaves))
    with pytest.raises(Missing, match="does not open this session"):
        world.broker.call(admit(session, tokens[0]))
    assert world.broker.call(admit(session, tokens[1])) == "ada"


class TestOwners:
    @pytest.fixture(scope="module")
    @staticmethod
    def desks(world: World) -> tuple[str, str]:
        """Return a session of ada and one of bob."""
        return world.ready("ada"), world.ready("bob")

    @pytest.fixture(scope="module")
    @staticmethod
    def adas(world: World) -> str:
        """Return a client that acts for ada."""
        return world.client(Rights(owner="ada"))

    def listed(self, world: World, client: str, **query: Any) -> set[str]:
        return {one["Id"] for one in world.answer(client, "/describeSessions", query)["Sessions"]}

    def test_sessions_of_others_are_not_listed(
        self, world: World, desks: tuple[str, str], adas: str
    ) -> None:
        mine, other = desks
        all_may = world.client()
        assert self.listed(world, all_may) >= {mine, other}
        seen = world.answer(adas, "/describeSessions", {})["Sessions"]
        assert mine in {one["Id"] for one in seen}
        assert {one["Owner"] for one in seen} == {"ada"}
        assert self.listed(world, adas, SessionIds=[other]) == set()
        assert self.listed(world, adas, SessionIds=[other, mine]) == {mine}
        bob, ada = ([{"Key": "owner", "Value": name}] for name in ("bob", "ada"))
        assert self.listed(world, adas, Filters=bob) == set()
        assert self.listed(world, adas, Filters=ada) >= {mine}
        tag = [{"Key": "tag:played", "Value": "n1"}]
        assert other not in self.listed(world, adas, Filters=tag)

    def test_a_page_of_another_client_does_not_go_on(
        self, world: World, desks: tuple[str, str], adas: str
    ) -> None:
        first = world.answer(world.client(), "/describeSessions", {"MaxResults": 1})
        body = {"MaxResults": 1, "NextToken": first["NextToken"]}
        assert world.ask(adas, "/describeSessions", body).status_code == 400

    def test_only_its_own_are_created(self, world: World, adas: str) -> None:
        wishes = [
            {"Name": "n", "Owner": owner, "Type": "VIRTUAL"} for owner in ("bob", "ada", "Ada")
        ]
        answer = world.answer(adas, "/createSessions", wishes)
        assert [one["Owner"] for one in answer["SuccessfulList"]] == ["ada"]
        assert [one["FailureReason"] for one in answer["UnsuccessfulList"]] == [
            "This client may create sessions of ada only."
        ] * 2

    def test_those_of_others_look_like_none_at_all(
        self, world: World, desks: tuple[str, str], adas: str
    ) -> None:
        """Byte for byte, but for the id that was asked for."""
        _, other = desks

        def shown(answer: httpx.Response, id: str) -> tuple[int, Any]:
            told = {**json.loads(answer.text.replace(id, "ID")), "RequestId": None}
            return answer.status_code, told

        for path, method, body in (
            ("/deleteSessions", "POST", {"Owner": "bob"}),
            ("/deleteSessions", "POST", {"Owner": "bob", "Force": True}),
            ("/deleteSessions", "POST", {"Owner": "ada"}),
            ("/sessionPermissions", "PUT", {"Owner": "bob", "PermissionsFile": PERMISSIONS}),
            ("/getSessionScreenshots", "POST", {}),
        ):
            seen = [
                shown(world.ask(adas, path, [{"SessionId": id, **body}], method), id)
                for id in (other, "no-such-session")
            ]
            assert seen[0] == seen[1]
            [refused] = seen[0][1]["UnsuccessfulList"]
            assert refused["FailureReason"] in {GONE, "Dcv session not found."}
        seen = [shown(world.connect(adas, id, "ada"), id) for id in (other, "no-such-session")]
        assert seen[0] == seen[1] == (404, NOT_FOUND)
        seen = [
            shown(world.connect(adas, id, "bob"), id) for id in (other, "no-such-session", desks[0])
        ]
        assert seen[0] == seen[1] == seen[2]
        assert seen[0][0] == 403
        assert other in self.listed(world, world.client())

    def test_what_it_may_do_with_its_own(self, world: World, adas: str) -> None:
        mine = world.ready("ada")
        told = world.connect(adas, mine, "ada")
        assert (told.status_code, told.json()["Session"]["Id"]) == (200, mine)
        shot = world.answer(adas, "/getSessionScreenshots", [{"SessionId": mine}])
        assert [one["SessionScreenshot"]["SessionId"] for one in shot["SuccessfulList"]] == [mine]
        update = {"SessionId": mine, "Owner": "ada", "PermissionsFile": PERMISSIONS}
        answer = world.answer(adas, "/sessionPermissions", [update], "PUT")
        assert answer["SuccessfulList"] == [{"SessionId": mine}]
        deleted = world.answer(adas, "/deleteSessions", [{"SessionId": mine, "Owner": "ada"}])
        assert [one["SessionId"] for one in deleted["SuccessfulList"]] == [mine]

    def test_servers_are_seen_without_others_on_them_and_left_alone(
        self, world: World, adas: str
    ) -> None:
        def users(client: str) -> list[str]:
            [server] = world.answer(client, "/describeServers", {})["Servers"]
            return [one["Username"] for one in server["Host"]["LoggedInUsers"]]

        assert users(world.client()) == ["ada", "bob", "root"]
        assert users(adas) == ["ada"]
        for path in ("/openServers", "/closeServers"):
            answer = world.ask(adas, path, [{"ServerId": world.server.id}])
            assert answer.status_code == 403
            assert "everybody's" in answer.json()["error"]
            assert "www-authenticate" not in answer.headers

    def test_both_restrictions_hold_at_once(self, world: World, desks: tuple[str, str]) -> None:
        client = world.client(Rights(("describe", "servers"), "ada"))
        assert desks[1] not in self.listed(world, client)
        assert world.ask(client, "/deleteSessions", []).status_code == 403
        assert world.ask(client, "/openServers", []).status_code == 403


def test_every_operation_is_asked_here() -> None:
    assert {scope for *_, scope in OPERATIONS} == set(Scope)
    assert len({path for _, path, *_ in OPERATIONS}) == len(OPERATIONS) == 9
