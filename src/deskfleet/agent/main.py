"""The composition root of an agent: the only place that knows all of its parts."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from deskfleet import __version__
from deskfleet.agent import identity
from deskfleet.agent.broker_door import BrokerDoor
from deskfleet.agent.desktop.attendance import Attendance
from deskfleet.agent.desktop.desktops import Desktop
from deskfleet.agent.desktop.entrance import MAX_MESSAGE_BYTES, build_entrance
from deskfleet.agent.drivers.owners import OwnerPolicy
from deskfleet.agent.drivers.simulated import SimulatedDriver
from deskfleet.agent.drivers.xvnc import XvncDriver
from deskfleet.agent.facts import FactsSource, Profile
from deskfleet.agent.identity import Identity
from deskfleet.agent.journal import Journal
from deskfleet.agent.loop import Loop
from deskfleet.agent.uplink import Uplink
from deskfleet.certificates import (
    client_context,
    ensure_authority,
    ensure_server_certificate,
    machine_names,
    server_context,
)
from deskfleet.core import permissions
from deskfleet.core.records import Facts
from deskfleet.errors import Forbidden, PermissionsInvalid, SetupFailed, Unavailable
from deskfleet.listener import bind, listening, port_of
from deskfleet.ports import SessionDriver
from deskfleet.settings import AgentSettings
from deskfleet.system import SystemClock, open_key_file

log = logging.getLogger(__name__)

ENROL_AGAIN_SECONDS = 2.0

DRIVERS = ("xvnc", "simulated")


@dataclass(frozen=True, slots=True)
class Agent:
    """A running agent, as its neighbours in the same program see it."""

    server_id: str
    desktop_port: int
    linked: asyncio.Event


class LocalDesktops:
    """The desktops of this server, for its entrance."""

    def __init__(self, driver: SessionDriver, loop: Loop) -> None:
        self._driver = driver
        self._loop = loop

    def find(self, session_id: str) -> Desktop | None:
        path = self._driver.display_socket(session_id)
        running = next(
            (one for one in self._driver.running() if one.session_id == session_id), None
        )
        if path is None or running is None:
            return None
        spec = self._loop.spec(session_id)
        request = None if spec is None else spec.request
        return Desktop(
            session_id=session_id,
            owner=running.owner,
            socket=path,
            max_clients=None if request is None else request.max_concurrent_clients,
            name=running.name or session_id,
            permissions=_permissions(None if request is None else request.permissions_file),
        )


def _permissions(file: str | None) -> permissions.Permissions:
    if file is None:
        return permissions.OWNER_ONLY
    try:
        return permissions.decode(file)
    except PermissionsInvalid:
        # The broker takes no such file; what can't be read gives nobody more than the owner has.
        log.warning("permissions.unreadable")
        return permissions.OWNER_ONLY


def runtime_folder(state: Path) -> Path:
    """Return where the sockets of sessions are: a short path, since socket paths are limited."""
    key = hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:8]
    if os.geteuid() == 0:
        return Path("/run/deskfleet") / key
    base = os.environ.get("XDG_RUNTIME_DIR")
    return (Path(base) / "deskfleet" if base else Path(f"/tmp/deskfleet-{os.geteuid()}")) / key  # noqa: S108


def build_driver(settings: AgentSettings) -> SessionDriver:
    clock = SystemClock()
    if settings.driver == "simulated":
        return SimulatedDriver(clock, state_dir=settings.state / "simulated")
    if settings.driver == "xvnc":
        return XvncDriver(
            runtime_folder(settings.state),
            owners=OwnerPolicy(os.geteuid(), settings.allow_root_sessions),
            clock=clock,
            geometry=settings.geometry,
            init_folder=settings.init_folder or settings.state / "init",
            autorun_folder=settings.autorun_folder or settings.state / "autorun",
        )
    raise SetupFailed(f"there is no driver {settings.driver!r}; choose one of {', '.join(DRIVERS)}")


@contextlib.asynccontextmanager
async def running(
    settings: AgentSettings, *, tls_folder: Path | None = None
) -> AsyncIterator[Agent]:
    """Run an agent for as long as the context is entered; its sessions run on afterwards.

    `tls_folder` holds an authority to certify the desktop entrance with; without one the agent
    makes its own.
    """
    settings.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    bound = bind(settings.desktop_host, settings.desktop_port, "desktops")
    with contextlib.closing(bound):
        clock = SystemClock()
        urls = [url.strip().rstrip("/") for url in settings.broker_url.split(",")]
        door = BrokerDoor(urls, client_context(settings.ca_file), clock)
        try:
            driver = build_driver(settings)
            who = await _identity(settings, door)
            async with _parts(settings, who, door, driver, bound, tls_folder) as agent:
                yield agent
        finally:
            await door.close()


@contextlib.asynccontextmanager
async def _parts(
    settings: AgentSettings,
    who: Identity,
    door: BrokerDoor,
    driver: SessionDriver,
    bound: socket.socket,
    tls_folder: Path | None,
) -> AsyncIterator[Agent]:
    clock = SystemClock()
    attendance = Attendance(clock)
    journal = Journal(settings.state / "journal.jsonl")
    changed = asyncio.Event()
    loop = Loop(who.client_id, driver, journal, attendance, changed.set)
    source = FactsSource(await _profile(settings, who, driver, port_of(bound)), clock)

    async def read_facts() -> Facts:
        trouble = await driver.trouble()
        return await asyncio.to_thread(source.read, trouble)

    await loop.open()
    uplink = Uplink(door, who, loop, driver, read_facts, clock, changed)
    attendance.on_change = lambda _session_id: changed.set()
    entrance = build_entrance(
        LocalDesktops(driver, loop),
        door.check_token,
        attendance,
        clock,
        open_key_file(settings.state / "admission.key"),
    )
    folder = tls_folder or settings.state / "tls"
    context = await asyncio.to_thread(_server_context, folder)
    linking = asyncio.create_task(uplink.run())
    try:
        async with listening(entrance, bound, context, max_message_bytes=MAX_MESSAGE_BYTES):
            log.info("agent.started", extra={"server_id": who.client_id, "driver": driver.name})
            yield Agent(who.client_id, port_of(bound), uplink.linked)
    finally:
        linking.cancel()
        await asyncio.gather(linking, return_exceptions=True)
        await loop.close()
        log.info("agent.stopped", extra={"server_id": who.client_id})


async def _profile(
    settings: AgentSettings, who: Identity, driver: SessionDriver, port: int
) -> Profile:
    return Profile(
        server_id=who.client_id,
        driver=driver.name,
        driver_version=await driver.version(),
        agent_version=__version__,
        port=port,
        preferred_network_interface=settings.preferred_network_interface or None,
        tags_folders=(settings.tags_folder or settings.state / "tags",),
        max_virtual_sessions=settings.max_virtual_sessions,
        max_sessions_per_user=settings.max_concurrent_sessions_per_user,
        extra_tags={"driver": driver.name} if driver.name == "simulated" else {},
    )


def _server_context(folder: Path) -> ssl.SSLContext:
    clock = SystemClock()
    authority = ensure_authority(folder, clock)
    return server_context(
        *ensure_server_certificate(authority, folder, "desktops", clock, machine_names())
    )


def _statement(path: Path | None) -> str | None:
    """Return what lets this agent enrol; a broker may do without (`enable_agent_authorization`)."""
    try:
        return None if path is None else path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SetupFailed(f"{path} can't be read: {error}") from error


async def _identity(settings: AgentSettings, door: BrokerDoor) -> Identity:
    """Return who this server is; enrol it first where nobody has yet.

    Waits for a broker as long as none can be reached: agents and brokers start in any order.
    """
    known = identity.read(settings.state)
    if known is not None:
        return known
    statement = _statement(settings.software_statement_path)
    while True:
        try:
            fresh = await door.enrol(statement, socket.gethostname())
        except Forbidden as error:
            if statement is not None:
                raise
            raise SetupFailed(
                "this agent is not enrolled yet: it needs software_statement_path, a file with"
                " what `deskfleet broker generate-software-statement` printed"
            ) from error
        except Unavailable as error:
            log.warning("enrolment.delayed", extra={"reason": error.message})
            await asyncio.sleep(ENROL_AGAIN_SECONDS)
            door.turn()
            continue
        identity.write(settings.state, fresh)
        log.info("agent.enrolled", extra={"server_id": fresh.client_id})
        return fresh
