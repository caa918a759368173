"""Fleets as placement sees them, drawn by Hypothesis: everything that decides, in few values."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from hypothesis import strategies as st

from deskfleet.core.change import Stored, Tombstone
from deskfleet.core.fleet import Fleet
from deskfleet.core.records import Facts, Os, Record, SessionRequest, Type
from deskfleet.core.session import replace
from support.builders import NOON, a_link, a_request, a_server, a_session, some_facts

OWNERS = ("alice", "bob")
REQUIREMENTS = (
    None,
    "tag:gpu = 'yes'",
    "tag:gpu != 'yes'",
    "tag:gpu = 'yes' and tag:color = 'pink'",
    "tag:color = 'pink' and server:Host.CpuLoadAverage.OneMinute < 2",
    "server:Host.Memory.UsedBytes < 2000 and not tag:gpu = 'no'",
    "server:Host.Os.Family = 'linux' and (tag:gpu = 'yes' or tag:color = 'red')",
)

limits = st.sampled_from([-1, 1, 1, 2, 0])
server_ids = st.sampled_from([f"n{number}" for number in range(4)])
session_ids = st.sampled_from([f"s{number}" for number in range(8)])


@st.composite
def facts(draw: st.DrawFn, id: str) -> Facts:
    told = some_facts(
        id,
        gpu=draw(st.sampled_from([None, "yes", "no"])),
        tags=draw(st.sampled_from([{}, {"color": "pink"}, {"color": "red"}])),
        load=draw(st.sampled_from([None, (0.5, 1.0, 1.0), (2.5, 1.0, 1.0)])),
        types=draw(
            st.sampled_from([(Type.VIRTUAL,), (Type.CONSOLE,), (Type.VIRTUAL, Type.CONSOLE)])
        ),
        max_virtual_sessions=draw(limits),
        max_sessions_per_user=draw(limits),
        unhealthy=draw(st.sampled_from([None] * 7 + ["no X"])),
        foreign_user=draw(st.sampled_from([None] * 7 + ["eve"])),
    )
    family = draw(st.sampled_from(["linux", "linux", "windows", "macos"]))
    used = draw(st.sampled_from([1_000, 3_000]))
    return replace(told, host=replace(told.host, os=Os(family=family), memory_used=used))


@st.composite
def requests(draw: st.DrawFn) -> SessionRequest:
    return a_request(
        owner=draw(st.sampled_from(OWNERS)),
        type=draw(st.sampled_from([Type.VIRTUAL, Type.VIRTUAL, Type.CONSOLE])),
        requirements=draw(st.sampled_from(REQUIREMENTS)),
        autorun_file=draw(st.sampled_from([None, None, "run"])),
        dcv_gl_enabled=draw(st.sampled_from([None, None, True])),
        storage_root=draw(st.sampled_from([None, None, "%home%"])),
        enqueue=draw(st.booleans()),
    )


@st.composite
def records(draw: st.DrawFn) -> Record:
    """Draw a record of a server, or a session that sits or waits."""
    id = draw(server_ids)
    kind = draw(st.sampled_from(["server", "facts", "link", "session", "session"]))
    if kind == "server":
        return a_server(id, open=draw(st.sampled_from([True, True, False])))
    if kind == "facts":
        return draw(facts(id))
    if kind == "link":
        return a_link(id, up=draw(st.booleans()), epoch=draw(st.integers(1, 3)))
    return a_session(
        draw(session_ids),
        request=draw(requests()),
        server=draw(st.none() | server_ids),
        ended_at=draw(st.sampled_from([None, None, NOON])),
        created_at=NOON + timedelta(seconds=draw(st.integers(0, 3))),
    )


gone = st.tuples(st.sampled_from(["server", "facts", "link"]), server_ids) | st.tuples(
    st.just("session"), session_ids
)
steps = st.lists(records() | gone, max_size=4)
"""Records that are written and keys that are dropped."""


def apply(fleet: Fleet, happened: Sequence[Record | tuple[str, str]]) -> None:
    for step in happened:
        revision = fleet.revision + 1
        if isinstance(step, tuple):
            fleet.apply(Tombstone(revision, *step))
        else:
            fleet.apply(Stored(revision, step))


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    """Draw a fleet of a few servers, most of which can be used, with sessions on them."""
    fleet = Fleet()
    count = draw(st.integers(0, 4))
    for number in range(count):
        id = f"n{number}"
        is_open, is_up = draw(
            st.sampled_from([(True, True), (True, True), (False, True), (True, False)])
        )
        apply(fleet, [a_server(id, open=is_open), draw(facts(id)), a_link(id, up=is_up)])
    for number, where in enumerate(draw(st.lists(st.integers(0, max(0, count - 1)), max_size=5))):
        session = a_session(f"s{number}", request=draw(requests()), server=f"n{where}")
        apply(fleet, [session])
    apply(fleet, draw(steps))
    return fleet
