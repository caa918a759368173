"""What leaves the commands: JSON or tables, progress, warnings, and the return codes.

Laws: JSON is the API's own answer, PascalCase and pretty-printed. Nothing that a server or another
user wrote reaches a terminal with control characters in it. Results go to stdout, everything else
to stderr, so that a pipe sees results alone; colour and spinners are for terminals alone.

Must not: ask a broker anything, or print a secret other than a connection link that was asked for.
"""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from typing import Any, Protocol, TextIO

import msgspec
import typer

from deskfleet.client.problems import CredentialsRefused, Refused
from deskfleet.errors import DeskfleetError, Invalid, SetupFailed


class ExitCode(IntEnum):
    """The return codes of all commands; those that `dcvsm` has too mean the same."""

    OK = 0
    OPTIONS = 2
    """The command line can't be read."""
    INTERRUPTED = 130
    VALUE = 252
    """A value is wrong."""
    SETUP = 253
    """The environment, the configuration or the credentials are no good."""
    SERVICE = 254
    """The broker answered with an error, for the whole request or a part of it."""
    OTHER = 255


EXIT_CODES: tuple[tuple[type[DeskfleetError], ExitCode], ...] = (
    (SetupFailed, ExitCode.SETUP),
    (CredentialsRefused, ExitCode.SETUP),
    (Refused, ExitCode.SERVICE),
    (Invalid, ExitCode.VALUE),
    (DeskfleetError, ExitCode.OTHER),
)
"""The first that fits counts."""


def exit_code(error: DeskfleetError) -> ExitCode:
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))


class Format(StrEnum):
    JSON = "json"
    TABLE = "table"


class Failed(Protocol):
    """A part of a batch that the broker refused."""

    @property
    def subject(self) -> str: ...

    @property
    def failure_reason(self) -> str: ...


class Page(Protocol):
    @property
    def next_token(self) -> str | None: ...


class BatchAnswer(Protocol):
    @property
    def unsuccessful_list(self) -> Sequence[Failed]: ...


_ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f]).*?(?:\x07|\x1b\\|\x9c|$)"  # OSC and its like
    r"|\x1b[ -/]*[0-~]?",
    re.DOTALL,
)
_SPACE = re.compile(r"[\t\n\v\f\r\x85\u2028\u2029]+")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""C0, C1, and what turns the direction of writing; never part of JSON's own syntax on one line."""


def clean(text: str) -> str:
    """Return one line without escape sequences, control characters and changes of direction."""
    return _UNSAFE.sub("", _SPACE.sub(" ", _ESCAPE_SEQUENCE.sub("", text)))


def as_json(answer: Any) -> str:
    """Print an answer as the API spells it; what it leaves out is left out."""
    members = _plain(msgspec.to_builtins(answer, builtin_types=(datetime, bytes)))
    return escaped(json.dumps(members, indent=2, ensure_ascii=False))


def escaped(document: str) -> str:
    """Return the same JSON, of one or more lines, without characters that a terminal obeys."""
    lines = document.split("\n")
    return "\n".join(_UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", line) for line in lines)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(member) for key, member in value.items() if member is not None}
    if isinstance(value, list | tuple):
        return [_plain(member) for member in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat("T", "milliseconds").replace("+00:00", "Z")
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value


class Output:
    def __init__(
        self,
        format: Format | None = None,
        *,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Without a format: tables on a terminal, JSON for programs."""
        self._stdout = stdout or sys.stdout
        self._stderr = stderr or sys.stderr
        self._now = now
        self.format = format or (Format.TABLE if self._stdout.isatty() else Format.JSON)

    def show(self, answer: Any) -> None:
        """Print an answer of the API."""
        if self.format is Format.JSON:
            self._stdout.write(as_json(answer) + "\n")
            return
        # rich is only loaded for those who look at a table.
        from deskfleet.cli import tables  # noqa: PLC0415

        tables.write(answer, self._stdout, now=self._now())

    def line(self, text: str) -> None:
        """Print a result that is one line of text."""
        self._stdout.write(clean(text) + "\n")

    def tell(self, text: str) -> None:
        """Tell a person something that is not the result."""
        self._stderr.write(f"deskfleet: {clean(text)}\n")

    def failure(self, text: str) -> typer.Exit:
        """Tell why the broker's answer isn't what was asked for; return what ends the command."""
        self.tell(text)
        return typer.Exit(ExitCode.SERVICE)

    def show_page(self, answer: Page) -> None:
        """Print a page; people are told how to get the next one."""
        self.show(answer)
        if answer.next_token and self.format is Format.TABLE:
            self.tell(f"there are more: --next-token {answer.next_token}")

    def finish(self, answer: BatchAnswer) -> None:
        """Print a batch's answer; the command ends with an error if any part of it failed."""
        self.show(answer)
        self.check(answer)

    def check(self, answer: BatchAnswer) -> None:
        """Tell what the broker refused, and end the command if it refused anything."""
        for failed in answer.unsuccessful_list:
            self.tell(": ".join(part for part in (failed.subject, failed.failure_reason) if part))
        if answer.unsuccessful_list:
            raise typer.Exit(ExitCode.SERVICE)

    @contextmanager
    def spinner(self, text: str) -> Iterator[Callable[[str], None]]:
        """Show on a terminal that something is awaited; the value changes the text."""
        if not self._stderr.isatty():
            yield lambda _: None
            return
        from rich.console import Console  # noqa: PLC0415 (as in show)
        from rich.text import Text  # noqa: PLC0415

        console = Console(file=self._stderr)
        shape = "line" if console.options.ascii_only else "dots"
        with console.status(Text(clean(text)), spinner=shape) as status:
            yield lambda now: status.update(Text(clean(now)))
