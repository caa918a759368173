"""What every session driver keeps: the simulated one, xvnc with real desktops, and dcv.

The DCV server is a stand-in, or the real one that `DESKFLEET_DCV` names (`make dcv-check`).
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import signal
import subprocess
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
from support.dcv import DcvSite, dcv_driver, dcv_folder
from support.sessions import (
    START_LIMIT_SECONDS,
    need_xvnc,
    session_owner,
    session_spec,
    xvnc_driver,
    xvnc_folder,
)

SCREEN = (1280, 800)
ENDS_WITHIN = 10.0


class House(Protocol):
    """Where a driver's sessions live; driver objects come and go."""

    screen: tuple[int, int] | None
    """The size of a session's screen, None where that isn't known."""

    def driver(self) -> SessionDriver: ...

    def let_end(self, driver: SessionDriver, session_id: str) -> None:
        """Let a session end by itself."""

    def left(self) -> list[str]:
        """Return what is there of any session."""


class SimulatedHouse:
    screen: tuple[int, int] | None = SCREEN

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
    screen: tuple[int, int] | None = SCREEN

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
            path.name for part in "rsd" for path in (self._folder / "run" / part).glob("*")
        ] + _marked(str(self._folder))


class DcvHouse:
    """A DCV server: the stand-in, or a real one that is named, which must have no sessions."""

    def __init__(self, folder: Path, program: str | None) -> None:
        self._folder = folder
        self._site = None if program else DcvSite(folder)
        self.screen = None if program else SCREEN
        self._program = Path(program) if program else folder / "dcv"

    def driver(self) -> SessionDriver:
        return dcv_driver(self._folder, self._program)

    def let_end(self, driver: SessionDriver, session_id: str) -> None:
        subprocess.run([self._program, "close-session", session_id], check=True, timeout=60)

    def left(self) -> list[str]:
        places = [self._folder / name for name in ("known", "run/dcv", "scripts")]
        files = [path for place in places for path in place.iterdir()]
        names = [path.name for path in files]
        if self._site is not None:
            return [*names, *self._site.sessions(), *map(str, self._site.calls_left())]
        listing = [str(self._program), "list-sessions", "--json"]
        told = subprocess.run(listing, check=True, timeout=60, capture_output=True).stdout
        return [*names, *(one["id"] for one in json.loads(told))]


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


@pytest.fixture(params=["simulated", "xvnc", "dcv"])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[House]:
    if request.param == "simulated":
        yield SimulatedHouse(tmp_path)
        return
    if request.param == "dcv":
        with dcv_folder() as folder:
            yield DcvHouse(folder, os.environ.get("DESKFLEET_DCV"))
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


@pytest.mark.parametrize("name", ["Größe 7", "--type=console -rf", "桌" * 256])
def test_a_session_starts_runs_and_stops(house: House, name: str) -> None:
    async def story(driver: SessionDriver, ends: Ends) -> None:
        before = SystemClock().now()
        await driver.start(session_spec("s-1", 3, name=name))
        (session,) = driver.running()
        assert (session.session_id, session.generation) == ("s-1", 3)
        assert (session.owner, session.type) == (session_owner(), Type.VIRTUAL)
        assert session.name == name
        assert session.created_at is not None
        # A DCV server may tell whole seconds.
        assert before.replace(microsecond=0) <= session.created_at <= SystemClock().now()
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


async def size_of_a_shot(
    driver: SessionDriver, limits: tuple[int, int], format: str
) -> tuple[int, int]:
    width, height = limits
    (picture,) = await driver.screenshot("s-1", max_width=width, max_height=height, format=format)
    assert (picture.format, picture.primary) == (format, True)
    with Image.open(io.BytesIO(picture.content)) as image:
        assert image.format == format.upper()
        return image.size


@pytest.mark.parametrize("format", ["png", "jpeg"])
def test_a_screenshot_keeps_within_its_limits_and_its_aspect(house: House, format: str) -> None:
    async def story(driver: SessionDriver, _ends: Ends) -> None:
        await driver.start(session_spec())
        whole = await size_of_a_shot(driver, (5000, 5000), format)
        assert whole == (house.screen or whole)
        for share in (0.5, 0.25):
            asked = round(whole[0] * share), round(whole[1] * share)
            for limits in ((asked[0], 5000), (5000, asked[1]), (asked[0], asked[1] + 50)):
                size = await size_of_a_shot(driver, limits, format)
                assert size == pytest.approx(asked, abs=1)
                assert (size[0] <= limits[0], size[1] <= limits[1]) == (True, True)

    play(house, story)


def test_a_screenshot_shows_something(house: House) -> None:
    async def story(driver: SessionDriver, _ends: Ends) -> None:
        await driver.start(session_spec())
        # A window manager that is there may still be painting.
        async with asyncio.timeout(START_LIMIT_SECONDS):
            while await colours(driver) <= 5:  # noqa: ASYNC110 - a screen tells nobody
                await asyncio.sleep(0.05)

    async def colours(driver: SessionDriver) -> int:
        (picture,) = await driver.screenshot("s-1", max_width=1280, max_height=800, format="PNG")
        with Image.open(io.BytesIO(picture.content)) as image:
            found = image.convert("RGB").getcolors(1 << 20)
        assert found is not None
        return len(found)

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


def test_what_begins_and_ends_is_logged_by_others(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(driver: SessionDriver, ends: Ends) -> None:
        await driver.start(session_spec("s-1"))
        await driver.start(session_spec("s-2"))
        await driver.permit(session_spec("s-2"))
        house.let_end(driver, "s-1")
        await ends.first()
        await driver.stop("s-2")

    with caplog.at_level(logging.INFO, "deskfleet"):
        play(house, story)
    told = {record.getMessage() for record in caplog.records}
    assert not told & {"session.started", "session.ended", "session.stopped", "session.permitted"}


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
        told.append(await driver.version())
        assert await driver.trouble() is None

    told: list[str] = []
    play(house, story)
    if told == ["unknown"]:
        # Debian 13's Xvnc says nothing when it is asked.
        asked = subprocess.run(["Xvnc", "-version"], capture_output=True, check=False)
        assert b"TigerVNC" not in asked.stdout + asked.stderr
    else:
        assert told[0][0].isdigit()
