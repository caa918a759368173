"""CreateSessions: requests that wait for a place, and starts that fail."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from deskfleet.core.records import Phase
from support.conformance import NO_PLACE, Api, Configured, Play, on, own_fleet
from support.played_server import PlayedServer
from support.waiting import until

pytestmark = pytest.mark.own_broker

NOWHERE = {"EnqueueRequest": True, "Requirements": "tag:nowhere = 'x'"}
EXPIRED = "no place came free in time"


@pytest.fixture
def server(play: Play) -> PlayedServer:
    return play()


def waits(api: Api, session_id: str) -> bool:
    session = api.describe(session_id) or {}
    return (session["State"], session.get("Substate")) == ("CREATING", "SESSION_PLACING")


class TestEnqueueRequest:
    def test_false_a_request_that_cannot_be_fulfilled_fails(self, api: Api, owner: str) -> None:
        reason = api.failure(owner, EnqueueRequest=False, Requirements="tag:nowhere = 'x'")
        assert NO_PLACE in reason.lower()

    def test_absent_is_false(self, api: Api, owner: str) -> None:
        assert NO_PLACE in api.failure(owner, Requirements="tag:nowhere = 'x'").lower()

    def test_true_it_waits_and_is_placed_when_a_server_comes(
        self, api: Api, owner: str, play: Play
    ) -> None:
        name = f"later_{uuid.uuid4().hex[:8]}"
        wanted = f"tag:played = '{name}'"
        created = api.create(owner, EnqueueRequest=True, Requirements=wanted)
        assert waits(api, created["Id"])
        assert NO_PLACE in created["StateReason"].lower()
        server = play(name=name)
        ready = api.wait(created["Id"], "READY")
        assert ready["Server"]["Id"] == server.id
        assert "StateReason" not in ready

    def test_true_it_is_placed_when_a_seat_comes_free(
        self, api: Api, owner: str, play: Play
    ) -> None:
        server = play(max_virtual_sessions=1)
        first = api.ready(owner, **on(server))
        second = api.create(owner, EnqueueRequest=True, **on(server))["Id"]
        assert waits(api, second)
        api.delete(first, owner)
        assert api.wait(second, "READY")["Server"]["Id"] == server.id

    def test_true_it_is_placed_when_tags_change(
        self, api: Api, owner: str, server: PlayedServer
    ) -> None:
        wanted = f"{on(server)['Requirements']} and tag:color = 'blue'"
        session_id = api.create(owner, EnqueueRequest=True, Requirements=wanted)["Id"]
        assert waits(api, session_id)
        server.say(tags={**server.facts.tags, "color": "blue"})
        assert api.wait(session_id, "READY")["Server"]["Id"] == server.id

    def test_true_it_is_placed_when_a_server_is_well_again(
        self, api: Api, owner: str, play: Play
    ) -> None:
        server = play(unhealthy="nothing answers")
        session_id = api.create(owner, EnqueueRequest=True, **on(server))["Id"]
        assert waits(api, session_id)
        server.say(unhealthy=None)
        api.wait(session_id, "READY")

    def test_true_what_no_server_could_ever_do_does_not_wait(self, api: Api, owner: str) -> None:
        for asked in (
            {"Type": "CONSOLE", "InitFile": "init.sh"},
            {"Requirements": "tag:a ="},
            {"PermissionsFile": "no base64"},
        ):
            assert api.failure(owner, EnqueueRequest=True, **asked)


class TestWhoIsFirst:
    def test_the_oldest_that_is_feasible(self, api: Api, owner: str, play: Play) -> None:
        server = play(max_virtual_sessions=1)
        place = on(server)
        running = api.ready(owner, **place)
        picky = {"Requirements": f"{place['Requirements']} and tag:color = 'blue'"}
        ids = [
            api.create(owner, EnqueueRequest=True, **asked)["Id"]
            for asked in (picky, place, place, place)
        ]
        for session_id in ids[1:]:
            api.delete(running, owner)
            api.wait(session_id, "READY")
            running = session_id
            later = ids[ids.index(session_id) + 1 :]
            assert all(waits(api, one) for one in (ids[0], *later))
        server.say(tags={**server.facts.tags, "color": "blue"})
        api.delete(running, owner)
        api.wait(ids[0], "READY")


class TestHowLong:
    """The time itself is a setting of the broker: see there."""

    def test_a_restart_of_the_broker_changes_nothing(self, tmp_path: Path) -> None:
        with own_fleet(tmp_path) as fleet:
            api = Api(fleet.target)
            wanted = {"EnqueueRequest": True, "Requirements": "tag:played = 'later'"}
            ids = [api.create("user1", **wanted)["Id"] for _ in range(2)]
            api.close()
        with own_fleet(tmp_path) as fleet:
            api = Api(fleet.target)
            assert all(waits(api, one) for one in ids)
            server = fleet.play(name="later", max_virtual_sessions=1)
            assert api.wait(ids[0], "READY")["Server"]["Id"] == server.id
            assert waits(api, ids[1])
            api.close()


class TestDisableRetryOnFailure:
    def test_true_one_failure_is_final(self, api: Api, owner: str, server: PlayedServer) -> None:
        server.starts = Phase.FAILED
        session_id = api.create(owner, DisableRetryOnFailure=True, **on(server))["Id"]
        ended = api.wait(session_id, "DELETED")
        assert ended["StateReason"] == "it was made to fail"
        assert server.starts_asked == 1

    def test_false_it_is_tried_again(self, api: Api, owner: str, server: PlayedServer) -> None:
        server.starts = Phase.FAILED
        session_id = api.create(owner, DisableRetryOnFailure=False, **on(server))["Id"]
        api.wait(session_id, "DELETED")
        # Twice again by default: create-sessions-number-of-retries-on-failure.
        assert server.starts_asked == 3


class TestRetryOnFailure:
    @pytest.fixture
    def pair(self, play: Play, owner: str) -> list[PlayedServer]:
        """Two servers that `on` names together; all starts there fail, each with its own reason."""
        servers = [play(tags={"played": owner}), play(tags={"played": owner})]
        for number, server in enumerate(servers):
            server.starts, server.failure = Phase.FAILED, f"no X on {number}"
        return servers

    def test_another_server_is_tried(self, api: Api, owner: str, pair: list[PlayedServer]) -> None:
        pair[1].starts = Phase.RUNNING
        for _ in range(3):
            session_id = api.ready(owner, **on(pair[0]))
            assert (api.describe(session_id) or {})["Server"]["Id"] == pair[1].id
        until(lambda: pair[0].starts_asked >= 1)

    def test_after_the_last_one_the_reason_is_that_of_the_last_server(
        self, api: Api, owner: str, pair: list[PlayedServer]
    ) -> None:
        ended = api.wait(api.create(owner, **on(pair[0]))["Id"], "DELETED")
        # One of them twice: no other is left then.
        assert sorted(server.starts_asked for server in pair) == [1, 2]
        (last,) = (server for server in pair if server.id == ended["Server"]["Id"])
        assert ended["StateReason"] == last.failure


class TestStartsThatFailLate:
    """The time in the queue has passed long before they do."""

    @pytest.fixture
    def late(self, configured: Configured) -> tuple[Api, PlayedServer, PlayedServer]:
        """Return two servers, of which the second is closed; starts on the first don't end."""
        fleet, api = configured(create_sessions_queue_max_time_seconds=1)
        servers = [fleet.play(tags={"played": "pair"}) for _ in range(2)]
        servers[0].starts = Phase.STARTING
        api.call("closeServers", [{"ServerId": servers[1].id}])
        return api, servers[0], servers[1]

    def begin(self, api: Api, server: PlayedServer, **asked: Any) -> str:
        """Begin a start, and return when it has taken longer than the queue would have."""
        session_id = str(api.create("user1", **asked, **on(server))["Id"])
        until(lambda: server.starts_asked)
        assert api.wait(api.create("user1", **NOWHERE)["Id"], "DELETED")
        return session_id

    def test_another_server_is_tried(self, late: tuple[Api, PlayedServer, PlayedServer]) -> None:
        api, first, second = late
        session_id = self.begin(api, first)
        api.call("openServers", [{"ServerId": second.id}])
        first.report(session_id, phase=Phase.FAILED, reason="no X in the end")
        assert api.wait(session_id, "READY")["Server"]["Id"] == second.id

    def test_without_another_place_the_reason_is_that_of_the_failure(
        self, late: tuple[Api, PlayedServer, PlayedServer]
    ) -> None:
        api, first, _ = late
        session_id = self.begin(api, first)
        api.call("closeServers", [{"ServerId": first.id, "Force": True}])
        first.report(session_id, phase=Phase.FAILED, reason="no X in the end")
        assert api.wait(session_id, "DELETED")["StateReason"] == "no X in the end"

    def test_who_may_wait_waits_anew_and_both_reasons_are_told(
        self, late: tuple[Api, PlayedServer, PlayedServer]
    ) -> None:
        api, first, _ = late
        session_id = self.begin(api, first, EnqueueRequest=True)
        api.call("closeServers", [{"ServerId": first.id, "Force": True}])
        first.report(session_id, phase=Phase.FAILED, reason="no X in the end")
        reason = api.wait(session_id, "DELETED")["StateReason"]
        assert reason == f"{EXPIRED} after a start had failed: no X in the end"
