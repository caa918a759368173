"""What the conformance suite speaks with: a broker at any base URL, strictly held to its word.

Every answer, failures included, is held against the API description: no unknown member, no wrong
type, nothing missing that is promised, no status that isn't described. A broker of our own can be
made to meet any condition; of a foreign one the suite asks only what a client can bring about.
"""

from __future__ import annotations

import getpass
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import httpx

from support import openapi
from support.played_server import PlayedServer, some_facts
from support.programs import LiveBroker, free_ports, trust, up
from support.waiting import until

FOREIGN_SECONDS = 180.0
NO_PLACE = "no dcv server found for placement"
UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"


@dataclass(frozen=True)
class Target:
    """The broker that is asked."""

    url: str
    ca_file: Path | None
    """None: what the system trusts."""
    client_id: str
    client_password: str
    owner: str | None = None
    """A user of its servers; None where any name will do."""
    patience: float = 30.0
    """Seconds within which what was asked for comes true."""
    is_own: bool = False

    @classmethod
    def of(cls, broker: LiveBroker) -> Target:
        return cls(
            broker.url, broker.ca_file, broker.client_id, broker.client_password, is_own=True
        )

    @classmethod
    def named(cls, environment: Mapping[str, str]) -> Target:
        """Return the broker that the environment names; what is empty there isn't given."""
        given = {name: value for name, value in environment.items() if value}
        ca_file = given.get("CONFORMANCE_CA")
        return cls(
            url=given["CONFORMANCE_URL"].rstrip("/"),
            ca_file=None if ca_file is None else Path(ca_file),
            client_id=given["CONFORMANCE_CLIENT_ID"],
            client_password=Path(given["CONFORMANCE_CLIENT_PASSWORD_FILE"]).read_text().strip(),
            owner=given.get("CONFORMANCE_OWNER") or getpass.getuser(),
            patience=float(given.get("CONFORMANCE_SECONDS", FOREIGN_SECONDS)),
        )


class Api:
    """Calls operations by their paths, as a client does."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.description = openapi.description()
        self.http = httpx.Client(
            base_url=target.url,
            verify=trust(target.ca_file),
            timeout=60,
            trust_env=False,
            event_hooks={"response": [self._hold_to_its_word]},
        )
        self._token = self.token()

    def close(self) -> None:
        self.http.close()

    def _hold_to_its_word(self, answer: httpx.Response) -> None:
        answer.read()
        # What is always there, and how failures look, is our promise; another broker may differ.
        if self.target.is_own or answer.status_code == 200:
            assert openapi.faults(self.description, answer, whole=self.target.is_own) == []

    def ask_for_token(self, **request: Any) -> httpx.Response:
        """Post to the token endpoint, by default as the guide does."""
        given = {
            "params": {"grant_type": "client_credentials"},
            "auth": (self.target.client_id, self.target.client_password),
            "headers": {"Content-Type": "application/x-www-form-urlencoded"},
        }
        return self.http.post("/oauth2/token", **{**given, **request})

    def token(self) -> str:
        answer = self.ask_for_token()
        assert answer.status_code == 200, answer.text
        return str(answer.json()["access_token"])

    def send(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Send a request with the token, or with the headers that are given."""
        headers = request.pop("headers", {"Authorization": f"Bearer {self._token}"})
        return self.http.request(method, path, headers=headers, **request)

    def call(self, operation: str, body: Any = None) -> Any:
        """Call one of the operations with a body; it answers 200."""
        method = "PUT" if operation == "sessionPermissions" else "POST"
        request = {} if body is None else {"json": body}
        answer = self.send(method, f"/{operation}", **request)
        assert answer.status_code == 200, f"{answer.status_code} {answer.text}"
        return answer.json()

    def refused(self, operation: str, body: Any) -> str:
        """Return why a call is refused as a whole with 400."""
        method = "PUT" if operation == "sessionPermissions" else "POST"
        answer = self.send(method, f"/{operation}", json=body)
        assert answer.status_code == 400, f"{answer.status_code} {answer.text}"
        return self.reason(answer)

    def reason(self, answer: httpx.Response) -> str:
        """Return the one line of an error answer."""
        assert answer.headers["content-type"].partition(";")[0] == "application/json"
        content = answer.json()
        assert list(content) == ["error"]
        assert "\n" not in content["error"]
        return str(content["error"])

    # Sessions

    def item(self, owner: str, **more: Any) -> dict[str, Any]:
        """Return an entry of createSessions."""
        return {"Name": f"conformance {uuid.uuid4()}", "Owner": owner, "Type": "VIRTUAL", **more}

    def create(self, owner: str, **more: Any) -> dict[str, Any]:
        """Create one session and return what was answered of it."""
        answer = self.call("createSessions", [self.item(owner, **more)])
        assert answer["UnsuccessfulList"] == [], answer
        (created,) = answer["SuccessfulList"]
        return dict(created)

    def failure(self, owner: str, **more: Any) -> str:
        """Return why a session can't be created."""
        answer = self.call("createSessions", [self.item(owner, **more)])
        assert answer["SuccessfulList"] == [], answer
        (refused,) = answer["UnsuccessfulList"]
        return str(refused["FailureReason"])

    def describe(self, session_id: str) -> dict[str, Any] | None:
        found = self.call("describeSessions", {"SessionIds": [session_id]})["Sessions"]
        assert len(found) <= 1
        return dict(found[0]) if found else None

    def wait(self, session_id: str, state: str | None) -> dict[str, Any]:
        """Wait for a state; None waits until it isn't listed any more."""
        seen: list[dict[str, Any]] = []

        def is_so() -> bool:
            session = self.describe(session_id)
            seen.append(session or {})
            return (session["State"] if session else None) == state

        try:
            until(is_so, seconds=self.target.patience)
        except AssertionError as error:
            raise AssertionError(f"it is not {state}: {seen[-1]}") from error
        return seen[-1]

    def ready(self, owner: str, **more: Any) -> str:
        """Create a session and return its id as soon as it is READY."""
        session_id = str(self.create(owner, **more)["Id"])
        self.wait(session_id, "READY")
        return session_id

    def delete(self, session_id: str, owner: str, **more: Any) -> None:
        item = {"SessionId": session_id, "Owner": owner, **more}
        answer = self.call("deleteSessions", [item])
        assert answer["UnsuccessfulList"] == [], answer

    def delete_all_of(self, owner: str) -> None:
        """End what an owner has left, so that the next test finds room."""
        filters = [{"Key": "owner", "Value": owner}]
        for session in self.call("describeSessions", {"Filters": filters})["Sessions"]:
            if session["State"] not in {"DELETING", "DELETED"}:
                item = {"SessionId": session["Id"], "Owner": owner}
                self.call("deleteSessions", [item])

    def connection(self, session_id: str, user: str) -> httpx.Response:
        path = f"/sessionConnectionData/{quote(session_id, safe='')}/{quote(user, safe='')}"
        return self.send("GET", path)

    def connection_data(self, session_id: str, user: str) -> dict[str, Any]:
        answer = self.connection(session_id, user)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    # Servers

    def servers(self) -> list[dict[str, Any]]:
        return list(self.call("describeServers", {})["Servers"])

    def server(self, server_id: str) -> dict[str, Any]:
        (found,) = self.call("describeServers", {"ServerIds": [server_id]})["Servers"]
        return dict(found)

    def availability(self, server_id: str) -> tuple[str, str | None]:
        server = self.server(server_id)
        return server["Availability"], server.get("UnavailabilityReason")

    def wait_available(self) -> list[str]:
        """Wait for servers that take sessions and return their ids."""
        found: list[str] = []

        def is_there() -> bool:
            servers = self.servers()
            found[:] = [one["Id"] for one in servers if one["Availability"] == "AVAILABLE"]
            return bool(found)

        until(is_there, seconds=self.target.patience)
        return found


