"""`deskfleet broker …`: the software statements by which agents enrol."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from deskfleet.broker import administration
from deskfleet.broker import main as broker_main
from deskfleet.broker.service.statements import Statements, StatementView
from deskfleet.cli.over_store import (
    Config,
    Form,
    Output,
    State,
    Store,
    original_json,
    tell,
    using,
)

T = TypeVar("T")

Statement = Annotated[
    str,
    typer.Option(
        help="The statement, or its id, which is no secret: others can see a command's options."
    ),
]


def generate_software_statement(
    output: Output = Form.TEXT,
    state: State = None,
    store: Store = None,
    config: Config = None,
) -> None:
    """Print a statement that lets agents enrol."""
    statement = using(
        broker_main.access_only,
        state,
        store,
        config,
        lambda access: access.generate_software_statement(),
    )
    tell(output, f"software-statement:\n{statement}", {"software-statement": statement})


def describe_software_statements(
    output: Output = Form.TEXT,
    state: State = None,
    store: Store = None,
    config: Config = None,
) -> None:
    """List the software statements: secrets, as long as they are active. JSON has their ids, too.

    One that was made before texts were kept shows its id in place of the text.
    """
    found = _with_statements(state, store, config, lambda statements: statements.listed())
    text = original_json([_as_the_original(view) for view in found])
    tell(output, f"Software Statements\n{text}", [_whole(view) for view in found])


def deactivate_software_statement(
    software_statement: Statement,
    output: Output = Form.TEXT,
    state: State = None,
    store: Store = None,
    config: Config = None,
) -> None:
    """Let no more agents enrol by a statement; those that have stay enrolled."""
    given = software_statement
    _with_statements(state, store, config, lambda one: one.deactivate(given))
    shown = {"software-statement": given, "is-active": False}
    tell(output, f"Software statement {given} deactivated", shown)


def activate_software_statement(
    software_statement: Statement,
    output: Output = Form.TEXT,
    state: State = None,
    store: Store = None,
    config: Config = None,
) -> None:
    """Let agents enrol again by a statement that was deactivated."""
    given = software_statement
    _with_statements(state, store, config, lambda one: one.activate(given))
    shown = {"software-statement": given, "is-active": True}
    tell(output, f"Software statement {given} activated", shown)


def _as_the_original(view: StatementView) -> dict[str, Any]:
    statement = view.statement
    return {
        "software-statement": view.text or statement.id,
        "issued-at": statement.issued_at.astimezone(UTC).strftime("%Y.%m.%d %H:%M:%S %z"),
        "is-active": "true" if statement.active else "false",
    }


def _whole(view: StatementView) -> dict[str, Any]:
    """Show all of a statement; the text is null where it wasn't kept."""
    statement = view.statement
    return {
        "id": statement.id,
        "software-statement": view.text,
        "issued-at": statement.issued_at.isoformat(),
        "is-active": statement.active,
    }


def _with_statements(
    state: Path | None,
    store: str | None,
    config: Path | None,
    use: Callable[[Statements], Awaitable[T]],
) -> T:
    return using(administration.statements_only, state, store, config, use)
