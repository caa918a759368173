"""A whole fleet in one event loop: brokers, agents, hosts, lines, and all that befalls them.

Everything that decides is the real thing; what is fake is the wire, the driver, the time, and the
call of the store. The methods are what a test may let happen; after each, `check` raises
`LawBroken` where any law has been broken. How it must all end is in `support.fleet_rest`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from deskfleet.agent import uplink
from deskfleet.broker.service import housekeeping
from deskfleet.broker.stores.memory import MemoryStore
from deskfleet.core.fleet import Fleet
from deskfleet.core.records import Broker, Link, Phase, Report, Session, Type
from deskfleet.core.session import name_on_server, replace
from deskfleet.errors import StoreFailed, Unavailable
from deskfleet.ports import Running
from deskfleet.wire.messages import Observation, Observed, encode
from support import fake_hosts
from support.fake_brokers import BrokerNode
from support.fake_hosts import Agent, Host, facts_of
from support.fake_wire import AgentEnd, Line, Said
from support.fleet_laws import Auditor, LawBroken, Verdict, portrait
from support.virtual_time import VirtualClock, VirtualLoop

SLOTS = ("b1", "b2", "b3")
SERVERS = (
    ("alpha", "a", 2, 1, (Type.VIRTUAL,)),
    ("beta", "a", 3, 2, (Type.VIRTUAL, Type.CONSOLE)),
    ("gamma", "b", 1, 1, (Type.VIRTUAL, Type.CONSOLE)),
    ("delta", "c", 1, 1, (Type.VIRTUAL,)),
)

OLDEST_REPLAY_SECONDS = 300.0
"""Well below the time for which ended sessions are kept."""
KEPT_TOMBSTONES = 60
"""So few that a broker which was away for a while must load everything again."""


class CountedIds:
    def __init__(self) -> None:
        self._count = 0

    def uuid(self) -> str:
        self._count += 1
        return f"id-{self._count}"

    def secret(self) -> str:
        return self.uuid()


class World:
    def __init__(self, folder: Path, *, brokers: int = 2) -> None:
        self.loop = VirtualLoop()
        self.loop.connect = self.connect
        self.store = MemoryStore()
        self.verdict = Verdict()
        self.auditor = Auditor(self.verdict, self.store.load()[0], self._runs_on)
        self.ids = CountedIds()
        self.slots = SLOTS[:brokers]
        self.pokes_arrive = True
        self.brokers: dict[str, BrokerNode] = {}
        self.lines: list[Line] = []
        self.agents: dict[str, Agent] = {}
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._lives = 0
        self._foreign = 0
        self.lost_races = 0
        self._heard: dict[str, tuple[Said, Said]] = {
            server[0]: (deque(maxlen=40), deque(maxlen=40)) for server in SERVERS
        }
        self._folder = folder
        self.hosts: dict[str, Host] = {}
        for name in ("alpha", "beta", "gamma"):
            self.add_host(name)
        for slot in self.slots:
            self.start_broker(slot)
        self.loop.settle()
        for name in self.hosts:
            self.start_agent(name)
        self.loop.advance(1)

    def close(self) -> None:
        for slot in list(self.brokers):
            self.crash_broker(slot, silently=True)
        for name in list(self.agents):
            self.kill_agent(name)
        for name in list(self.loop.tasks):
            self.loop.kill(name)
        self.loop.close()

    # Brokers

    def start_broker(self, slot: str) -> None:
        if slot in self.brokers:
            return
        self._lives += 1
        # Later lives come back with a wrong wall clock; the second broker is a slow machine.
        skew = (-1.0, 0.0, 2.0)[self._lives % 3] if self._lives > len(SLOTS) else 0.0
        tick = 0.03 if slot == "b2" else 0.0
        node = BrokerNode(
            name=f"{slot}-{self._lives}",
            url=slot,
            loop=self.loop,
            store=self.store,
            witness=self.auditor,
            clock=VirtualClock(self.loop, skew, tick),
            ids=self.ids,
            poke=self._poke,
        )
        self.brokers[slot] = node
        self._runs[slot] = self.loop.begin(node.name, node.run())

    def crash_broker(self, slot: str, *, silently: bool) -> None:
        """End a broker at once; `silently`: its machine is gone, and nobody is told."""
        node = self.brokers.pop(slot, None)
        if node is None:
            return
        node.commits.paused = True
        self.lost_races += node.commits.lost_races
        for line in self._lines_of(node):
            line.cut(agent=not silently)
        self.loop.kill(node.name)
        self._bury(self._runs.pop(slot))

    def stop_broker(self, slot: str) -> None:
        """End a broker in good order."""
        node = self.brokers.get(slot)
        if node is None:
            return
        self.resume_broker(slot)
        self.loop.settle()
        self.loop.begin(node.name, node.retire())
        self.loop.advance(0.1)
        self.crash_broker(slot, silently=False)

    def pause_broker(self, slot: str) -> None:
        node = self.brokers.get(slot)
        if node is not None:
            node.commits.paused = True
            for line in self._lines_of(node):
                line.up.held = line.down.held = True

    def resume_broker(self, slot: str) -> None:
        node = self.brokers.get(slot)
        if node is not None:
            node.commits.resume()
            for line in self._lines_of(node):
                line.flush()

    async def _poke(self, broker: Broker) -> None:
        node = self.brokers.get(broker.url)
        if node is not None and not node.commits.paused and self.pokes_arrive:
            node.housekeeping.poke()

    def _bury(self, run: asyncio.Task[None]) -> None:
        """Look at what a broker died of."""
        if run.cancelled() or (death := run.exception()) is None:
            return
        deaths = death if isinstance(death, BaseExceptionGroup) else BaseExceptionGroup("", [death])
        _, unknown = deaths.split(StoreFailed)
        self.verdict.must(unknown is None, f"a broker died of {unknown!r}")

    # Agents

    def add_host(self, name: str) -> None:
        [server] = [server for server in SERVERS if server[0] == name]
        host = self.hosts[name] = Host(facts_of(*server), self._folder, self.verdict)
        host.may_end = lambda id: bool({id, f"{id}@{name}"} & self.auditor.delete_wanted)

    def start_agent(self, name: str, *, first: str | None = None) -> None:
        if name in self.agents:
            return
        agent = Agent(self.hosts[name], self._clock(name), self.slots)
        if first is not None:
            agent.door.prefer(first)
        self.agents[name] = agent
        self.loop.begin(name, agent.run())

    def kill_agent(self, name: str, *, finish: bool = False) -> None:
        agent = self.agents.pop(name, None)
        if agent is None:
            return
        held = [line for line in self.lines if line.server_id == name and line.up.held]
        fake_hosts.kill(self.loop, agent, finish=finish, clock=self._clock(name))
        for line in self.lines:
            if line.server_id == name and line not in held:
                line.hang_up()

    def stop_agent(self, name: str) -> None:
        agent = self.agents.get(name)
        if agent is None:
            return
        self.hosts[name].disk.go_on()
        ended = self.loop.begin(name, agent.stop())
        self.loop.settle()
        self.verdict.must(ended.done(), f"the agent of {name} does not end")
        self.verdict.must(
            not self.hosts[name].starting, f"the agent of {name} leaves a start behind"
        )
        del self.agents[name]
        agent.driver.dead = True
        self.loop.kill(name)

    def reboot(self, name: str) -> None:
        self.kill_agent(name)
        self.hosts[name].power_cycle()

    def lose_journal(self, name: str) -> None:
        """Kill an agent and take its memory; what its broker has not heard of it, nobody knows."""
        self.kill_agent(name)
        host = self.hosts[name]
        host.journal.unlink(missing_ok=True)
        self.auditor.forgetful.add(name)
        host.ran = {(id, generation) for id, generation in host.ran if self.auditor.has_run(id)}

    def end_session(self, name: str, session_id: str) -> None:
        """Let a session die by itself, seen by the agent or not."""
        agent = self.agents.get(name)
        if agent is not None:
            self.loop.begin(name, agent.lose(session_id))
            self.loop.settle()
        else:
            self.hosts[name].running.pop(session_id, None)

    def begin_foreign(self, name: str, owner: str, type: Type) -> None:
        """Let a session appear that nobody asked deskfleet for."""
        self._foreign += 1
        # A server's console session is always called so, on every server.
        id = "console" if type is Type.CONSOLE else f"foreign-{self._foreign}"
        if id in self.hosts[name].running:
            return
        session = Running(
            session_id=id, generation=0, owner=owner, type=type, name=f"life {self._foreign}"
        )
        self.hosts[name].running[session.session_id] = session
        if name in self.agents:
            self.agents[name].look_again()

    def set_health(self, name: str, unhealthy: str | None) -> None:
        host = self.hosts[name]
        host.facts = replace(host.facts, unhealthy=unhealthy)

    def resolve(self, name: str, fate: str) -> None:
        """End the oldest call of a driver that hangs."""
        for hung in list(self.hosts[name].hung.values())[:1]:
            if not hung.done():
                hung.set_result(fate)

    def _runs_on(self, server_id: str, session: Session) -> bool:
        one = self.hosts[server_id].running.get(name_on_server(session))
        # A server's console session may have begun anew under its id, and not be told of yet.
        return one is not None and (one.generation > 0 or one.name == session.request.name)

    def _clock(self, name: str) -> VirtualClock:
        return VirtualClock(self.loop)

    # Lines

    def connect(self, url: str, **how: Any) -> _Connecting:
        """Stand for `websockets.connect`."""
        return _Connecting(self, url, how)

    def open_line(self, slot: str, server_id: str) -> Line:
        said, told = self._heard[server_id]
        line = Line(self.loop, server_id, self.brokers[slot].name, said, told)
        self.lines = [old for old in self.lines if not old.is_over]
        self.lines.append(line)
        self.brokers[slot].take(line)
        return line

    def is_linked(self, server_id: str) -> bool:
        """Tell whether the server's newest link is in order, whatever the brokers believe."""
        link = self.auditor.truth.get(Link, server_id)
        return link is not None and any(
            line.is_whole
            and (line.server_id, line.broker, line.epoch) == (server_id, link.broker_id, link.epoch)
            for line in self.lines
        )

    def said(self, server_id: str) -> list[str]:
        """Return the reports that an agent has sent in the last minutes, newest first."""
        return self._recent(self._heard[server_id][0])

    def told(self, server_id: str) -> list[str]:
        """Return the desired sets that an agent was sent in the last minutes, newest first."""
        return self._recent(self._heard[server_id][1])

    def _recent(self, messages: Sequence[tuple[float, str]]) -> list[str]:
        since = self.loop.seconds - OLDEST_REPLAY_SECONDS
        return [text for at, text in reversed(messages) if at >= since]

    def _lines_of(self, node: BrokerNode) -> list[Line]:
        return [line for line in self.lines if line.broker == node.name and not line.is_over]

    # The laws

    def check(self) -> None:
        """Run what is due, and raise where a law is broken."""
        self.loop.settle()
        for slot, run in list(self._runs.items()):
            if run.done():
                self.crash_broker(slot, silently=False)
        places: dict[str, str] = {}
        for host in self.hosts.values():
            ours = {id for id, one in host.running.items() if one.generation > 0}
            for id in ours | host.starting.keys():
                other = places.setdefault(id, host.id)
                self.verdict.must(other == host.id, f"{id} runs on {other} and on {host.id}")
        self.verdict.must(not self.loop.failures, f"failed: {self.loop.failures}")
        self.verdict.check()

    def compare(self) -> None:
        """Check that every replica that can catch up equals the store, and reads nothing stale."""
        fresh = Fleet()
        fresh.revision, stored = self.store.load()
        for entry in stored:
            fresh.apply(entry)
        _same("the auditor", self.auditor.truth, fresh)
        for node in self.brokers.values():
            if not node.commits.paused and not node.commits.failed:
                self.loop.begin("test", self._compare(node))
        self.check()

    async def _compare(self, node: BrokerNode) -> None:
        try:
            await node.replica.catch_up()
        except (Unavailable, StoreFailed):
            return
        # Nothing ran since the answer: whatever was written in between is in both.
        revision = node.replica.fleet.revision
        current = revision == self.auditor.truth.revision
        try:
            if current:
                _same(node.name, node.replica.fleet, self.auditor.truth)
            for session in node.replica.fleet.each(Session):
                node.sessions.view(session)
        except LawBroken as error:
            self.verdict.must(False, str(error))


