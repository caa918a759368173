"""No crash, no hang: each reader of what strangers write, fuzzed for a while.

`FUZZ_SECONDS` is the time of each target: 60 in CI, 3 elsewhere. `FUZZ_SEED` repeats a campaign.
As many campaigns run at once as there are processors.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

SECONDS = float(os.environ.get("FUZZ_SECONDS", "60" if os.environ.get("CI") == "true" else "3"))
SEED = os.environ.get("FUZZ_SEED") or str(random.randrange(2**32))
PROGRAM = Path(__file__).with_name("campaign.py")
START_SECONDS = 60.0
TARGETS = (
    "requirements_parser",
    "permissions_parser",
    "next_token",
    "tokens",
    "request_bodies",
    "agent_messages",
)

pytestmark = [
    pytest.mark.fuzz,
    pytest.mark.timeout(len(TARGETS) * (SECONDS + START_SECONDS)),
]

Result = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="session")
def result_of(request: pytest.FixtureRequest) -> Iterator[Result]:
    """Run the campaigns of all selected tests side by side."""
    names = [item.name for item in request.session.items if item.get_closest_marker("fuzz")]
    wanted = [one for one in TARGETS if any(f"[{one}]" in name for name in names)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        running: dict[str, Future[dict[str, Any]]] = {
            one: pool.submit(_campaign, one) for one in wanted
        }
        yield lambda name: running[name].result()


def _campaign(name: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), name, str(SECONDS), SEED],
        capture_output=True,
        text=True,
        timeout=SECONDS + START_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("target", TARGETS)
def test_no_crash_and_no_hang(result_of: Result, target: str) -> None:
    result = result_of(target)
    assert result["failure"] is None, f"FUZZ_SEED={SEED}: {result['failure']}"
    assert result["runs"] > 20 * SECONDS
    assert result["lines"] > 10, "it does not get anywhere"
