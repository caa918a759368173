"""`agent.conf` as settings of an agent: TOML with `version`, `[agent]` and `[log]`.

Laws: every key of the file has a note. Where the file says nothing, its format's own defaults
count, and not those of deskfleet: the sessions are those of a DCV server, the folders are those of
the original, and a user has one session on a server. A key that nobody knows is a note and not a
mistake, and so is a missing `version`.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deskfleet.configuration import toml
from deskfleet.configuration.files import Content
from deskfleet.configuration.notes import Given, Note, Translation, Verdict
from deskfleet.machine import here
from deskfleet.machine.folders import Folders

VERSION = "0.1"
PORT = 8445
DRIVER = "dcv"
"""Whoever has the original's file has DCV servers, and nothing that it could say of it."""
_NO_VERSION = f"there is no version = '{VERSION}': taken as such"
_NO_HOST = "there is no host name of a broker"
_EMPTY = "it is empty: the default stays"
_HOST = re.compile(r"[^\s/@,?#:\[\]]+")


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a table, and the setting that honours it."""

    table: str
    name: str
    setting: str

    @property
    def path(self) -> str:
        return f"{self.table}.{self.name}" if self.table else self.name


KEYS: tuple[Key, ...] = (
    Key("agent", "broker_host", "broker_url"),
    Key("agent", "broker_port", "broker_url"),
    Key("agent", "ca_file", "ca_file"),
    Key("agent", "tls_strict", "tls_strict"),
    Key("agent", "init_folder", "init_folder"),
    Key("agent", "autorun_folder", "autorun_folder"),
    Key("agent", "software_statement_path", "software_statement_path"),
    Key("agent", "tags_folder", "tags_folder"),
    Key("agent", "max_virtual_sessions", "max_virtual_sessions"),
    Key("agent", "max_concurrent_sessions_per_user", "max_concurrent_sessions_per_user"),
    Key("agent", "broker_update_interval", "broker_update_interval"),
    # The older name first: where both are given, the newer one wins.
    Key("agent", "enable_logged_users_windows", "enable_query_logged_in_users"),
    Key("agent", "enable_query_logged_in_users", "enable_query_logged_in_users"),
    Key("agent", "preferred_network_interface", "preferred_network_interface"),
    Key("agent", "dcv_root", "dcv_root"),
    Key("log", "level", "log_level"),
    Key("log", "directory", "log_directory"),
    Key("log", "rotation", "log_rotation"),
    Key("log", "max-file-size", "log_max_file_size"),
    Key("log", "rotate", "log_rotate"),
)
_BY_PATH = {key.path: key for key in KEYS}


def read(content: Content) -> Translation | None:
    """Read the file where it is one, by its shape. Raises `ValueError` for what is no TOML."""
    text = toml.decode(content.text)
    said = toml.parse(text)
    if not is_agent_conf(said):
        return None
    at = here.folders(os.environ)
    return translate(said, toml.lines(text), has_log_folder=at.log_folder.is_dir(), at=at)


def is_agent_conf(content: Mapping[str, Any]) -> bool:
    """Say whether TOML has the shape of this file: deskfleet's own has neither of these names."""
    return bool(content.keys() & {"version", "agent", "log"})


def translate(
    content: Mapping[str, Any], lines: Mapping[str, int], *, has_log_folder: bool, at: Folders
) -> Translation:
    """Return what the file says, in settings; `lines` says where each key stands.

    Without a `log.directory` the log goes to the original's folder where there is one, else to
    standard error.
    """
    result = Translation()
    _defaults(result, at, has_log_folder=has_log_folder)
    if str(content.get("version", "")) != VERSION:
        text = _NO_VERSION if "version" not in content else f"only {VERSION} is known"
        line = lines.get("version")
        result.notes.append(Note("version", Verdict.UNKNOWN, line, text=text, is_urgent=True))
    given = _given(content, result, lines)
    for path, value in given.items():
        if path not in {"agent.broker_host", "agent.broker_port"}:
            _use(_BY_PATH[path], value, given, lines, result)
    _broker(given, lines, result)
    _tags(result, at)
    return result


