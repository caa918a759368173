"""Ten thousand hostile requests through the driver of DCV servers: what runs is what was asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support import hostile_sessions
from support.dcv import dcv_folder

REQUESTS = 10_000
HALVES = 2
"""In processes of their own: most of it is one interpreter's work."""


def campaign(count: int, *careless: str, seed: int = 1) -> dict[str, Any]:
    with dcv_folder() as folder:
        done = subprocess.run(
            [
                *(sys.executable, "-m", hostile_sessions.__name__),
                *(str(folder), str(count), str(seed), *careless),
            ],
            env={**os.environ, "PYTHONPATH": str(Path(hostile_sessions.__file__).parents[1])},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.timeout(330)
def test_the_arguments_that_run_are_those_that_were_asked_or_nothing_runs() -> None:
    """Names, owners, storage roots, init and autorun files, and arguments of these."""
    with ThreadPoolExecutor(HALVES) as both:
        halves = list(both.map(lambda seed: campaign(REQUESTS // HALVES, seed=seed), (1, 2)))
    assert [told["violations"] for told in halves] == [[], []]
    counts = sum((Counter(told["counts"]) for told in halves), Counter[str]())
    assert counts["called"] + counts["refused"] == REQUESTS
    assert counts["called"] > REQUESTS / 2
    assert counts["autorun"] > REQUESTS / 10
    assert counts["arguments"] > REQUESTS / 4
    assert counts["passed by the broker"] > REQUESTS / 3


def test_a_driver_that_is_careless_is_found_out() -> None:
    said = "\n".join(campaign(400, "careless")["violations"])
    assert "was asked for as" in said
    assert " ran [" in said


@pytest.mark.torture
@pytest.mark.timeout(330)
@pytest.mark.parametrize("seed", range(2, 12))
def test_again_with_other_requests(seed: int) -> None:
    assert campaign(REQUESTS, seed=seed)["violations"] == []
