"""What the broker's administrative commands share: their options, and a fleet without its doors.

Each of them works on the store, whether a broker runs or not. What they print is what the original
prints, letter by letter where it is known, since portals read it; `--output json` is for others.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from deskfleet.broker.administration import find_fleet
from deskfleet.cli.output import escaped
from deskfleet.cli.program import failing_well
from deskfleet.settings import BrokerSettings, read

T = TypeVar("T")
P = TypeVar("P")

State = Annotated[Path | None, typer.Option(help="Folder of keys, certificates and store.")]
Store = Annotated[str | None, typer.Option(help="URL of the store, for example sqlite:///FILE.")]
Config = Annotated[
    Path | None, typer.Option(help="TOML file with settings, or session-manager-broker.properties.")
]


class Form(StrEnum):
    TEXT = "text"
    """As the original prints it."""
    JSON = "json"


Output = Annotated[
    Form, typer.Option("--output", help="How to print: as the original does, or as JSON.")
]


def settings_of(
    state: Path | None, store: str | None = None, config: Path | None = None
) -> BrokerSettings:
    return read(
        BrokerSettings,
        file=config,
        environment=os.environ,
        flags={"state": state, "store": store},
    )


def using(
    opened: Callable[[BrokerSettings], AbstractAsyncContextManager[P]],
    state: Path | None,
    store: str | None,
    config: Path | None,
    use: Callable[[P], Awaitable[T]],
) -> T:
    """Use one part of a fleet over its store, whether a broker runs or not; there has to be one."""

    async def main() -> T:
        settings = settings_of(state, store, config)
        find_fleet(settings)
        async with opened(settings) as part:
            return await use(part)

    with failing_well():
        return asyncio.run(main())


def tell(output: Form, text: str, value: Any) -> None:
    """Print the original's text, or a JSON document that says as much or more."""
    if output is Form.JSON:
        echo_json(value)
    else:
        typer.echo(text)


def echo_json(value: Any) -> None:
    typer.echo(escaped(json.dumps(value, indent=2, ensure_ascii=False)))


def original_json(value: Any, margin: str = "") -> str:
    """Return JSON in the layout of the original: `"key" : value`, and `}, {` between objects."""
    if isinstance(value, dict) and value:
        inner = margin + "  "
        rows = [f"{inner}{json.dumps(k)} : {original_json(v, inner)}" for k, v in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{margin}}}"
    if isinstance(value, list) and value:
        return f"[ {', '.join(original_json(one, margin) for one in value)} ]"
    text = escaped(json.dumps(value, ensure_ascii=False))
    return {"[]": "[ ]", "{}": "{ }"}.get(text, text)
