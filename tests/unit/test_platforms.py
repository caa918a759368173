"""The platform matrix of createSessions, cell by cell."""

from __future__ import annotations

from typing import Any

import pytest

from deskfleet.core.fleet import Fleet
from deskfleet.core.placement import Placement, Tally, place
from deskfleet.core.platforms import demands_of, refusal_of, unfit
from deskfleet.core.records import Os, Type
from deskfleet.core.session import replace
from support.builders import a_fleet, a_request, a_server, some_facts

LINUX_VIRTUAL = (Type.VIRTUAL, "linux")
LINUX, WINDOWS, MACOS = ((Type.CONSOLE, family) for family in ("linux", "windows", "macos"))
EVERYWHERE = {LINUX_VIRTUAL, LINUX, WINDOWS, MACOS}

MATRIX: list[tuple[str, dict[str, Any], set[tuple[Type, str]]]] = [
    ("", {}, EVERYWHERE),
    ("InitFile", {"init_file": "init.sh"}, {LINUX_VIRTUAL}),
    # The guide says nothing of macOS here.
    ("AutorunFile", {"autorun_file": "run.sh"}, {LINUX_VIRTUAL, WINDOWS, MACOS}),
    ("AutorunFileArguments", {"autorun_file_arguments": ("-x",)}, {LINUX_VIRTUAL}),
    ("DcvGlEnabled", {"dcv_gl_enabled": True}, {LINUX_VIRTUAL}),
    ("DcvGlEnabled", {"dcv_gl_enabled": False}, EVERYWHERE),
    ("MaxConcurrentClients", {"max_concurrent_clients": 3}, EVERYWHERE),
    ("StorageRoot", {"storage_root": "%home%"}, EVERYWHERE - {MACOS}),
    ("StorageRoot", {"storage_root": "%home%/x"}, EVERYWHERE - {MACOS}),
    ("StorageRoot", {"storage_root": "/Users/alice"}, EVERYWHERE),
]


def fleet_of(type: Type, family: str) -> Fleet:
    facts = some_facts(types=(type,))
    system = replace(facts.host, os=Os(family=family))
    return a_fleet(a_server(), replace(facts, host=system))


@pytest.mark.parametrize(("member", "asked", "supported"), MATRIX)
@pytest.mark.parametrize("platform", sorted(EVERYWHERE))
def test_a_cell_of_the_matrix(
    member: str, asked: dict[str, Any], supported: set[tuple[Type, str]], platform: tuple[Type, str]
) -> None:
    type, family = platform
    request = a_request(type=type, **asked)
    reason = refusal_of(request)
    if reason is None:
        fleet = fleet_of(type, family)
        answer = place(request, fleet, Tally(fleet), reachable=lambda _id: True)
        reason = None if isinstance(answer, Placement) else answer.reason
    if platform in supported:
        assert reason is None
    else:
        assert reason is not None
        assert member in reason


def test_what_no_system_supports_is_known_without_a_server() -> None:
    asked = {"init_file": "i", "autorun_file_arguments": ("a",), "dcv_gl_enabled": True}
    for member, value in asked.items():
        assert refusal_of(a_request(type=Type.CONSOLE, **{member: value})) is not None
        assert refusal_of(a_request(**{member: value})) is None
    assert refusal_of(a_request(type=Type.CONSOLE, autorun_file="run")) is None
    reason = refusal_of(a_request(type=Type.CONSOLE, init_file="i"))
    assert reason == "InitFile with console sessions is not supported."


def test_what_depends_on_the_system_makes_a_server_unfit() -> None:
    demands = demands_of(a_request(dcv_gl_enabled=True, storage_root="%home%"))
    assert unfit(demands, "Windows") == "run windows and don't support DcvGlEnabled"
    assert unfit(demands, "macOS") == (
        "run macos and don't support StorageRoot without an absolute path"
    )
    assert unfit(demands, "linux") is None
    assert demands_of(a_request()) == ()
