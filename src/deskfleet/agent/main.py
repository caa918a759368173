"""The composition root of an agent: the only place that knows all of its parts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from deskfleet import __version__
from deskfleet.agent import identity
from deskfleet.agent.broker_door import BrokerDoor
from deskfleet.agent.desktop.attendance import Attendance
from deskfleet.agent.desktop.desktops import Desktop
from deskfleet.agent.desktop.entrance import MAX_MESSAGE_BYTES, build_entrance
from deskfleet.agent.facts import FactsSource, Profile
from deskfleet.agent.identity import Identity
from deskfleet.agent.journal import Journal
from deskfleet.agent.journal_file import JournalFile
from deskfleet.agent.loop import Loop
from deskfleet.agent.threads import Threads
from deskfleet.agent.uplink import Uplink
from deskfleet.certificates import ensure_authority, ensure_server_certificate, machine_names
from deskfleet.core import permissions
from deskfleet.core.records import Facts
from deskfleet.errors import Forbidden, PermissionsInvalid, SetupFailed, Unavailable, plain
from deskfleet.listener import bind, listening, new_gate, port_of
from deskfleet.machine import here
from deskfleet.machine.holding import held
from deskfleet.ports import ServesClients, SessionDriver
from deskfleet.settings import AgentSettings
from deskfleet.system import SystemClock, open_key_file
from deskfleet.tls import Pair, Shown, client_context

log = logging.getLogger(__name__)

ENROL_AGAIN_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Agent:
    """A running agent, as its neighbours in the same program see it."""

    server_id: str
    desktop_port: int | None
    """None where the driver's sessions let clients in by themselves."""
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


def build_driver(settings: AgentSettings) -> SessionDriver:
    """Return the driver that the settings name; raises `SetupFailed` where it can't be had."""
    if settings.driver not in DRIVERS:
        known = ", ".join(DRIVERS)
        raise SetupFailed(f"there is no driver {settings.driver!r}; choose one of {known}")
    return DRIVERS[settings.driver](settings)


# A driver is imported once it is chosen: what xvnc needs isn't there on Windows.
def _xvnc(settings: AgentSettings) -> SessionDriver:
    if sys.platform != "win32":
        from deskfleet.agent.drivers.owners import OwnerPolicy  # noqa: PLC0415
        from deskfleet.agent.drivers.session_folders import runtime_folder  # noqa: PLC0415
        from deskfleet.agent.drivers.xvnc import XvncDriver  # noqa: PLC0415

        return XvncDriver(
            runtime_folder(settings.state),
            owners=OwnerPolicy(os.geteuid(), settings.allow_root_sessions),
            clock=SystemClock(),
            geometry=settings.geometry,
            init_folder=settings.init_folder or settings.state / "init",
            autorun_folder=settings.autorun_folder or settings.state / "autorun",
        )
    raise SetupFailed("the driver xvnc has no desktops for Windows; choose dcv")


def _dcv(settings: AgentSettings) -> SessionDriver:
    from deskfleet.agent.drivers.dcv import DcvDriver  # noqa: PLC0415
    from deskfleet.agent.drivers.dcv_files import DcvFiles  # noqa: PLC0415
    from deskfleet.agent.drivers.dcv_platform import (  # noqa: PLC0415
        platform_here,
        runtime_here,
        scripts_here,
    )
    from deskfleet.agent.drivers.dcv_server import DcvServer  # noqa: PLC0415

    return DcvDriver(
        DcvServer(settings.dcv_root or here.folders(os.environ).dcv_program),
        settings.state / "dcv",
        DcvFiles(runtime_here(settings.state), scripts_here(settings.state)),
        platform=platform_here(
            init_folder=settings.init_folder or settings.state / "init",
            autorun_folder=settings.autorun_folder or settings.state / "autorun",
            allow_root_sessions=settings.allow_root_sessions,
        ),
        clock=SystemClock(),
    )


def _simulated(settings: AgentSettings) -> SessionDriver:
    from deskfleet.agent.drivers.simulated import SimulatedDriver  # noqa: PLC0415

    return SimulatedDriver(SystemClock(), state_dir=settings.state / "simulated")


DRIVERS: Mapping[str, Callable[[AgentSettings], SessionDriver]] = {
    "xvnc": _xvnc,
    "dcv": _dcv,
    "simulated": _simulated,
}


@contextlib.asynccontextmanager
async def running(
    settings: AgentSettings, *, tls_folder: Path | None = None
) -> AsyncIterator[Agent]:
    """Run an agent for as long as the context is entered; its sessions run on afterwards.

    `tls_folder` holds an authority to certify the desktop entrance with; without one the agent
    makes its own.
    """
    here.make_private_folder(settings.state)
    driver = build_driver(settings)
    async with contextlib.AsyncExitStack() as stack:
        # Two agents that were one server would take the link from each other, again and again.
        stack.enter_context(
            held(
                settings.state,
                "agent.lock",
                f"an agent already runs with the state folder {settings.state}; end it first, or"
                " choose another folder with --state",
            )
        )
        bound = None
        if not isinstance(driver, ServesClients):
            bound = bind(settings.desktop_host, settings.desktop_port, "desktops")
            stack.enter_context(contextlib.closing(bound))
        urls = [url.strip().rstrip("/") for url in settings.broker_url.split(",")]
        door = BrokerDoor(urls, _trust(settings), SystemClock())
        stack.push_async_callback(door.close)
        who = await _identity(settings, door)
        yield await stack.enter_async_context(
            _parts(settings, who, door, driver, bound, tls_folder)
        )


