"""`deskfleet connect`: from a session to its link, and into a browser.

A link holds a connection token: it is printed, as that is what was asked for, and given to a
browser in a way that other users of this machine can't see (`browser.py`).
"""

from __future__ import annotations

from typing import Annotated

import typer

from deskfleet.cli.connection import Invocation
from deskfleet.cli.named import find, meant
from deskfleet.cli.person import current_user
from deskfleet.cli.sessions import ItsOwner, await_state, require_ready
from deskfleet.client.links import link


def connect(
    run: Invocation,
    *,
    session: Annotated[
        str, typer.Argument(metavar="SESSION", help="Its id, or the name of one of the user's own.")
    ],
    user: ItsOwner = None,
    browser: Annotated[
        bool, typer.Option("--browser", help="Open the link in a browser as well.")
    ] = False,
    wait_seconds: Annotated[
        float, typer.Option(min=0, help="How long to wait until it is READY.")
    ] = 30,
) -> None:
    """Print the link that opens a session in a browser."""
    asked = user or current_user()
    found = find(run, session, asked)
    if found is None:
        raise run.output.failure(f"there is no session {session}, nor has {asked} one of that name")
    user = user or meant(found)
    if found.state != "READY":
        ready = await_state(run, found, "READY", wait_seconds)
        require_ready(run, found.id, ready)
    url = link(run.client.get_session_connection_data(found.id, user))
    run.output.line(url)
    if browser:
        _open(run, url)


def _open(run: Invocation, url: str) -> None:
    # It loads a web server, which nothing else here needs.
    from deskfleet.cli.browser import open_in_browser  # noqa: PLC0415

    with run.output.spinner("waiting for the browser"):
        opened = open_in_browser(url)
    if not opened:
        run.output.tell("no browser came for the link; open it yourself")
