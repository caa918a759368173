"""Facts of the machine the tests run on, and of a metadata service on its loopback."""

from __future__ import annotations

import ipaddress
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from deskfleet.agent.addresses import active_interfaces, server_address
from deskfleet.agent.ec2 import ask_metadata_service
from deskfleet.agent.facts import FactsSource, Profile
from deskfleet.core.records import Aws, Facts
from deskfleet.system import SystemClock
from support.metadata import MetadataServer, metadata_server
from support.waiting import until

FOUND = Aws(
    region="us-west-2",
    instance_type="g3s.xlarge",
    instance_id="i-123456789",
    image_id="ami-12345678987654321",
)
PATIENT = 20.0
"""Seconds for a first answer where the test isn't about its limit."""


@pytest.fixture
def service() -> Iterator[MetadataServer]:
    with metadata_server() as server:
        yield server


def source(metadata_url: str | None) -> FactsSource:
    profile = Profile(
        server_id="server-1", driver="xvnc", driver_version="1.0", agent_version="0.1", port=8444
    )
    # The full name would be asked of a name server; tests stay on the loopback.
    return FactsSource(
        profile, SystemClock(), metadata_url=metadata_url, resolve=socket.gethostname
    )


class TestThisMachine:
    def test_is_told_as_the_system_tells_it(self) -> None:
        facts = source(None).read()
        host = facts.host
        assert facts.hostname == socket.gethostname()
        assert facts.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        assert host.os.family == "linux"
        assert host.os.kernel_version == os.uname().release
        assert host.memory_total == psutil.virtual_memory().total
        assert 0 < host.memory_used < host.memory_total
        assert host.swap_used <= host.swap_total
        assert host.cpu.architecture == os.uname().machine
        assert host.cpu.number_of_cpus == psutil.cpu_count()
        assert host.cpu.physical_cores_per_cpu is not None
        assert 1 <= host.cpu.physical_cores_per_cpu <= (os.cpu_count() or 1)
        assert host.load is not None
        assert len(host.load) == 3
        assert host.aws is None

    def test_has_an_address_of_one_of_its_interfaces(self) -> None:
        own = {address for texts in active_interfaces().values() for address in texts}
        assert server_address(None) in own
        assert ipaddress.ip_address(server_address("lo")).is_loopback
        assert server_address("no-such-interface") == server_address(None)

    def test_survives_the_wire(self) -> None:
        facts = source(None).read()
        assert msgspec.json.decode(msgspec.json.encode(facts), type=Facts) == facts

    def test_is_read_again_in_little_time(self) -> None:
        facts_source = source(None)
        facts_source.read()
        begin = time.process_time()
        for _ in range(50):
            facts_source.read()
        assert (time.process_time() - begin) / 50 < 0.02


class TestMetadataService:
    def test_tells_four_facts(self, service: MetadataServer) -> None:
        assert ask_metadata_service(service.url, PATIENT) == FOUND
        assert service.asked == [
            "PUT /latest/api/token",
            "GET /latest/dynamic/instance-identity/document",
        ]

    @pytest.mark.parametrize("dripping", [False, True])
    def test_that_is_slow_is_absent_after_its_limit(
        self, service: MetadataServer, *, dripping: bool
    ) -> None:
        service.dripping = dripping
        if not dripping:
            service.held.clear()
        begin = time.monotonic()
        assert ask_metadata_service(service.url) is None
        assert 0.2 <= time.monotonic() - begin < 5
        assert "GET" not in "".join(service.asked)

    def test_that_is_not_there_is_absent(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        assert ask_metadata_service(f"http://127.0.0.1:{port}", PATIENT) is None

    def test_that_never_accepts_is_absent(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            assert ask_metadata_service(f"http://127.0.0.1:{silent.getsockname()[1]}") is None

    @pytest.mark.parametrize("status", [301, 403, 404, 405, 500])
    def test_that_gives_no_token_is_absent(self, service: MetadataServer, status: int) -> None:
        service.token_status = status
        assert ask_metadata_service(service.url, PATIENT) is None

    @pytest.mark.parametrize("token", [b"", b"a\r\nX: b", b"\xff\xfe", b"x" * 100_000])
    def test_with_a_nonsense_token_is_absent(self, service: MetadataServer, token: bytes) -> None:
        service.token = token
        assert ask_metadata_service(service.url, PATIENT) is None

    @pytest.mark.parametrize(
        "document",
        [
            b"",
            b"<html>captive portal</html>",
            b"[]",
            b"{}",
            b'{"instanceId": 5}',
            b'{"instanceId": "i-1\\n"}',
            b'{"instanceId": "i-1", "region": {"a": 1}}',
            b'{"instanceId": "' + b"x" * 100_000 + b'"}',
            b"\xff" * 10,
        ],
    )
    def test_with_a_nonsense_document_is_absent(
        self, service: MetadataServer, document: bytes
    ) -> None:
        service.document = document
        assert ask_metadata_service(service.url, PATIENT) is None

    def test_may_know_only_some_facts(self, service: MetadataServer) -> None:
        service.document = b'{"instanceId": "i-1", "region": null}'
        assert ask_metadata_service(service.url, PATIENT) == Aws(instance_id="i-1")

    def test_is_asked_directly_whatever_proxy_is_set(
        self, service: MetadataServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        monkeypatch.delenv("no_proxy", raising=False)
        assert ask_metadata_service(service.url, PATIENT) == FOUND


class TestFactsWithMetadata:
    def test_hold_what_the_service_said_from_a_later_read_on(self, service: MetadataServer) -> None:
        # On a machine that is too busy for the service's limit a new source asks anew.
        def told() -> bool:
            facts_source = source(service.url)
            facts_source.read()
            inquiry = facts_source._ec2
            assert inquiry is not None
            until(lambda: inquiry.answered)
            return facts_source.read().host.aws == FOUND

        until(told)

    def test_do_not_wait_for_a_slow_one_and_do_not_ask_again(self, service: MetadataServer) -> None:
        service.held.clear()
        facts_source = source(service.url)
        assert facts_source.read().host.aws is None
        inquiry = facts_source._ec2
        assert inquiry is not None
        until(lambda: inquiry.answered)
        service.held.set()
        for _ in range(3):
            assert facts_source.read().host.aws is None
        assert service.asked in ([], ["PUT /latest/api/token"])
