"""What is taken to production machines: units, scripts and configuration files fit the program.

What systemd and shellcheck say of them, and that they work, is shown by `make install-check`.
"""

from __future__ import annotations

import configparser
import dataclasses
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main

from deskfleet.agent.drivers.dcv_platform import runtime_here, scripts_here
from deskfleet.agent.drivers.session_folders import RuntimeFolders
from deskfleet.cli import config_files, end_desktops
from deskfleet.cli.main import LATER, application
from deskfleet.errors import SetupFailed
from deskfleet.settings import AgentSettings, BrokerSettings, examine, read

ROOT = Path(__file__).parents[2]
SYSTEMD = ROOT / "packaging" / "systemd"
UNITS = sorted(SYSTEMD.iterdir())
SCRIPTS = [
    ROOT / "packaging" / "install",
    ROOT / "packaging" / "deskfleet-broker",
    *(path for path in (ROOT / "scripts").iterdir() if path.is_file()),
]
KINDS = config_files.KINDS


class Unit(configparser.RawConfigParser):
    """A unit's keys keep their case, and may come several times: the last line counts here."""

    def __init__(self, path: Path) -> None:
        super().__init__(strict=False, delimiters="=", comment_prefixes="#", interpolation=None)
        self.read_string(path.read_text())

    def optionxform(self, optionstr: str) -> str:
        return optionstr


def command(*path: str) -> Any:
    """Return a command of the program as its parser knows it."""
    found: Any = typer.main.get_command(application([later.name for later in LATER]))
    for name in path:
        found = found.commands[name]
    return found


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_parses_and_what_it_says_of_settings_is_known(path: Path) -> None:
    unit = Unit(path)
    assert unit.sections()
    kind = BrokerSettings if "broker" in path.name else AgentSettings
    names = re.findall(r"DESKFLEET_(\w+)=", unit["Service"].get("Environment", ""))
    assert names
    assert {name.lower() for name in names} <= {one.name for one in dataclasses.fields(kind)}


@pytest.mark.parametrize("name", KINDS)
def test_the_command_line_of_a_unit_is_one_of_the_program(name: str) -> None:
    words = shlex.split(Unit(SYSTEMD / f"deskfleet-{name}.service")["Service"]["ExecStart"])
    assert words[0] == "/opt/deskfleet/current/bin/deskfleet"
    assert words[1:3] == [name, "run"]
    options = {spelling for option in command(name, "run").params for spelling in option.opts}
    assert {word for word in words[3:] if word.startswith("-")} <= options


def test_desktops_outlive_what_systemd_does_to_the_agent() -> None:
    service = Unit(SYSTEMD / "deskfleet-agent.service")["Service"]
    assert service["KillMode"] == "process"
    assert service["OOMPolicy"] == "continue"
    assert service["TasksMax"] == "infinity"
    # Desktops would inherit these, and sudo or a browser in them would fail.
    inherited = ("Protect", "Private", "Restrict", "NoNew", "SystemCall", "Capability", "Memory")
    assert not [key for key in service if key.startswith(inherited)]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_has_valid_syntax(path: Path) -> None:
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_command_of_the_broker_takes_what_its_wrapper_gives() -> None:
    wrapper = (ROOT / "packaging" / "deskfleet-broker").read_text()
    bare = set(re.findall(r"'' \| -\* \| (.*)\)", wrapper)[0].split(" | "))
    for name, one in command("broker").commands.items():
        options = {spelling for option in one.params for spelling in option.opts}
        assert name in bare or "--config" in options, name


@pytest.mark.parametrize("name", KINDS)
def test_a_new_configuration_file_changes_nothing_and_names_every_setting(
    name: str, tmp_path: Path
) -> None:
    kind: Any = KINDS[name]
    text = config_files.default_file(name)
    file = tmp_path / f"{name}.toml"
    file.write_text(text)
    state = {"state": tmp_path}
    assert read(kind, file=file, environment={}, flags=state) == read(
        kind, environment={}, flags=state
    )
    named = set(re.findall(r"^#(\w+) =", text, re.MULTILINE))
    known = {one.name for one in dataclasses.fields(kind)}
    assert named == known - config_files.OF_THE_UNIT


@pytest.mark.parametrize("name", KINDS)
def test_the_defaults_in_a_new_file_are_the_programs(name: str, tmp_path: Path) -> None:
    kind: Any = KINDS[name]
    lines = re.findall(r"^#(\w+ = .+)$", config_files.default_file(name), re.MULTILINE)
    file = tmp_path / f"{name}.toml"
    file.write_text("\n".join(lines))
    file.chmod(0o600)
    state = {"state": tmp_path}
    assert read(kind, file=file, environment={}, flags=state) == read(
        kind, environment={}, flags=state
    )


