"""Who is logged in beside the sessions: on Windows they keep the console from anybody else.

A Windows server has one desktop. Whoever is logged in by other means (a remote desktop, the
keyboard) holds it, so that no session of another owner can be placed there until they have left.
"""

from __future__ import annotations

from collections.abc import Iterable


def foreign_user(logged_in: Iterable[str], owners: Iterable[str]) -> str | None:
    """Return who is logged in and owns no session of this server, the first by name; else None."""
    ours = {_account(owner) for owner in owners}
    return min((user for user in logged_in if _account(user) not in ours), default=None)


def is_logged_in(user: str, logged_in: Iterable[str]) -> bool:
    return _account(user) in {_account(one) for one in logged_in}


def _account(name: str) -> str:
    """Return a name as Windows compares them.

    The domain is left out: the system tells who is logged in without it, and an owner may be
    written as `DOMAIN\\user`, `user@domain` or bare.
    """
    return name.rpartition("\\")[2].partition("@")[0].casefold()
