"""`check-config` explains a file, line by line, and ends with an error where something is wrong."""

from __future__ import annotations

import errno
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from deskfleet.agent import identity
from deskfleet.agent.identity import Identity
from deskfleet.cli import agent, agent_program, broker
from deskfleet.listener import bind, port_of
from support.original_files import AGENT_FILE, BROKER_FILE, Brought, with_values, write
from support.programs import free_ports


def check(app: typer.Typer, file: Path, *more: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["check-config", str(file), *more])
    assert done.exit_code in {0, 1}, done.output
    return done.exit_code, done.output


def found(app: typer.Typer, file: Path) -> dict[str, dict[str, Any]]:
    code, out = check(app, file, "--output", "json")
    said = json.loads(out)
    assert (said["file"], said["good"]) == (str(file), code == 0)
    return {str(note["key"]): note for note in said["notes"]}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Return the example with what it names in place."""
    (tmp_path / "x.p12").write_bytes(Brought().pkcs12("hunter2"))
    stores = {
        f"{name}-to-broker-connector-key-store-{what}": value
        for name in ("client", "agent", "gateway")
        for what, value in (("file", tmp_path / "x.p12"), ("pass", "hunter2"))
    }
    trust = {
        f"gateway-to-broker-connector-trust-store-{what}": value
        for what, value in (("file", tmp_path / "x.p12"), ("pass", "hunter2"))
    }
    state = {"session-manager-working-path": tmp_path / "state"}
    text = with_values(BROKER_FILE, {**stores, **trust, **state})
    return write(tmp_path / "broker.properties", text)


class TestBroker:
    def test_a_good_file(self, good: Path) -> None:
        code, out = check(broker.app, good)
        assert code == 0
        assert (
            "line 30   used       client-to-broker-connector-https-port: client_port = 8443" in out
        )
        assert "ignored    cli-to-broker-port: the broker's commands work on the store" in out
        assert "client_key_password = ********" in out
        assert out.splitlines()[-1] == f"{good}: 36 used, 27 ignored, 1 overridden"
        assert "hunter2" not in out
        assert "change-me" not in out

    def test_as_json(self, good: Path) -> None:
        notes = found(broker.app, good)
        assert notes["enable-gateway"] == {
            "line": 44,
            "key": "enable-gateway",
            "verdict": "used",
            "value": "true",
            "setting": "enable_gateway",
            "setting_value": "true",
        }
        assert "hunter2" not in json.dumps(notes)

    def test_wrong_values_and_unknown_keys(self, good: Path) -> None:
        text = good.read_text().replace("port = 8445", "port = https")
        write(good, text + "enable-gatway = true\n")
        notes = found(broker.app, good)
        wrong = notes["agent-to-broker-connector-https-port"]
        assert (wrong["verdict"], wrong["line"]) == ("wrong", 37)
        assert wrong["text"] == "'https' is not a whole number"
        assert notes["enable-gatway"]["text"] == "did you mean enable-gateway?"
        code, out = check(broker.app, good)
        assert code == 1
        assert "1 unknown, 1 wrong" in out

    @pytest.mark.parametrize("name", ["client", "agent", "gateway"])
    def test_key_stores_are_opened(self, name: str, good: Path) -> None:
        key = f"{name}-to-broker-connector-key-store"
        write(good, good.read_text().replace(f"{key}-pass = hunter2", f"{key}-pass = hunter3"))
        note = found(broker.app, good)[f"{key}-file"]
        assert (note["verdict"], "missing or wrong" in note["text"]) == ("wrong", True)

    def test_a_java_key_store(self, good: Path, tmp_path: Path) -> None:
        (tmp_path / "x.p12").write_bytes(b"\xfe\xed\xfe\xed\0\0\0\2")
        code, out = check(broker.app, good)
        assert code == 1
        assert out.count("keytool -importkeystore") == 4

    def test_what_is_not_used_is_not_opened(self, good: Path, tmp_path: Path) -> None:
        text = good.read_text().replace("enable-gateway = true", "enable-gateway = false")
        line = f"gateway-to-broker-connector-key-store-file = {tmp_path / 'x.p12'}"
        write(good, text.replace(line, line.replace("x.p12", "none")))
        assert check(broker.app, good)[0] == 0

    def test_a_state_folder_for_everybody(self, good: Path, tmp_path: Path) -> None:
        folder = tmp_path / "tmp"
        folder.mkdir()
        folder.chmod(0o1777)
        write(good, good.read_text().replace(str(tmp_path / "state"), str(folder)))
        note = found(broker.app, good)["session-manager-working-path"]
        assert (note["verdict"], "/var/lib/dcvsmbroker" in note["text"]) == ("wrong", True)

    def test_a_file_that_others_can_change_or_read(self, good: Path) -> None:
        good.chmod(0o666)
        code, out = check(broker.app, good)
        assert code == 1
        assert out.count(f"run: chmod 640 {good}") == 2

    def test_a_file_that_can_not_be_read(self, tmp_path: Path) -> None:
        code, out = check(broker.app, tmp_path / "none")
        assert code == 1
        assert "can't be read" in out

    def test_deskfleets_own_file(self, tmp_path: Path) -> None:
        file = write(tmp_path / "broker.toml", "client_port = 1\nclient_prot = 2\n")
        notes = found(broker.app, file)
        assert (notes["client_port"]["line"], notes["client_port"]["verdict"]) == (1, "used")
        assert notes["client_prot"]["text"] == "it is not a setting; did you mean client_port?"

    @pytest.mark.parametrize(
        ("text", "key", "why"),
        [
            ('client_host = "192.0.2.1"\n', "client_host", "can't be had on 192.0.2.1"),
            ('agent_host = "a..b"\n', "agent_host", "can't be had on a..b"),
            ('agent_host = "é..b"\n', "agent_host", "'é..b' is no host"),
            ('state = "{here}/file/state"\n', "state", "{here}/file/state can't be used: "),
            ('log_directory = "{here}/none"\n', "log_directory", "run: mkdir {here}/none"),
            ('log_directory = "{here}/file"\n', "log_directory", "{here}/file"),
            (
                "enable_gateway = true\nenable_tls_client_auth_gateway = true\n",
                "enable_tls_client_auth_gateway",
                "needs gateway_trust_file",
            ),
            ('store = "postgresql+psycopg://u@db/x"\n', "store", "not supported: postgresql"),
            ('store = "no url"\n', "store", "can't be read"),
            ('client_key_file = "/none"\n', "client_key_file", "needs client_certificate_file"),
            ('agent_key_file = "/none"\n', "agent_key_file", "needs agent_certificate_file"),
            (
                'enable_gateway = true\ngateway_key_file = "/none"\n',
                "gateway_key_file",
                "needs gateway_certificate_file",
            ),
        ],
    )
    def test_what_a_start_refuses_is_wrong(
        self, text: str, key: str, why: str, tmp_path: Path
    ) -> None:
        (tmp_path / "file").touch()
        text, why = (one.replace("{here}", str(tmp_path)) for one in (text, why))
        file = write(tmp_path / "broker.toml", text)
        note = found(broker.app, file)[key]
        assert (note["verdict"], why in note["text"]) == ("wrong", True)
        said = {f"DESKFLEET_{line.partition(' ')[0].upper()}" for line in text.splitlines()}
        elsewhere = {"DESKFLEET_STATE": str(tmp_path / "state")} | {
            f"DESKFLEET_{door}_{what}": value
            for door in ("CLIENT", "AGENT", "GATEWAY")
            for what, value in (("PORT", "0"), ("HOST", "127.0.0.1"))
        }
        environment = {name: value for name, value in elsewhere.items() if name not in said}
        started = CliRunner().invoke(broker.app, ["run", "--config", str(file)], env=environment)
        assert (started.exit_code, why in started.output) == (1, True)

    def test_two_doors_can_not_share_a_port(self, tmp_path: Path) -> None:
        (port,) = free_ports(1)
        hosts = "client_host = '127.0.0.1'\nagent_host = '{}'\n"
        ports = f"client_port = {port}\nagent_port = {port}\n"
        for host in ("127.0.0.1", "0.0.0.0", "localhost"):
            file = write(tmp_path / "broker.toml", hosts.format(host) + ports)
            notes = found(broker.app, file)
            for key in ("client_port", "agent_port"):
                assert notes[key]["text"].startswith(
                    f"client_port and agent_port are both {port}: each"
                )
            started = CliRunner().invoke(
                broker.app, ["run", "--config", str(file), "--state", str(tmp_path / "state")]
            )
            assert (started.exit_code, "is taken" in started.output) == (1, True)
        # A default is a port, too, and one that isn't served is none.
        notes = found(broker.app, write(tmp_path / "broker.toml", "client_port = 8445\n"))
        assert "are both 8445" in notes["client_port"]["text"]
        for text in ("client_port = 8447\n", f"client_host='127.0.0.2'\nagent_host='::1'\n{ports}"):
            assert check(broker.app, write(tmp_path / "broker.toml", text))[0] == 0

    def test_the_ports_of_a_broker_that_runs_are_not_wrong(self, tmp_path: Path) -> None:
        with closing(bind("127.0.0.1", 0, "a broker that runs")) as taken:
            text = f"client_host = '127.0.0.1'\nclient_port = {port_of(taken)}\n"
            assert check(broker.app, write(tmp_path / "broker.toml", text))[0] == 0

    def test_a_state_folder_that_can_not_be_looked_at(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        state, stat = tmp_path / "closed" / "state", Path.stat

        def refusing(path: Path, **more: Any) -> Any:
            if path.is_relative_to(state):
                raise PermissionError(errno.EACCES, "Permission denied")
            return stat(path, **more)

        monkeypatch.setattr(Path, "stat", refusing)
        notes = found(broker.app, write(tmp_path / "broker.toml", f"state = '{state}'\n"))
        assert notes["state"]["text"] == f"the folder {state} can't be used: Permission denied"

    def test_what_the_environment_says_counts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As that of a service's unit does."""
        monkeypatch.setenv("DESKFLEET_STATE", str(tmp_path / "state"))
        monkeypatch.setenv("DESKFLEET_LOG_DIRECTORY", str(tmp_path / "none"))
        text = "session-manager-working-path = /dev/null/x\n"
        notes = found(broker.app, write(tmp_path / "x.properties", text))
        said = notes["session-manager-working-path"]
        assert (said["verdict"], said["text"]) == ("overridden", "overridden by DESKFLEET_STATE")
        assert "run: mkdir" in notes["log_directory"]["text"]
        monkeypatch.setenv("DESKFLEET_CLIENT_PORT", "x")
        code, out = check(broker.app, tmp_path / "x.properties")
        assert code == 1
        assert "environment: client_port: 'x' is not a whole number" in out

    @pytest.mark.parametrize("scheme", ["sqlite", "postgresql+psycopg"])
    @pytest.mark.parametrize("more", [(), ("--output", "json")])
    def test_no_password_of_a_store_is_shown(
        self, scheme: str, more: tuple[str, ...], tmp_path: Path
    ) -> None:
        file = write(tmp_path / "broker.toml", f'store = "{scheme}://u:hunter2secret@db/x"\n')
        assert "hunter2secret" not in check(broker.app, file, *more)[1]

    def test_nothing_in_it_reaches_the_terminal_raw(self, tmp_path: Path) -> None:
        text = "x\\u001b[2J = 1\nenable-gateway = \x1b[31m\\u0007\n"
        file = write(tmp_path / "x.properties", text)
        for more in ((), ("--output", "json")):
            code, out = check(broker.app, file, *more)
            assert code == 1
            assert "\x1b" not in out
            assert "\x07" not in out


