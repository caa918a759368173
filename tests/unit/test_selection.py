"""What a client asks for is found, by whichever way it is looked for."""

from __future__ import annotations

from datetime import datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from deskfleet.broker.service.selection import Selection
from deskfleet.core.fleet import Place, place_of
from deskfleet.core.records import Record, Session
from support.builders import NOON, a_fleet, a_session, some_facts

SERVERS, OWNERS = ("n0", "n1", "n2"), ("ann", "bob")
TAGS = (("color", "pink"), ("color", "red"), ("gpu", "yes"))
instants = st.integers(0, 3).map(lambda seconds: NOON + timedelta(seconds=seconds))


@st.composite
def fleets_of(draw: st.DrawFn) -> list[Record]:
    records: list[Record] = [
        some_facts(id, tags=dict(draw(st.lists(st.sampled_from(TAGS))))) for id in SERVERS
    ]
    sessions = [
        a_session(
            f"s{number}",
            owner=draw(st.sampled_from(OWNERS)),
            server=draw(st.none() | st.sampled_from(SERVERS)),
            created_at=draw(instants),
            ended_at=draw(st.none() | instants),
        )
        for number in range(draw(st.integers(0, 12)))
    ]
    return [*records, *sessions]


@given(
    records=fleets_of(),
    ids=st.lists(st.sampled_from([f"s{number}" for number in range(14)]), max_size=4),
    owners=st.lists(st.sampled_from(OWNERS), max_size=2),
    tags=st.lists(st.sampled_from(TAGS), max_size=3),
    after=st.none() | st.tuples(instants, st.sampled_from(["s1", "s5"])),
    until=instants,
    page=st.sampled_from([0, 1, 1000]),
)
def test_those_that_fit_are_found_in_order(
    records: list[Record],
    ids: list[str],
    owners: list[str],
    tags: list[tuple[str, str]],
    after: Place | None,
    until: datetime,
    page: int,
) -> None:
    fleet = a_fleet(*records)

    def fits(session: Session) -> bool:
        facts = None if session.server_id is None else fleet.facts(session.server_id)
        return (
            (not ids or session.id in ids)
            and all(session.request.owner == owner for owner in owners)
            and all(facts is not None and facts.tags.get(key) == value for key, value in tags)
            and not (session.ended_at is not None and session.ended_at <= until)
            and (after is None or place_of(session) > after)
        )

    expected = sorted(place_of(one) for one in fleet.each(Session) if fits(one))
    found = Selection(fleet, ids, owners, tags, page).places(after, until)
    assert list(found) == expected
