"""DescribeSessions, beside the same server answering the same bytes from a constant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.constant_server import Constant, constant_server
from support.load import request_bytes
from support.measuring import ratio, spread, told
from support.programs import Portal, Program, Site
from support.serving import port_of, serve
from support.waiting import until

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]

PATH = "/describeSessions"
ASKED = b"{}"
SESSIONS = 10
ROUNDS = 9
GOAL = 0.6


def test_an_answer_costs_little_more_than_a_constant(tmp_path: Path) -> None:
    with Site(tmp_path) as site:
        broker, portal = start(site)
        answer = portal._http.post(PATH, content=ASKED).content
        assert len(json.loads(answer)["Sessions"]) == SESSIONS
        token = portal._http.headers["Authorization"].partition(" ")[2]
        request = request_bytes(PATH, ASKED, token)
        tls = site.ca_file.parent
        constant = Constant(PATH, answer, str(tls / "broker.pem"), str(tls / "broker.key"))
        ours, beside = [], []
        with constant_server(constant) as (port, pid):
            for _ in range(ROUNDS):
                ours.append(serve(port_of(portal), broker.pid, site.ca_file, request))
                beside.append(serve(port, pid, site.ca_file, request))
    share = ratio((one.rate for one in ours), (one.rate for one in beside))
    told(
        "DescribeSessions, 10 sessions in an answer",
        broker_per_second=spread(one.rate for one in ours),
        constant_per_second=spread(one.rate for one in beside),
        ratio=share,
    )
    told(
        "  processor time",
        broker_us=spread(one.cost for one in ours),
        constant_us=spread(one.cost for one in beside),
        ratio=ratio((one.cost for one in beside), (one.cost for one in ours)),
        client_us=spread(1e6 * one.load.client_seconds_per_answer for one in ours + beside),
    )
    assert share >= GOAL


def start(site: Site) -> tuple[Program, Portal]:
    """Start a broker with ten sessions on one simulated server."""
    config = site.folder / "broker.toml"
    # Calls are counted, as always, but one client may make as many as it can.
    config.write_text("max_api_requests_per_second = 1000000\n")
    broker = site.start_broker("broker", "--config", str(config))
    site.start_agent("agent", "--driver", "simulated")
    portal = site.portal()
    until(portal.available)
    for number in range(SESSIONS):
        portal.ready("alice", f"session {number}")
    return broker, portal
