"""DescribeSessions: describes one or more sessions."""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from deskfleet.core.records import Phase
from support.conformance import UNKNOWN_ID, Api, Play, on, with_another_character
from support.waiting import until

INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def ids(answer: dict[str, Any]) -> list[str]:
    return [one["Id"] for one in answer["Sessions"]]


class TestRequestParameters:
    def test_without_a_body_all_sessions_are_returned(self, api: Api, session: str) -> None:
        assert session in ids(api.call("describeSessions"))

    def test_session_ids(self, api: Api, session: str) -> None:
        assert ids(api.call("describeSessions", {"SessionIds": [session]})) == [session]

    @pytest.mark.parametrize("nothing", [[], None], ids=["empty", "null"])
    def test_session_ids_that_name_none_return_all(
        self, api: Api, session: str, nothing: object
    ) -> None:
        assert session in ids(api.call("describeSessions", {"SessionIds": nothing}))

    def test_session_ids_that_are_unknown_are_absent(self, api: Api, session: str) -> None:
        body = {"SessionIds": [UNKNOWN_ID, session, "SessionId1895", session]}
        assert ids(api.call("describeSessions", body)) == [session]

    def test_sessions_of_all_states_are_returned(self, api: Api, owner: str, session: str) -> None:
        api.delete(session, owner)
        assert api.describe(session)

    def test_filters_empty(self, api: Api, session: str) -> None:
        assert session in ids(api.call("describeSessions", {"Filters": []}))

    def test_filters_owner(self, api: Api, owner: str, session: str) -> None:
        body = {"Filters": [{"Key": "owner", "Value": owner}]}
        found = api.call("describeSessions", body)["Sessions"]
        assert session in [one["Id"] for one in found]
        assert {one["Owner"] for one in found} == {owner}

    @pytest.mark.own_broker
    def test_filters_owner_with_a_windows_domain(
        self, api: Api, owner: str, domain_owner: str
    ) -> None:
        api.create(owner)
        session_id = api.create(domain_owner)["Id"]
        body = {"Filters": [{"Key": "owner", "Value": domain_owner}]}
        assert ids(api.call("describeSessions", body)) == [session_id]

    def test_filters_owner_that_has_no_sessions(self, api: Api) -> None:
        body = {"Filters": [{"Key": "owner", "Value": "an owner 1890"}]}
        assert ids(api.call("describeSessions", body)) == []

    @pytest.mark.own_broker
    def test_filters_tag(self, api: Api, owner: str, play: Play) -> None:
        server = play()
        tagged = api.ready(owner, **on(server))
        other = api.ready(owner, Requirements="tag:color = 'pink'")
        name = server.facts.tags["played"]
        found = ids(
            api.call("describeSessions", {"Filters": [{"Key": "tag:played", "Value": name}]})
        )
        assert tagged in found
        assert other not in found

    @pytest.mark.own_broker
    def test_filters_tag_that_no_server_has(self, api: Api, session: str) -> None:
        body = {"Filters": [{"Key": "tag:played", "Value": "nobody"}]}
        assert ids(api.call("describeSessions", body)) == []

    @pytest.mark.own_broker
    def test_several_filters_must_all_hold(self, api: Api, owner: str, play: Play) -> None:
        server = play(tags={"played": owner, "size": "big"})
        wanted = api.ready(owner, **on(server))
        other_owner = f"{owner}2"
        api.ready(other_owner, **on(server))
        mine = {"Key": "owner", "Value": owner}
        tag = {"Key": "tag:played", "Value": owner}
        for filters, expected in (
            ([mine, tag], [wanted]),
            ([mine, tag, {"Key": "tag:size", "Value": "big"}], [wanted]),
            ([mine, tag, {"Key": "tag:size", "Value": "small"}], []),
            ([mine, {"Key": "owner", "Value": other_owner}], []),
        ):
            assert ids(api.call("describeSessions", {"Filters": filters})) == expected
        api.delete_all_of(other_owner)

    def test_session_ids_and_filters_must_both_hold(
        self, api: Api, owner: str, session: str
    ) -> None:
        for value, expected in ((owner, [session]), ("an owner 1890", [])):
            body = {"SessionIds": [session], "Filters": [{"Key": "owner", "Value": value}]}
            assert ids(api.call("describeSessions", body)) == expected

    @pytest.mark.own_broker
    @pytest.mark.parametrize("key", ["Owner", "name", "tag", "", "state"])
    def test_filters_of_another_key_are_refused(self, api: Api, key: str) -> None:
        assert "Filters" in api.refused(
            "describeSessions", {"Filters": [{"Key": key, "Value": "x"}]}
        )

    def test_max_results_and_next_token(self, api: Api, owner: str) -> None:
        created = [api.create(owner)["Id"] for _ in range(5)]
        filters = [{"Key": "owner", "Value": owner}]
        pages, token = [], None
        while True:
            body = {"MaxResults": 2, "Filters": filters, **({"NextToken": token} if token else {})}
            answer = api.call("describeSessions", body)
            pages.append(ids(answer))
            token = answer.get("NextToken")
            if token is None:
                break
        assert all(len(page) == 2 for page in pages[:-1])
        seen = [id for page in pages for id in page]
        assert len(seen) == len(set(seen))
        assert set(created) <= set(seen)

    def test_a_next_token_is_good_for_a_page_of_another_size(self, api: Api, owner: str) -> None:
        created = {api.create(owner)["Id"] for _ in range(3)}
        filters = [{"Key": "owner", "Value": owner}]
        first = api.call("describeSessions", {"Filters": filters, "MaxResults": 2})
        body = {"Filters": filters, "MaxResults": 1000, "NextToken": first["NextToken"]}
        assert created <= {*ids(first), *ids(api.call("describeSessions", body))}

    @pytest.mark.own_broker
    def test_pages_stay_whole_while_sessions_come_and_go(self, api: Api, owner: str) -> None:
        created = [api.create(owner)["Id"] for _ in range(4)]
        filters = [{"Key": "owner", "Value": owner}]
        body = {"Filters": filters, "MaxResults": 2}
        first = api.call("describeSessions", body)
        api.delete(created[0], owner, Force=True)
        later = api.create(owner)["Id"]
        rest = api.call(
            "describeSessions", {**body, "MaxResults": 9, "NextToken": first["NextToken"]}
        )
        assert ids(first) == created[:2]
        assert ids(rest) == [*created[2:], later]

    def test_next_token_with_session_ids(self, api: Api, owner: str) -> None:
        created = [api.create(owner)["Id"] for _ in range(3)]
        body = {"SessionIds": created, "MaxResults": 2}
        first = api.call("describeSessions", body)
        rest = api.call("describeSessions", {**body, "NextToken": first["NextToken"]})
        assert sorted(ids(first) + ids(rest)) == sorted(created)
        assert rest.get("NextToken") is None

    @pytest.mark.own_broker
    def test_a_next_token_is_bound_to_its_session_ids(self, api: Api, owner: str) -> None:
        created = [api.create(owner)["Id"] for _ in range(3)]
        body = {"SessionIds": created, "MaxResults": 2}
        token = api.call("describeSessions", body)["NextToken"]
        for other in (created[:2], [*created, UNKNOWN_ID], []):
            asked = {**body, "SessionIds": other, "NextToken": token}
            assert "NextToken" in api.refused("describeSessions", asked)

    @pytest.mark.own_broker
    def test_a_next_token_with_another_character_is_refused(self, api: Api, owner: str) -> None:
        for _ in range(2):
            api.create(owner)
        body = {"Filters": [{"Key": "owner", "Value": owner}], "MaxResults": 1}
        token = api.call("describeSessions", body)["NextToken"]
        for altered in with_another_character(token):
            asked = {**body, "NextToken": altered}
            assert "NextToken" in api.refused("describeSessions", asked)
        assert api.call("describeSessions", {**body, "NextToken": token})["Sessions"]

    @pytest.mark.own_broker
    def test_a_next_token_of_describe_servers_is_refused(self, api: Api, play: Play) -> None:
        play()
        token = api.call("describeServers", {"MaxResults": 1})["NextToken"]
        assert "NextToken" in api.refused("describeSessions", {"NextToken": token})

    @pytest.mark.own_broker
    def test_a_next_token_of_another_query_is_refused(self, api: Api, owner: str) -> None:
        for _ in range(2):
            api.create(owner)
        filters = [{"Key": "owner", "Value": owner}]
        token = api.call("describeSessions", {"Filters": filters, "MaxResults": 1})["NextToken"]
        assert "NextToken" in api.refused("describeSessions", {"NextToken": token})

    @pytest.mark.parametrize("size", [0, -1, 1001])
    def test_max_results_beyond_its_limits(self, api: Api, size: int) -> None:
        assert "MaxResults" in api.refused("describeSessions", {"MaxResults": size})

    @pytest.mark.parametrize("token", ["", "x", "AAAA"])
    def test_a_next_token_that_is_none(self, api: Api, token: str) -> None:
        assert "NextToken" in api.refused("describeSessions", {"NextToken": token})


