"""No crash, no hang: each reader of what strangers write, fuzzed for a while.

`FUZZ_SECONDS` is the time of each target: 60 in CI, 3 elsewhere. `FUZZ_SEED` repeats a campaign.
Each is a program of its own; what it measures is its own processor time.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = float(os.environ.get("FUZZ_SECONDS", "60" if os.environ.get("CI") == "true" else "3"))
SEED = os.environ.get("FUZZ_SEED") or str(random.SystemRandom().randrange(2**32))
START_SECONDS = 60.0
PROGRAM = Path(__file__).with_name("campaign.py")
TARGETS = (
    "requirements_parser",
    "permissions_parser",
    "next_token",
    "tokens",
    "request_bodies",
    "agent_messages",
)

pytestmark = [pytest.mark.long, pytest.mark.timeout(SECONDS + 2 * START_SECONDS)]


@pytest.mark.parametrize("target", TARGETS)
def test_no_crash_and_no_hang(target: str) -> None:
    program = subprocess.run(
        [sys.executable, str(PROGRAM), target, str(SECONDS), SEED],
        check=False,
        capture_output=True,
        text=True,
        timeout=SECONDS + START_SECONDS,
    )
    assert program.returncode == 0, program.stderr
    result = json.loads(program.stdout)
    assert result["failure"] is None, f"FUZZ_SEED={SEED}: {result['failure']}"
    assert result["runs"] > 20 * SECONDS
    assert result["lines"] > 10, "it does not get anywhere"
