"""An agent's link to a real broker, and what becomes of both when one of them is in trouble."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import io
import json
import logging
import random
import resource
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop
from PIL import Image

from deskfleet.agent.broker_door import BrokerDoor
from deskfleet.agent.desktop.attendance import Attendance
from deskfleet.agent.drivers.pictures import encode
from deskfleet.agent.drivers.simulated import SimulatedDriver
from deskfleet.agent.identity import Identity
from deskfleet.agent.journal import Journal
from deskfleet.agent.journal_file import JournalFile
from deskfleet.agent.loop import Loop
from deskfleet.agent.uplink import PING_BEATS, SCREENSHOTS_AT_ONCE, Uplink
from deskfleet.broker.service import screenshots
from deskfleet.broker.service.admission import Admission
from deskfleet.broker.service.links import BUSY_SECONDS, Links
from deskfleet.broker.service.screenshots import FULL, LATE, Shot, Wish
from deskfleet.broker.stores.memory import MemoryStore
from deskfleet.core.change import ChangeSet, Stored, Tombstone
from deskfleet.core.pictures import MOST_BYTES, MOST_PIXELS
from deskfleet.core.placement import Refusal
from deskfleet.core.records import AgentClient, Facts, Revision, Session, Type
from deskfleet.core.session import State, replace, seen
from deskfleet.errors import Unavailable
from deskfleet.ports import Clock, Lost, Picture, Running
from deskfleet.system import SystemClock
from deskfleet.wire.link import SILENT_BEATS
from support.builders import NOON, a_request, some_facts
from support.fault_proxy import FaultProxy
from support.running_broker import RunningBroker, read_all, running_broker
from support.waiting import soon

LIMIT_SECONDS = 20.0


class BusyStore(MemoryStore):
    """A store that is too busy for reads while a test says so, or doesn't come back from writes."""

    def __init__(self) -> None:
        super().__init__()
        self.busy = False
        self.refused = 0
        self.flows = threading.Event()
        self.flows.set()
        self.stands = threading.Event()

    def commit(self, change_sets: Sequence[ChangeSet]) -> list[Revision | Lost]:
        if not self.flows.is_set():
            self.stands.set()
            assert self.flows.wait(LIMIT_SECONDS)
        return list(super().commit(change_sets))

    def changes(self, since: Revision) -> tuple[Revision, list[Stored | Tombstone]]:
        if self.busy:
            self.refused += 1
            raise Unavailable("the store is busy")
        revision, entries = super().changes(since)
        return revision, list(entries)

    def glance(self) -> Revision | None:
        return None if self.busy else super().glance()


class CountingDoor(BrokerDoor):
    """Knows how often it was asked for a token."""

    tokens = 0

    async def _post(self, path: str, **request: Any) -> httpx.Response:
        self.tokens += path == "/oauth2/token"
        return await super()._post(path, **request)


class LinkedAgent:
    """An agent without a program: its link, its loop, and sessions that aren't there."""

    def __init__(
        self,
        broker: RunningBroker,
        folder: Path,
        url: str,
        driver: type[SimulatedDriver] = SimulatedDriver,
    ) -> None:
        clock, changed = SystemClock(), asyncio.Event()
        credentials = broker.call(broker.house.access.register_any_agent("n1"))
        identity = Identity(credentials.client_id, credentials.client_password)
        self.id = identity.client_id
        self._said = 0
        self.door = CountingDoor([url], broker.context, clock)
        self.driver = driver(clock)
        journal = Journal(JournalFile(folder / f"{self.id}.jsonl"))
        self.loop = Loop(self.id, self.driver, journal, Attendance(clock), changed.set)
        self.uplink = Uplink(
            self.door, identity, self.loop, self.driver, self._facts, clock, changed
        )

    async def _facts(self) -> Facts:
        return some_facts(self.id)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.loop.open()
        running = asyncio.create_task(self.uplink.run())
        try:
            await self.until_linked()
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await self.loop.close()
            await self.door.close()

    def say_something(self) -> None:
        """Say something new, to be told at once."""
        self._said += 1
        self.driver._running["console"] = Running(
            session_id="console",
            generation=0,
            owner="ann",
            type=Type.CONSOLE,
            connections=self._said,
        )
        self.uplink._changed.set()

    async def until_linked(self) -> None:
        await asyncio.wait_for(self.uplink.linked.wait(), LIMIT_SECONDS)

    async def until_lost(self) -> None:
        await soon(lambda: not self.uplink.linked.is_set())


