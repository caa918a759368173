"""CreateSessions: which parameter is supported with which type of sessions on which system."""

from __future__ import annotations

from typing import Any

import pytest

from deskfleet.core.records import Type
from support.conformance import Api, Play, on
from support.played_server import LINUX, MACOS, WINDOWS, PlayedServer

pytestmark = pytest.mark.own_broker

SYSTEMS = {
    "linux virtual": (LINUX, Type.VIRTUAL),
    "linux console": (LINUX, Type.CONSOLE),
    "windows console": (WINDOWS, Type.CONSOLE),
    "macos console": (MACOS, Type.CONSOLE),
}


def last(members: object) -> str | None:
    return list(members)[-1] if isinstance(members, dict) else None


def server_of(play: Play, system: str) -> tuple[PlayedServer, dict[str, Any]]:
    """Play a server of a system; return it with the parameters that place a session there."""
    os, type_ = SYSTEMS[system]
    server = play(types=(type_,), os=os)
    return server, {"Type": type_, **on(server)}


class TestNotSupportedWithConsoleSessions:
    """Whatever system they would run on: such a request is refused before a place is looked for."""

    @pytest.mark.parametrize(
        "members",
        [
            {"InitFile": "init.sh"},
            {"InitFilePath": "init.sh"},
            {"AutorunFile": "run.sh", "AutorunFileArguments": ["x"]},
            {"DcvGlEnabled": True},
        ],
        ids=last,
    )
    @pytest.mark.parametrize("enqueue", [False, True])
    @pytest.mark.parametrize("system", ["linux console", "windows console", "macos console"])
    def test_parameter(
        self,
        api: Api,
        owner: str,
        play: Play,
        system: str,
        enqueue: bool,
        members: dict[str, Any],
    ) -> None:
        _, place = server_of(play, system)
        item = api.item(owner, EnqueueRequest=enqueue, **members, **place)
        (refused,) = api.call("createSessions", [item])["UnsuccessfulList"]
        member = str(last(members)).removesuffix("Path")
        assert refused["FailureReason"] == f"{member} with console sessions is not supported."
        assert refused["CreateSessionRequestData"] == item


class TestNotSupportedOnTheSystem:
    @pytest.mark.parametrize(
        ("system", "members", "reason"),
        [
            (
                "linux console",
                {"AutorunFile": "run.sh"},
                "run linux and don't support AutorunFile with console sessions",
            ),
            (
                "macos console",
                {"StorageRoot": "%home%"},
                "run macos and don't support StorageRoot without an absolute path",
            ),
            (
                "macos console",
                {"StorageRoot": "desk/files"},
                "run macos and don't support StorageRoot without an absolute path",
            ),
        ],
    )
    def test_parameter(
        self,
        api: Api,
        owner: str,
        play: Play,
        system: str,
        members: dict[str, Any],
        reason: str,
    ) -> None:
        server, place = server_of(play, system)
        assert api.failure(owner, **members, **place).endswith(f", 1 {reason}")
        # Where a server with another system fits, it is that one which is taken.
        other = play(types=(Type.CONSOLE,), os=WINDOWS, tags=server.facts.tags)
        session = api.wait(api.ready(owner, **members, **place), "READY")
        assert session["Server"]["Id"] == other.id

    def test_dcv_gl_enabled_with_virtual_sessions_on_windows(
        self, api: Api, owner: str, play: Play
    ) -> None:
        server = play(types=(Type.VIRTUAL,), os=WINDOWS)
        assert api.failure(owner, DcvGlEnabled=True, **on(server)).endswith(
            "run windows and don't support DcvGlEnabled"
        )


class TestSupported:
    @pytest.mark.parametrize(
        ("system", "members"),
        [
            ("linux virtual", {"InitFile": "i"}),
            ("linux virtual", {"AutorunFile": "a", "AutorunFileArguments": ["x"]}),
            ("linux virtual", {"DcvGlEnabled": True}),
            ("linux virtual", {"StorageRoot": "%home%"}),
            ("linux virtual", {"MaxConcurrentClients": 2}),
            ("linux console", {"MaxConcurrentClients": 1}),
            ("linux console", {"StorageRoot": "%home%/x"}),
            ("windows console", {"AutorunFile": "run.bat"}),
            ("windows console", {"StorageRoot": "%home%/x"}),
            ("windows console", {"StorageRoot": "C:\\files"}),
            ("windows console", {"MaxConcurrentClients": 3}),
            ("macos console", {"StorageRoot": "/Users/alice"}),
            ("macos console", {"MaxConcurrentClients": 5}),
            ("windows console", {"DcvGlEnabled": False}),
            ("windows console", {"AutorunFileArguments": []}),
        ],
    )
    def test_parameter(
        self, api: Api, owner: str, play: Play, system: str, members: dict[str, Any]
    ) -> None:
        _, place = server_of(play, system)
        assert api.ready(owner, **members, **place)


class TestBatch:
    def test_only_the_entries_that_ask_for_what_is_not_supported_fail(
        self, api: Api, owner: str, play: Play
    ) -> None:
        _, place = server_of(play, "windows console")
        good = [api.item(owner), api.item(owner, **place), api.item(owner, DcvGlEnabled=True)]
        bad = [
            api.item(owner, **{**place, "InitFile": "init.sh"}),
            api.item(owner, **{**place, "DcvGlEnabled": True}),
        ]
        answer = api.call("createSessions", [good[0], bad[0], good[1], bad[1], good[2]])
        assert [one["Name"] for one in answer["SuccessfulList"]] == [one["Name"] for one in good]
        refused = answer["UnsuccessfulList"]
        assert [one["CreateSessionRequestData"] for one in refused] == bad
        assert [one["FailureReason"].split()[0] for one in refused] == ["InitFile", "DcvGlEnabled"]
