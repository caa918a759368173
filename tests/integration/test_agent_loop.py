"""The loop that makes what runs what is wanted, with a driver that a test leads."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest

import deskfleet.agent.loop as loop_module
from deskfleet.agent.journal import Journal
from deskfleet.agent.journal_file import Failure, JournalFile, Line
from deskfleet.agent.loop import Loop
from deskfleet.core.records import Intent, Phase, Report, SessionRequest, Type
from deskfleet.errors import StartFailed, Unavailable
from deskfleet.ports import Picture, Running, SessionSpec
from deskfleet.wire.messages import Desire, Observation, decode_from_agent, encode
from support.builders import NOON, a_request
from support.fake_hosts import Disk

LIMIT_SECONDS = 10.0
SYNC_SECONDS = 0.02

S = TypeVar("S", bound="Stage")


class LedDriver:
    """Starts and stops when a test lets it; what it was asked is on record."""

    name = "led"

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.sessions: dict[str, Running] = {}
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.may_stop = asyncio.Event()
        self.may_stop.set()
        self.fails: list[Exception] = []
        self.looks = 0
        self.ends_at_once = False
        self.never_ends = False
        self.opened = False
        self._on_end: Callable[[str, str], None] | None = None

    async def open(self, on_end: Callable[[str, str], None]) -> None:
        self._on_end = on_end
        self.opened = True

    async def close(self) -> None:
        self.opened = False

    def running(self) -> Sequence[Running]:
        self.looks += 1
        return list(self.sessions.values())

    async def start(self, spec: SessionSpec) -> None:
        assert self.opened
        self.calls.append(f"start {spec.session_id} {spec.generation}")
        try:
            await self.may_start.wait()
        except asyncio.CancelledError:
            self.calls.append(f"undone {spec.session_id}")
            raise
        if self.fails:
            raise self.fails.pop(0)
        self.put(spec.session_id, spec.generation)
        if self.ends_at_once:
            self.end(spec.session_id, "crashed")

    async def stop(self, session_id: str) -> None:
        assert self.opened
        self.calls.append(f"stop {session_id}")
        await self.may_stop.wait()
        if self.fails:
            raise self.fails.pop(0)
        if not self.never_ends:
            self.sessions.pop(session_id, None)

    async def permit(self, spec: SessionSpec) -> None:
        self.calls.append(f"permit {spec.session_id} {spec.request.permissions_file}")
        if self.fails:
            raise self.fails.pop(0)

    async def screenshot(
        self, session_id: str, *, max_width: int, max_height: int, format: str
    ) -> Sequence[Picture]:
        return []

    def display_socket(self, session_id: str) -> Path | None:
        return None

    async def version(self) -> str:
        return "1"

    async def trouble(self) -> str | None:
        return None

    def put(self, id: str, generation: int = 1, **fields: Any) -> None:
        self.sessions[id] = Running(
            session_id=id, generation=generation, owner="alice", type=Type.VIRTUAL, **fields
        )

    def end(self, id: str, reason: str) -> None:
        del self.sessions[id]
        assert self._on_end is not None
        self._on_end(id, reason)


class Visitors:
    """Who is connected, as a test says."""

    def __init__(self) -> None:
        self.connected: dict[str, tuple[str, ...]] = {}
        self.left: dict[str, datetime] = {}
        self.closed: list[str] = []
        self.forgotten: list[str] = []

    def visitors(self, session_id: str) -> tuple[str, ...]:
        return self.connected.get(session_id, ())

    def last_disconnection_at(self, session_id: str) -> datetime | None:
        return self.left.get(session_id)

    def close_all(self, session_id: str) -> None:
        self.closed.append(session_id)

    def forget(self, session_id: str) -> None:
        self.forgotten.append(session_id)


class Stage:
    """A loop and all that is around it; it can be restarted as an agent is."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "journal.jsonl"
        self.disk = Disk()
        self.driver = LedDriver()
        self.visitors = Visitors()
        self.changes = asyncio.Event()
        self.loop = self._loop()

    def _loop(self) -> Loop:
        journal = Journal(JournalFile(self.path), self.disk.off_loop)
        return Loop("n1", self.driver, journal, self.visitors, self.changes.set)

    async def restart(self) -> None:
        await self.loop.close()
        self.loop = self._loop()
        await self.loop.open()

    def want(self, *desires: Desire) -> None:
        self.loop.want(desires)

    async def begin(self, *desires: Desire) -> None:
        """Want sessions, and wait until `s1` runs."""
        self.want(*desires)
        await self.until(lambda: self.phase() is Phase.RUNNING)

    def report(self, id: str = "s1") -> Report | None:
        return next((one.report for one in self.loop.observed() if one.report.id == id), None)

    def is_noted(self, id: str, phase: Phase) -> bool:
        entry = self.loop._journal.entries.get(id)
        return entry is not None and entry.phase is phase

    def phase(self, id: str = "s1") -> Phase | None:
        report = self.report(id)
        return None if report is None else report.phase

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for news of the loop until a condition holds."""
        async with asyncio.timeout(LIMIT_SECONDS):
            while not condition():
                self.changes.clear()
                await self.changes.wait()

    def all_are(self, phase: Phase, count: int) -> bool:
        phases = [one.report.phase for one in self.loop.observed()]
        return phases == [phase] * count

    async def until_it_stands(self) -> None:
        """Wait until something has come to a disk that stands."""
        await asyncio.wait_for(self.disk.has_work.wait(), LIMIT_SECONDS)

    async def until_called(self, *calls: str) -> None:
        deadline = asyncio.get_running_loop().time() + LIMIT_SECONDS
        while self.driver.calls != list(calls):
            assert asyncio.get_running_loop().time() < deadline, self.driver.calls
            await asyncio.sleep(0.001)


class SlowFile(JournalFile):
    """Takes as long as a busy disk does to have everything on it, and counts how often."""

    syncs = 0
    full = False
    refused = 0

    def _attempt(self, lines: Sequence[Line]) -> Failure | None:
        if self.full:
            self.refused += 1
            return "No space left on device"
        return super()._attempt(lines)

    def _append(self, text: bytes) -> None:
        super()._append(text)
        time.sleep(SYNC_SECONDS)
        self.syncs += 1


class SlowStage(Stage):
    """One with a slow disk, which a thread waits for."""

    def _loop(self) -> Loop:
        self.file = SlowFile(self.path)
        return Loop("n1", self.driver, Journal(self.file), self.visitors, self.changes.set)


def run(
    folder: Path,
    scenario: Callable[[S], Coroutine[Any, Any, None]],
    kind: type[S] = Stage,  # type: ignore[assignment]  # what a scenario takes by default
) -> None:
    async def whole() -> None:
        stage = kind(folder)
        await stage.loop.open()
        try:
            async with asyncio.timeout(30):
                await scenario(stage)
        finally:
            await stage.loop.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert left == set()

    asyncio.run(whole())


def wish(
    id: str = "s1",
    generation: int = 1,
    *,
    stop: bool = False,
    started: bool = False,
    permissions: str | None = None,
) -> Desire:
    return Desire(
        spec=SessionSpec(
            session_id=id,
            generation=generation,
            request=a_request(permissions_file=permissions),
        ),
        intent=Intent.STOP if stop else Intent.RUN,
        started=started,
    )


class TestStarting:
    def test_a_wanted_session_is_started_once(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            stage.driver.may_start.clear()
            stage.want(wish())
            stage.want(wish())
            await stage.until(lambda: stage.phase() is Phase.STARTING)
            stage.want(wish())
            await stage.until_called("start s1 1")
            stage.driver.may_start.set()
            await stage.until(lambda: stage.phase() is Phase.RUNNING)
            stage.want(wish())
            stage.want(wish(started=True))
            await asyncio.sleep(0)
            assert stage.driver.calls == ["start s1 1"]

        run(tmp_path, scenario)

    def test_all_are_started_at_once(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            stage.driver.may_start.clear()
            stage.want(*(wish(f"s{n}") for n in range(5)))
            await stage.until_called(*(f"start s{n} 1" for n in range(5)))

        run(tmp_path, scenario)

    def test_the_intent_is_on_the_disk_before_the_driver_is_asked(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            stage.disk.stands = True
            stage.want(wish())
            await asyncio.sleep(0.01)
            assert stage.driver.calls == []
            assert stage.report() is None
            stage.driver.may_start.clear()
            stage.disk.go_on()
            await stage.until_called("start s1 1")
            assert b'"phase":"STARTING"' in stage.path.read_bytes()

        run(tmp_path, scenario)

    def test_a_failure_is_told_and_not_tried_again(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            stage.driver.fails = [StartFailed("no X here")]
            stage.want(wish())
            await stage.until(lambda: stage.phase() is Phase.FAILED)
            report = stage.report()
            assert report is not None
            assert (report.reason, report.generation) == ("no X here", 1)
            stage.want(wish())
            await stage.restart()
            stage.want(wish())
            await asyncio.sleep(0.01)
            assert stage.phase() is Phase.FAILED
            # The broker has heard it, and places it here once more.
            await stage.begin(wish(generation=2))
            assert stage.driver.calls == ["start s1 1", "start s1 2"]
            # Or it has heard it, and wants nothing more of it.
            stage.want()
            assert [entry.generation for entry in stage.loop._journal.entries.values()] == [2]

        run(tmp_path, scenario)

    def test_a_reason_that_is_too_long_to_be_told_is_cut(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            stage.driver.fails = [StartFailed("no X here. " * 1_000)]
            stage.want(wish())
            await stage.until(lambda: stage.phase() is Phase.FAILED)
            report = stage.report()
            assert report is not None
            told = Observation(epoch=1, serial=1, observed=stage.loop.observed())
            assert decode_from_agent(encode(told)) == told
            assert (report.reason or "").startswith("no X here. no X")

        run(tmp_path, scenario)

    def test_a_failed_one_is_forgotten_when_it_is_not_named_any_more(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            stage.driver.fails = [StartFailed("no X here")]
            stage.want(wish())
            await stage.until(lambda: stage.phase() is Phase.FAILED)
            stage.want()
            await stage.until(lambda: stage.report() is None)

        run(tmp_path, scenario)

    def test_when_the_world_fails_the_same_step_is_due_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(loop_module, "AGAIN_SECONDS", 0.01)

        async def scenario(stage: Stage) -> None:
            stage.driver.fails = [OSError("no memory")]
            await stage.begin(wish())
            stage.driver.fails = [OSError("busy"), OSError("busy")]
            stage.want(wish(stop=True))
            await stage.until(lambda: stage.phase() is Phase.ENDED)
            assert stage.driver.calls == ["start s1 1"] * 2 + ["stop s1"] * 3

        with caplog.at_level(logging.ERROR):
            run(tmp_path, scenario)
        assert [record.message for record in caplog.records] == ["session.step-failed"] * 3

    def test_why_a_start_is_put_off_is_told_until_it_has_come_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loop_module, "AGAIN_SECONDS", 0.05)

        def told(stage: Stage) -> tuple[Phase, str | None] | None:
            report = stage.report()
            return None if report is None else (report.phase, report.reason)

        async def scenario(stage: Stage) -> None:
            bug = "the agent could not do it; its log says why"
            stage.driver.fails = [Unavailable("an old one stays"), RuntimeError("a bug")]
            stage.want(wish())
            await stage.until(lambda: told(stage) == (Phase.STARTING, "an old one stays"))
            await stage.until(lambda: told(stage) == (Phase.STARTING, bug))
            stage.driver.may_start.clear()
            await stage.until_called(*["start s1 1"] * 3)
            # It is tried again, and nobody knows better yet.
            assert told(stage) == (Phase.STARTING, bug)
            stage.driver.may_start.set()
            await stage.until(lambda: told(stage) == (Phase.RUNNING, None))
            stage.driver.fails = [Unavailable("it can't be stopped")]
            stage.want(wish(stop=True))
            await stage.until(lambda: told(stage) == (Phase.ENDED, None))
            await stage.until(lambda: not stage.loop._reasons)

        run(tmp_path, scenario)

    def test_what_ended_as_soon_as_it_started_has_ended(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            stage.driver.ends_at_once = True
            stage.want(wish())
            await stage.until(lambda: stage.phase() is Phase.ENDED)
            report = stage.report()
            assert report is not None
            assert report.reason

        run(tmp_path, scenario)


class TestStopping:
    def test_a_running_session(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            await stage.begin(wish())
            stage.want(wish(stop=True))
            stage.want(wish(stop=True))
            await stage.until(lambda: stage.phase() is Phase.ENDED)
            stage.want(wish(stop=True))
            assert stage.driver.calls == ["start s1 1", "stop s1"]
            assert stage.visitors.forgotten == ["s1"]
            stage.want()
            await stage.until(lambda: stage.loop.observed() == ())

        run(tmp_path, scenario)

    def test_one_that_is_being_started(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            stage.driver.may_start.clear()
            stage.want(wish())
            await stage.until_called("start s1 1")
            stage.want(wish(stop=True))
            await stage.until(lambda: stage.phase() is Phase.ENDED)
            assert stage.driver.calls == ["start s1 1", "undone s1", "stop s1"]
            assert stage.driver.sessions == {}

        run(tmp_path, scenario)

    def test_one_that_was_never_here(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            stage.want(wish(stop=True))
            await stage.until(lambda: stage.phase() is Phase.ENDED)
            assert stage.driver.calls == ["stop s1"]

        run(tmp_path, scenario)

    def test_a_stop_is_not_taken_back_half_way(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            await stage.begin(wish())
            stage.driver.may_stop.clear()
            stage.want(wish(stop=True))
            await stage.until_called("start s1 1", "stop s1")
            stage.want(wish())
            stage.driver.may_stop.set()
            await stage.until(lambda: stage.phase() is Phase.ENDED)
            stage.want(wish())
            assert stage.driver.calls == ["start s1 1", "stop s1"]

        run(tmp_path, scenario)


class TestStopsThatDoNotEnd:
    """A driver says that a session has been stopped, or that it can't be yet, and still has it."""

    @pytest.mark.parametrize("lies", [False, True])
    def test_it_has_not_ended_and_is_asked_for_again_later(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lies: bool
    ) -> None:
        monkeypatch.setattr(loop_module, "AGAIN_SECONDS", 0.05)

        async def scenario(stage: Stage) -> None:
            await stage.begin(wish())
            stage.driver.never_ends = lies
            stage.driver.fails = [] if lies else [Unavailable("not yet")] * 2
            stage.want(wish(stop=True))
            await stage.until_called("start s1 1", *["stop s1"] * 2)
            assert stage.phase() is Phase.RUNNING
            stage.driver.never_ends = False
            await stage.until(lambda: stage.phase() is Phase.ENDED)
            assert stage.driver.calls == ["start s1 1", *["stop s1"] * 3]

        run(tmp_path, scenario)

    def test_the_same_wish_again_and_again_hurries_nothing(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            await stage.begin(wish())
            stage.driver.never_ends = True
            lines = stage.path.read_bytes()
            stage.want(wish(stop=True))
            await stage.until(lambda: stage.loop._put_off)
            for number in range(50):
                # Whatever else is wanted meanwhile.
                stage.want(wish(stop=True), *(wish("s2") for _ in range(number % 2)))
                await asyncio.sleep(0)
            await stage.until(lambda: stage.phase("s2") is Phase.RUNNING)
            assert stage.driver.calls.count("stop s1") == 1
            assert stage.path.read_bytes().startswith(lines)
            assert b'"ENDED"' not in stage.path.read_bytes()

        run(tmp_path, scenario)

    @pytest.mark.parametrize("wanted", [[], [wish()]], ids=["not named", "wanted again"])
    def test_what_is_half_gone_is_neither_shown_as_a_session_nor_let_be(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: list[Desire]
    ) -> None:
        monkeypatch.setattr(loop_module, "AGAIN_SECONDS", 0.02)

        async def scenario(stage: Stage) -> None:
            await stage.begin(wish())
            stage.driver.never_ends = True
            stage.want(wish(stop=True))
            await stage.until(lambda: stage.loop._put_off)
            # The broker has dropped it, or knows no better any more.
            stage.want(*wanted)
            [one] = stage.loop.observed()
            assert one.spec is None
            assert stage.loop.spec("s1") is None
            await stage.until_called("start s1 1", *["stop s1"] * 3)
            stage.driver.never_ends = False
            await stage.until(lambda: stage.phase() is Phase.ENDED)
            stage.want()
            await stage.until(lambda: stage.loop.observed() == ())

        run(tmp_path, scenario)

    def test_a_later_placement_waits_for_its_end(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loop_module, "AGAIN_SECONDS", 0.02)

        async def scenario(stage: Stage) -> None:
            await stage.begin(wish())
            stage.driver.never_ends = True
            stage.want(wish(stop=True))
            await stage.until(lambda: stage.loop._put_off)
            stage.want(wish(generation=2))
            await stage.until_called("start s1 1", *["stop s1"] * 3)
            report = stage.report()
            assert report is not None
            assert (report.generation, report.phase) == (2, Phase.STARTING)
            assert report.reason == "the session has been stopped, and is still there"
            stage.driver.never_ends = False
            await stage.until(lambda: stage.phase() is Phase.RUNNING)
            assert stage.driver.calls[-1] == "start s1 2"

        run(tmp_path, scenario)

    def test_the_next_one_of_a_stranger_s_name_is_not_stopped_for_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loop_module, "AGAIN_SECONDS", 0.01)

        async def scenario(stage: Stage) -> None:
            stage.driver.put("console", 0)
            stage.driver.fails = [Unavailable("not yet")]
            stage.want(wish("console", 0, stop=True))
            await stage.until(lambda: stage.loop._put_off)
            stage.want(wish("console", 0, started=True))
            await stage.until(lambda: not stage.loop._put_off)
            assert stage.driver.calls == ["stop console"]

        run(tmp_path, scenario)


