"""Connection gateways at their door, over real TLS: where a session is, and who may ask."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from deskfleet.broker.web.gateways import NO_SUCH
from deskfleet.certificates import ensure_authority, ensure_server_certificate, names_of
from deskfleet.core.dns_names import mapping_id
from deskfleet.core.records import (
    Aws,
    DnsMapping,
    Endpoint,
    Facts,
    Phase,
    Record,
    Report,
    ServerIdType,
    Session,
)
from deskfleet.core.session import replace
from deskfleet.errors import SetupFailed
from deskfleet.gateway_certificates import GatewayFiles, make_gateway_files
from deskfleet.system import SystemClock
from support.builders import NOON, a_link, a_report, a_server, a_session, some_facts
from support.running_broker import RunningBroker, read_all, running_broker

PATH = "/resolveSession"
ON_GATEWAYS: dict[str, Any] = {
    "enable_gateway": True,
    "gateway_host": "127.0.0.1",
    "gateway_port": 0,
}


def facts_of(id: str, number: int, **fields: Any) -> Facts:
    """Describe a server that serves HTTP, at an address of its own."""
    address = f"10.0.0.{number}"
    endpoint = Endpoint(ip_address=address, port=8000 + number, web_url_path=f"/{id}")
    return some_facts(id, **{"ip": address, "endpoints": (endpoint,), **fields})


def a_mapping(kind: ServerIdType, value: str, name: str) -> DnsMapping:
    return DnsMapping(
        id=mapping_id(kind, value), server_id_type=kind, server_id=value, internal_name=name
    )


def a_desk(id: str, broker: RunningBroker, number: int, **fields: Any) -> list[Record]:
    """Return a server and a session `s-ID` that is READY on it."""
    session = a_session(f"s-{id}", server=id)
    link = a_link(id, broker_id=broker.broker_id)
    return [a_server(id), facts_of(id, number, **fields), link, session, a_report(session)]


@contextmanager
def at_the_door(
    broker: RunningBroker, context: ssl.SSLContext | None = None
) -> Iterator[httpx.Client]:
    port = broker.doors.gateway_port
    with httpx.Client(
        base_url=f"https://localhost:{port}",
        verify=context or broker.context,
        timeout=30,
        trust_env=False,
    ) as client:
        yield client


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    with running_broker(tmp_path_factory.mktemp("broker"), **ON_GATEWAYS) as running:
        aws = some_facts().host
        quic = tuple(
            Endpoint(ip_address="10.0.0.5", port=port, protocol=protocol, web_url_path=None)
            for protocol, port in (("HTTP", 8443), ("QUIC", 8444))
        )
        starting, gone = a_session("starting", server="by-id"), a_session("gone", ended_at=NOON)
        silent = a_session("silent", server="silent")
        running.write(
            *a_desk("by-id", running, 1),
            *a_desk("by-instance", running, 2, host=replace(aws, aws=Aws(instance_id="i-2"))),
            *a_desk("by-address", running, 3),
            *a_desk("by-itself", running, 4, dns_name="itself.example"),
            *a_desk("with-quic", running, 5, dns_name="quic.example", endpoints=quic),
            *a_desk("nameless", running, 6),
            *a_desk("renamed", running, 8, dns_name="before.example"),
            *(a_server("silent"), facts_of("silent", 7, dns_name="silent.example")),
            *(starting, a_report(starting, Phase.STARTING), gone, silent, a_report(silent)),
            a_mapping(ServerIdType.ID, "by-id", "mapped-id.example"),
            a_mapping(ServerIdType.EC2_INSTANCE_ID, "i-2", "mapped-instance.example"),
            a_mapping(ServerIdType.IP, "10.0.0.3", "mapped-address.example"),
        )
        yield running


@pytest.fixture
def gateway(broker: RunningBroker) -> Iterator[httpx.Client]:
    with at_the_door(broker) as client:
        yield client


def ask(client: httpx.Client, **parameters: str) -> httpx.Response:
    asked = {"sessionId": "s-by-id", "transport": "HTTP", **parameters}
    return client.post(PATH, params={key: value for key, value in asked.items() if value})


@pytest.mark.parametrize(
    ("server", "name", "number"),
    [
        ("by-id", "mapped-id.example", 1),
        ("by-instance", "mapped-instance.example", 2),
        ("by-address", "mapped-address.example", 3),
        ("by-itself", "itself.example", 4),
    ],
)
def test_a_session_is_found_by_each_kind_of_name(
    gateway: httpx.Client, server: str, name: str, number: int
) -> None:
    answer = ask(gateway, sessionId=f"s-{server}", clientIpAddress="192.0.2.1")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "SessionId": f"s-{server}",
        "TransportProtocol": "HTTP",
        "DcvServerEndpoint": name,
        "Port": 8000 + number,
        "WebUrlPath": f"/{server}",
    }


def test_each_transport_has_its_port(gateway: httpx.Client) -> None:
    for transport, port in (("HTTP", 8443), ("QUIC", 8444)):
        answer = ask(gateway, sessionId="s-with-quic", transport=transport).json()
        assert (answer["TransportProtocol"], answer["Port"]) == (transport, port)
        assert answer["WebUrlPath"] == "/"


@pytest.mark.parametrize(
    ("session", "transport", "why"),
    [
        ("nothing", "HTTP", "there is no such session"),
        ("nothing", "QUIC", "there is no such session"),
        ("x" * 5000, "HTTP", "there is no such session"),
        ("\n\x00\u202e", "HTTP", "there is no such session"),
        ("s-by-id", "QUIC", "server by-id has no endpoint for QUIC"),
        ("starting", "HTTP", "the session is CREATING"),
        ("gone", "HTTP", "the session is DELETED"),
        ("silent", "HTTP", "the session is UNKNOWN"),
    ],
)
def test_what_is_not_there_is_told_in_the_words_of_the_original(
    broker: RunningBroker, gateway: httpx.Client, session: str, transport: str, why: str
) -> None:
    broker.log.records.clear()
    answer = ask(gateway, sessionId=session, transport=transport)
    assert answer.status_code == 404
    assert answer.json() == {"error": NO_SUCH}
    [told] = [one for one in broker.log.records if one.getMessage() == "gateway.unresolved"]
    assert told.__dict__["reason"] == why


def test_a_missing_mapping_says_which_server_lacks_what(
    broker: RunningBroker, gateway: httpx.Client
) -> None:
    broker.log.records.clear()
    answer = ask(gateway, sessionId="s-nameless")
    assert answer.status_code == 404
    reason = (
        "server nameless (host nameless.example) has no DNS name: no mapping is registered for"
        " Id nameless, Ip 10.0.0.6, and its agent knows no full name of its host"
    )
    assert answer.json() == {"error": NO_SUCH, "reason": reason}
    [told] = [one for one in broker.log.records if one.getMessage() == "gateway.unresolved"]
    assert (told.levelname, told.__dict__["reason"]) == ("WARNING", reason)


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"sessionId": ""}, "Missing sessionId parameter"),
        ({"transport": ""}, "Missing transport parameter"),
        ({"transport": "FTP"}, "Invalid transport parameter: FTP"),
        ({"transport": "http"}, "Invalid transport parameter: http"),
        ({"transport": "x" * 5000}, f"Invalid transport parameter: {'x' * 128}"),
        ({"clientIpAddress": "desk"}, "Invalid clientIpAddress parameter: desk"),
    ],
)
def test_bad_parameters(gateway: httpx.Client, parameters: dict[str, str], error: str) -> None:
    answer = ask(gateway, **parameters)
    assert answer.status_code == 400
    assert answer.json() == {"error": error}


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 400),
        ("sessionId=&transport=HTTP", 400),
        ("sessionId=s-by-id&sessionId=s-by-itself&transport=HTTP", 400),
        ("sessionId=s-by-id&transport=HTTP&transport=QUIC", 400),
        ("sessionId=s-by-id&transport=HTTP&clientIpAddress=", 200),
        ("&".join(["a=1"] * 50), 400),
        ("sessionId=%ff&transport=HTTP", 404),
        ("sessionId=s-by-id&transport=HTTP&other=1", 200),
        ("sessionId=s-by-id&transport=HTTP&clientIpAddress=%3A%3A1", 200),
    ],
)
def test_odd_queries(gateway: httpx.Client, query: str, status: int) -> None:
    assert gateway.post(f"{PATH}?{query}").status_code == status


def test_a_form_does_as_well_and_too_much_of_one_does_not(gateway: httpx.Client) -> None:
    form = {"sessionId": "s-by-id", "transport": "HTTP"}
    assert gateway.post(PATH, data=form).status_code == 200
    again = gateway.post(PATH, params=form, data=form)
    assert again.status_code == 200
    assert gateway.post(PATH, params=form, data={"sessionId": "other"}).status_code == 400
    assert gateway.post(PATH, params=form, content=b"\xff").status_code == 400
    assert gateway.post(PATH, params=form, content=b"x" * 70_000).status_code == 413


def test_nothing_else_is_done_at_this_door(broker: RunningBroker, gateway: httpx.Client) -> None:
    assert gateway.get("/health").json() == {"status": "ok"}
    good = {"Authorization": f"Bearer {broker.token}"}
    for path in ("/describeSessions", "/createSessions", "/oauth2/token", "/register", "/"):
        assert gateway.post(path, headers=good, json={}).status_code == 404
    for path in ("/agent/validate-authentication-token", "/broker/poke", "/agent/link"):
        assert gateway.post(path, headers=good).status_code == 404
    assert gateway.get(PATH, params={"sessionId": "s-by-id"}).status_code == 405
    for port in (broker.doors.client_port, broker.doors.agent_port):
        with broker.http(port) as other:
            assert other.post(PATH, headers=good).status_code == 404


def test_what_changes_is_found_at_once(broker: RunningBroker, gateway: httpx.Client) -> None:
    broker.write(a_mapping(ServerIdType.IP, "10.0.0.8", "after.example"))
    assert ask(gateway, sessionId="s-renamed").json()["DcvServerEndpoint"] == "after.example"
    session = a_session("moved", server="by-id")
    broker.write(session, a_report(session))
    assert ask(gateway, sessionId="moved").json()["Port"] == 8001
    moved: Session = replace(session, server_id="by-address", generation=2)
    report: Report = a_report(moved)
    broker.write(moved, report)
    assert ask(gateway, sessionId="moved").json()["Port"] == 8003


def test_without_the_setting_there_is_no_such_door(tmp_path: Path) -> None:
    with running_broker(tmp_path, enable_tls_client_auth_gateway=True) as plain:
        assert plain.doors.gateway_port is None
        assert "gateway.off" in plain.log.events()


class TestCertificates:
    @pytest.fixture(scope="class")
    @classmethod
    def files(cls, tmp_path_factory: pytest.TempPathFactory) -> GatewayFiles:
        folder = tmp_path_factory.mktemp("creds")
        return make_gateway_files(folder, datetime.now(UTC), force=False)

    @pytest.fixture(scope="class")
    @classmethod
    def successor(cls, tmp_path_factory: pytest.TempPathFactory) -> GatewayFiles:
        """Make what takes the place of the first certificate, while both are good."""
        folder = tmp_path_factory.mktemp("new-creds")
        return make_gateway_files(folder, datetime.now(UTC), force=False)

    @pytest.fixture(scope="class")
    @classmethod
    def strict(
        cls,
        files: GatewayFiles,
        successor: GatewayFiles,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> Iterator[RunningBroker]:
        bundle = tmp_path_factory.mktemp("trust") / "both.pem"
        bundle.write_bytes(files.trust.read_bytes() + successor.trust.read_bytes())
        with running_broker(
            tmp_path_factory.mktemp("strict"),
            **ON_GATEWAYS,
            enable_tls_client_auth_gateway=True,
            gateway_trust_file=bundle,
        ) as running:
            running.write(*a_desk("n1", running, 1, dns_name="n1.example"))
            yield running

    def context(
        self, strict: RunningBroker, certificate: Path | None = None, key: Path | None = None
    ) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(strict.doors.ca_file))
        if certificate is not None:
            context.load_cert_chain(certificate, key)
        return context

    def test_the_right_certificates_open_the_door(
        self, strict: RunningBroker, files: GatewayFiles, successor: GatewayFiles
    ) -> None:
        for made in (files, successor):
            context = self.context(strict, made.certificate, made.key)
            with at_the_door(strict, context) as client:
                answer = ask(client, sessionId="s-n1")
                assert answer.json()["DcvServerEndpoint"] == "n1.example"

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    def test_in_either_version_of_tls_and_when_resumed(
        self, strict: RunningBroker, files: GatewayFiles, version: ssl.TLSVersion
    ) -> None:
        context = self.context(strict, files.certificate, files.key)
        context.minimum_version = context.maximum_version = version
        assert strict.doors.gateway_port is not None
        address, session = ("127.0.0.1", strict.doors.gateway_port), None
        for resumed in (False, True):
            with (
                socket.create_connection(address, timeout=30) as plain,
                context.wrap_socket(plain, server_hostname="localhost", session=session) as door,
            ):
                door.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert read_all(door).startswith(b"HTTP/1.1 200")
                session = door.session
                assert door.session_reused is resumed

    def test_without_one_the_handshake_fails(self, strict: RunningBroker) -> None:
        self.is_refused(strict, self.context(strict))

    def test_one_of_another_authority_is_refused(
        self, strict: RunningBroker, tmp_path: Path
    ) -> None:
        others = make_gateway_files(tmp_path, datetime.now(UTC), force=False)
        self.is_refused(strict, self.context(strict, others.certificate, others.key))

    def test_the_fleet_s_own_certificates_are_refused(self, strict: RunningBroker) -> None:
        folder = strict.doors.ca_file.parent
        self.is_refused(strict, self.context(strict, folder / "broker.pem", folder / "broker.key"))

    def test_one_that_is_for_servers_is_refused(self, tmp_path: Path) -> None:
        """Also where somebody trusts the authority that signs servers."""
        authority = ensure_authority(tmp_path / "ca", SystemClock())
        pair = ensure_server_certificate(
            authority, tmp_path / "ca", "server", SystemClock(), names_of({"localhost"})
        )
        with running_broker(
            tmp_path / "state",
            **ON_GATEWAYS,
            enable_tls_client_auth_gateway=True,
            gateway_trust_file=authority.certificate_path,
        ) as running:
            self.is_refused(running, self.context(running, *pair))

    def test_the_other_doors_ask_for_none(self, strict: RunningBroker) -> None:
        for port in (strict.doors.client_port, strict.doors.agent_port):
            with strict.http(port) as client:
                assert client.get("/health").status_code == 200

    def is_refused(self, strict: RunningBroker, context: ssl.SSLContext) -> None:
        strict.log.records.clear()
        for path in ("/health", PATH):
            with at_the_door(strict, context) as client, pytest.raises(httpx.TransportError):
                client.post(path)
        # Nothing of a request was read.
        assert "request.answered" not in strict.log.events()

    def test_it_needs_a_trust_file(self, tmp_path: Path) -> None:
        with (
            pytest.raises(SetupFailed, match="needs gateway_trust_file"),
            running_broker(tmp_path, **ON_GATEWAYS, enable_tls_client_auth_gateway=True),
        ):
            pass

    def test_a_trust_file_that_is_none_ends_the_start(self, tmp_path: Path) -> None:
        options: dict[str, Any] = {
            "enable_tls_client_auth_gateway": True,
            "gateway_trust_file": tmp_path / "x",
        }
        with (
            pytest.raises(SetupFailed, match=str(tmp_path / "x")),
            running_broker(tmp_path / "state", **ON_GATEWAYS, **options),
        ):
            pass
