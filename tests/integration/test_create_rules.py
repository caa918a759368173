"""What createSessions takes and refuses, asked of a real broker with servers of three systems."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from deskfleet.broker.stores.memory import MemoryStore
from deskfleet.core.records import Os, Record, Type
from deskfleet.core.session import replace
from support.builders import a_link, a_server, some_facts
from support.running_broker import RunningBroker, running_broker

SYSTEMS = {
    "linux-virtual": ("linux", Type.VIRTUAL),
    "linux-console": ("linux", Type.CONSOLE),
    "windows-console": ("windows", Type.CONSOLE),
    "macos-console": ("macos", Type.CONSOLE),
}


def servers(broker_id: str) -> Iterator[Record]:
    for id, (family, type) in SYSTEMS.items():
        facts = some_facts(id, types=(type,), tags={"system": id})
        yield a_server(id)
        yield replace(facts, host=replace(facts.host, os=Os(family=family)))
        yield a_link(id, broker_id=broker_id)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    with running_broker(tmp_path_factory.mktemp("broker"), MemoryStore()) as running:
        running.write(*servers(running.broker_id))
        yield running


@pytest.fixture
def http(broker: RunningBroker) -> Iterator[httpx.Client]:
    with broker.http(broker.doors.client_port) as client:
        client.headers["Authorization"] = f"Bearer {broker.token}"
        yield client
        # Each test finds all seats free.
        found = client.post("/describeSessions", json={}).json()["Sessions"]
        asked = [{"SessionId": s["Id"], "Owner": s["Owner"], "Force": True} for s in found]
        assert not client.post("/deleteSessions", json=asked).json()["UnsuccessfulList"]


def create(http: httpx.Client, **members: Any) -> dict[str, Any]:
    """Create one session; return its entry of either list."""
    item = {"Name": "desk", "Owner": "alice", "Type": "VIRTUAL", **members}
    answer = http.post("/createSessions", json=[item])
    assert answer.status_code == 200
    said = answer.json()
    [entry] = said["SuccessfulList"] + said["UnsuccessfulList"]
    return dict(entry)


def on(system: str) -> dict[str, str]:
    return {"Type": SYSTEMS[system][1], "Requirements": f"tag:system = '{system}'"}


@pytest.mark.parametrize(
    "asked",
    [
        {"InitFile": "init.sh"},
        {"InitFilePath": "init.sh"},
        {"AutorunFileArguments": ["-x"]},
        {"DcvGlEnabled": True},
    ],
)
@pytest.mark.parametrize("enqueue", [False, True])
def test_what_no_console_session_can_have_is_refused_at_once(
    http: httpx.Client, asked: dict[str, Any], enqueue: bool
) -> None:
    entry = create(http, Type="CONSOLE", EnqueueRequest=enqueue, **asked)
    [member] = asked
    reason = entry["FailureReason"]
    assert reason == f"{member.removesuffix('Path')} with console sessions is not supported."
    assert entry["CreateSessionRequestData"][member] == asked[member]


@pytest.mark.parametrize(
    ("system", "asked", "reason"),
    [
        (
            "linux-console",
            {"AutorunFile": "run.sh"},
            "run linux and don't support AutorunFile with console sessions",
        ),
        (
            "macos-console",
            {"StorageRoot": "%home%"},
            "run macos and don't support StorageRoot without an absolute path",
        ),
    ],
)
def test_what_a_system_does_not_support_makes_its_servers_unfit(
    http: httpx.Client, system: str, asked: dict[str, Any], reason: str
) -> None:
    entry = create(http, **on(system), **asked)
    assert entry["FailureReason"].endswith(f"3 of 4 lack tag:system = '{system}', 1 {reason}")
    # Where another system is there that supports it, that one is taken.
    assert create(http, Type="CONSOLE", **asked)["State"] == "CREATING"


@pytest.mark.parametrize(
    ("system", "asked"),
    [
        ("linux-virtual", {"InitFile": "i", "AutorunFile": "a", "AutorunFileArguments": ["x"]}),
        ("linux-virtual", {"DcvGlEnabled": True, "StorageRoot": "%home%"}),
        ("windows-console", {"AutorunFile": "a", "StorageRoot": "%home%/x"}),
        ("windows-console", {"DcvGlEnabled": False, "AutorunFileArguments": []}),
        ("linux-console", {"MaxConcurrentClients": 1, "StorageRoot": "/home"}),
        ("macos-console", {"StorageRoot": "/Users/alice", "MaxConcurrentClients": 5}),
    ],
)
def test_what_a_system_supports_is_granted(
    http: httpx.Client, system: str, asked: dict[str, Any]
) -> None:
    assert create(http, **on(system), **asked)["State"] == "CREATING"


@pytest.mark.parametrize("owner", ["DOMAIN\\user", "user@domain", "user@domain.example.com"])
def test_login_names_with_a_windows_domain(http: httpx.Client, owner: str) -> None:
    entry = create(http, Owner=owner)
    assert entry["Owner"] == owner
    by_owner = {"Filters": [{"Key": "owner", "Value": owner}]}
    [found] = http.post("/describeSessions", json=by_owner).json()["Sessions"]
    assert (found["Id"], found["Owner"]) == (entry["Id"], owner)


@pytest.mark.parametrize(
    "asked", [{"MaxConcurrentClients": 0}, {"MaxConcurrentClients": -1}, {"Type": "SHARED"}]
)
def test_a_value_out_of_range_is_named(http: httpx.Client, asked: dict[str, Any]) -> None:
    [member] = asked
    assert create(http, **asked)["FailureReason"].startswith(member)


def test_one_refused_entry_costs_the_others_nothing(http: httpx.Client) -> None:
    good = {"Name": "desk", "Owner": "alice", "Type": "VIRTUAL"}
    bad = {**good, "Type": "CONSOLE", "InitFile": "init.sh"}
    said = http.post("/createSessions", json=[good, bad, good]).json()
    assert len(said["SuccessfulList"]) == 2
    [entry] = said["UnsuccessfulList"]
    assert entry["CreateSessionRequestData"] == bad
