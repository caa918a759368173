"""Who is connected to which desktop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from deskfleet.agent.desktop.attendance import Attendance, Close, Visit
from deskfleet.system import SystemClock


def in_loop(story: Callable[[Attendance, list[str]], None]) -> None:
    async def scene() -> None:
        changes: list[str] = []
        story(Attendance(SystemClock(), changes.append), changes)

    asyncio.run(scene())


def enter(attendance: Attendance, page: str = "", limit: int | None = None) -> Visit | None:
    return attendance.enter(session_id="s", user="alice", page=page, supervises=True, limit=limit)


def test_nothing_is_kept_of_a_session_that_is_no_more() -> None:
    def story(attendance: Attendance, changes: list[str]) -> None:
        visits = [enter(attendance, page) for page in "ab"]
        assert all(visits)
        for visit in visits:
            assert visit is not None
            attendance.arrive(visit)
        attendance.forget("s")
        changes.clear()
        for visit in visits:
            assert visit is not None
            assert visit.asked_to_end.result() is Close.RECHECK
            attendance.leave(visit)
        assert attendance.last_disconnection_at("s") is None
        assert (len(attendance.visitors("s")), attendance.has_supervisor("s")) == (0, False)
        assert (attendance._visits, attendance._last_disconnections) == ({}, {})
        assert changes == []

    in_loop(story)


def test_who_leaves_a_forgotten_session_takes_no_seat_of_its_successor() -> None:
    def story(attendance: Attendance, changes: list[str]) -> None:
        old = enter(attendance, limit=1)
        assert old is not None
        attendance.forget("s")
        new = enter(attendance, page="other", limit=1)
        assert new is not None
        attendance.arrive(new)
        attendance.leave(old)
        attendance.arrive(old)
        assert attendance.visitors("s") == (new.user,)
        assert enter(attendance, page="third", limit=1) is None
        attendance.leave(new)
        assert attendance.last_disconnection_at("s") is not None

    in_loop(story)


def test_who_finds_no_seat_leaves_no_trace() -> None:
    def story(attendance: Attendance, changes: list[str]) -> None:
        assert enter(attendance, limit=0) is None
        assert attendance._visits == {}

    in_loop(story)
