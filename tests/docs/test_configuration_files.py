"""The page of the original's files is true to the tables in the code: each key, each fate."""

from __future__ import annotations

from pathlib import Path

from deskfleet.configuration.agent_conf import KEYS as AGENT_KEYS
from deskfleet.configuration.broker_keys import KEYS as BROKER_KEYS

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "reference" / "configuration-files.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith("| `")]


def test_every_key_is_documented_as_it_is_treated() -> None:
    broker = {f"| `{one.name}` | `{one.setting}` |" for one in BROKER_KEYS if one.setting}
    replaced = {f"| `{one.name}` | {one.instead} |" for one in BROKER_KEYS if not one.setting}
    agent = {f"| `{one.path}` | `{one.setting}` |" for one in AGENT_KEYS}
    assert set(ROWS) == broker | replaced | agent
    assert len(ROWS) == len(set(ROWS))


def test_the_files_that_the_page_names_are_there() -> None:
    for name in ("session-manager-broker.properties", "agent.conf"):
        assert f"](../examples/{name})" in PAGE
        assert (DOCS / "examples" / name).is_file()
