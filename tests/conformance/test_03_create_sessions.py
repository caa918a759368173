"""CreateSessions: creates new sessions with the specified details."""

from __future__ import annotations

import base64
import re
from typing import Any

import pytest

from deskfleet.core.records import Type
from support.conformance import NO_PLACE, Api, Play, on
from support.played_server import WINDOWS, PlayedServer

ANY_TYPE = (Type.VIRTUAL, Type.CONSOLE)
PERMISSIONS = base64.b64encode(b"[permissions]\n%owner% allow builtin\n").decode()


@pytest.fixture
def server(play: Play) -> PlayedServer:
    return play(types=ANY_TYPE)


@pytest.fixture
def windows(play: Play) -> PlayedServer:
    return play(types=(Type.CONSOLE,), os=WINDOWS)


class TestRequestParameters:
    def test_name(self, api: Api, owner: str) -> None:
        assert api.create(owner, Name="a session name")["Name"] == "a session name"

    @pytest.mark.own_broker
    @pytest.mark.parametrize("name", ["-rf", "é" * 256, "桌面" * 128])
    def test_name_of_up_to_256_characters_whatever_the_first(
        self, api: Api, owner: str, name: str
    ) -> None:
        session_id = api.ready(owner, Name=name)
        assert (api.describe(session_id) or {})["Name"] == name

    @pytest.mark.own_broker
    @pytest.mark.parametrize("member", ["Name", "Owner"])
    def test_name_and_owner_of_more_than_256_characters(
        self, api: Api, owner: str, member: str
    ) -> None:
        told = api.failure(owner, **{member: "é" * 257})
        assert told == f"{member} is longer than 256 characters."

    def test_owner(self, api: Api, owner: str) -> None:
        assert api.create(owner)["Owner"] == owner

    @pytest.mark.own_broker
    def test_owner_with_a_windows_domain(self, api: Api, domain_owner: str) -> None:
        session_id = api.ready(domain_owner)
        assert (api.describe(session_id) or {})["Owner"] == domain_owner

    @pytest.mark.own_broker
    def test_owner_that_begins_with_a_dash(self, api: Api, owner: str) -> None:
        assert "Owner" in api.failure("-rf")

    @pytest.mark.parametrize("type_", ["VIRTUAL", "Virtual", "virtual"])
    def test_type_virtual(self, api: Api, owner: str, type_: str) -> None:
        assert api.create(owner, Type=type_)["Type"] == "VIRTUAL"

    @pytest.mark.own_broker
    @pytest.mark.parametrize("type_", ["CONSOLE", "Console"])
    def test_type_console(self, api: Api, owner: str, server: PlayedServer, type_: str) -> None:
        created = api.create(owner, Type=type_, **on(server))
        assert created["Type"] == "CONSOLE"
        assert api.wait(created["Id"], "READY")["Type"] == "CONSOLE"

    @pytest.mark.own_broker
    @pytest.mark.parametrize(
        ("given", "told"),
        [
            ({"InitFile": "init.sh"}, {"init_file": "init.sh"}),
            ({"InitFilePath": "old.sh"}, {"init_file": "old.sh"}),
            ({"InitFilePath": "old.sh", "InitFile": "init.sh"}, {"init_file": "init.sh"}),
            ({"MaxConcurrentClients": 3}, {"max_concurrent_clients": 3}),
            ({"DcvGlEnabled": True}, {"dcv_gl_enabled": True}),
            ({"DcvGlEnabled": False}, {"dcv_gl_enabled": False}),
            ({"PermissionsFile": PERMISSIONS}, {"permissions_file": PERMISSIONS}),
            ({"AutorunFile": "sub/run.sh"}, {"autorun_file": "sub/run.sh"}),
            (
                {"AutorunFile": "run.sh", "AutorunFileArguments": ["b", "", "a b", "ü"]},
                {"autorun_file_arguments": ("b", "", "a b", "ü")},
            ),
            ({"DisableRetryOnFailure": True}, {"disable_retry": True}),
            ({"StorageRoot": "%home%/desk"}, {"storage_root": "%home%/desk"}),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
    )
    def test_reaches_the_server(
        self,
        api: Api,
        owner: str,
        server: PlayedServer,
        given: dict[str, Any],
        told: dict[str, Any],
    ) -> None:
        session_id = api.ready(owner, **given, **on(server))
        desire = server.desire(session_id)
        assert desire is not None
        assert {name: getattr(desire.spec.request, name) for name in told} == told

    @pytest.mark.own_broker
    @pytest.mark.parametrize(
        ("prose", "member", "value"),
        [("MaxConcurrents", "MaxConcurrentClients", 3), ("DcvGLEnabled", "DcvGlEnabled", True)],
    )
    def test_the_spelling_of_the_prose_is_taken_for_that_of_the_example(
        self, api: Api, owner: str, server: PlayedServer, prose: str, member: str, value: object
    ) -> None:
        session_id = api.ready(owner, **{prose: value}, **on(server))
        desire = server.desire(session_id)
        assert desire is not None
        asked = desire.spec.request
        assert value in {asked.max_concurrent_clients, asked.dcv_gl_enabled}
        item = api.item(owner, Requirements="tag:nowhere = 'x'")
        (refused,) = api.call("createSessions", [{**item, prose: value}])["UnsuccessfulList"]
        assert refused["CreateSessionRequestData"] == {**item, member: value}
        both = {**item, prose: value, member: value}
        assert api.refused("createSessions", [both]) == f'Duplicate field "{member}"'

    def test_max_concurrent_clients_is_shown(self, api: Api, owner: str) -> None:
        session_id = api.ready(owner, MaxConcurrentClients=2)
        assert (api.describe(session_id) or {})["MaxConcurrentClients"] == 2

    def test_storage_root_is_shown(self, api: Api, owner: str) -> None:
        session_id = api.ready(owner, StorageRoot="%home%")
        assert (api.describe(session_id) or {})["StorageRoot"] == "%home%"

    def test_what_is_null_is_as_good_as_absent(self, api: Api, owner: str) -> None:
        optional = (
            *("InitFilePath", "InitFile", "MaxConcurrentClients", "DcvGlEnabled"),
            *("PermissionsFile", "EnqueueRequest", "AutorunFile", "AutorunFileArguments"),
            *("DisableRetryOnFailure", "Requirements", "StorageRoot"),
        )
        assert api.create(owner, **dict.fromkeys(optional))["State"] == "CREATING"

    def test_blank_requirements_require_nothing(self, api: Api, owner: str) -> None:
        assert api.create(owner, Requirements="  ")["State"] == "CREATING"


class TestRequired:
    @pytest.mark.parametrize("member", ["Name", "Owner", "Type"])
    @pytest.mark.parametrize("value", [None, "", " "], ids=["null", "empty", "blank"])
    def test_an_entry_without_it_fails(
        self, api: Api, owner: str, member: str, value: str | None
    ) -> None:
        item = {**api.item(owner), member: value}
        (refused,) = api.call("createSessions", [item])["UnsuccessfulList"]
        assert member in refused["FailureReason"]

    def test_another_entry_is_created_all_the_same(self, api: Api, owner: str) -> None:
        answer = api.call("createSessions", [{"Owner": owner}, api.item(owner)])
        assert len(answer["SuccessfulList"]) == 1
        assert len(answer["UnsuccessfulList"]) == 1


class TestRefusedValues:
    @pytest.mark.parametrize(
        ("member", "value"),
        [
            ("Type", "OTHER"),
            ("MaxConcurrentClients", 0),
            ("MaxConcurrentClients", -1),
            ("PermissionsFile", base64.b64encode(b"not a permissions file").decode()),
            ("Requirements", "tag:color ="),
            ("Name", "a\nb"),
            ("Owner", "a\x00b"),
        ],
    )
    def test_of_one_entry(self, api: Api, owner: str, member: str, value: object) -> None:
        item = {**api.item(owner), member: value}
        (refused,) = api.call("createSessions", [item])["UnsuccessfulList"]
        assert refused["FailureReason"]

    @pytest.mark.own_broker
    def test_a_permissions_file_that_is_a_path_is_none(self, api: Api, owner: str) -> None:
        assert "PermissionsFile" in api.failure(owner, PermissionsFile="/dcv/permissions.file")

    def test_autorun_file_arguments_more_than_the_limit(self, api: Api, owner: str) -> None:
        many = ["x"] * 51
        assert "AutorunFileArguments" in api.failure(
            owner, AutorunFile="run.sh", AutorunFileArguments=many
        )

    def test_autorun_file_arguments_longer_than_the_limit(self, api: Api, owner: str) -> None:
        long = ["x" * 151]
        assert "AutorunFileArguments" in api.failure(
            owner, AutorunFile="run.sh", AutorunFileArguments=long
        )

    def test_autorun_file_arguments_at_the_limit(self, api: Api, owner: str) -> None:
        arguments = ["x" * 150] * 50
        assert api.create(owner, AutorunFile="run.sh", AutorunFileArguments=arguments)["Id"]


class TestResponseParameters:
    def test_id_is_a_lower_case_uuid(self, api: Api, owner: str) -> None:
        pattern = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
        assert re.fullmatch(pattern, api.create(owner)["Id"])

    def test_id_is_unique(self, api: Api, owner: str) -> None:
        answer = api.call("createSessions", [api.item(owner) for _ in range(3)])
        assert len({one["Id"] for one in answer["SuccessfulList"]}) == 3

    @pytest.mark.parametrize(
        ("member", "value"),
        [
            ("Name", "n"),
            ("Type", "VIRTUAL"),
            ("State", "CREATING"),
            ("Substate", "SESSION_PLACING"),
        ],
    )
    def test_member(self, api: Api, owner: str, member: str, value: str) -> None:
        assert api.create(owner, Name="n")[member] == value

    def test_owner(self, api: Api, owner: str) -> None:
        assert api.create(owner)["Owner"] == owner

    def test_request_id_is_unique(self, api: Api) -> None:
        assert len({api.call("createSessions", [])["RequestId"] for _ in range(3)}) == 3

    def test_both_lists_are_there_when_they_are_empty(self, api: Api) -> None:
        answer = api.call("createSessions", [])
        assert (answer["SuccessfulList"], answer["UnsuccessfulList"]) == ([], [])

    def test_unsuccessful_list_repeats_the_request(self, api: Api, owner: str) -> None:
        item = api.item(owner, Requirements="tag:nowhere = 'x'", MaxConcurrentClients=1)
        (refused,) = api.call("createSessions", [item])["UnsuccessfulList"]
        assert refused["CreateSessionRequestData"] == item

    def test_unsuccessful_list_failure_reason(self, api: Api, owner: str) -> None:
        assert NO_PLACE in api.failure(owner, Requirements="tag:nowhere = 'x'").lower()


class TestExample:
    def test_sessions_that_no_server_fits(self, api: Api) -> None:
        items = [
            {
                "Name": "session1",
                "Owner": "user1",
                "Type": "CONSOLE",
                "MaxConcurrentClients": 1,
                "Requirements": "tag:os = 'windows' and server:Host.Memory.TotalBytes > 1024",
                "StorageRoot": "/storage/root",
            },
            {
                "Name": "session3",
                "Owner": "user1",
                "Type": "VIRTUAL",
                "InitFilePath": "/dcv/script.sh",
                "AutorunFile": "myapp.sh",
                "AutorunFileArguments": ["argument1", "argument2"],
                "MaxConcurrentClients": 1,
                "DcvGlEnabled": False,
                "Requirements": "tag:os = 'linux'",
            },
        ]
        answer = api.call("createSessions", items)
        repeated = [one["CreateSessionRequestData"] for one in answer["UnsuccessfulList"]]
        names = [one["Name"] for one in [*answer["SuccessfulList"], *repeated]]
        assert sorted(names) == ["session1", "session3"]


@pytest.mark.own_broker
class TestPlacement:
    def test_a_full_server_takes_no_more(self, api: Api, owner: str, play: Play) -> None:
        server = play(max_virtual_sessions=2)
        for _ in range(2):
            api.ready(owner, **on(server))
        assert "full" in api.failure(owner, **on(server))

    def test_one_console_session_and_nothing_beside_it(
        self, api: Api, owner: str, server: PlayedServer
    ) -> None:
        api.ready(owner, Type="CONSOLE", **on(server))
        for type_ in ("CONSOLE", "VIRTUAL"):
            assert "full" in api.failure(owner, Type=type_, **on(server))

    def test_no_console_session_beside_virtual_ones(
        self, api: Api, owner: str, server: PlayedServer
    ) -> None:
        api.ready(owner, **on(server))
        assert "full" in api.failure(owner, Type="CONSOLE", **on(server))

    def test_a_limit_for_each_owner(self, api: Api, owner: str, play: Play) -> None:
        server = play(max_sessions_per_user=1)
        api.ready(owner, **on(server))
        assert "owner" in api.failure(owner, **on(server))
        other = f"{owner}2"
        api.ready(other, **on(server))
        api.delete_all_of(other)

    def test_a_type_that_the_server_does_not_have(self, api: Api, owner: str, play: Play) -> None:
        server = play(types=(Type.VIRTUAL,))
        assert "console" in api.failure(owner, Type="CONSOLE", **on(server))

    def test_the_emptier_server_is_taken(self, api: Api, owner: str, play: Play) -> None:
        servers = [play(tags={"played": "pair", "pair": owner}) for _ in range(2)]
        wanted = f"tag:pair = '{owner}'"
        ids = [api.ready(owner, Requirements=wanted) for _ in range(4)]
        placed = [(api.describe(id) or {})["Server"]["Id"] for id in ids]
        assert sorted(placed.count(server.id) for server in servers) == [2, 2]
