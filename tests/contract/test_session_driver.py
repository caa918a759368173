"""What every session driver keeps: the simulated one, and xvnc with real desktops."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest
from PIL import Image

from deskfleet.agent.drivers.simulated import SimulatedDriver
from deskfleet.agent.drivers.xvnc import XvncDriver
from deskfleet.core.records import Type
from deskfleet.errors import Invalid, Missing, StartFailed
from deskfleet.ports import SessionDriver
from deskfleet.system import SystemClock
from support.sessions import need_xvnc, session_owner, session_spec, xvnc_driver, xvnc_folder

SCREEN = (1280, 800)
ENDS_WITHIN = 10.0


class House(Protocol):
    """Where a driver's sessions live; driver objects come and go."""

    def driver(self) -> SessionDriver: ...

    def let_end(self, driver: SessionDriver, session_id: str) -> None:
        """Let a session end by itself."""

    def left(self) -> list[str]:
        """Return what is there of any session."""


class SimulatedHouse:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def driver(self) -> SessionDriver:
        return SimulatedDriver(SystemClock(), start_seconds=0.05, state_dir=self._folder)

    def let_end(self, driver: SessionDriver, session_id: str) -> None:
        assert isinstance(driver, SimulatedDriver)
        driver.end(session_id, "it was its time")

    def left(self) -> list[str]:
        return [path.name for path in self._folder.iterdir()]


class XvncHouse:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def driver(self) -> SessionDriver:
        return xvnc_driver(self._folder)

    def let_end(self, driver: SessionDriver, session_id: str) -> None:
        assert isinstance(driver, XvncDriver)
        for path in (self._folder / "run/r").glob("*.json"):
            record = json.loads(path.read_text())
            if record["spec"]["session_id"] == session_id:
                os.kill(record["x_pid"], signal.SIGTERM)

    def left(self) -> list[str]:
        return [
            path.name for part in "rsd" for path in (self._folder / "run" / part).iterdir()
        ] + _marked(str(self._folder))


def _marked(mark: str) -> list[str]:
    """Return all processes that were started for a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if mark.encode() in (entry / "environ").read_bytes():
                found.append(entry.name)
        except OSError:
            continue
    return [pid for pid in found if pid != str(os.getpid())]


@pytest.fixture(params=["simulated", "xvnc"])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[House]:
    if request.param == "simulated":
        yield SimulatedHouse(tmp_path)
        return
    need_xvnc()
    with xvnc_folder() as folder:
        yield XvncHouse(folder)


class Ends:
    """What a driver told of sessions that ended."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self._news = asyncio.Event()

    def __call__(self, session_id: str, reason: str) -> None:
        self.told.append((session_id, reason))
        self._news.set()

    async def first(self) -> tuple[str, str]:
        async with asyncio.timeout(ENDS_WITHIN):
            await self._news.wait()
        return self.told[0]


Story = Callable[[SessionDriver, Ends], Awaitable[None]]


def play(house: House, story: Story) -> None:
    """Run a story with an open driver; whatever it leaves is stopped."""

    async def scene() -> None:
        driver, ends = house.driver(), Ends()
        await driver.open(ends)
        try:
            await story(driver, ends)
        finally:
            for session in driver.running():
                await driver.stop(session.session_id)
            await driver.close()

    asyncio.run(scene())
    assert house.left() == []


def ids(driver: SessionDriver) -> list[str]:
    return sorted(session.session_id for session in driver.running())


def test_a_session_starts_runs_and_stops(house: House) -> None:
    async def story(driver: SessionDriver, ends: Ends) -> None:
        before = SystemClock().now()
        await driver.start(session_spec("s-1", 3, name="Größe 7"))
        (session,) = driver.running()
        assert (session.session_id, session.generation) == ("s-1", 3)
        assert (session.owner, session.type) == (session_owner(), Type.VIRTUAL)
        assert session.name == "Größe 7"
        assert session.created_at is not None
        assert before <= session.created_at <= SystemClock().now()
        await driver.stop("s-1")
        assert ids(driver) == []
        assert house.left() == []
        assert ends.told == []

    play(house, story)


def test_starting_what_runs_changes_nothing(house: House) -> None:
    async def story(driver: SessionDriver, ends: Ends) -> None:
        await driver.start(session_spec())
        (first,) = driver.running()
        left = house.left()
        await driver.start(session_spec())
        assert list(driver.running()) == [first]
        assert sorted(house.left()) == sorted(left)
        assert ends.told == []

    play(house, story)


def test_a_later_placement_replaces_an_earlier_one_but_not_the_other_way_round(
    house: House,
) -> None:
    async def story(driver: SessionDriver, ends: Ends) -> None:
        await driver.start(session_spec(generation=1))
        await driver.start(session_spec(generation=2))
        assert [session.generation for session in driver.running()] == [2]
        with pytest.raises(StartFailed):
            await driver.start(session_spec(generation=1))
        assert [session.generation for session in driver.running()] == [2]
        assert ends.told == []

    play(house, story)


