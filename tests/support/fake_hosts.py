"""Machines that run sessions, with a driver that does as the test says, and their agents.

What runs belongs to the `Host` and outlives every agent; the journal is a file of its own. The
agent is the real one: its loop, its journal, its uplink. Its disk may stand still, or fail. Killing
it drops it in the middle of whatever it does: the file stays as it was at that instant.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from deskfleet.agent.broker_door import BrokerDoor
from deskfleet.agent.desktop.attendance import Attendance
from deskfleet.agent.identity import Identity
from deskfleet.agent.journal import Journal
from deskfleet.agent.journal_file import Entry, Failure, JournalFile, Line
from deskfleet.agent.loop import Loop
from deskfleet.agent.uplink import Uplink
from deskfleet.core.records import Facts, Os, Phase, Type
from deskfleet.core.records import Host as Machine
from deskfleet.core.session import replace
from deskfleet.errors import StartFailed, Unavailable
from deskfleet.ports import Picture, Running, SessionSpec
from support.fleet_laws import Verdict
from support.virtual_time import VirtualClock, VirtualLoop

T = TypeVar("T")


class Host:
    """One machine: what runs on it, and what its driver will do next."""

    def __init__(self, facts: Facts, folder: Path, verdict: Verdict) -> None:
        self.id = facts.id
        self.verdict = verdict
        self.may_end: Callable[[str], bool] = lambda _session_id: True
        """Tells whether anybody has asked for the end of a session that is not ours."""
        self.facts = facts
        self.journal = folder / f"{facts.id}.jsonl"
        self.running: dict[str, Running] = {}
        self.starting: dict[str, SessionSpec] = {}
        self.busy: set[str] = set()
        self.hung: dict[str, asyncio.Future[str]] = {}
        self.next_starts: deque[str] = deque()
        """Each `fail`, `hang`, `break`, `die` (before the start returns) or `die-soon` (after);
        without any a start succeeds at once."""
        self.next_stops: deque[str] = deque()
        """Each `hang` or `break`."""
        self.ran: set[tuple[str, int]] = set()
        """Generations that the agent has known to run: none of them may be begun again."""
        self.disk = Disk()

    def begin(self, spec: SessionSpec, noted: Entry | None) -> None:
        intent = Entry(spec=spec, phase=Phase.STARTING)
        self.verdict.must(noted == intent, f"{self.id} begins {spec.session_id}: {noted} is noted")
        again = (spec.session_id, spec.generation) in self.ran
        self.verdict.must(not again, f"{self.id} begins {spec.session_id} again, which has run")
        self.verdict.must(spec.generation > 0, f"{self.id} begins {spec.session_id}, not ours")
        self.starting[spec.session_id] = spec

    def put(self, spec: SessionSpec, clock: VirtualClock) -> None:
        self.running[spec.session_id] = Running(
            session_id=spec.session_id,
            generation=spec.generation,
            owner=spec.request.owner,
            type=spec.request.type,
            name=spec.request.name,
            created_at=clock.now(),
        )

    def power_cycle(self) -> None:
        self.running.clear()
        self.starting.clear()
        self.facts = replace(self.facts, boot_id=self.facts.boot_id + "+")


class Disk:
    """Where a journal is; what is written to it may have to wait, and may fail."""

    def __init__(self) -> None:
        self.stands = False
        self.next_writes: deque[str] = deque()
        """Each `full` (nothing is written) or `lost` (all is, and the disk says that it isn't);
        without any a write succeeds."""
        self.has_work = asyncio.Event()
        """Set while something waits."""
        self._waiting: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()

    def off_loop(self, call: Callable[[], T], /) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        self._waiting.append((call, answer))
        self.has_work.set()
        if not self.stands:
            loop.call_soon(self.go_on)
        return answer

    def go_on(self) -> None:
        self.stands = False
        self.has_work.clear()
        while self._waiting:
            call, answer = self._waiting.popleft()
            answer.set_result(call())

    def forget(self) -> None:
        """Drop what waits, as the end of a program does."""
        self.stands = False
        self.has_work.clear()
        while self._waiting:
            self._waiting.popleft()[1].cancel()


def facts_of(server_id: str, zone: str, seats: int, each: int, types: tuple[Type, ...]) -> Facts:
    return Facts(
        id=server_id,
        hostname=server_id,
        ip="127.0.0.1",
        host=Machine(os=Os(family="linux"), memory_total=8, memory_used=4),
        driver="fake",
        version="1",
        agent_version="1",
        boot_id="boot",
        tags={"zone": zone},
        types=types,
        max_virtual_sessions=seats,
        max_sessions_per_user=each,
    )


class FakeDriver:
    name = "fake"

    def __init__(self, host: Host, clock: VirtualClock, file: JournalFile) -> None:
        self._host = host
        self._clock = clock
        self._file = file
        self._on_end: Callable[[str, str], None] = lambda _id, _reason: None
        self.dead = False

    async def open(self, on_end: Callable[[str, str], None]) -> None:
        self._on_end = on_end

    async def close(self) -> None:
        self.dead = True

    def running(self) -> Sequence[Running]:
        return list(self._host.running.values())

    async def start(self, spec: SessionSpec) -> None:
        host, id = self._host, spec.session_id
        current = host.running.get(id)
        if current is not None and current.generation == spec.generation:
            return
        host.verdict.must(current is None, f"{host.id} starts {id} beside another copy")
        self._occupy(id)
        host.begin(spec, self._file.memory.entries.get(id))
        try:
            fate = await self._fate(host.next_starts, id)
            if fate == "fail":
                raise StartFailed("it did not start")
            if fate == "break":
                raise OSError("the machine is out of order")
            host.put(spec, self._clock)
            if fate == "die":
                self.end(id, "it died at once")
            elif fate == "die-soon":
                asyncio.get_running_loop().call_soon(self.end, id, "it died soon")
        finally:
            self._free(id)

    async def stop(self, session_id: str) -> None:
        host = self._host
        self._occupy(session_id)
        try:
            fate = await self._fate(host.next_stops, session_id)
            if fate == "break":
                raise OSError("the machine is out of order")
            if not self.dead:
                ended = host.running.pop(session_id, None)
                foreign = ended is not None and ended.generation == 0
                allowed = not foreign or host.may_end(session_id)
                host.verdict.must(allowed, f"{host.id} stops {session_id}, which is not ours")
        finally:
            self._free(session_id)

    def end(self, session_id: str, reason: str) -> None:
        """Let a session end by itself."""
        if self._host.running.pop(session_id, None) is not None and not self.dead:
            self._on_end(session_id, reason)

    async def permit(self, spec: SessionSpec) -> None:
        """Return: nobody connects."""

    async def screenshot(
        self, session_id: str, *, max_width: int, max_height: int, format: str
    ) -> Sequence[Picture]:
        raise Unavailable("no pictures here")

    def display_socket(self, session_id: str) -> Path | None:
        return None

    async def version(self) -> str:
        return "1"

    async def trouble(self) -> str | None:
        return self._host.facts.unhealthy

    async def _fate(self, plan: deque[str], id: str) -> str:
        fate = plan.popleft() if plan else "ok"
        await asyncio.sleep(0)
        if fate == "hang":
            hung = self._host.hung[id] = asyncio.get_running_loop().create_future()
            try:
                fate = await hung
            finally:
                self._host.hung.pop(id, None)
        if self.dead:
            raise asyncio.CancelledError
        return fate

    def _occupy(self, id: str) -> None:
        host = self._host
        host.verdict.must(id not in host.busy, f"{host.id}: two calls at once for {id}")
        host.busy.add(id)

    def _free(self, id: str) -> None:
        if not self.dead:
            self._host.busy.discard(id)
            self._host.starting.pop(id, None)


class _WatchedFile(JournalFile):
    """Remembers which generations were known to run; says nothing once its agent is dead."""

    def __init__(self, host: Host) -> None:
        self.dead = False
        self._host = host
        super().__init__(host.journal)

    def write(self, lines: Sequence[Line]) -> list[Failure | None]:
        if self.dead:
            return ["the agent is dead"] * len(lines)
        outcomes = super().write(lines)
        for line, failure in zip(lines, outcomes, strict=True):
            entry = line.entry
            if failure is None and entry is not None and entry.phase is Phase.RUNNING:
                self._host.ran.add((line.id, entry.generation))
        return outcomes

    def _attempt(self, lines: Sequence[Line]) -> Failure | None:
        plan = self._host.disk.next_writes
        fate = plan.popleft() if plan else "ok"
        if fate == "full":
            return "the disk is full"
        before = self.memory.copy()
        failure = super()._attempt(lines)
        if fate == "lost":
            self.memory, self.torn = before, True
            return "the disk lost it"
        return failure


class _Door:
    """The brokers as a fake agent meets them: addresses and no more."""

    context = None

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = deque(urls)

    @property
    def url(self) -> str:
        return f"https://{self._urls[0]}"

    def turn(self) -> None:
        self._urls.rotate(-1)

    def drop_token(self) -> None: ...

    def prefer(self, broker: str) -> None:
        self._urls.rotate(-self._urls.index(broker))

    async def token(self, identity: Identity) -> str:
        return identity.client_id


class Agent:
    """One life of an agent on a host."""

    def __init__(self, host: Host, clock: VirtualClock, brokers: Sequence[str]) -> None:
        self.host = host
        self._file = _WatchedFile(host)
        self.driver = FakeDriver(host, clock, self._file)
        self.door = _Door(brokers)
        self._changed = asyncio.Event()
        journal = Journal(self._file, host.disk.off_loop)
        self.loop = Loop(host.id, self.driver, journal, Attendance(clock), self._changed.set)
        self._journal = journal
        self._uplink = Uplink(
            cast(BrokerDoor, self.door),
            Identity(host.id, "secret"),
            self.loop,
            self.driver,
            self._read_facts,
            clock,
            self._changed,
        )

    async def _read_facts(self) -> Facts:
        facts = self.host.facts
        return replace(facts, unhealthy=facts.unhealthy or self._journal.trouble())

    async def run(self) -> None:
        await self.loop.open()
        await self._uplink.run()

    async def lose(self, session_id: str) -> None:
        """Let a session die by itself, and be seen to."""
        self.driver.end(session_id, "it died")

    def look_again(self) -> None:
        """Say that something changed, as a driver's foreign session does at the next report."""
        self._changed.set()

    def cut_off(self) -> None:
        """Leave no trace from here on, as a killed program does."""
        self.driver.dead = True
        self._file.dead = True
        self.loop._closed = True
        self.host.disk.forget()
        self.host.busy.clear()
        self.host.hung.clear()

    def let_go(self) -> None:
        self._file.close()

    async def stop(self) -> None:
        """End in good order: what runs runs on."""
        await self.loop.close()
        self.host.busy.clear()


def kill(loop: VirtualLoop, agent: Agent, *, finish: bool, clock: VirtualClock) -> None:
    """Kill an agent; what it was starting or writing comes to its end all the same where `finish`
    says so."""
    host = agent.host
    if finish:
        host.disk.go_on()
    agent.cut_off()
    for spec in list(host.starting.values()):
        if finish:
            host.put(spec, clock)
    host.starting.clear()
    loop.kill(host.id)
    agent.let_go()
