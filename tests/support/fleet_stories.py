"""Short stories of a fleet in which one guard matters: nothing but that guard keeps the law.

Each is told with real brokers and agents, and comes to the same end every time. With all guards in
place it ends well; the planted bugs show what happens without.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from deskfleet.core.records import Session, SessionRequest, Type
from support.fake_wire import Line
from support.fleet_clients import Clients
from support.fleet_machine import MEMORY
from support.fleet_rest import heal, rest
from support.fleet_world import World

Story: TypeAlias = Callable[[World, Clients], None]


def desk(owner: str = "ann", type: Type = Type.VIRTUAL, wish: str | None = None) -> SessionRequest:
    return SessionRequest(name="desk", owner=owner, type=type, requirements=wish)


def only_session(world: World) -> Session:
    [session] = world.auditor.truth.each(Session)
    return session


def line_of(world: World, server_id: str) -> Line:
    return next(line for line in world.lines if line.server_id == server_id and line.is_whole)


def is_up(world: World, server_id: str) -> bool:
    link = world.auditor.truth.link(server_id)
    return link is not None and link.up


def a_report_comes_late(world: World, clients: Clients) -> None:
    """A report that was under way while the agent moved to another broker arrives at the first."""
    world.pokes_arrive = False
    old = line_of(world, "alpha")
    old.up.held = True
    world.begin_foreign("alpha", "ann", Type.VIRTUAL)
    world.loop.advance(0.1)
    old.cut(agent=True, broker=False)
    world.end_session("alpha", "foreign-1")
    world.loop.advance(2)
    old.up.swallowed = False
    old.flush()


def it_fails_and_comes_back(world: World, clients: Clients) -> None:
    """A start fails, the session is placed on the same server again, and an old report comes."""
    gamma = world.hosts["gamma"]
    gamma.next_starts.extend(["fail", "hang"])
    clients.create(world.brokers["b1"], [desk(wish="tag:zone = 'b'")])
    world.loop.advance(1)
    assert only_session(world).generation == 2
    for text in world.said("gamma"):
        line_of(world, "gamma").up.inject(text)
        world.check()


def two_brokers_race(world: World, clients: Clients) -> None:
    """Two brokers place in the same last seat; one of them is slow."""
    slow, fast = world.brokers["b1"], world.brokers["b2"]
    slow.commits.holds_writes = True
    clients.create(slow, [desk(wish="tag:zone = 'b'")])
    world.check()
    clients.create(fast, [desk(wish="tag:zone = 'b'")])
    world.check()
    slow.commits.resume()


def adopted_meanwhile(world: World, clients: Clients) -> None:
    """A session is found on a server while one is being placed there."""
    node = world.brokers["b1"]
    node.commits.holds_writes = True
    world.begin_foreign("gamma", "bob", Type.CONSOLE)
    world.loop.advance(0.1)
    clients.create(node, [desk(wish="tag:zone = 'b'")])
    world.check()
    node.commits.resume()


def told_twice(world: World, clients: Clients) -> None:
    """An agent hears an old desired set after a start has failed there and was moved elsewhere.

    It has lost its memory of that: nothing but the serial tells it that the set is old.
    """
    world.hosts["alpha"].next_starts.append("fail")
    clients.create(world.brokers["b1"], [desk()])
    world.loop.advance(1)
    assert only_session(world).tried == ("alpha",)
    world.lose_journal("alpha")
    world.start_agent("alpha")
    world.loop.advance(1)
    for text in world.told("alpha"):
        line_of(world, "alpha").down.inject(text)


def killed_before_it_is_heard(world: World, clients: Clients) -> None:
    """A session begins and dies; its agent is killed before anybody hears of it."""
    line = line_of(world, "gamma")
    clients.create(world.brokers["b1"], [desk(wish="tag:zone = 'b'")])
    line.up.held = True
    world.loop.advance(0.1)
    assert world.hosts["gamma"].running
    line.cut()
    world.reboot("gamma")
    world.start_agent("gamma")


def reinstalled(world: World, clients: Clients) -> None:
    """A machine comes back without its sessions, and without any memory of them."""
    clients.create(world.brokers["b1"], [desk(wish="tag:zone = 'b'")])
    world.loop.advance(1)
    world.lose_journal("gamma")
    world.reboot("gamma")
    world.start_agent("gamma")


def it_will_not_stop(world: World, clients: Clients) -> None:
    """A session is deleted, and the first attempt to stop it fails."""
    clients.create(world.brokers["b1"], [desk()])
    world.loop.advance(1)
    session = only_session(world)
    assert session.server_id is not None
    world.hosts[session.server_id].next_stops.append("break")
    clients.delete(world.brokers["b2"], session.id, "ann", force=False)


def its_disk_is_full(world: World, clients: Clients) -> None:
    """A server has no room to note what it is about to do."""
    world.hosts["gamma"].disk.next_writes.extend(["full", "full"])
    clients.create(world.brokers["b1"], [desk(wish="tag:zone = 'b'")])
    world.loop.advance(1)


def a_store_is_busy(world: World, clients: Clients) -> None:
    """A store is too busy for what a server says, again and again."""
    node, line = world.brokers["b1"], line_of(world, "gamma")
    if line.broker != node.name:
        node = world.brokers["b2"]
    clients.create(node, [desk(wish="tag:zone = 'b'")])
    world.check()
    for _ in range(6):
        node.commits.next_fault = "busy"
        world.begin_foreign("gamma", "bob", Type.VIRTUAL)
        world.loop.advance(0.4)
    world.loop.advance(10)
    session = world.auditor.truth.session("foreign-6")
    world.verdict.must(session is not None, "what was said at last is not written")
    world.verdict.must(line.is_whole, "the link of gamma was cut for a store that was busy")


def greeted_twice(world: World, clients: Clients) -> None:
    """A new server is greeted by two brokers at once, for its first hello took long."""
    for broker in world.brokers.values():
        broker.commits.holds_writes = True
    world.add_host("delta")
    world.start_agent("delta", first="b2")
    world.loop.advance(15)
    for broker in world.brokers.values():
        broker.commits.resume()
    world.check()


def it_goes_dark(world: World, clients: Clients) -> None:
    """A machine loses its power."""
    world.kill_agent("gamma")
    world.loop.advance(60)
    for node in world.brokers.values():
        world.verdict.must(not node.liveness.is_reachable("gamma"), "gamma counts as reachable")


def dropped_while_it_begins(world: World, clients: Clients) -> None:
    """A session is deleted by force while its first report is on its way to the store."""
    slow = world.brokers["b1"]
    world.hosts["gamma"].next_starts.append("hang")
    clients.create(world.brokers["b2"], [desk(wish="tag:zone = 'b'")])
    slow.commits.holds_writes = True
    world.loop.advance(1)
    assert slow.commits.waits
    clients.delete(world.brokers["b2"], only_session(world).id, "ann", force=True)
    world.check()
    slow.commits.resume()


def dropped_on_old_news(world: World, clients: Clients) -> None:
    """A session is deleted by force by a broker that has not heard of its first report."""
    slow, line = world.brokers["b2"], line_of(world, "gamma")
    clients.create(world.brokers["b1"], [desk(wish="tag:zone = 'b'")])
    line.up.held = True
    world.loop.advance(1)
    slow.commits.holds_writes = True
    clients.delete(slow, only_session(world).id, "ann", force=True)
    world.check()
    line.flush()
    world.check()
    slow.commits.resume()


def over_before_it_is_told(world: World, clients: Clients) -> None:
    """A session ends between its start and the moment at which the agent takes note of that."""
    world.hosts["gamma"].next_starts.append("die-soon")
    clients.create(world.brokers["b1"], [desk(wish="tag:zone = 'b'")])
    world.loop.advance(1)


def welcomed_by_nobody(world: World, clients: Clients) -> None:
    """A link is written, the store is too busy to read just then, and the machine is gone."""
    world.kill_agent("gamma")
    world.loop.advance(60)
    holder, other = world.brokers["b1"], world.brokers["b2"]
    world.pokes_arrive = False
    holder.commits.holds_writes = True
    world.start_agent("gamma", first="b1")
    world.check()
    clients.close(other, "beta", force=True)
    world.check()
    while not is_up(world, "gamma"):
        holder.commits.next_read_fails = True
        holder.commits.release_one()
        world.check()
    world.kill_agent("gamma")
    holder.commits.resume()
    it_goes_dark(world, clients)


def stuck_for_long(world: World, clients: Clients) -> None:
    """A broker can't write for so long that the others forget the servers whose links it holds."""
    world.brokers["b1"].commits.holds_writes = True
    world.loop.advance(300)


