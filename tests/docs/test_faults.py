"""The page of faults names tests that there are, and decisions have one number each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "faults.md").read_text()
ROWS = [row for row in PAGE.splitlines() if row.startswith("| ") and not row.startswith("| what ")]
TESTS = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_each_fault_names_the_tests_that_hold_it(row: str) -> None:
    named = re.findall(r"`(test_\w+)`", row)
    assert named
    assert set(named) <= TESTS


def test_each_decision_has_a_number_of_its_own() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    numbers = [int(path.name.partition("-")[0]) for path in pages]
    assert numbers == list(range(1, len(pages) + 1))
    for number, path in zip(numbers, pages, strict=True):
        assert path.read_text().startswith(f"# {number}. ")
