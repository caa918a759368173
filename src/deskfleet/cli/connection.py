"""Where a command finds its broker, and what every command that speaks to it is given.

Flags come before the environment, and that before `client.json` in the state folder, which
`deskfleet up` writes. Laws: the file's credentials and certificate authority are for the file's
own broker and are never shown to another one. A password is read from a file or the environment,
never from an option, where others could see it.

Must not: speak to the broker.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec, get_type_hints

import msgspec
import typer

from deskfleet.cli.output import Format, Output
from deskfleet.client.tokens import AccessToken, ClientPassword, Credentials
from deskfleet.errors import SetupFailed, plain
from deskfleet.settings import default_state

if TYPE_CHECKING:
    from deskfleet.client.api import Client

P = ParamSpec("P")

CLIENT_FILE = "client.json"
UNKNOWN_BROKER = (
    "no broker is known here: start one with `deskfleet up`, or give --broker-url and "
    "DCV_SM_CLIENT_ID / DCV_SM_CLIENT_PASSWORD"
)
UNCHECKED = (
    "warning: the broker's certificate is not checked; whoever is between here and there can "
    "read the credentials and every desktop"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """What was said on the command line about the broker."""

    broker_url: str | None = None
    ca_file: Path | None = None
    no_verify_ssl: bool = False
    state: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    url: str
    credentials: Credentials
    ca_file: Path | None = None
    """None for the system's authorities."""
    verify: bool = True

    def open(self) -> Client:
        # httpx takes longer to load than everything else; --help does without it.
        from deskfleet.client.api import Client  # noqa: PLC0415

        return Client(
            self.url, credentials=self.credentials, ca_file=self.ca_file, verify=self.verify
        )


class ClientFile(msgspec.Struct, frozen=True, kw_only=True):
    """`client.json`: how the user of this state folder reaches the broker that runs from it."""

    url: str
    client_id: str
    client_password_file: str
    """Relative to the state folder, or absolute; so is `ca_file`."""
    ca_file: str | None = None
    desktops_url: str | None = None


@dataclass(frozen=True, slots=True)
class Invocation:
    """One run of one command."""

    client: Client
    output: Output


def find(flags: Flags, environment: Mapping[str, str]) -> Connection:
    """Return the connection that flags, environment and state folder describe together.

    Raises `SetupFailed` where none is, or a part of it is missing.
    """
    state = flags.state or _path(environment, "DESKFLEET_STATE") or default_state()
    file = _read_file(state)
    url = flags.broker_url or environment.get("DESKFLEET_BROKER_URL") or (file and file.url)
    if not url:
        raise SetupFailed(f"{UNKNOWN_BROKER} ({state / CLIENT_FILE} isn't there)")
    if file is not None and file.url.rstrip("/") != url.rstrip("/"):
        file = None
    ca_file = flags.ca_file or _path(environment, "DESKFLEET_CA_FILE")
    if ca_file is None and file is not None and file.ca_file is not None:
        ca_file = state / file.ca_file
    return Connection(
        url=url,
        credentials=_credentials(environment, file, state),
        ca_file=ca_file,
        verify=not flags.no_verify_ssl,
    )


def _credentials(
    environment: Mapping[str, str], file: ClientFile | None, state: Path
) -> Credentials:
    token = environment.get("DCV_SM_OAUTH2_TOKEN")
    if token:
        return AccessToken(token)
    token_url = environment.get("DCV_SM_AUTH_SERVER_URL") or None
    client_id = environment.get("DCV_SM_CLIENT_ID")
    password = environment.get("DCV_SM_CLIENT_PASSWORD")
    if client_id and password:
        return ClientPassword(client_id, password, token_url)
    if client_id or password:
        lacking = "DCV_SM_CLIENT_PASSWORD" if client_id else "DCV_SM_CLIENT_ID"
        raise SetupFailed(f"{lacking} is not set, but its companion is")
    if file is None:
        raise SetupFailed(
            "no credentials for this broker: set DCV_SM_CLIENT_ID and DCV_SM_CLIENT_PASSWORD, "
            "or DCV_SM_OAUTH2_TOKEN"
        )
    return ClientPassword(
        file.client_id, _text(state / file.client_password_file).strip(), token_url
    )


def _read_file(state: Path) -> ClientFile | None:
    path = state / CLIENT_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=ClientFile)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SetupFailed(f"{path} can't be read: {plain(error)}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SetupFailed(f"{path} can't be read: {plain(error)}") from error


def _path(environment: Mapping[str, str], name: str) -> Path | None:
    value = environment.get(name)
    return Path(value) if value else None


BrokerUrl = Annotated[str | None, typer.Option(help="Client port of a broker: https://HOST:PORT.")]
CaFile = Annotated[
    Path | None,
    typer.Option("--ca-file", "--ca-bundle", help="PEM file of the broker's authority."),
]
NoVerifySsl = Annotated[
    bool, typer.Option("--no-verify-ssl", help="Don't check the broker's certificate.")
]
State = Annotated[
    Path | None, typer.Option(help="State folder of `deskfleet up`, which holds client.json.")
]
OutputFormat = Annotated[
    Format | None,
    typer.Option("--output", case_sensitive=False, help="Default: table on a terminal, else json."),
]


def speaks_api(
    command: Callable[Concatenate[Invocation, P], None], *, formats: bool = True
) -> Callable[..., None]:
    """Turn a command's function into one that Typer can read: its options, then the connection's.

    The client is opened for the run and closed after it. Without `formats` there is no --output.
    """

    def run(
        *,
        broker_url: BrokerUrl = None,
        ca_file: CaFile = None,
        no_verify_ssl: NoVerifySsl = False,
        state: State = None,
        output: OutputFormat = None,
        **options: Any,
    ) -> None:
        flags = Flags(
            broker_url=broker_url, ca_file=ca_file, no_verify_ssl=no_verify_ssl, state=state
        )
        _run(command, flags, Output(output), options)

    _describe(run, command, without={"options"} if formats else {"options", "output"})
    return run


def _describe(run: Callable[..., None], command: Callable[..., None], without: set[str]) -> None:
    """Give the wrapper the name, text and options that Typer reads: those of both functions."""
    hints = get_type_hints(run, include_extras=True) | get_type_hints(command, include_extras=True)
    own = list(inspect.signature(command).parameters.values())[1:]
    added = [
        each for each in inspect.signature(run).parameters.values() if each.name not in without
    ]
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            each.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[each.name])
            for each in (*own, *added)
        ]
    )
    run.__annotations__ = hints
    run.__name__, run.__doc__ = command.__name__, command.__doc__


def _run(
    command: Callable[..., None], flags: Flags, output: Output, options: dict[str, Any]
) -> None:
    connection = find(flags, os.environ)
    if not connection.verify:
        output.tell(UNCHECKED)
    with connection.open() as client:
        command(Invocation(client, output), **options)
