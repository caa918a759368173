"""The commands for connection gateways, as a shell runs them, beside a broker and without one."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from deskfleet.broker import brought
from deskfleet.cli import broker_gateway
from deskfleet.cli.broker import app
from deskfleet.cli.over_store import original_json
from deskfleet.core.records import Endpoint
from deskfleet.errors import Invalid
from deskfleet.gateway_certificates import TRUST_FILE
from deskfleet.keystores import trusted
from deskfleet.settings import BrokerSettings, read
from support.builders import a_link, a_report, a_server, a_session, some_facts
from support.original_files import write
from support.running_broker import running_broker

ENDPOINT = Endpoint(ip_address="10.0.0.7", port=8443)
MAPPINGS = [
    {
        "ServerIdType": "Ip",
        "ServerId": "10.0.0.7",
        "DnsNames": {"InternalDnsName": "desk7.internal", "ExternalDnsName": "desk7.example"},
    },
    {"ServerIdType": "Id", "ServerId": "n2", "DnsNames": {"InternalDnsNames": "desk2.internal"}},
]
PRINTED = """\
[ {
  "serverIdType" : "Id",
  "serverId" : "n2",
  "dnsNames" : {
    "internalDnsName" : "desk2.internal",
    "externalDnsName" : null
  }
}, {
  "serverIdType" : "Ip",
  "serverId" : "10.0.0.7",
  "dnsNames" : {
    "internalDnsName" : "desk7.internal",
    "externalDnsName" : "desk7.example"
  }
} ]
"""


@dataclass(frozen=True)
class Shell:
    """Runs the broker's commands on one state folder, in this process: starting one is slow."""

    folder: Path

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def file(self, content: Any) -> Path:
        path = self.folder / "mappings.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    def run(self, command: str, *options: str) -> str:
        done = CliRunner().invoke(app, [command, *options, "--state", str(self.state)])
        if done.exception is not None:
            raise done.exception
        return str(done.stdout)

    def register(self, content: Any, *options: str) -> str:
        file = str(self.file(content))
        return self.run("register-server-dns-mappings", "--file-path", file, *options)

    def described(self) -> Any:
        return json.loads(self.run("describe-server-dns-mappings", "--output", "json"))

    def names(self) -> dict[str, str]:
        return {one["serverId"]: one["dnsNames"]["internalDnsName"] for one in self.described()}


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path)
    shell.state.mkdir(0o700)
    return shell


def test_what_is_registered_is_printed_as_the_original_does(shell: Shell) -> None:
    assert shell.run("describe-server-dns-mappings") == "[ ]\n"
    told = shell.register(MAPPINGS)
    assert told == (
        "Successfully loaded 2 server id - dns name mappings"
        f" from file {shell.folder / 'mappings.json'}\n"
    )
    assert shell.run("describe-server-dns-mappings") == PRINTED
    assert shell.described() == json.loads(PRINTED)


def test_as_json(shell: Shell) -> None:
    told = json.loads(shell.register(MAPPINGS, "--output", "json"))
    assert told == {"loaded": 2, "file": str(shell.folder / "mappings.json")}


def test_registering_again_replaces_what_has_the_same_key(shell: Shell) -> None:
    shell.register(MAPPINGS)
    entry = {"ServerIdType": "Ip", "DnsNames": {"InternalDnsName": "new.internal"}}
    shell.register([{**entry, "ServerId": "10.0.0.7"}, {**entry, "ServerId": "10.0.0.8"}])
    assert shell.names() == {
        "n2": "desk2.internal",
        "10.0.0.7": "new.internal",
        "10.0.0.8": "new.internal",
    }
    # What describing prints can be loaded again: kept, brought elsewhere, edited.
    before = shell.described()
    shell.register(before, "--only-these")
    assert shell.described() == before
    shell.register(before[:1], "--only-these")
    assert shell.described() == before[:1]
    shell.register([], "--only-these")
    assert shell.described() == []


def test_a_bad_file_registers_nothing(shell: Shell) -> None:
    shell.register(MAPPINGS[:1])
    broken = [*MAPPINGS, {"ServerIdType": "Name", "ServerId": "x", "DnsNames": {}}]
    with pytest.raises(Invalid, match=r"mappings.json: entry 3: .*; nothing was registered"):
        shell.register(broken)
    with pytest.raises(Invalid, match="not JSON"):
        shell.register("[")
    assert shell.names() == {"10.0.0.7": "desk7.internal"}


