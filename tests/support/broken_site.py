"""Fleets of real programs to be broken, and the ways to look at them from outside.

Heartbeats are quicker than by default, so that silence is found out soon. A site starts from a
broker's state that was prepared once, which saves three programs each.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from deskfleet.broker.main import access_only, own_pair
from deskfleet.settings import BrokerSettings
from support.fault_proxy import FaultProxy
from support.growing import whole_lines
from support.ledger import described
from support.programs import Portal, Program, Site
from support.waiting import until

HEARTBEAT_SECONDS = 0.5
BEAT_SECONDS = 0.5
SETTINGS = f"""
agent_heartbeat_seconds = {HEARTBEAT_SECONDS}
broker_beat_seconds = {BEAT_SECONDS}
poll_seconds = 0.1
"""
NEAR_SEATS = 100
FAR_SEATS = 20
MEGABYTE = 2**20


def on_server_of(seats: int) -> str:
    """Return the requirements that only the server with so many seats fulfils."""
    return f"tag:dcv:max-virtual-sessions = '{seats}'"


NEAR = on_server_of(NEAR_SEATS)
FAR = on_server_of(FAR_SEATS)


@dataclass(frozen=True)
class Prepared:
    """A broker's state with an API client and a software statement, to be copied."""

    state: Path
    statement: str
    credentials: list[str]


def prepare(state: Path) -> Prepared:
    own_pair(state)

    async def prepared() -> Prepared:
        async with access_only(BrokerSettings(state=state)) as access:
            client = await access.register_api_client("test")
            statement = await access.generate_software_statement()
        return Prepared(state, statement, [client.client_id, client.client_password])

    return asyncio.run(prepared())


class BrokenSite(Site):
    def __init__(self, folder: Path, prepared: Prepared) -> None:
        super().__init__(folder)
        shutil.copytree(prepared.state, self.broker_state, dirs_exist_ok=True)
        (folder / "statement").write_text(prepared.statement)
        (folder / "broker.toml").write_text(SETTINGS)
        self._credentials = prepared.credentials

    def broker(self, name: str = "broker") -> Program:
        return self.start_broker(name, "--config", str(self.folder / "broker.toml"))

    def agent(
        self,
        name: str = "agent",
        seats: int = 10,
        *flags: str,
        brokers: Sequence[str] = ("broker",),
    ) -> Program:
        """Start an agent of simulated sessions."""
        config = self.folder / f"{name}.toml"
        config.write_text(f"driver = 'simulated'\nmax_virtual_sessions = {seats}\n")
        return self.start_agent(name, "--config", str(config), *flags, brokers=brokers)

    def agent_port(self, broker: str = "broker") -> int:
        return self._ports[broker][1]

    def server_id(self, agent: str = "agent") -> str:
        """Return the id of an agent's server as soon as it has enrolled."""
        identity = self.folder / agent / "identity.json"
        until(identity.exists)
        return str(json.loads(identity.read_bytes())["client_id"])

    def running(self, agent: str = "agent") -> set[str]:
        """Return the sessions that really run on an agent of simulated ones."""
        found = set()
        for file in (self.folder / agent / "simulated").glob("*.json"):
            with contextlib.suppress(FileNotFoundError):
                found.add(json.loads(file.read_bytes())["session_id"])
        return found

    def logged(self, program: str, event: str) -> list[dict[str, Any]]:
        told = whole_lines(self.folder / f"{program}.log")
        lines = [json.loads(line) for line in told if line[:1] == "{"]
        return [line for line in lines if line["event"] == event]


@contextlib.contextmanager
def stopped(program: Program) -> Iterator[None]:
    """Stop a program as a pause of its machine would, and let it go on in the end."""
    os.kill(program.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(program.pid, signal.SIGCONT)


def memory(program: Program) -> int:
    return int(psutil.Process(program.pid).memory_info().rss)


def open_files(program: Program) -> int:
    return int(psutil.Process(program.pid).num_fds())


def say(what: str, began: float) -> None:
    """Print a figure for people; `began` is of the monotonic clock."""
    print(f"{what}: {time.monotonic() - began:.2f} s")


@dataclass
class Fleet:
    """A broker, an agent behind a proxy (near), and one that nothing happens to (far)."""

    site: BrokenSite
    portal: Portal
    proxy: FaultProxy
    broker: Program
    agent: Program
    near: str
    far: str

    def server(self, id: str) -> dict[str, Any]:
        servers = self.portal.call("/describeServers", {"ServerIds": [id]})["Servers"]
        return dict(servers[0])

    def is_available(self) -> bool:
        return {self.near, self.far} <= set(self.portal.available())

    def is_near_lost(self) -> bool:
        return bool(self.server(self.near).get("UnavailabilityReason") == "UNREACHABLE_AGENT")

    def ready(self, name: str = "test", **more: Any) -> str:
        return self.portal.ready("near", name, Requirements=NEAR, **more)

    def create(self, count: int, **more: Any) -> tuple[list[str], list[str]]:
        """Ask for many at once; return the ids of what was granted and why the rest was not."""
        item = {"Owner": "near", "Type": "VIRTUAL", "Requirements": NEAR, **more}
        items = [{**item, "Name": f"session {number}"} for number in range(count)]
        answer = self.portal.call("/createSessions", items)
        return (
            [one["Id"] for one in answer["SuccessfulList"]],
            [one["FailureReason"] for one in answer["UnsuccessfulList"]],
        )

    def delete(self, ids: Sequence[str]) -> None:
        items = [{"SessionId": id, "Owner": "near"} for id in ids]
        answer = self.portal.call("/deleteSessions", items)
        assert not answer["UnsuccessfulList"], answer

    def states(self, ids: Sequence[str]) -> Counter[str]:
        shown = described(self.portal)
        return Counter(shown[id]["State"] for id in ids)

    def all_are(self, state: str, ids: Sequence[str]) -> bool:
        return set(self.states(ids)) <= {state}

    def near_epochs(self) -> list[int]:
        opened = self.site.logged("broker", "link.opened")
        return [int(one["epoch"]) for one in opened if one["server_id"] == self.near]

    def clear(self) -> None:
        """Delete all sessions, and see that nothing of them is left."""
        alive = {
            id: one
            for id, one in described(self.portal).items()
            if one["State"] not in {"DELETED", "DELETING"}
        }
        items = [{"SessionId": id, "Owner": one["Owner"]} for id, one in alive.items()]
        if items:
            self.portal.call("/deleteSessions", items)
        shown = list(described(self.portal))
        until(lambda: self.all_are("DELETED", shown), seconds=30)
        assert self.site.running("near") | self.site.running("far") == set()
