"""OpenServers: makes servers available for session placement."""

from __future__ import annotations

import pytest

from support.conformance import UNKNOWN_ID, Api, Play, on
from support.played_server import PlayedServer

NOT_FOUND = {"FailureCode": "DCV_SERVER_NOT_FOUND", "FailureReason": "Dcv server not found."}


@pytest.fixture
def closed(api: Api, play: Play) -> PlayedServer:
    server = play()
    api.call("closeServers", [{"ServerId": server.id}])
    return server


class TestRequestParameters:
    @pytest.mark.own_broker
    def test_server_id(self, api: Api, closed: PlayedServer) -> None:
        answer = api.call("openServers", [{"ServerId": closed.id}])
        assert answer["SuccessfulList"] == [{"ServerId": closed.id}]

    def test_server_id_is_required(self, api: Api) -> None:
        (failure,) = api.call("openServers", [{}])["UnsuccessfulList"]
        assert failure["FailureCode"] == NOT_FOUND["FailureCode"]


class TestResponseParameters:
    def test_request_id_is_unique(self, api: Api) -> None:
        assert len({api.call("openServers", [])["RequestId"] for _ in range(3)}) == 3

    def test_both_lists_are_there_when_they_are_empty(self, api: Api) -> None:
        answer = api.call("openServers", [])
        assert (answer["SuccessfulList"], answer["UnsuccessfulList"]) == ([], [])

    def test_successful_list_server_id(self, api: Api) -> None:
        server_id = api.wait_available()[0]
        answer = api.call("openServers", [{"ServerId": UNKNOWN_ID}, {"ServerId": server_id}])
        assert answer["SuccessfulList"] == [{"ServerId": server_id}]
        assert len(answer["UnsuccessfulList"]) == 1

    def test_unsuccessful_list_open_server_request_data(self, api: Api) -> None:
        (failure,) = api.call("openServers", [{"ServerId": UNKNOWN_ID}])["UnsuccessfulList"]
        assert failure["OpenServerRequestData"] == {"ServerId": UNKNOWN_ID}

    @pytest.mark.parametrize("member", NOT_FOUND)
    def test_unsuccessful_list_member(self, api: Api, member: str) -> None:
        (failure,) = api.call("openServers", [{"ServerId": UNKNOWN_ID}])["UnsuccessfulList"]
        assert failure[member] == NOT_FOUND[member]


@pytest.mark.own_broker
class TestWhatOpeningDoes:
    def test_sessions_can_be_created_again(
        self, api: Api, owner: str, closed: PlayedServer
    ) -> None:
        assert api.failure(owner, **on(closed))
        api.call("openServers", [{"ServerId": closed.id}])
        assert api.availability(closed.id) == ("AVAILABLE", None)
        assert api.ready(owner, **on(closed))

    def test_what_waits_for_a_place_gets_it(
        self, api: Api, owner: str, closed: PlayedServer
    ) -> None:
        session_id = api.create(owner, EnqueueRequest=True, **on(closed))["Id"]
        api.call("openServers", [{"ServerId": closed.id}])
        api.wait(session_id, "READY")

    def test_a_new_server_is_open(self, api: Api, play: Play) -> None:
        assert api.availability(play().id) == ("AVAILABLE", None)

    def test_an_open_server_may_be_opened_again(self, api: Api, closed: PlayedServer) -> None:
        for _ in range(2):
            answer = api.call("openServers", [{"ServerId": closed.id}])
            assert answer["SuccessfulList"] == [{"ServerId": closed.id}]


class TestExample:
    def test_a_server_that_does_not_exist(self, api: Api) -> None:
        wanted = [{"ServerId": "serverId1"}, {"ServerId": "serverId2"}]
        answer = api.call("openServers", wanted)
        assert answer["UnsuccessfulList"] == [
            {"OpenServerRequestData": one, **NOT_FOUND} for one in wanted
        ]
