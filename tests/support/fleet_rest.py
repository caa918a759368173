"""How it must all end: without faults, a fleet comes to rest.

Every session is where it belongs or has ended, nothing runs that nobody wants, nothing that is
wanted is missing, every server is linked and known, and nothing is remembered for ever.
"""

from __future__ import annotations

from deskfleet.core.placement import Placement, Tally, place
from deskfleet.core.records import Link, Phase, Report, Session
from deskfleet.core.session import Stage, name_on_server, replace, stage
from support.fake_brokers import QUEUE
from support.fake_hosts import Host
from support.fleet_laws import LawBroken, is_about
from support.fleet_world import World
from support.virtual_time import VirtualClock

REST_SECONDS = 420.0
"""Within so much time all faults are forgotten: the longest wait between two attempts of an agent,
the queue's limit, and a full report, one after the other."""


def heal(world: World) -> None:
    """End all faults."""
    for host in world.hosts.values():
        host.next_starts.clear()
        host.next_stops.clear()
        host.disk.next_writes.clear()
        host.disk.go_on()
        host.facts = replace(host.facts, unhealthy=None)
    for slot in world.slots:
        world.start_broker(slot)
        world.brokers[slot].commits.next_fault = None
        world.brokers[slot].commits.next_read_fails = False
        world.resume_broker(slot)
    for line in world.lines:
        line.flush()
    for name in world.hosts:
        world.start_agent(name)
    world.check()


def rest(world: World) -> None:
    """Let time pass until all is in order; raise where it never is."""
    until = world.loop.seconds + REST_SECONDS
    while found := troubles(world):
        if world.loop.seconds >= until:
            raise LawBroken("the fleet does not come to rest: " + "; ".join(found))
        for name in world.hosts:
            world.resolve(name, "ok")
        for slot in world.slots:
            # One that had lost its store may have died of it only now.
            world.start_broker(slot)
        world.loop.advance(15)
        world.check()
    world.compare()
    if unheard := world.loop.unheard():
        raise LawBroken(f"failures that nobody asked for: {unheard}")


def troubles(world: World) -> list[str]:
    """Return what is not as it should be for ever."""
    truth = world.auditor.truth
    found = [why for session in truth.each(Session) if (why := _trouble(world, session))]
    found += [
        f"the report of {report.id} is left over"
        for report in truth.each(Report)
        if truth.session(report.id) is None
    ]
    for host in world.hosts.values():
        found += _host_troubles(world, host)
    return found


def _trouble(world: World, session: Session) -> str | None:
    where = stage(session)
    if where is Stage.ENDED:
        return None
    if where is Stage.STOPPING:
        return f"{session.id} is still to be stopped"
    if where is Stage.WAITING:
        age = VirtualClock(world.loop).now() - session.created_at
        waits = session.request.enqueue and age < QUEUE.wait + QUEUE.wait / 2
        truth = world.auditor.truth
        chance = place(session.request, truth, Tally(truth), reachable=world.is_linked)
        fits = isinstance(chance, Placement)
        return f"{session.id} waits: {chance}" if fits or not waits else None
    report = world.auditor.truth.report(session.id)
    if report is None or not is_about(report, session) or report.phase is not Phase.RUNNING:
        return f"{session.id} does not become ready: {report}"
    running = world.hosts[report.server_id].running.get(name_on_server(session))
    if running is None or running.generation != session.generation:
        return f"{session.id} is said to run, and does not: {running}"
    return None


def _host_troubles(world: World, host: Host) -> list[str]:
    found = []
    for id in host.running:
        truth = world.auditor.truth
        session = truth.session(f"{id}@{host.id}")
        if session is None or stage(session) is Stage.ENDED:
            session = truth.session(id)
        if session is None or stage(session) is not Stage.PLACED or session.server_id != host.id:
            found.append(f"{id} runs on {host.id}, and nobody wants it: {session}")
    link = world.auditor.truth.get(Link, host.id)
    if link is None or not link.up or not world.is_linked(host.id):
        found.append(f"{host.id} is not linked: {link}")
    server = world.auditor.truth.server(host.id)
    if server is None or not server.listed or not world.auditor.truth.facts(host.id):
        found.append(f"{host.id} is linked, and not known")
    entries = world.agents[host.id].loop._journal.entries
    found += [
        f"{host.id} remembers {id} for ever: {entry.phase}"
        for id, entry in entries.items()
        if id not in host.running
    ]
    return found