class TestResponseParameters:
    def test_request_id_is_unique(self, api: Api) -> None:
        assert len({api.call("describeSessions")["RequestId"] for _ in range(3)}) == 3

    def test_id_name_owner_and_type(self, api: Api, owner: str) -> None:
        session = api.describe(api.ready(owner, Name="a session name")) or {}
        told = [session[member] for member in ("Name", "Owner", "Type")]
        assert told == ["a session name", owner, "VIRTUAL"]

    @pytest.mark.parametrize(
        "member", ["Id", "Ip", "Hostname", "Port", "Endpoints", "WebUrlPath", "Tags"]
    )
    def test_server_member_is_that_of_the_server(self, api: Api, session: str, member: str) -> None:
        server = (api.describe(session) or {})["Server"]
        assert server[member] == api.server(server["Id"])[member]

    def test_creation_time_has_milliseconds_and_is_utc(self, api: Api, session: str) -> None:
        told = (api.describe(session) or {})["CreationTime"]
        assert INSTANT.fullmatch(told)
        assert abs((datetime.now(UTC) - datetime.fromisoformat(told)).total_seconds()) < 3600

    def test_last_disconnection_time_is_absent_before_the_first(
        self, api: Api, session: str
    ) -> None:
        assert "LastDisconnectionTime" not in (api.describe(session) or {})

    @pytest.mark.own_broker
    def test_last_disconnection_time(self, api: Api, owner: str, play: Play) -> None:
        server = play()
        session_id = api.ready(owner, **on(server))
        server.report(
            session_id, last_disconnection_at=datetime(2020, 10, 6, 10, 15, 31, 633000, UTC)
        )
        until(lambda: "LastDisconnectionTime" in (api.describe(session_id) or {}))
        told = (api.describe(session_id) or {})["LastDisconnectionTime"]
        assert told == "2020-10-06T10:15:31.633Z"

    def test_num_of_connections_is_zero_at_first(self, api: Api, session: str) -> None:
        assert (api.describe(session) or {})["NumOfConnections"] == 0

    @pytest.mark.own_broker
    def test_num_of_connections(self, api: Api, owner: str, play: Play) -> None:
        server = play()
        session_id = api.ready(owner, **on(server))
        server.report(session_id, connections=2)
        until(lambda: (api.describe(session_id) or {})["NumOfConnections"] == 2)

    def test_storage_root(self, api: Api, owner: str) -> None:
        session_id = api.ready(owner, StorageRoot="/storage/root")
        assert (api.describe(session_id) or {})["StorageRoot"] == "/storage/root"

    def test_what_was_not_asked_for_is_absent(self, api: Api, session: str) -> None:
        told = set(api.describe(session) or {})
        assert not told & {"StorageRoot", "MaxConcurrentClients", "StateReason", "Substate"}