def test_what_an_administrator_wrote_stays_when_settings_are_changed() -> None:
    text = "# ours\nmax_virtual_sessions = 4\n#broker_url = 'x'\nca_file = '/old' # why\n"
    changed = config_files.amend(
        text, {"broker_url": "https://b.example:8445", "ca_file": '/a"b', "driver": "dcv"}
    )
    assert changed == (
        "# ours\nmax_virtual_sessions = 4\n"
        'broker_url = "https://b.example:8445"\nca_file = "/a\\"b"\ndriver = "dcv"\n'
    )


def test_agent_conf_is_changed_in_its_own_names(tmp_path: Path) -> None:
    text = "version = '0.1'\n[agent]\nbroker_host = ''\n#ca_file = ''\n[log]\nlevel = 'debug'\n"
    changed = config_files.amend(text, {"broker_url": "https://b.example:9", "ca_file": "/ca"})
    said = tomllib.loads(changed)
    assert said["agent"] == {"broker_host": "b.example", "broker_port": 9, "ca_file": "/ca"}
    assert said["log"] == {"level": "debug"}
    file = tmp_path / "agent.conf"
    file.write_text(changed)
    assert examine(AgentSettings, file).values["broker_url"] == "https://b.example:9"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("version = '0.1'\n[agent]\n", {"broker_url": "https://a:1,https://b:1"}),
        ("ca_file = '''\nx'''\n", {"ca_file": "/ca"}),
        ("= no TOML", {"ca_file": "/ca"}),
    ],
)
def test_a_file_that_cant_be_changed_safely_is_refused(text: str, values: dict[str, str]) -> None:
    with pytest.raises(SetupFailed):
        config_files.amend(text, values)


def test_a_changed_file_keeps_its_mode(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text("")
    file.chmod(0o640)
    config_files.main(["set", str(file), "ca_file=/ca"])
    assert file.stat().st_mode & 0o777 == 0o640
    assert file.read_text() == 'ca_file = "/ca"\n'
    assert list(tmp_path.iterdir()) == [file]


def test_a_dcv_agents_files_are_in_the_folder_that_its_unit_has_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    service = Unit(SYSTEMD / "deskfleet-agent-dcv.conf")["Service"]
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"/run/{service['RuntimeDirectory']}")
    assert runtime_here(tmp_path).parent == Path("/run/deskfleet-agent")
    # The DCV server and the owners have to pass, and nobody has to list.
    assert service["RuntimeDirectoryMode"] == "0711"


def test_what_the_owners_of_sessions_run_is_not_below_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Debian and Ubuntu mount it noexec."""
    service = Unit(SYSTEMD / "deskfleet-agent-dcv.conf")["Service"]
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"/run/{service['RuntimeDirectory']}")
    monkeypatch.setenv("CACHE_DIRECTORY", f"/var/cache/{service['CacheDirectory']}")
    assert scripts_here(tmp_path).parent == Path("/var/cache/deskfleet-agent")
    assert service["CacheDirectoryMode"] == "0711"
    installer = (SYSTEMD.parent / "install").read_text()
    assert f"rm -rf /run/deskfleet /run/{service['RuntimeDirectory']}" in installer
    assert f" /var/cache/{service['CacheDirectory']}\n" in installer
    for name in ("RUNTIME_DIRECTORY", "CACHE_DIRECTORY", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert scripts_here(tmp_path).parent == Path("/var/cache/deskfleet")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert scripts_here(tmp_path).is_relative_to("/tmp/deskfleet-1000")


def test_what_is_left_of_desktops_is_told_and_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = RuntimeFolders(tmp_path / "run" / "agent")
    for made in (folders.records, folders.session("x").parent, folders.display("x").parent):
        made.mkdir(parents=True)
    (tmp_path / "run" / "other" / "dcv").mkdir(parents=True)
    left = folders.session("0a1b2c3d")
    left.mkdir()
    (left / "Xauthority").write_text("")
    assert end_desktops.main(["list"], tmp_path / "run") == 0
    assert capsys.readouterr().out == "0a1b2c3d\n"
    assert end_desktops.main(["end"], tmp_path / "run") == 0
    assert not left.exists()
    assert end_desktops.main(["list"], tmp_path / "run") == 0
    assert not capsys.readouterr().out
