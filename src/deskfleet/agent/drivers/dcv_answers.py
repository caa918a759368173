"""What `dcv` prints, read: strictly where the form is documented, leniently where it isn't.

Pure. An answer that isn't what it must be raises `Unavailable`: a server that talks nonsense is a
server that doesn't answer, and never one that says "there are no sessions".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import msgspec

from deskfleet.core.records import Type
from deskfleet.errors import Unavailable
from deskfleet.ports import Door

T = TypeVar("T")

HTTP, QUIC = "HTTP", "QUIC"
_PORTS = {"port": None, "web-port": HTTP, "http-port": HTTP, "quic-port": QUIC}
_PROTOCOLS = ("protocol", "transport", "type", "name")
_PATHS = ("web-url-path", "url-path", "path")
_WORDS = {"quic": QUIC, "udp": QUIC, "http": HTTP, "web": HTTP, "tcp": HTTP}
_VERSION = re.compile(r"\b(\d{4}\.\d+(?:\.\d+)*)(?:[ -]*\(?r?(\d+)\)?)?")
_DEEPEST = 8
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises for what is no JSON, or no JSON of the form; the last for deep nonsense."""
MOST_CONNECTIONS = 2**31 - 1


class Listed(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A session as `list-sessions` and `describe-session` show it."""

    id: str
    owner: str = ""
    name: str = ""
    type: str = ""
    """Empty where a list leaves it out."""
    num_of_connections: Annotated[int, msgspec.Meta(ge=0, le=MOST_CONNECTIONS)] | None = None
    creation_time: str = ""
    last_disconnection_time: str = ""

    @property
    def kind(self) -> Type:
        return Type.CONSOLE if self.type.lower() == "console" else Type.VIRTUAL

    @property
    def created_at(self) -> datetime | None:
        return _instant(self.creation_time)

    @property
    def last_disconnection_at(self) -> datetime | None:
        return _instant(self.last_disconnection_time)


def sessions(output: bytes) -> list[Listed]:
    """Read `list-sessions --json`."""
    return _decoded(output, list[Listed])


def session(output: bytes) -> Listed:
    """Read `describe-session --json`."""
    return _decoded(output, Listed)


def visitors(output: bytes) -> tuple[str, ...]:
    """Return the user of each connection that `list-connections --json` tells of."""
    told = _decoded(output, list[dict[str, Any]])
    return tuple(sorted(str(one.get("username", "")) for one in told))


def doors(output: bytes) -> tuple[Door, ...]:
    """Find the ports in `list-endpoints -j`, whose keys are documented nowhere.

    Nothing is found where it isn't sure what a port is for.
    """
    try:
        told = msgspec.json.decode(output)
    except UNREADABLE:
        return ()
    return tuple(dict.fromkeys(door for each in _objects(told) for door in _doors_of(each)))


def setting(output: bytes) -> str:
    """Return the value that `get-config` prints, without the quotes around a text."""
    lines = output.decode(errors="replace").strip().splitlines()
    value = lines[-1].strip() if lines else ""
    if len(value) > 1 and value[0] in {"'", '"'} and value[-1] == value[0]:
        return value[1:-1]
    return value


def version(output: bytes) -> str | None:
    """Return year, release and build of `dcv version`, as far as it says them."""
    found = _VERSION.search(output.decode(errors="replace"))
    return None if found is None else ".".join(part for part in found.groups() if part)


def _decoded(output: bytes, form: type[T]) -> T:
    try:
        return msgspec.json.decode(output, type=form, strict=False)
    except UNREADABLE as error:
        raise Unavailable(f"the DCV server's answer can't be understood: {error}") from error


def _instant(text: str) -> datetime | None:
    try:
        told = datetime.fromisoformat(text)
        return told.replace(tzinfo=told.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _objects(told: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    if depth > _DEEPEST:
        return
    if isinstance(told, dict):
        yield told
        told = list(told.values())
    if isinstance(told, list):
        for each in told:
            yield from _objects(each, depth + 1)


def _doors_of(told: dict[str, Any]) -> Iterator[Door]:
    path = next((told[key] for key in _PATHS if isinstance(told.get(key), str)), "/")
    for key, meaning in _PORTS.items():
        protocol, port = meaning or _protocol_of(told), told.get(key)
        if protocol is not None and isinstance(port, int) and 0 < port < 2**16:
            yield Door(port=port, web_url_path=path or "/", protocol=protocol)


def _protocol_of(told: dict[str, Any]) -> str | None:
    said = " ".join(str(told.get(key, "")) for key in _PROTOCOLS).lower()
    return next((protocol for word, protocol in _WORDS.items() if word in said), None)
