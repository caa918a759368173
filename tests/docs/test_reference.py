"""The reference is true to the code: each setting, route, error and failure code is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deskfleet import errors
from deskfleet.broker.service.servers import Code
from deskfleet.broker.web.routes import agent_routes, client_routes, gateway_routes
from deskfleet.settings import AgentSettings, BrokerSettings, describe

DOCS = Path(__file__).parents[2] / "docs"
API = (DOCS / "reference" / "api.md").read_text()
SETTINGS = (DOCS / "reference" / "settings.md").read_text()


class Anything:
    """Stands for the handlers: the table is walked, nothing is called."""

    def __getattr__(self, name: str) -> Any:
        return name


@pytest.mark.parametrize(
    "route",
    [
        f"{route.method} {route.path.replace(':path', '')}"
        for routes in (
            client_routes(*[Anything()] * 3),  # type: ignore[arg-type]
            agent_routes(*[Anything()] * 4),  # type: ignore[arg-type]
            gateway_routes(*[Anything()] * 2),  # type: ignore[arg-type]
        )
        for route in routes
    ],
)
def test_every_route_is_documented(route: str) -> None:
    assert f"`{route}`" in API


@pytest.mark.parametrize("kind", [BrokerSettings, AgentSettings])
def test_every_setting_is_documented(kind: type[BrokerSettings | AgentSettings]) -> None:
    for name, default, meaning in describe(kind):
        assert f"| `{name}` | {default or 'none'} | {meaning} |" in SETTINGS, name


def test_no_setting_is_documented_that_is_gone() -> None:
    known = {name for kind in (BrokerSettings, AgentSettings) for name, _, _ in describe(kind)}
    rows = [line for line in SETTINGS.splitlines() if line.startswith("| `")]
    assert {row.split("`")[1] for row in rows} == known


def _tree(kind: type[errors.DeskfleetError]) -> list[type[errors.DeskfleetError]]:
    ours = [below for below in kind.__subclasses__() if below.__module__ == errors.__name__]
    return [kind, *(one for below in ours for one in _tree(below))]


def test_every_error_code_is_documented_and_stands_in_the_drawn_tree() -> None:
    drawn = errors.__doc__ or ""
    for kind in _tree(errors.DeskfleetError):
        assert f"`{kind.code}`" in API, kind.code
        assert kind.__name__ in drawn


def test_every_failure_code_is_documented() -> None:
    assert all(f"`{code}`" in API for code in Code)
