"""The composition root of a broker: the only place that knows all of its parts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx

from deskfleet.broker import brought
from deskfleet.broker.service.access import Access
from deskfleet.broker.service.auth_servers import AuthServers
from deskfleet.broker.service.convergence import Convergence
from deskfleet.broker.service.dns_mappings import DnsMappings
from deskfleet.broker.service.external_tokens import ExternalTokens
from deskfleet.broker.service.house import House
from deskfleet.broker.service.housekeeping import Housekeeping, Pokes, Retention
from deskfleet.broker.service.key_sets import KeySets
from deskfleet.broker.service.links import Links
from deskfleet.broker.service.liveness import Liveness
from deskfleet.broker.service.paging import Paging
from deskfleet.broker.service.placing import Placing
from deskfleet.broker.service.replica import Replica
from deskfleet.broker.service.resolver import Resolver
from deskfleet.broker.service.screenshots import Screenshots
from deskfleet.broker.service.servers import Servers
from deskfleet.broker.service.sessions import Sessions
from deskfleet.broker.service.verifier import Verifier
from deskfleet.broker.stores.group_commit import GroupCommit
from deskfleet.broker.stores.sql import SqlStore
from deskfleet.broker.web import oauth
from deskfleet.broker.web.api import Defaults
from deskfleet.broker.web.app import Door, agent_app, client_app, gateway_app
from deskfleet.broker.web.callers import Rules
from deskfleet.broker.web.jwks_fetch import JwksFetch
from deskfleet.broker.web.peers import PeerClient
from deskfleet.broker.web.throttle import Limits
from deskfleet.certificates import ensure_authority, ensure_server_certificate, machine_names
from deskfleet.core.queue import QueueLimits
from deskfleet.core.records import Broker
from deskfleet.errors import StoreFailed, Unavailable
from deskfleet.gate import Gate
from deskfleet.gateway_certificates import demand_certificate
from deskfleet.keystores import trusted
from deskfleet.listener import bind, listening, new_gate, port_of
from deskfleet.machine import here
from deskfleet.ports import Store
from deskfleet.settings import BrokerSettings
from deskfleet.system import SystemClock, SystemIds, open_key_file
from deskfleet.tls import Pair, Shown, client_context

log = logging.getLogger(__name__)

AUTHORITY_FOLDER = "tls"
AUTHORITY_FILE = "ca.pem"


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS of each door, and whom this fleet's own certificates are of."""

    shown: Shown
    clients: ssl.SSLContext
    agents: ssl.SSLContext
    gateways: ssl.SSLContext
    ca_file: Path


@dataclass(frozen=True, slots=True)
class Bound:
    """The ports that a broker has taken."""

    clients: socket.socket
    agents: socket.socket
    gateways: socket.socket | None


@dataclass(frozen=True, slots=True)
class Doors:
    """A running broker, as its neighbours in the same program see it."""

    house: House
    client_port: int
    agent_port: int
    ca_file: Path
    gateway_port: int | None = None
    """None where no connection gateway is served."""


def store_url(settings: BrokerSettings) -> str:
    return settings.store or f"sqlite:///{settings.state / 'fleet.db'}"


def own_pair(state: Path, advertise: str = "") -> Pair:
    """Have the fleet's own certificate for this machine, issued now where that is due.

    It has the name that is advertised, too, which may be known to the others' resolvers alone.
    """
    clock, folder = SystemClock(), state / AUTHORITY_FOLDER
    authority = ensure_authority(folder, clock)
    names = machine_names([advertise] if advertise else [])
    return ensure_server_certificate(authority, folder, "broker", clock, names)


def _tls(settings: BrokerSettings) -> Tls:
    """Have what each door shows: what the administrator brings, else the fleet's own."""
    shown = Shown(lambda: own_pair(settings.state, settings.advertise))
    loads = {door: brought.shown_at(settings, door) for door in brought.doors(settings)}
    tls = Tls(
        shown,
        clients=shown.context(loads["client"]),
        agents=shown.context(loads["agent"]),
        gateways=shown.context(loads.get("gateway")),
        ca_file=settings.state / AUTHORITY_FOLDER / AUTHORITY_FILE,
    )
    trust = brought.gateway_trust(settings)
    if trust is not None:
        demand_certificate(tls.gateways, trust, settings.gateway_trust_password)
    elif settings.enable_tls_client_auth_gateway:
        log.warning("gateway.off", extra={"unused": "enable_tls_client_auth_gateway"})
    return tls