class TestAgent:
    def test_a_good_file(self, tmp_path: Path) -> None:
        authority = write(tmp_path / "ca.pem", Brought().pem().decode())
        given = {
            "ca_file": authority,
            "software_statement_path": write(tmp_path / "statement", "x"),
            "directory": tmp_path,
        }
        text = with_values(AGENT_FILE, {name: f"'{path}'" for name, path in given.items()})
        code, out = check(agent.app, write(tmp_path / "agent.conf", text))
        assert code == 0
        assert "used       agent.broker_host: broker_url = https://broker.example.org:8445" in out
        assert "overridden agent.enable_logged_users_windows" in out

    def test_what_is_wrong(self, tmp_path: Path) -> None:
        text = AGENT_FILE.read_text().replace("'broker.example.org'", "''")
        notes = found(agent.app, write(tmp_path / "agent.conf", text + "rotat = 1\n"))
        assert notes["agent.broker_host"]["verdict"] == "missing"
        assert "No such file" in notes["agent.ca_file"]["text"]
        assert notes["log.rotat"]["text"] == "did you mean log.rotate?"

    @pytest.mark.parametrize(
        ("text", "key", "why"),
        [
            ("ca_file = '{here}/file'", "ca_file", "holds no certificates"),
            ("state = '{here}/file'", "state", "{here}/file can't be used: "),
            ("state = '{here}/file/x'", "state", "{here}/file/x can't be used: "),
            ("log_directory = '{here}/none'", "log_directory", "run: mkdir {here}/none"),
            ("driver = 'none'", "driver", "there is no driver 'none'"),
            ("desktop_host = '192.0.2.1'", "desktop_host", "can't be had on 192.0.2.1"),
            ("software_statement_path = '/none'", "software_statement_path", "/none can't be read"),
        ],
    )
    def test_what_a_start_refuses_is_wrong(
        self, text: str, key: str, why: str, tmp_path: Path
    ) -> None:
        (tmp_path / "file").touch()
        text, why = (one.replace("{here}", str(tmp_path)) for one in (text, why))
        others = {"driver": "'simulated'", "desktop_port": "0", "state": f"'{tmp_path / 'state'}'"}
        lines = [text, *(f"{name} = {value}" for name, value in others.items() if name != key)]
        file = write(tmp_path / "agent.toml", "\n".join(lines))
        note = found(agent.app, file)[key]
        assert (note["verdict"], why in note["text"]) == ("wrong", True)
        with pytest.raises(SystemExit) as ended:
            agent_program.main([str(file)])
        assert ended.value.code == 1

    def test_an_agent_that_is_enrolled_needs_no_statement(self, tmp_path: Path) -> None:
        identity.write(tmp_path, Identity("server-1", "secret"))
        text = f"state = '{tmp_path}'\nsoftware_statement_path = '/none'\n"
        assert check(agent.app, write(tmp_path / "agent.toml", text))[0] == 0

    def test_a_state_folder_for_everybody(self, tmp_path: Path) -> None:
        (tmp_path / "open").mkdir()
        (tmp_path / "open").chmod(0o777)
        file = write(tmp_path / "agent.toml", f"state = '{tmp_path}/open/state'\n")
        assert "written to by everybody" in found(agent.app, file)["state"]["text"]

    def test_a_missing_version_is_a_warning(self, tmp_path: Path) -> None:
        file = write(tmp_path / "agent.conf", "[agent]\nbroker_host = 'a'\n")
        notes = found(agent.app, file)
        assert notes["version"]["verdict"] == "unknown"
        assert check(agent.app, file)[0] == 0


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
@pytest.mark.parametrize(
    ("app", "name", "text"),
    [
        (agent.app, "agent.conf", "version = '0.1'\n[agent]\nbroker_host = 'b'\n"),
        (agent.app, "agent.toml", "driver = 'simulated'\n"),
        (broker.app, "broker.toml", "client_port = 1\n"),
        (broker.app, "x.properties", "session-manager-working-path = {folder}\n"),
    ],
)
def test_no_file_that_others_can_change_is_taken(
    app: typer.Typer, name: str, text: str, mode: int, tmp_path: Path
) -> None:
    file = write(tmp_path / name, text.format(folder=tmp_path / "state"), 0o640)
    assert check(app, file)[0] == 0
    file.chmod(mode)
    code, out = check(app, file)
    assert (code, f"run: chmod 640 {file}" in out) == (1, True)