def test_stopping_twice_or_what_never_ran_is_no_error(house: House) -> None:
    async def story(driver: SessionDriver, ends: Ends) -> None:
        await driver.stop("nobody")
        await driver.start(session_spec())
        await driver.stop("s-1")
        await driver.stop("s-1")
        assert ends.told == []

    play(house, story)


def test_a_stopped_session_can_be_started_again(house: House) -> None:
    async def story(driver: SessionDriver, _ends: Ends) -> None:
        for generation in (1, 2):
            await driver.start(session_spec(generation=generation))
            await driver.stop("s-1")
        await driver.start(session_spec(generation=3))
        assert ids(driver) == ["s-1"]

    play(house, story)


@pytest.mark.parametrize("format", ["png", "jpeg"])
def test_a_screenshot_keeps_within_its_limits_and_its_aspect(house: House, format: str) -> None:
    async def story(driver: SessionDriver, _ends: Ends) -> None:
        await driver.start(session_spec())
        for limits, size in (
            ((5000, 5000), SCREEN),
            ((640, 5000), (640, 400)),
            ((5000, 400), (640, 400)),
            ((320, 400), (320, 200)),
        ):
            (picture,) = await driver.screenshot(
                "s-1", max_width=limits[0], max_height=limits[1], format=format
            )
            assert (picture.format, picture.primary) == (format, True)
            with Image.open(io.BytesIO(picture.content)) as image:
                assert (image.format, image.size) == (format.upper(), size)

    play(house, story)


def test_a_screenshot_shows_something(house: House) -> None:
    async def story(driver: SessionDriver, _ends: Ends) -> None:
        await driver.start(session_spec())
        (picture,) = await driver.screenshot("s-1", max_width=1280, max_height=800, format="PNG")
        with Image.open(io.BytesIO(picture.content)) as image:
            colours = image.convert("RGB").getcolors(1 << 20)
        assert colours is not None
        assert len(colours) > 5

    play(house, story)


def test_no_screenshot_of_what_does_not_run_nor_in_an_unknown_format(house: House) -> None:
    async def story(driver: SessionDriver, _ends: Ends) -> None:
        with pytest.raises(Missing):
            await driver.screenshot("s-1", max_width=10, max_height=10, format="png")
        await driver.start(session_spec())
        with pytest.raises(Invalid):
            await driver.screenshot("s-1", max_width=10, max_height=10, format="tiff")

    play(house, story)


def test_a_session_that_ends_by_itself_is_told_once_and_leaves_nothing(house: House) -> None:
    async def story(driver: SessionDriver, ends: Ends) -> None:
        await driver.start(session_spec("s-1"))
        await driver.start(session_spec("s-2"))
        house.let_end(driver, "s-1")
        session_id, reason = await ends.first()
        assert session_id == "s-1"
        assert reason
        assert ids(driver) == ["s-2"]
        await driver.stop("s-1")
        await driver.stop("s-2")
        assert house.left() == []
        assert len(ends.told) == 1

    play(house, story)


@pytest.mark.parametrize("after", [0.0, 0.01, 0.03])
def test_a_cancelled_start_leaves_nothing(house: House, after: float) -> None:
    async def story(driver: SessionDriver, ends: Ends) -> None:
        start = asyncio.create_task(driver.start(session_spec()))
        await asyncio.sleep(after)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert ids(driver) == []
        assert house.left() == []
        assert ends.told == []
        await driver.start(session_spec())
        assert ids(driver) == ["s-1"]

    play(house, story)


def test_a_new_driver_takes_up_what_an_earlier_one_started(house: House) -> None:
    async def earlier() -> None:
        driver = house.driver()
        await driver.open(Ends())
        await driver.start(session_spec("s-1", 5, name="long-lived"))
        await driver.start(session_spec("s-2"))
        await driver.close()

    async def story(driver: SessionDriver, ends: Ends) -> None:
        assert ids(driver) == ["s-1", "s-2"]
        first = next(session for session in driver.running() if session.session_id == "s-1")
        assert (first.generation, first.owner) == (5, session_owner())
        assert first.name == "long-lived"
        await driver.start(session_spec("s-1", 5))
        assert ids(driver) == ["s-1", "s-2"]
        assert await driver.screenshot("s-1", max_width=99, max_height=99, format="png")
        house.let_end(driver, "s-1")
        assert (await ends.first())[0] == "s-1"
        await driver.stop("s-2")
        assert house.left() == []

    asyncio.run(earlier())
    play(house, story)


def test_sessions_start_and_stop_side_by_side(house: House) -> None:
    names = [f"s-{number}" for number in range(4)]

    async def story(driver: SessionDriver, ends: Ends) -> None:
        await asyncio.gather(*(driver.start(session_spec(name)) for name in names))
        assert ids(driver) == names
        sockets = {driver.display_socket(name) for name in names}
        assert len(sockets) in {1, 4}
        await asyncio.gather(*(driver.stop(name) for name in names))
        assert ids(driver) == []
        assert ends.told == []

    play(house, story)


def test_a_driver_says_its_version_and_that_it_is_well(house: House) -> None:
    async def story(driver: SessionDriver, _ends: Ends) -> None:
        version = await driver.version()
        assert version[0].isdigit()
        assert await driver.trouble() is None

    play(house, story)
