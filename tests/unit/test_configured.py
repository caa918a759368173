"""What a program says of its configuration file when it starts, and where it logs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deskfleet.cli.program import configured
from deskfleet.errors import SetupFailed
from deskfleet.settings import AgentSettings, BrokerSettings
from support.original_files import write


def told(folder: Path, name: str) -> list[tuple[str, str, str, int | None]]:
    lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [(one["event"], one["level"], one["key"], one["line"]) for one in lines]


def test_each_line_that_is_not_simply_used_is_named_once(tmp_path: Path) -> None:
    file = write(
        tmp_path / "broker.properties",
        "enable-gatway = true\n"
        "delete-session-duration-hours = 1\n"
        "broker-to-broker-discovery-addresses = 10.0.0.1:47500,10.0.0.2:47500\n"
        "cli-to-broker-port = 1\n"
        "max-api-requests-per-second = 1\n"
        "max-api-requests-per-second = 2\n",
    )
    configured(BrokerSettings, file, {"log_directory": str(tmp_path)}, "broker.log")
    assert told(tmp_path, "broker.log") == [
        ("configuration.unknown", "warning", "enable-gatway", 1),
        ("configuration.deprecated", "warning", "delete-session-duration-hours", 2),
        ("configuration.not-had", "warning", "broker-to-broker-discovery-addresses", 3),
        ("configuration.ignored", "info", "cli-to-broker-port", 4),
        ("configuration.ignored", "info", "max-api-requests-per-second", 5),
    ]


def test_what_the_environment_overrides_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The units set such variables, whatever the file says."""
    monkeypatch.setenv("DESKFLEET_STATE", str(tmp_path))
    monkeypatch.setenv("DESKFLEET_LOG_DIRECTORY", str(tmp_path))
    file = write(tmp_path / "b.properties", "session-manager-working-path = /x\n")
    settings = configured(BrokerSettings, file, {}, "broker.log")
    assert (settings.state, settings.log_directory) == (tmp_path, tmp_path)
    (line,) = (tmp_path / "broker.log").read_text().splitlines()
    one = json.loads(line)
    assert (one["event"], one["key"]) == ("configuration.ignored", "session-manager-working-path")
    assert one["reason"] == "overridden by DESKFLEET_STATE"
    text = "version = '0.1'\n[agent]\nbroker_host = 'a'\n[log]\ndirectory = '/x'\n"
    configured(AgentSettings, write(tmp_path / "agent.conf", text), {}, "agent.log")
    assert told(tmp_path, "agent.log") == [("configuration.ignored", "info", "log.directory", 5)]


def test_a_missing_version_is_named(tmp_path: Path) -> None:
    text = f"[agent]\nbroker_host = 'a'\n[log]\ndirectory = '{tmp_path}'\n"
    configured(AgentSettings, write(tmp_path / "agent.conf", text), {}, "agent.log")
    assert told(tmp_path, "agent.log") == [("configuration.unknown", "warning", "version", None)]


def test_the_level_is_the_files(tmp_path: Path) -> None:
    text = f"[agent]\nbroker_host = 'a'\n[log]\nlevel = 'error'\ndirectory = '{tmp_path}'\n"
    configured(AgentSettings, write(tmp_path / "agent.conf", text), {}, "agent.log")
    assert told(tmp_path, "agent.log") == []


def test_a_log_folder_that_is_not_there(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    with pytest.raises(SetupFailed, match=f"run: mkdir {folder}"):
        configured(BrokerSettings, None, {"log_directory": str(folder)}, "broker.log")
