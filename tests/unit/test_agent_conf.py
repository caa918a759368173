"""`agent.conf`: each key does what its table says, and what it doesn't say is as documented."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskfleet.agent.main import _tags_folders
from deskfleet.agent.tags import TagsFolder
from deskfleet.cli.config_files import amend, replace_file
from deskfleet.configuration import toml
from deskfleet.configuration.agent_conf import KEYS, translate
from deskfleet.configuration.examining import Examined
from deskfleet.configuration.notes import Note, Verdict
from deskfleet.errors import SetupFailed
from deskfleet.machine.folders import Folders
from deskfleet.settings import AgentSettings, examine, read
from support.original_files import AGENT_FILE, write

HEAD = "version = '0.1'\n[agent]\nbroker_host = 'broker'\n"
LINE = 4
"""Where the tests have the line that they are about."""
AT = Folders(
    log_folder=Path("/log"),
    tags_folder=Path("/etc/a/tags"),
    autorun_folder=Path("/autorun"),
    init_folder=Path("/init"),
    dcv_program=Path("/dcv"),
)

# key -> (text in the file, setting, its value): none of the values is a default.
HONOURED: dict[str, tuple[str, str, Any]] = {
    "agent.broker_host": ("'other'", "broker_url", "https://other:8445"),
    "agent.broker_port": ("8455", "broker_url", "https://broker:8455"),
    "agent.ca_file": ("'/ca.pem'", "ca_file", Path("/ca.pem")),
    "agent.tls_strict": ("false", "tls_strict", False),
    "agent.init_folder": ("'/x'", "init_folder", Path("/x")),
    "agent.autorun_folder": ("'/x'", "autorun_folder", Path("/x")),
    "agent.software_statement_path": ("'/x'", "software_statement_path", Path("/x")),
    "agent.tags_folder": ("'/x'", "tags_folder", Path("/x")),
    "agent.max_virtual_sessions": ("4", "max_virtual_sessions", 4),
    "agent.max_concurrent_sessions_per_user": ("-1", "max_concurrent_sessions_per_user", -1),
    "agent.broker_update_interval": ("15", "broker_update_interval", 15.0),
    "agent.enable_logged_users_windows": ("false", "enable_query_logged_in_users", False),
    "agent.enable_query_logged_in_users": ("false", "enable_query_logged_in_users", False),
    "agent.preferred_network_interface": (
        "'Ethernet 4'",
        "preferred_network_interface",
        "Ethernet 4",
    ),
    "agent.dcv_root": ("'/opt/dcv'", "dcv_root", Path("/opt/dcv")),
    "log.level": ("'debug'", "log_level", "debug"),
    "log.directory": ("'/x'", "log_directory", Path("/x")),
    "log.rotation": ("'hourly'", "log_rotation", "hourly"),
    "log.max-file-size": ("2048", "log_max_file_size", 2048),
    "log.rotate": ("0", "log_rotate", 0),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "agent.conf"


def examined(file: Path, text: str) -> Examined:
    return examine(AgentSettings, write(file, text))


def settings(file: Path, text: str, environment: dict[str, str] | None = None) -> AgentSettings:
    return read(AgentSettings, file=examined(file, text), environment=environment or {}, flags={})


def problems(file: Path, text: str) -> list[str]:
    with pytest.raises(SetupFailed) as caught:
        settings(file, text)
    return caught.value.message.splitlines()


def at_line(found: Examined, line: int) -> Note:
    (note,) = [note for note in found.notes if note.line == line]
    return note


class TestTheTable:
    def test_it_is_whole(self) -> None:
        assert sorted(HONOURED) == sorted(key.path for key in KEYS)

    def test_its_settings_are_settings(self) -> None:
        known = {field.name for field in dataclasses.fields(AgentSettings)}
        assert {key.setting for key in KEYS} <= known

    def test_the_example_has_every_key(self) -> None:
        content = toml.parse(AGENT_FILE.read_text())
        said = {f"{table}.{name}" for table in ("agent", "log") for name in content[table]}
        assert said == {key.path for key in KEYS}

    def test_every_line_of_the_example_is_good(self, file: Path) -> None:
        verdicts = {note.verdict for note in examined(file, AGENT_FILE.read_text()).notes}
        assert verdicts == {Verdict.USED, Verdict.OVERRIDDEN, Verdict.DEFAULT}


@pytest.mark.parametrize("path", HONOURED)
def test_a_key_arrives_in_its_setting(path: str, file: Path) -> None:
    text, setting, value = HONOURED[path]
    table, _, name = path.partition(".")
    begin = HEAD.replace("broker_host = 'broker'\n", "\n") if name == "broker_host" else HEAD
    line = f"{name} = {text}" if table == "agent" else f"[log]\n{name} = {text}"
    found = examined(file, f"{begin}{line}\n")
    note = at_line(found, LINE + (table == "log"))
    assert (note.key, note.verdict, note.setting) == (path, Verdict.USED, setting)
    given = getattr(read(AgentSettings, file=found, environment={}, flags={}), setting)
    assert given == value
    assert type(given) is type(value)
    assert getattr(settings(file, HEAD), setting) != value


class TestWhatItDoesNotSay:
    def test_is_as_the_original_has_it(self) -> None:
        result = translate({"agent": {}}, {}, has_log_folder=True, at=AT)
        assert {name: given.value for name, given in result.values.items()} == {
            "driver": "dcv",
            "init_folder": Path("/init"),
            "autorun_folder": Path("/autorun"),
            "tags_folder": Path("/etc/a/tags"),
            "base_tags_folder": Path("/etc/a"),
            "max_concurrent_sessions_per_user": 1,
            "broker_update_interval": 30,
            "log_directory": Path("/log"),
        }

    def test_the_log_goes_to_a_folder_that_is_there(self) -> None:
        result = translate({"agent": {}}, {}, has_log_folder=False, at=AT)
        assert "log_directory" not in result.values

    def test_where_there_are_no_init_files(self) -> None:
        at = dataclasses.replace(AT, init_folder=None)
        result = translate({"agent": {}}, {}, has_log_folder=False, at=at)
        assert "init_folder" not in result.values

    def test_it_is_the_file_of_a_dcv_server(self, file: Path) -> None:
        (note,) = [note for note in examined(file, HEAD).notes if note.setting == "driver"]
        assert (note.verdict, note.value) == (Verdict.DEFAULT, "dcv")
        assert settings(file, HEAD).driver == "dcv"
        assert settings(file, HEAD, {"DESKFLEET_DRIVER": "xvnc"}).driver == "xvnc"
        assert settings(file, "ca_file = '/x'\n").driver == AgentSettings().driver == "xvnc"

    def test_the_port(self, file: Path) -> None:
        assert settings(file, HEAD).broker_url == "https://broker:8445"

    @pytest.mark.parametrize(
        "text", ["[agent]\nbroker_host='a'", "version='9'\n[log]\n[agent]\nbroker_host='a'"]
    )
    def test_a_version_that_is_missing_or_strange_is_a_warning(self, text: str, file: Path) -> None:
        (note,) = [note for note in examined(file, text).notes if note.key == "version"]
        assert (note.verdict, note.is_urgent) == (Verdict.UNKNOWN, True)
        assert settings(file, text).broker_url == "https://a:8445"


class TestTags:
    @pytest.mark.parametrize("text", ["/etc/a/tags", "/etc/a/tags/"])
    def test_those_beside_the_folder_count_too(self, text: str) -> None:
        result = translate({"agent": {"tags_folder": text}}, {}, has_log_folder=False, at=AT)
        assert result.values["base_tags_folder"].value == Path("/etc/a")

    def test_those_in_the_folder_win(self, tmp_path: Path) -> None:
        (tmp_path / "tags").mkdir()
        write(tmp_path / "a.toml", "color = 'red'\nroom = '7'\n")
        write(tmp_path / "tags" / "a.toml", "color = 'blue'\n")
        folders = _tags_folders(
            AgentSettings(base_tags_folder=tmp_path, tags_folder=tmp_path / "tags")
        )
        assert TagsFolder(folders).read() == {"color": "blue", "room": "7"}

    def test_a_folder_elsewhere_stands_alone(self) -> None:
        result = translate({"agent": {"tags_folder": "/x"}}, {}, has_log_folder=False, at=AT)
        assert "base_tags_folder" not in result.values


class TestTheBroker:
    @pytest.mark.parametrize(
        ("host", "url"),
        [
            ("10.0.0.1", "https://10.0.0.1:8445"),
            ("fd00::1", "https://[fd00::1]:8445"),
            ("[fd00::1]", "https://[fd00::1]:8445"),
            (" broker.example.org ", "https://broker.example.org:8445"),
        ],
    )
    def test_names_and_addresses(self, host: str, url: str, file: Path) -> None:
        assert settings(file, HEAD.replace("'broker'", f"'{host}'")).broker_url == url

    @pytest.mark.parametrize("host", ["a b", "https://broker", "a@b", "a/b", "a,b", "broker:8445"])
    def test_what_is_no_host(self, host: str, file: Path) -> None:
        (told,) = problems(file, HEAD.replace("'broker'", f"'{host}'"))
        assert told == f"{file}, line 3: agent.broker_host: {host} is not a host name or address"

    @pytest.mark.parametrize("port", ["0", "65536", "'8445'", "true", "8445.0"])
    def test_what_is_no_port(self, port: str, file: Path) -> None:
        (told,) = problems(file, f"{HEAD}broker_port = {port}\n")
        assert "is not a port: 1 to 65535 are" in told

    @pytest.mark.parametrize("line", ["broker_host = ''", ""])
    def test_none_is_told_unless_it_is_said_elsewhere(self, line: str, file: Path) -> None:
        text = HEAD.replace("broker_host = 'broker'", line)
        (told,) = problems(file, text)
        assert told.endswith("agent.broker_host: there is no host name of a broker")
        environment = {"DESKFLEET_BROKER_URL": "https://b:1"}
        assert settings(file, text, environment).broker_url == "https://b:1"


class TestMistakes:
    def test_all_are_told_with_their_lines(self, file: Path) -> None:
        text = (
            f"{HEAD}tls_strict = 'never'\nmax_virtual_sessions = -2\nca_file = 7\n"
            "broker_update_interval = nan\n[log]\nlevel = 'loud'\nrotation = 'weekly'\n"
            "max-file-size = 0\nrotate = '9'\n"
        )
        assert problems(file, text) == [
            f"{file}, line 4: agent.tls_strict: 'never' is neither true nor false",
            f"{file}, line 5: agent.max_virtual_sessions: -2 is too small: -1 is the least",
            f"{file}, line 6: agent.ca_file: 7 is not a path",
            f"{file}, line 7: agent.broker_update_interval: nan is not a finite number",
            f"{file}, line 9: log.level: 'loud' is not one of error, warning, info, debug",
            f"{file}, line 10: log.rotation: 'weekly' is not one of daily, hourly",
            f"{file}, line 11: log.max-file-size: 0 is too small: 1024 is the least",
        ]

    def test_what_nobody_knows_is_named(self, file: Path) -> None:
        text = f"{HEAD}tls_strct = false\n[logs]\nlevel = 'info'\n"
        first, second = [n for n in examined(file, text).notes if n.verdict is Verdict.UNKNOWN]
        assert (first.line, first.key) == (4, "agent.tls_strct")
        assert first.text == "did you mean agent.tls_strict?"
        assert (second.line, second.key, second.text) == (5, "logs", "did you mean log?")
        assert settings(file, text).tls_strict

    @pytest.mark.parametrize(
        ("line", "meant"),
        [("log-level = 'x'", "log.level"), ("max_file_size = 1", "log.max-file-size")],
    )
    def test_what_is_almost_a_key(self, line: str, meant: str, file: Path) -> None:
        found = examined(file, f"{HEAD}[log]\n{line}\n")
        assert at_line(found, 5).text == f"did you mean {meant}?"

    def test_a_mark_of_an_editor_before_it_is_nothing(self, file: Path) -> None:
        for text in (HEAD, "broker_url = 'https://broker:8445'\n"):
            file.write_bytes(b"\xef\xbb\xbf" + text.encode())
            file.chmod(0o640)
            found = read(AgentSettings, file=file, environment={}, flags={})
            assert found.broker_url == "https://broker:8445"
            amended = amend(file.read_text(encoding="utf-8-sig"), {"ca_file": "/ca"})
            replace_file(file, amended)
            assert examine(AgentSettings, file).values["ca_file"] == Path("/ca")

    def test_a_table_that_is_none(self, file: Path) -> None:
        (told, _) = problems(file, "version = '0.1'\nagent = 'x'\n")
        assert "line 2: agent: it is a table" in told

    def test_an_empty_value_is_as_good_as_no_line(self, file: Path) -> None:
        found = settings(file, f"{HEAD}ca_file = ''\ninit_folder = ''\n[log]\ndirectory = ' '\n")
        assert (found.ca_file, found.log_directory) == (None, settings(file, HEAD).log_directory)

    @pytest.mark.parametrize("content", ["[agent", "a = [" * 2000, "version = '0.1'\n\x00"])
    def test_what_is_no_toml(self, content: str, file: Path) -> None:
        with pytest.raises(SetupFailed, match="can't be read"):
            examined(file, content)

    def test_deskfleets_own_file_is_told_apart(self, file: Path) -> None:
        own = settings(file, "broker_url = 'https://a:1,https://b:2'\n")
        assert own.broker_url == "https://a:1,https://b:2"
        assert own.max_concurrent_sessions_per_user == -1


class TestLines:
    def test_of_keys_in_their_tables(self) -> None:
        text = "version='1'\nagent.x = 1\n [ agent ]\n'a' = 1\n\"b\" = '''\nc = 1\n'''\n d.e=1\n"
        assert toml.lines(text) == {
            "version": 1,
            "agent.x": 2,
            "agent": 3,
            "agent.a": 4,
            "agent.b": 5,
            "agent.d.e": 8,
        }

    @given(st.text("[]='\".# \nab\\", max_size=60))
    def test_of_any_text(self, text: str) -> None:
        assert all(line <= text.count("\n") + 1 for line in toml.lines(text).values())


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
NAMES = st.sampled_from([key.name for key in KEYS] + ["zzz"])


@given(
    st.fixed_dictionaries(
        {}, optional={"agent": VALUES | st.dictionaries(NAMES, VALUES), "log": VALUES, "x": VALUES}
    )
)
def test_any_content_has_its_notes(content: dict[str, Any]) -> None:
    result = translate(content, {}, has_log_folder=False, at=AT)
    agent = content.get("agent")
    if isinstance(agent, dict):
        assert {f"agent.{name}" for name in agent} <= {note.key for note in result.notes}
