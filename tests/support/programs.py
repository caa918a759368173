"""Real programs, started by tests and stopped by their own pid."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from support import worker
from support.waiting import until

START_SECONDS = 60.0
OURS = range(12_000 + worker.INDEX, 32_768, worker.COUNT)
"""Ports below those that Linux, if nobody sets it otherwise, gives to whoever asks for any; no
other worker takes them."""


class Program:
    """One `deskfleet` command that runs until it is stopped; its standard error goes to a file."""

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        python: Sequence[str] = ("-m",),
        terminal: int | None = None,
    ) -> None:
        """`python` is what the interpreter is given to run the command with.

        A `terminal` interrupts it at Ctrl-C, with all that runs in it.
        """
        in_it = [] if terminal is None else ["setsid", "--ctty"]
        self._log = log.open("ab")
        self.process = subprocess.Popen(
            [*in_it, sys.executable, *python, "deskfleet", *arguments],
            stdin=subprocess.DEVNULL if terminal is None else terminal,
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
        self.wait()

    def stop(self) -> int:
        """Interrupt it, and nothing that runs in it; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.wait()

    def wait(self) -> int:
        """Return its exit code when it has ended by itself."""
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
    state: Path,
    *more: str,
    driver: str = "simulated",
    ports: tuple[int, int, int] = (0, 0, 0),
    environment: Mapping[str, str] | None = None,
) -> Iterator[tuple[Program, LiveBroker]]:
    """Run `deskfleet up` on free ports."""
    state.parent.mkdir(parents=True, exist_ok=True)
    flags = ["--client-port", "--agent-port", "--desktop-port"]
    chosen = [text for flag, port in zip(flags, ports, strict=True) for text in (flag, str(port))]
    program = Program(
        ["up", "--state", str(state), "--driver", driver, "--output", "json", *chosen, *more],
        state.parent / f"{state.name}.stderr",
        environment,
    )
    try:
        yield program, announced(program.first_line(), state)
    finally:
        program.stop()


def trust(ca_file: Path | None) -> ssl.SSLContext:
    """Trust what a file has, and nothing else; without one, what the system trusts."""
    return ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))


class Portal:
    """Calls the API as a portal does: plain JSON over TLS."""

    def __init__(self, url: str, ca_file: Path, client_id: str, client_password: str) -> None:
        self._http = httpx.Client(base_url=url, verify=trust(ca_file), timeout=30, trust_env=False)
        self._credentials = client_id, client_password
        self.login()

    @classmethod
    def of(cls, broker: LiveBroker, url: str | None = None) -> Portal:
        return cls(url or broker.url, broker.ca_file, broker.client_id, broker.client_password)

    @property
    def http(self) -> httpx.Client:
        """The connection, for what is not done through `call`."""
        return self._http

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
        def is_there() -> bool:
            seen = self.session(session_id)
            assert seen["State"] in {state, "CREATING", "READY", "DELETING", "UNKNOWN"}, seen
            return bool(seen["State"] == state)

        until(is_there, seconds=seconds)
        return self.session(session_id)

    def ready(self, owner: str, name: str = "test", **more: Any) -> str:
        session_id = self.create(owner, name, **more)
        self.wait(session_id, "READY")
        return session_id

    def available(self) -> list[str]:
        """Return the ids of the servers that can take sessions."""
        servers = self.call("/describeServers")["Servers"]
        return [str(one["Id"]) for one in servers if one["Availability"] == "AVAILABLE"]

    def delete_all(self) -> None:
        """Delete all sessions, and wait until nothing of them is left."""
        sessions = self.call("/describeSessions")["Sessions"]
        for one in sessions:
            if one["State"] not in {"DELETED", "DELETING"}:
                self.delete(one["Id"], one["Owner"])
        for one in sessions:
            self.wait(one["Id"], "DELETED")

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


