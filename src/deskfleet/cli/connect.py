"""`deskfleet connect`: from a session to its link, and into a browser.

A link holds a connection token: it is printed, as that is what was asked for, and given to a
browser in a way that other users of this machine can't see (`browser.py`).

Law: a name stands for a session of the user alone, so that nobody can lure others into a desktop
by giving it a name.
"""

from __future__ import annotations

from typing import Annotated

import typer

from deskfleet.cli.connection import Invocation
from deskfleet.cli.person import current_user
from deskfleet.cli.sessions import GONE, ItsOwner, await_state, meant, require_ready, seen
from deskfleet.client.links import link
from deskfleet.client.shapes import Session


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
    found = _find(run, session, user or current_user())
    user = user or meant(found)
    if found.state != "READY":
        ready = await_state(run, found, "READY", wait_seconds)
        require_ready(run, found.id, ready)
    url = link(run.client.get_session_connection_data(found.id, user))
    run.output.line(url)
    if browser:
        _open(run, url)


def _find(run: Invocation, session: str, user: str) -> Session:
    found = seen(run, session)
    if found is not None:
        return found
    named = [
        each
        for each in run.client.sessions(owner=user)
        if each.name == session and each.state not in GONE
    ]
    if len(named) == 1:
        return named[0]
    ids = ", ".join(each.id for each in named)
    raise run.output.failure(
        f"{user} has {len(named)} sessions with the name {session}: {ids}"
        if named
        else f"there is no session {session}, nor has {user} one of that name"
    )


def _open(run: Invocation, url: str) -> None:
    # It loads a web server, which nothing else here needs.
    from deskfleet.cli.browser import open_in_browser  # noqa: PLC0415

    with run.output.spinner("waiting for the browser"):
        opened = open_in_browser(url)
    if not opened:
        run.output.tell("no browser came for the link; open it yourself")
