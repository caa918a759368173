"""Placement against an oracle that looks at every server, one by one, in the plainest way."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deskfleet.core import platforms
from deskfleet.core.fleet import Fleet, Reachable
from deskfleet.core.placement import FEW, Placement, Refusal, Tally, parse_once, place
from deskfleet.core.records import Facts, Link, Record, Server, SessionRequest, Type
from deskfleet.core.requirements import Requirements
from deskfleet.core.server import Seats, no_seat_for, unavailability
from deskfleet.core.session import replace
from support.builders import NOON, a_link, a_report, a_request, a_server, a_session, some_facts
from support.fleets import OWNERS, REQUIREMENTS, apply, fleets, requests, server_ids, steps

WORDS = {
    "UNREACHABLE_AGENT": "can't be reached",
    "SERVER_CLOSED": "are closed",
    "UNKNOWN": "are not known well enough yet",
    "UNHEALTHY_DCV_SERVER": "can't start sessions now",
    "EXISTING_LOGGED_IN_USER": "are used by somebody who logged in by other means",
    "SERVER_FULL": "are full",
}


def seats_with(fleet: Fleet, server_id: str, taken: Sequence[tuple[str, SessionRequest]]) -> Seats:
    seats = Seats()
    for session in fleet.sessions_on(server_id):
        seats.add(session)
    for where, request in taken:
        if where == server_id:
            seats.add(a_session(request=request))
    return seats


def required_tag(fleet: Fleet, requirements: Requirements) -> tuple[str, str] | None:
    """Return the tag that is told first where it lacks: of all that are required, the rarest."""
    tags = requirements.equalities
    return min(
        tags,
        key=lambda tag: sum(one.tags.get(tag[0]) == tag[1] for one in fleet.each(Facts)),
        default=None,
    )


def obstacle(
    fleet: Fleet, server: Server, request: SessionRequest, seats: Seats, *, reachable: bool
) -> str | None:
    requirements = parse_once(request.requirements or "")
    facts = fleet.facts(server.id)
    tag = required_tag(fleet, requirements)
    if tag is not None and (facts is None or facts.tags.get(tag[0]) != tag[1]):
        return f"lack tag:{tag[0]} = '{tag[1]}'"
    if facts is not None:
        lacking = requirements.explain(facts)
        if lacking is not None:
            return f"lack {lacking}"
        unfit = platforms.unfit(platforms.demands_of(request), facts.host.os.family)
        if unfit is not None:
            return unfit
    reason = unavailability(server, facts, seats, reachable=reachable)
    if reason is not None:
        return WORDS[reason]
    assert facts is not None
    return no_seat_for(facts, seats, request.type, request.owner)


def naive(
    request: SessionRequest,
    fleet: Fleet,
    taken: Sequence[tuple[str, SessionRequest]],
    *,
    reachable: Reachable,
    avoid: Collection[str] = (),
    among: AbstractSet[str] | None = None,
) -> str | Counter[str]:
    """Return the server that must be chosen, or how many fell for which reason."""
    fits = []
    fallen: Counter[str] = Counter()
    for server in fleet.each(Server):
        if among is not None and server.id not in among:
            continue
        seats = seats_with(fleet, server.id, taken)
        reason = obstacle(fleet, server, request, seats, reachable=reachable(server.id))
        if reason is None:
            facts = fleet.facts(server.id)
            assert facts is not None
            load = facts.host.load[0] if facts.host.load else 0.0
            fits.append((server.id in avoid, seats.taken, load, server.id))
        else:
            fallen[reason] += 1
    return min(fits)[-1] if fits else fallen


def counted(refusal: Refusal, total: int) -> Counter[str]:
    """Read the counts off a refusal."""
    told = refusal.reason.partition("(no dcv server found for placement): ")[2]
    if told == "no server is registered":
        return Counter()
    first, *others = told.split(", ")
    assert f" of {total} " in first
    parts = (part.partition(" ") for part in [first.replace(f" of {total}", "", 1), *others])
    return Counter({reason: int(count) for count, _, reason in parts})


@pytest.mark.parametrize("few", [FEW, 1, 0])
def test_who_is_to_be_avoided_is_the_last_resort_however_it_is_found(
    few: int,
) -> None:
    fleet = Fleet()
    apply(fleet, [record for id in ("n1", "n2") for record in (a_server(id), some_facts(id))])

    def chosen(avoid: Collection[str]) -> Placement | Refusal:
        tally = Tally(fleet)
        return place(a_request(), fleet, tally, reachable=lambda _id: True, avoid=avoid, few=few)

    assert chosen(()) == chosen(("n2",)) == chosen(("n1", "n2")) == Placement("n1")
    assert chosen(("n1",)) == Placement("n2")


def test_what_a_batch_has_taken_is_no_reason_to_get_what_does_not_fit() -> None:
    fleet = Fleet()
    apply(fleet, [a_server("n1"), some_facts("n1", gpu="no")])
    apply(fleet, [a_server("n2"), some_facts("n2", gpu="yes")])
    apply(fleet, [a_session(f"s{seat}", server="n2") for seat in range(3)])
    tally = Tally(fleet)
    tally.take("n1", a_session("new"))
    asked = a_request(requirements="not tag:gpu = 'no'")
    answer = place(asked, fleet, tally, reachable=lambda _id: True, few=1)
    assert answer == Placement("n2")


@given(
    fleet=fleets(),
    wishes=st.lists(requests(), min_size=1, max_size=4),
    silent=st.sets(server_ids, max_size=1),
    avoid=st.sets(server_ids, max_size=2),
    few=st.sampled_from([FEW, 2, 0]),
)
def test_the_same_server_as_the_plainest_search_or_the_same_counts(
    fleet: Fleet,
    wishes: list[SessionRequest],
    silent: set[str],
    avoid: set[str],
    few: int,
) -> None:
    tally = Tally(fleet)
    taken: list[tuple[str, SessionRequest]] = []
    for wish in wishes:
        expected = naive(wish, fleet, taken, reachable=lambda id: id not in silent, avoid=avoid)
        answer = place(
            wish,
            fleet,
            tally,
            reachable=lambda id: id not in silent,
            avoid=avoid,
            few=few,
        )
        if isinstance(answer, Placement):
            assert answer.server_id == expected
            taken.append((answer.server_id, wish))
            tally.take(answer.server_id, a_session(request=wish))
        else:
            assert counted(answer, fleet.count(Server)) == expected


@given(fleet=fleets(), wish=requests(), among=st.frozensets(server_ids))
def test_among_some_servers_it_is_the_best_of_these(
    fleet: Fleet, wish: SessionRequest, among: frozenset[str]
) -> None:
    answer = place(
        wish,
        fleet,
        Tally(fleet),
        reachable=lambda _id: True,
        among=among,
    )
    expected = naive(wish, fleet, (), reachable=lambda _id: True, among=among)
    chosen = answer.server_id if isinstance(answer, Placement) else None
    assert chosen == (expected if isinstance(expected, str) else None)


@given(fleet=fleets(), wish=requests())
def test_where_another_owner_would_get_a_place_a_refusal_says_so(
    fleet: Fleet, wish: SessionRequest
) -> None:
    answers = [
        place(replace(wish, owner=owner), fleet, Tally(fleet), reachable=lambda _id: True)
        for owner in (*OWNERS, "a stranger")
    ]
    for answer in answers:
        if isinstance(answer, Refusal) and not answer.personal:
            assert set(answers) == {answer}


@pytest.mark.parametrize("seed", range(4))
def test_in_fleets_that_are_larger_than_any_look(seed: int) -> None:
    chance = random.Random(seed)
    fleet = Fleet()
    for number in range(chance.choice([260, 520, 700])):
        id = f"n{number:03}"
        seats = chance.choice([1, 1, 2, 3])
        told = some_facts(
            id,
            gpu=chance.choice(["yes", "no"]),
            tags={"color": chance.choice(["pink", "red", "red", "red"]), "job": str(number)},
            load=(chance.random() * 3, 0.0, 0.0),
            max_virtual_sessions=seats,
            types=chance.choice([(Type.VIRTUAL,), (Type.VIRTUAL, Type.CONSOLE)]),
        )
        apply(fleet, [a_server(id, open=chance.random() < 0.9), told])
        for seat in range(chance.randrange(seats + 1)):
            apply(fleet, [a_session(f"{id}-{seat}", server=id, owner=f"u{seat}")])
    tally = Tally(fleet)
    taken: list[tuple[str, SessionRequest]] = []
    few = [f"tag:job = '{number}'" for number in (3, 200, 999)]
    never = ["server:Host.Memory.TotalBytes < 0", "tag:color = 'red' and tag:gpu = 'maybe'"]
    for _ in range(15):
        wish = a_request(requirements=chance.choice([*REQUIREMENTS, *few, *never]))
        expected = naive(wish, fleet, taken, reachable=lambda _id: True)
        answer = place(wish, fleet, tally, reachable=lambda _id: True)
        if isinstance(answer, Placement):
            assert answer.server_id == expected
            taken.append((answer.server_id, wish))
            tally.take(answer.server_id, a_session(request=wish))
        else:
            assert counted(answer, fleet.count(Server)) == expected


WISHES = [
    a_request(owner=owner, type=type, requirements=requirements)
    for owner in OWNERS
    for type in Type
    for requirements in (None, "tag:gpu != 'no'", "server:Host.CpuLoadAverage.OneMinute < 2")
]


def accepting(fleet: Fleet) -> set[tuple[str, int]]:
    """Return each server with each of the wishes that it would fulfil."""
    return {
        (server.id, number)
        for server in fleet.each(Server)
        for number, wish in enumerate(WISHES)
        if isinstance(
            place(
                wish,
                fleet,
                Tally(fleet),
                reachable=lambda id: (link := fleet.link(id)) is not None and link.up,
                among={server.id},
            ),
            Placement,
        )
    }


@settings(max_examples=200)
@given(fleet=fleets(), happened=steps, cleared=st.booleans())
def test_whoever_takes_what_it_did_not_take_before_is_in_the_ledger(
    fleet: Fleet, happened: list[Record | tuple[str, str]], cleared: bool
) -> None:
    ledgers = fleet.candidates
    improved, moved = ledgers.improved.moment, ledgers.moved.moment
    before = accepting(fleet)
    if cleared:
        kept = [one for each in fleet._records.values() for one in each.values()]
        fleet.clear()
        for entry in kept:
            fleet.apply(entry)
    apply(fleet, happened)
    for id, number in accepting(fleet) - before:
        assert id in ledgers.moved.since(moved)
        if not parse_once(WISHES[number].requirements or "").follows_load:
            assert id in ledgers.improved.since(improved)
    assert set(ledgers.improved.since(improved)) <= set(ledgers.moved.since(moved))


@given(fleet=fleets(), happened=steps)
def test_candidates_are_the_registered_servers_in_rank_order(
    fleet: Fleet, happened: list[Record | tuple[str, str]]
) -> None:
    fleet.candidates.ranked()
    apply(fleet, happened)

    def load(facts: Facts | None) -> float:
        return facts.host.load[0] if facts is not None and facts.host.load else 0.0

    expected = sorted(
        (fleet.seats(one.id).taken, load(fleet.facts(one.id)), one.id) for one in fleet.each(Server)
    )
    assert [rank[:3] for rank in fleet.candidates.ranked()] == expected
    assert len(fleet.candidates) == len(expected)
    up = {link.id: link.broker_id for link in fleet.each(Link) if link.up}
    assert fleet.holders == up
    for *_, candidate in fleet.candidates.ranked():
        assert candidate.server is fleet.server(candidate.id)
        assert candidate.facts is fleet.facts(candidate.id)
        assert candidate.seats == fleet.seats(candidate.id)


FULL = some_facts(max_virtual_sessions=1)
TAKEN = a_session(server="n1")


@pytest.mark.parametrize(
    ("happens", "improves", "moves"),
    [
        (replace(FULL, unhealthy="no X"), True, True),
        (replace(FULL, host=replace(FULL.host, load=(2.0, 1.0, 1.0))), False, True),
        (replace(FULL, host=replace(FULL.host, memory_used=1, swap_used=2)), False, True),
        (replace(FULL, host=replace(FULL.host, memory_total=1)), True, True),
        (a_server(placements=5), False, False),
        (a_server(open=False), False, False),
        (a_link(up=False), False, False),
        (a_link(epoch=2), True, True),
        (replace(TAKEN, ended_at=NOON), True, True),
        (replace(TAKEN, server_id=None), True, True),
        (replace(TAKEN, server_id="n2"), True, True),
        (replace(TAKEN, request=a_request(owner="bob")), True, True),
        (replace(TAKEN, request=a_request(permissions_file="x")), False, False),
        (a_report(TAKEN), False, False),
        (("session", "s1"), True, True),
        (("link", "n1"), False, False),
        (("facts", "n1"), False, False),
    ],
)
def test_what_may_help_somebody_who_waits(
    happens: Record | tuple[str, str], improves: bool, moves: bool
) -> None:
    fleet = Fleet()
    apply(fleet, [a_server(), FULL, a_link(), TAKEN])
    improved, moved = fleet.candidates.improved.moment, fleet.candidates.moved.moment
    apply(fleet, [happens])
    assert fleet.candidates.improved.since(improved) == (["n1"] if improves else [])
    assert fleet.candidates.moved.since(moved) == (["n1"] if moves else [])


def test_a_permissions_file_that_becomes_shorter_may_help() -> None:
    fleet = Fleet()
    long = a_session(server="n1", permissions_file="xy")
    apply(fleet, [a_server(), FULL, a_link(), long])
    improved = fleet.candidates.improved.moment
    apply(fleet, [replace(long, request=a_request(permissions_file="x"))])
    assert fleet.candidates.improved.since(improved) == ["n1"]


def test_a_closed_server_that_opens_may_help() -> None:
    fleet = Fleet()
    apply(fleet, [a_server(open=False), FULL, a_link()])
    improved = fleet.candidates.improved.moment
    apply(fleet, [a_server(open=True)])
    assert fleet.candidates.improved.since(improved) == ["n1"]
    apply(fleet, [a_server(open=True, placements=1)])
    assert fleet.candidates.improved.moment == improved + 1
