"""The original's own files, with every documented key in them, start a broker and an agent."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from deskfleet.cli.main import PROGRAM
from deskfleet.configuration.broker_keys import KEYS
from deskfleet.gateway_certificates import make_gateway_files
from deskfleet.system import SystemClock
from support.dcv import DcvSite, dcv_folder
from support.growing import whole_lines
from support.original_files import AGENT_FILE, BROKER_FILE, Brought, with_values, write
from support.programs import Portal, Program, answers, free_ports
from support.sessions import program, session_owner
from support.waiting import until

CONNECTOR = {name: f"{name}-to-broker-connector" for name in ("client", "agent", "gateway")}
PASSWORD = "s3cret \\u00e4"
"""As the file has it: its last character is beyond ASCII."""


def lines(file: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in whole_lines(file) if line.startswith("{")]
    return [dict(one) for one in found]


def logged(file: Path) -> list[str]:
    return [str(one["event"]) for one in lines(file)]


class Site:
    """A broker and an agent that know nothing but their files."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self._stack = folder, stack
        self.ports = dict(zip(CONNECTOR, free_ports(3), strict=True))
        self.brought = Brought()
        self.trust = write(folder / "brought.pem", self.brought.pem().decode())
        self.state = folder / "state"
        self.broker_file = write(folder / "session-manager-broker.properties", self._broker())

    def _broker(self) -> str:
        (self.folder / "x.p12").write_bytes(self.brought.pkcs12("s3cret \u00e4"))
        gateway = make_gateway_files(
            self.folder / "resolver-creds", SystemClock().now(), force=False
        )
        values: dict[str, object] = {
            "session-manager-working-path": self.state,
            f"{CONNECTOR['gateway']}-trust-store-file": gateway.trust,
            "max-api-requests-per-second": 777,
        }
        for name, connector in CONNECTOR.items():
            values |= {
                f"{connector}-https-port": self.ports[name],
                f"{connector}-bind-host": "127.0.0.1",
                f"{connector}-key-store-file": self.folder / "x.p12",
                f"{connector}-key-store-pass": PASSWORD,
            }
        return with_values(BROKER_FILE, values)

    def broker(self) -> Program:
        program = self._run("broker", "run", "--config", str(self.broker_file))
        until(lambda: answers(self.ports["client"]) or program.process.poll() is not None, 60)
        assert program.process.poll() is None, self.told("broker")
        return program

    def agent(self, *more: str, driver: str | None = "simulated", **values: object) -> Program:
        statement = self.command("generate-software-statement")
        (self.folder / "logs").mkdir(exist_ok=True)
        given = {
            "broker_host": "'localhost'",
            "broker_port": self.ports["agent"],
            "ca_file": f"'{self.trust}'",
            "software_statement_path": f"'{write(self.folder / 'statement', statement)}'",
            "init_folder": f"'{self.folder}'",
            "autorun_folder": f"'{self.folder}'",
            "tags_folder": f"'{self.folder / 'tags'}'",
            "directory": f"'{self.folder / 'logs'}'",
            **values,
        }
        file = write(self.folder / "agent.conf", with_values(AGENT_FILE, given))
        (port,) = free_ports(1)
        own = ["--state", str(self.folder / "agent"), *(("--driver", driver) if driver else ())]
        return self._run(
            "agent", "run", "--config", str(file), *own, "--desktop-port", str(port), *more
        )

    def command(self, name: str, *more: str) -> str:
        program = self._run("broker", name, "--config", str(self.broker_file), *more)
        out, _ = program.process.communicate(timeout=60)
        assert program.process.returncode == 0, self.told("broker")
        return out

    def portal(self) -> Portal:
        said = self.command("register-api-client", "--client-name", "test")
        client_id, password = (line.partition(": ")[2] for line in said.splitlines())
        url = f"https://localhost:{self.ports['client']}"
        return Portal(url, self.trust, client_id, password)

    def told(self, name: str) -> str:
        return (self.folder / f"{name}.stderr").read_text()

    def _run(self, kind: str, *arguments: str) -> Program:
        program = Program([kind, *arguments], self.folder / f"{kind}.stderr")
        self._stack.callback(program.stop)
        return program


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(tmp_path, stack)