def test_files_that_can_not_be_read(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(shell.folder / "pipe")
    for path in (shell.folder / "nothing.json", shell.folder, shell.folder / "pipe"):
        with pytest.raises(Invalid, match="can't be read"):
            shell.run("register-server-dns-mappings", "--file-path", str(path))
    monkeypatch.setattr(broker_gateway, "MAX_FILE_BYTES", 100)
    with pytest.raises(Invalid, match="larger than 100 bytes"):
        shell.register(" " * 200)


def test_ten_thousand_at_once(shell: Shell) -> None:
    entry = {"ServerIdType": "Id", "DnsNames": {"InternalDnsName": "desk.internal"}}
    many = [{**entry, "ServerId": f"n{number}"} for number in range(10_000)]
    assert "loaded 10000 server id" in shell.register(many)
    assert len(shell.described()) == 10_000


def test_in_a_real_shell_an_error_is_one_line_and_a_code(shell: Shell) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "deskfleet", "broker", "register-server-dns-mappings"),
            *("--file-path", str(shell.file([{}])), "--state", str(shell.state)),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 252
    assert done.stdout == ""
    assert done.stderr == (
        f"deskfleet: {shell.folder / 'mappings.json'}: entry 1: ServerIdType is missing;"
        " nothing was registered\n"
    )


def test_all_of_it_beside_a_running_broker(shell: Shell) -> None:
    made = json.loads(shell.run("gen-gateway-certificates", "--output", "json"))
    assert Path(made["key"]).parent == shell.state / "resolver-creds"
    with running_broker(
        shell.state,
        enable_gateway=True,
        gateway_host="127.0.0.1",
        gateway_port=0,
        enable_tls_client_auth_gateway=True,
        gateway_trust_file=Path(made["trust"]),
    ) as broker:
        session = a_session("s1", server="n2")
        broker.write(
            a_server("n2"),
            some_facts("n2", endpoints=(ENDPOINT,)),
            a_link("n2", broker_id=broker.broker_id),
            session,
            a_report(session),
        )
        context = ssl.create_default_context(cafile=str(broker.doors.ca_file))
        context.load_cert_chain(made["certificate"], made["key"])
        url = f"https://localhost:{broker.doors.gateway_port}/resolveSession"
        with httpx.Client(verify=context, trust_env=False, timeout=30) as gateway:

            def ask() -> httpx.Response:
                return gateway.post(url, params={"sessionId": "s1", "transport": "HTTP"})

            assert "no mapping is registered for Id n2" in ask().json()["reason"]
            shell.register(MAPPINGS)
            assert ask().json()["DcvServerEndpoint"] == "desk2.internal"
            shell.register(MAPPINGS[:1], "--only-these")
            assert ask().json()["DcvServerEndpoint"] == "desk7.internal"


def test_certificates_are_not_replaced_unasked(shell: Shell, tmp_path: Path) -> None:
    advice = shell.run("gen-gateway-certificates")
    folder = shell.state / "resolver-creds"
    assert shell.state.stat().st_mode & 0o777 == 0o700
    assert f'gateway_trust_file = "{folder / "dcv_gateway_trust.pem"}"' in advice
    assert "cert-key-file = " in advice
    key = folder / "dcv_gateway_key.pem"
    before = key.read_bytes()
    assert before.decode() not in advice
    with pytest.raises(SystemExit) as ended:
        shell.run("gen-gateway-certificates")
    assert ended.value.code != 0
    assert key.read_bytes() == before
    shell.run("gen-gateway-certificates", "--force")
    assert key.read_bytes() != before
    elsewhere = tmp_path / "elsewhere"
    shell.run("gen-gateway-certificates", "--output-folder", str(elsewhere))
    assert (elsewhere / "dcv_gateway_cert.pem").exists()


@pytest.mark.parametrize("name", ["session-manager-broker.properties", "broker.toml"])
@pytest.mark.parametrize("with_config", [True, False])
def test_what_it_prints_is_what_a_file_of_that_kind_says(
    name: str, with_config: bool, tmp_path: Path
) -> None:
    """Pasted as it stands, it must neither be passed over nor refused."""
    config = write(tmp_path / name, "# nothing yet\n")
    more = ("--config", str(config)) if with_config else ()
    (tmp_path / "state").mkdir(0o700)
    done = CliRunner().invoke(
        app, ["gen-gateway-certificates", "--state", str(tmp_path / "state"), *more]
    )
    said = done.output.partition("Set at each broker")[2].partition("Copy key")[0]
    is_original = name.endswith(".properties")
    lines = [line.strip() for line in said.splitlines() if " = " in line]
    assert len(lines) == (3 if with_config else 6)
    pasted = lines if with_config else (lines[3:] if is_original else lines[:3])
    settings = read(
        BrokerSettings,
        file=write(config, "\n".join(pasted)),
        environment={"DESKFLEET_STATE": str(tmp_path / "state")},
        flags={},
    )
    assert settings.enable_gateway
    assert brought.gateway_trust(settings) == tmp_path / "state/resolver-creds" / TRUST_FILE
    assert trusted(brought.gateway_trust(settings) or Path())


def test_the_layout_of_the_original() -> None:
    assert original_json([]) == "[ ]"
    assert original_json({}) == "{ }"
    assert original_json([1, "ä", True]) == '[ 1, "ä", true ]'
    nested = original_json({"a": [{"b": []}], "c": {"d": None}})
    assert nested == '{\n  "a" : [ {\n    "b" : [ ]\n  } ],\n  "c" : {\n    "d" : null\n  }\n}'
    assert json.loads(nested) == {"a": [{"b": []}], "c": {"d": None}}
