"""What the entrance needs to know of the desktops on its server, and nothing else.

The agent answers `find` from what its drivers run now; the entrance never learns of drivers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deskfleet.core.permissions import Permissions


@dataclass(frozen=True, kw_only=True)
class Desktop:
    """A session that can be connected to now."""

    session_id: str
    owner: str
    socket: Path
    """The UNIX socket that speaks RFB 3.8 without authentication."""
    max_clients: int | None
    """None is no limit."""
    name: str
    permissions: Permissions


class Desktops(Protocol):
    def find(self, session_id: str) -> Desktop | None:
        """Return the desktop of a session, None where it doesn't run here (any more).

        Asked at each connection: a change of permissions holds from the next one on.
        """
