"""Keys of the original's files at work: what each changes in a broker and an agent that run."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, pkcs12

from deskfleet.agent import identity
from deskfleet.agent import main as agent_main
from deskfleet.agent.identity import Identity
from deskfleet.agent.uplink import Uplink
from deskfleet.cli.program import log_to
from deskfleet.configuration.broker_properties import key_of
from deskfleet.core.records import Session
from deskfleet.errors import SetupFailed
from deskfleet.gateway_certificates import make_gateway_files
from deskfleet.settings import AgentSettings, BrokerSettings, examine, read
from deskfleet.system import SystemClock
from support.builders import a_session
from support.original_files import write
from support.running_broker import RunningBroker, running_broker
from support.waiting import until

DOORS = ("client", "agent", "gateway")
HOUR = timedelta(hours=1)


@contextmanager
def broker_of(folder: Path, text: str, **more: Any) -> Iterator[RunningBroker]:
    """Run a broker by a properties file; ports are free ones."""
    file = write(folder / "session-manager-broker.properties", text)
    found = examine(BrokerSettings, file)
    assert not [note for note in found.notes if found.problem(note)]
    values = {name: value for name, value in found.values.items() if name != "state"}
    with running_broker(folder / "state", **{"gateway_port": 0, **values, **more}) as broker:
        yield broker


def port_of_door(broker: RunningBroker, door: str) -> int:
    port = getattr(broker.doors, f"{door}_port")
    assert isinstance(port, int)
    return port


@pytest.mark.parametrize("door", DOORS)
def test_a_door_is_open_at_its_bind_host_and_nowhere_else(door: str, tmp_path: Path) -> None:
    text = f"enable-gateway = true\n{key_of(f'{door}_host')} = 127.0.0.2\n"
    with broker_of(tmp_path, text) as broker:
        port = port_of_door(broker, door)
        with socket.create_connection(("127.0.0.2", port), timeout=10):
            pass
        for elsewhere in ("127.0.0.1", "127.0.0.3"):
            with socket.socket() as trial, pytest.raises(ConnectionRefusedError):
                trial.connect((elsewhere, port))


@pytest.mark.parametrize(("believed", "second"), [("true", 200), ("false", 429)])
def test_the_forwarded_for_header_says_who_is_counted(
    believed: str, second: int, tmp_path: Path
) -> None:
    """Where nobody has to say who they are, callers are counted by their address."""
    text = (
        "enable-authorization = false\nmax-api-requests-per-second = 1\n"
        f"enable-throttling-forwarded-for-header = {believed}\n"
    )
    with broker_of(tmp_path, text) as broker, broker.http(broker.doors.client_port) as http:

        def call(address: str) -> int:
            headers = {"X-Forwarded-For": f"10.9.9.9, {address}"}
            return http.post("/describeSessions", json={}, headers=headers).status_code

        # As long as both come in one second, the second of one caller is one too many.
        until(lambda: [call("192.0.2.1"), call("192.0.2.1")] == [200, 429], seconds=20)
        assert call("192.0.2.2") == second


class TestTrustStore:
    @pytest.fixture
    def creds(self, tmp_path: Path) -> Path:
        return make_gateway_files(tmp_path / "creds", SystemClock().now(), force=False).trust.parent

    @pytest.fixture
    def store(self, creds: Path) -> Path:
        """Return the trust file as a Java administrator has it: PKCS#12, with a password."""
        (authority,) = x509.load_pem_x509_certificates(
            (creds / "dcv_gateway_trust.pem").read_bytes()
        )
        sealed = pkcs12.serialize_key_and_certificates(
            None, None, None, [authority], BestAvailableEncryption(b"s3cret")
        )
        path = creds / "trust.p12"
        path.write_bytes(sealed)
        return path

    def text(self, store: Path, password: str) -> str:
        return (
            "enable-gateway = true\nenable-tls-client-auth-gateway = true\n"
            f"gateway-to-broker-connector-trust-store-file = {store}\n"
            f"gateway-to-broker-connector-trust-store-pass = {password}\n"
        )

    def test_opens_with_its_password(self, creds: Path, store: Path, tmp_path: Path) -> None:
        with broker_of(tmp_path, self.text(store, "s3cret"), gateway_host="127.0.0.1") as broker:
            url = f"https://localhost:{broker.doors.gateway_port}/resolveSession?sessionId=x"
            with pytest.raises(httpx.TransportError):
                httpx.post(url, verify=broker.context, timeout=30)
            broker.context.load_cert_chain(
                creds / "dcv_gateway_cert.pem", creds / "dcv_gateway_key.pem"
            )
            answer = httpx.post(f"{url}&transport=HTTP", verify=broker.context, timeout=30)
            assert answer.status_code == 404

    def test_and_with_no_other(self, store: Path, tmp_path: Path) -> None:
        with (
            pytest.raises(SetupFailed, match="password is missing or wrong"),
            broker_of(tmp_path, self.text(store, "other"), gateway_host="127.0.0.1"),
        ):
            pass


