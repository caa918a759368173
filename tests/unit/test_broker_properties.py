"""`session-manager-broker.properties`: each key does what its table says, each line has a note."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskfleet.configuration.broker_keys import KEYS
from deskfleet.configuration.broker_properties import translate
from deskfleet.configuration.examining import Examined
from deskfleet.configuration.notes import MASK, Note, Verdict
from deskfleet.configuration.properties import parse
from deskfleet.errors import SetupFailed
from deskfleet.settings import AgentSettings, BrokerSettings, examine, read
from support.original_files import BROKER_FILE, write

DISCOVERY = "broker-to-broker-discovery"
PORT = "agent-to-broker-connector-https-port"
LINE = 2
WRONG = {Verdict.WRONG}
"""Where the tests have the line that they are about."""

# key -> (text in the file, setting, its value): none of the values is a default.
HONOURED: dict[str, tuple[str, str, Any]] = {
    "session-manager-working-path": ("/srv/broker", "state", Path("/srv/broker")),
    "enable-authorization-server": ("false", "enable_authorization_server", False),
    "enable-authorization": ("FALSE", "enable_authorization", False),
    "enable-agent-authorization": ("false", "enable_agent_authorization", False),
    "enable-api-yaml": ("false", "enable_api_yaml", False),
    "delete-session-duration-hours": ("2", "delete_session_duration_seconds", 7200),
    "delete-session-duration-seconds": ("0", "delete_session_duration_seconds", 0),
    "connect-session-token-duration-minutes": ("5", "connect_session_token_duration_minutes", 5),
    "single-use-connection-token": ("true", "single_use_connection_token", True),
    "session-screenshot-max-width": ("320", "session_screenshot_max_width", 320),
    "session-screenshot-max-height": ("200", "session_screenshot_max_height", 200),
    "session-screenshot-format": ("JPEG", "session_screenshot_format", "jpeg"),
    "create-sessions-queue-max-size": ("7", "create_sessions_queue_max_size", 7),
    "create-sessions-queue-max-time-seconds": ("8", "create_sessions_queue_max_time_seconds", 8),
    "create-sessions-number-of-retries-on-failure": (
        "0",
        "create_sessions_number_of_retries_on_failure",
        0,
    ),
    "autorun-file-arguments-max-size": ("3", "autorun_file_arguments_max_size", 3),
    "autorun-file-arguments-max-argument-length": (
        "4",
        "autorun_file_arguments_max_argument_length",
        4,
    ),
    "max-api-requests-per-second": ("9", "max_api_requests_per_second", 9),
    "enable-throttling-forwarded-for-header": (
        "true",
        "enable_throttling_forwarded_for_header",
        True,
    ),
    "seconds-before-deleting-unreachable-dcv-server": (
        "60",
        "seconds_before_deleting_unreachable_dcv_server",
        60,
    ),
    "seconds-before-deleting-sessions-unreachable-server": (
        "2147483647",
        "seconds_before_deleting_sessions_unreachable_server",
        2**31 - 1,
    ),
    "client-to-broker-connector-https-port": ("8446", "client_port", 8446),
    "client-to-broker-connector-bind-host": ("127.0.0.1", "client_host", "127.0.0.1"),
    "client-to-broker-connector-key-store-file": (
        "/c.p12",
        "client_certificate_file",
        Path("/c.p12"),
    ),
    "client-to-broker-connector-key-store-pass": ("s3cret ", "client_key_password", "s3cret "),
    "agent-to-broker-connector-https-port": ("8455", "agent_port", 8455),
    "agent-to-broker-connector-bind-host": ("::1", "agent_host", "::1"),
    "agent-to-broker-connector-key-store-file": (
        "/a.p12",
        "agent_certificate_file",
        Path("/a.p12"),
    ),
    "agent-to-broker-connector-key-store-pass": ("s3cret", "agent_key_password", "s3cret"),
    "enable-gateway": ("true", "enable_gateway", True),
    "gateway-to-broker-connector-https-port": ("8457", "gateway_port", 8457),
    "gateway-to-broker-connector-bind-host": ("127.0.0.1", "gateway_host", "127.0.0.1"),
    "gateway-to-broker-connector-key-store-file": (
        "/g.p12",
        "gateway_certificate_file",
        Path("/g.p12"),
    ),
    "gateway-to-broker-connector-key-store-pass": ("s3cret", "gateway_key_password", "s3cret"),
    "enable-tls-client-auth-gateway": ("true", "enable_tls_client_auth_gateway", True),
    "gateway-to-broker-connector-trust-store-file": (
        "/t.p12",
        "gateway_trust_file",
        Path("/t.p12"),
    ),
    "gateway-to-broker-connector-trust-store-pass": ("s3cret", "gateway_trust_password", "s3cret"),
}
REPLACED = [key for key in KEYS if not key.setting]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "session-manager-broker.properties"


def examined(file: Path, text: str, mode: int = 0o640) -> Examined:
    return examine(BrokerSettings, write(file, f"# a file\n{text}\n", mode))


def problems(file: Path, text: str, mode: int = 0o640) -> list[str]:
    with pytest.raises(SetupFailed) as caught:
        read(
            BrokerSettings,
            file=write(file, f"# a file\n{text}\n", mode),
            environment={},
            flags={},
        )
    return caught.value.message.splitlines()


def only(found: Examined, line: int = LINE) -> Note:
    (note,) = [note for note in found.notes if note.line == line]
    return note


class TestTheTable:
    def test_it_is_whole(self) -> None:
        assert set(HONOURED) == {key.name for key in KEYS if key.setting}
        assert all(key.instead for key in REPLACED)
        assert len({key.name for key in KEYS}) == len(KEYS)

    def test_its_settings_are_settings(self) -> None:
        known = {field.name for field in dataclasses.fields(BrokerSettings)}
        assert {key.setting for key in KEYS if key.setting} <= known

    def test_the_example_has_every_key_once(self) -> None:
        lines = BROKER_FILE.read_text().splitlines()
        said = [line.partition(" =")[0] for line in lines if line and line[0] != "#"]
        assert sorted(name.lower() for name in said) == sorted(key.name for key in KEYS)

    def test_every_line_of_the_example_is_good(self) -> None:
        verdicts = {note.verdict for note in translate(BROKER_FILE.read_text()).notes}
        assert verdicts <= {Verdict.USED, Verdict.IGNORED, Verdict.OVERRIDDEN, Verdict.DEFAULT}


@pytest.mark.parametrize("name", HONOURED)
def test_a_key_that_is_honoured_arrives_in_its_setting(name: str, file: Path) -> None:
    text, setting, value = HONOURED[name]
    found = examined(file, f"{name} = {text}")
    note = only(found)
    assert (note.key, note.verdict, note.setting) == (name, Verdict.USED, setting)
    settings = read(BrokerSettings, file=found, environment={}, flags={})
    assert getattr(settings, setting) == value
    assert getattr(BrokerSettings(), setting) != value
    if "pass" in name:
        assert (note.value, "s3cret" in f"{settings}{found.notes}") == (MASK, False)


@pytest.mark.parametrize("name", [key.name for key in REPLACED])
def test_a_key_that_is_not_is_named_with_what_is_done_instead(name: str, file: Path) -> None:
    found = examined(file, f"{name} = false")
    note = only(found)
    assert (note.key, note.verdict) == (name, Verdict.IGNORED)
    assert note.text == next(key.instead for key in KEYS if key.name == name)
    plain = examined(file, "")
    assert read(BrokerSettings, file=found, environment={}, flags={}) == read(
        BrokerSettings, file=plain, environment={}, flags={}
    )


class TestReading:
    def test_known_by_its_suffix_or_by_its_keys(self, tmp_path: Path) -> None:
        text = "client-to-broker-connector-bind-host = 127.0.0.1"
        for name in ("broker.properties", "broker.conf", "broker"):
            assert examined(tmp_path / name, text).values["client_host"] == "127.0.0.1"
        assert examined(tmp_path / "x.properties", "").values["state"] == Path(
            "/var/lib/dcvsmbroker"
        )
        own = examined(tmp_path / "broker.conf", "client_host = '127.0.0.1'")
        assert own.values == {"client_host": "127.0.0.1"}

    def test_the_working_path_is_that_of_the_package_where_none_is_said(self, file: Path) -> None:
        found = examined(file, "enable-gateway = false")
        assert found.values["state"] == Path("/var/lib/dcvsmbroker")
        assert [n.verdict for n in found.notes if n.setting == "state"] == [Verdict.DEFAULT]

    def test_an_empty_value_is_as_good_as_no_line(self, file: Path) -> None:
        found = examined(file, "client-to-broker-connector-https-port =\nenable-gateway = ")
        assert {note.verdict for note in found.notes if note.line} == {Verdict.IGNORED}
        assert "client_port" not in found.values

    def test_seconds_win_over_hours(self, file: Path) -> None:
        hours, seconds = "delete-session-duration-hours = 3", "delete-session-duration-seconds = 4"
        for text in (f"{hours}\n{seconds}", f"{seconds}\n{hours}"):
            assert examined(file, text).values["delete_session_duration_seconds"] == 4
        assert "deprecated" in only(examined(file, hours)).text

    def test_the_last_of_two_counts(self, file: Path) -> None:
        found = examined(file, "max-api-requests-per-second = 1\nmax-api-requests-per-second = 2")
        assert found.values["max_api_requests_per_second"] == 2
        assert only(found).verdict is Verdict.OVERRIDDEN
        assert "line 3" in only(found).text

    @pytest.mark.parametrize("case", ["AWS-region", "aws-region", "Aws-Region"])
    def test_the_keys_for_load_balancers_are_known_in_any_case(self, case: str, file: Path) -> None:
        assert only(examined(file, f"{DISCOVERY}-{case} = x")).verdict is Verdict.IGNORED

    def test_other_keys_are_not(self, file: Path) -> None:
        note = only(examined(file, "Enable-Gateway = true"))
        assert (note.verdict, note.text) == (Verdict.UNKNOWN, "did you mean enable-gateway?")

    @pytest.mark.parametrize(
        ("name", "meant"),
        [
            ("ENABLE-GATEWAY", "enable-gateway"),
            ("gateway-port", "gateway-to-broker-connector-https-port"),
            ("gateway-trust-file", "gateway-to-broker-connector-trust-store-file"),
            ("Gateway.Trust.File", "gateway-to-broker-connector-trust-store-file"),
            ("delete-session-duration", "delete-session-duration-seconds"),
            ("max_api_requests", "max-api-requests-per-second"),
        ],
    )
    def test_what_is_short_for_a_key_finds_it(self, name: str, meant: str, file: Path) -> None:
        assert only(examined(file, f"{name} = 1")).text == f"did you mean {meant}?"

    def test_a_key_that_nobody_knows_stops_nothing(self, file: Path) -> None:
        found = examined(file, "client-to-broker-connector-htps-port = 1\nzzz = 1")
        first, second = (note for note in found.notes if note.line)
        assert first.text == "did you mean client-to-broker-connector-https-port?"
        assert (second.verdict, second.text) == (Verdict.UNKNOWN, "")
        read(BrokerSettings, file=found, environment={}, flags={})

    def test_environment_and_options_win(self, file: Path) -> None:
        found = examined(file, "client-to-broker-connector-https-port = 1\nenable-gateway = true")
        settings = read(
            BrokerSettings,
            file=found,
            environment={"DESKFLEET_CLIENT_PORT": "2"},
            flags={"enable_gateway": False},
        )
        assert (settings.client_port, settings.enable_gateway) == (2, False)


class TestWhatIsAskedForInVain:
    @pytest.mark.parametrize(
        "text",
        [
            f"{DISCOVERY}-addresses = 10.0.0.1:47500,10.0.0.2:47500",
            f"{DISCOVERY}-addresses = 127.0.0.1:47500, 192.0.2.1:47500",
            f"{DISCOVERY}-addresses = 192.0.2.1:47500",
            f"{DISCOVERY}-addresses = [2001:db8::1]:47500",
            f"{DISCOVERY}-addresses = brokers.example.org:47500",
            f"{DISCOVERY}-addresses = brokers.example.org",
            f"{DISCOVERY}-multicast-group = 228.10.10.157",
            f"{DISCOVERY}-aws-alb-target-group-arn = arn:x",
            "enable-cloud-watch-metrics = true",
            "enable-cloud-watch-metrics = Yes",
            "enable-cloud-watch-metrics = 1",
        ],
    )
    def test_is_urgent(self, text: str, file: Path) -> None:
        assert only(examined(file, text)).is_urgent

    @pytest.mark.parametrize(
        "text",
        [
            f"{DISCOVERY}-addresses = 127.0.0.1:47500",
            f"{DISCOVERY}-addresses = localhost:47500,[::1]:47500",
            f"{DISCOVERY}-addresses = {socket.gethostname()}:47500",
            f"{DISCOVERY}-addresses = 0.0.0.0:47500",
            "enable-cloud-watch-metrics = false",
            "enable-cloud-watch-metrics = no",
            "enable-cloud-watch-metrics = 0",
        ],
    )
    def test_what_is_not_missed_is_not(self, text: str, file: Path) -> None:
        assert not only(examined(file, text)).is_urgent


class TestMistakes:
    def test_all_are_told_with_their_lines(self, file: Path) -> None:
        text = (
            f"{PORT} = 70000\n"
            "enable-gateway = perhaps\n"
            "max-api-requests-per-second = -1\n"
            "session-screenshot-format = gif\n"
            "delete-session-duration-hours = soon\n"
            "create-sessions-queue-max-size = 1.5\n"
            "jdbc-user = \\u12"
        )
        assert problems(file, text) == [
            f"{file}, line 2: {PORT}: 70000 is not a port: 0 to 65535 are",
            f"{file}, line 3: enable-gateway: 'perhaps' is neither true nor false",
            f"{file}, line 4: max-api-requests-per-second: -1 is too small: 0 is the least",
            f"{file}, line 5: session-screenshot-format: 'gif' is not one of png, jpeg",
            f"{file}, line 6: delete-session-duration-hours: 'soon' is not a whole number",
            f"{file}, line 7: create-sessions-queue-max-size: '1.5' is not a whole number",
            f"{file}, line 8: jdbc-user: \\u needs four hexadecimal digits",
        ]

    @pytest.mark.parametrize(
        ("line", "told"),
        [
            ("enable_tls_client_auth_gateway = true", "its name is enable-tls-client-auth-gateway"),
            ("gateway_trust_file = /x", "its name is gateway-to-broker-connector-trust-store-file"),
            ("delete_session_duration_seconds = 1", "its name is delete-session-duration-seconds"),
            ("state = /x", "its name is session-manager-working-path"),
            ("advertise = b1", "but the environment has: DESKFLEET_ADVERTISE"),
        ],
    )
    def test_settings_of_deskfleet_are_not_passed_over(
        self, line: str, told: str, file: Path
    ) -> None:
        """A gateway that was to show a certificate would be let in without one."""
        (problem,) = problems(file, line)
        assert problem.startswith(
            f"{file}, line 2: {line.split(maxsplit=1)[0]}: it is a setting of deskfleet"
        )
        assert told in problem

    def test_no_setting_has_the_name_of_a_key(self) -> None:
        assert not {key.name for key in KEYS} & {
            one.name for one in dataclasses.fields(BrokerSettings)
        }

    @pytest.mark.parametrize("seconds", ["59", "0"])
    def test_less_than_the_original_starts_with(self, seconds: str, file: Path) -> None:
        (told,) = problems(file, f"seconds-before-deleting-unreachable-dcv-server = {seconds}")
        assert "60 is the least in this file" in told

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("enable-persistence = true\npersistence-db = dynamodb", "doesn't store in DynamoDB"),
            ("persistence-db = mysql\nenable-persistence = true", "MySQL or MariaDB yet"),
            ("enable-persistence = true\npersistence-db = oracle", "'oracle' is not a store"),
            ("enable-persistence = TRUE", "persistence-db is missing"),
            ("enable-persistence = yes", "persistence-db is missing"),
            ("enable-persistence = 1\npersistence-db = dynamodb", "doesn't store in DynamoDB"),
        ],
    )
    def test_a_store_that_can_not_be_had(self, text: str, reason: str, file: Path) -> None:
        (told,) = problems(file, text)
        assert reason in told
        assert "enable-persistence = false" in told or "neither can be had" in told

    @pytest.mark.parametrize("key", ["enable-persistence", "enable-cloud-watch-metrics"])
    def test_what_is_neither_yes_nor_no_is_told_where_it_is_ignored_too(
        self, key: str, file: Path
    ) -> None:
        (told,) = problems(file, f"{key} = ture")
        assert told == f"{file}, line 2: {key}: 'ture' is neither true nor false"
        for word in ("", "no", "0", "FALSE"):
            assert only(examined(file, f"{key} = {word}")).verdict is Verdict.IGNORED

    @pytest.mark.parametrize(
        ("hours", "told"), [("-1", "-1 is too small: 0"), ("600000", "600000 is too large: 596523")]
    )
    def test_hours_are_told_as_hours(self, hours: str, told: str, file: Path) -> None:
        (problem,) = problems(file, f"delete-session-duration-hours = {hours}")
        assert told in problem

    def test_no_password_is_told(self, file: Path) -> None:
        (told,) = problems(file, f"client-to-broker-connector-key-store-pass = hunter2{'x' * 5000}")
        assert "hunter2" not in told


class TestPermissions:
    @pytest.mark.parametrize("mode", [0o400, 0o440, 0o600, 0o640])
    def test_its_group_may_read_it(self, mode: int, file: Path) -> None:
        settings = read(
            BrokerSettings,
            file=write(file, "enable-gateway = true", mode),
            environment={},
            flags={},
        )
        assert settings.enable_gateway

    @pytest.mark.parametrize("mode", [0o644, 0o444, 0o604])
    def test_others_may_not_read_it_as_with_the_original(self, mode: int, file: Path) -> None:
        (told,) = problems(file, "enable-gateway = true", mode)
        assert told.startswith(f"{file} can be read by everybody (mode {mode:o})")
        assert told.endswith(f"run: chmod 640 {file}")

    @pytest.mark.parametrize("mode", [0o660, 0o602, 0o620])
    def test_others_may_not_write(self, mode: int, file: Path) -> None:
        (told,) = problems(file, "enable-gateway = true", mode)
        assert told == (f"{file} can be changed by others (mode {mode:o}); run: chmod 640 {file}")

    @pytest.mark.parametrize(
        ("kind", "name", "text"),
        [
            (BrokerSettings, "x.properties", ""),
            (BrokerSettings, "broker.toml", ""),
            (AgentSettings, "agent.conf", "version = '0.1'\n[agent]\nbroker_host = 'a'\n"),
            (AgentSettings, "agent.toml", ""),
        ],
    )
    def test_only_root_or_who_runs_it_may_own_it(
        self,
        kind: type[BrokerSettings | AgentSettings],
        name: str,
        text: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Whoever owns an agent's file chooses its broker, which starts programs as root."""
        file = write(tmp_path / name, text)

        def wrong() -> list[str]:
            return [note.text for note in examine(kind, file).notes if note.verdict in WRONG]

        uid = file.stat().st_uid
        monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
        if uid == 0:
            assert not wrong()
            os.chown(file, 12345, -1)
            assert "belongs to the user 12345" in wrong()[0]
            assert wrong()[0].endswith(f"run: chown root {file}")
            monkeypatch.setattr(os, "geteuid", lambda: 12345)
            assert not wrong()
        else:
            assert wrong()[0].endswith(f"run: chown root {file}")

    def test_deskfleets_own_file_may_not_show_passwords_either(self, tmp_path: Path) -> None:
        own = write(tmp_path / "broker.toml", "client_key_password = 'x'\n", 0o644)
        with pytest.raises(SetupFailed, match="chmod 640"):
            read(BrokerSettings, file=own, environment={}, flags={})
        own.chmod(0o600)
        settings = read(BrokerSettings, file=own, environment={}, flags={})
        assert settings.client_key_password == "x"
        assert "password" not in repr(settings)


