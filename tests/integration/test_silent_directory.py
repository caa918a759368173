"""A user directory that is silent while sessions are asked for: it holds up their starts alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deskfleet.agent.drivers import lookups
from deskfleet.agent.drivers.dcv import DcvDriver
from deskfleet.agent.drivers.dcv_files import DcvFiles
from deskfleet.agent.drivers.dcv_platform import DcvPlatform
from deskfleet.agent.drivers.dcv_server import DcvServer
from deskfleet.agent.drivers.owners import OwnerPolicy
from deskfleet.core.records import Type
from deskfleet.errors import StartFailed
from deskfleet.ports import SessionDriver
from deskfleet.system import SystemClock
from support.sessions import session_spec, xvnc_driver, xvnc_folder

ANSWERS_WITHIN_SECONDS = 20.0
MANY = 40


class Silence(OwnerPolicy):
    """Says of nobody who they are, until it is over."""

    __slots__ = ()
    over = threading.Event()

    def check(self, owner: str) -> None:  # type: ignore[override]
        self.over.wait(2 * ANSWERS_WITHIN_SECONDS)
        raise StartFailed(f"there is no user {owner!r} on this server")


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    Silence.over.clear()
    yield
    Silence.over.set()


@pytest.fixture(params=["xvnc", "dcv"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SessionDriver]:
    if request.param == "xvnc":
        with xvnc_folder() as folder:
            yield xvnc_driver(folder, owners=Silence(0))
        return
    platform = DcvPlatform(
        types=(Type.VIRTUAL,),
        check_owner=Silence(0).check,
        init_folder=tmp_path,
        autorun_folder=tmp_path,
    )
    yield DcvDriver(
        DcvServer(tmp_path / "none"),
        tmp_path / "known",
        DcvFiles(tmp_path / "run", tmp_path / "scripts"),
        platform=platform,
        clock=SystemClock(),
    )


async def begun(driver: SessionDriver) -> list[asyncio.Task[None]]:
    starts = [
        asyncio.create_task(driver.start(session_spec(f"s{number}"))) for number in range(MANY)
    ]
    for _ in range(10):
        await asyncio.sleep(0)
    return starts


def test_what_else_needs_a_thread_has_one(driver: SessionDriver) -> None:
    async def story() -> None:
        starts = await begun(driver)
        async with asyncio.timeout(ANSWERS_WITHIN_SECONDS):
            # As the agent does it before it says anything of itself.
            await driver.trouble()
            assert await asyncio.to_thread(lambda: "done") == "done"
        assert not any(one.done() for one in starts)
        Silence.over.set()
        outcomes = await asyncio.gather(*starts, return_exceptions=True)
        assert {type(one) for one in outcomes} == {StartFailed}
        await driver.close()

    asyncio.run(story())


def test_a_start_does_not_wait_for_ever(
    driver: SessionDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookups, "LIMIT_SECONDS", 0.1)

    async def story() -> None:
        starts = await begun(driver)
        async with asyncio.timeout(ANSWERS_WITHIN_SECONDS):
            outcomes = await asyncio.gather(*starts, return_exceptions=True)
        assert {str(one) for one in outcomes} == {
            "its owner and its programs could not be looked up within 0.1 seconds"
        }
        await driver.close()

    asyncio.run(story())
