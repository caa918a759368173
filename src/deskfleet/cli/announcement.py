"""What `deskfleet up` says when it runs: to people on the terminal, to programs in a file."""

from __future__ import annotations

import shlex
import socket
from pathlib import Path

import msgspec
from rich.console import Console

from deskfleet.agent.main import Agent
from deskfleet.broker.main import Doors
from deskfleet.cli.connection import CLIENT_FILE
from deskfleet.cli.person import current_user, program
from deskfleet.core.records import ApiClient
from deskfleet.settings import default_state
from deskfleet.system import write_private

PASSWORD_FILE = "client-password"  # noqa: S105
LOG_FILE = "deskfleet.log"


class Announcement(msgspec.Struct):
    """What a program needs to use this deskfleet; also kept as `client.json` for the commands."""

    url: str
    desktops_url: str
    ca_file: str
    client_id: str
    client_password_file: str


async def announce(state: Path, doors: Doors, server: Agent) -> Announcement:
    """Say where everything is; the API client is made at the first start, and kept."""
    path = state / CLIENT_FILE
    known = _known_client(path, doors)
    password_file = state / PASSWORD_FILE
    if known is None:
        credentials = await doors.house.access.register_api_client(f"up@{socket.gethostname()}")
        write_private(password_file, credentials.client_password.encode())
        known = credentials.client_id
    announcement = Announcement(
        url=f"https://localhost:{doors.client_port}",
        desktops_url=f"https://localhost:{server.desktop_port}",
        ca_file=str(doors.ca_file),
        client_id=known,
        client_password_file=str(password_file),
    )
    write_private(path, msgspec.json.encode(announcement))
    return announcement


def _known_client(path: Path, doors: Doors) -> str | None:
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=Announcement)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    client = doors.house.replica.fleet.get(ApiClient, kept.client_id)
    has_password = Path(kept.client_password_file).exists()
    return kept.client_id if client is not None and client.active and has_password else None


def tell(announcement: Announcement, state: Path, owner: str | None) -> None:
    """Tell a person on the terminal where to go on; `owner` may own a session, None: nobody may."""
    console = Console(soft_wrap=True, highlight=False)
    rows = {
        "API": announcement.url + _elsewhere(announcement.url),
        "Desktops": announcement.desktops_url,
        "Authority": announcement.ca_file,
        "Client id": announcement.client_id,
        "Password": f"in {announcement.client_password_file}",
        "Log": str(state / LOG_FILE),
    }
    console.print("[bold]deskfleet is up.[/bold]\n")
    for name, value in rows.items():
        console.print(f"  {name:<10}", style="dim", end="")
        console.print(value, markup=False)
    console.print("\nGet a token:\n")
    console.print(f"  {_curl_line(announcement)}", markup=False)
    if owner is not None:
        console.print("\nOr let the command line do it, and open a first desktop:\n")
        console.print(f"  {create_line(state, owner)}", markup=False)
        console.print(f"  {_connect_line(state, owner)}", markup=False)
    console.print("\nCtrl-C ends it; desktops live on.")


def _curl_line(announcement: Announcement) -> str:
    # The password goes through a pipe: an argument could be read by every user of the machine.
    password = f'"$(cat {shlex.quote(announcement.client_password_file)})"'
    return (
        f"printf 'user = \"%s:%s\"' {announcement.client_id} {password} |"
        f" curl --config - --cacert {shlex.quote(announcement.ca_file)} --request POST"
        f" '{announcement.url}/oauth2/token?grant_type=client_credentials'"
    )


def _elsewhere(url: str) -> str:
    """Say where other machines find what this one finds at localhost."""
    port = url.rpartition(":")[2]
    names = (socket.getfqdn(), socket.gethostname())
    known = next((name for name in names if not name.startswith("localhost")), None)
    return "" if known is None else f"   (elsewhere: https://{known}:{port})"


def create_line(state: Path, owner: str) -> str:
    return f"{program()} create-session --name first{_option('owner', owner)}{_in(state)} --wait"


def _connect_line(state: Path, owner: str) -> str:
    return f"{program()} connect first{_option('user', owner)}{_in(state)} --browser"


def _option(name: str, owner: str) -> str:
    return "" if owner == current_user() else f" --{name} {shlex.quote(owner)}"


def _in(state: Path) -> str:
    return "" if state == default_state() else f" --state {shlex.quote(str(state))}"
