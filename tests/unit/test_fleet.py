"""A fleet in memory: its indexes say what its records say, whatever order they came in."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from deskfleet.core.change import ABSENT, Stored, Tombstone
from deskfleet.core.fleet import Fleet, place_of
from deskfleet.core.records import (
    Facts,
    Record,
    Report,
    Server,
    Session,
    TokenUse,
    Type,
    kind_of,
)
from deskfleet.core.server import NO_SEATS, Seats, told_bytes
from support.builders import (
    NOON,
    a_broker,
    a_fleet,
    a_link,
    a_report,
    a_server,
    a_session,
    some_facts,
)


class TestLookingUp:
    def test_what_is_there_and_what_is_not(self) -> None:
        session = a_session(server="n1")
        report, link = a_report(session), a_link()
        fleet = a_fleet(a_server(), some_facts(), session, report, link)
        assert fleet.session("s1") == session
        assert fleet.report("s1") == report
        assert fleet.link("n1") == link
        assert fleet.facts("n1") == some_facts()
        assert (fleet.session("n1"), fleet.server("s1"), fleet.facts("s1")) == (None, None, None)
        assert fleet.revision == 6
        assert fleet.revision_of(Session, "s1") == 4
        assert fleet.revision_of(Session, "nobody") == ABSENT
        assert list(fleet.each(Facts)) == [some_facts()]
        assert fleet.count(Server) == 1
        assert fleet.all_keys() == [
            ("session", "s1"),
            ("report", "s1"),
            ("server", "n1"),
            ("link", "n1"),
            ("facts", "n1"),
        ]

    def test_ids_of_two_kinds_do_not_meet(self) -> None:
        fleet = a_fleet(a_server("x"), a_session("x"), a_broker("x"))
        fleet.apply(Tombstone(9, "session", "x"))
        assert fleet.server("x") is not None
        assert fleet.session("x") is None


class TestApplying:
    def test_the_same_entry_twice_is_no_news(self) -> None:
        fleet = Fleet()
        entry = Stored(2, a_session(server="n1"))
        assert [fleet.apply(entry), fleet.apply(entry)] == [True, False]
        assert fleet.seats("n1").virtual == 1

    def test_an_older_entry_changes_nothing(self) -> None:
        fleet = Fleet()
        fleet.apply(Stored(5, a_server(open=False)))
        assert not fleet.apply(Stored(4, a_server()))
        assert fleet.server("n1") == a_server(open=False)
        assert fleet.revision == 5
        assert not fleet.apply(Tombstone(3, "server", "n1"))

    def test_a_tombstone_of_what_was_never_here_is_no_news(self) -> None:
        fleet = Fleet()
        assert not fleet.apply(Tombstone(3, "server", "n1"))
        assert fleet.revision == 3

    def test_the_revision_never_goes_back(self) -> None:
        fleet = Fleet()
        fleet.apply(Stored(7, a_server("a")))
        fleet.apply(Stored(4, a_server("b")))
        assert fleet.revision == 7


class TestIndexes:
    def test_a_session_moves_from_waiting_to_its_server_to_nowhere(self) -> None:
        waiting = a_session()
        placed = a_session(server="n1")
        ended = a_session(server="n1", ended_at=NOON)
        fleet = a_fleet(waiting)
        assert (fleet.waiting(), fleet.sessions_on("n1")) == ([waiting], [])
        fleet.apply(Stored(3, placed))
        assert (fleet.waiting(), fleet.sessions_on("n1")) == ([], [placed])
        told = told_bytes(placed.request)
        assert fleet.seats("n1") == Seats(virtual=1, owners=Counter(alice=1), told_bytes=told)
        longer = a_session(server="n1", permissions_file="x" * 1000)
        fleet.apply(Stored(4, longer))
        assert fleet.seats("n1").told_bytes > told + 1000
        fleet.apply(Stored(5, ended))
        assert (fleet.waiting(), fleet.sessions_on("n1")) == ([], [])
        assert fleet.seats("n1") == NO_SEATS
        assert fleet.sessions_of("alice") == [ended]
        fleet.apply(Tombstone(6, "session", "s1"))
        assert fleet.sessions_of("alice") == []

    def test_who_waits_longest_is_first(self) -> None:
        late = a_session("a", created_at=NOON + timedelta(seconds=1))
        early, twin = a_session("c"), a_session("b")
        assert a_fleet(late, early, twin).waiting() == [twin, early, late]

    def test_tags_follow_the_facts(self) -> None:
        fleet = a_fleet(some_facts(gpu="yes", tags={"color": "pink"}))
        assert list(fleet.servers_tagged("gpu", "yes")) == ["n1"]
        fleet.apply(Stored(9, some_facts(gpu="no")))
        assert [
            list(fleet.servers_tagged(*tag))
            for tag in (("gpu", "yes"), ("gpu", "no"), ("color", "pink"))
        ] == [[], ["n1"], []]

    def test_listings_are_in_order_of_creation_and_go_on_after_a_place(self) -> None:
        sessions = [a_session(f"s{n}", created_at=NOON + timedelta(n % 3)) for n in range(9)]
        fleet = a_fleet(*sessions)
        whole = list(fleet.listed(Session, None))
        assert whole == ["s0", "s3", "s6", "s1", "s4", "s7", "s2", "s5", "s8"]
        third = fleet.session(whole[2])
        assert third is not None
        assert list(fleet.listed(Session, place_of(third))) == whole[3:]
        fleet.apply(Tombstone(99, "session", "s6"))
        assert list(fleet.listed(Session, place_of(third))) == whole[3:]
        assert list(fleet.listed(Server, None)) == []


OWNERS = st.sampled_from(["alice", "bob"])
SERVERS = st.sampled_from(["n1", "n2"])
KEYS = st.sampled_from(["r1", "r2", "r3"])
SOON = NOON + timedelta(seconds=1)


@st.composite
def records(draw: st.DrawFn) -> Record:
    id = draw(KEYS)
    session = a_session(
        id,
        owner=draw(OWNERS),
        type=draw(st.sampled_from(Type)),
        server_id=draw(st.none() | SERVERS),
        ended_at=draw(st.sampled_from([None, NOON, SOON])),
        permissions_file=draw(st.sampled_from([None, "x", "xy"])),
        created_at=NOON + timedelta(draw(st.integers(0, 2))),
    )
    choices: list[Record] = [
        session,
        a_server(id, open=draw(st.booleans()), listed=draw(st.booleans())),
        some_facts(id, gpu=draw(st.sampled_from(["yes", "no"]))),
        TokenUse(id=id, expires_at=draw(st.sampled_from([NOON, SOON]))),
    ]
    return draw(st.sampled_from(choices))


def expected(kept: dict[tuple[str, str], Record]) -> dict[str, object]:
    """Compute from scratch what the indexes should say."""
    sessions = [record for record in kept.values() if isinstance(record, Session)]
    alive = [one for one in sessions if one.ended_at is None]
    servers = [record for record in kept.values() if isinstance(record, Server)]
    uses = [record for record in kept.values() if isinstance(record, TokenUse)]
    seats = {name: Seats() for name in ("n1", "n2")}
    for one in alive:
        if one.server_id is not None:
            seats[one.server_id].add(one)
    return {
        "seats": seats,
        "on": {name: {one.id for one in alive if one.server_id == name} for name in ("n1", "n2")},
        "of": {
            name: {one.id for one in sessions if one.request.owner == name}
            for name in ("alice", "bob")
        },
        "waiting": sorted(
            (one for one in alive if one.server_id is None), key=lambda s: (s.created_at, s.id)
        ),
        "tagged": {
            value: {
                record.id
                for record in kept.values()
                if isinstance(record, Facts) and record.tags["gpu"] == value
            }
            for value in ("yes", "no")
        },
        "listed": [one.id for one in sorted(sessions, key=place_of)],
        "servers": [one.id for one in sorted(servers, key=place_of) if one.listed],
        "unlisted": {one.id for one in servers if not one.listed},
        "ended": {
            until: [
                id
                for at, id in sorted((one.ended_at, one.id) for one in sessions if one.ended_at)
                if at <= until
            ]
            for until in (NOON, SOON)
        },
        "spent": sorted(one.id for one in uses if one.expires_at == NOON),
    }


def said(fleet: Fleet) -> dict[str, object]:
    names, owners = ("n1", "n2"), ("alice", "bob")
    return {
        "seats": {name: fleet.seats(name) for name in names},
        "on": {name: {one.id for one in fleet.sessions_on(name)} for name in names},
        "of": {name: {one.id for one in fleet.sessions_of(name)} for name in owners},
        "waiting": fleet.waiting(),
        "tagged": {value: set(fleet.servers_tagged("gpu", value)) for value in ("yes", "no")},
        "listed": list(fleet.listed(Session, None)),
        "servers": list(fleet.listed(Server, None)),
        "unlisted": set(fleet.unlisted),
        "ended": {until: fleet.ended(Session, until) for until in (NOON, SOON)},
        "spent": fleet.ended(TokenUse, NOON),
    }


GONE = st.tuples(st.sampled_from(["session", "server", "facts", "token-use"]), KEYS)


@given(st.lists(records() | GONE))
def test_the_indexes_say_what_the_records_say(
    steps: list[Record | tuple[str, str]],
) -> None:
    fleet = Fleet()
    kept: dict[tuple[str, str], Record] = {}
    for revision, step in enumerate(steps, start=2):
        if isinstance(step, tuple):
            fleet.apply(Tombstone(revision, *step))
            kept.pop(step, None)
        else:
            fleet.apply(Stored(revision, step))
            kept[kind_of(step), step.id] = step
        assert said(fleet) == expected(kept)
    assert fleet.count(Report) == 0
