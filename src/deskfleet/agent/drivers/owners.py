"""Who may own a session on this server.

The agent of root serves every ordinary user; root itself only where the administrator allows it.
An agent of an ordinary user serves that user alone: it could not become anybody else. Names are
looked up as they come, so whatever the name service knows (a Windows domain's `DOMAIN\\user`, a
directory's `user@example.org`) can own a session. Blocking: a name service may be far away.
"""

from __future__ import annotations

import pwd
from dataclasses import dataclass

from deskfleet.errors import StartFailed

ROOT = 0
FIRST_ORDINARY_UID = 1000
NOBODY = frozenset({65534, 65535, 2**32 - 2})


@dataclass(frozen=True, slots=True)
class OwnerPolicy:
    agent_uid: int
    allow_root_sessions: bool = False

    def check(self, owner: str) -> pwd.struct_passwd:
        """Return the account of an owner; raise `StartFailed` with the reason against them."""
        try:
            entry = pwd.getpwnam(owner)
        except (KeyError, ValueError):
            raise StartFailed(f"there is no user {owner!r} on this server") from None
        if self.agent_uid != ROOT:
            if entry.pw_uid != self.agent_uid:
                raise StartFailed(f"the agent on this server runs as another user than {owner!r}")
        elif entry.pw_uid == ROOT:
            if not self.allow_root_sessions:
                raise StartFailed("sessions of root are not allowed on this server")
        elif not _ordinary(entry):
            raise StartFailed(f"{owner!r} is a system account, which can't own a session")
        return entry

    def ordinary_users(self) -> list[str]:
        """Return the names that may own a session, as far as the name service lists them."""
        return sorted({entry.pw_name for entry in pwd.getpwall() if self._permits(entry)})

    def _permits(self, entry: pwd.struct_passwd) -> bool:
        if self.agent_uid != ROOT:
            return entry.pw_uid == self.agent_uid
        return _ordinary(entry) or (entry.pw_uid == ROOT and self.allow_root_sessions)


def _ordinary(entry: pwd.struct_passwd) -> bool:
    return entry.pw_uid >= FIRST_ORDINARY_UID and entry.pw_uid not in NOBODY
