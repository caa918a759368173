"""What an administrator can set: frozen, read once, in a composition root.

Defaults < file < environment (`DESKFLEET_` and the setting's name in capitals) < flags. A file is
TOML with these names, or one of the field's own: `session-manager-broker.properties`, `agent.conf`.
Unknown names are errors with the nearest name (in the field's own files they are notes), a value
has the range that its setting declares, and all problems are reported together. Names follow the
field's configuration files, with `_` for `-`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from deskfleet.configuration import agent_conf, broker_properties, examining
from deskfleet.configuration.examining import NO_LINE, Examined, convert_setting, fields_of
from deskfleet.configuration.notes import Note, Verdict, nearest
from deskfleet.configuration.values import Rule, number, one_of, port, size, urls
from deskfleet.core.pictures import MOST_PIXELS
from deskfleet.errors import SetupFailed

CLIENT_PORT = 8443
DESKTOP_PORT = 8444
AGENT_PORT = 8445
GATEWAY_PORT = 8447

PREFIX = "DESKFLEET_"
ENVIRONMENT = "environment"
LOG_LEVELS = ("error", "warning", "info", "debug")
ROTATIONS = ("daily", "hourly")
SECONDS = 3600.0
"""The most for what happens again and again."""


def default_state() -> Path:
    """Return the XDG state folder of deskfleet."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "deskfleet"


def _setting(default: Any, meaning: str, rule: Rule | None = None) -> Any:
    return field(default=default, metadata={"meaning": meaning, "rule": rule})


def _state(meaning: str) -> Any:
    default = "$XDG_STATE_HOME/deskfleet, or ~/.local/state/deskfleet"
    return field(default_factory=default_state, metadata={"meaning": meaning, "default": default})


def _secret(meaning: str) -> Any:
    return field(default="", repr=False, metadata={"meaning": meaning, "secret": True})


def _log_level() -> Any:
    return _setting("info", "debug, info, warning or error", one_of(*LOG_LEVELS))


def _log_directory(name: str) -> Any:
    return _setting(None, f"folder of {name}; standard error where it isn't set")


def _log_rotation() -> Any:
    return _setting("daily", "daily or hourly: when a log file is put by", one_of(*ROTATIONS))


def _log_max_file_size() -> Any:
    return _setting(10_485_760, "bytes at which a log file is put by earlier", number(1024))


def _log_rotate() -> Any:
    return _setting(9, "log files that are kept when they have been put by", number(0, 9999))


