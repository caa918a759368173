"""What an idle agent and a full broker hold in memory."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from support.measuring import proportional, resident, told
from support.programs import Portal, Site
from support.waiting import until

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

AGENT_GOAL_MB = 60
BROKER_GOAL_MB = 250
SESSIONS = 10_000
AGENTS = 10
BATCH = 500
PAGE = 1000
CREATE_LIMIT_SECONDS = 60.0
READY_LIMIT_SECONDS = 300.0
SETTLING_SECONDS = 3.0


@pytest.mark.parametrize("driver", ["xvnc", "simulated"])
def test_an_idle_agent_is_small(tmp_path: Path, driver: str) -> None:
    with Site(tmp_path) as site:
        site.start_broker()
        agent = site.start_agent("agent", "--driver", driver)
        until(site.portal().available)
        time.sleep(SETTLING_SECONDS)
        held = resident(agent.pid)
        told(
            f"idle agent ({driver})",
            resident_MB=held,
            proportional_MB=proportional(agent.pid),
        )
    assert held < AGENT_GOAL_MB


def test_a_broker_of_ten_thousand_sessions_stays_small(tmp_path: Path) -> None:
    with Site(tmp_path) as site:
        broker = site.start_broker()
        fresh = resident(broker.pid)
        for number in range(AGENTS):
            site.start_agent(f"agent-{number}", "--driver", "simulated")
        portal = site.portal()
        until(lambda: len(portal.available()) == AGENTS, 60)
        began = time.monotonic()
        for start in range(0, SESSIONS, BATCH):
            create(portal, start)
        created = time.monotonic() - began
        until(lambda: count_ready(portal) == SESSIONS, READY_LIMIT_SECONDS)
        ready = time.monotonic() - began
        time.sleep(SETTLING_SECONDS)
        held = resident(broker.pid)
        told(
            "broker with 10,000 sessions",
            resident_MB=held,
            proportional_MB=proportional(broker.pid),
            without_sessions_MB=fresh,
            created_in_s=created,
            ready_in_s=ready,
        )
    assert held < BROKER_GOAL_MB
    # Far above what it takes anywhere, and far below what anything quadratic would take.
    assert created < CREATE_LIMIT_SECONDS


def create(portal: Portal, start: int) -> None:
    items = [
        {"Name": f"session {number}", "Owner": f"user{number % 100}", "Type": "VIRTUAL"}
        for number in range(start, start + BATCH)
    ]
    answer = portal.call("/createSessions", items)
    assert not answer["UnsuccessfulList"], answer["UnsuccessfulList"][0]


def count_ready(portal: Portal) -> int:
    asked: dict[str, object] = {"MaxResults": PAGE}
    ready = 0
    while True:
        answer = portal.call("/describeSessions", asked)
        ready += len([one for one in answer["Sessions"] if one["State"] == "READY"])
        if "NextToken" not in answer:
            return ready
        asked["NextToken"] = answer["NextToken"]
