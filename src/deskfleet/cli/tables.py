"""Tables of the API's answers, for people.

Laws: ids are never cut, as they are what the next command needs: on a narrow terminal the least
needed columns go instead. Times are relative; all text is cleaned, and none is read as markup.
Colour only where rich finds a terminal (and no NO_COLOR).

Must not: decide what is shown (that is the answer's).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TextIO, TypeAlias

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from deskfleet.cli.output import clean
from deskfleet.client import shapes
from deskfleet.client.links import link

_STYLES = {
    "READY": "green",
    "AVAILABLE": "green",
    "CREATING": "yellow",
    "DELETING": "yellow",
    "UNKNOWN": "red",
    "UNAVAILABLE": "red",
    "DELETED": "dim",
}

_COLOURED = ("State", "Availability")
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
_BINARY_STEP = 1024

_MOST_COLUMNS = 1_000
"""Of a table that is no terminal's: rows stay on one line, for grep."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table before it is fitted; the first column holds ids."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[object]]
    dispensable: tuple[str, ...] = ()
    """Columns that may go on a narrow terminal, the first one first."""
    nothing: str = ""
    """What is said of no rows."""

    def table(self, without: Sequence[str] = ()) -> Table:
        kept = [index for index, name in enumerate(self.columns) if name not in without]
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
        for index in kept:
            table.add_column(self.columns[index], no_wrap=index == 0, overflow="fold")
        for row in self.rows:
            table.add_row(*(_cell(self.columns[index], row[index]) for index in kept))
        return table


def write(answer: Any, file: TextIO, *, now: datetime) -> None:
    """Write an answer as a table, or as a card where it is about one thing."""
    width = None if file.isatty() else _MOST_COLUMNS
    console = Console(file=file, highlight=False, width=width)
    if isinstance(answer, shapes.GetSessionConnectionDataResponse):
        for label, value in _connection(answer):
            console.print(Text(f"{label:<8} {clean(value)}"), soft_wrap=True)
        return
    sheet = _SHEETS[type(answer)](answer, now)
    if sheet.rows:
        _print(sheet, console)
    elif sheet.nothing:
        console.print(Text(sheet.nothing, style="dim"))


def _print(sheet: Sheet, console: Console) -> None:
    """Print what fits; where not even the least does, the terminal breaks the lines itself."""
    for count in range(len(sheet.dispensable) + 1):
        table = sheet.table(without=sheet.dispensable[:count])
        wanted = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
        if wanted <= console.width:
            break
    else:
        first = max(len(str(row[0])) for row in sheet.rows)
        console.width = max(console.width, min(wanted, first + console.width))
    console.print(table)


def since(then: datetime | None, now: datetime) -> str:
    """Return how long ago something was, in its largest unit."""
    if then is None:
        return ""
    seconds = int((now - then.astimezone(UTC)).total_seconds())
    for length, unit in _UNITS:
        if seconds >= length:
            return f"{seconds // length} {unit} ago"
    return "now"