class TestEnding:
    def test_by_itself(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            await stage.begin(wish())
            stage.changes.clear()
            stage.driver.end("s1", "logged out")
            assert stage.changes.is_set()
            await stage.until(lambda: stage.phase() is Phase.ENDED)
            report = stage.report()
            assert report is not None
            assert (report.phase, report.reason) == (Phase.ENDED, "logged out")
            stage.want(wish(started=True))
            assert stage.driver.calls == ["start s1 1"]
            assert stage.visitors.forgotten == ["s1"]

        run(tmp_path, scenario)

    def test_while_it_is_being_stopped(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            await stage.begin(wish())
            stage.driver.may_stop.clear()
            stage.want(wish(stop=True))
            await stage.until_called("start s1 1", "stop s1")
            stage.driver.end("s1", "crashed")
            assert stage.phase() is Phase.RUNNING
            stage.driver.may_stop.set()
            await stage.until(lambda: stage.phase() is Phase.ENDED)

        run(tmp_path, scenario)

    def test_of_a_session_that_nobody_asked_for(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            stage.driver.put("console", 0)
            assert stage.phase("console") is Phase.RUNNING
            stage.driver.end("console", "logged out")
            assert stage.report("console") is None
            assert stage.changes.is_set()

        run(tmp_path, scenario)

    def test_each_beginning_and_end_is_logged_once(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def scenario(stage: Stage) -> None:
            stage.want(wish(), wish("s2"))
            await stage.until(lambda: stage.phase("s2") is Phase.RUNNING)
            stage.driver.end("s1", "logged out")
            stage.driver.put("console", 0)
            stage.driver.end("console", "logged out, too")
            stage.want(wish(), wish("s2", stop=True))
            await stage.until(lambda: stage.phase("s2") is Phase.ENDED)

        with caplog.at_level(logging.INFO, "deskfleet"):
            run(tmp_path, scenario)
        told = sorted((one.getMessage(), one.__dict__["session_id"]) for one in caplog.records)
        assert told == [
            ("session.ended", "console"),
            ("session.ended", "s1"),
            ("session.started", "s1"),
            ("session.started", "s2"),
            ("session.stopped", "s2"),
        ]


class TestStrangers:
    def test_what_nobody_named_is_shown_and_left_alone(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            stage.driver.put("console", 0, connections=3, last_disconnection_at=NOON)
            await stage.begin(wish())
            stage.want()
            await stage.restart()
            assert set(stage.driver.sessions) == {"console", "s1"}
            seen = {one.report.id: one for one in stage.loop.observed()}
            report = seen["console"].report
            assert (report.generation, report.phase) == (0, Phase.RUNNING)
            assert (report.connections, report.last_disconnection_at) == (3, NOON)
            assert seen["console"].running == stage.driver.sessions["console"]
            assert stage.driver.calls == ["start s1 1"]

        run(tmp_path, scenario)

    def test_one_that_was_adopted_can_be_stopped(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            stage.driver.put("console", 0)
            stage.want(wish("console", 0, started=True))
            assert stage.phase("console") is Phase.RUNNING
            stage.want(wish("console", 0, stop=True))
            await stage.until(lambda: stage.phase("console") is Phase.ENDED)
            assert stage.driver.calls == ["stop console"]

        run(tmp_path, scenario)

    def test_what_was_asked_for_is_told_of_ours_that_are_not_named(self, tmp_path: Path) -> None:
        def told(stage: Stage) -> dict[str, SessionSpec | None]:
            return {one.report.id: one.spec for one in stage.loop.observed()}

        async def scenario(stage: Stage) -> None:
            stage.driver.put("console", 0)
            lasting, forced = wish("s1"), wish("s2", permissions="eA==")
            stage.want(lasting, forced)
            await stage.until(lambda: stage.phase("s2") is Phase.RUNNING)
            assert told(stage) == {"console": None, "s1": None, "s2": None}
            stage.want(lasting)
            assert told(stage) == {"console": None, "s1": None, "s2": forced.spec}
            await stage.restart()
            # Nobody has said yet what is wanted.
            assert told(stage)["s2"] is None
            stage.want(lasting)
            assert told(stage)["s2"] == forced.spec
            stage.want(lasting, forced)
            assert told(stage)["s2"] is None

        run(tmp_path, scenario)

    def test_of_a_session_that_the_journal_has_lost_the_driver_is_asked(
        self, tmp_path: Path
    ) -> None:
        async def scenario(stage: Stage) -> None:
            stage.driver.put("s1", 3, name="desk")
            stage.want()
            [one] = stage.loop.observed()
            assert (one.report.generation, one.report.phase) == (3, Phase.RUNNING)
            request = SessionRequest(name="desk", owner="alice", type=Type.VIRTUAL)
            assert one.spec == SessionSpec(session_id="s1", generation=3, request=request)

        run(tmp_path, scenario)

    def test_no_more_is_told_at_once_than_a_message_holds(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            wishes = [wish(f"s{number}", permissions="x" * 60_000) for number in range(100)]
            stage.want(*wishes)
            await stage.until(
                lambda: all(stage.phase(f"s{n}") is Phase.RUNNING for n in range(100))
            )
            stage.want()
            known: set[str] = set()
            while len(known) < len(wishes):
                observed = stage.loop.observed()
                message = Observation(epoch=1, serial=1, observed=observed)
                assert decode_from_agent(encode(message)) == message
                news = {one.report.id for one in observed if one.spec} - known
                assert news
                known |= news
                stage.want(*(one for one in wishes if one.spec.session_id in known))

        run(tmp_path, scenario)

    def test_who_is_connected_is_told(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            await stage.begin(wish())
            stage.visitors.connected["s1"] = ("alice", "bob")
            stage.visitors.left["s1"] = NOON
            report = stage.report()
            assert report is not None
            assert (report.connections, report.last_disconnection_at) == (2, NOON)
            assert report.visitors == ("alice", "bob")

        run(tmp_path, scenario)


class TestGenerations:
    def test_an_older_one_is_not_listened_to(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            await stage.begin(wish(generation=3))
            stage.want(wish(generation=2))
            stage.want(wish(generation=2, stop=True))
            await asyncio.sleep(0)
            assert stage.driver.calls == ["start s1 3"]
            report = stage.report()
            assert report is not None
            assert (report.generation, report.phase) == (3, Phase.RUNNING)

        run(tmp_path, scenario)

    def test_a_younger_one_replaces_what_runs(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            await stage.begin(wish())
            stage.want(wish(generation=2))
            await stage.until_called("start s1 1", "stop s1", "start s1 2")
            await stage.until(lambda: stage.phase() is Phase.RUNNING)
            assert stage.driver.sessions["s1"].generation == 2

        run(tmp_path, scenario)

    def test_a_younger_one_waits_for_the_step_that_is_under_way(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            stage.driver.may_start.clear()
            stage.want(wish())
            await stage.until_called("start s1 1")
            stage.want(wish(generation=2))
            stage.driver.may_start.set()
            await stage.until_called("start s1 1", "stop s1", "start s1 2")
            await stage.until(lambda: stage.phase() is Phase.RUNNING)

        run(tmp_path, scenario)

    def test_what_is_known_to_have_run_is_not_started_again(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            stage.want(wish(started=True))
            await stage.until(lambda: stage.phase() is Phase.ENDED)
            assert stage.driver.calls == []
            # It runs, and only the journal was lost.
            stage.driver.put("s2")
            stage.want(wish("s2", started=True))
            await stage.until(lambda: stage.is_noted("s2", Phase.RUNNING))
            assert stage.driver.calls == []

        run(tmp_path, scenario)


class TestWhatIsOver:
    """A store that was set back to a backup asks for what has had its end since."""

    @pytest.mark.parametrize("restarts", [False, True])
    def test_it_is_not_begun_again(self, tmp_path: Path, restarts: bool) -> None:
        async def scenario(stage: Stage) -> None:
            await stage.begin(wish(generation=2))
            stage.want(wish(generation=2, stop=True))
            await stage.until(lambda: stage.phase() is Phase.ENDED)
            stage.want()
            await stage.until(lambda: stage.report() is None)
            calls = list(stage.driver.calls)
            for generation in (2, 1):
                if restarts:
                    await stage.restart()
                stage.want(wish(generation=generation))
                await stage.until(lambda: stage.phase() is Phase.ENDED)
                report = stage.report()
                assert report is not None
                assert (report.generation, report.reason) == (
                    generation,
                    "it has had its end here before",
                )
                stage.want()
                await stage.until(lambda: stage.report() is None)
            assert stage.driver.calls == calls
            # What is placed anew is another one.
            await stage.begin(wish(generation=3))

        run(tmp_path, scenario)

    def test_nor_is_what_has_failed(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            stage.driver.fails = [StartFailed("no X here")]
            stage.want(wish())
            await stage.until(lambda: stage.phase() is Phase.FAILED)
            stage.want()
            await stage.until(lambda: stage.report() is None)
            stage.want(wish())
            await stage.until(lambda: stage.phase() is Phase.ENDED)
            assert stage.driver.calls == ["start s1 1"]

        run(tmp_path, scenario)

    def test_what_was_cut_short_may_be_begun_again(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            stage.driver.fails = [Unavailable("not now")]
            stage.want(wish())
            await stage.until(lambda: stage.loop._put_off)
            stage.want()
            await stage.until(lambda: stage.report() is None)
            await stage.begin(wish())

        run(tmp_path, scenario)

    def test_what_runs_is_never_over(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            stage.want(wish(stop=True))
            await stage.until(lambda: stage.phase() is Phase.ENDED)
            stage.want()
            await stage.until(lambda: stage.report() is None)
            stage.driver.put("s1")
            stage.want(wish())
            await stage.until(lambda: stage.is_noted("s1", Phase.RUNNING))

        run(tmp_path, scenario)

    def test_what_others_create_may_have_one_name_again_and_again(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            for _ in range(2):
                stage.driver.put("console", 0)
                stage.want(wish("console", 0, started=True))
                await stage.until(lambda: stage.is_noted("console", Phase.RUNNING))
                stage.driver.end("console", "logged out")
                await stage.until(lambda: stage.phase("console") is Phase.ENDED)
                stage.want()
                await stage.until(lambda: stage.report("console") is None)

        run(tmp_path, scenario)


class TestPermissions:
    def test_new_ones_send_the_visitors_through_the_door_again(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            stage.want(wish(), wish("s2"))
            await stage.until(lambda: stage.phase("s2") is Phase.RUNNING)
            stage.want(wish(permissions="x"), wish("s2"))
            assert stage.visitors.closed == ["s1"]
            spec = stage.loop.spec("s1")
            assert spec is not None
            assert spec.request.permissions_file == "x"
            stage.want(wish(permissions="x"), wish("s2"))
            assert stage.visitors.closed == ["s1"]

        run(tmp_path, scenario)

    def test_what_is_to_be_stopped_lets_nobody_in(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            await stage.begin(wish())
            stage.driver.may_stop.clear()
            stage.want(wish(stop=True))
            assert stage.loop.spec("s1") is None
            assert stage.loop.spec("nothing") is None
            stage.driver.may_stop.set()

        run(tmp_path, scenario)

    def test_after_a_restart_the_journal_knows_them(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            await stage.begin(wish(permissions="x"))
            await stage.restart()
            spec = stage.loop.spec("s1")
            assert spec is not None
            assert spec.request.permissions_file == "x"
            assert stage.driver.calls == ["start s1 1"]

        run(tmp_path, scenario)

    def test_the_driver_is_given_new_ones_until_it_has_taken_them(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loop_module, "AGAIN_SECONDS", 0.01)

        async def scenario(stage: Stage) -> None:
            await stage.begin(wish())
            stage.driver.fails = [Unavailable("not now"), OSError("nor now")]
            stage.want(wish(permissions="x"))
            given = ["permit s1 x"] * 3
            await stage.until_called("start s1 1", *given)
            stage.want(wish(permissions="x"))
            stage.want(wish(permissions=None))
            await stage.until_called("start s1 1", *given, "permit s1 None")
            assert stage.phase() is Phase.RUNNING

        run(tmp_path, scenario)

    def test_what_changed_while_the_agent_was_away_is_given_later(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            await stage.begin(wish(permissions="x"))
            await stage.restart()
            stage.want(wish(permissions="y"))
            await stage.until_called("start s1 1", "permit s1 y")

        run(tmp_path, scenario)

    def test_a_stranger_keeps_its_own_until_a_client_changes_them(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            stage.driver.put("s1", 0)
            stage.want(wish(generation=0))
            stage.want(wish(generation=0, permissions="x"))
            await stage.until_called("permit s1 x")

        run(tmp_path, scenario)

    def test_what_nobody_remembers_the_permissions_of_is_given_them(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            stage.driver.put("s1", 3)
            stage.want(wish(generation=3, started=True, permissions="x"))
            await stage.until_called("permit s1 x")

        run(tmp_path, scenario)

    def test_a_session_that_ends_while_it_is_given_them_has_ended(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            await stage.begin(wish())
            stage.want(wish(permissions="x"))
            stage.driver.end("s1", "crashed")
            await stage.until(lambda: stage.phase() is Phase.ENDED)

        run(tmp_path, scenario)


class TestRestarting:
    def test_what_runs_runs_on(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            await stage.begin(wish())
            await stage.restart()
            assert stage.phase() is Phase.RUNNING
            stage.want(wish(started=True))
            assert stage.driver.calls == ["start s1 1"]

        run(tmp_path, scenario)

    def test_a_driver_that_forgot_the_generation_has_not_ended_the_session(
        self, tmp_path: Path
    ) -> None:
        async def scenario(stage: Stage) -> None:
            await stage.begin(wish(generation=3))
            stage.driver.put("s1", 0)
            await stage.restart()
            report = stage.report()
            assert report is not None
            assert (report.phase, report.generation) == (Phase.RUNNING, 3)
            stage.want(wish(generation=3, started=True))
            assert (stage.phase(), stage.driver.calls) == (Phase.RUNNING, ["start s1 3"])

        run(tmp_path, scenario)

    def test_what_ended_meanwhile_has_ended(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            await stage.begin(wish())
            stage.driver.sessions.clear()
            await stage.restart()
            report = stage.report()
            assert report is not None
            assert (report.phase, report.reason) == (
                Phase.ENDED,
                "it ended while the agent was away",
            )
            # Also where the broker had not heard yet that it ran: begun once, never again.
            stage.want(wish())
            assert stage.driver.calls == ["start s1 1"]

        run(tmp_path, scenario)

    def test_a_start_that_was_cut_short_may_be_begun_again(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            stage.driver.may_start.clear()
            stage.want(wish())
            await stage.until_called("start s1 1")
            await stage.restart()
            assert stage.driver.calls == ["start s1 1", "undone s1"]
            assert stage.report() is None
            stage.driver.may_start.set()
            await stage.begin(wish())

        run(tmp_path, scenario)

    def test_after_a_kill_a_start_that_came_through_is_taken_up(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            stage.driver.may_start.clear()
            stage.want(wish())
            await stage.until_called("start s1 1")
            killed = stage.path.read_bytes()
            await stage.loop.close()
            # As if it had been killed instead, in the moment after the session had begun.
            stage.path.write_bytes(killed)
            stage.driver.put("s1")
            stage.loop = stage._loop()
            await stage.loop.open()
            assert stage.phase() is Phase.RUNNING
            stage.want(wish())
            assert stage.driver.calls == ["start s1 1", "undone s1"]

        run(tmp_path, scenario)

    def test_a_closing_agent_begins_nothing(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            stage.driver.may_start.clear()
            stage.want(wish(), wish("s2"))
            await stage.until_called("start s1 1", "start s2 1")
            stage.driver.may_start.set()
            # Closing cuts the starts short; what is wanted must not begin them anew.
            stage.driver.may_start.clear()
            await stage.loop.close()
            for _ in range(5):
                await asyncio.sleep(0)
            assert stage.driver.calls == ["start s1 1", "start s2 1", "undone s1", "undone s2"]
            stage.want(wish("s3"))
            assert len(stage.driver.calls) == 4
            stage.loop = stage._loop()
            await stage.loop.open()

        run(tmp_path, scenario)


class TestLargeSets:
    """What one set costs must grow with its length, and no faster."""

    def test_what_runs_is_looked_at_once_for_all(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loop_module, "AGAIN_SECONDS", 0.05)

        def all_noted(stage: Stage, phase: Phase) -> bool:
            return all(stage.is_noted(f"s{number}", phase) for number in range(300))

        async def scenario(stage: Stage) -> None:
            wishes = [wish(f"s{number}") for number in range(300)]
            stage.driver.fails = [Unavailable("not now") for _ in wishes]
            stage.driver.looks = 0
            stage.want(*wishes)
            await stage.until(lambda: all_noted(stage, Phase.RUNNING))
            stage.want(*wishes)
            stage.want(*(wish(f"s{number}", stop=True) for number in range(300)))
            await stage.until(lambda: all_noted(stage, Phase.ENDED))
            assert len(stage.driver.calls) == 900
            assert stage.driver.looks < 30

        run(tmp_path, scenario)


class TestSlowDisks:
    """The loop that notes also relays all desktops, and beats."""

    def test_a_hundred_starts_and_ends_cost_a_few_syncs_and_hold_nobody_up(
        self, tmp_path: Path
    ) -> None:
        async def scenario(stage: SlowStage) -> None:
            wishes = [wish(f"s{number}") for number in range(100)]
            async with longest_wait() as longest:
                stage.want(*wishes)
                await stage.until(lambda: stage.all_are(Phase.RUNNING, 100))
                stage.want(*(wish(f"s{number}", stop=True) for number in range(100)))
                await stage.until(lambda: stage.all_are(Phase.ENDED, 100))
                stage.want()
                await stage.until(lambda: stage.loop.observed() == ())
            assert longest() < 100 * SYNC_SECONDS / 4
            assert 4 <= stage.file.syncs <= 12

        run(tmp_path, scenario, SlowStage)

    def test_what_is_on_its_way_to_the_disk_is_told_to_nobody(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            stage.driver.may_start.clear()
            stage.want(wish())
            await stage.until_called("start s1 1")
            stage.disk.stands = True
            stage.driver.may_start.set()
            await stage.until_it_stands()
            assert stage.driver.sessions
            assert stage.phase() is Phase.STARTING
            stage.disk.go_on()
            await stage.until(lambda: stage.phase() is Phase.RUNNING)
            stage.disk.stands = True
            stage.driver.end("s1", "crashed")
            await stage.until_it_stands()
            assert stage.phase() is Phase.RUNNING
            stage.disk.go_on()
            await stage.until(lambda: stage.phase() is Phase.ENDED)

        run(tmp_path, scenario)

    def test_a_stop_that_comes_before_the_intent_is_noted_starts_nothing(
        self, tmp_path: Path
    ) -> None:
        async def scenario(stage: Stage) -> None:
            stage.disk.stands = True
            stage.want(wish())
            stage.want(wish(stop=True))
            await stage.until_it_stands()
            stage.want(wish(stop=True))
            stage.disk.go_on()
            await stage.until(lambda: stage.phase() is Phase.ENDED)
            assert stage.driver.calls == ["stop s1"]

        run(tmp_path, scenario)

    def test_an_agent_that_closes_waits_for_what_is_being_noted(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            stage.disk.stands = True
            stage.want(wish())
            await stage.until_it_stands()
            closing = asyncio.create_task(stage.loop.close())
            await asyncio.sleep(0.01)
            assert not closing.done()
            stage.disk.go_on()
            await closing
            assert stage.driver.calls == []
            assert b'"phase":"STARTING"' in stage.path.read_bytes()
            stage.loop = stage._loop()
            await stage.loop.open()
            assert stage.report() is None
            await stage.begin(wish())
            assert stage.driver.calls == ["start s1 1"]

        run(tmp_path, scenario)

    def test_a_start_that_can_not_be_cut_short_any_more_is_noted(self, tmp_path: Path) -> None:
        async def scenario(stage: Stage) -> None:
            stage.driver.may_start.clear()
            stage.want(wish())
            await stage.until_called("start s1 1")
            stage.disk.stands = True
            stage.driver.may_start.set()
            await stage.until_it_stands()
            stage.want(wish(stop=True))
            closing = asyncio.create_task(stage.loop.close())
            await asyncio.sleep(0.01)
            stage.disk.go_on()
            await closing
            stage.loop = stage._loop()
            await stage.loop.open()
            assert (stage.phase(), stage.driver.calls) == (Phase.RUNNING, ["start s1 1"])

        run(tmp_path, scenario)


class TestFailingDisks:
    def test_what_can_not_be_noted_is_put_off(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loop_module, "AGAIN_SECONDS", 0.01)

        async def scenario(stage: SlowStage) -> None:
            stage.file.full = True
            stage.want(wish())
            await stage.until(lambda: stage.file.refused >= 3)
            report = stage.report()
            assert report is not None
            assert (stage.driver.calls, report.phase) == ([], Phase.STARTING)
            assert report.reason is not None
            assert "No space left" in report.reason
            stage.file.full = False
            await stage.until(lambda: stage.phase() is Phase.RUNNING)
            stage.file.full, stage.file.refused = True, 0
            stage.driver.end("s1", "crashed")
            await stage.until(lambda: stage.file.refused >= 3)
            assert stage.phase() is Phase.RUNNING
            stage.file.full = False
            await stage.until(lambda: stage.phase() is Phase.ENDED)
            report = stage.report()
            assert report is not None
            assert report.reason == "crashed"
            assert stage.driver.calls == ["start s1 1"]

        run(tmp_path, scenario, SlowStage)

    def test_a_start_whose_outcome_could_not_be_noted_is_not_begun_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loop_module, "AGAIN_SECONDS", 0.01)

        async def scenario(stage: SlowStage) -> None:
            stage.driver.may_start.clear()
            stage.want(wish())
            await stage.until_called("start s1 1")
            stage.file.full = True
            stage.driver.may_start.set()
            await stage.until(lambda: stage.file.refused >= 2)
            assert stage.phase() is Phase.STARTING
            # Nor is it lost when nobody names it.
            stage.want()
            stage.file.full = False
            await stage.until(lambda: stage.phase() is Phase.RUNNING)
            assert stage.driver.calls == ["start s1 1"]

        run(tmp_path, scenario, SlowStage)

    def test_a_start_that_failed_is_forgotten_when_nobody_names_it_meanwhile(
        self, tmp_path: Path
    ) -> None:
        async def scenario(stage: Stage) -> None:
            stage.driver.fails = [Unavailable("not now")]
            stage.want(wish())
            await stage.until(lambda: stage.loop._put_off)
            report = stage.report()
            assert report is not None
            assert (report.phase, report.reason) == (Phase.STARTING, "not now")
            stage.want()
            await stage.until(lambda: stage.report() is None)
            assert stage.driver.calls == ["start s1 1"]

        run(tmp_path, scenario)


@contextlib.asynccontextmanager
async def longest_wait() -> AsyncIterator[Callable[[], float]]:
    """Measure for how many seconds on end the event loop does nothing for anybody else."""
    longest = 0.0

    async def look() -> None:
        nonlocal longest
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.001)
            longest = max(longest, time.monotonic() - began)

    looking = asyncio.create_task(look())
    try:
        yield lambda: longest
    finally:
        looking.cancel()
        await asyncio.wait({looking})