class TestState:
    @pytest.mark.own_broker
    def test_creating(self, api: Api, owner: str, play: Play) -> None:
        server = play()
        server.starts = Phase.STARTING
        session_id = api.create(owner, **on(server))["Id"]
        until(lambda: server.starts_asked)
        assert (api.describe(session_id) or {})["State"] == "CREATING"

    def test_ready(self, api: Api, session: str) -> None:
        assert api.wait(session, "READY")

    @pytest.mark.own_broker
    def test_deleting(self, api: Api, owner: str, play: Play) -> None:
        server = play()
        server.stops = False
        session_id = api.ready(owner, **on(server))
        api.delete(session_id, owner)
        assert (api.describe(session_id) or {})["State"] == "DELETING"

    @pytest.mark.own_broker
    def test_deleted(self, api: Api, owner: str, session: str) -> None:
        api.delete(session, owner)
        assert api.wait(session, "DELETED")

    @pytest.mark.own_broker
    def test_unknown_while_the_agent_cannot_be_reached(
        self, api: Api, owner: str, play: Play
    ) -> None:
        server = play()
        session_id = api.ready(owner, **on(server))
        server.cut()
        assert api.wait(session_id, "UNKNOWN")["StateReason"]
        server.link()
        api.wait(session_id, "READY")

    @pytest.mark.own_broker
    def test_deleted_when_it_has_ended_by_itself(self, api: Api, owner: str, play: Play) -> None:
        server = play()
        session_id = api.ready(owner, **on(server))
        server.report(session_id, phase=Phase.ENDED, reason="it has crashed")
        assert api.wait(session_id, "DELETED")["StateReason"] == "it has crashed"


@pytest.mark.own_broker
class TestSubstate:
    def test_session_placing(self, api: Api, owner: str) -> None:
        wanted = f"tag:nowhere = '{uuid.uuid4()}'"
        session_id = api.create(owner, EnqueueRequest=True, Requirements=wanted)["Id"]
        session = api.describe(session_id) or {}
        assert session["Substate"] == "SESSION_PLACING"
        assert "Server" not in session

    def test_pending_preparation(self, api: Api, owner: str, play: Play) -> None:
        server = play()
        server.starts = Phase.STARTING
        session_id = api.create(owner, **on(server))["Id"]
        until(lambda: server.starts_asked)
        session = api.describe(session_id) or {}
        assert session["Substate"] == "PENDING_PREPARATION"
        assert session["Server"]["Id"] == server.id
        server.report(session_id, phase=Phase.RUNNING)
        assert "Substate" not in api.wait(session_id, "READY")


@pytest.mark.own_broker
class TestSessionsThatTheServerMadeItself:
    def test_they_are_listed_with_the_id_that_they_have_there(
        self, api: Api, owner: str, play: Play
    ) -> None:
        server = play()
        name = f"console{uuid.uuid4().hex[:6]}"
        server.show(name, owner)
        session = api.wait(name, "READY")
        assert (session["Owner"], session["Name"]) == (owner, "")
        assert session["Server"]["Id"] == server.id


class TestExample:
    def test_sessions_of_an_owner_on_servers_with_a_tag(self, api: Api) -> None:
        filters = [{"Key": "tag:os", "Value": "windows"}, {"Key": "owner", "Value": "user1"}]
        assert api.call("describeSessions", {"Filters": filters})["Sessions"] == []