class TestAnyFile:
    @given(
        st.lists(
            st.tuples(
                st.sampled_from([key.name for key in KEYS] + ["x", "enable-gatway"]),
                st.sampled_from(["true", "0", "-1", "mysql", "", "/x", "9" * 30, "a,b", "\\u12"])
                | st.text(max_size=6),
            ),
            max_size=12,
        )
    )
    def test_has_a_note_for_every_line(self, lines: list[tuple[str, str]]) -> None:
        # One line each: a value with a line break in it would be several.
        text = "\n".join(f"{key} = {''.join(value.split())}" for key, value in lines)
        notes = translate(text).notes
        numbers = sorted(note.line for note in notes if note.line is not None)
        assert numbers == [entry.line for entry in parse(text)]

    def test_ten_thousand_strangers_take_no_time(self, file: Path) -> None:
        text = "\n".join(f"client-to-broker-connector-bind-hos{i} = 1" for i in range(10_000))
        found = examined(file, text)
        assert len([note for note in found.notes if note.verdict is Verdict.UNKNOWN]) == 10_000

    @pytest.mark.parametrize("content", [b"\xff\xfe", b"\0\0", b"a" * 70_000, b"[" * 50_000])
    def test_odd_content_is_told_or_taken(self, content: bytes, tmp_path: Path) -> None:
        for name in ("x.properties", "x.toml", "x"):
            path = tmp_path / name
            path.write_bytes(content)
            path.chmod(0o600)
            with contextlib.suppress(SetupFailed):
                assert examine(BrokerSettings, path).notes

    def test_what_is_no_file(self, tmp_path: Path) -> None:
        pipe = tmp_path / "pipe.properties"
        os.mkfifo(pipe)
        large = write(tmp_path / "large.properties", "#" * 1_100_000)
        for path in (pipe, large, tmp_path, tmp_path / "none.properties"):
            with pytest.raises(SetupFailed, match="can't be read"):
                examine(BrokerSettings, path)