def size(count: int) -> str:
    """Return a number of bytes in its largest unit."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < _BINARY_STEP:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= _BINARY_STEP
    return f"{amount:.1f} TiB"


def _cell(column: str, value: object) -> Text:
    shown = "" if value is None else clean(str(value))
    return Text(shown, _STYLES.get(shown.split(" ")[0], "") if column in _COLOURED else "")


def _sessions(sessions: Sequence[shapes.Session], now: datetime) -> Sheet:
    explained = any(session.state_reason for session in sessions)
    columns = ("Session", "Name", "Owner", "Type", "State", "Server", "Clients", "Created")
    return Sheet(
        columns=(*columns, "Reason") if explained else columns,
        rows=[_session_row(session, now) for session in sessions],
        dispensable=("Clients", "Type", "Server", "Created"),
        nothing="no sessions",
    )


def _session_row(session: shapes.Session, now: datetime) -> tuple[object, ...]:
    server = session.server
    return (
        session.id,
        session.name,
        session.owner,
        session.type,
        session.state,
        (server.hostname or server.ip or server.id) if server else "",
        session.num_of_connections,
        since(session.creation_time, now),
        session.state_reason,
    )


def _servers(servers: Sequence[shapes.Server]) -> Sheet:
    columns = ("Server", "Host", "Address", "Availability", "Sessions", "Load", "Memory", "System")
    return Sheet(
        columns=(*columns, "Tags"),
        rows=[_server_row(server) for server in servers],
        dispensable=("Tags", "System", "Memory", "Load", "Address", "Sessions"),
        nothing="no servers",
    )


def _server_row(server: shapes.Server) -> tuple[object, ...]:
    return (
        server.id,
        server.hostname,
        server.ip,
        " ".join(part for part in (server.availability, server.unavailability_reason) if part),
        _session_counts(server),
        _load(server.host),
        _memory(server.host),
        _system(server.host),
        " ".join(f"{tag.key}={tag.value}" for tag in server.tags),
    )


def _session_counts(server: shapes.Server) -> str:
    counts = (
        (server.virtual_session_count, "virtual"),
        (server.console_session_count, "console"),
    )
    return ", ".join(f"{count} {kind}" for count, kind in counts if count) or "0"


def _load(host: shapes.Host | None) -> str:
    load = host.cpu_load_average if host else None
    cpus = host.cpu_info.number_of_cpus if host and host.cpu_info else None
    if load is None or load.one_minute is None:
        return ""
    return f"{load.one_minute:.1f}" + (f" of {cpus}" if cpus else "")


def _memory(host: shapes.Host | None) -> str:
    if host is None or host.memory is None:
        return ""
    return f"{size(host.memory.used_bytes)} of {size(host.memory.total_bytes)}"


def _system(host: shapes.Host | None) -> str:
    system = host.os if host else None
    if system is None:
        return ""
    return " ".join(part for part in (system.name or system.family, system.version) if part)


def _screenshots(answer: shapes.GetSessionScreenshotsResponse, now: datetime) -> Sheet:
    rows = [
        (
            done.session_screenshot.session_id,
            image.format,
            size(len(image.data)),
            "primary" if image.primary else "",
            since(image.creation_time, now),
        )
        for done in answer.successful_list
        for image in done.session_screenshot.images
    ]
    return Sheet(("Session", "Format", "Size", "Screen", "Taken"), rows)


def _connection(answer: shapes.GetSessionConnectionDataResponse) -> list[tuple[str, str]]:
    session = answer.session
    return [
        ("Session", session.id),
        ("Name", session.name),
        ("Owner", session.owner),
        ("State", session.state),
        ("Link", link(answer)),
    ]


_Make: TypeAlias = Callable[[Any, datetime], Sheet]

_SHEETS: dict[type, _Make] = {
    shapes.DescribeSessionsResponse: lambda answer, now: _sessions(answer.sessions, now),
    # Where nothing was created the reason is told elsewhere.
    shapes.CreateSessionsResponse: lambda answer, now: replace(
        _sessions(answer.successful_list, now), nothing=""
    ),
    shapes.DescribeServersResponse: lambda answer, _: _servers(answer.servers),
    shapes.GetSessionScreenshotsResponse: _screenshots,
    shapes.DeleteSessionsResponse: lambda answer, _: Sheet(
        ("Session", "State"), [(done.session_id, done.state) for done in answer.successful_list]
    ),
    shapes.UpdateSessionPermissionsResponse: lambda answer, _: Sheet(
        ("Session", "Permissions"), [(done.session_id, "set") for done in answer.successful_list]
    ),
    shapes.OpenServersResponse: lambda answer, _: Sheet(
        ("Server", "Result"), [(done.server_id, "open") for done in answer.successful_list]
    ),
    shapes.CloseServersResponse: lambda answer, _: Sheet(
        ("Server", "Result"), [(done.server_id, "closed") for done in answer.successful_list]
    ),
}
