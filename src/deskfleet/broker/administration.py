"""Parts of a fleet over its store, without its doors: what administrators' commands are given.

Each works whether brokers run or not, and brokers that run learn of it as they learn of everything.
Law: where there is no fleet none is made by accident. A command that was sent to the wrong folder
would else print credentials that open nothing, or list nobody, and call it done.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from deskfleet.broker.main import AUTHORITY_FOLDER, replica_only, store_url
from deskfleet.broker.service.clients import Clients
from deskfleet.broker.service.statements import Statements
from deskfleet.broker.service.watch import Watch
from deskfleet.broker.stores.sql import supported
from deskfleet.errors import SetupFailed
from deskfleet.gateway_certificates import FOLDER
from deskfleet.machine import here
from deskfleet.ports import Signer
from deskfleet.settings import BrokerSettings
from deskfleet.system import SystemClock, SystemIds, open_key_file

_OF_NO_FLEET = frozenset({FOLDER, AUTHORITY_FOLDER, "keys", "lost+found"})
"""What may be in a state folder before its fleet begins: a gateway's certificate, what a first
start has made that is still under way or was cut short, and what a new file system has."""


def find_fleet(settings: BrokerSettings) -> None:
    """See that there is a fleet; an empty state folder is taken for the place of a new one.

    Installers and containers make such a folder, and run commands before the first start, or
    during it. Raises `SetupFailed` elsewhere.
    """
    store = Path(supported(store_url(settings)).database or "")
    try:
        missing = _missing(settings.state, store)
    except OSError as error:
        raise SetupFailed(
            f"the state folder {settings.state} can't be used: {error.strerror}"
        ) from error
    if missing is not None:
        raise _no_fleet(settings, missing)
    if not store.exists():
        here.make_private_folder(settings.state)
        # With a store alone, that is elsewhere, the next command would find no fleet.
        open_key_file(_key_file(settings.state))


def _missing(state: Path, store: Path) -> Path | None:
    """Return what keeps a fleet from being there, or from beginning there; None if nothing does."""
    if not store.exists():
        return None if state.is_dir() and _has_room(state, store) else store
    # Their own folder gets a key where it has none; any other folder's would be a wrong one.
    key = _key_file(state)
    return None if store.parent == state or key.exists() else key


def _has_room(state: Path, store: Path) -> bool:
    # Drafts of files begin with a dot.
    strangers = {path.name for path in state.iterdir()} - _OF_NO_FLEET
    return all(name.startswith((".", store.name)) for name in strangers)


def find_state(settings: BrokerSettings) -> None:
    """See that the state folder is there and nobody else's. Raises `SetupFailed`."""
    try:
        is_there = settings.state.is_dir()
    except OSError as error:
        raise SetupFailed(
            f"the state folder {settings.state} can't be used: {error.strerror}"
        ) from error
    if not is_there:
        raise _no_fleet(settings, settings.state)
    here.make_private_folder(settings.state)


def _no_fleet(settings: BrokerSettings, missing: Path) -> SetupFailed:
    return SetupFailed(
        f"there is no fleet in {settings.state} ({missing} is missing): say --state or --config;"
        " for a new one start a broker, or make that folder, empty"
    )


def _key_file(state: Path) -> Path:
    return state / "keys" / "store.key"


@contextlib.asynccontextmanager
async def clients_only(settings: BrokerSettings) -> AsyncIterator[Clients]:
    """Give access to the API clients and the agent clients of a fleet."""
    async with replica_only(settings) as replica:
        yield Clients(replica, SystemIds(), _signer(settings))


@contextlib.asynccontextmanager
async def statements_only(settings: BrokerSettings) -> AsyncIterator[Statements]:
    """Give access to the software statements of a fleet."""
    async with replica_only(settings) as replica:
        yield Statements(replica, _signer(settings))


@contextlib.asynccontextmanager
async def watch_only(settings: BrokerSettings) -> AsyncIterator[Watch]:
    """Listen to the brokers of a fleet, which beat as often as the settings say."""
    async with replica_only(settings) as replica:
        yield Watch(replica, SystemClock(), settings.broker_beat_seconds)


def _signer(settings: BrokerSettings) -> Signer:
    return open_key_file(_key_file(settings.state))
