"""DeleteSessions: deletes the specified sessions."""

from __future__ import annotations

import base64

import pytest

from support.conformance import UNKNOWN_ID, Api, Play, on
from support.waiting import until

NO_SUCH = "The requested dcvSession does not exist"


class TestRequestParameters:
    def test_session_id(self, api: Api, owner: str, session: str) -> None:
        item = {"SessionId": session, "Owner": owner}
        answer = api.call("deleteSessions", [item])
        assert [one["SessionId"] for one in answer["SuccessfulList"]] == [session]

    @pytest.mark.parametrize("wrong", ["user99", "", None])
    def test_owner_must_be_that_of_the_session(
        self, api: Api, owner: str, session: str, wrong: str | None
    ) -> None:
        for force in (False, True):
            item = {"SessionId": session, "Owner": wrong, "Force": force}
            (failure,) = api.call("deleteSessions", [item])["UnsuccessfulList"]
            assert failure == {"SessionId": session, "FailureReason": NO_SUCH}
        assert api.wait(session, "READY")

    @pytest.mark.own_broker
    def test_owner_with_a_windows_domain(self, api: Api, domain_owner: str) -> None:
        session_id = api.ready(domain_owner)
        stranger = {"SessionId": session_id, "Owner": domain_owner.replace("user", "USER")}
        answer = api.call("deleteSessions", [stranger])
        assert [one["FailureReason"] for one in answer["UnsuccessfulList"]] == [NO_SUCH]
        api.delete(session_id, domain_owner)
        api.wait(session_id, "DELETED")

    def test_owner_is_required(self, api: Api, session: str) -> None:
        (failure,) = api.call("deleteSessions", [{"SessionId": session}])["UnsuccessfulList"]
        assert failure["FailureReason"] == NO_SUCH

    def test_session_id_is_required(self, api: Api, owner: str) -> None:
        (failure,) = api.call("deleteSessions", [{"Owner": owner}])["UnsuccessfulList"]
        assert failure["FailureReason"] == NO_SUCH

    @pytest.mark.parametrize("without", [{}, {"Force": False}, {"Force": None}])
    def test_without_force_the_server_ends_it(
        self, api: Api, owner: str, session: str, without: dict[str, object]
    ) -> None:
        api.delete(session, owner, **without)
        until(
            lambda: (api.describe(session) or {"State": "DELETED"})["State"] == "DELETED",
            seconds=api.target.patience,
        )

    @pytest.mark.own_broker
    def test_with_force_it_is_forgotten_at_once(self, api: Api, owner: str, play: Play) -> None:
        server = play()
        session_id = api.ready(owner, **on(server))
        server.hush()
        api.delete(session_id, owner, Force=True)
        assert api.describe(session_id) is None

    @pytest.mark.own_broker
    def test_with_force_the_server_is_not_asked_to_end_it_and_it_comes_back_as_it_was(
        self, api: Api, owner: str, play: Play
    ) -> None:
        server = play()
        rights = base64.b64encode(b"[permissions]\n%owner% allow display\n").decode()
        session_id = api.ready(
            owner,
            **on(server),
            PermissionsFile=rights,
            MaxConcurrentClients=3,
            StorageRoot="%home%",
        )
        before = api.describe(session_id)
        asked = server.starts_asked
        api.delete(session_id, owner, Force=True)
        until(lambda: (api.describe(session_id) or {}).get("State") == "READY")
        again = api.describe(session_id)
        assert again == before
        until(lambda: server.desire(session_id) is not None)
        desire = server.desire(session_id)
        assert desire is not None
        assert desire.spec.request.permissions_file == rights
        assert server.starts_asked == asked

    @pytest.mark.own_broker
    def test_with_force_what_is_left_of_a_lost_server_goes(
        self, api: Api, owner: str, play: Play
    ) -> None:
        server = play()
        session_id = api.ready(owner, **on(server))
        server.cut()
        api.wait(session_id, "UNKNOWN")
        api.delete(session_id, owner, Force=True)
        assert api.describe(session_id) is None


