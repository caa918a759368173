"""A broker with certificates that were brought: each door shows its own, and brokers meet."""

from __future__ import annotations

import asyncio
import http.client
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from deskfleet.broker import main as broker_main
from deskfleet.errors import SetupFailed
from deskfleet.settings import BrokerSettings
from support.original_files import Brought
from support.running_broker import running_broker
from support.waiting import until


def trust(*authorities: bytes) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=b"".join(authorities).decode())


def answers(port: int, context: ssl.SSLContext) -> bool:
    connection = http.client.HTTPSConnection("localhost", port, timeout=10, context=context)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except ssl.SSLCertVerificationError:
        return False
    finally:
        connection.close()


def test_each_door_shows_its_own(tmp_path: Path) -> None:
    client, agent, gateway = Brought(), Brought(), Brought()
    (tmp_path / "c.p12").write_bytes(client.pkcs12("one"))
    (tmp_path / "a.pem").write_bytes(agent.pem())
    (tmp_path / "a.key").write_bytes(agent.key_pem("two"))
    (tmp_path / "a.key").chmod(0o600)
    (tmp_path / "g.p12").write_bytes(gateway.pkcs12("three"))
    with running_broker(
        tmp_path / "state",
        client_certificate_file=tmp_path / "c.p12",
        client_key_password="one",
        agent_certificate_file=tmp_path / "a.pem",
        agent_key_file=tmp_path / "a.key",
        agent_key_password="two",
        enable_gateway=True,
        gateway_host="127.0.0.1",
        gateway_port=0,
        gateway_certificate_file=tmp_path / "g.p12",
        gateway_key_password="three",
    ) as broker:
        doors = broker.doors
        assert doors.gateway_port is not None
        shown = [
            (doors.client_port, client),
            (doors.agent_port, agent),
            (doors.gateway_port, gateway),
        ]
        fleet = doors.ca_file.read_bytes()
        for port, own in shown:
            others = [other.pem() for _, other in shown if other is not own]
            assert answers(port, trust(own.pem()))
            assert not answers(port, trust(fleet, *others))


def test_those_who_bring_nothing_show_the_fleets(tmp_path: Path) -> None:
    agent = Brought()
    (tmp_path / "a.p12").write_bytes(agent.pkcs12("x"))
    with running_broker(
        tmp_path / "state", agent_certificate_file=tmp_path / "a.p12", agent_key_password="x"
    ) as broker:
        fleet = trust(broker.doors.ca_file.read_bytes())
        assert answers(broker.doors.client_port, fleet)
        assert not answers(broker.doors.agent_port, fleet)


def test_the_fleets_certificate_has_the_name_that_is_advertised(tmp_path: Path) -> None:
    """It may be one that only the resolvers of agents and other brokers know."""
    with running_broker(tmp_path / "state", advertise="broker1.example.org") as broker:
        fleet = trust(broker.doors.ca_file.read_bytes())
        for port in (broker.doors.client_port, broker.doors.agent_port):
            with (
                socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
                fleet.wrap_socket(plain, server_hostname="broker1.example.org") as secured,
            ):
                assert secured.version() == "TLSv1.3"


def test_another_broker_is_trusted_with_what_was_brought_and_with_the_fleets(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.p12").write_bytes(Brought().pkcs12("x"))
    brought: dict[str, Any] = {
        "agent_certificate_file": tmp_path / "a.p12",
        "agent_key_password": "x",
    }
    state = tmp_path / "state"
    with running_broker(state, None, **brought) as broker:
        tls = broker_main._tls(BrokerSettings(state=state, **brought))
        with_it = broker_main._peer_context(BrokerSettings(**brought), tls)
        without = broker_main._peer_context(BrokerSettings(), tls)
        assert answers(broker.doors.agent_port, with_it)
        assert not answers(broker.doors.agent_port, without)
        # Of a broker that has been brought nothing yet, the doors are like this one's for clients.
        assert answers(broker.doors.client_port, with_it)


def test_what_an_administrator_replaces_is_shown_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deskfleet.tls.LOOK_SECONDS", 0.05)
    old, new, file = Brought(), Brought(), tmp_path / "a.p12"
    file.write_bytes(old.pkcs12("x"))
    brought: dict[str, Any] = {"agent_certificate_file": file, "agent_key_password": "x"}
    state = tmp_path / "state"
    with running_broker(state, None, **brought) as broker:
        tls = broker_main._tls(BrokerSettings(state=state, **brought))
        peer = broker_main._peer_context(BrokerSettings(**brought), tls)
        assert answers(broker.doors.agent_port, trust(old.pem()))
        draft = tmp_path / "draft"
        draft.write_bytes(new.pkcs12("x"))
        draft.replace(file)
        until(lambda: answers(broker.doors.agent_port, trust(new.pem())))
        assert not answers(broker.doors.agent_port, trust(old.pem()))
        asyncio.run(tls.shown.look())
        assert answers(broker.doors.agent_port, peer)


@pytest.mark.parametrize("content", [b"\xfe\xed\xfe\xed", b"nothing"])
def test_what_can_not_be_used_keeps_a_broker_from_starting(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "c.p12").write_bytes(content)
    with (
        pytest.raises(SetupFailed, match=r"keytool|neither PEM nor PKCS#12"),
        running_broker(tmp_path / "state", client_certificate_file=tmp_path / "c.p12"),
    ):
        pass


def test_a_gateways_certificate_is_not_looked_at_where_there_is_no_gateway(tmp_path: Path) -> None:
    with running_broker(tmp_path / "state", gateway_certificate_file=tmp_path / "none"):
        pass


def test_a_state_folder_that_everybody_can_write_to(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o1777)
    with (
        pytest.raises(SetupFailed, match=r"written to by everybody \(mode 1777\)"),
        running_broker(state),
    ):
        pass
    (tmp_path / "file").touch()
    with (
        pytest.raises(SetupFailed, match="can't be used"),
        running_broker(tmp_path / "file" / "state"),
    ):
        pass


@pytest.mark.parametrize(("enabled", "status"), [(True, 200), (False, 404)])
def test_the_description_of_the_api(enabled: bool, status: int, tmp_path: Path) -> None:
    with (
        running_broker(tmp_path / "state", enable_api_yaml=enabled) as broker,
        broker.http(broker.doors.client_port) as client,
    ):
        assert client.get("/dcv-session-manager-api.yaml").status_code == status
        assert client.get("/health").status_code == 200
