"""API clients that may do less than everything, over HTTPS: a real broker with a played server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from deskfleet.broker.service.access import Audience
from deskfleet.broker.service.clients import Clients
from deskfleet.core.access import EVERYTHING, Rights, Scope
from deskfleet.core.records import Link
from deskfleet.system import SystemIds
from support.builders import FastSigner
from support.played_server import PlayedServer, some_facts
from support.running_broker import RunningBroker, running_broker
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