def free_ports(count: int) -> list[int]:
    """Return ports to listen on later: whoever asks for any is given others meanwhile."""
    # No dice of the tests: those fall alike in each of them.
    free = filter(_is_free, random.SystemRandom().sample(OURS, 200))
    return [next(free) for _ in range(count)]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Site:
    """Brokers on one store and agents on one machine, each a program with ports that stay."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.broker_state = folder / "broker"
        self.ca_file = self.broker_state / "tls" / "ca.pem"
        self.desktop_ports: dict[str, int] = {}
        self._programs: dict[str, Program] = {}
        self._ports: dict[str, tuple[int, int]] = {}
        self._portals: list[Portal] = []
        self._credentials: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for portal in self._portals:
            portal.close()
        # Agents first: they have nobody to report to otherwise.
        for _name, program in sorted(self._programs.items()):
            program.stop()

    def start_broker(self, name: str = "broker", *more: str) -> Program:
        """Start a broker, or start it again, and wait until it answers."""
        if name not in self._ports:
            clients, agents = free_ports(2)
            self._ports[name] = clients, agents
        clients, agents = self._ports[name]
        program = Program(
            [
                *("broker", "run", "--state", str(self.broker_state), "--advertise", "localhost"),
                *("--client-port", str(clients), "--agent-port", str(agents), *more),
            ],
            self.folder / f"{name}.log",
        )
        self._programs[name] = program
        until(lambda: answers(clients) or program.process.poll() is not None, START_SECONDS)
        assert program.process.poll() is None, (self.folder / f"{name}.log").read_text()
        return program

    def start_agent(
        self,
        name: str = "agent",
        *more: str,
        brokers: Sequence[str] = ("broker",),
        enrolled_by_statement: bool = True,
        environment: Mapping[str, str] | None = None,
        python: Sequence[str] = ("-m",),
    ) -> Program:
        """Start an agent that asks the named brokers in turn; `more` holds its driver.

        `desktop_ports` has the port that it may open for browsers.
        """
        shown = ("--software-statement-path", str(self._statement())) * enrolled_by_statement
        (port,) = free_ports(1)
        self.desktop_ports[name] = port
        urls = [f"https://localhost:{self._ports[broker][1]}" for broker in brokers]
        program = Program(
            [
                *("agent", "run", "--state", str(self.folder / name)),
                *("--broker-url", ",".join(urls), "--ca-file", str(self.ca_file)),
                *(*shown, "--desktop-port", str(port), *more),
            ],
            self.folder / f"{name}.log",
            environment,
            python,
        )
        self._programs[name] = program
        return program

    def _statement(self) -> Path:
        path = self.folder / "statement"
        if not path.exists():
            path.write_text(self.command("generate-software-statement"))
        return path

    def kill(self, name: str) -> None:
        self._programs.pop(name).kill()

    def stop(self, name: str) -> int:
        return self._programs.pop(name).stop()

    def command(self, *arguments: str) -> str:
        """Run a command of the brokers and return what it prints."""
        done = subprocess.run(
            [
                *(sys.executable, "-m", "deskfleet", "broker"),
                *(*arguments, "--state", str(self.broker_state)),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def portal(self, broker: str = "broker") -> Portal:
        """Return a client of one broker; all brokers know the same credentials."""
        if not self._credentials:
            said = self.command("register-api-client", "--client-name", "test")
            self._credentials = [line.partition(": ")[2] for line in said.splitlines()]
        portal = Portal(self.url(broker), self.ca_file, *self._credentials)
        self._portals.append(portal)
        return portal

    @property
    def credentials(self) -> tuple[str, str]:
        """Return id and password of the clients that `portal` gives."""
        client_id, password = self._credentials
        return client_id, password

    def url(self, broker: str = "broker") -> str:
        return f"https://localhost:{self._ports[broker][0]}"

    def agent_url(self, broker: str = "broker") -> str:
        return f"https://localhost:{self._ports[broker][1]}"

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()
