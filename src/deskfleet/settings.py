"""What an administrator can set: frozen, read once, in a composition root.

Defaults < TOML file < environment (`DESKFLEET_` and the setting's name in capitals) < flags.
Unknown names are errors with the nearest name, and all problems are reported together. Names
follow the field's configuration files, with `_` for `-`.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from deskfleet.errors import SetupFailed

CLIENT_PORT = 8443
DESKTOP_PORT = 8444
AGENT_PORT = 8445

PREFIX = "DESKFLEET_"


def default_state() -> Path:
    """Return the XDG state folder of deskfleet."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "deskfleet"


def _setting(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True, kw_only=True)
class BrokerSettings:
    state: Path = field(
        default_factory=default_state, metadata={"meaning": "folder of keys, certificates, store"}
    )
    store: str = _setting("", "URL of the store; empty for SQLite in the state folder")
    client_host: str = _setting("0.0.0.0", "address that API clients connect to")  # noqa: S104
    client_port: int = _setting(CLIENT_PORT, "port that API clients connect to")
    agent_host: str = _setting("0.0.0.0", "address that agents connect to")  # noqa: S104
    agent_port: int = _setting(AGENT_PORT, "port that agents connect to; 0 takes a free one")
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
        1000, "calls of one API client; 0 for no limit; each broker counts for itself"
    )
    enable_throttling_forwarded_for_header: bool = _setting(
        default=False, meaning="believe the last address in X-Forwarded-For, where it is counted"
    )
    create_sessions_queue_max_size: int = _setting(1000, "requests that may wait for a place")
    create_sessions_queue_max_time_seconds: int = _setting(1800, "how long a request waits")
    create_sessions_number_of_retries_on_failure: int = _setting(
        2, "how often a session that failed to start is placed again"
    )
    delete_session_duration_seconds: int = _setting(3600, "how long DELETED sessions are shown")
    connect_session_token_duration_minutes: int = _setting(60, "life of a connection token")
    seconds_before_deleting_unreachable_dcv_server: int = _setting(
        1800, "when a silent server without sessions is forgotten"
    )
    seconds_before_deleting_sessions_unreachable_server: int | None = _setting(
        None, "when the sessions of a silent server end; never where it isn't set"
    )
    session_screenshot_max_width: int = _setting(160, "pixels, where a request says nothing")
    session_screenshot_max_height: int = _setting(100, "pixels, where a request says nothing")
    session_screenshot_format: str = _setting("png", "png or jpeg")
    autorun_file_arguments_max_size: int = _setting(50, "arguments of an autorun file")
    autorun_file_arguments_max_argument_length: int = _setting(150, "characters of one argument")
    agent_heartbeat_seconds: float = _setting(10.0, "how often an agent beats; silent after three")
    broker_beat_seconds: float = _setting(3.0, "how often a broker beats; dead after four")
    poll_seconds: float = _setting(0.5, "how often the store is looked at without being poked")


@dataclass(frozen=True, kw_only=True)
class AgentSettings:
    state: Path = field(
        default_factory=default_state, metadata={"meaning": "folder of identity and journal"}
    )
    broker_url: str = _setting(f"https://localhost:{AGENT_PORT}", "agent port of a broker")
    ca_file: Path | None = _setting(None, "PEM file of the authority that signed the broker")
    software_statement_path: Path | None = _setting(None, "file with what lets this agent enrol")
    driver: str = _setting("xvnc", "what runs the sessions: xvnc or simulated")
    desktop_host: str = _setting("0.0.0.0", "address that browsers connect to")  # noqa: S104
    desktop_port: int = _setting(DESKTOP_PORT, "port that browsers connect to")
    tags_folder: Path | None = _setting(None, "folder of *.toml files with this server's tags")
    init_folder: Path | None = _setting(None, "folder of init files")
    autorun_folder: Path | None = _setting(None, "folder of autorun files")
    max_virtual_sessions: int = _setting(-1, "virtual sessions on this server; -1 for no limit")
    max_concurrent_sessions_per_user: int = _setting(-1, "the same for one owner")
    preferred_network_interface: str = _setting("", "interface whose address is reported")
    allow_root_sessions: bool = _setting(default=False, meaning="let root own sessions")
    geometry: str = _setting("1280x800", "size of a new desktop")


S = TypeVar("S", BrokerSettings, AgentSettings)


def read(
    kind: type[S],
    *,
    file: Path | None = None,
    environment: Mapping[str, str],
    flags: Mapping[str, Any],
) -> S:
    """Read settings from all sources; flags that are None were not given.

    Raises `SetupFailed` with every problem, a line each.
    """
    problems: list[str] = []
    values: dict[str, Any] = {}
    hints = get_type_hints(kind)
    for source, given in _sources(file, environment, flags, hints):
        for name, value in given.items():
            if name not in hints:
                problems.append(f"{source}: {name} is not a setting{_nearest(name, hints)}")
                continue
            try:
                values[name] = _convert(value, hints[name])
            except ValueError as error:
                problems.append(f"{source}: {name}: {error}")
    if problems:
        raise SetupFailed("\n".join(problems))
    return kind(**values)


def describe(kind: type[BrokerSettings | AgentSettings]) -> list[tuple[str, str, str]]:
    """Return name, default and meaning of each setting: the source of the reference page."""
    rows = []
    for setting in dataclasses.fields(kind):
        default = "" if setting.default is dataclasses.MISSING else str(setting.default)
        rows.append((setting.name, default, str(setting.metadata["meaning"])))
    return rows


def _sources(
    file: Path | None,
    environment: Mapping[str, str],
    flags: Mapping[str, Any],
    known: Mapping[str, Any],
) -> list[tuple[str, Mapping[str, Any]]]:
    sources: list[tuple[str, Mapping[str, Any]]] = []
    if file is not None:
        try:
            sources.append((str(file), tomllib.loads(file.read_text())))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise SetupFailed(f"{file} can't be read: {error}") from error
    # Other names with the prefix belong to other programs of the family (the client's, say).
    ours = {f"{PREFIX}{name.upper()}": name for name in known}
    sources.append(
        ("environment", {ours[name]: value for name, value in environment.items() if name in ours})
    )
    sources.append(("flags", {name: value for name, value in flags.items() if value is not None}))
    return sources


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _convert(value: Any, kind: Any) -> Any:
    kinds = [part for part in get_args(kind) if part is not type(None)] or [kind]
    wanted = kinds[0]
    if wanted is bool:
        return _truth(value)
    if wanted in {int, float} and isinstance(value, bool):
        raise ValueError(f"{value} is not a number")
    if wanted is int and isinstance(value, float):
        raise ValueError(f"{value} is not a whole number")
    if wanted is str and not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    try:
        return wanted(value)
    except TypeError as error:
        raise ValueError(f"{value!r} is not a {wanted.__name__}") from error


def _truth(value: Any) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ValueError(f"{value!r} is neither true nor false")
