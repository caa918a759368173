"""Two brokers on one SQLite file are one fleet."""

from __future__ import annotations

import base64
import concurrent.futures
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from support.programs import Portal, Site
from support.waiting import until

OWNER = "user1"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Yield two brokers and an agent that is linked to the second one."""
    with Site(tmp_path) as site:
        site.start_broker("first")
        site.start_broker("second")
        site.start_agent("agent", "--driver", "simulated", brokers=["second", "first"])
        until(site.portal("first").available)
        # Where the first one sees it the second one may still have to say so.
        until(lambda: '"link.opened"' in site.log("second"))
        yield site


def _screenshot(portal: Portal, session: str) -> Image.Image:
    answer = portal.call("/getSessionScreenshots", [{"SessionId": session}])
    assert not answer["UnsuccessfulList"], answer
    (shot,) = answer["SuccessfulList"]
    return Image.open(io.BytesIO(base64.b64decode(shot["SessionScreenshot"]["Images"][0]["Data"])))


def test_two_brokers_create_through_one_ready_through_the_other(site: Site) -> None:
    first, second = site.portal("first"), site.portal("second")
    session = first.ready(OWNER)
    assert second.state(session) == "READY"
    assert second.session(session) == first.session(session)


def test_two_brokers_never_answer_from_the_past(site: Site) -> None:
    first, second = site.portal("first"), site.portal("second")
    for number in range(20):
        session = first.create(OWNER, f"session {number}")
        assert second.session(session)["Name"] == f"session {number}"
        second.delete(session, OWNER)
        assert first.state(session) in {"DELETING", "DELETED"}


def test_two_brokers_give_screenshots_through_either(site: Site) -> None:
    first, second = site.portal("first"), site.portal("second")
    session = first.ready(OWNER)
    assert _screenshot(first, session).size == _screenshot(second, session).size


def test_two_brokers_know_the_same_clients_and_tokens(site: Site) -> None:
    first, second = site.portal("first"), site.portal("second")
    session = first.ready(OWNER)
    link = first.link(session, OWNER)
    assert session in link
    # A token of the one is good at the other.
    second._http.headers["Authorization"] = first._http.headers["Authorization"]
    assert second.state(session) == "READY"


@pytest.mark.parametrize("victim", ["first", "second"])
def test_two_brokers_lose_nothing_when_one_dies(site: Site, victim: str) -> None:
    survivor = {"first": "second", "second": "first"}[victim]
    portal, other = site.portal(survivor), site.portal(victim)
    sessions = [other.ready(OWNER, f"session {number}") for number in range(5)]
    doomed = other.create(OWNER, "begun at the one that dies")
    site.kill(victim)

    assert {portal.session(one)["Name"] for one in [*sessions, doomed]} == {
        *(f"session {number}" for number in range(5)),
        "begun at the one that dies",
    }
    # Where the agent was linked to the victim it finds the survivor.
    for one in [*sessions, doomed]:
        portal.wait(one, "READY")
    fresh = portal.ready(OWNER, "after the death")
    assert _screenshot(portal, fresh)
    portal.delete_all()

    site.start_broker(victim)
    assert site.portal(victim).state(fresh) == "DELETED"


def test_two_brokers_race_for_the_last_seats(site: Site, tmp_path: Path) -> None:
    """Of many requests at both brokers at once, exactly as many win as there are seats."""
    limits = tmp_path / "agent.toml"
    limits.write_text("max_virtual_sessions = 3\n")
    first, second = site.portal("first"), site.portal("second")
    site.stop("agent")
    site.start_agent(
        "small", "--driver", "simulated", "--config", str(limits), brokers=["first", "second"]
    )
    until(lambda: any(_limit(one) == "3" for one in _servers(first)))
    batch = [
        {"Name": f"n{n}", "Owner": OWNER, "Type": "VIRTUAL", "Requirements": REQUIREMENT}
        for n in range(10)
    ]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda at: at.call("/createSessions", batch), (first, second)))
    won = [one["Id"] for outcome in outcomes for one in outcome["SuccessfulList"]]
    lost = [one["FailureReason"] for outcome in outcomes for one in outcome["UnsuccessfulList"]]
    assert len(won) == 3
    assert len(lost) == 17
    assert all("full" in reason for reason in lost)


REQUIREMENT = "tag:dcv:max-virtual-sessions = '3'"


def _servers(portal: Portal) -> list[dict[str, object]]:
    return list(portal.call("/describeServers")["Servers"])


def _limit(server: dict[str, object]) -> str | None:
    tags = server["Tags"]
    assert isinstance(tags, list)
    return next(
        (str(tag["Value"]) for tag in tags if tag["Key"] == "dcv:max-virtual-sessions"), None
    )
