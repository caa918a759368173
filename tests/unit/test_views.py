"""A view that is kept says what one that is made anew says, whatever changed in between."""

from __future__ import annotations

import random

import pytest

from deskfleet.core.change import Stored, Tombstone
from deskfleet.core.fleet import Fleet
from deskfleet.core.placement import Placement, Tally, place
from deskfleet.core.records import Record, Server
from deskfleet.core.requirements import parse
from deskfleet.core.views import MOST, View
from support.builders import NOON, a_request, a_server, a_session, some_facts
from support.fleets import apply

SERVERS = 60
ASKED = (
    ("", None),
    ("tag:gpu = 'yes' and server:Host.CpuLoadAverage.OneMinute < 1.5", ("gpu", "yes")),
    ("tag:color != 'red' and server:Host.CpuLoadAverage.OneMinute < 1.5", None),
    ("tag:gpu = 'maybe'", None),
)


def told(view: View) -> object:
    lacking = {text: count for text, count in view.lacking.items() if count}
    ranks = [rank[:3] for rank in view.ranked()]
    assert ranks == sorted(rank[:3] for rank in view.meeting.values())
    return ranks, lacking


def facts_of(chance: random.Random, id: str) -> Record:
    return some_facts(
        id,
        gpu=chance.choice(["yes", "no"]),
        tags={"color": chance.choice(["red", "pink"])},
        load=(chance.random() * 3, 0.0, 0.0),
        max_virtual_sessions=3,
    )


def step(chance: random.Random) -> Record | tuple[str, str]:
    id = f"n{chance.randrange(SERVERS)}"
    kind = chance.randrange(6)
    if kind < 2:
        return facts_of(chance, id)
    if kind == 2:
        return chance.choice([("server", id), ("facts", id)])
    if kind == 3:
        return a_server(id, open=chance.random() < 0.8)
    ended = chance.choice([None, NOON])
    return a_session(f"s{chance.randrange(90)}", server=id, ended_at=ended)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_changes(seed: int) -> None:
    chance, fleet = random.Random(seed), Fleet()
    for number in range(SERVERS):
        apply(fleet, [a_server(f"n{number}"), facts_of(chance, f"n{number}")])
    kept: dict[object, View] = {}
    for _ in range(60):
        apply(fleet, [step(chance) for _ in range(chance.choice([0, 1, 3, 3, 40]))])
        for text, tag in chance.sample(ASKED, 2):
            view = fleet.views.of(text, parse(text), tag)
            assert told(view) == told(View(fleet.candidates, parse(text), tag))
            # It is the same one, brought up to date.
            assert kept.setdefault((text, tag), view) is view
            assert view.backlog == 0
        if chance.random() < 0.05:
            entries = [one for each in fleet._records.values() for one in each.values()]
            fleet.clear()
            kept.clear()
            for entry in entries:
                fleet.apply(entry)


def test_servers_that_come_and_go_for_ever_leave_little_behind() -> None:
    fleet = Fleet()
    apply(fleet, [a_server("stays"), some_facts("stays", gpu="yes")])
    asked = "tag:gpu != 'no'"
    fleet.views.of(asked, parse(asked), None)
    for number in range(3000):
        id = f"n{number}"
        fleet.apply(Stored(fleet.revision + 1, a_server(id)))
        fleet.apply(Stored(fleet.revision + 1, some_facts(id, gpu="yes")))
        if number != 2500:
            fleet.apply(Tombstone(fleet.revision + 1, "facts", id))
            fleet.apply(Tombstone(fleet.revision + 1, "server", id))
    assert len(fleet.candidates.touched) < 1100
    view = fleet.views.of(asked, parse(asked), None)
    assert set(view.meeting) == {"stays", "n2500"}
    assert fleet.count(Server) == 2


def test_what_the_ledger_has_forgotten_is_not_believed() -> None:
    fleet = Fleet()
    for number in range(20):
        apply(fleet, [a_server(f"n{number}"), some_facts(f"n{number}")])
    view = fleet.views.of("", parse(""), None)
    apply(fleet, [("server", "n7")])
    fleet.candidates.touched.prune({"n1"})
    assert fleet.views.of("", parse(""), None) is view
    assert set(view.meeting) == {f"n{number}" for number in range(20) if number != 7}


def test_few_are_kept_and_the_one_in_use_is_among_them() -> None:
    fleet = Fleet()
    apply(fleet, [a_server(), some_facts(gpu="yes", max_virtual_sessions=0)])
    often = fleet.views.of("", parse(""), None)
    for number in range(3 * MOST):
        text = f"tag:x = '{number}'"
        fleet.views.of(text, parse(text), None)
        assert fleet.views.of("", parse(""), None) is often
        assert len(fleet.views._kept) <= MOST


def test_a_view_is_made_only_where_none_of_the_best_fits() -> None:
    fleet = Fleet()
    for number in range(20):
        id = f"n{number:02}"
        apply(fleet, [a_server(id), some_facts(id, gpu="yes" if number > 10 else "no")])
    asked = a_request(requirements="not tag:gpu = 'no'")

    def placed(few: int) -> str:
        answer = place(asked, fleet, Tally(fleet), reachable=lambda _id: True, few=few)
        assert isinstance(answer, Placement)
        return answer.server_id

    assert placed(few=12) == "n11"
    assert fleet.views._kept == {}
    assert placed(few=11) == "n11"
    assert len(fleet.views._kept) == 1
