"""Settings: which source wins, and that every mistake is told, all at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from deskfleet.configuration.examining import convert_setting
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
            f"{file}, line 1: client_prot: it is not a setting; did you mean client_port?",
            f"{file}, line 2: agent_port: True is not a number",
            f"{file}, line 3: zzz: it is not a setting",
            "environment: client_port: 'https' is not a whole number",
            "options: advertise: 7 is not text",
            "options: poll_seconds: 'soon' is not a number",
        ]

    def test_a_name_with_dashes(self, file: Path) -> None:
        file.write_text("log-level = 'info'\n")
        assert problems(file)[0].endswith("it is not a setting; did you mean log_level?")

    def test_half_a_port(self, file: Path) -> None:
        file.write_text("client_port = 84.5\nstate = 7\nagent_port = [1]\n")
        assert problems(file) == [
            f"{file}, line 1: client_port: 84.5 is not a whole number",
            f"{file}, line 2: state: 7 is not a path",
            f"{file}, line 3: agent_port: [1] is not a number",
        ]

    def test_neither_true_nor_false(self) -> None:
        with pytest.raises(SetupFailed, match="neither true nor false"):
            read(AgentSettings, file=None, environment={}, flags={"allow_root_sessions": "maybe"})

    def test_a_file_that_can_not_be_read(self, file: Path, tmp_path: Path) -> None:
        for content in (b"port", b"\xff = 1"):
            file.write_bytes(content)
            assert problems(file)[0].startswith(f"{file} can't be read: ")
        missing = tmp_path / "nowhere.toml"
        assert problems(missing) == [f"{missing} can't be read: No such file or directory"]


class TestRanges:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("client_port", "-1"),
            ("client_port", "65536"),
            ("gateway_port", "65536"),
            ("max_api_requests_per_second", "-1"),
            ("create_sessions_queue_max_size", "-1"),
            ("create_sessions_queue_max_time_seconds", "-1"),
            ("create_sessions_number_of_retries_on_failure", "-1"),
            ("delete_session_duration_seconds", "-1"),
            ("delete_session_duration_seconds", "9999999999"),
            ("connect_session_token_duration_minutes", "0"),
            ("seconds_before_deleting_unreachable_dcv_server", "0"),
            ("seconds_before_deleting_sessions_unreachable_server", "0"),
            ("session_screenshot_max_width", "0"),
            ("session_screenshot_max_height", "40000"),
            ("session_screenshot_format", "gif"),
            ("autorun_file_arguments_max_size", "-1"),
            ("autorun_file_arguments_max_argument_length", "-1"),
            ("agent_heartbeat_seconds", "0"),
            ("agent_heartbeat_seconds", "nan"),
            ("agent_heartbeat_seconds", "inf"),
            ("broker_beat_seconds", "-inf"),
            ("poll_seconds", "0"),
            ("log_level", "loud"),
            ("log_rotation", "weekly"),
            ("log_max_file_size", "0"),
            ("log_rotate", "-1"),
            ("state", ""),
            ("state", "a\0b"),
            ("client_port", ""),
            ("client_port", "9" * 5000),
        ],
    )
    def test_of_a_broker(self, name: str, text: str) -> None:
        (told,) = problems(None, {f"DESKFLEET_{name.upper()}": text})
        assert told.startswith(f"environment: {name}: ")
        assert len(told) < 300

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("desktop_port", "70000"),
            ("max_virtual_sessions", "-2"),
            ("max_concurrent_sessions_per_user", "-2"),
            ("broker_update_interval", "-1"),
            ("broker_update_interval", "nan"),
            ("broker_url", "http://broker:8445"),
            ("broker_url", "https://a:1, b:2"),
            ("broker_url", ""),
            ("geometry", "wide"),
            ("geometry", "0x100"),
            ("geometry", "100x99999"),
            ("tls_strict", "maybe"),
        ],
    )
    def test_of_an_agent(self, name: str, text: str) -> None:
        with pytest.raises(SetupFailed, match=f"environment: {name}: "):
            read(AgentSettings, environment={f"DESKFLEET_{name.upper()}": text}, flags={})

    def test_all_that_is_wrong_is_told_at_once(self, file: Path) -> None:
        file.write_text("client_port = -1\npoll_seconds = nan\n")
        assert len(problems(file, {"DESKFLEET_AGENT_PORT": "x"}, log_level="loud")) == 4

    def test_defaults_are_within_them(self) -> None:
        for kind in (BrokerSettings, AgentSettings):
            for setting in dataclasses.fields(kind):
                if setting.default is not dataclasses.MISSING:
                    convert_setting(kind, setting.name, setting.default)

    @pytest.mark.parametrize("text", ["", " "])
    def test_an_empty_path_of_a_file_that_may_be_missing_is_none(self, text: str) -> None:
        found = read(AgentSettings, environment={"DESKFLEET_CA_FILE": text}, flags={})
        assert found.ca_file is None

    def test_several_brokers(self) -> None:
        url = "https://a:1, https://[::1]:8445,https://b/x"
        found = read(AgentSettings, environment={"DESKFLEET_BROKER_URL": url}, flags={})
        assert found.broker_url == url


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
    defaults = {name: default for name, default, _ in rows}
    assert "XDG_STATE_HOME" in defaults["state"]
    assert defaults["log_directory"] == ""
    assert not {"True", "False", "None"} & set(defaults.values())
