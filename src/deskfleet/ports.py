"""Every seam of deskfleet: where a fake and the real thing are interchangeable.

Each port has one contract suite in `tests/contract` that all of its adapters pass.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol, runtime_checkable

from deskfleet.core.change import ChangeSet, Stored, Tombstone
from deskfleet.core.records import Frozen, Instant, Revision, SessionRequest, Type


@dataclass(frozen=True, slots=True)
class Lost:
    """The answer to a change set whose preconditions no longer hold: nothing of it was written."""

    key: tuple[str, str]


class Store(Protocol):
    """Where all truth is. Blocking: a broker calls it from its one store thread."""

    def load(self) -> tuple[Revision, Iterable[Stored]]:
        """Return everything, as of one revision."""

    def changes(self, since: Revision) -> tuple[Revision, Sequence[Stored | Tombstone]]:
        """Return the newest state of each record that changed after `since`, oldest change first.

        Raises `Compacted` where tombstones after `since` have been dropped.
        """

    def commit(self, change_sets: Sequence[ChangeSet]) -> Sequence[Revision | Lost]:
        """Write each change set whole or not at all, in order, in one durable transaction.

        All records of one change set carry the revision that is returned for it. Raises
        `StoreFailed` when the outcome is unknown or the store is gone; nothing of what raised
        may be assumed written or not written.
        """

    def compact(self, before: Revision) -> None:
        """Forget tombstones of revisions below `before`."""

    def glance(self) -> Revision | None:
        """Return the newest revision where that takes microseconds, None where it can't be told so.

        Never waits, nor disturbs a call on the store thread: the event loop calls it, one call at
        a time, and not after `close`. None is always right: who wants to know asks `changes`.
        """

    def close(self) -> None: ...


class SessionSpec(Frozen, frozen=True):
    """A session as its server is asked to run it."""

    session_id: str
    generation: int
    request: SessionRequest
    created_at: Instant | None = None
    """When its client asked for it."""


class Running(Frozen, frozen=True):
    """A session that a driver finds on its machine."""

    session_id: str
    generation: int
    """0 for a session that deskfleet did not create."""
    owner: str
    type: Type
    name: str = ""
    created_at: Instant | None = None
    connections: int | None = None
    """Live client connections; None where the entrance, not the driver, serves them."""
    visitors: tuple[str, ...] = ()
    """The user of each, as far as is known."""
    last_disconnection_at: Instant | None = None


class Picture(Frozen, frozen=True):
    """One screen of a session, encoded."""

    format: str
    """`png` or `jpeg`."""
    content: bytes
    taken_at: Instant
    primary: bool = True


class Door(Frozen, frozen=True):
    """A port at which clients of a server's sessions knock."""

    port: int
    web_url_path: str = "/"
    protocol: str = "HTTP"
    """`HTTP` or `QUIC`."""


class Service(Frozen, frozen=True):
    """What a driver says of a server that lets clients in by itself."""

    version: str
    types: tuple[Type, ...]
    doors: tuple[Door, ...]


class SessionDriver(Protocol):
    """What runs sessions on a server.

    Sessions outlive the driver: a new driver object on the same machine finds what an earlier
    one started. All methods are safe to call for several sessions at once; two calls for the
    same session are never made at the same time. What a driver is asked for, and what it tells,
    is logged by who asks and is told.
    """

    name: str

    async def open(self, on_end: Callable[[str, str], None]) -> None:
        """Take up what already runs; from now on call `on_end(session_id, reason)` for each session
        that ends without `stop`, after everything of it has been cleaned up."""

    async def close(self) -> None:
        """Let go of everything; sessions run on."""

    def running(self) -> Sequence[Running]:
        """Return what runs now, ours and others'. Cheap: called for every report."""

    async def start(self, spec: SessionSpec) -> None:
        """Start a session and return when a client could connect.

        Raises `StartFailed` with a reason for the owner; nothing is left behind then, nor when
        the call is cancelled. What can't be removed at once is removed later, without being asked
        for, and `stop` waits for it. Starting what already runs with this generation changes
        nothing.
        """

    async def stop(self, session_id: str) -> None:
        """End a session and return when nothing of it is left: no process, socket, lock or folder.

        A session that does not run is no error. Raises `Unavailable` where something of it can't
        be removed yet; called again then.
        """

    async def permit(self, spec: SessionSpec) -> None:
        """Make the permissions of a running session those of `spec`.

        Returns when they hold, and raises `Unavailable` where they don't yet; called again then.
        Nothing is to be done where the agent's entrance lets clients in: it asks by itself.
        """

    async def screenshot(
        self, session_id: str, *, max_width: int, max_height: int, format: str
    ) -> Sequence[Picture]:
        """Return the session's screens, the primary one first, never enlarged, aspect kept.

        Raises `Missing` for a session that does not run, `Unavailable` where no picture can be had.
        """

    def display_socket(self, session_id: str) -> Path | None:
        """Return the UNIX socket that speaks RFB 3.8 for this session, None where there is none."""

    async def version(self) -> str:
        """Return the version of what runs the sessions."""

    async def trouble(self) -> str | None:
        """Return why sessions can't be started now, None when they can."""


@runtime_checkable
class ServesClients(Protocol):
    """A driver of sessions that let their clients in by themselves: the agent opens no door."""

    on_change: Callable[[], None]
    """Called when something new is to be seen in `running`: a connection, a session of others."""

    def service(self) -> Service:
        """Return what is known of what lets clients in. Cheap: called for every read of facts."""


class Clock(Protocol):
    def now(self) -> datetime:
        """Return the wall clock, aware, UTC. For what people read and coarse expiries only."""

    def monotonic(self) -> float:
        """Return seconds that only grow, for silence and limits. Never compared across machines."""


class Ids(Protocol):
    def uuid(self) -> str:
        """Return a fresh lower-case UUID."""

    def secret(self) -> str:
        """Return 256 fresh random bits as URL-safe text."""


class Signer(Protocol):
    """Seals and hashes with keys that are not in the store."""

    def hash(self, secret: str) -> bytes: ...

    def seal(self, plain: bytes) -> bytes: ...

    def unseal(self, sealed: bytes) -> bytes: ...


TokenCheck = Callable[[str, str, str], Awaitable[str | None]]
"""(session id, connection token, client address) -> the user it lets in, or None."""
