"""The laws of the architecture, held against everything that can befall a fleet.

Hypothesis drives a world of real brokers and real agents (`support.fleet_world`) through whatever
it can think of; after each step the laws are checked, and at the end all faults are healed and the
fleet must come to rest. A failure prints the steps that led to it, as short as they get.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from deskfleet.core.records import Session, SessionRequest, Type
from support.fake_brokers import BrokerNode
from support.fake_wire import Direction, Line
from support.fleet_clients import Clients
from support.fleet_world import World, claim, use_fake_wire

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

    @invariant()
    def the_laws_hold(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        try:
            if not self.world.verdict.broken:
                self.world.heal()
                self.world.rest()
        finally:
            self.world.close()
            shutil.rmtree(self.folder)

    # Clients

    @rule(
        at=number,
        names=st.lists(owner, min_size=1, max_size=3),
        console=st.booleans(),
        enqueue=st.booleans(),
        wish=st.sampled_from(WISHES),
        disable_retry=st.booleans(),
    )
    def create(
        self,
        at: int,
        names: list[str],
        console: bool,
        enqueue: bool,
        wish: str | None,
        disable_retry: bool,
    ) -> None:
        requests = [
            SessionRequest(
                name="desk",
                owner=name,
                type=Type.CONSOLE if console else Type.VIRTUAL,
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

    @rule(at=number, which=number)
    def permit(self, at: int, which: int) -> None:
        node, session = self._broker(at), self._session(which)
        if node and session:
            self.clients.permit(node, session.id, session.request.owner)

    @rule(at=number, name=server)
    def open_server(self, at: int, name: str) -> None:
        if node := self._broker(at):
            self.clients.open(node, name)

    @rule(at=number, name=server, force=st.booleans())
    def close_server(self, at: int, name: str, force: bool) -> None:
        if node := self._broker(at):
            self.clients.close(node, name, force=force)

    # Machines

    @rule(name=server, fate=st.sampled_from(("fail", "hang", "die", "break")))
    def next_start(self, name: str, fate: str) -> None:
        self.world.hosts[name].next_starts.append(fate)

    @rule(name=server, fate=st.sampled_from(("hang", "break")))
    def next_stop(self, name: str, fate: str) -> None:
        self.world.hosts[name].next_stops.append(fate)

    @rule(name=server, fate=st.sampled_from(("ok", "fail", "die")))
    def come_through(self, name: str, fate: str) -> None:
        self.world.resolve(name, fate)

    @rule(name=server, which=number)
    def session_dies(self, name: str, which: int) -> None:
        if ids := list(self.world.hosts[name].running):
            self.world.end_session(name, ids[which % len(ids)])

    @rule(name=server, by=owner, type=st.sampled_from(Type))
    def foreign_session(self, name: str, by: str, type: Type) -> None:
        self.world.begin_foreign(name, by, type)

    @rule(name=server, unhealthy=st.sampled_from((None, None, "it is ill")))
    def health(self, name: str, unhealthy: str | None) -> None:
        self.world.set_health(name, unhealthy)

    @rule(name=server, finish=st.booleans())
    def kill_agent(self, name: str, finish: bool) -> None:
        self.world.kill_agent(name, finish=finish)

    @rule(name=server)
    def stop_agent(self, name: str) -> None:
        self.world.stop_agent(name)

    @rule(name=server, first=slot)
    def start_agent(self, name: str, first: str) -> None:
        self.world.start_agent(name, first=first)

    @rule(name=server)
    def reboot(self, name: str) -> None:
        self.world.reboot(name)

    # Brokers

    @rule(at=slot, silently=st.booleans())
    def crash_broker(self, at: str, silently: bool) -> None:
        self.world.crash_broker(at, silently=silently)

    @rule(at=slot)
    def stop_broker(self, at: str) -> None:
        self.world.stop_broker(at)

    @rule(at=slot)
    def start_broker(self, at: str) -> None:
        self.world.start_broker(at)

    @rule(at=slot)
    def pause_broker(self, at: str) -> None:
        self.world.pause_broker(at)

    @rule(at=slot)
    def resume_broker(self, at: str) -> None:
        self.world.resume_broker(at)

    @rule(at=number)
    def hold_writes(self, at: int) -> None:
        if node := self._broker(at):
            node.commits.holds_writes = True

    @rule(at=number)
    def release_write(self, at: int) -> None:
        if node := self._broker(at):
            node.commits.release_one()

    @rule(at=number, fault=st.sampled_from(("busy", "busy", "before", "after")))
    def store_fails(self, at: int, fault: str) -> None:
        if node := self._broker(at):
            node.commits.next_fault = fault

    # Lines

    @rule(which=number, up=st.booleans())
    def hold_line(self, which: int, up: bool) -> None:
        if way := self._way(which, up=up):
            way.held = True

    @rule(which=number, up=st.booleans(), what=st.sampled_from(("deliver", "double", "lose")))
    def held_message(self, which: int, up: bool, what: str) -> None:
        ways = [way for line in self.world.lines for way in (line.up, line.down) if way.waiting]
        if ways:
            getattr(ways[which % len(ways)], what)()

    @rule(which=number)
    def release_line(self, which: int) -> None:
        if line := self._line(which):
            line.flush()

    @rule(which=number, agent=st.booleans(), broker=st.booleans())
    def cut_line(self, which: int, agent: bool, broker: bool) -> None:
        if line := self._line(which):
            line.cut(agent=agent, broker=broker or not agent)

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

    @rule(seconds=st.sampled_from((0.01, 0.1, 0.1, 1, 1, 5, 12, 12, 35, 70)))
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

    def _way(self, which: int, *, up: bool) -> Direction | None:
        line = self._line(which)
        return None if line is None else line.up if up else line.down


def _pick(things: Sequence[T], which: int) -> T | None:
    return things[which % len(things)] if things else None


@pytest.fixture(autouse=True)
def _wire(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_wire(monkeypatch)


def run(machine: type[RuleBasedStateMachine], **how: object) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            deadline=None, database=None, suppress_health_check=list(HealthCheck), **how
        ),
    )


@pytest.mark.timeout(300)
def test_the_laws_hold() -> None:
    run(FleetMachine, max_examples=250, stateful_step_count=100, derandomize=True)


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_the_laws_hold_for_long() -> None:
    run(FleetMachine, max_examples=10_000, stateful_step_count=150)
