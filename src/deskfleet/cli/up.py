"""`deskfleet up`: broker, agent and desktop entrance on this machine, in one program.

The first start makes everything that is needed (authority, certificates, store, an API client,
the agent's enrolment) below one state folder; later starts find it there. Desktops live on when
this program ends, and are there again after its next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from deskfleet.agent import identity
from deskfleet.agent import main as agent_main
from deskfleet.agent.drivers.owners import OwnerPolicy
from deskfleet.agent.main import Agent
from deskfleet.broker import main as broker_main
from deskfleet.broker.main import Doors
from deskfleet.broker.service.sessions import SessionView
from deskfleet.cli.announcement import LOG_FILE, announce, create_line, tell
from deskfleet.cli.person import current_user
from deskfleet.cli.program import log_to, run
from deskfleet.client.links import link_to
from deskfleet.core.placement import Refusal
from deskfleet.core.records import SessionRequest, Type
from deskfleet.core.session import State
from deskfleet.errors import SetupFailed, StartFailed
from deskfleet.machine import here
from deskfleet.machine.holding import held
from deskfleet.settings import (
    AGENT_PORT,
    CLIENT_PORT,
    DESKTOP_PORT,
    AgentSettings,
    BrokerSettings,
    read,
)
from deskfleet.system import write_private

LINK_SECONDS = 30.0
OPEN_SECONDS = 60.0
NO_OWNER = (
    "There is no ordinary user on this machine who could own a session: add one"
    " (adduser NAME), or start with --allow-root-sessions."
)


class Output(StrEnum):
    text = "text"
    json = "json"


class Driver(StrEnum):
    xvnc = "xvnc"
    simulated = "simulated"


@dataclass(frozen=True, slots=True)
class Wishes:
    output: Output
    open: bool
    owner: str | None
    """Who may own a session: the one who types, else somebody; None where nobody may."""


def up(
    state: Annotated[
        Path | None, typer.Option(help="Folder of all state; by default the XDG state folder.")
    ] = None,
    client_port: Annotated[
        int | None, typer.Option(help="Port for API clients.", show_default=str(CLIENT_PORT))
    ] = None,
    agent_port: Annotated[
        int | None, typer.Option(help="Port for agents.", show_default=str(AGENT_PORT))
    ] = None,
    desktop_port: Annotated[
        int | None, typer.Option(help="Port for browsers.", show_default=str(DESKTOP_PORT))
    ] = None,
    driver: Annotated[
        Driver | None, typer.Option(help="What runs the sessions.", show_default=Driver.xvnc.value)
    ] = None,
    allow_root_sessions: Annotated[
        bool,
        typer.Option("--allow-root-sessions", help="Let root own sessions; where root runs this."),
    ] = False,
    open: Annotated[
        bool, typer.Option("--open", help="Also create a session and print its link.")
    ] = False,
    output: Annotated[Output, typer.Option(help="How to say where everything is.")] = Output.text,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Run a whole deskfleet on this machine: API, agent and desktops in the browser."""

    async def main(stop: asyncio.Event) -> None:
        broker, agent = _settings(
            {
                "state": state,
                "client_port": client_port,
                "agent_port": agent_port,
                "log_level": log_level,
            },
            {
                "desktop_port": desktop_port,
                "driver": driver and driver.value,
                "allow_root_sessions": allow_root_sessions or None,
            },
        )
        wishes = Wishes(output, open, owner=first_owner(agent))
        with _alone(broker.state):
            log_to(broker, LOG_FILE, broker.state)
            async with _everything(broker, agent) as (doors, server):
                await _announce(broker.state, doors, server, wishes, stop)
                await stop.wait()
                if output is Output.text:
                    typer.echo("\nEnding. Desktops live on; the next start finds them.")

    run(main)


def _settings(
    broker_flags: Mapping[str, Any], agent_flags: Mapping[str, Any]
) -> tuple[BrokerSettings, AgentSettings]:
    flags = {**broker_flags, "advertise": "localhost"}
    broker = read(BrokerSettings, environment=os.environ, flags=flags)
    where = broker.state.expanduser().absolute()
    flags = {**agent_flags, "state": where / "agent"}
    agent = read(AgentSettings, environment=os.environ, flags=flags)
    return dataclasses.replace(broker, state=where), agent


def _alone(state: Path) -> AbstractContextManager[None]:
    """Make sure that one program at a time works with a state folder."""
    here.make_private_folder(state)
    return held(
        state,
        "up.lock",
        f"deskfleet already runs with the state folder {state}; end it first, or choose another"
        " folder with --state",
    )


