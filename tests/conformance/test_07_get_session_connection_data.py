"""GetSessionConnectionData: what a user needs to connect to a session."""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime
from urllib.parse import urlsplit

import jwt
import pytest

from deskfleet.core.records import Endpoint, Phase
from support.conformance import UNKNOWN_ID, Api, OwnFleet, Play, on
from support.waiting import until

ENDPOINTS = [
    {"IpAddress": "192.0.2.10", "Port": 8443, "Protocol": "QUIC"},
    {"IpAddress": "192.0.2.10", "Port": 8443, "Protocol": "HTTP", "WebUrlPath": "/desk"},
    {"IpAddress": "2001:db8::10", "Port": 9443, "Protocol": "HTTP", "WebUrlPath": "/"},
]


@pytest.fixture
def used(api: Api, owner: str, play: Play) -> str:
    """Return the id of a session of which everything is known, on a server with all endpoints."""
    server = play(
        endpoints=(
            Endpoint(ip_address="192.0.2.10", port=8443, web_url_path=None, protocol="QUIC"),
            Endpoint(ip_address="192.0.2.10", port=8443, web_url_path="/desk"),
            Endpoint(ip_address="2001:db8::10", port=9443),
        ),
        tags={"played": owner, "color": "blue"},
    )
    session_id = api.ready(owner, MaxConcurrentClients=3, StorageRoot="%home%/desk", **on(server))
    left = datetime(2020, 10, 6, 10, 15, 31, 633000, UTC)
    server.report(session_id, connections=2, last_disconnection_at=left)
    until(lambda: (api.describe(session_id) or {})["NumOfConnections"] == 2)
    return session_id


def claims(token: str) -> dict[str, object]:
    return dict(jwt.decode(token, options={"verify_signature": False}))


class TestRequestParameters:
    def test_session_id(self, api: Api, owner: str, session: str) -> None:
        assert api.connection_data(session, owner)["Session"]["Id"] == session

    @pytest.mark.parametrize(
        "user",
        [
            "user1",
            "DOMAIN\\user",
            "a/b",
            "user@example.com",
            "user 1",
            "%owner%",
            "Jürgen",
            "a+b&c?d#e",
        ],
    )
    def test_user(self, api: Api, session: str, user: str) -> None:
        assert api.connection_data(session, user)["ConnectionToken"]

    @pytest.mark.own_broker
    @pytest.mark.parametrize("user", ["DOMAIN\\user@example.com", "DOMAIN/user", "/", "a//b"])
    def test_user_may_stand_raw_in_the_path(self, api: Api, session: str, user: str) -> None:
        answer = api.send("GET", f"/sessionConnectionData/{session}/{user}")
        assert claims(answer.json()["ConnectionToken"])["dcvSessionUser"] == user

    @pytest.mark.own_broker
    @pytest.mark.parametrize("form", ["a/{}", "/{}", "{}/", "a/b c%2F{}", "ü?#{}"])
    def test_session_id_of_any_characters_is_encoded_whole(
        self, api: Api, owner: str, play: Play, form: str
    ) -> None:
        server = play()
        session_id = form.format(uuid.uuid4())
        server.show(session_id, owner)
        api.wait(session_id, "READY")
        data = api.connection_data(session_id, "DOMAIN/user")
        assert data["Session"]["Id"] == session_id
        assert claims(data["ConnectionToken"])["dcvSessionUser"] == "DOMAIN/user"


class TestResponseParameters:
    @pytest.mark.parametrize(
        "member",
        ["Id", "Name", "Owner", "Type", "State", "CreationTime", "NumOfConnections", "Server"],
    )
    def test_session_member(self, api: Api, owner: str, session: str, member: str) -> None:
        described = api.describe(session) or {}
        assert api.connection_data(session, owner)["Session"][member] == described[member]

    @pytest.mark.parametrize(
        "member", ["Ip", "Hostname", "Port", "Endpoints", "WebUrlPath", "Tags"]
    )
    def test_server_member(self, api: Api, owner: str, session: str, member: str) -> None:
        assert member in api.connection_data(session, owner)["Session"]["Server"]

    @pytest.mark.own_broker
    def test_num_of_connections_counts_those_of_the_user(
        self, api: Api, owner: str, play: Play
    ) -> None:
        server = play()
        session_id = api.ready(owner, **on(server))

        def counted(user: str) -> int:
            count: int = api.connection_data(session_id, user)["Session"]["NumOfConnections"]
            return count

        server.report(session_id, connections=3, visitors=("user1", "user1", "user2"))
        until(lambda: (api.describe(session_id) or {})["NumOfConnections"] == 3)
        assert [counted(user) for user in ("user1", "user2", "user3")] == [2, 1, 0]
        server.report(session_id, connections=2, visitors=())
        until(lambda: (api.describe(session_id) or {})["NumOfConnections"] == 2)
        # Their server doesn't say whose they are: each may be anybody's.
        assert counted("user3") == 2

    @pytest.mark.own_broker
    @pytest.mark.parametrize(
        ("member", "value"),
        [
            ("MaxConcurrentClients", 3),
            ("StorageRoot", "%home%/desk"),
            ("NumOfConnections", 2),
            ("LastDisconnectionTime", "2020-10-06T10:15:31.633Z"),
        ],
    )
    def test_session_member_that_not_every_session_has(
        self, api: Api, used: str, member: str, value: object
    ) -> None:
        assert api.connection_data(used, "somebody")["Session"][member] == value

    @pytest.mark.own_broker
    @pytest.mark.parametrize("member", ["IpAddress", "Port", "Protocol", "WebUrlPath"])
    def test_endpoints_member(self, api: Api, used: str, member: str) -> None:
        endpoints = api.connection_data(used, "somebody")["Session"]["Server"]["Endpoints"]
        assert [one.get(member) for one in endpoints] == [one.get(member) for one in ENDPOINTS]

    @pytest.mark.own_broker
    def test_endpoints_of_the_quic_protocol_have_no_web_url_path(self, api: Api, used: str) -> None:
        server = api.connection_data(used, "somebody")["Session"]["Server"]
        (quic,) = (one for one in server["Endpoints"] if one["Protocol"] == "QUIC")
        assert "WebUrlPath" not in quic
        # What stands beside the endpoints is that of the first one that browsers can use.
        assert (server["Port"], server["WebUrlPath"]) == ("8443", "/desk")

    @pytest.mark.own_broker
    def test_server_tags_are_those_of_the_server(self, api: Api, used: str) -> None:
        tags = api.connection_data(used, "somebody")["Session"]["Server"]["Tags"]
        assert {"Key": "color", "Value": "blue"} in tags

    def test_there_is_no_request_id(self, api: Api, owner: str, session: str) -> None:
        assert set(api.connection_data(session, owner)) == {"Session", "ConnectionToken"}