def closed_and_away(world: World, clients: Clients) -> None:
    """A server is closed, and its machine is off for so long that nobody is shown it any more."""
    clients.close(world.brokers["b1"], "gamma", force=False)
    world.loop.advance(0.1)
    world.kill_agent("gamma")
    world.loop.advance(300)


def away_with_a_session(world: World, clients: Clients) -> None:
    """A machine is off the net for as long, with a session on it."""
    clients.create(world.brokers["b1"], [desk(wish="tag:zone = 'b'")])
    world.loop.advance(1)
    world.kill_agent("gamma")
    world.loop.advance(300)
    known = world.auditor.truth.server("gamma")
    world.verdict.must(known is not None and not known.listed, "gamma is still shown")


def one_console_after_the_other(world: World, clients: Clients) -> None:
    """A console session ends, and the next one begins before its agent has said so."""
    world.begin_foreign("beta", "ann", Type.CONSOLE)
    world.loop.advance(0.01)
    world.end_session("beta", "console")
    world.check()
    world.begin_foreign("beta", "ann", Type.CONSOLE)
    world.loop.advance(0.01)


def tell(story: Story) -> None:
    """Let a story happen, and the fleet come to rest after it."""
    random.seed(0)  # agents jitter
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        world = World(Path(folder))
        try:
            story(world, Clients(world))
            world.check()
            heal(world)
            rest(world)
        finally:
            world.close()
