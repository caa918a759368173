"""What no name of an administrator's program can be, whatever the system."""

from __future__ import annotations

from deskfleet.errors import StartFailed

MAX_NAME_BYTES = 1024


def refuse_unspeakable(name: str, kind: str) -> None:
    """Raise `StartFailed` for a name that is empty or endless, or that no log could show."""
    if not name or len(name.encode(errors="replace")) > MAX_NAME_BYTES or not name.isprintable():
        raise StartFailed(f"the name of the {kind} is not valid")