@contextlib.asynccontextmanager
async def access_only(settings: BrokerSettings) -> AsyncIterator[Access]:
    """Give access to the clients of a fleet without serving it: for the command line."""
    async with replica_only(settings) as replica:
        signer = open_key_file(settings.state / "keys" / "store.key")
        yield Access(replica, SystemClock(), SystemIds(), signer)


@contextlib.asynccontextmanager
async def auth_servers_only(settings: BrokerSettings) -> AsyncIterator[AuthServers]:
    """Give access to the authorization servers of a fleet without serving it."""
    async with replica_only(settings) as replica:
        yield AuthServers(replica, JwksFetch())


@contextlib.asynccontextmanager
async def dns_mappings_only(settings: BrokerSettings) -> AsyncIterator[DnsMappings]:
    """Give access to the DNS mappings of a fleet without serving it."""
    async with replica_only(settings) as replica:
        yield DnsMappings(replica)


@contextlib.asynccontextmanager
async def replica_only(settings: BrokerSettings) -> AsyncIterator[Replica]:
    here.make_private_folder(settings.state)
    commits = GroupCommit(SqlStore(store_url(settings)))
    try:
        replica = Replica(commits)
        await replica.load()
        yield replica
    finally:
        await commits.close()


@contextlib.asynccontextmanager
async def running(settings: BrokerSettings, store: Store | None = None) -> AsyncIterator[Doors]:
    """Run a broker for as long as the context is entered.

    Ports are taken first. A broker whose store fails ends the program: it must not go on
    answering from memory.
    """
    here.make_private_folder(settings.state)
    with _bound(settings) as bound:
        tls = await asyncio.to_thread(_tls, settings)
        commits = GroupCommit(store or SqlStore(store_url(settings)))
        try:
            async with _parts(settings, commits, tls, bound) as doors:
                yield doors
        finally:
            await commits.close()


@contextlib.contextmanager
def _bound(settings: BrokerSettings) -> Iterator[Bound]:
    with contextlib.ExitStack() as taken:

        def take(host: str, port: int, what: str) -> socket.socket:
            return taken.enter_context(contextlib.closing(bind(host, port, what)))

        yield Bound(
            take(settings.client_host, settings.client_port, "API clients"),
            take(settings.agent_host, settings.agent_port, "agents"),
            take(settings.gateway_host, settings.gateway_port, "connection gateways")
            if settings.enable_gateway
            else None,
        )


