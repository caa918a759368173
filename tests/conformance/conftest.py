"""Where the suite is pointed: at any broker, or at one of its own.

`CONFORMANCE_URL`, `CONFORMANCE_CLIENT_ID` and `CONFORMANCE_CLIENT_PASSWORD_FILE` name a broker
(`make conformance URL=… CLIENT_ID=… CLIENT_PASSWORD_FILE=… CA=…`); `CONFORMANCE_CA` its
authority, where the system doesn't trust it; `CONFORMANCE_OWNER` a user of its servers, by default
the one who runs this, and `CONFORMANCE_SECONDS` how long it may take to do what it was asked for.
Without a URL the suite starts `deskfleet up --driver simulated` and plays further servers itself.

Tests marked `own_broker` cause what no client can, or hold what the documentation leaves open;
they are skipped at a foreign broker.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from deskfleet.core.records import Aws, Cpu, Gpu, Host, Os
from support.conformance import Api, Configured, OwnFleet, Play, Target, own_fleet
from support.played_server import PlayedServer

URL = os.environ.get("CONFORMANCE_URL", "")
TAGS = "color = 'pink'\nsize = 'small'\n"
SETTINGS = {"agent_heartbeat_seconds": 1.0}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not URL:
        return
    reason = "it needs a broker of its own: it causes what no client can, or holds what is ours"
    for item in items:
        if item.get_closest_marker("own_broker"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnFleet | None]:
    """Yield a fleet of our own, None where the suite is pointed at another one."""
    if URL:
        yield None
        return
    with own_fleet(tmp_path_factory.mktemp("conformance"), SETTINGS, TAGS) as fleet:
        yield fleet


@pytest.fixture(scope="session")
def target(fleet: OwnFleet | None) -> Target:
    if fleet is not None:
        return fleet.target
    return Target.named(os.environ)


@pytest.fixture(scope="session")
def client(target: Target) -> Iterator[Api]:
    api = Api(target)
    yield api
    api.close()


@pytest.fixture
def own(fleet: OwnFleet | None) -> OwnFleet:
    """Our own fleet; for tests that are marked `own_broker`."""
    assert fleet is not None, "a test that uses `own` must be marked own_broker"
    return fleet


@pytest.fixture
def owner(target: Target) -> str:
    """Return a user of the servers, one for each test where that is possible."""
    return target.owner or f"user{uuid.uuid4().hex[:12]}"


@pytest.fixture(params=["DOMAIN\\{}", "{}@domain", "{}@domain.example.com"])
def domain_owner(request: pytest.FixtureRequest, client: Api) -> Iterator[str]:
    """Yield a login name with a Windows domain; what is left over of its sessions is deleted."""
    owner = str(request.param).format(f"user{uuid.uuid4().hex[:12]}")
    yield owner
    client.delete_all_of(owner)


@pytest.fixture
def api(client: Api, owner: str) -> Iterator[Api]:
    """Yield a client; what the owner of this test has left over is deleted."""
    yield client
    client.delete_all_of(owner)


@pytest.fixture
def session(api: Api, owner: str) -> str:
    """Return the id of a READY session of `owner`."""
    return api.ready(owner)


@pytest.fixture
def play(own: OwnFleet, client: Api) -> Iterator[Play]:
    """Play further servers, until the test is over; nothing of their sessions is left."""
    played: list[PlayedServer] = []

    def begin(**facts: object) -> PlayedServer:
        played.append(own.play(**facts))
        return played[-1]

    yield begin
    # A server that was cut counts as reachable for a while: nothing more may be placed there.
    client.call("closeServers", [{"ServerId": one.id, "Force": True} for one in played])
    own.cut_all()
    ids = {server.id for server in played}
    left = [
        {"SessionId": one["Id"], "Owner": one["Owner"], "Force": True}
        for one in client.call("describeSessions")["Sessions"]
        if one.get("Server", {}).get("Id") in ids
    ]
    client.call("deleteSessions", left)


@pytest.fixture
def configured(tmp_path: Path) -> Iterator[Configured]:
    """Start fleets with settings of their own; for tests that are marked `own_broker`."""
    with ExitStack() as stack:

        def start(**settings: object) -> tuple[OwnFleet, Api]:
            fleet = stack.enter_context(own_fleet(tmp_path, settings))
            api = Api(fleet.target)
            stack.callback(api.close)
            return fleet, api

        yield start


@pytest.fixture
def rich_host() -> Host:
    """Return a machine of which everything is known."""
    return Host(
        os=Os(
            family="linux",
            name="Amazon Linux",
            version="2",
            kernel_version="4.14.203",
            build_number="14393",
        ),
        memory_total=32_144_048_128,
        memory_used=2_184_925_184,
        swap_total=1024,
        swap_used=512,
        cpu=Cpu(
            vendor="GenuineIntel",
            model_name="Intel(R) Xeon(R) CPU E5-2686 v4 @ 2.30GHz",
            architecture="x86_64",
            number_of_cpus=4,
            physical_cores_per_cpu=2,
        ),
        load=(2.25, 1.5, 0.75),
        gpus=(Gpu(vendor="NVIDIA Corporation", model_name="GM204GL [Tesla M60]"),),
        logged_in_users=("user45687", "user789"),
        aws=Aws(
            region="us-west-2b",
            instance_type="t2.large",
            instance_id="i-123456789",
            image_id="ami-12345678987654321",
        ),
    )