def test_hours_are_how_long_what_was_deleted_is_shown(tmp_path: Path) -> None:
    with broker_of(tmp_path, "delete-session-duration-hours = 2\n") as broker:
        now = SystemClock().now()
        ages = {"old": 2 * HOUR + timedelta(minutes=1), "young": 2 * HOUR - timedelta(minutes=9)}
        broker.write(*(a_session(id, ended_at=now - age) for id, age in ages.items()))
        fleet = broker.house.replica.fleet
        until(lambda: fleet.get(Session, "old") is None, seconds=30)
        assert fleet.get(Session, "young") is not None


def agent_of(folder: Path, lines: str) -> AgentSettings:
    text = f"version = '0.1'\n[agent]\nbroker_host = 'localhost'\nbroker_port = 1\n{lines}\n"
    environment = {"DESKFLEET_STATE": str(folder), "DESKFLEET_DRIVER": "simulated"}
    environment |= {"DESKFLEET_DESKTOP_PORT": "0", "DESKFLEET_DESKTOP_HOST": "127.0.0.1"}
    file = write(folder / "agent.conf", text)
    return read(AgentSettings, file=file, environment=environment, flags={})


def test_an_agent_is_given_what_its_file_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interval at which it reports, and the interface whose address it reports."""
    made: list[tuple[Uplink, tuple[Any, ...]]] = []

    class Seen(Uplink):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            made.append((self, given))

    monkeypatch.setattr(agent_main, "Uplink", Seen)
    identity.write(tmp_path, Identity("server-1", "secret"))
    settings = agent_of(
        tmp_path, "broker_update_interval = 17\npreferred_network_interface = 'lo'\n"
    )

    async def story() -> None:
        async with agent_main.running(settings):
            [(uplink, given)] = made
            assert 17.0 in given
            facts = await uplink._read_facts()
            assert facts.ip.startswith("127.")

    asyncio.run(story())


class TestLogs:
    """`log.rotation`, `log.max-file-size` and `log.rotate`, from the file to the disk."""

    def said(self, folder: Path, lines: str) -> None:
        text = (
            f"version = '0.1'\n[agent]\nbroker_host = 'a'\n[log]\ndirectory = '{folder}'\n{lines}"
        )
        file = write(folder / "agent.conf", text)
        log_to(read(AgentSettings, file=file, environment={}, flags={}), "agent.log")
        for number in range(40):
            logging.getLogger("deskfleet.test").warning("thing.happened", extra={"n": number})

    def names(self, folder: Path) -> list[str]:
        return sorted(path.name for path in folder.glob("agent.log*"))

    def test_a_file_is_put_by_at_its_size_and_so_many_are_kept(self, tmp_path: Path) -> None:
        self.said(tmp_path, "max-file-size = 1024\nrotate = 2\n")
        assert self.names(tmp_path) == ["agent.log", "agent.log.1", "agent.log.2"]
        assert all((tmp_path / name).stat().st_size <= 1024 for name in self.names(tmp_path))

    def test_by_default_neither_happens_soon(self, tmp_path: Path) -> None:
        self.said(tmp_path, "")
        assert self.names(tmp_path) == ["agent.log"]

    def test_an_hour_is_no_day(self, tmp_path: Path) -> None:
        now = time.time()
        hour_ago = now - 3600
        for rotation, seconds in (("hourly", 3600), ("daily", 86_400)):
            folder = tmp_path / rotation
            folder.mkdir()
            (folder / "agent.log").write_text("{}\n")
            os.utime(folder / "agent.log", (hour_ago, hour_ago))
            self.said(folder, f"rotation = '{rotation}'\n")
            is_over = int(hour_ago // seconds) < int(now // seconds)
            assert ("agent.log.1" in self.names(folder)) == is_over
