"""A whole fleet of DCV servers, which stand-ins play: real brokers, agents and gateways' calls.

Three machines: Linux with virtual sessions, Linux with a console session, and one that is like
Windows on EC2. Two brokers on one store: the second asks gateways for certificates.
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from support import windows_like
from support.dcv import DcvSite, dcv_folder
from support.metadata import MetadataServer, metadata_server
from support.programs import Portal, Site, free_ports, trust
from support.sessions import session_owner
from support.waiting import until

INSTANCE = "i-123456789"
READY_SECONDS = 60.0
NOT_FOUND = "The requested combination of transport and sessionId does not exist"


@dataclass
class Machines:
    site: Site
    portal: Portal
    gateway_ports: dict[str, int]
    dcv: dict[str, DcvSite]
    server_ids: dict[str, str]
    sessions: dict[str, str]
    """By machine, READY all of them."""

    def server(self, name: str) -> dict[str, Any]:
        asked = {"ServerIds": [self.server_ids[name]]}
        [found] = self.portal.call("/describeServers", asked)["Servers"]
        return dict(found)

    @contextmanager
    def gateway(self, broker: str, credentials: Path | None = None) -> Iterator[httpx.Client]:
        """Call a broker as a gateway does, with the certificate in a folder or without any."""
        context = trust(self.site.ca_file)
        if credentials is not None:
            certificate, key = (credentials / f"dcv_gateway_{name}.pem" for name in ("cert", "key"))
            context.load_cert_chain(certificate, key)
        url = f"https://localhost:{self.gateway_ports[broker]}"
        with httpx.Client(base_url=url, verify=context, trust_env=False, timeout=30) as client:
            yield client

    def resolve(self, gateway: httpx.Client, machine: str) -> httpx.Response:
        asked = {"sessionId": self.sessions[machine], "transport": "HTTP"}
        return gateway.post("/resolveSession", params=asked)

    def map_names(self, *mappings: tuple[str, str, str]) -> None:
        """Register these names, by type and value, and nothing else."""
        file = self.site.folder / "mappings.json"
        entries = [
            {"ServerIdType": kind, "ServerId": value, "DnsNames": {"InternalDnsName": name}}
            for kind, value, name in mappings
        ]
        file.write_text(json.dumps(entries))
        self.site.command("register-server-dns-mappings", "--file-path", str(file), "--only-these")


def windows_environment(folder: Path, metadata: MetadataServer) -> dict[str, str]:
    tools = folder / "tools"
    tools.mkdir()
    for name in ("icacls", "schtasks"):
        (tools / name).write_text("#!/bin/sh\n")
        (tools / name).chmod(0o755)
    return {
        "PATH": f"{tools}:/usr/bin:/bin",
        "PYTHONPATH": str(Path(windows_like.__file__).parents[1]),
        "WINDOWS_LIKE_USERS": str(folder / "users"),
        "WINDOWS_LIKE_METADATA_PORT": str(metadata.server_port),
    }


def begin_broker(site: Site, name: str, port: int, **settings: Any) -> None:
    told = {"enable_gateway": True, "gateway_host": "127.0.0.1", "gateway_port": port, **settings}
    config = site.folder / f"{name}.toml"
    config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in told.items()))
    config.chmod(0o600)
    site.start_broker(name, "--config", str(config))


def begin_agent(site: Site, name: str, dcv: DcvSite, environment: dict[str, str]) -> str:
    """Start the agent of one machine and return its server's id."""
    tags = site.folder / name / "tags"
    tags.mkdir(parents=True)
    (tags / "role.toml").write_text(f'role = "{name}"\n')
    told = {**environment, "DESKFLEET_DCV_ROOT": str(dcv.program)}
    python = ["-P", str(Path(windows_like.__file__))] if "PYTHONPATH" in environment else ["-m"]
    brokers = ["open", "strict"] if name == "virtual" else ["strict", "open"]
    site.start_agent(name, "--driver", "dcv", brokers=brokers, environment=told, python=python)
    identity = site.folder / name / "identity.json"
    until(identity.exists, seconds=READY_SECONDS)
    return str(json.loads(identity.read_text())["client_id"])


