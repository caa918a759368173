"""No crash, no hang: each reader of what strangers write, fuzzed for a while.

`FUZZ_SECONDS` is the time of each target: 60 in CI, 3 elsewhere. `FUZZ_SEED` repeats a campaign.
The campaigns run beside the other tests (`conftest.py`).
"""

from __future__ import annotations

import pytest

from support.campaigns import SECONDS, SEED, START_SECONDS, Campaigns

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


@pytest.mark.parametrize("target", TARGETS)
def test_no_crash_and_no_hang(campaigns: Campaigns, target: str) -> None:
    result = campaigns.result(target)
    assert result["failure"] is None, f"FUZZ_SEED={SEED}: {result['failure']}"
    assert result["runs"] > 20 * SECONDS
    assert result["lines"] > 10, "it does not get anywhere"
