"""The driver of DCV servers, over a stand-in server that has accidents."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from deskfleet.agent.drivers import dcv_plan
from deskfleet.agent.drivers.dcv import DcvDriver
from deskfleet.agent.drivers.dcv_plan import Files
from deskfleet.agent.drivers.dcv_server import DcvServer
from deskfleet.core.records import Type
from deskfleet.errors import SetupFailed, StartFailed, Unavailable
from deskfleet.machine import here
from deskfleet.ports import Door, Running
from support.builders import a_request
from support.dcv import DcvSite, dcv_driver, dcv_folder
from support.mounts import mounted
from support.sessions import program, session_owner, session_spec
from support.waiting import soon, until

ANSWER_SECONDS = 1.5
CREATE_SECONDS = 2.0
LIMIT_SECONDS = 20.0
PERMISSIONS = b"[permissions]\n%owner% allow builtin\n"
ODD = (
    *("--help", "-o/x", "'\"`", "$(id);&", "../..", "a=b", "*", "\\", " ", "%s%n", "--", "-"),
    *("\u0430dmin", "\u00e9", "e\u0301", "\U0001d51e", "\u202eevil"),
)
FAULTS = ("hang", "fail", "garbage", "flood", "die")

Ends = list[tuple[str, str]]
Story = Callable[[DcvDriver, Ends], Awaitable[None]]


@pytest.fixture
def site() -> Iterator[DcvSite]:
    with dcv_folder() as folder:
        yield DcvSite(folder)


def play(site: DcvSite, story: Story, **settings: Any) -> None:
    """Run a story with an open driver, quick to lose its patience; no call may be left running."""
    given = {"answer_seconds": ANSWER_SECONDS, "create_seconds": CREATE_SECONDS, **settings}
    given.setdefault("proof_seconds", 5.0)

    async def scene() -> None:
        driver, ends = dcv_driver(site.folder, site.program, **given), Ends()
        await driver.open(lambda id, reason: ends.append((id, reason)))
        try:
            await story(driver, ends)
        finally:
            await driver.close()

    asyncio.run(scene())
    until(lambda: not site.calls_left())


async def becomes(driver: DcvDriver, *, well: bool) -> str | None:
    await soon(lambda: (driver._sessions.trouble is None) == well)
    return await driver.trouble()


def ids(driver: DcvDriver) -> list[str]:
    return sorted(one.session_id for one in driver.running())


def only(driver: DcvDriver) -> Running:
    (running,) = driver.running()
    return running


def by_hand(site: DcvSite, id: str, *more: str) -> None:
    site.dcv("create-session", "--type=virtual", f"--owner={session_owner()}", *more, "--", id)


class TestAccidents:
    @pytest.mark.parametrize("kind", FAULTS)
    def test_a_server_that_does_not_answer_is_trouble_and_nothing_has_ended(
        self, site: DcvSite, kind: str
    ) -> None:
        async def story(driver: DcvDriver, ends: Ends) -> None:
            await driver.start(session_spec("s-1"))
            by_hand(site, "hand-made")
            await soon(lambda: ids(driver) == ["hand-made", "s-1"])
            site.fault(kind)
            trouble = await becomes(driver, well=False)
            assert trouble
            assert trouble.isprintable()
            assert ids(driver) == ["hand-made", "s-1"]
            site.heal()
            await becomes(driver, well=True)
            assert ids(driver) == ["hand-made", "s-1"]
            assert ends == []

        play(site, story)

    @pytest.mark.parametrize(
        ("kind", "when"),
        [*((kind, "before") for kind in FAULTS), ("hang", "after"), ("die", "after")],
    )
    def test_a_creation_that_fails_is_proven_not_to_be_there(
        self, site: DcvSite, kind: str, when: str
    ) -> None:
        async def story(driver: DcvDriver, ends: Ends) -> None:
            site.fault(kind, "create-session", when)
            async with asyncio.timeout(LIMIT_SECONDS):
                with pytest.raises(StartFailed) as failure:
                    await driver.start(session_spec())
            assert failure.value.message.isprintable()
            assert site.sessions() == {}
            assert ids(driver) == []
            assert list((site.folder / "known").iterdir()) == []
            site.heal()
            await driver.start(session_spec(generation=2))
            assert only(driver).generation == 2
            await driver.stop("s-1")
            assert ends == []

        play(site, story)

    def test_what_can_not_be_proven_is_no_failure_and_is_undone_later(self, site: DcvSite) -> None:
        async def story(driver: DcvDriver, _ends: Ends) -> None:
            site.fault("hang", "create-session", "after")
            start = asyncio.create_task(driver.start(session_spec()))
            await soon(site.sessions)
            site.fault("hang")
            with pytest.raises(Unavailable, match="did not answer"):
                await start
            assert list(site.sessions()) == ["s-1"]
            assert ids(driver) == []
            site.heal()
            await soon(lambda: not site.sessions())
            assert ids(driver) == []
            await soon(lambda: not list((site.folder / "known").iterdir()))

        play(site, story, proof_seconds=0.1)

    def test_a_session_that_comes_out_after_its_creation_was_given_up_is_closed(
        self, site: DcvSite
    ) -> None:
        async def story(driver: DcvDriver, ends: Ends) -> None:
            site.fault("die", "create-session")
            with pytest.raises(StartFailed):
                await driver.start(session_spec())
            site.heal()
            by_hand(site, "s-1")
            await soon(lambda: not site.sessions())
            assert (ids(driver), ends) == ([], [])
            await driver.start(session_spec(generation=2))
            assert ids(driver) == ["s-1"]
            await driver.stop("s-1")

        play(site, story)

    def test_stopping_fails_as_long_as_the_server_is_silent(self, site: DcvSite) -> None:
        async def story(driver: DcvDriver, _ends: Ends) -> None:
            await driver.start(session_spec())
            site.fault("fail", "close-session")
            stop = asyncio.create_task(driver.stop("s-1"))
            await soon(lambda: len(site.calls("close-session")) > 1)
            assert ids(driver) == ["s-1"]
            stop.cancel()
            with pytest.raises(asyncio.CancelledError):
                await stop
            site.heal()
            await driver.stop("s-1")
            assert ids(driver) == []

        play(site, story)

    def test_closing_the_driver_ends_a_look_that_hangs(self, site: DcvSite) -> None:
        async def story(driver: DcvDriver, _ends: Ends) -> None:
            site.fault("hang")
            looks = len(site.calls("list-sessions"))
            await soon(lambda: len(site.calls("list-sessions")) > looks)

        play(site, story, answer_seconds=60.0)

    def test_a_program_that_is_missing_is_trouble(self, site: DcvSite) -> None:
        async def story(driver: DcvDriver, _ends: Ends) -> None:
            site.program.rename(site.folder / "elsewhere")
            assert "can't be run" in str(await becomes(driver, well=False))
            (site.folder / "elsewhere").rename(site.program)
            await becomes(driver, well=True)

        play(site, story)


class TestAgentsThatCome:
    def test_a_silent_server_has_not_lost_its_sessions(self, site: DcvSite) -> None:
        async def earlier(driver: DcvDriver, _ends: Ends) -> None:
            await driver.start(session_spec("stays", 4))
            await driver.start(session_spec("goes", 5))
            by_hand(site, "hand-made")
            await soon(lambda: len(driver.running()) == 3)
            site.fault("hang")

        async def later(driver: DcvDriver, ends: Ends) -> None:
            assert ids(driver) == ["goes", "hand-made", "stays"]
            assert await driver.trouble()
            await asyncio.to_thread(_close_in_silence, site, "goes")
            site.heal()
            await soon(lambda: ends)
            assert [id for id, _ in ends] == ["goes"]
            generations = {one.session_id: one.generation for one in driver.running()}
            assert generations == {"hand-made": 0, "stays": 4}

        play(site, earlier)
        play(site, later)

    def test_a_creation_that_an_agent_left_half_done_is_undone(self, site: DcvSite) -> None:
        async def earlier(driver: DcvDriver, _ends: Ends) -> None:
            site.fault("hang", "create-session", "after")
            start = asyncio.create_task(driver.start(session_spec()))
            await soon(site.sessions)
            # As when it is killed: nothing is undone.
            site.fault("hang")
            start.cancel()
            with pytest.raises(asyncio.CancelledError):
                await start
            assert list(site.sessions()) == ["s-1"]
            site.heal()

        async def later(driver: DcvDriver, ends: Ends) -> None:
            await soon(lambda: not site.sessions())
            assert (ids(driver), ends) == ([], [])

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("deskfleet.agent.drivers.dcv.CUT_SHORT_PROOF_SECONDS", 0.1)
            play(site, earlier, poll_seconds=60.0)
        play(site, later)

    def test_a_record_that_is_broken_is_laid_aside_and_its_session_lives(
        self, site: DcvSite
    ) -> None:
        known = site.folder / "known"

        async def earlier(driver: DcvDriver, _ends: Ends) -> None:
            await driver.start(session_spec(generation=7))

        async def later(driver: DcvDriver, ends: Ends) -> None:
            assert (only(driver).session_id, only(driver).generation, ends) == ("s-1", 0, [])
            assert len(list(known.glob("*.broken"))) == 1
            await driver.stop("s-1")
            assert list(known.iterdir()) == []

        play(site, earlier)
        (path,) = known.iterdir()
        path.write_bytes(b"!" + path.read_bytes()[1:])
        play(site, later)

    def test_records_that_can_not_be_read_are_no_traceback(self, site: DcvSite) -> None:
        (site.folder / "known").write_text("")
        with pytest.raises(SetupFailed, match="known can't be used"):
            play(site, lambda _driver, _ends: asyncio.sleep(0))
        (site.folder / "known").unlink()
        (site.folder / "known/x.json").mkdir(parents=True)
        play(site, lambda _driver, _ends: asyncio.sleep(0))

    def test_another_session_of_our_id_that_came_meanwhile_is_told_of(self, site: DcvSite) -> None:
        async def earlier(driver: DcvDriver, _ends: Ends) -> None:
            await driver.start(session_spec(generation=7))

        async def later(driver: DcvDriver, ends: Ends) -> None:
            assert only(driver).generation == 0
            await soon(lambda: [id for id, _ in ends] == ["s-1"])

        play(site, earlier)
        site.change("s-1", **{"creation-time": "2031-01-01T00:00:00Z"})
        play(site, later)

    def test_what_an_earlier_agent_left_is_removed(self, site: DcvSite) -> None:
        places = [site.folder / name for name in ("run/dcv", "run/pictures", "scripts")]
        for place in places:
            place.mkdir(parents=True)
            (place / "left").write_text("")

        async def story(driver: DcvDriver, _ends: Ends) -> None:
            assert [path for place in places for path in place.iterdir()] == []

        play(site, story)


def _close_in_silence(site: DcvSite, id: str) -> None:
    """Close a session while all other calls hang."""
    site.fault("hang", "list-sessions")
    site.dcv("close-session", id)
    site.fault("hang")


async def _looks(site: DcvSite, count: int = 3) -> None:
    """Wait until some more looks are over."""
    before = len(site.calls("list-sessions"))
    await soon(lambda: len(site.calls("list-sessions")) > before + count)


class TestRefusals:
    """A server whose lists say little, and that says no when it is asked for more."""

    @pytest.fixture(autouse=True)
    def short_lists(self, site: DcvSite) -> None:
        site.configure(whole_list=False)

    def test_a_session_that_is_not_described_has_not_ended(self, site: DcvSite) -> None:
        async def story(driver: DcvDriver, ends: Ends) -> None:
            await driver.start(session_spec())
            created = only(driver).created_at
            site.fault("fail", "describe-session")
            site.change("s-1", **{"num-of-connections": 1})
            await soon(lambda: only(driver).connections == 1)
            await _looks(site)
            assert (ends, only(driver).generation, only(driver).created_at) == ([], 1, created)
            await driver.stop("s-1")
            assert (site.sessions(), driver.running()) == ({}, [])

        play(site, story)

    def test_a_creation_is_good_though_it_is_not_described(self, site: DcvSite) -> None:
        async def story(driver: DcvDriver, ends: Ends) -> None:
            site.fault("fail", "describe-session")
            await driver.start(session_spec(generation=3))
            assert (only(driver).generation, only(driver).type) == (3, Type.VIRTUAL)
            assert only(driver).owner == session_owner()
            site.heal()
            await soon(lambda: only(driver).created_at)
            assert ends == []

        play(site, story)

    def test_what_nothing_is_known_of_is_trouble_and_not_absent(self, site: DcvSite) -> None:
        async def story(driver: DcvDriver, ends: Ends) -> None:
            await driver.start(session_spec())
            site.fault("fail", "describe-session")
            by_hand(site, "hand-made")
            assert "does not say what session hand-made is" in str(
                await becomes(driver, well=False)
            )
            assert (ids(driver), ends) == (["s-1"], [])
            site.heal()
            await soon(lambda: ids(driver) == ["hand-made", "s-1"])

        play(site, story)

    def test_another_owner_is_seen(self, site: DcvSite) -> None:
        by_hand(site, "hand-made")

        async def story(driver: DcvDriver, _ends: Ends) -> None:
            assert only(driver).owner == session_owner()
            site.change("hand-made", owner="bob")
            await soon(lambda: only(driver).owner == "bob")

        play(site, story)

    def test_what_no_list_says_is_asked_for_now_and_then(self, site: DcvSite) -> None:
        by_hand(site, "hand-made")

        async def story(driver: DcvDriver, _ends: Ends) -> None:
            site.change("hand-made", name="renamed")
            await soon(lambda: only(driver).name == "renamed")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("deskfleet.agent.drivers.dcv_sessions.LOOKS_PER_DESCRIPTION", 3)
            play(site, story)


class TestPolls:
    @pytest.mark.parametrize("command", ["version", "get-config"])
    def test_one_question_that_fails_silences_nothing(self, site: DcvSite, command: str) -> None:
        site.configure(endpoints=False)
        site.fault("flood", command)

        async def story(driver: DcvDriver, _ends: Ends) -> None:
            told: list[list[str]] = []
            driver.on_change = lambda: told.append(ids(driver))
            by_hand(site, "hand-made")
            await soon(lambda: told)
            assert told[-1] == ["hand-made"]
            assert await driver.trouble() is None

        play(site, story)

    def test_what_waits_for_a_log_on_may_be_gone(self, site: DcvSite) -> None:
        async def story(driver: DcvDriver, _ends: Ends) -> None:
            assert not driver._sessions.strike_out("gone")

        play(site, story)

    def test_a_close_that_fails_silences_nothing(self, site: DcvSite) -> None:
        async def story(driver: DcvDriver, _ends: Ends) -> None:
            told: list[list[str]] = []
            driver.on_change = lambda: told.append(ids(driver))
            site.fault("hang", "close-session")
            driver._sessions.give_up("late")
            by_hand(site, "late")
            by_hand(site, "hand-made")
            await soon(lambda: told)
            assert told[-1] == ["hand-made"]
            site.heal()
            await soon(lambda: list(site.sessions()) == ["hand-made"])

        play(site, story)

    def test_a_look_does_not_close_what_was_started_meanwhile(self, site: DcvSite) -> None:
        asked: list[str] = []

        async def story(driver: DcvDriver, ends: Ends) -> None:
            gate, close = asyncio.Event(), driver._server.close

            async def slow(id: str) -> str | None:
                asked.append(id)
                await gate.wait()
                return await close(id)

            patch.setattr(driver._server, "close", slow)
            site.fault("fail", "list-sessions")
            await becomes(driver, well=False)
            for id in ("a", "b"):
                driver._sessions.give_up(id)
                by_hand(site, id)
            site.heal()
            await soon(lambda: asked)
            site.dcv("close-session", "b")
            await driver.start(session_spec("b"))
            # This one waits for the close that is under way.
            again = asyncio.create_task(driver.start(session_spec("a", 2)))
            await asyncio.wait({again}, timeout=0.5)
            gate.set()
            await again
            await _looks(site)
            assert (ids(driver), asked, ends) == (["a", "b"], ["a"], [])

        with pytest.MonkeyPatch.context() as patch:
            play(site, story)

    def test_what_was_given_up_is_closed_even_after_a_long_silence(self, site: DcvSite) -> None:
        async def story(driver: DcvDriver, _ends: Ends) -> None:
            site.fault("fail", "list-sessions")
            await becomes(driver, well=False)
            driver._sessions.give_up("late")
            by_hand(site, "late")
            looks = len(site.calls("list-sessions"))
            await soon(lambda: len(site.calls("list-sessions")) > looks + 1)
            site.heal()
            await soon(lambda: not site.sessions())
            assert ids(driver) == []

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("deskfleet.agent.drivers.dcv_sessions.UNWANTED_SECONDS", 0.1)
            play(site, story)

    def test_a_close_does_not_wait_for_creations_that_hang(self, site: DcvSite) -> None:
        server = DcvServer(site.program, create_seconds=3.0)

        async def story() -> None:
            site.fault("hang", "create-session")
            creations = [
                asyncio.create_task(server.create(["create-session", "x"])) for _ in range(5)
            ]
            await soon(lambda: len(site.calls("create-session")) == 4)
            assert "Could not find" in str(await server.close("x"))
            assert not any(one.done() for one in creations)
            for one in creations:
                one.cancel()
            await asyncio.gather(*creations, return_exceptions=True)

        asyncio.run(story())
        until(lambda: not site.calls_left())

    def test_a_session_is_over_only_after_a_while(self, site: DcvSite) -> None:
        async def story(driver: DcvDriver, ends: Ends) -> None:
            await driver.start(session_spec())
            site.dcv("close-session", "s-1")
            patch.setattr(sure, 3600.0)
            await driver._sessions.look()
            await driver._sessions.look()
            assert (ids(driver), ends) == (["s-1"], [])
            patch.setattr(sure, 0.1)
            await soon(lambda: ends)
            assert ids(driver) == []

        sure = "deskfleet.agent.drivers.dcv_sessions.SURE_SECONDS"
        with pytest.MonkeyPatch.context() as patch:
            play(site, story, poll_seconds=0.5)


class TestWhatOthersCreated:
    @pytest.mark.parametrize(
        "told",
        [
            {"whole_list": True},
            {"whole_list": False},
            {"whole_list": False, "hidden": ["num-of-connections"]},
        ],
    )
    def test_it_is_taken_up_with_its_own_id(self, site: DcvSite, told: dict[str, Any]) -> None:
        site.configure(**told)
        by_hand(site, "-odd id", "--name=by hand")

        async def story(driver: DcvDriver, ends: Ends) -> None:
            assert ids(driver) == ["-odd id"]
            by_hand(site, "second")
            await soon(lambda: len(driver.running()) == 2)
            (odd, _) = sorted(driver.running(), key=lambda one: one.session_id)
            assert (odd.generation, odd.name, odd.owner) == (0, "by hand", session_owner())
            assert (odd.type, odd.connections) == (Type.VIRTUAL, 0)
            assert odd.created_at is not None
            site.change("-odd id", **{"num-of-connections": 3})
            await soon(lambda: {one.connections for one in driver.running()} == {0, 3})
            site.change(
                "-odd id",
                **{"num-of-connections": 0, "last-disconnection-time": "2026-03-04T05:06:07Z"},
            )
            await soon(lambda: any(one.last_disconnection_at for one in driver.running()))
            assert ends == []
            await driver.stop("-odd id")
            assert list(site.sessions()) == ["second"]

        play(site, story)

    @pytest.mark.parametrize("hidden", [[], ["num-of-connections"]])
    def test_who_is_connected_is_told(self, site: DcvSite, hidden: list[str]) -> None:
        site.configure(whole_list=not hidden, hidden=hidden)
        by_hand(site, "s-1")

        async def story(driver: DcvDriver, ends: Ends) -> None:
            assert (only(driver).connections, only(driver).visitors) == (0, ())
            names = ["bob", "alice", "bob"]
            site.change("s-1", **{"num-of-connections": 3, "connected": names})
            await soon(lambda: only(driver).connections == 3)
            assert only(driver).visitors == ("alice", "bob", "bob")
            site.change("s-1", **{"num-of-connections": 0, "connected": []})
            await soon(lambda: only(driver).connections == 0)
            assert only(driver).visitors == ()

        play(site, story)

    def test_a_server_that_does_not_say_who_is_asked_once(self, site: DcvSite) -> None:
        by_hand(site, "s-1")

        async def story(driver: DcvDriver, ends: Ends) -> None:
            site.fault("fail", "list-connections")
            site.change("s-1", **{"num-of-connections": 2})
            await soon(lambda: only(driver).connections == 2)
            assert only(driver).visitors == ()
            await _looks(site)
            assert len(site.calls("list-connections")) < len(site.calls("list-sessions"))
            assert ends == []

        play(site, story)

    def test_a_console_session_that_comes_again_is_the_same_for_us(self, site: DcvSite) -> None:
        create = ("create-session", "--type=console", f"--owner={session_owner()}", "console")
        site.dcv(*create)

        async def story(driver: DcvDriver, ends: Ends) -> None:
            first = only(driver)
            assert (first.session_id, first.type) == ("console", Type.CONSOLE)
            site.change("console", **{"creation-time": "2031-01-01T00:00:00Z"})
            await soon(lambda: only(driver).created_at != first.created_at)
            assert ends == []
            site.dcv("close-session", "console")
            await soon(lambda: ends)
            assert driver.running() == []

        play(site, story)

    def test_another_session_of_our_id_is_not_ours(self, site: DcvSite) -> None:
        async def story(driver: DcvDriver, ends: Ends) -> None:
            await driver.start(session_spec(generation=7))
            site.change("s-1", **{"creation-time": "2031-01-01T00:00:00Z"})
            await soon(lambda: ends)
            assert only(driver).generation == 0

        play(site, story)


class TestCreation:
    def test_all_that_is_asked_reaches_the_server(self, site: DcvSite) -> None:
        program(site.folder / "init/desk", "#!/bin/sh\nexec sleep 300\n")
        asked: dict[str, Any] = {
            "name": "--help 'x' $(id) é",
            "storage_root": "%home%/a b",
            "dcv_gl_enabled": False,
            "max_concurrent_clients": 2,
            "init_file": "desk",
            "permissions_file": base64.b64encode(PERMISSIONS).decode(),
        }

        async def story(driver: DcvDriver, _ends: Ends) -> None:
            await driver.start(session_spec(**asked))
            (created,) = site.sessions().values()
            assert (created["name"], created["owner"]) == (asked["name"], session_owner())
            assert (created["storage-root"], created["gl"]) == ("%home%/a b", "off")
            assert (created["max-concurrent-clients"], created["type"]) == (2, "virtual")
            assert created["permissions"] == PERMISSIONS.decode()
            assert list((site.folder / "run/dcv").iterdir()) == []
            await driver.stop("s-1")

        play(site, story)

    def test_hostile_values_reach_a_real_program_byte_for_byte(self, site: DcvSite) -> None:
        asked = [
            dcv_plan.creation("s", a_request(name=odd, owner=odd, storage_root=odd), Files())
            for odd in ODD
        ]
        server = DcvServer(site.program)

        async def story() -> None:
            for arguments in asked:
                assert await server.create(arguments)

        asyncio.run(story())
        for odd, arguments, call in zip(ODD, asked, site.calls(), strict=True):
            assert call == [one.encode() for one in arguments]
            assert f"--name={odd}".encode() in call

    @pytest.mark.parametrize(
        ("asked", "reason"),
        [
            ({"owner": "nobody-of-that-name"}, "there is no user"),
            ({"owner": "root"}, "sessions of root"),
            ({"name": "a\nb"}, "no program can be given"),
            ({"init_file": "../desk"}, "must not leave its folder"),
            ({"init_file": "missing"}, "No such file"),
            ({"autorun_file": "/bin/sh"}, "relative"),
        ],
    )
    def test_what_is_refused_never_reaches_the_server(
        self, site: DcvSite, asked: dict[str, Any], reason: str
    ) -> None:
        async def story(driver: DcvDriver, _ends: Ends) -> None:
            with pytest.raises(StartFailed, match=reason):
                await driver.start(session_spec(**asked))
            assert site.calls("create-session") == []

        play(site, story)

    def test_what_the_server_refuses_is_its_own_word(self, site: DcvSite) -> None:
        async def story(driver: DcvDriver, _ends: Ends) -> None:
            await driver.start(session_spec("c", type=Type.CONSOLE))
            with pytest.raises(StartFailed, match="a console session can't run beside others"):
                await driver.start(session_spec("v"))
            assert ids(driver) == ["c"]
            await driver.stop("c")

        play(site, story)

    def test_a_server_of_windows_runs_console_sessions_only(self) -> None:
        async def story(driver: DcvDriver, _ends: Ends) -> None:
            assert driver.service().types == (Type.CONSOLE,)
            with pytest.raises(StartFailed, match="runs no virtual sessions"):
                await driver.start(session_spec())
            await driver.start(session_spec(type=Type.CONSOLE, owner="CORP\\Alice"))
            assert only(driver).owner == "CORP\\Alice"
            await driver.stop("s-1")

        with dcv_folder() as folder:
            site = DcvSite(folder, platform="windows")
            play(site, story, types=(Type.CONSOLE,))

    def test_on_windows_an_autorun_file_runs_once_its_owner_has_logged_on(self) -> None:
        users: list[str] = []
        started: list[tuple[str, Sequence[str], Mapping[str, str]]] = []

        def start_as(user: str, argv: Sequence[str], environment: Mapping[str, str]) -> None:
            started.append((user, argv, environment))
            raise StartFailed("it could not be run")

        async def waits(driver: DcvDriver, _ends: Ends) -> None:
            await driver.start(session_spec(**asked))
            looks = len(site.calls("list-sessions"))
            await soon(lambda: len(site.calls("list-sessions")) > looks + 2)
            assert started == []

        async def runs(driver: DcvDriver, _ends: Ends) -> None:
            users.append("ALICE")
            await soon(lambda: started)
            looks = len(site.calls("list-sessions"))
            await soon(lambda: len(site.calls("list-sessions")) > looks + 2)
            tool = str(site.folder / "autorun/tool")
            assert started == [("CORP\\alice", [tool], {})]
            await driver.stop("s-1")

        asked: dict[str, Any] = {"type": Type.CONSOLE, "owner": "CORP\\alice"}
        asked["autorun_file"] = "tool"
        with dcv_folder() as folder:
            site = DcvSite(folder, platform="windows")
            program(site.folder / "autorun/tool", "#!/bin/sh\n")
            windows = {"types": (Type.CONSOLE,), "logged_in": lambda: users, "start_as": start_as}
            play(site, waits, **windows)
            play(site, runs, **windows)

    @pytest.mark.parametrize("has_init", [True, False])
    def test_an_autorun_file_runs_in_the_session_as_its_owner(
        self, site: DcvSite, has_init: bool
    ) -> None:
        said = site.folder / "said"
        said.mkdir()
        said.chmod(0o777)
        init = site.folder / "init/desk"
        program(init, f"#!/bin/sh\nid -un >{said}/init\nexec sleep 300\n")
        told = 'id -un; echo "$DISPLAY"; printf "%s|" "$@"'
        text = f"#!/bin/sh\n({told}) >{said}/draft; mv {said}/draft {said}/run\n"
        program(site.folder / "autorun/tool", text)
        arguments = ("-x", "a b", "'$(id)'", "", "é")

        async def story(driver: DcvDriver, _ends: Ends) -> None:
            asked: dict[str, Any] = {"autorun_file": "tool", "autorun_file_arguments": arguments}
            asked["init_file"] = "desk" if has_init else None
            await driver.start(session_spec(**asked))
            await soon(lambda: (said / "run").exists() and (said / "init").exists())
            assert len(list((site.folder / "scripts").iterdir())) == 1
            await driver.stop("s-1")
            assert list((site.folder / "scripts").iterdir()) == []

        play(site, story, default_init=init)
        owner, display, rest = (said / "run").read_text().split("\n")
        assert (owner, display) == (session_owner(), ":77")
        assert rest == "|".join(arguments) + "|"
        assert (said / "init").read_text().strip() == owner


class TestPlacesWithoutPrograms:
    """File systems that no program can be run from, as /run often is one."""

    NOEXEC = "noexec,size=1m,mode=711"

    def test_an_autorun_file_needs_none_in_the_runtime_folder(self, site: DcvSite) -> None:
        said = site.folder / "said"
        said.mkdir()
        said.chmod(0o777)
        program(site.folder / "init/desk", "#!/bin/sh\nexec sleep 300\n")
        program(site.folder / "autorun/tool", f"#!/bin/sh\ntouch {said}/run\n")

        async def story(driver: DcvDriver, _ends: Ends) -> None:
            await driver.start(session_spec(init_file="desk", autorun_file="tool"))
            await soon((said / "run").exists)
            await driver.stop("s-1")

        with mounted(site.folder / "run", self.NOEXEC):
            play(site, story)

    def test_where_no_script_could_run_an_autorun_file_is_refused(self, site: DcvSite) -> None:
        program(site.folder / "autorun/tool", "#!/bin/sh\n")

        async def story(driver: DcvDriver, _ends: Ends) -> None:
            with pytest.raises(StartFailed, match="scripts is mounted noexec"):
                await driver.start(session_spec(autorun_file="tool"))
            assert site.sessions() == {}
            await driver.start(session_spec())
            await driver.stop("s-1")

        with mounted(site.folder / "scripts", self.NOEXEC):
            play(site, story)


class TestRunningSessions:
    def test_permissions_are_replaced_and_given_back(self, site: DcvSite) -> None:
        encoded = base64.b64encode(PERMISSIONS).decode()

        async def story(driver: DcvDriver, _ends: Ends) -> None:
            await driver.start(session_spec())
            await driver.permit(session_spec(permissions_file=encoded))
            assert site.sessions()["s-1"]["permissions"] == PERMISSIONS.decode()
            await driver.permit(session_spec())
            assert site.sessions()["s-1"]["permissions"] is None
            assert list((site.folder / "run/dcv").iterdir()) == []
            with pytest.raises(Unavailable, match="Could not find session"):
                await driver.permit(session_spec("other"))
            await driver.stop("s-1")

        play(site, story)

    def test_nobody_else_can_reach_a_picture(self, site: DcvSite) -> None:
        async def story(driver: DcvDriver, _ends: Ends) -> None:
            await driver.start(session_spec())
            site.fault("hang", "get-screenshot", "after")
            shot = asyncio.create_task(
                driver.screenshot("s-1", max_width=9, max_height=9, format="png")
            )
            await soon(lambda: list((site.folder / "run").rglob("pictures/*")))
            (picture,) = (site.folder / "run").rglob("pictures/*")
            assert picture.parent.stat().st_mode & 0o777 == 0o700
            with pytest.raises(Unavailable):
                await shot
            assert not picture.exists()

        play(site, story)

    def test_no_picture_is_a_reason(self, site: DcvSite) -> None:
        async def shot(driver: DcvDriver) -> Any:
            return await driver.screenshot("s-1", max_width=9, max_height=9, format="png")

        async def story(driver: DcvDriver, _ends: Ends) -> None:
            await driver.start(session_spec())
            for kind in FAULTS:
                site.fault(kind, "get-screenshot")
                with pytest.raises(Unavailable):
                    await shot(driver)
            site.heal()
            assert await shot(driver)
            assert list((site.folder / "run/dcv").iterdir()) == []

        play(site, story)


class TestService:
    @pytest.mark.parametrize("endpoints", [True, False])
    def test_ports_are_those_that_the_server_tells_of(self, endpoints: bool) -> None:
        async def story(driver: DcvDriver, _ends: Ends) -> None:
            service = driver.service()
            assert service.version == "2024.0.19030"
            assert service.types == (Type.VIRTUAL, Type.CONSOLE)
            assert service.doors == (Door(port=9443), Door(port=9443, protocol="QUIC"))

        with dcv_folder() as folder:
            site = DcvSite(folder, endpoints=endpoints, web_port=9443)
            play(site, story)

    def test_they_are_found_out_when_the_server_is_back(self, site: DcvSite) -> None:
        site.fault("fail")

        async def story(driver: DcvDriver, _ends: Ends) -> None:
            assert driver.service().version == "unknown"
            assert driver.service().doors[0] == Door(port=8443)
            site.heal()
            await soon(lambda: driver.service().version == "2024.0.19030")

        play(site, story)


def test_the_program_runs_on_the_loop_that_agents_use(site: DcvSite) -> None:
    with asyncio.Runner(loop_factory=here.new_event_loop) as runner:
        assert runner.run(DcvServer(site.program).sessions()) == []


DOCUMENTED = """
create-session close-session list-sessions describe-session list-connections close-connection
set-permissions set-name set-storage-root set-display-layout get-screenshot list-endpoints
get-config set-config reload-licenses version help
"""


def test_the_stand_in_has_every_documented_command(site: DcvSite) -> None:
    said = site.dcv("help").split()
    assert set(DOCUMENTED.split()) <= set(said)
    by_hand(site, "s")
    assert site.dcv("reload-licenses") == ""
    site.dcv("set-storage-root", "--session", "s", "%home%/x")
    site.dcv("set-display-layout", "--session=s", "800x600+0+0,640x480+800+0")
    site.dcv("set-name", "--session", "s", "--name", "a name")
    shown = json.loads(site.dcv("describe-session", "s", "-j"))
    assert (shown["storage-root"], shown["name"]) == ("%home%/x", "a name")
    assert shown["display-layout"][1] == {"width": 640, "height": 480, "x": 800, "y": 0}
    site.change("s", **{"num-of-connections": 2})
    site.dcv("close-connection", "--session", "s", "2")
    assert len(json.loads(site.dcv("list-connections", "s", "--json"))) == 1
    site.dcv("set-config", "--section", "log", "--key", "level", "'debug'")
    assert site.dcv("get-config", "--section", "log", "--key", "level") == "'debug'\n"
    for wrong in (
        ["set-display-layout", "--session=s", "800x600"],
        ["close-connection", "--session=s", "7"],
        ["set-name", "--session=s"],
        ["set-config", "--section=log", "x"],
        ["set-storage-root", "--session=none", "/x"],
    ):
        done = subprocess.run([site.program, *wrong], capture_output=True, check=False, timeout=20)
        assert (done.returncode, b"Traceback" in done.stderr) == (1, False)


def test_the_stand_in_takes_no_option_that_is_not_documented(site: DcvSite) -> None:
    for wrong in (["list-sessions", "--jso"], ["create-session"], ["nonsense"], ["version", "x"]):
        done = subprocess.run([site.program, *wrong], capture_output=True, check=False, timeout=20)
        assert done.returncode == 1
        assert done.stderr
