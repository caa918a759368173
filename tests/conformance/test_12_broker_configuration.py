"""What the settings of the broker, and of its servers, change in the API."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jwt
import pytest
from PIL import Image

from deskfleet.core.records import Phase
from support.conformance import Api, Configured, on
from support.waiting import until

pytestmark = pytest.mark.own_broker

OWNER = "user1"


class TestBroker:
    def test_session_screenshot_settings(self, configured: Configured) -> None:
        _, api = configured(
            session_screenshot_format="jpeg",
            session_screenshot_max_width=320,
            session_screenshot_max_height=320,
        )
        session_id = api.ready(OWNER)
        answer = api.call("getSessionScreenshots", [{"SessionId": session_id}])
        (image,) = answer["SuccessfulList"][0]["SessionScreenshot"]["Images"]
        assert image["Format"] == "jpeg"
        with Image.open(io.BytesIO(base64.b64decode(image["Data"]))) as picture:
            assert (picture.format, picture.size) == ("JPEG", (320, 200))

    def test_create_sessions_queue_max_size(self, configured: Configured) -> None:
        _, api = configured(create_sessions_queue_max_size=1)
        wanted = {"EnqueueRequest": True, "Requirements": "tag:nowhere = 'x'"}
        api.create(OWNER, **wanted)
        assert "queue is full" in api.failure(OWNER, **wanted)

    def test_create_sessions_queue_max_time_seconds(self, configured: Configured) -> None:
        _, api = configured(create_sessions_queue_max_time_seconds=1)
        wanted = {"EnqueueRequest": True, "Requirements": "tag:nowhere = 'x'"}
        ended = api.wait(api.create(OWNER, **wanted)["Id"], "DELETED")
        assert ended["StateReason"] == "no place came free in time"
        assert "Server" not in ended

    @pytest.mark.parametrize("retries", [0, 1, 4])
    def test_create_sessions_number_of_retries_on_failure(
        self, configured: Configured, retries: int
    ) -> None:
        fleet, api = configured(create_sessions_number_of_retries_on_failure=retries)
        server = fleet.play()
        server.starts = Phase.FAILED
        session_id = api.create(OWNER, **on(server))["Id"]
        api.wait(session_id, "DELETED")
        assert server.starts_asked == 1 + retries

    def test_delete_session_duration_seconds(self, configured: Configured) -> None:
        _, api = configured(delete_session_duration_seconds=1)
        session_id = api.ready(OWNER)
        api.delete(session_id, OWNER)
        api.wait(session_id, None)

    def test_deleted_sessions_are_not_shown_at_all_for_zero_seconds(
        self, configured: Configured
    ) -> None:
        _, api = configured(delete_session_duration_seconds=0)
        for _ in range(3):
            session_id = api.ready(OWNER)
            api.delete(session_id, OWNER)
            states = []
            while session := api.describe(session_id):
                states.append(session["State"])
                assert len(states) < 10_000
            assert set(states) <= {"DELETING"}
            assert session_id not in [one["Id"] for one in api.call("describeSessions")["Sessions"]]

    def test_connect_session_token_duration_minutes(self, configured: Configured) -> None:
        _, api = configured(connect_session_token_duration_minutes=5)
        token = api.connection_data(api.ready(OWNER), OWNER)["ConnectionToken"]
        claims = jwt.decode(token, options={"verify_signature": False})
        assert claims["exp"] - claims["iat"] == 300

    def test_autorun_file_arguments_limits(self, configured: Configured) -> None:
        _, api = configured(
            autorun_file_arguments_max_size=2, autorun_file_arguments_max_argument_length=3
        )
        assert api.create(OWNER, AutorunFile="a", AutorunFileArguments=["abc", "abc"])
        for arguments in (["a", "b", "c"], ["abcd"]):
            assert api.failure(OWNER, AutorunFile="a", AutorunFileArguments=arguments)

    def test_seconds_before_deleting_unreachable_dcv_server(self, configured: Configured) -> None:
        fleet, api = configured(
            seconds_before_deleting_unreachable_dcv_server=2, agent_heartbeat_seconds=0.5
        )
        server = fleet.play()
        server.cut()
        until(lambda: server.id not in [one["Id"] for one in api.servers()], seconds=30)
        assert len(api.servers()) == 1
        server.link()
        assert api.availability(server.id) == ("AVAILABLE", None)

    def test_seconds_before_deleting_sessions_unreachable_server(
        self, configured: Configured
    ) -> None:
        fleet, api = configured(
            seconds_before_deleting_sessions_unreachable_server=1, agent_heartbeat_seconds=0.5
        )
        server = fleet.play()
        session_id = api.ready(OWNER, **on(server))
        other = api.ready(OWNER)
        server.cut()
        assert "silent" in api.wait(session_id, "DELETED")["StateReason"]
        assert api.wait(other, "READY")

    def test_both_seconds_before_deleting_together(self, configured: Configured) -> None:
        """The sessions end first, and then nothing keeps the server."""
        fleet, api = configured(
            seconds_before_deleting_sessions_unreachable_server=1,
            seconds_before_deleting_unreachable_dcv_server=2,
            agent_heartbeat_seconds=0.5,
        )
        server = fleet.play()
        session_id = api.ready(OWNER, **on(server))
        other = api.ready(OWNER)
        server.cut()
        assert "silent" in api.wait(session_id, "DELETED")["StateReason"]
        until(lambda: server.id not in [one["Id"] for one in api.servers()], seconds=30)
        ended = api.wait(session_id, "DELETED")
        assert "Server" not in ended
        assert api.wait(other, "READY")

    def test_its_default_keeps_sessions_of_unreachable_servers(
        self, configured: Configured
    ) -> None:
        fleet, api = configured(
            seconds_before_deleting_unreachable_dcv_server=1, agent_heartbeat_seconds=0.5
        )
        lost, empty = fleet.play(), fleet.play()
        session_id = api.ready(OWNER, **on(lost))
        lost.cut()
        empty.cut()
        gone = {lost.id, empty.id}
        until(lambda: not gone & {one["Id"] for one in api.servers()}, seconds=30)
        session = api.wait(session_id, "UNKNOWN")
        assert session["Server"]["Id"] == lost.id
        answer = api.call("closeServers", [{"ServerId": lost.id, "Force": True}])
        (failed,) = answer["UnsuccessfulList"]
        assert failed["FailureCode"] == "DCV_SERVER_NOT_FOUND"
        lost.link()
        assert api.wait(session_id, "READY")["Server"]["Id"] == lost.id
        assert lost.id in [one["Id"] for one in api.servers()]

    def test_enable_api_yaml(self, configured: Configured) -> None:
        _, api = configured(enable_api_yaml=False)
        assert api.send("GET", "/dcv-session-manager-api.yaml", headers={}).status_code == 404
        assert api.ready(OWNER)

    def test_a_closed_server_stays_closed_when_it_was_unreachable_for_long(
        self, configured: Configured
    ) -> None:
        fleet, api = configured(
            seconds_before_deleting_unreachable_dcv_server=1, agent_heartbeat_seconds=0.5
        )
        server = fleet.play()
        api.call("closeServers", [{"ServerId": server.id}])
        server.cut()
        until(lambda: server.id not in [one["Id"] for one in api.servers()], seconds=30)
        server.link()
        assert api.availability(server.id) == ("UNAVAILABLE", "SERVER_CLOSED")


def created_at_once(api: Api, count: int, items: Callable[[int], dict[str, Any]]) -> list[Any]:
    """Create sessions one by one from many threads; return those that were."""
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda number: api.call("createSessions", [items(number)]), range(count))
        return [one for answer in answers for one in answer["SuccessfulList"]]


class TestAgent:
    def test_max_virtual_sessions(self, configured: Configured) -> None:
        _, api = configured(max_virtual_sessions=1)
        api.ready(OWNER)
        (server,) = api.servers()
        assert server["UnavailabilityReason"] == "SERVER_FULL"
        assert {"Key": "dcv:max-virtual-sessions", "Value": "1"} in server["Tags"]

    def test_max_concurrent_sessions_per_user(self, configured: Configured) -> None:
        _, api = configured(max_concurrent_sessions_per_user=1)
        api.ready(OWNER)
        assert api.failure(OWNER)
        assert api.ready("user2")
        (server,) = api.servers()
        assert {"Key": "dcv:max-concurrent-sessions-per-user", "Value": "1"} in server["Tags"]

    def test_max_virtual_sessions_holds_in_a_race(self, configured: Configured) -> None:
        _, api = configured(max_virtual_sessions=3)
        created = created_at_once(api, 24, lambda number: api.item(f"user{number}"))
        assert len(created) == 3
        (server,) = api.servers()
        assert server["VirtualSessionCount"] == 3

    def test_max_concurrent_sessions_per_user_holds_in_a_race(self, configured: Configured) -> None:
        _, api = configured(max_concurrent_sessions_per_user=2)
        created = created_at_once(api, 24, lambda number: api.item(f"user{number % 3}"))
        owners = [one["Owner"] for one in created]
        assert sorted(owners) == sorted(["user0", "user1", "user2"] * 2)
