"""Real programs, started by tests and stopped by their own pid."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from support.waiting import until

START_SECONDS = 60.0


class Program:
    """One `deskfleet` command that runs until it is stopped; its standard error goes to a file."""

    def __init__(
        self, arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._log = log.open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "deskfleet", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **(environment or {})},
            text=True,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def first_line(self) -> str:
        """Wait for the first line on standard output."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it ended with {self.process.wait()}: {Path(self._log.name).read_text()}"
        return line

    def kill(self) -> None:
        self.process.kill()
        self._reap()

    def stop(self) -> int:
        """End it as Ctrl-C does, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self._reap()

    def _reap(self) -> int:
        code = self.process.wait(timeout=30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._log.close()
        return code


@dataclass(frozen=True)
class LiveBroker:
    """A running broker with an agent, and what a client needs to use it."""

    url: str
    desktops_url: str
    ca_file: Path
    client_id: str
    client_password: str
    client_password_file: Path
    state: Path


def announced(line: str, state: Path) -> LiveBroker:
    """Read what `deskfleet up --output json` printed."""
    said = json.loads(line)
    password_file = Path(said["client_password_file"])
    return LiveBroker(
        url=said["url"],
        desktops_url=said["desktops_url"],
        ca_file=Path(said["ca_file"]),
        client_id=said["client_id"],
        client_password=password_file.read_text(),
        client_password_file=password_file,
        state=state,
    )


@contextmanager
def up(
    state: Path, *more: str, driver: str = "simulated", ports: tuple[int, int, int] = (0, 0, 0)
) -> Iterator[tuple[Program, LiveBroker]]:
    """Run `deskfleet up` on free ports."""
    state.mkdir(parents=True, exist_ok=True)
    flags = ["--client-port", "--agent-port", "--desktop-port"]
    chosen = [text for flag, port in zip(flags, ports, strict=True) for text in (flag, str(port))]
    program = Program(
        ["up", "--state", str(state), "--driver", driver, "--output", "json", *chosen, *more],
        state.parent / f"{state.name}.stderr",
    )
    try:
        yield program, announced(program.first_line(), state)
    finally:
        program.stop()


class Portal:
    """Calls the API as a portal does: plain JSON over TLS."""

    def __init__(self, url: str, ca_file: Path, client_id: str, client_password: str) -> None:
        self._http = httpx.Client(base_url=url, verify=str(ca_file), timeout=30, trust_env=False)
        self._credentials = client_id, client_password
        self.login()

    @classmethod
    def of(cls, broker: LiveBroker, url: str | None = None) -> Portal:
        return cls(url or broker.url, broker.ca_file, broker.client_id, broker.client_password)

    def login(self) -> None:
        answer = self._http.post(
            "/oauth2/token?grant_type=client_credentials", auth=self._credentials
        )
        assert answer.status_code == 200, answer.text
        self._http.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"

    def close(self) -> None:
        self._http.close()

    def call(self, path: str, body: Any = None, method: str = "POST") -> Any:
        answer = self._http.request(method, path, json=body)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
        return answer.json()

    def create(self, owner: str, name: str = "test", **more: Any) -> str:
        """Create a virtual session and return its id."""
        item = {"Name": name, "Owner": owner, "Type": "VIRTUAL", **more}
        answer = self.call("/createSessions", [item])
        assert not answer["UnsuccessfulList"], answer
        return str(answer["SuccessfulList"][0]["Id"])

    def session(self, session_id: str) -> dict[str, Any]:
        found = self.call("/describeSessions", {"SessionIds": [session_id]})["Sessions"]
        assert len(found) == 1, found
        return dict(found[0])

    def state(self, session_id: str) -> str:
        return str(self.session(session_id)["State"])

    def wait(self, session_id: str, state: str, seconds: float = 30.0) -> dict[str, Any]:
        until(lambda: self.state(session_id) == state, seconds=seconds)
        return self.session(session_id)

    def ready(self, owner: str, name: str = "test", **more: Any) -> str:
        session_id = self.create(owner, name, **more)
        self.wait(session_id, "READY")
        return session_id

    def delete(self, session_id: str, owner: str, **more: Any) -> None:
        item = {"SessionId": session_id, "Owner": owner, **more}
        answer = self.call("/deleteSessions", [item])
        assert not answer["UnsuccessfulList"], answer

    def link(self, session_id: str, user: str) -> str:
        """Return the address of a session's desktop, made as the developer guide shows."""
        answer = self.call(f"/sessionConnectionData/{session_id}/{user}", method="GET")
        server = answer["Session"]["Server"]
        return (
            f"https://{server['Ip']}:{server['Port']}{server['WebUrlPath']}"
            f"?authToken={answer['ConnectionToken']}#{session_id}"
        )


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def now() -> float:
    return time.monotonic()