def _defaults(result: Translation, at: Folders, *, has_log_folder: bool) -> None:
    result.default("(driver)", "driver", DRIVER)
    rows: list[tuple[str, Any]] = [
        ("agent.init_folder", at.init_folder),
        ("agent.autorun_folder", at.autorun_folder),
        ("agent.tags_folder", at.tags_folder),
        ("agent.max_concurrent_sessions_per_user", 1),
        ("agent.broker_update_interval", 30),
    ]
    if has_log_folder:
        rows.append(("log.directory", at.log_folder))
    for path, value in rows:
        if value is not None:
            result.default(path, _BY_PATH[path].setting, value)


def _given(
    content: Mapping[str, Any], result: Translation, lines: Mapping[str, int]
) -> dict[str, Any]:
    """Return the values of the keys that are known, in the table's order; note all others."""
    found: dict[str, Any] = {}
    for table, keys in content.items():
        if table == "version":
            continue
        if table not in {"agent", "log"}:
            result.unknown(table, lines.get(table), ("version", "agent", "log"))
        elif not isinstance(keys, Mapping):
            text = f"it is a table: [{table}] in a line of its own, then its keys"
            result.notes.append(Note(table, Verdict.WRONG, lines.get(table), text=text))
        else:
            for name, value in keys.items():
                path = f"{table}.{name}"
                if path in _BY_PATH:
                    found[path] = value
                else:
                    result.unknown(path, lines.get(path), _BY_PATH)
    return {key.path: found[key.path] for key in KEYS if key.path in found}


def _use(
    key: Key,
    value: Any,
    given: Mapping[str, Any],
    lines: Mapping[str, int],
    result: Translation,
) -> None:
    line, shown = lines.get(key.path), _shown(value)
    if isinstance(value, str) and not value.strip():
        note = Note(key.path, Verdict.IGNORED, line, shown, key.setting, _EMPTY)
        result.notes.append(note)
        return
    newer = "agent.enable_query_logged_in_users"
    if key.setting == _BY_PATH[newer].setting and key.path != newer and newer in given:
        text = f"{newer} counts"
        result.notes.append(Note(key.path, Verdict.OVERRIDDEN, line, shown, key.setting, text))
        return
    default = result.values.get(key.setting)
    if default is not None:
        result.notes.remove(default.note)
    result.use(key.setting, value, Note(key.path, Verdict.USED, line, shown, key.setting))


def _broker(given: Mapping[str, Any], lines: Mapping[str, int], result: Translation) -> None:
    """Make one URL of host and port."""
    host, port = given.get("agent.broker_host", ""), given.get("agent.broker_port", PORT)
    notes = {
        path: Note(path, Verdict.USED, lines.get(path), _shown(value), "broker_url")
        for path, value in given.items()
        if path in {"agent.broker_host", "agent.broker_port"}
    }
    wrong = _wrong_broker(host, port)
    for path, text in wrong.items():
        verdict = Verdict.MISSING if text is _NO_HOST else Verdict.WRONG
        notes[path] = Note(path, verdict, lines.get(path), "", "broker_url", text)
    result.notes += notes.values()
    if not wrong:
        name = host.strip()
        url = f"https://[{name.strip('[]')}]:{port}" if ":" in name else f"https://{name}:{port}"
        result.values["broker_url"] = Given(url, notes["agent.broker_host"])


def _wrong_broker(host: Any, port: Any) -> dict[str, str]:
    wrong = {}
    if isinstance(host, str) and not host.strip():
        wrong["agent.broker_host"] = _NO_HOST
    elif not isinstance(host, str) or not _is_host(host.strip()):
        wrong["agent.broker_host"] = f"{_shown(host)} is not a host name or address"
    is_number = isinstance(port, int) and not isinstance(port, bool)
    if not is_number or not 1 <= port <= 65_535:
        wrong["agent.broker_port"] = f"{_shown(port)} is not a port: 1 to 65535 are"
    return wrong


def _is_host(text: str) -> bool:
    if ":" not in text:
        return _HOST.fullmatch(text) is not None
    try:
        ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _tags(result: Translation, at: Folders) -> None:
    """Read the files beside the tags folder too: documentation and package disagree where it is.

    Those in the folder itself win. A folder elsewhere stands alone.
    """
    given = result.values["tags_folder"].value
    if isinstance(given, str | Path) and Path(given) == at.tags_folder:
        result.default("(tags beside it)", "base_tags_folder", at.tags_folder.parent)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)[:200]