@contextlib.asynccontextmanager
async def _parts(
    settings: AgentSettings,
    who: Identity,
    door: BrokerDoor,
    driver: SessionDriver,
    bound: socket.socket | None,
    tls_folder: Path | None,
) -> AsyncIterator[Agent]:
    clock = SystemClock()
    attendance = Attendance(clock)
    journal = Journal(JournalFile(settings.state / "journal.jsonl"))
    changed = asyncio.Event()
    loop = Loop(who.client_id, driver, journal, attendance, changed.set)
    port = None if bound is None else port_of(bound)
    source = FactsSource(await _profile(settings, who, driver, port or 0), clock)
    # Its own, and one: a reading that was given up may go on, and must not meet the next one.
    thread = Threads(1, "facts")

    async def read_facts() -> Facts:
        trouble = await driver.trouble() or journal.trouble()
        owners = {one.owner for one in driver.running()}
        service = driver.service() if isinstance(driver, ServesClients) else None
        return await thread(partial(source.read, trouble, owners, service))

    await loop.open()
    uplink = Uplink(
        door, who, loop, driver, read_facts, clock, changed, settings.broker_update_interval
    )
    attendance.on_change = lambda _session_id: changed.set()
    if isinstance(driver, ServesClients):
        driver.on_change = changed.set
    linking = asyncio.create_task(uplink.run())
    try:
        async with contextlib.AsyncExitStack() as entrance:
            if bound is not None:
                desktops = LocalDesktops(driver, loop)
                folder = tls_folder or settings.state / "tls"
                opening = _entrance(settings, desktops, door, attendance, bound, folder)
                await entrance.enter_async_context(opening)
            log.info("agent.started", extra={"server_id": who.client_id, "driver": driver.name})
            yield Agent(who.client_id, port, uplink.linked)
    finally:
        linking.cancel()
        await asyncio.gather(linking, return_exceptions=True)
        await loop.close()
        thread.close()
        log.info("agent.stopped", extra={"server_id": who.client_id})


@contextlib.asynccontextmanager
async def _entrance(
    settings: AgentSettings,
    desktops: LocalDesktops,
    door: BrokerDoor,
    attendance: Attendance,
    bound: socket.socket,
    tls_folder: Path,
) -> AsyncIterator[None]:
    """Let browsers in to the desktops for as long as the context is entered."""
    key = open_key_file(settings.state / "admission.key")
    entrance = build_entrance(desktops, door.check_token, attendance, SystemClock(), key)
    shown = await asyncio.to_thread(Shown, lambda: _own_pair(tls_folder))
    # Behind a browser's connection there is one to its desktop.
    gate, most = new_gate(files_each=2), MAX_MESSAGE_BYTES
    keeping = asyncio.create_task(shown.keep())
    try:
        async with listening(entrance, bound, shown.context(), max_message_bytes=most, gate=gate):
            yield
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


def _trust(settings: AgentSettings) -> ssl.SSLContext:
    """Return TLS to brokers: with certificates that are checked, unless the settings forbid it."""
    if settings.tls_strict:
        return client_context(settings.ca_file)
    log.warning(
        "broker.not-verified",
        extra={
            "reason": "tls_strict is false: whoever stands between this server and its broker can"
            " take the broker's place, start programs here, and read what users do",
        },
    )
    context = client_context(None)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _tags_folders(settings: AgentSettings) -> tuple[Path, ...]:
    """Return where tags are, the folder whose tags win last."""
    own = settings.tags_folder or settings.state / "tags"
    return (own,) if settings.base_tags_folder is None else (settings.base_tags_folder, own)


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
        tags_folders=_tags_folders(settings),
        max_virtual_sessions=settings.max_virtual_sessions,
        max_sessions_per_user=settings.max_concurrent_sessions_per_user,
        extra_tags={"driver": driver.name} if driver.name == "simulated" else {},
        query_logged_in_users=settings.enable_query_logged_in_users,
    )


def _own_pair(folder: Path) -> Pair:
    clock = SystemClock()
    authority = ensure_authority(folder, clock)
    return ensure_server_certificate(authority, folder, "desktops", clock, machine_names())


def read_statement(path: Path | None) -> str | None:
    """Return what lets this agent enrol; a broker may do without (`enable_agent_authorization`).

    The file holds it alone, or all that `generate-software-statement` prints: a heading before it.
    """
    try:
        return None if path is None else path.read_text().strip().rpartition("\n")[2]
    except (OSError, UnicodeDecodeError) as error:
        raise SetupFailed(f"{path} can't be read: {plain(error)}") from error


async def _identity(settings: AgentSettings, door: BrokerDoor) -> Identity:
    """Return who this server is; enrol it first where nobody has yet.

    Waits for a broker as long as none can be reached: agents and brokers start in any order.
    """
    known = identity.read(settings.state)
    if known is not None:
        return known
    statement = read_statement(settings.software_statement_path)
    identity.prove(settings.state)
    while True:
        try:
            fresh = await door.enrol(statement, socket.gethostname())
        except Forbidden as error:
            if statement is None:
                why = "this agent is not enrolled yet: it needs software_statement_path"
            else:
                why = f"{error.message}; it needs another {settings.software_statement_path}"
            raise SetupFailed(
                f"{why}, a file with what `deskfleet broker generate-software-statement` printed"
            ) from error
        except Unavailable as error:
            log.warning("enrolment.delayed", extra={"reason": error.message})
            await asyncio.sleep(ENROL_AGAIN_SECONDS)
            door.turn()
            continue
        identity.write(settings.state, fresh)
        log.info("agent.enrolled", extra={"server_id": fresh.client_id})
        return fresh
