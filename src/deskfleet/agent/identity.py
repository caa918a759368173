"""Who this server is: the credentials that a broker gave its agent.

The server's id is the id of these credentials. It is kept with the agent's state, so it survives a
changed address or host name, and an agent that has lost it is a new server.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from deskfleet.errors import SetupFailed
from deskfleet.system import write_private

FILE = "identity.json"


class Identity(msgspec.Struct, frozen=True):
    client_id: str
    client_secret: str

    def __repr__(self) -> str:
        return f"Identity({self.client_id})"


def read(state: Path) -> Identity | None:
    path = state / FILE
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Identity)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SetupFailed(
            f"{path} can't be read ({error}); remove it to enrol this server anew"
        ) from error


def write(state: Path, identity: Identity) -> None:
    """Keep an identity; afterwards it is on the disk."""
    write_private(state / FILE, msgspec.json.encode(identity))
