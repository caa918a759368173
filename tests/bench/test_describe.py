"""DescribeSessions, beside the same server answering the same bytes from a constant."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import pytest

from support.constant_server import Constant, constant_server
from support.load import Load, Result, request_bytes, run_load
from support.measuring import ratio, spread, told
from support.programs import Portal, Site
from support.waiting import until

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]

PATH = "/describeSessions"
ASKED = b"{}"
SESSIONS = 10
ROUNDS = 9
GOAL = 0.6


def test_an_answer_costs_little_more_than_a_constant(tmp_path: Path) -> None:
    with Site(tmp_path) as site:
        config = tmp_path / "broker.toml"
        # Calls are counted, as always, but one client may make as many as it can.
        config.write_text("max_api_requests_per_second = 1000000\n")
        site.start_broker("broker", "--config", str(config))
        site.start_agent("agent", "--driver", "simulated")
        portal = site.portal()
        until(portal.available)
        for number in range(SESSIONS):
            portal.ready("alice", f"session {number}")
        token = portal._http.headers["Authorization"].partition(" ")[2]
        answer = portal._http.post(PATH, content=ASKED).content
        assert len(json.loads(answer)["Sessions"]) == SESSIONS
        tls = site.ca_file.parent
        constant = Constant(PATH, answer, str(tls / "broker.pem"), str(tls / "broker.key"))
        with constant_server(constant) as constant_port:
            ports = {"broker": _port(portal), "constant": constant_port}
            rounds = [_round(ports, site.ca_file, token) for _ in range(ROUNDS)]
    broker = [one["broker"].answers_per_second for one in rounds]
    beside = [one["constant"].answers_per_second for one in rounds]
    share = ratio(broker, beside)
    told(
        "DescribeSessions, 10 sessions in an answer",
        broker_per_second=spread(broker),
        constant_per_second=spread(beside),
        ratio=share,
        answer_bytes=len(answer),
        client_us=1e6 * median(one["constant"].client_seconds_per_answer for one in rounds),
    )
    assert share >= GOAL


def _round(ports: dict[str, int], ca_file: Path, token: str) -> dict[str, Result]:
    request = request_bytes(PATH, ASKED, token)
    return {name: run_load(Load(port, str(ca_file), request)) for name, port in ports.items()}


def _port(portal: Portal) -> int:
    port = portal._http.base_url.port
    assert port is not None
    return port
