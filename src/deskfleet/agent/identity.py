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
_PROOF = bytes(1024)
"""More than an identity takes."""


class Identity(msgspec.Struct, frozen=True):
    client_id: str
    client_secret: str

    def __repr__(self) -> str:
        return f"Identity({self.client_id})"


def prove(state: Path) -> None:
    """Raise `SetupFailed` where no identity could be kept.

    To be known before one is asked for: each that a broker gives is a client of its own for ever.
    """
    proof = state / "proof"
    try:
        write_private(proof, _PROOF)
        proof.unlink()
    except OSError as error:
        raise _unusable(state, error) from error


def read(state: Path) -> Identity | None:
    path = state / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Identity)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SetupFailed(f"{path} can't be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SetupFailed(
            f"{path} can't be read ({error}); remove it to enrol this server anew"
        ) from error


def write(state: Path, identity: Identity) -> None:
    """Keep an identity; afterwards it is on the disk. Raises `SetupFailed`."""
    try:
        write_private(state / FILE, msgspec.json.encode(identity))
    except OSError as error:
        raise _unusable(state, error) from error


def _unusable(state: Path, error: OSError) -> SetupFailed:
    return SetupFailed(f"the state folder {state} can't be used: {error.strerror or error}")
