"""The operating system's groups of a user, for the `osgroup:` rules of permissions."""

from __future__ import annotations

import grp
import os
import pwd


def groups_of(user: str) -> frozenset[str]:
    """Return the names of all groups of `user`, none for a user that the system doesn't know.

    Blocks for as long as the system's user directory takes.
    """
    try:
        entry = pwd.getpwnam(user)
    except (KeyError, ValueError):
        return frozenset()
    return frozenset(filter(None, map(_name_of, os.getgrouplist(user, entry.pw_gid))))


def _name_of(group: int) -> str | None:
    try:
        return grp.getgrgid(group).gr_name
    except KeyError:
        return None
