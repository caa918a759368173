"""Pages of 1,000 out of 100,000 sessions, beside the same server sending one as a constant."""

from __future__ import annotations

import json
import random
import uuid
from datetime import timedelta
from pathlib import Path
from statistics import median

import pytest

from deskfleet.broker.stores.sql import SqlStore
from deskfleet.core.change import ABSENT, Put
from deskfleet.core.records import Endpoint, Record
from support.builders import NOON, a_link, a_report, a_server, a_session, some_facts
from support.constant_server import Constant, constant_server
from support.load import request_bytes
from support.measuring import ratio, spread, told
from support.programs import Portal, Site
from support.serving import port_of, serve

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

PATH = "/describeSessions"
SERVERS, SESSIONS, PAGE = 500, 100_000, 1_000
ROUNDS = 9
TOGETHER = 1_000
GOAL = 0.5


def test_a_page_costs_no_more_than_twice_a_constant(tmp_path: Path) -> None:
    with Site(tmp_path) as site:
        seed(site.broker_state / "fleet.db")
        config = tmp_path / "broker.toml"
        config.write_text("max_api_requests_per_second = 1000000\n")
        broker = site.start_broker("broker", "--config", str(config))
        portal = site.portal()
        asked, pages = walk(portal)
        assert len(pages) == SESSIONS // PAGE
        token = portal._http.headers["Authorization"].partition(" ")[2]
        requests = [request_bytes(PATH, body, token) for body in asked]
        tls = site.ca_file.parent
        a_page = sorted(pages, key=len)[len(pages) // 2]
        constant = Constant(PATH, a_page, str(tls / "broker.pem"), str(tls / "broker.key"))
        ours, beside = [], []
        with constant_server(constant) as (port, pid):
            for _ in range(ROUNDS):
                ours.append(serve(port_of(portal), broker.pid, site.ca_file, *requests))
                beside.append(serve(port, pid, site.ca_file, requests[1]))
    share = ratio((one.rate for one in ours), (one.rate for one in beside))
    told(
        "DescribeSessions, pages of 1,000 out of 100,000",
        broker_per_second=spread(one.rate for one in ours),
        constant_per_second=spread(one.rate for one in beside),
        ratio=share,
        page_bytes=median(map(len, pages)),
    )
    told(
        "  processor time",
        broker_us=spread(one.cost for one in ours),
        constant_us=spread(one.cost for one in beside),
        ratio=ratio((one.cost for one in beside), (one.cost for one in ours)),
    )
    assert share >= GOAL


def seed(path: Path) -> None:
    """Write a store with all the sessions, on servers that are not there."""
    path.parent.mkdir(parents=True, mode=0o700)
    chance = random.Random(1)
    records: list[Record] = []
    for number in range(SERVERS):
        id = f"server-{number:03}"
        entrance = Endpoint(ip_address="10.0.0.7", port=8446)
        facts = some_facts(id, tags={"dcv:os-family": "linux", "a": "b"}, endpoints=(entrance,))
        records += [a_server(id), facts, a_link(id, up=False)]
    for number in range(SESSIONS):
        session = a_session(
            str(uuid.UUID(int=chance.getrandbits(128))),
            server=f"server-{number % SERVERS:03}",
            owner=f"user{number % 2000}",
            name=f"desk {number}",
            created_at=NOON + timedelta(seconds=number),
        )
        records += [session, a_report(session)]
    store = SqlStore(f"sqlite:///{path}")
    for start in range(0, len(records), TOGETHER):
        store.commit([tuple(Put(one, ABSENT) for one in records[start : start + TOGETHER])])
    store.close()


def walk(portal: Portal) -> tuple[list[bytes], list[bytes]]:
    """Read all sessions page by page; return what was asked, and what was answered."""
    asked: list[bytes] = []
    pages: list[bytes] = []
    seen: set[str] = set()
    token: str | None = None
    while token is not None or not pages:
        body = json.dumps({"MaxResults": PAGE, **({"NextToken": token} if token else {})}).encode()
        answer = portal._http.post(PATH, content=body)
        assert answer.status_code == 200, answer.text
        said = answer.json()
        asked.append(body)
        pages.append(answer.content)
        seen.update(session["Id"] for session in said["Sessions"])
        token = said.get("NextToken")
    assert len(seen) == SESSIONS
    return asked, pages
