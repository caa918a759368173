"""What a session leaves that can't be removed: it is known, tried again, and in nobody's way."""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deskfleet.agent.drivers import session_folders, xvnc, xvnc_clearing, xvnc_remains
from deskfleet.agent.drivers.owners import OwnerPolicy
from deskfleet.agent.drivers.processes import boot_id, identify
from deskfleet.agent.drivers.session_folders import RuntimeFolders
from deskfleet.agent.drivers.xvnc import XvncDriver
from deskfleet.agent.drivers.xvnc_record import Records, SessionRecord
from deskfleet.errors import StartFailed, Unavailable
from support.mounts import holding_fast
from support.sessions import (
    need_xvnc,
    program,
    session_owner,
    session_spec,
    xvnc_driver,
    xvnc_folder,
)
from support.users import need_root, ordinary_user
from support.waiting import soon

KEY = "0123abcd"


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place for sessions, where what takes seconds takes less."""
    monkeypatch.setattr(xvnc_remains, "AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(xvnc_clearing, "LIMIT_SECONDS", 0.3)
    monkeypatch.setattr(xvnc, "_STOP_LIMIT_SECONDS", 0.5)
    with xvnc_folder() as made:
        yield made


@pytest.fixture
def held(folder: Path) -> Path:
    """A place for a file system that keeps whoever asks it from dying."""
    need_root("mounting a file system")
    need_xvnc()
    (folder / "held").mkdir()
    return folder / "held"


def left(folder: Path) -> list[str]:
    return [path.name for part in "rsd" for path in (folder / "run" / part).glob("*")]


class Ends(list[tuple[str, str]]):
    def __call__(self, session_id: str, reason: str) -> None:
        self.append((session_id, reason))


class Leader:
    """A session that an earlier agent started: what it wrote of it, and a process that leads it."""

    def __init__(self, folder: Path) -> None:
        folders = RuntimeFolders(folder / "run")
        folders.make()
        self.owner = ordinary_user(session_owner())
        self.session = folders.make_session(KEY, self.owner.pw_uid, self.owner.pw_gid)
        self.program = subprocess.Popen(["sleep", "600"], start_new_session=True)
        record = SessionRecord(
            key=KEY,
            spec=session_spec(),
            uid=self.owner.pw_uid,
            boot_id=boot_id(),
            created_at=datetime.now(UTC),
            leader=identify(self.program.pid),
            ready=True,
        )
        Records(folders.records).write(record)

    def die(self) -> None:
        self.program.kill()
        self.program.wait()


@pytest.fixture
def leader(folder: Path) -> Iterator[Leader]:
    made = Leader(folder)
    yield made
    made.die()


async def opened_on_remains(folder: Path, ends: Ends) -> XvncDriver:
    """Open the driver of the next agent, which starts although something of `s-1` is left."""
    driver = xvnc_driver(folder)
    await driver.open(ends)
    assert driver.running() == []
    with pytest.raises(Unavailable, match="can't be removed yet"):
        await driver.stop("s-1")
    return driver


def test_an_error_that_nobody_foresaw_is_not_the_end(
    folder: Path,
    leader: Leader,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(session_folders, "X_LOCKS", folder / "X")

    async def scene() -> None:
        ends, driver = Ends(), xvnc_driver(folder)
        await driver.open(ends)
        assert [one.session_id for one in driver.running()] == ["s-1"]
        leader.die()
        await soon(lambda: len(told(caplog)) > 1)
        assert (ends, left(folder)) == ([], [f"{KEY}.json", KEY])
        assert [one.session_id for one in driver.running()] == ["s-1"]
        with pytest.raises(Unavailable, match="can't be removed yet"):
            await driver.stop("s-1")
        await driver.close()

        # Nor does it keep the next agent from starting.
        driver = await opened_on_remains(folder, ends)
        (folder / "X").mkdir()
        await soon(lambda: left(folder) == [])
        await driver.stop("s-1")
        await driver.close()
        assert ends == []

    def told(caplog: pytest.LogCaptureFixture) -> list[str]:
        return [one.message for one in caplog.records if one.levelno == logging.ERROR]

    asyncio.run(scene())
    assert set(told(caplog)) == {"session.clearing-failed"}
    assert all(one.__dict__["session_id"] == "s-1" for one in caplog.records if one.exc_info)


def test_many_ends_at_once_do_not_keep_an_agent_from_saying_how_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = threading.Event()
    monkeypatch.setattr(xvnc, "clear", lambda *_: may_end.wait(60))

    async def scene() -> None:
        driver = xvnc_driver(folder)
        await driver.open(Ends())
        ends = [driver._remains.begin(f"{number:08x}", None) for number in range(40)]
        for _ in range(10):
            await asyncio.sleep(0)
        try:
            async with asyncio.timeout(20):
                await driver.trouble()
            assert not any(one.tried.done() for one in ends)
        finally:
            may_end.set()
        await asyncio.wait({one.gone for one in ends})
        await driver.close()

    asyncio.run(scene())


def test_an_end_that_broke_is_no_end(
    folder: Path, leader: Leader, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What breaks does so at once, and what doesn't may take its time.
    monkeypatch.setattr(xvnc, "_STOP_LIMIT_SECONDS", 20)

    async def scene() -> None:
        ends, driver = Ends(), xvnc_driver(folder)
        await driver.open(ends)
        clears, driver._remains._clear = driver._remains._clear, breaks
        for _ in range(2):
            with pytest.raises(Unavailable, match="can't be removed yet"):
                await driver.stop("s-1")
            assert [one.session_id for one in driver.running()] == ["s-1"]
        driver._remains._clear = clears
        await driver.stop("s-1")
        assert (driver.running(), left(folder), ends) == ([], [], [])
        await driver.close()

    def breaks(_key: str) -> asyncio.Future[bool]:
        raise ZeroDivisionError

    asyncio.run(scene())


def test_an_end_is_told_though_its_reason_can_not_be_read(
    folder: Path, leader: Leader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xvnc, "_REASON_LIMIT_SECONDS", 0.05)
    never = threading.Event()

    async def scene() -> None:
        ends, driver = Ends(), xvnc_driver(folder)
        monkeypatch.setattr(driver._folders, "why_ended", lambda _key: never.wait(20))
        await driver.open(ends)
        leader.die()
        await soon(lambda: ends)
        assert ends == [("s-1", "the session leader was killed")]
        await driver.close()

    try:
        asyncio.run(scene())
    finally:
        never.set()


def test_an_agent_starts_though_somebody_took_the_place_of_the_x_sockets(
    folder: Path, leader: Leader, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    need_root("taking care of the folder of X sockets")
    (folder / "taken").touch()
    monkeypatch.setattr(session_folders, "X_SOCKETS", folder / "taken")

    async def scene() -> None:
        driver = xvnc_driver(folder)
        await driver.open(Ends())
        assert [one.session_id for one in driver.running()] == ["s-1"]
        with pytest.raises(StartFailed, match="Not a directory"):
            await driver.start(session_spec("s-2"))
        await driver.close()

    asyncio.run(scene())
    assert "x-sockets.unusable" in [one.message for one in caplog.records]


@dataclass(frozen=True)
class AtHome(OwnerPolicy):
    """Gives session owners a home of its choice."""

    home: Path = Path("/")

    def check(self, owner: str) -> pwd.struct_passwd:
        *before, _home, shell = super().check(owner)
        return pwd.struct_passwd((*before, str(self.home), shell))


def test_a_start_whose_leader_can_not_be_killed_fails_and_is_cleared_later(
    folder: Path, held: Path
) -> None:
    async def begun() -> XvncDriver:
        driver = xvnc_driver(folder, owners=AtHome(os.geteuid(), home=held), start_limit_seconds=4)
        await driver.open(Ends())
        return driver

    async def scene() -> None:
        with holding_fast(held, ordinary_user("dfalice").pw_uid):
            driver = await begun()
            with pytest.raises(StartFailed, match="within 4 seconds; parts of it can't be removed"):
                await driver.start(session_spec())
            assert driver.running() == []
            for again in (
                driver.stop("s-1"),
                driver.start(session_spec(generation=2)),
            ):
                with pytest.raises(Unavailable, match="can't be removed yet"):
                    await again
            await driver.stop("another")
            await driver.close()

            driver = await begun()
            with pytest.raises(Unavailable, match="can't be removed yet"):
                await driver.stop("s-1")
            assert len(left(folder)) == 2
        await soon(lambda: left(folder) == [])
        await driver.stop("s-1")
        await driver.close()

    asyncio.run(scene())


def test_a_session_that_can_not_be_ended_is_no_session_for_the_next_agent(
    folder: Path, held: Path
) -> None:
    program(folder / "init/stuck", f"#!/bin/sh\nstat {held}\n")

    async def scene() -> None:
        ends = Ends()
        with holding_fast(held, ordinary_user("dfalice").pw_uid) as asked:
            driver = xvnc_driver(folder)
            await driver.open(ends)
            await driver.start(session_spec(init_file="stuck"))
            await soon(asked.is_set)
            for _ in range(2):
                with pytest.raises(Unavailable, match="can't be removed yet"):
                    await driver.stop("s-1")
                assert [one.session_id for one in driver.running()] == ["s-1"]
                assert driver.display_socket("s-1") is None
            await driver.close()

            driver = await opened_on_remains(folder, ends)
        await soon(lambda: left(folder) == [])
        await driver.stop("s-1")
        await driver.close()
        assert ends == []

    asyncio.run(scene())


def test_an_agent_that_leaves_no_session_leaves_no_folder(folder: Path) -> None:
    async def scene() -> None:
        first, second = xvnc_driver(folder), xvnc_driver(folder)
        await first.open(Ends())
        await second.open(Ends())
        await first.close()
        assert list((folder / "run").glob("leader-*/start.py"))
        await second.close()

    asyncio.run(scene())
    assert not (folder / "run").exists()


@pytest.mark.parametrize("kept", ["s/0123abcd", "r/0123abcd.json", "dcv"])
def test_what_there_is_besides_keeps_the_folder(folder: Path, kept: str) -> None:
    async def scene() -> None:
        driver = xvnc_driver(folder)
        await driver.open(Ends())
        (folder / "run" / kept).mkdir()
        await driver.close()

    asyncio.run(scene())
    assert (folder / "run" / kept).exists()
    assert list((folder / "run").glob("leader-*/start.py"))


def test_old_copies_of_the_leader_go_with_an_agent_that_is_alone(
    folder: Path, leader: Leader
) -> None:
    old = [folder / "run" / name for name in ("leader-0123456789ab", "leader-0123456789ab.4711")]

    async def scene() -> None:
        for made in old:
            (made / "session_leader").mkdir(parents=True)
        drivers = [xvnc_driver(folder) for _ in range(2)]
        await drivers[0].open(Ends())
        assert not any(made.exists() for made in old)
        old[0].mkdir()
        await drivers[1].open(Ends())
        # The first one could still need it.
        assert old[0].exists()
        for driver in drivers:
            assert [one.session_id for one in driver.running()] == ["s-1"]
            await driver.close()

    asyncio.run(scene())
    assert leader.program.poll() is None
    assert len(list((folder / "run").glob("leader-*/start.py"))) == 1