class TestResponseParameters:
    def test_request_id_is_unique(self, api: Api) -> None:
        assert len({api.call("deleteSessions", [])["RequestId"] for _ in range(3)}) == 3

    def test_both_lists_are_there_when_they_are_empty(self, api: Api) -> None:
        answer = api.call("deleteSessions", [])
        assert (answer["SuccessfulList"], answer["UnsuccessfulList"]) == ([], [])

    def test_successful_list_session_id_and_state(self, api: Api, owner: str, session: str) -> None:
        answer = api.call("deleteSessions", [{"SessionId": session, "Owner": owner}])
        assert answer["SuccessfulList"] == [{"SessionId": session, "State": "DELETING"}]

    def test_unsuccessful_list_session_id_and_failure_reason(self, api: Api) -> None:
        answer = api.call("deleteSessions", [{"SessionId": UNKNOWN_ID, "Owner": "user1"}])
        assert answer["UnsuccessfulList"] == [{"SessionId": UNKNOWN_ID, "FailureReason": NO_SUCH}]

    def test_one_failure_does_not_hold_up_the_others(
        self, api: Api, owner: str, session: str
    ) -> None:
        items = [{"SessionId": UNKNOWN_ID, "Owner": owner}, {"SessionId": session, "Owner": owner}]
        answer = api.call("deleteSessions", items)
        assert [one["SessionId"] for one in answer["SuccessfulList"]] == [session]


@pytest.mark.own_broker
class TestWhatDeletingDoes:
    def test_the_state_goes_from_deleting_to_deleted(
        self, api: Api, owner: str, play: Play
    ) -> None:
        server = play()
        server.stops = False
        session_id = api.ready(owner, **on(server))
        api.delete(session_id, owner)
        assert (api.describe(session_id) or {})["State"] == "DELETING"
        server.stops = True
        server.cut()
        server.link()
        api.wait(session_id, "DELETED")

    def test_deleting_it_twice_is_as_good_as_once(self, api: Api, owner: str, play: Play) -> None:
        server = play()
        server.stops = False
        session_id = api.ready(owner, **on(server))
        item = {"SessionId": session_id, "Owner": owner}
        answer = api.call("deleteSessions", [item, item])
        assert answer["SuccessfulList"] == [{"SessionId": session_id, "State": "DELETING"}] * 2
        api.delete(session_id, owner)

    def test_a_deleted_session_does_not_exist_for_another_delete(
        self, api: Api, owner: str, session: str
    ) -> None:
        api.delete(session, owner)
        api.wait(session, "DELETED")
        answer = api.call("deleteSessions", [{"SessionId": session, "Owner": owner}])
        assert answer["UnsuccessfulList"] == [{"SessionId": session, "FailureReason": NO_SUCH}]

    def test_by_force_a_deleted_session_is_removed(
        self, api: Api, owner: str, session: str
    ) -> None:
        api.delete(session, owner)
        api.wait(session, "DELETED")
        item = {"SessionId": session, "Owner": owner, "Force": True}
        answer = api.call("deleteSessions", [item])
        assert answer["SuccessfulList"] == [{"SessionId": session, "State": "DELETING"}]
        assert api.describe(session) is None
        answer = api.call("deleteSessions", [item])
        assert answer["UnsuccessfulList"] == [{"SessionId": session, "FailureReason": NO_SUCH}]

    def test_a_session_that_waits_for_a_place_is_deleted_at_once(
        self, api: Api, owner: str
    ) -> None:
        wanted = {"EnqueueRequest": True, "Requirements": "tag:nowhere = 'x'"}
        session_id = api.create(owner, **wanted)["Id"]
        api.delete(session_id, owner)
        assert api.wait(session_id, "DELETED")


class TestExample:
    def test_sessions_that_do_not_exist(self, api: Api) -> None:
        items = [
            {"SessionId": "SessionId123", "Owner": "an owner user1", "Force": False},
            {"SessionId": "SessionIdabc", "Owner": "user99", "Force": False},
        ]
        answer = api.call("deleteSessions", items)
        assert answer["SuccessfulList"] == []
        assert answer["UnsuccessfulList"] == [
            {"SessionId": item["SessionId"], "FailureReason": NO_SUCH} for item in items
        ]
