"""CloseServers: makes servers unavailable for session placement."""

from __future__ import annotations

import pytest

from support.conformance import UNKNOWN_ID, Api, Play, on
from support.played_server import PlayedServer

NOT_FOUND = {"FailureCode": "DCV_SERVER_NOT_FOUND", "FailureReason": "Dcv server not found."}


@pytest.fixture
def server(play: Play) -> PlayedServer:
    return play()


class TestRequestParameters:
    @pytest.mark.own_broker
    def test_server_id(self, api: Api, server: PlayedServer) -> None:
        answer = api.call("closeServers", [{"ServerId": server.id}])
        assert answer["SuccessfulList"] == [{"ServerId": server.id}]

    def test_server_id_is_required(self, api: Api) -> None:
        (failure,) = api.call("closeServers", [{}])["UnsuccessfulList"]
        assert failure["FailureCode"] == NOT_FOUND["FailureCode"]

    @pytest.mark.own_broker
    @pytest.mark.parametrize("without", [{}, {"Force": False}, {"Force": None}])
    def test_without_force_a_server_with_sessions_stays_open(
        self, api: Api, owner: str, server: PlayedServer, without: dict[str, object]
    ) -> None:
        session_id = api.ready(owner, **on(server))
        (failure,) = api.call("closeServers", [{"ServerId": server.id, **without}])[
            "UnsuccessfulList"
        ]
        assert failure["FailureCode"] == "DCV_SERVER_HAS_SESSIONS"
        assert api.availability(server.id) == ("AVAILABLE", None)
        assert api.describe(session_id)

    @pytest.mark.own_broker
    def test_with_force_the_server_is_closed_and_its_sessions_run_on(
        self, api: Api, owner: str, server: PlayedServer
    ) -> None:
        session_id = api.ready(owner, **on(server))
        answer = api.call("closeServers", [{"ServerId": server.id, "Force": True}])
        assert answer["SuccessfulList"] == [{"ServerId": server.id}]
        assert api.availability(server.id) == ("UNAVAILABLE", "SERVER_CLOSED")
        assert api.wait(session_id, "READY")
        assert api.connection(session_id, owner).status_code == 200


class TestResponseParameters:
    def test_request_id_is_unique(self, api: Api) -> None:
        ids = {api.call("closeServers", [])["RequestId"] for _ in range(3)}
        assert len(ids) == 3

    @pytest.mark.own_broker
    def test_successful_list_server_id(self, api: Api, server: PlayedServer) -> None:
        answer = api.call("closeServers", [{"ServerId": UNKNOWN_ID}, {"ServerId": server.id}])
        assert answer["SuccessfulList"] == [{"ServerId": server.id}]
        assert len(answer["UnsuccessfulList"]) == 1

    def test_both_lists_are_there_when_they_are_empty(self, api: Api) -> None:
        answer = api.call("closeServers", [])
        assert (answer["SuccessfulList"], answer["UnsuccessfulList"]) == ([], [])

    @pytest.mark.parametrize(
        "request_data", [{"ServerId": UNKNOWN_ID}, {"ServerId": "x", "Force": True}]
    )
    def test_unsuccessful_list_close_server_request_data(
        self, api: Api, request_data: dict[str, object]
    ) -> None:
        (failure,) = api.call("closeServers", [request_data])["UnsuccessfulList"]
        assert failure["CloseServerRequestData"] == request_data

    def test_unsuccessful_list_failure_code(self, api: Api) -> None:
        (failure,) = api.call("closeServers", [{"ServerId": UNKNOWN_ID}])["UnsuccessfulList"]
        assert failure["FailureCode"] == NOT_FOUND["FailureCode"]

    def test_unsuccessful_list_failure_reason(self, api: Api) -> None:
        (failure,) = api.call("closeServers", [{"ServerId": UNKNOWN_ID}])["UnsuccessfulList"]
        assert failure["FailureReason"] == NOT_FOUND["FailureReason"]


@pytest.mark.own_broker
class TestWhatClosingDoes:
    def test_no_sessions_can_be_created_on_a_closed_server(
        self, api: Api, owner: str, server: PlayedServer
    ) -> None:
        api.call("closeServers", [{"ServerId": server.id}])
        reason = api.failure(owner, **on(server))
        assert "no dcv server found for placement" in reason.lower()

    def test_a_closed_server_may_be_closed_again(self, api: Api, server: PlayedServer) -> None:
        for _ in range(2):
            answer = api.call("closeServers", [{"ServerId": server.id}])
            assert answer["SuccessfulList"] == [{"ServerId": server.id}]

    def test_a_server_stays_closed_when_its_agent_comes_back(
        self, api: Api, server: PlayedServer
    ) -> None:
        api.call("closeServers", [{"ServerId": server.id}])
        server.cut()
        server.link()
        assert api.availability(server.id) == ("UNAVAILABLE", "SERVER_CLOSED")


class TestExample:
    def test_servers_that_do_not_exist(self, api: Api) -> None:
        wanted = [{"ServerId": "serverId1"}, {"ServerId": "serverId2"}]
        answer = api.call("closeServers", wanted)
        assert answer["UnsuccessfulList"] == [
            {"CloseServerRequestData": one, **NOT_FOUND} for one in wanted
        ]