class _Connecting:
    def __init__(self, world: World, url: str, how: Mapping[str, Any]) -> None:
        self._world = world
        self._slot = url.removeprefix("wss://").removesuffix("/agent/link")
        self._how = how
        self._end: AgentEnd | None = None

    async def __aenter__(self) -> AgentEnd:
        node = self._world.brokers.get(self._slot)
        if node is None:
            raise ConnectionRefusedError(f"nobody is at {self._slot}")
        if node.commits.paused:
            await asyncio.sleep(self._how["open_timeout"])
            raise TimeoutError
        server_id = self._how["additional_headers"]["Authorization"].removeprefix("Bearer ")
        line = self._world.open_line(self._slot, server_id)
        self._end = AgentEnd(line)
        return self._end

    async def __aexit__(self, *_: object) -> None:
        if self._end is not None:
            await self._end.__aexit__()


def _same(name: str, one: Fleet, other: Fleet) -> None:
    mine, yours = portrait(one), portrait(other)
    wrong = [part for part in mine if mine[part] != yours[part]]
    if wrong:
        raise LawBroken(f"{name} is not what is stored: {wrong}")


def claim(line: Line, session: Session, back: int) -> str:
    """Make a report, as of the newest link, about a session of somebody else."""
    phases = list(Phase)
    report = Report(
        id=session.id,
        server_id=line.server_id,
        generation=max(1, session.generation - back // len(phases)),
        phase=phases[back % len(phases)],
        reason="so they say",
    )
    observation = Observation(epoch=line.epoch, serial=0, observed=(Observed(report=report),))
    return encode(observation).decode()


def use_fake_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let agents that run in a `VirtualLoop` connect to the brokers of their world."""

    def connect(url: str, **how: Any) -> Any:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        assert loop.connect is not None
        return loop.connect(url, **how)

    monkeypatch.setattr(uplink, "connect", connect)
    monkeypatch.setattr(housekeeping, "KEPT_TOMBSTONES", KEPT_TOMBSTONES)