@contextlib.asynccontextmanager
async def _parts(
    settings: BrokerSettings, commits: GroupCommit, tls: Tls, bound: Bound
) -> AsyncIterator[Doors]:
    # Long because it is the list of all parts, in the order in which they know each other.
    clock, ids = SystemClock(), SystemIds()
    signer = open_key_file(settings.state / "keys" / "store.key")
    host = settings.advertise or socket.gethostname()
    me = Broker(id=ids.uuid(), url=f"https://{host}:{port_of(bound.agents)}")
    replica = Replica(commits)
    liveness = Liveness(replica, clock, broker_id=me.id, beat_seconds=settings.broker_beat_seconds)
    await replica.load()
    access = Access(replica, clock, ids, signer)
    await access.ensure_signing_key()
    external = ExternalTokens(replica.fleet, clock, KeySets(clock, JwksFetch()))
    limits = QueueLimits(
        settings.create_sessions_queue_max_size,
        timedelta(seconds=settings.create_sessions_queue_max_time_seconds),
    )
    placing = Placing(replica, liveness, clock, ids, limits)
    token_life = timedelta(minutes=settings.connect_session_token_duration_minutes)
    shown = timedelta(seconds=settings.delete_session_duration_seconds)
    sessions = Sessions(
        replica, liveness, placing, access, clock, token_life=token_life, shown=shown
    )
    convergence = Convergence(
        replica,
        clock,
        me.id,
        settings.agent_heartbeat_seconds,
        settings.create_sessions_number_of_retries_on_failure,
    )
    links = Links(convergence, grace_seconds=settings.agent_heartbeat_seconds)
    retention = Retention(
        shown,
        settings.seconds_before_deleting_unreachable_dcv_server,
        max(token_life, oauth.TOKEN_LIFE),
        settings.seconds_before_deleting_sessions_unreachable_server,
    )
    housekeeping = Housekeeping(replica, liveness, placing, clock, me, retention)
    http = httpx.AsyncClient(verify=_peer_context(settings, tls))
    peers = PeerClient(access, http, clock)
    pokes = Pokes(liveness, peers.poke)
    replica.after_commit(pokes.want)
    house = House(
        replica=replica,
        access=access,
        external=external,
        sessions=sessions,
        verifier=Verifier(replica, access, single_use=settings.single_use_connection_token),
        resolver=Resolver(replica, sessions),
        servers=Servers(replica, liveness, placing),
        screenshots=Screenshots(replica, liveness, sessions, links, peers.screenshot),
        links=links,
        housekeeping=housekeeping,
        paging=Paging(signer),
        clock=clock,
        ids=ids,
    )
    defaults = Defaults(
        settings.session_screenshot_max_width,
        settings.session_screenshot_max_height,
        settings.session_screenshot_format,
        settings.autorun_file_arguments_max_size,
        settings.autorun_file_arguments_max_argument_length,
    )
    chores: list[Callable[[], Coroutine[Any, Any, None]]] = [
        placing.run,
        lambda: housekeeping.beat(settings.broker_beat_seconds),
        lambda: housekeeping.poll(settings.poll_seconds),
        housekeeping.sweep,
        pokes.run,
        tls.shown.keep,
    ]
    gate = new_gate()
    async with (
        http,
        contextlib.aclosing(external),
        _chores(chores),
        listening(_client_app(house, defaults, settings), bound.clients, tls.clients, gate=gate),
        listening(_agent_app(house, settings), bound.agents, tls.agents, gate=gate),
        _gateways(house, settings, bound.gateways, tls.gateways, gate) as gateway_port,
    ):
        log.info("broker.started", extra={"broker_id": me.id, "url": me.url})
        try:
            yield Doors(
                house, port_of(bound.clients), port_of(bound.agents), tls.ca_file, gateway_port
            )
        finally:
            await links.close()
            with contextlib.suppress(StoreFailed, Unavailable):
                await housekeeping.retire()
            log.info("broker.stopped", extra={"broker_id": me.id})


def _peer_context(settings: BrokerSettings, tls: Tls) -> ssl.SSLContext:
    """Return TLS to the agent ports of other brokers, which may show what is brought here."""
    context, file = client_context(tls.ca_file), settings.agent_certificate_file
    if file is not None:
        context.load_default_certs()
        password = settings.agent_key_password
        tls.shown.follow(
            context, lambda one: one.load_verify_locations(cadata=trusted(file, password))
        )
        # Of a certificate that is signed by itself, or without its authority, nothing else is here.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _client_app(house: House, defaults: Defaults, settings: BrokerSettings) -> Door:
    rules = Rules(settings.enable_authorization, settings.enable_authorization_server)
    if not rules.authorization:
        log.warning("authorization.off")
    return client_app(
        house, defaults, rules, _limits(settings), describes_api=settings.enable_api_yaml
    )


def _agent_app(house: House, settings: BrokerSettings) -> Door:
    if not settings.enable_agent_authorization:
        log.warning("agent-authorization.off")
    return agent_app(
        house, _limits(settings), enrols_anybody=not settings.enable_agent_authorization
    )


@contextlib.asynccontextmanager
async def _gateways(
    house: House,
    settings: BrokerSettings,
    bound: socket.socket | None,
    context: ssl.SSLContext,
    gate: Gate,
) -> AsyncIterator[int | None]:
    """Serve connection gateways where the settings want it; give their port."""
    if bound is None:
        yield None
        return
    async with listening(gateway_app(house, _limits(settings)), bound, context, gate=gate):
        yield port_of(bound)


def _limits(settings: BrokerSettings) -> Limits:
    return Limits(
        settings.max_api_requests_per_second, settings.enable_throttling_forwarded_for_header
    )


@contextlib.asynccontextmanager
async def _chores(
    chores: list[Callable[[], Coroutine[Any, Any, None]]],
) -> AsyncIterator[None]:
    """Run the chores beside the body; a chore that fails ends the broker."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(chore()) for chore in chores]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
