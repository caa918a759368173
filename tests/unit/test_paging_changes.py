"""A fleet that changes while somebody reads it page by page."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from deskfleet.broker.service.paging import Paging
from deskfleet.core.change import Stored, Tombstone
from deskfleet.core.fleet import Fleet, Place
from deskfleet.core.records import Server, Session
from support.builders import NOON, FastSigner, a_server, a_session

QUERY = ["sessions"]
PAGING = Paging(FastSigner())

seconds = st.integers(0, 5)
"""So few that several rows share each instant, and new ones come before and after what was read."""


@dataclass(frozen=True)
class Page:
    size: int


@dataclass(frozen=True)
class Add:
    second: int


@dataclass(frozen=True)
class Drop:
    which: int


@dataclass(frozen=True)
class Change:
    which: int


steps = st.lists(
    st.builds(Page, st.integers(1, 5))
    | st.builds(Add, seconds)
    | st.builds(Drop, st.integers(0, 30))
    | st.builds(Change, st.integers(0, 30)),
    max_size=30,
)


def at(second: int) -> datetime:
    return NOON + timedelta(seconds=second)


class Reading:
    """A fleet, and a client that reads it with ever other sizes of pages."""

    def __init__(self, kind: type[Session | Server]) -> None:
        self.kind = kind
        self.fleet = Fleet()
        self.read: list[Place] = []
        self.token: str | None = None
        self.done = False
        self._count = 0

    def ids(self) -> list[str]:
        return list(self.fleet.listed(self.kind, None))

    def add(self, second: int) -> None:
        # Never an id a second time: ids of sessions and servers are made once.
        self._count += 1
        id = f"{self._count * 7919 % 1000:03}-{self._count}"
        row: Session | Server
        if self.kind is Session:
            row = a_session(id, created_at=at(second))
        else:
            row = a_server(id, registered_at=at(second))
        self._put(row)

    def change(self, which: int) -> None:
        ids = self.ids()
        if not ids:
            return
        id = ids[which % len(ids)]
        old = self.fleet.get(self.kind, id)
        if isinstance(old, Session):
            self._put(a_session(id, created_at=old.created_at, server="n1", reason=str(which)))
        elif isinstance(old, Server):
            self._put(a_server(id, registered_at=old.registered_at, placements=which))

    def drop(self, which: int) -> None:
        ids = self.ids()
        if ids:
            kind = "session" if self.kind is Session else "server"
            self.fleet.apply(Tombstone(self.fleet.revision + 1, kind, ids[which % len(ids)]))

    def page(self, size: int) -> None:
        if self.done:
            return
        places = self.fleet.places(self.kind, PAGING.after(self.token, QUERY))
        page, self.token = PAGING.page(places, size, QUERY, lambda place: place)
        assert len(page) == size or self.token is None
        assert {id for _, id in page} <= set(self.ids())
        self.read += page
        self.done = self.token is None

    def _put(self, row: Session | Server) -> None:
        self.fleet.apply(Stored(self.fleet.revision + 1, row))


@given(
    kind=st.sampled_from([Session, Server]),
    first=st.lists(seconds, max_size=20),
    happens=steps,
    rest=st.integers(1, 7),
)
def test_nothing_twice_and_nothing_that_stayed_is_missed(
    kind: type[Session | Server], first: list[int], happens: list[object], rest: int
) -> None:
    reading = Reading(kind)
    for second in first:
        reading.add(second)
    stayed = set(reading.ids())
    for step in happens:
        match step:
            case Page(size):
                reading.page(size)
            case Add(second):
                reading.add(second)
            case Change(which):
                reading.change(which)
            case Drop(which):
                reading.drop(which)
        if not reading.done:
            stayed &= set(reading.ids())
    while not reading.done:
        reading.page(rest)
    read = [id for _, id in reading.read]
    assert len(read) == len(set(read))
    assert stayed <= set(read)
    assert reading.read == sorted(reading.read)