@pytest.fixture(scope="module")
def store() -> BusyStore:
    return BusyStore()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, store: BusyStore) -> Iterator[RunningBroker]:
    with running_broker(tmp_path_factory.mktemp("uplink"), store) as running:
        yield running


def crowd(folder: Path, count: int, rate: float) -> None:
    """Lose so many links in one moment, at a broker that opens `rate` a second."""

    async def scenario(broker: RunningBroker) -> None:
        links = broker.house.links
        url = f"https://localhost:{broker.doors.agent_port}"
        async with contextlib.AsyncExitStack() as stack:
            agents = []
            for _ in range(count):
                agent = LinkedAgent(broker, folder, url)
                agents.append(agent)
                await stack.enter_async_context(agent.running())
            epochs = {agent.id: links._held[agent.id].link.epoch for agent in agents}
            links._admission = Admission(SystemClock().monotonic, per_second=rate)
            began = time.monotonic()

            async def cut() -> None:
                for held in list(links._held.values()):
                    held.end()

            broker.call(cut())
            slowest = 0.0
            with broker.http(broker.doors.client_port) as http:
                while not _all_again(links, epochs):
                    assert time.monotonic() - began < 60
                    asked = time.monotonic()
                    await asyncio.to_thread(http.get, "/health")
                    slowest = max(slowest, time.monotonic() - asked)
                    await asyncio.sleep(0.02)
            took = time.monotonic() - began
        refused = Counter(
            record.__dict__["server_id"]
            for record in broker.log.records
            if record.getMessage() == "link.put-off" and "server_id" in record.__dict__
        )
        print(
            f"{count} links, {rate:g} a second: all again after {took:.1f} s, {len(refused)} put"
            f" off, {max(refused.values())} times at most, slowest answer {slowest:.2f} s"
        )
        assert len(refused) > count / 4
        assert max(refused.values()) <= 3
        assert took > count / rate / 2
        assert all(agent.door.tokens == 1 for agent in agents)

    with running_broker(folder / "state") as broker:
        broker.house.links._admission = Admission(SystemClock().monotonic, per_second=1e6)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(scenario(broker))


def _all_again(links: Links, epochs: dict[str, int]) -> bool:
    held = links._held
    return all(id in held and held[id].link.epoch > epoch for id, epoch in epochs.items())


def test_a_crowd_of_agents_is_let_in_one_after_the_other(tmp_path: Path) -> None:
    crowd(tmp_path, 200, 40.0)