@contextlib.asynccontextmanager
async def _everything(
    broker: BrokerSettings, agent: AgentSettings
) -> AsyncIterator[tuple[Doors, Agent]]:
    async with broker_main.running(broker) as doors, contextlib.AsyncExitStack() as running:
        with contextlib.ExitStack() as enrolment:
            statement = await _statement(doors, agent.state)
            if statement is not None:
                # Whatever comes of it: the next start makes another one, where it needs one.
                enrolment.callback(statement.unlink)
            joined = dataclasses.replace(
                agent,
                broker_url=f"https://localhost:{doors.agent_port}",
                ca_file=doors.ca_file,
                software_statement_path=statement,
            )
            server = await running.enter_async_context(
                agent_main.running(joined, tls_folder=doors.ca_file.parent)
            )
        try:
            async with asyncio.timeout(LINK_SECONDS):
                await server.linked.wait()
        except TimeoutError as error:
            raise SetupFailed(
                "the agent could not reach the broker on this machine; the log says why:"
                f" {broker.state / LOG_FILE}"
            ) from error
        yield doors, server


async def _statement(doors: Doors, agent_state: Path) -> Path | None:
    """Return a file with a software statement for an agent that is not enrolled yet."""
    if identity.read(agent_state) is not None:
        return None
    path = agent_state / "software-statement"
    here.make_private_folder(agent_state)
    statement = await doors.house.access.generate_software_statement()
    write_private(path, statement.encode())
    return path


async def _announce(
    state: Path, doors: Doors, server: Agent, wishes: Wishes, stop: asyncio.Event
) -> None:
    announcement = await announce(state, doors, server)
    if wishes.output is Output.json:
        typer.echo(msgspec.json.encode(announcement).decode())
    else:
        tell(announcement, state, wishes.owner)
    if wishes.owner is None:
        typer.echo(f"deskfleet: {NO_OWNER}", err=True)
    elif wishes.open and wishes.owner != current_user():
        typer.echo(
            f"deskfleet: {current_user()} may own no desktop here; for somebody else:"
            f" {create_line(state, wishes.owner)}",
            err=True,
        )
    elif wishes.open:
        link = await _open(doors, stop)
        if link is not None:
            typer.echo(link if wishes.output is Output.json else f"\nYour desktop: {link}")


def first_owner(agent: AgentSettings) -> str | None:
    """Return who may own a session: the one who types, else somebody; None where nobody may."""
    if agent.driver == Driver.simulated:
        return current_user()
    policy = OwnerPolicy(os.geteuid(), agent.allow_root_sessions)
    try:
        policy.check(current_user())
    except StartFailed:
        return next(iter(policy.ordinary_users()), None)
    return current_user()


async def _open(doors: Doors, stop: asyncio.Event) -> str | None:
    """Return the link to the current user's desktop: an earlier start's, or else a new one."""
    owner = current_user()
    request = SessionRequest(name=f"{owner}'s desktop", owner=owner, type=Type.VIRTUAL)
    kept = _living(doors, request)
    if kept is not None:
        return await _when_ready(doors, kept, stop)
    (outcome,) = await doors.house.sessions.create([request])
    if isinstance(outcome, Refusal):
        typer.echo(f"deskfleet: no session could be created: {outcome.reason}", err=True)
        return None
    return await _when_ready(doors, outcome.id, stop)


def _living(doors: Doors, request: SessionRequest) -> str | None:
    house = doors.house
    views = map(house.sessions.view, house.replica.fleet.sessions_of(request.owner))
    living = (view for view in views if view.seen.state not in {State.DELETING, State.DELETED})
    named = (view.session.id for view in living if view.session.request.name == request.name)
    return next(named, None)


async def _when_ready(doors: Doors, session_id: str, stop: asyncio.Event) -> str | None:
    sessions = doors.house.sessions
    deadline = asyncio.get_running_loop().time() + OPEN_SECONDS
    while asyncio.get_running_loop().time() < deadline and not stop.is_set():
        session = doors.house.replica.fleet.session(session_id)
        view = None if session is None else sessions.view(session)
        if view is None or view.seen.state is State.DELETED:
            reason = "" if view is None else view.seen.reason
            typer.echo(f"deskfleet: the session could not be started: {reason}", err=True)
            return None
        if view.seen.state is State.READY:
            return _link(*await sessions.connect(session_id, current_user()))
        await asyncio.sleep(0.05)
    typer.echo("deskfleet: the session did not become READY in time", err=True)
    return None


def _link(view: SessionView, token: str) -> str:
    assert view.facts is not None  # it is READY, so its server has said what it is
    endpoint = view.facts.endpoints[0]
    host = f"[{view.facts.ip}]" if ":" in view.facts.ip else view.facts.ip
    return link_to(f"{host}:{endpoint.port}", endpoint.web_url_path, token, view.session.id)
