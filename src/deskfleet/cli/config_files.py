"""Configuration files, made and amended: what `packaging/install` leaves to Python.

    python -m deskfleet.cli.config_files new broker|agent         prints a file of all settings
    python -m deskfleet.cli.config_files set FILE NAME=VALUE ...  changes an agent's file

Laws: a new file changes nothing, all of it is comment. An amended file differs in the lines of what
was set and nowhere else, and is read back before it takes the old one's place, whose owner and mode
it has.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deskfleet.cli.program import failing_well
from deskfleet.configuration.agent_conf import is_agent_conf
from deskfleet.errors import SetupFailed, plain
from deskfleet.settings import AGENT_PORT, AgentSettings, BrokerSettings

KINDS: dict[str, type[BrokerSettings | AgentSettings]] = {
    "broker": BrokerSettings,
    "agent": AgentSettings,
}
OF_THE_UNIT = frozenset({"state", "log_directory"})
"""The service's unit says these, since it lets the program write nowhere else."""
_HEAD = """\
# Settings of the deskfleet {name}: take the # off a line, then: systemctl restart deskfleet-{name}
# The folders of state and logs are in the unit (systemctl cat deskfleet-{name}).
"""
_HEADER = re.compile(r"\s*\[")


def default_file(name: str) -> str:
    """Return a file of the settings of a kind, each with its meaning and default, as comments."""
    texts = [_HEAD.format(name=name)]
    for setting in dataclasses.fields(KINDS[name]):
        if setting.name not in OF_THE_UNIT:
            meaning = setting.metadata["meaning"]
            texts.append(f"# {meaning}\n#{setting.name} = {_toml(setting.default)}".rstrip())
    return "\n\n".join(texts).replace("\n\n\n", "\n\n") + "\n"


def _toml(value: Any) -> str:
    """Return a value as TOML; what has none is left for the administrator to fill in."""
    if value is None:
        return ""
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)


def amend(text: str, values: dict[str, str]) -> str:
    """Return the text of an agent's file with other settings; `agent.conf` keeps its own names."""
    try:
        table = "agent" if is_agent_conf(tomllib.loads(text)) else ""
    except tomllib.TOMLDecodeError as error:
        raise SetupFailed(f"the file can't be read: {error}") from error
    wanted: dict[str, Any] = dict(values)
    if table and "broker_url" in wanted:
        wanted |= _host_and_port(wanted.pop("broker_url"))
    lines = text.splitlines()
    for name, value in wanted.items():
        _set(lines, table, name, value)
    amended = "\n".join(lines) + "\n"
    if not _says(amended, table, wanted):
        raise SetupFailed(f"{', '.join(wanted)} can't be set in a file written like this one")
    return amended


def _host_and_port(url: str) -> dict[str, Any]:
    if "," in url:
        raise SetupFailed("agent.conf has room for one broker: name a load balancer, or use TOML")
    parts = urlsplit(url)
    return {"broker_host": parts.hostname, "broker_port": parts.port or AGENT_PORT}


def _set(lines: list[str], table: str, name: str, value: Any) -> None:
    """Change the line of a setting, or that of its comment, or add one."""
    begin, end = _region(lines, table)
    line = f"{name} = {_toml(value)}"
    for form in (rf"\s*{name}\s*=", rf"\s*#\s*{name}\s*="):
        found = [number for number in range(begin, end) if re.match(form, lines[number])]
        if found:
            lines[found[0]] = line
            return
    lines.insert(begin if table else end, line)


def _region(lines: list[str], table: str) -> tuple[int, int]:
    """Return where the lines of a table are; those before all tables for no name."""
    headers = [number for number, line in enumerate(lines) if _HEADER.match(line)]
    begin = 0
    if table:
        own = [at for at in headers if re.match(rf"\s*\[\s*{table}\s*\]", lines[at])]
        if not own:
            lines.append(f"[{table}]")
            return len(lines), len(lines)
        begin = own[0] + 1
    return begin, next((number for number in headers if number >= begin), len(lines))


def _says(text: str, table: str, wanted: dict[str, Any]) -> bool:
    try:
        said = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False
    place = said.get(table, {}) if table else said
    return all(place.get(name) == value for name, value in wanted.items())


def replace_file(path: Path, text: str) -> None:
    """Write a file in the place of another, with that one's owner and mode."""
    status, draft = path.stat(), path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchown(descriptor, status.st_uid, status.st_gid)
        os.fchmod(descriptor, status.st_mode & 0o7777)
        file.write(text)
    draft.replace(path)


def main(arguments: Sequence[str]) -> None:
    command, subject, *pairs = arguments
    if command == "new":
        sys.stdout.write(default_file(subject))
        return
    path = Path(subject)
    with failing_well():
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise SetupFailed(f"{path} can't be read: {plain(error)}") from error
        replace_file(path, amend(text, dict(pair.split("=", 1) for pair in pairs)))


if __name__ == "__main__":
    main(sys.argv[1:])