@pytest.mark.torture
@pytest.mark.timeout(600)
def test_a_crowd_of_thousands_is_let_in_one_after_the_other(tmp_path: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    crowd(tmp_path, 3_000, 150.0)


def routes_answered(broker: RunningBroker) -> set[str]:
    return {record.__dict__.get("route", "") for record in broker.log.records}


@functools.lru_cache(maxsize=1)
def noise(size: tuple[int, int], max_width: int, max_height: int, format: str) -> bytes:
    """Return a picture of which no pixel is like the next."""
    width, height = size
    screen = Image.frombytes("RGB", size, random.Random(0).randbytes(width * height * 3))
    return encode(screen, max_width=max_width, max_height=max_height, format=format)


class BusyScreens(SimulatedDriver):
    """Desktops of which no pixel is like the next: no picture of them can be made smaller."""

    size = (3840, 2160)
    taken = 0

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.shutter = asyncio.Event()
        self.shutter.set()

    async def screenshot(
        self, session_id: str, *, max_width: int, max_height: int, format: str
    ) -> Sequence[Picture]:
        self.taken += 1
        await self.shutter.wait()
        # As real drivers do, beside the loop: heartbeats go on, however slow the machine is.
        content = await asyncio.to_thread(noise, self.size, max_width, max_height, format)
        return [Picture(format=format, content=content, taken_at=NOON)]


class TestLargePictures:
    @contextlib.asynccontextmanager
    async def shown(
        self, broker: RunningBroker, folder: Path, url: str
    ) -> AsyncIterator[tuple[LinkedAgent, Callable[[], Awaitable[Shot]]]]:
        """Give an agent with a session, and what takes a screenshot of it in full size."""
        agent = LinkedAgent(broker, folder, url, BusyScreens)
        async with agent.running():
            [session] = broker.call(broker.house.sessions.create([a_request()]))
            assert isinstance(session, Session)
            await soon(lambda: state_of(broker, session.id) is State.READY)
            wish = Wish(session.id, MOST_PIXELS, MOST_PIXELS, "png")

            async def take() -> Shot:
                with broker.house.screenshots.room() as room:
                    [taken] = await broker.house.screenshots.take([wish], room)
                return taken

            async def shot() -> Shot:
                return await asyncio.to_thread(broker.call, take())

            yield agent, shot

    def test_a_4k_screen_without_two_pixels_alike_comes_whole_and_a_larger_one_is_a_reason(
        self, tmp_path: Path
    ) -> None:
        async def scenario(broker: RunningBroker) -> None:
            url = f"https://localhost:{broker.doors.agent_port}"
            async with self.shown(broker, tmp_path, url) as (agent, shot):
                link = broker.house.links.of(agent.id)
                taken = await shot()
                assert isinstance(taken, tuple)
                [picture] = taken
                assert 3840 * 2160 * 3 < len(picture.content) <= MOST_BYTES
                with Image.open(io.BytesIO(picture.content)) as image:
                    image.load()
                    assert image.size == (3840, 2160)
                assert isinstance(agent.driver, BusyScreens)
                agent.driver.size = (3840, 2400)
                refused = await shot()
                assert isinstance(refused, Refusal)
                assert "may be sent" in refused.reason
                assert broker.house.links.of(agent.id) is link
                assert agent.uplink.linked.is_set()

        with running_broker(tmp_path / "state") as broker:
            asyncio.run(scenario(broker))

    def test_an_answer_has_room_for_some_and_they_take_it_until_the_client_has_them(
        self, tmp_path: Path
    ) -> None:
        size = {"MaxWidth": 2**63 - 1, "MaxHeight": 2**63 - 1}

        async def scenario(broker: RunningBroker) -> None:
            url = f"https://localhost:{broker.doors.agent_port}"
            held = broker.house.screenshots._all
            async with self.shown(broker, tmp_path, url) as (agent, _):
                [session] = agent.driver.running()
                body = json.dumps([{"SessionId": session.session_id, **size}] * 3).encode()
                with broker.raw(broker.doors.client_port) as client:
                    client.sendall(
                        b"POST /getSessionScreenshots HTTP/1.1\r\nHost: localhost\r\n"
                        b"Authorization: Bearer %b\r\nConnection: close\r\n"
                        b"Content-Length: %d\r\n\r\n%b" % (broker.token.encode(), len(body), body)
                    )
                    await soon(lambda: "/getSessionScreenshots" in routes_answered(broker))
                    assert 2 * 3840 * 2160 * 3 < held.taken <= 2 * MOST_BYTES
                    raw = await asyncio.to_thread(read_all, client)
                answer = json.loads(raw.partition(b"\r\n\r\n")[2])
                assert len(answer["SuccessfulList"]) == 2
                assert [one["FailureReason"] for one in answer["UnsuccessfulList"]] == [FULL]
                assert isinstance(agent.driver, BusyScreens)
                assert agent.driver.taken == 1
                await soon(lambda: held.taken == 0)

        with running_broker(tmp_path / "state") as broker:
            asyncio.run(scenario(broker))

    def test_one_that_nobody_waits_for_any_more_is_neither_taken_nor_sent(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        caplog.set_level(logging.INFO)
        rounds = 2

        def dropped() -> int:
            return caplog.messages.count("screenshot.not-sent")

        async def scenario(broker: RunningBroker) -> None:
            with FaultProxy(broker.doors.agent_port) as proxy:
                async with self.shown(broker, tmp_path, proxy.url) as (agent, shot):
                    driver, sent = agent.driver, proxy.up.passed
                    assert isinstance(driver, BusyScreens)
                    driver.size = width, height = 400, 400
                    driver.shutter.clear()
                    with monkeypatch.context() as patch:
                        patch.setattr(screenshots, "SCREENSHOT_SECONDS", 0.3)
                        for _ in range(rounds):
                            late = await asyncio.gather(
                                *(shot() for _ in range(SCREENSHOTS_AT_ONCE))
                            )
                            assert late == [LATE] * SCREENSHOTS_AT_ONCE
                    driver.shutter.set()
                    await soon(lambda: dropped() == rounds * SCREENSHOTS_AT_ONCE)
                    assert driver.taken == SCREENSHOTS_AT_ONCE
                    assert isinstance(await shot(), tuple)
                    assert driver.taken == SCREENSHOTS_AT_ONCE + 1
                    on_the_wire = 4 * width * height * 3 / 3
                    assert on_the_wire < proxy.up.passed - sent < 2 * on_the_wire

        with running_broker(tmp_path / "state") as broker:
            asyncio.run(scenario(broker))

    def test_those_of_a_link_that_is_lost_keep_none_of_the_next_waiting(
        self, tmp_path: Path
    ) -> None:
        async def scenario(broker: RunningBroker) -> None:
            url = f"https://localhost:{broker.doors.agent_port}"
            async with self.shown(broker, tmp_path, url) as (agent, shot):
                driver, link = agent.driver, broker.house.links.of(agent.id)
                assert isinstance(driver, BusyScreens)
                assert link is not None
                driver.size = 400, 400
                driver.shutter.clear()
                lost = asyncio.gather(*(shot() for _ in range(SCREENSHOTS_AT_ONCE)))
                await soon(lambda: driver.taken == SCREENSHOTS_AT_ONCE)

                async def cut() -> None:
                    link.end()

                broker.call(cut())
                assert not any(isinstance(one, tuple) for one in await lost)
                await soon(lambda: broker.house.links.of(agent.id) not in {None, link})
                # Those that began before wait for ever.
                driver.shutter = asyncio.Event()
                driver.shutter.set()
                assert isinstance(await shot(), tuple)

        with running_broker(tmp_path / "state") as broker:
            asyncio.run(scenario(broker))

    def test_one_that_takes_longer_than_silence_may_last_ends_no_link(self, tmp_path: Path) -> None:
        heartbeat = 1.5

        async def scenario(broker: RunningBroker) -> None:
            with FaultProxy(broker.doors.agent_port) as proxy:
                async with self.shown(broker, tmp_path, proxy.url) as (agent, shot):
                    link = broker.house.links.of(agent.id)
                    # Made before, so that only its way takes time.
                    await asyncio.to_thread(
                        noise, BusyScreens.size, MOST_PIXELS, MOST_PIXELS, "png"
                    )
                    # Pings have half of what silence may last, on a line that is full.
                    lasts = 1.4 * SILENT_BEATS * heartbeat
                    proxy.up.bytes_per_second = 4 * MOST_BYTES / 3 / lasts
                    began = time.monotonic()
                    taken = await shot()
                    assert time.monotonic() - began > SILENT_BEATS * heartbeat
                    assert isinstance(taken, tuple), taken
                    assert broker.house.links.of(agent.id) is link

        with running_broker(tmp_path / "state", agent_heartbeat_seconds=heartbeat) as broker:
            asyncio.run(scenario(broker))


def test_a_set_that_takes_longer_than_a_pong_may_ends_no_link(tmp_path: Path) -> None:
    """On a slow line pongs stand in line behind it."""
    # Both ends are in this program: what keeps it from running for a second must not count.
    heartbeat, lasts = 1.2, 6.0
    text = b"[permissions]\n%owner% allow builtin\n" + (b"#" + b"x" * 900 + b"\n") * 60
    file = base64.b64encode(text).decode()
    requests = [a_request(name=f"desk {number}", permissions_file=file) for number in range(4)]

    async def scenario(broker: RunningBroker) -> None:
        with FaultProxy(broker.doors.agent_port) as proxy:
            agent = LinkedAgent(broker, tmp_path, proxy.url)
            async with agent.running():
                link = broker.house.links.of(agent.id)
                proxy.down.bytes_per_second = len(requests) * len(file) / lasts
                began = time.monotonic()
                created = broker.call(broker.house.sessions.create(requests))
                sessions = [one.id for one in created if isinstance(one, Session)]
                assert len(sessions) == len(requests)
                await soon(lambda: all(agent.loop.spec(id) for id in sessions))
                assert time.monotonic() - began > 2 * PING_BEATS * heartbeat
                assert broker.house.links.of(agent.id) is link

    with running_broker(tmp_path / "state", agent_heartbeat_seconds=heartbeat) as broker:
        asyncio.run(scenario(broker))


def test_a_store_that_stands_still_ends_no_link(tmp_path: Path) -> None:
    """What an agent says waits behind it, and pings and heartbeats go on."""
    # Both ends are in this program: what keeps it from running for a second must not count.
    store, heartbeat = BusyStore(), 0.5

    async def scenario(broker: RunningBroker) -> None:
        agent = LinkedAgent(broker, tmp_path, f"https://localhost:{broker.doors.agent_port}")
        links = broker.house.links
        async with agent.running():
            [session] = broker.call(broker.house.sessions.create([a_request()]))
            assert isinstance(session, Session)
            await soon(lambda: state_of(broker, session.id) is State.READY)
            epoch = links._held[agent.id].link.epoch
            store.flows.clear()
            agent.driver.end(session.id, "logged out")
            await soon(store.stands.is_set)
            lasted = time.monotonic() + 3 * SILENT_BEATS * heartbeat
            try:
                while time.monotonic() < lasted:
                    assert agent.uplink.linked.is_set()
                    agent.say_something()
                    await asyncio.sleep(0.01)
            finally:
                store.flows.set()
            await soon(lambda: state_of(broker, session.id) is State.DELETED)
            assert links._held[agent.id].link.epoch == epoch

    with running_broker(tmp_path / "state", store, agent_heartbeat_seconds=heartbeat) as broker:
        asyncio.run(scenario(broker))


def test_a_store_that_is_too_busy_for_a_hello_says_when_to_come_again(tmp_path: Path) -> None:
    class Selective(BusyStore):
        """Too busy for agents alone: everything else needs it, too."""

        def commit(self, change_sets: Sequence[ChangeSet]) -> list[Revision | Lost]:
            about_links = any(change.key[0] == "link" for one in change_sets for change in one)
            if self.busy_for_links and about_links:
                self.refused += 1
                raise Unavailable("the store is busy")
            return super().commit(change_sets)

        busy_for_links = False

    store = Selective()

    async def scenario(broker: RunningBroker) -> None:
        agent = LinkedAgent(broker, tmp_path, f"https://localhost:{broker.doors.agent_port}")
        store.busy_for_links = True
        running = asyncio.create_task(agent.uplink.run())
        try:
            await agent.loop.open()
            began = time.monotonic()
            await soon(lambda: store.refused)
            await soon(lambda: "link.put-off" in broker.log.events())
            refused = store.refused
            store.busy_for_links = False
            await agent.until_linked()
            assert time.monotonic() - began > BUSY_SECONDS / 2
            assert store.refused == refused
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await agent.loop.close()
            await agent.door.close()

    with running_broker(tmp_path / "state", store) as broker:
        asyncio.run(scenario(broker))


def state_of(broker: RunningBroker, session_id: str) -> State | None:
    fleet = broker.house.replica.fleet
    session = fleet.session(session_id)
    return (
        None if session is None else seen(session, fleet.report(session_id), reachable=True).state
    )


class TestTokens:
    def test_a_link_that_was_lost_comes_back_with_the_token_it_has(
        self, broker: RunningBroker, tmp_path: Path
    ) -> None:
        async def scenario() -> None:
            with FaultProxy(broker.doors.agent_port) as proxy:
                agent = LinkedAgent(broker, tmp_path, proxy.url)
                async with agent.running():
                    for _ in range(3):
                        proxy.reset_all()
                        await agent.until_lost()
                        await agent.until_linked()
                    assert agent.door.tokens == 1

        asyncio.run(scenario())

    def test_one_that_is_refused_is_replaced(self, broker: RunningBroker, tmp_path: Path) -> None:
        async def scenario() -> None:
            agent = LinkedAgent(broker, tmp_path, f"https://localhost:{broker.doors.agent_port}")
            async with agent.running():
                client = broker.house.replica.fleet.get(AgentClient, agent.id)
                assert client is not None
                broker.write(replace(client, token_era=client.token_era + 1))
                await agent.until_lost()
                await agent.until_linked()
                assert agent.door.tokens == 2

        asyncio.run(scenario())

    def test_a_broker_that_is_busy_refuses_none(
        self, broker: RunningBroker, store: BusyStore, tmp_path: Path
    ) -> None:
        async def scenario() -> None:
            with FaultProxy(broker.doors.agent_port) as proxy:
                agent = LinkedAgent(broker, tmp_path, proxy.url)
                async with agent.running():
                    store.busy = True
                    try:
                        asked = proxy.accepted
                        proxy.reset_all()
                        await agent.until_lost()
                        await soon(lambda: proxy.accepted >= asked + 2)
                    finally:
                        store.busy = False
                    await agent.until_linked()
                    assert agent.door.tokens == 1

        asyncio.run(scenario())