@dataclass(frozen=True, kw_only=True)
class BrokerSettings:
    state: Path = _state("folder of keys, certificates, store")
    store: str = _setting("", "URL of the store; empty for SQLite in the state folder")
    client_host: str = _setting("0.0.0.0", "address that API clients connect to")  # noqa: S104
    client_port: int = _setting(CLIENT_PORT, "port that API clients connect to", port)
    agent_host: str = _setting("0.0.0.0", "address that agents connect to")  # noqa: S104
    agent_port: int = _setting(AGENT_PORT, "port that agents connect to; 0 takes a free one", port)
    advertise: str = _setting("", "host name by which other brokers reach this one")
    enable_authorization: bool = _setting(
        default=True, meaning="false: whoever reaches the port may use the API, without a token"
    )
    enable_authorization_server: bool = _setting(
        default=True, meaning="false: only tokens of registered authorization servers open the API"
    )
    enable_agent_authorization: bool = _setting(
        default=True, meaning="false: an agent enrols without a software statement"
    )
    max_api_requests_per_second: int = _setting(
        1000, "calls of one API client; 0 for no limit; each broker counts for itself", number(0)
    )
    enable_throttling_forwarded_for_header: bool = _setting(
        default=False, meaning="believe the last address in X-Forwarded-For, where it is counted"
    )
    create_sessions_queue_max_size: int = _setting(
        1000, "requests that may wait for a place", number(0)
    )
    create_sessions_queue_max_time_seconds: int = _setting(
        1800, "how long a request waits", number(0)
    )
    create_sessions_number_of_retries_on_failure: int = _setting(
        2, "how often a session that failed to start is placed again", number(0)
    )
    delete_session_duration_seconds: int = _setting(
        3600, "how long DELETED sessions are shown", number(0)
    )
    connect_session_token_duration_minutes: int = _setting(
        60, "life of a connection token", number(1)
    )
    single_use_connection_token: bool = _setting(
        default=False, meaning="true: a connection token opens its session once only"
    )
    enable_gateway: bool = _setting(
        default=False, meaning="true: connection gateways may ask where a session runs"
    )
    gateway_host: str = _setting(
        "0.0.0.0",  # noqa: S104
        "address that connection gateways connect to",
    )
    gateway_port: int = _setting(GATEWAY_PORT, "port that connection gateways connect to", port)
    enable_tls_client_auth_gateway: bool = _setting(
        default=False, meaning="true: a connection gateway must show a certificate"
    )
    gateway_trust_file: Path | None = _setting(
        None, "authorities whose certificates a gateway may show, as PEM or PKCS#12"
    )
    gateway_trust_password: str = _secret("opens that file, where it is PKCS#12")
    seconds_before_deleting_unreachable_dcv_server: int = _setting(
        1800, "when a silent server is shown no longer; its sessions are", number(1)
    )
    seconds_before_deleting_sessions_unreachable_server: int | None = _setting(
        None, "when the sessions of a silent server end; never where it isn't set", number(1)
    )
    session_screenshot_max_width: int = _setting(
        160, "pixels, where a request says nothing", number(1, MOST_PIXELS)
    )
    session_screenshot_max_height: int = _setting(
        100, "pixels, where a request says nothing", number(1, MOST_PIXELS)
    )
    session_screenshot_format: str = _setting("png", "png or jpeg", one_of("png", "jpeg"))
    autorun_file_arguments_max_size: int = _setting(50, "arguments of an autorun file", number(0))
    autorun_file_arguments_max_argument_length: int = _setting(
        150, "characters of one argument", number(0)
    )
    enable_api_yaml: bool = _setting(
        default=True, meaning="serve the description of the API at /dcv-session-manager-api.yaml"
    )
    client_certificate_file: Path | None = _setting(
        None, "certificate for API clients, as PEM or PKCS#12; the fleet's own where it isn't set"
    )
    client_key_file: Path | None = _setting(
        None, "its key as PEM, where the certificate's file doesn't hold it"
    )
    client_key_password: str = _secret("opens the key, or the PKCS#12 file")
    agent_certificate_file: Path | None = _setting(
        None, "certificate for agents and other brokers, likewise"
    )
    agent_key_file: Path | None = _setting(
        None, "its key as PEM, where the certificate's file doesn't hold it"
    )
    agent_key_password: str = _secret("opens the key, or the PKCS#12 file")
    gateway_certificate_file: Path | None = _setting(
        None, "certificate for connection gateways, likewise"
    )
    gateway_key_file: Path | None = _setting(
        None, "its key as PEM, where the certificate's file doesn't hold it"
    )
    gateway_key_password: str = _secret("opens the key, or the PKCS#12 file")
    agent_heartbeat_seconds: float = _setting(
        10.0, "how often an agent beats; silent after three", number(0.05, SECONDS)
    )
    broker_beat_seconds: float = _setting(
        3.0, "how often a broker beats; dead after four", number(0.05, SECONDS)
    )
    poll_seconds: float = _setting(
        0.5, "how often the store is looked at without being poked", number(0.01, SECONDS)
    )
    log_level: str = _log_level()
    log_directory: Path | None = _log_directory("broker.log")
    log_rotation: str = _log_rotation()
    log_max_file_size: int = _log_max_file_size()
    log_rotate: int = _log_rotate()


@dataclass(frozen=True, kw_only=True)
class AgentSettings:
    state: Path = _state("folder of identity and journal")
    broker_url: str = _setting(f"https://localhost:{AGENT_PORT}", "agent port of a broker", urls)
    ca_file: Path | None = _setting(None, "PEM file of the authority that signed the broker")
    tls_strict: bool = _setting(
        default=True, meaning="false: any certificate of a broker will do; for tests"
    )
    software_statement_path: Path | None = _setting(None, "file with what lets this agent enrol")
    driver: str = _setting("xvnc", "what runs the sessions: xvnc, dcv or simulated")
    dcv_root: Path | None = _setting(
        None,
        "path of the `dcv` program, for the driver dcv; where DCV puts it, if it isn't set",
    )
    desktop_host: str = _setting("0.0.0.0", "address that browsers connect to")  # noqa: S104
    desktop_port: int = _setting(DESKTOP_PORT, "port that browsers connect to", port)
    tags_folder: Path | None = _setting(None, "folder of *.toml files with this server's tags")
    base_tags_folder: Path | None = _setting(
        None, "another folder of such files, whose tags those of tags_folder override"
    )
    init_folder: Path | None = _setting(
        None,
        "folder of init files, which session owners must be able to reach; `init` below the state"
        " folder if it isn't set",
    )
    autorun_folder: Path | None = _setting(
        None,
        "folder of autorun files, which session owners must be able to reach; `autorun` below the"
        " state folder if it isn't set",
    )
    max_virtual_sessions: int = _setting(
        -1, "virtual sessions on this server; -1 for no limit", number(-1)
    )
    max_concurrent_sessions_per_user: int = _setting(-1, "the same for one owner", number(-1))
    broker_update_interval: float = _setting(
        0.0, "seconds between reports of the load; 0: with each beat", number(0, SECONDS)
    )
    enable_query_logged_in_users: bool = _setting(
        default=True, meaning="false: who is logged in isn't looked for, and is not reported"
    )
    preferred_network_interface: str = _setting("", "interface whose address is reported")
    allow_root_sessions: bool = _setting(default=False, meaning="let root own sessions")
    geometry: str = _setting("1280x800", "size of a new desktop", size)
    log_level: str = _log_level()
    log_directory: Path | None = _log_directory("agent.log")
    log_rotation: str = _log_rotation()
    log_max_file_size: int = _log_max_file_size()
    log_rotate: int = _log_rotate()


