"""The laws of the architecture, held against everything that can befall a fleet.

Real brokers and real agents (`support.fleet_world`) meet crashes, races, slow stores, cut and
half-open lines, late and doubled messages, and sessions that fail, hang or die. A failure prints
the steps that led to it, as short as they get.
"""

from __future__ import annotations

from collections import Counter

import pytest

from support.fleet_machine import FleetMachine, run
from support.fleet_stories import one_console_after_the_other, tell
from support.fleet_world import use_fake_wire


@pytest.fixture(autouse=True)
def _wire(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_wire(monkeypatch)


def counted(happened: Counter[str]) -> type[FleetMachine]:
    """Make a machine that counts what happens in it."""

    class Counted(FleetMachine):
        def teardown(self) -> None:
            super().teardown()
            auditor = self.world.auditor
            placements = [generation for _, generation in auditor.places]
            happened.update(
                steps=self.steps,
                commits=auditor.commits,
                sessions=len(auditor.known),
                placed_again=sum(generation > 1 for generation in placements),
                adopted=sum(generation == 0 for generation in placements),
                forced=len(auditor.force_wanted),
                purged=len(auditor.purged),
                answers=self.clients.answers,
                unanswered=self.clients.calls - self.clients.answers,
                lost_races=self.world.lost_races,
            )

    return Counted


def check_much_happened(happened: Counter[str]) -> None:
    """Check that the laws were tried, and not only held where nothing happened."""
    for what in (
        "placed_again",
        "adopted",
        "forced",
        "purged",
        "unanswered",
        "lost_races",
    ):
        assert happened[what] > happened["steps"] / 5000, f"too few {what}: {happened}"
    assert happened["commits"] > happened["steps"] / 2, happened
    assert happened["answers"] > happened["steps"] / 20, happened


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_laws_hold() -> None:
    happened: Counter[str] = Counter()
    run(counted(happened), max_examples=540, stateful_step_count=100, derandomize=True)
    assert happened["steps"] >= 50_000, happened
    check_much_happened(happened)


def test_the_next_console_session_is_not_the_one_that_ended() -> None:
    tell(one_console_after_the_other)


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(10))
def test_the_laws_hold_for_long(part: int) -> None:
    """Take other steps each time; in parts, because Hypothesis remembers every step of one."""
    happened: Counter[str] = Counter()
    run(counted(happened), max_examples=1_000, stateful_step_count=150)
    check_much_happened(happened)
