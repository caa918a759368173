"""Settings: which source wins, and that every mistake is told, all at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from deskfleet.errors import SetupFailed
from deskfleet.settings import AgentSettings, BrokerSettings, default_state, describe, read


def broker(
    file: Path | None = None, environment: dict[str, str] | None = None, **flags: Any
) -> BrokerSettings:
    return read(BrokerSettings, file=file, environment=environment or {}, flags=flags)


def problems(
    file: Path | None = None, environment: dict[str, str] | None = None, **flags: Any
) -> list[str]:
    with pytest.raises(SetupFailed) as caught:
        broker(file, environment, **flags)
    return caught.value.message.splitlines()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "broker.toml"


class TestWhoWins:
    def test_defaults_file_environment_flags(self, file: Path) -> None:
        file.write_text("client_port = 1\nagent_port = 1\nadvertise = 'file'\n")
        environment = {"DESKFLEET_AGENT_PORT": "2", "DESKFLEET_ADVERTISE": "environment"}
        settings = broker(file, environment, advertise="flag", store=None)
        assert (
            settings.store,
            settings.client_port,
            settings.agent_port,
            settings.advertise,
        ) == ("", 1, 2, "flag")

    def test_what_was_not_given_stays(self) -> None:
        assert dataclasses.asdict(broker(state=Path("/x"))) == dataclasses.asdict(
            BrokerSettings(state=Path("/x"))
        )

    def test_other_programs_variables_are_theirs(self) -> None:
        environment = {"DESKFLEET_CLIENT_SECRET": "x", "PORT": "1", "DESKFLEET_store": "x"}
        assert broker(None, environment, state=Path("/x")) == BrokerSettings(state=Path("/x"))


class TestKinds:
    def test_text_becomes_what_the_setting_is(self) -> None:
        settings = read(
            AgentSettings,
            file=None,
            environment={
                "DESKFLEET_STATE": "/srv/agent",
                "DESKFLEET_CA_FILE": "/etc/ca.pem",
                "DESKFLEET_DESKTOP_PORT": "9000",
                "DESKFLEET_ALLOW_ROOT_SESSIONS": "Yes",
            },
            flags={},
        )
        assert settings.state == Path("/srv/agent")
        assert settings.ca_file == Path("/etc/ca.pem")
        assert settings.desktop_port == 9000
        assert settings.allow_root_sessions is True

    @pytest.mark.parametrize(
        ("text", "truth"), [("true", True), ("1", True), ("no", False), ("FALSE", False)]
    )
    def test_words_for_truth(self, text: str, *, truth: bool) -> None:
        settings = read(
            AgentSettings, file=None, environment={"DESKFLEET_ALLOW_ROOT_SESSIONS": text}, flags={}
        )
        assert settings.allow_root_sessions is truth

    def test_a_whole_number_is_a_number_of_seconds(self, file: Path) -> None:
        file.write_text("poll_seconds = 2\n")
        assert broker(file).poll_seconds == 2.0


class TestMistakes:
    def test_all_are_told_with_their_source(self, file: Path) -> None:
        file.write_text("client_prot = 1\nagent_port = true\nzzz = 0\n")
        environment = {"DESKFLEET_CLIENT_PORT": "https"}
        assert problems(file, environment, advertise=7, poll_seconds="soon") == [
            f"{file}: client_prot is not a setting; did you mean client_port?",
            f"{file}: agent_port: True is not a number",
            f"{file}: zzz is not a setting",
            "environment: client_port: invalid literal for int() with base 10: 'https'",
            "flags: advertise: 7 is not text",
            "flags: poll_seconds: could not convert string to float: 'soon'",
        ]

    def test_half_a_port(self, file: Path) -> None:
        file.write_text("client_port = 84.5\nstate = 7\nagent_port = [1]\n")
        assert problems(file) == [
            f"{file}: client_port: 84.5 is not a whole number",
            f"{file}: state: 7 is not a Path",
            f"{file}: agent_port: [1] is not a int",
        ]

    def test_neither_true_nor_false(self) -> None:
        with pytest.raises(SetupFailed, match="neither true nor false"):
            read(AgentSettings, file=None, environment={}, flags={"allow_root_sessions": "maybe"})

    def test_a_file_that_can_not_be_read(self, file: Path, tmp_path: Path) -> None:
        for content in (b"port", b"\xff = 1"):
            file.write_bytes(content)
            assert problems(file)[0].startswith(f"{file} can't be read: ")
        assert problems(tmp_path / "nowhere.toml")[0].endswith("nowhere.toml'")


def test_the_state_folder_follows_the_desktop_standard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/srv/state")
    assert default_state() == Path("/srv/state/deskfleet")
    assert BrokerSettings().state == Path("/srv/state/deskfleet")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/alice")
    assert default_state() == Path("/home/alice/.local/state/deskfleet")


@pytest.mark.parametrize("kind", [BrokerSettings, AgentSettings])
def test_every_setting_says_what_it_means(kind: type[BrokerSettings | AgentSettings]) -> None:
    rows = describe(kind)
    assert [name for name, _, _ in rows] == [field.name for field in dataclasses.fields(kind)]
    assert all(meaning for _, _, meaning in rows)
    assert {name: default for name, default, _ in rows}["state"] == ""