S = TypeVar("S", BrokerSettings, AgentSettings)


def read(
    kind: type[S],
    *,
    file: Path | Examined | None = None,
    environment: Mapping[str, str],
    flags: Mapping[str, Any],
) -> S:
    """Read settings from all sources; flags that are None were not given.

    Raises `SetupFailed` with every problem, a line each.
    """
    return settled(kind, layered(kind, file, environment=environment, flags=flags))


def settled(kind: type[S], found: Examined) -> S:
    """Return the settings that were found; raise `SetupFailed` with every problem, a line each."""
    problems = [problem for note in found.notes if (problem := found.problem(note)) is not None]
    if problems:
        raise SetupFailed("\n".join(problems))
    return kind(**found.values)


def layered(
    kind: type[BrokerSettings | AgentSettings],
    file: Path | Examined | None,
    *,
    environment: Mapping[str, str],
    flags: Mapping[str, Any],
) -> Examined:
    """Lay environment and flags over a file: what they say counts, and the notes say that it does.

    Raises `SetupFailed` only where the file can't be read.
    """
    if file is None:
        file = Examined(Path(), {}, ())
    examined = file if isinstance(file, Examined) else examine(kind, file)
    values, notes = dict(examined.values), list(examined.notes)
    for source, given in _sources(kind, environment, flags):
        notes = [_overridden(note, source) if note.setting in given else note for note in notes]
        for name, value in given.items():
            try:
                values[name] = convert_setting(kind, name, value)
            except ValueError as error:
                notes.append(_wrong(f"{source}: {name}: {error}"))
            except KeyError:
                hint = nearest(name, fields_of(kind))
                notes.append(_wrong(f"{source}: {name} is not a setting{hint}"))
    return dataclasses.replace(examined, values=values, notes=tuple(notes))


def _overridden(note: Note, source: str) -> Note:
    """Return the note of what somebody else says too; a mistake stays one."""
    if note.verdict is Verdict.WRONG:
        return note
    who = f"{PREFIX}{note.setting.upper()}" if source == ENVIRONMENT else "an option"
    text = f"overridden by {who}"
    return dataclasses.replace(note, verdict=Verdict.OVERRIDDEN, text=text, is_urgent=False)


def _wrong(text: str) -> Note:
    return Note(NO_LINE, Verdict.WRONG, text=text)


def examine(kind: type[BrokerSettings | AgentSettings], file: Path) -> Examined:
    """Read a file line by line; what is wrong in it is in the notes.

    Raises `SetupFailed` only where nothing can be read.
    """
    if kind is BrokerSettings:
        original: examining.Original = partial(broker_properties.read, settings=fields_of(kind))
    else:
        original = agent_conf.read
    return examining.examine(kind, file, original)


def describe(kind: type[BrokerSettings | AgentSettings]) -> list[tuple[str, str, str]]:
    """Return name, default and meaning of each setting: the source of the reference page.

    A default is as a TOML file would have it, without quotes; empty where there is none.
    """
    rows = []
    for setting in dataclasses.fields(kind):
        default = setting.metadata.get("default") or _as_in_a_file(setting.default)
        rows.append((setting.name, default, str(setting.metadata["meaning"])))
    return rows


def _as_in_a_file(value: object) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _sources(
    kind: type[BrokerSettings | AgentSettings],
    environment: Mapping[str, str],
    flags: Mapping[str, Any],
) -> list[tuple[str, Mapping[str, Any]]]:
    # Other names with the prefix belong to other programs of the family (the client's, say).
    ours = {f"{PREFIX}{name.upper()}": name for name in fields_of(kind)}
    return [
        (ENVIRONMENT, {ours[name]: value for name, value in environment.items() if name in ours}),
        ("options", {name: value for name, value in flags.items() if value is not None}),
    ]
