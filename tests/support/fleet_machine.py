"""The machine that drives a fleet through whatever Hypothesis can think of.

Each rule is one thing that may happen; most say which one of what there is by a number, so that a
rule always has a meaning, and a failure still one when other steps are taken out of it. After
each step the laws are checked (`support.fleet_laws`), and at the end all faults are healed and the
fleet must come to rest.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from deskfleet.core.records import Session, SessionRequest, Type
from support.fake_brokers import BrokerNode
from support.fake_wire import Line
from support.fleet_clients import Clients
from support.fleet_rest import heal, rest
from support.fleet_world import World, claim

T = TypeVar("T")

MEMORY = Path("/dev/shm")
"""Where a journal's many small writes cost no disk; any folder will do."""

OWNERS = ("ann", "bob")
WISHES = (None, "tag:zone = 'a'", "tag:zone = 'b'", "tag:zone = 'c'")
number = st.integers(0, 9)
slot = st.sampled_from(("b1", "b2", "b3"))
server = st.sampled_from(("alpha", "beta", "gamma"))
owner = st.sampled_from(OWNERS)


class FleetMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        place = MEMORY if MEMORY.is_dir() else None
        self.folder = Path(tempfile.mkdtemp(prefix="deskfleet-laws-", dir=place))
        self.world = World(self.folder, brokers=3)
        self.clients = Clients(self.world)
        self.steps = 0

    @invariant()
    def the_laws_hold(self) -> None:
        self.steps += 1
        self.world.check()

    def teardown(self) -> None:
        try:
            if not self.world.verdict.broken:
                heal(self.world)
                rest(self.world)
        finally:
            self.world.close()
            shutil.rmtree(self.folder)

    # Clients

    @rule(at=number, name=owner)
    def create(self, at: int, name: str) -> None:
        if node := self._broker(at):
            self.clients.create(
                node, [SessionRequest(name="desk", owner=name, type=Type.VIRTUAL, enqueue=True)]
            )

    @rule(
        at=number,
        names=st.lists(owner, min_size=1, max_size=3),
        type=st.sampled_from(Type),
        wish=st.sampled_from(WISHES),
        enqueue=st.booleans(),
        disable_retry=st.booleans(),
    )
    def create_many(
        self,
        at: int,
        names: list[str],
        type: Type,
        wish: str | None,
        enqueue: bool,
        disable_retry: bool,
    ) -> None:
        requests = [
            SessionRequest(
                name="desk",
                owner=name,
                type=type,
                enqueue=enqueue,
                requirements=wish,
                disable_retry=disable_retry,
            )
            for name in names
        ]
        if node := self._broker(at):
            self.clients.create(node, requests)

    @rule(at=number, which=number, force=st.booleans(), by=st.sampled_from((None, *OWNERS)))
    def delete(self, at: int, which: int, force: bool, by: str | None) -> None:
        node, session = self._broker(at), self._session(which)
        if node and session:
            self.clients.delete(node, session.id, by or session.request.owner, force=force)

    @rule(name=server, at=number, what=st.sampled_from(("open", "open", "close", "force-close")))
    def turn_server(self, name: str, at: int, what: str) -> None:
        node = self._broker(at)
        if node and what == "open":
            self.clients.open(node, name)
        elif node:
            self.clients.close(node, name, force=what == "force-close")

    @rule(at=number, which=number)
    def permit(self, at: int, which: int) -> None:
        node, session = self._broker(at), self._session(which)
        if node and session:
            self.clients.permit(node, session.id, session.request.owner)

    # Machines

    @rule(
        name=server,
        fate=st.sampled_from(("fail", "fail", "hang", "hang", "die", "die-soon", "break")),
    )
    def plan_start(self, name: str, fate: str) -> None:
        self.world.hosts[name].next_starts.append(fate)

    @rule(name=server, fate=st.sampled_from(("hang", "break")))
    def plan_stop(self, name: str, fate: str) -> None:
        self.world.hosts[name].next_stops.append(fate)

    @rule(name=server, fate=st.sampled_from(("ok", "fail", "die", "die-soon")))
    def come_through(self, name: str, fate: str) -> None:
        self.world.resolve(name, fate)

    @rule(name=server, what=st.sampled_from(("stand", "stand", "go-on", "full", "lost")))
    def disk_is_slow(self, name: str, what: str) -> None:
        disk = self.world.hosts[name].disk
        if what == "stand":
            disk.stands = True
        elif what == "go-on":
            disk.go_on()
        else:
            disk.next_writes.append(what)

    @rule(name=server, which=number)
    def session_dies(self, name: str, which: int) -> None:
        if ids := list(self.world.hosts[name].running):
            self.world.end_session(name, ids[which % len(ids)])

    @rule(
        name=server, by=owner, type=st.sampled_from(Type), ill=st.sampled_from((None, "it is ill"))
    )
    def machine_changes(self, name: str, by: str, type: Type, ill: str | None) -> None:
        self.world.set_health(name, ill)
        if ill is None:
            self.world.begin_foreign(name, by, type)

    @rule(
        name=server,
        first=slot,
        what=st.sampled_from(
            ("start", "start", "start", "kill", "kill-late", "stop", "reboot", "lose")
        ),
    )
    def agent_lives(self, name: str, first: str, what: str) -> None:
        if what == "start":
            self.world.start_agent(name, first=first)
        elif what == "stop":
            self.world.stop_agent(name)
        elif what == "reboot":
            self.world.reboot(name)
        elif what == "lose":
            self.world.lose_journal(name)
        else:
            self.world.kill_agent(name, finish=what == "kill-late")

    # Brokers

    @rule(at=slot, what=st.sampled_from(("start", "start", "start", "crash", "vanish", "stop")))
    def broker_lives(self, at: str, what: str) -> None:
        if what == "start":
            self.world.start_broker(at)
        elif what == "stop":
            self.world.stop_broker(at)
        else:
            self.world.crash_broker(at, silently=what == "vanish")

    @rule(at=slot, what=st.sampled_from(("pause", "resume", "resume")))
    def broker_pauses(self, at: str, what: str) -> None:
        if what == "pause":
            self.world.pause_broker(at)
        else:
            self.world.resume_broker(at)

    @rule(at=number, what=st.sampled_from(("hold", "hold", "release", "release", "all")))
    def broker_is_slow(self, at: int, what: str) -> None:
        node = self._broker(at)
        if node is None:
            return
        if what == "hold":
            node.commits.holds_writes = True
        elif what == "release":
            node.commits.release_one()
        else:
            self.world.resume_broker(node.url)

    @rule(arrive=st.booleans())
    def pokes(self, arrive: bool) -> None:
        self.world.pokes_arrive = arrive

    @rule(at=number, fault=st.sampled_from(("busy", "deaf", "before", "after")))
    def store_fails(self, at: int, fault: str) -> None:
        node = self._broker(at)
        if node and fault == "deaf":
            node.commits.next_read_fails = True
        elif node:
            node.commits.next_fault = fault

    # Lines

    @rule(
        which=number,
        up=st.booleans(),
        what=st.sampled_from(("hold", "hold", "deliver", "double", "lose", "flush")),
    )
    def line_is_slow(self, which: int, up: bool, what: str) -> None:
        held = [line for line in self.world.lines if line.up.waiting or line.down.waiting]
        line = self._line(which) if what == "hold" else _pick(held, which)
        if line is None:
            return
        way = line.up if up else line.down
        if what == "hold":
            way.held = True
        elif what == "flush":
            line.flush()
        else:
            {"deliver": way.deliver, "double": way.double, "lose": way.lose}[what]()

    @rule(which=number, knows=st.sampled_from(("both", "agent", "broker")))
    def line_is_cut(self, which: int, knows: str) -> None:
        if line := self._line(which):
            line.cut(agent=knows != "broker", broker=knows != "agent")

    @rule(which=number, old=number)
    def replay_report(self, which: int, old: int) -> None:
        """Let a broker hear again, on the newest line, what an agent said at any time."""
        if (line := self._line(which)) and (text := _pick(self.world.said(line.server_id), old)):
            line.up.inject(text)

    @rule(which=number, old=number)
    def replay_desires(self, which: int, old: int) -> None:
        """Let an agent be told again, on the newest line, what it was told at any time."""
        if (line := self._line(which)) and (text := _pick(self.world.told(line.server_id), old)):
            line.down.inject(text)

    @rule(which=number, whose=number, back=number)
    def speak_for_others(self, which: int, whose: int, back: int) -> None:
        """Let an agent report a session that is not on its server."""
        line, session = self._line(which), self._session(whose)
        if line and session and session.server_id != line.server_id and session.generation:
            line.up.inject(claim(line, session, back))

    # Time, and a look at everything

    @rule(seconds=st.sampled_from((0.01, 0.1, 0.1, 1, 5)))
    def moments_pass(self, seconds: float) -> None:
        self.world.loop.advance(seconds)

    @rule(seconds=st.sampled_from((1, 5, 12, 12, 35, 70, 300, 1000)))
    def time_passes(self, seconds: float) -> None:
        self.world.loop.advance(seconds)

    @rule()
    def look(self) -> None:
        self.world.compare()

    def _broker(self, which: int) -> BrokerNode | None:
        return _pick(list(self.world.brokers.values()), which)

    def _session(self, which: int) -> Session | None:
        """Pick a session, rather one that was created last."""
        sessions = list(self.world.auditor.truth.each(Session))
        return _pick(sessions[::-1], which)

    def _line(self, which: int) -> Line | None:
        return _pick([line for line in self.world.lines if not line.is_over], which)


def _pick(things: Sequence[T], which: int) -> T | None:
    return things[which % len(things)] if things else None


def run(machine: type[RuleBasedStateMachine], **how: Any) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(database=None, suppress_health_check=list(HealthCheck), **how),
    )