def ready(portal: Portal, type: str, requirements: str) -> str:
    return portal.ready(session_owner(), Type=type, Requirements=requirements)


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    folder = tmp_path_factory.mktemp("dcv-fleet")
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("DESKFLEET_AGENT_HEARTBEAT_SECONDS", "0.5")
        metadata = stack.enter_context(metadata_server())
        site = stack.enter_context(Site(folder))
        ports = dict(zip(("open", "strict"), free_ports(2), strict=True))
        begin_broker(site, "open", ports["open"])
        site.command("gen-gateway-certificates", "--output-folder", str(folder / "creds"))
        trusted = str(next((folder / "creds").glob("*trust*")))
        mutual = {"enable_tls_client_auth_gateway": True, "gateway_trust_file": trusted}
        begin_broker(site, "strict", ports["strict"], **mutual)
        dcv = {
            name: DcvSite(stack.enter_context(dcv_folder()), web_port=port, platform=platform)
            for name, port, platform in (
                ("virtual", 9441, "linux"),
                ("console", 9442, "linux"),
                ("windows", 9443, "windows"),
            )
        }
        told = {
            "virtual": {},
            "console": {"DESKFLEET_MAX_VIRTUAL_SESSIONS": "0"},
            "windows": windows_environment(folder, metadata),
        }
        server_ids = {name: begin_agent(site, name, dcv[name], told[name]) for name in dcv}
        portal = site.portal("open")
        until(lambda: len(portal.available()) == len(dcv), seconds=READY_SECONDS)
        sessions = {
            "virtual": ready(portal, "VIRTUAL", ""),
            "windows": ready(portal, "CONSOLE", "server:Host.Os.Family = 'windows'"),
            "console": ready(portal, "CONSOLE", "tag:role = 'console'"),
        }
        yield Machines(site, portal, ports, dcv, server_ids, sessions)


def test_sessions_run_where_their_type_and_platform_are(machines: Machines) -> None:
    for name, dcv in machines.dcv.items():
        session = machines.portal.session(machines.sessions[name])
        assert session["Server"]["Id"] == machines.server_ids[name]
        assert list(dcv.sessions()) == [machines.sessions[name]]
    assert machines.server("windows")["Host"]["Os"]["Family"] == "windows"
    assert machines.server("windows")["Host"]["Aws"]["EC2InstanceId"] == INSTANCE
    # Two of the three have had the one console session that they can have.
    refused = machines.portal.call(
        "/createSessions", [{"Name": "one more", "Owner": session_owner(), "Type": "CONSOLE"}]
    )
    [failed] = refused["UnsuccessfulList"]
    assert re.search(r"full|CONSOLE|console", failed["FailureReason"]), failed


def test_each_servers_verifier_lets_in_whom_the_token_is_for(machines: Machines) -> None:
    context = trust(machines.site.ca_file)
    with httpx.Client(verify=context, trust_env=False, timeout=30) as verifier:
        for number, name in enumerate(machines.sessions):
            session, user = machines.sessions[name], f"guest-{name}"
            path = f"/sessionConnectionData/{session}/{user}"
            token = machines.portal.call(path, method="GET")["ConnectionToken"]
            for broker in ("open", "strict"):
                url = machines.site.agent_url(broker) + "/agent/validate-authentication-token"
                form = {"authenticationToken": token, "clientAddress": f"192.0.2.{number + 1}"}
                good = verifier.post(url, data={**form, "sessionId": session})
                assert good.text == f'<auth result="yes"><username>{user}</username></auth>'
                for other in machines.sessions.values():
                    if other != session:
                        bad = verifier.post(url, data={**form, "sessionId": other})
                        assert bad.text.startswith('<auth result="no">'), bad.text


def test_a_gateway_finds_each_server_by_each_kind_of_mapping(machines: Machines) -> None:
    ip = machines.server("virtual")["Ip"]
    machines.map_names(
        ("Id", machines.server_ids["virtual"], "virtual.example"),
        ("Host.Aws.Ec2InstanceId", INSTANCE, "instance.example"),
        ("Ip", ip, "address.example"),
    )
    wanted = {
        "virtual": ("virtual.example", 9441),
        "console": ("address.example", 9442),
        "windows": ("instance.example", 9443),
    }
    credentials = machines.site.folder / "creds"
    with machines.gateway("open") as free, machines.gateway("strict", credentials) as proven:
        for name, (host, port) in wanted.items():
            for gateway in (free, proven):
                answer = machines.resolve(gateway, name)
                assert answer.status_code == 200, answer.text
                assert answer.json() == {
                    "SessionId": machines.sessions[name],
                    "TransportProtocol": "HTTP",
                    "DcvServerEndpoint": host,
                    "Port": port,
                    "WebUrlPath": "/",
                }


def test_a_gateway_without_a_certificate_is_not_heard(machines: Machines) -> None:
    with machines.gateway("strict") as nobody, pytest.raises((httpx.HTTPError, ssl.SSLError)):
        machines.resolve(nobody, "virtual")


def test_a_name_that_is_missing_is_missed_by_name(machines: Machines) -> None:
    machines.map_names(("Id", "another", "another.example"))
    with machines.gateway("open") as gateway:
        answer = machines.resolve(gateway, "windows")
    if answer.status_code == 200:
        # The machine of this test has a DNS name, which is what is left then.
        assert answer.json()["DcvServerEndpoint"] == machines.server("windows")["DefaultDnsName"]
        return
    assert answer.status_code == 404
    assert answer.json()["error"] == NOT_FOUND
    assert machines.server_ids["windows"] in answer.json()["reason"]
