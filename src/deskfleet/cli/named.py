"""Which session is meant: SESSION on a command line is an id, or the name of one of the user's own.

Law: a name stands for a session of the user alone, so that nobody can lure others into a desktop,
or have them end one, by giving it a name.
"""

from __future__ import annotations

import re

from deskfleet.cli.connection import Invocation
from deskfleet.cli.person import current_user, is_root
from deskfleet.client.shapes import Session

GONE = ("DELETING", "DELETED")

_OURS = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""The ids that brokers give. Sessions that began without one have ids that people chose, so that a
name of the user's own comes first."""


def find(run: Invocation, session: str, user: str) -> Session | None:
    """Return the user's only session with this name, else the one with this id."""
    if not _OURS.fullmatch(session):
        named = [
            each
            for each in run.client.sessions(owner=user)
            if each.name == session and each.state not in GONE
        ]
        if len(named) > 1:
            ids = ", ".join(each.id for each in named)
            reason = f"{user} has {len(named)} sessions with the name {session}: {ids}"
            raise run.output.failure(reason)
        if named:
            return named[0]
    return seen(run, session)


def id_of(run: Invocation, session: str, user: str | None) -> str:
    """Return the id of the session that is meant; what nobody knows is the broker's to refuse.

    `user`: None for the current one.
    """
    if _OURS.fullmatch(session):
        return session
    found = find(run, session, user or current_user())
    return session if found is None else found.id


def whose(run: Invocation, session_id: str) -> str:
    """Return who is meant where nobody was named; asks the broker where root means an owner."""
    return meant(seen(run, session_id) if is_root() else None)


def meant(session: Session | None) -> str:
    """Return who is meant where nobody was named: for root, whoever owns the session."""
    return session.owner if session is not None and is_root() else current_user()


def seen(run: Invocation, session_id: str) -> Session | None:
    return next(iter(run.client.sessions(session_ids=[session_id])), None)