class TestConnectionToken:
    def test_can_stand_in_a_url_as_it_is(self, api: Api, owner: str, session: str) -> None:
        token = api.connection_data(session, owner)["ConnectionToken"]
        assert re.fullmatch(r"[A-Za-z0-9._~-]+", token)

    def test_is_a_signed_jwt(self, api: Api, owner: str, session: str) -> None:
        head = jwt.get_unverified_header(api.connection_data(session, owner)["ConnectionToken"])
        assert head["typ"] == "JWT"
        assert head["kid"]
        assert head["alg"] in {"RS256", "ES256"}

    @pytest.mark.own_broker
    def test_is_signed_with_rs256(self, api: Api, owner: str, session: str) -> None:
        token = api.connection_data(session, owner)["ConnectionToken"]
        assert jwt.get_unverified_header(token)["alg"] == "RS256"

    def test_says_which_session_it_is_for(self, api: Api, owner: str, session: str) -> None:
        told = claims(api.connection_data(session, "somebody")["ConnectionToken"])
        assert told["dcvSessionId"] == session
        assert told["dcvSessionOwner"] == owner
        assert told["dcvSessionUser"] == "somebody"

    @pytest.mark.own_broker
    def test_is_good_for_an_hour(self, api: Api, owner: str, session: str) -> None:
        told = claims(api.connection_data(session, owner)["ConnectionToken"])
        assert int(str(told["exp"])) - int(str(told["iat"])) == 3600

    def test_is_a_new_one_each_time(self, api: Api, owner: str, session: str) -> None:
        tokens = [api.connection_data(session, owner)["ConnectionToken"] for _ in range(3)]
        assert len({claims(token)["jti"] for token in tokens}) == 3


class TestFailures:
    def test_an_unknown_session_is_not_found(self, api: Api) -> None:
        answer = api.connection(UNKNOWN_ID, "user1")
        assert answer.status_code in {400, 404}
        assert "not found" in api.reason(answer)

    @pytest.mark.own_broker
    def test_a_session_that_is_not_ready_yet_is_worth_another_try(
        self, api: Api, owner: str, play: Play
    ) -> None:
        server = play()
        server.starts = Phase.STARTING
        session_id = api.create(owner, **on(server))["Id"]
        until(lambda: server.starts_asked)
        answer = api.connection(session_id, owner)
        assert answer.status_code == 400
        assert "neither in READY" in api.reason(answer)
        assert not re.search("invalid|not found", api.reason(answer), re.IGNORECASE)

    @pytest.mark.own_broker
    def test_nobody_connects_to_a_deleted_session(self, api: Api, owner: str, session: str) -> None:
        api.delete(session, owner)
        api.wait(session, "DELETED")
        assert api.connection(session, owner).status_code == 400

    @pytest.mark.own_broker
    def test_nobody_connects_while_the_state_is_unknown(
        self, api: Api, owner: str, play: Play
    ) -> None:
        server = play()
        session_id = api.ready(owner, **on(server))
        server.cut()
        api.wait(session_id, "UNKNOWN")
        assert api.connection(session_id, owner).status_code == 400

    @pytest.mark.own_broker
    @pytest.mark.parametrize("user", ["x" * 257, "a\nb", "a\x00b"])
    def test_a_user_who_can_be_nobody(self, api: Api, session: str, user: str) -> None:
        answer = api.connection(session, user)
        assert answer.status_code == 400
        assert api.reason(answer)


class TestAdditionalInfo:
    @pytest.mark.own_broker
    def test_the_url_to_connect_leads_to_the_desktops(
        self, api: Api, own: OwnFleet, owner: str, session: str
    ) -> None:
        server = api.connection_data(session, owner)["Session"]["Server"]
        desktops = urlsplit(own.broker.desktops_url)
        assert (server["Port"], server["WebUrlPath"]) == (str(desktops.port), "/")


class TestExample:
    def test_a_session_that_does_not_exist(self, api: Api) -> None:
        assert api.connection("sessionId12345", "user1").status_code in {400, 404}