@dataclass
class OwnFleet:
    """A broker that this suite has started, and the servers that it plays for it."""

    broker: LiveBroker
    agent_url: str
    log: Path
    _played: ExitStack = field(default_factory=ExitStack)

    @property
    def target(self) -> Target:
        return Target.of(self.broker)

    def play(self, **facts: Any) -> PlayedServer:
        """Enrol another server and link it; it is cut when the fleet, or its owner, is done."""
        server = self.enrol(**facts)
        self._played.enter_context(server)
        return server

    def enrol(self, **facts: Any) -> PlayedServer:
        name = facts.pop("name", f"played_{uuid.uuid4().hex[:12]}")
        told = some_facts(name, **{"tags": {"played": name}, **facts})
        return PlayedServer(self.agent_url, self.broker.ca_file, self._statement, told)

    @cached_property
    def _statement(self) -> str:
        return self.command("generate-software-statement").strip().splitlines()[-1]

    def command(self, *arguments: str) -> str:
        """Run a command of the broker's administrator."""
        done = subprocess.run(
            [
                *(sys.executable, "-m", "deskfleet", "broker"),
                *(*arguments, "--state", str(self.broker.state)),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def cut_all(self) -> None:
        self._played.close()


class Play(Protocol):
    """Plays a server with these facts, for as long as a test lasts."""

    def __call__(self, **facts: object) -> PlayedServer: ...


class Configured(Protocol):
    """Starts a fleet with settings of its own."""

    def __call__(self, **settings: object) -> tuple[OwnFleet, Api]: ...


def with_another_character(token: str) -> Iterator[str]:
    """Alter a token in one place after the other, the last one among them."""
    for at in {*range(0, len(token), 7), len(token) - 1}:
        other = "B" if token[at] == "A" else "A"
        yield token[:at] + other + token[at + 1 :]


def on(server: PlayedServer) -> dict[str, str]:
    """Return the requirements that place a session on a played server, and on no other."""
    return {"Requirements": f"tag:played = '{server.facts.tags['played']}'"}


@contextmanager
def own_fleet(
    folder: Path,
    settings: Mapping[str, object] | None = None,
    tags: str = "",
    driver: str = "simulated",
) -> Iterator[OwnFleet]:
    """Run `deskfleet up` with these settings of broker and agent; again in a folder to go on."""
    ports = free_ports(3)
    state = folder / "state"
    if tags:
        (state / "agent" / "tags").mkdir(parents=True, mode=0o700)
        (state / "agent" / "tags" / "tags.toml").write_text(tags)
    environment = {
        f"DESKFLEET_{name.upper()}": str(value) for name, value in (settings or {}).items()
    }
    chosen = ports[0], ports[1], ports[2]
    with up(state, driver=driver, ports=chosen, environment=environment) as (_program, broker):
        log = state / "deskfleet.log"
        fleet = OwnFleet(broker, f"https://localhost:{ports[1]}", log)
        try:
            yield fleet
        finally:
            fleet.cut_all()