def test_all_their_keys_start_a_broker_and_an_agent(site: Site) -> None:
    (site.folder / "tags").mkdir()
    write(site.folder / "tags" / "a.toml", "gpu = 'yes'\n")
    site.broker()
    site.agent(broker_update_interval=1, preferred_network_interface="'lo'")
    portal = site.portal()
    until(portal.available, seconds=60)
    (server,) = portal.call("/describeServers")["Servers"]
    assert server["Ip"] == "127.0.0.1"
    tags = {tag["Key"]: tag["Value"] for tag in server["Tags"]}
    assert (tags["gpu"], tags["dcv:max-concurrent-sessions-per-user"]) == ("yes", "1")
    portal.ready("ada")
    refused = portal.call("/createSessions", [{"Name": "x", "Owner": "ada", "Type": "VIRTUAL"}])
    assert refused["UnsuccessfulList"]
    portal.close()

    # What isn't used is named, once each, with what is done in its place.
    started = lines(site.folder / "broker.stderr")
    named = [one for one in started if one["event"] == "configuration.ignored"]
    named += [one for one in started if one["event"] == "configuration.not-had"]
    assert all(one["reason"] for one in named)
    wanted = {key.name for key in KEYS if not key.setting} | {"delete-session-duration-hours"}
    assert sorted(one["key"].lower() for one in named) == sorted(wanted)
    assert "s3cret" not in site.told("broker")

    # The log of the agent is where its file has it.
    logged = {one["event"] for one in lines(site.folder / "logs" / "agent.log")}
    assert {"agent.started", "link.opened", "configuration.ignored"} <= logged
    assert (site.folder / "logs" / "agent.log").stat().st_mode & 0o777 == 0o640

    # The gateway's door is there, and wants a certificate.
    context = ssl.create_default_context(cafile=str(site.trust))
    url = f"https://localhost:{site.ports['gateway']}/health"
    with pytest.raises(httpx.TransportError):
        httpx.get(url, verify=context, timeout=30)
    creds = site.folder / "resolver-creds"
    context.load_cert_chain(creds / "dcv_gateway_cert.pem", creds / "dcv_gateway_key.pem")
    assert httpx.get(url, verify=context, timeout=30).status_code == 200


def test_an_agent_that_has_nothing_but_its_file_is_that_of_a_dcv_server(site: Site) -> None:
    with dcv_folder() as folder:
        server = DcvSite(folder)
        site.broker()
        ran = folder / "ran"
        ran.mkdir()
        ran.chmod(0o777)
        for kind in ("init", "autorun"):
            program(folder / kind / kind, f"#!/bin/sh\ntouch {ran}/{kind}\n")
        agent = site.agent(
            driver=None,
            broker_update_interval=1,
            dcv_root=f"'{server.program}'",
            init_folder=f"'{folder / 'init'}'",
            autorun_folder=f"'{folder / 'autorun'}'",
        )
        portal = site.portal()
        until(portal.available, seconds=60)
        (shown,) = portal.call("/describeServers")["Servers"]
        assert shown["Version"] == "2024.0.19030"
        session = portal.ready(session_owner(), InitFile="init", AutorunFile="autorun")
        assert list(server.sessions()) == [session]
        until(lambda: {path.name for path in ran.iterdir()} == {"init", "autorun"}, seconds=30)
        portal.close()
        assert agent.stop() == 0


def test_an_agent_that_checks_no_certificate_says_so_each_time(site: Site) -> None:
    site.broker()
    other = write(site.folder / "other.pem", Brought().pem().decode())
    log = site.folder / "logs" / "agent.log"
    for times in (1, 2):
        agent = site.agent(tls_strict="false", ca_file=f"'{other}'")
        until(lambda n=times: log.exists() and logged(log).count("link.opened") == n, seconds=60)  # type: ignore[misc]
        assert agent.stop() == 0
    told = [one for one in lines(log) if "verified" in one["event"]]
    assert [one["level"] for one in told] == ["warning", "warning"]


@pytest.mark.parametrize(
    ("pattern", "put", "reason"),
    [
        (r"enable-persistence = .*", "enable-persistence = true", "DynamoDB"),
        (r"(unreachable-dcv-server) = .*", r"\1 = 59", "60 is the least"),
        (r"(agent.*store-pass) = .*", r"\1 = wrong", "password is missing or wrong"),
    ],
)
def test_what_can_not_be_had_is_told_in_a_line(
    pattern: str, put: str, reason: str, site: Site
) -> None:
    text = site.broker_file.read_text()
    write(site.broker_file, re.sub(pattern, put, text, count=1))
    program = Program(
        ["broker", "run", "--config", str(site.broker_file)], site.folder / "broker.stderr"
    )
    assert program.process.wait(60) == 1
    program.stop()
    last = site.told("broker").splitlines()[-1]
    assert last.startswith(f"{PROGRAM}: ")
    assert reason in last
    assert "Traceback" not in site.told("broker")
