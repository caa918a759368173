"""Which server takes a session, and what is said where none does."""

from __future__ import annotations

import pytest

from deskfleet.core.fleet import Fleet
from deskfleet.core.placement import Placement, Refusal, Tally, place
from deskfleet.core.records import Record, SessionRequest, Type
from deskfleet.errors import RequirementsInvalid
from support.builders import a_fleet, a_request, a_server, a_session, some_facts

PREFIX = "No DCV server found for the given criteria (no dcv server found for placement): "


def servers(*ids: str, **facts: object) -> list[Record]:
    return [record for id in ids for record in (a_server(id), some_facts(id, **facts))]  # type: ignore[arg-type]


def placed(
    fleet: Fleet,
    request: SessionRequest | None = None,
    *,
    silent: tuple[str, ...] = (),
    avoid: tuple[str, ...] = (),
    tally: Tally | None = None,
) -> str:
    """Return the server that was chosen, or the reason for none without its fixed beginning."""
    answer = place(
        request or a_request(),
        fleet,
        tally or Tally(fleet),
        reachable=lambda id: id not in silent,
        avoid=avoid,
    )
    if isinstance(answer, Placement):
        return answer.server_id
    assert answer.reason.startswith(PREFIX)
    return answer.reason.removeprefix(PREFIX)


class TestChoosing:
    def test_the_emptiest_server_wins(self) -> None:
        fleet = a_fleet(*servers("n1", "n2"), a_session("s", server="n1"))
        assert placed(fleet) == "n2"

    def test_then_the_one_with_the_lowest_load(self) -> None:
        fleet = a_fleet(
            *servers("n1", load=(2.0, 0, 0)), *servers("n2", load=(0.5, 9, 9)), *servers("n3")
        )
        assert placed(fleet) == "n3"
        assert placed(fleet, silent=("n3",)) == "n2"

    def test_then_the_lowest_id_so_that_a_choice_can_be_replayed(self) -> None:
        assert placed(a_fleet(*servers("n2", "n1", "n3"))) == "n1"

    def test_a_server_that_failed_is_the_last_resort(self) -> None:
        fleet = a_fleet(*servers("n1", "n2"), a_session("s", server="n2"))
        assert placed(fleet, avoid=("n1",)) == "n2"
        assert placed(fleet, avoid=("n1", "n2")) == "n1"
        assert placed(fleet, avoid=("n1",), silent=("n2",)) == "n1"

    def test_a_batch_counts_what_it_has_taken(self) -> None:
        fleet = a_fleet(*servers("n1", "n2", max_virtual_sessions=2))
        tally = Tally(fleet)
        chosen = []
        for _ in range(4):
            chosen.append(placed(fleet, tally=tally))
            tally.take(chosen[-1], a_session(server=chosen[-1]))
        assert chosen == ["n1", "n2", "n1", "n2"]
        assert placed(fleet, tally=tally) == "2 of 2 are full"
        assert fleet.seats("n1").taken == 0

    def test_requirements_are_met(self) -> None:
        fleet = a_fleet(*servers("n1", gpu="no"), *servers("n2", gpu="yes"))
        assert placed(fleet, a_request(requirements="tag:gpu = 'yes'")) == "n2"
        assert placed(fleet, a_request(requirements="server:Host.Memory.TotalBytes > 1")) == "n1"
        assert placed(fleet, a_request(requirements="  ")) == "n1"

    def test_a_tag_of_a_server_that_was_forgotten_leads_nowhere(self) -> None:
        fleet = a_fleet(some_facts("n1", gpu="yes"), *servers("n2", gpu="no"))
        asked = a_request(requirements="tag:gpu = 'yes'")
        assert placed(fleet, asked) == "1 of 1 lack tag:gpu = 'yes'"

    def test_requirements_that_are_none_are_the_callers_mistake(self) -> None:
        with pytest.raises(RequirementsInvalid):
            placed(a_fleet(*servers("n1")), a_request(requirements="tag:gpu ="))


class TestRefusing:
    def test_nobody_is_there(self) -> None:
        assert placed(a_fleet()) == "no server is registered"

    def test_each_server_is_counted_once_at_its_first_obstacle(self) -> None:
        fleet = a_fleet(
            *servers("full", max_virtual_sessions=0),
            *servers("console", types=(Type.CONSOLE,)),
            *servers("sick", unhealthy="no X"),
            *servers("used", foreign_user="eve"),
            *servers("silent1", "silent2"),
            a_server("closed", open=False),
            some_facts("closed"),
            a_server("new"),
            *servers("alices", max_sessions_per_user=1),
            a_session("s", server="alices"),
        )
        reason = placed(fleet, silent=("silent1", "silent2"))
        first, *others = reason.split(", ")
        assert first == "2 of 9 can't be reached"
        assert set(others) == {
            "1 are full",
            "1 can't run virtual sessions",
            "1 can't start sessions now",
            "1 are used by somebody who logged in by other means",
            "1 are closed",
            "1 are not known well enough yet",
            "1 have no seat left for this owner",
        }

    def test_what_the_requirements_exclude_is_told_before_what_is_wrong_with_it(self) -> None:
        fleet = a_fleet(*servers("n1", gpu="no"), *servers("n2", gpu="yes"))
        asked = a_request(requirements="server:Host.Os.Family = 'windows'")
        assert placed(fleet, asked, silent=("n1", "n2")).startswith("2 of 2 lack ")

    def test_the_tag_that_is_missing_is_the_one_that_is_named(self) -> None:
        common = {"os": "linux"}
        fleet = a_fleet(
            *servers("n1", "n2", "n3", tags=common),
            *servers("n4", tags={**common, "gpu": "yes"}, max_virtual_sessions=0),
        )
        asked = a_request(requirements="tag:os = 'linux' and tag:gpu = 'yes'")
        assert placed(fleet, asked) == "3 of 4 lack tag:gpu = 'yes', 1 are full"

    def test_a_refusal_is_a_value(self) -> None:
        fleet = a_fleet()
        asked = a_request()
        answers = {
            type(place(asked, fleet, Tally(fleet), reachable=lambda _id: True)) for _ in range(2)
        }
        assert answers == {Refusal}
