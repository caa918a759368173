"""A client that is generated from what the broker serves runs every example of the developer guide.

The client is made by OpenAPI Generator (Java) from the served description, once per description,
and each example runs in a process of its own, TLS verified. First the examples stand as they are
in the guide, about sessions and servers that nobody has; then they work on real ones.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import pytest
import requests
from PIL import Image

from support import openapi

API = openapi.description()
EXAMPLES = Path(__file__).with_name("guide_examples.py")
CACHE = Path(__file__).parents[2] / ".setup" / "generated-clients"
PACKAGE = "swagger_client"
OWNER = "user1"

# As they stand in the guide: (name, owner, type, init file, autorun file, its arguments,
# concurrent clients, OpenGL, permissions, requirements, storage root).
WINDOWS = "tag:os = 'windows' and server:Host.Memory.TotalBytes > 1024"
LINUX = "tag:os = 'linux'"
FILE, ROOT, SCRIPT = "/dcv/permissions.file", "/storage/root", "/dcv/script.sh"
ARGUMENTS = ["argument1", "argument2"]
# fmt: off
GUIDE_SESSIONS: list[list[Any]] = [
    ["session1", "user1", "CONSOLE", None, None, None, 1, None, FILE, WINDOWS, ROOT],
    ["session2", "user1", "VIRTUAL", None, "myapp.sh", None, 1, False, None, LINUX, None],
    ["session3", "user1", "VIRTUAL", SCRIPT, "myapp.sh", ARGUMENTS, 1, False, None, LINUX, None],
]
# fmt: on


class LiveBroker(Protocol):
    """What the `live_broker` fixture yields."""

    url: str
    ca_file: Path
    client_id: str
    client_password: str


def trusting(broker: LiveBroker) -> requests.Session:
    """Return a session that trusts the broker's CA alone, whatever the environment says."""
    web = requests.Session()
    web.trust_env = False
    web.verify = str(broker.ca_file)
    return web


class Caller:
    """Calls the API by hand, and holds every answer against the description."""

    def __init__(self, broker: LiveBroker) -> None:
        self._url = broker.url
        self._web = trusting(broker)
        token = self._web.post(
            f"{broker.url}/oauth2/token?grant_type=client_credentials",
            auth=(broker.client_id, broker.client_password),
            timeout=30,
        )
        assert token.status_code == 200, token.text
        self._web.headers["Authorization"] = f"Bearer {token.json()['access_token']}"

    def post(self, path: str, body: Any) -> Any:
        answer = self._web.post(f"{self._url}/{path}", json=body, timeout=30)
        assert answer.status_code == 200, answer.text
        name = f"{path[0].upper()}{path[1:]}Response"
        assert openapi.violations(API, answer.json(), name) == []
        return answer.json()

    def sessions(self) -> list[Any]:
        found: list[Any] = self.post("describeSessions", {})["Sessions"]
        return found

    def state(self, session_id: str) -> str | None:
        found = self.post("describeSessions", {"SessionIds": [session_id]})["Sessions"]
        return found[0]["State"] if found else None

    def idle_servers(self) -> list[str]:
        return [
            server["Id"]
            for server in self.post("describeServers", {})["Servers"]
            if server["Availability"] == "AVAILABLE"
            and server["ConsoleSessionCount"] + server["VirtualSessionCount"] == 0
        ]

    def close(self) -> None:
        self._web.close()

    def delete_all(self) -> None:
        alive = [each for each in self.sessions() if each["State"] not in ("DELETING", "DELETED")]
        self.post(
            "deleteSessions", [{"SessionId": each["Id"], "Owner": each["Owner"]} for each in alive]
        )


class Examples:
    """Runs functions of the guide on a generated client."""

    def __init__(self, client: Path, broker: LiveBroker) -> None:
        self._environment = {
            "PATH": os.environ.get("PATH", ""),
            "PYTHONPATH": str(client),
            "REQUESTS_CA_BUNDLE": str(broker.ca_file),
            "EXAMPLES_CLIENT_ID": broker.client_id,
            "EXAMPLES_CLIENT_SECRET": broker.client_password,
            "EXAMPLES_PROTOCOL_HOST_PORT": broker.url,
        }

    def run(self, call: str, *arguments: Any, **named: Any) -> dict[str, Any]:
        """Run one function; return the answer of each call that it made, by the call's name."""
        done = subprocess.run(
            [sys.executable, str(EXAMPLES)],
            input=json.dumps([[call, arguments, named]]),
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        shown = [json.loads(line) for line in done.stdout.splitlines()]
        return {each["call"]: each["answer"] for each in shown}


def generate(description: bytes) -> Path:
    """Make a client from a description, or find the one that was made of it before."""
    version = metadata.version("openapi-generator-cli")
    made = CACHE / hashlib.sha256(version.encode() + description).hexdigest()[:16]
    if made.exists():
        return made
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        source, target = Path(scratch) / "api.yaml", Path(scratch) / "client"
        source.write_bytes(description)
        run_generator(source, target)
        for other in target.iterdir():
            if other.name != PACKAGE:
                shutil.rmtree(other) if other.is_dir() else other.unlink()
        try:
            target.rename(made)
        except OSError:
            assert made.exists(), "another run made it first, or the folder can't be written"
    return made


def run_generator(source: Path, target: Path) -> None:
    program = str(Path(sys.executable).with_name("openapi-generator-cli"))
    options = ["-g", "python", "--package-name", PACKAGE, "-i", str(source), "-o", str(target)]
    done = subprocess.run(
        [program, "generate", *options],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " ERROR " not in done.stdout + done.stderr


def sent(request_data: dict[str, Any]) -> dict[str, Any]:
    """Return what a request had that came back; clients show nullable members that it lacks."""
    return {member: value for member, value in request_data.items() if value is not None}


def failures(answer: dict[str, Any], request: str) -> list[dict[str, Any]]:
    return [{**one, request: sent(one[request])} for one in answer["UnsuccessfulList"]]


def wait_for(what: str, condition: Callable[[], Any], seconds: float = 45) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.2)
    pytest.fail(f"waited {seconds} s for {what}")


@pytest.fixture
def served(live_broker: LiveBroker) -> bytes:
    url = f"{live_broker.url}/dcv-session-manager-api.yaml"
    with trusting(live_broker) as web:
        answer = web.get(url, timeout=30)
    assert answer.status_code == 200
    return answer.content


@pytest.fixture
def examples(served: bytes, live_broker: LiveBroker) -> Examples:
    return Examples(generate(served), live_broker)


@pytest.fixture
def caller(live_broker: LiveBroker) -> Iterator[Caller]:
    """A caller that finds an idle server, and ends all sessions when the test is over."""
    caller = Caller(live_broker)
    wait_for("an idle server", caller.idle_servers)
    yield caller
    caller.delete_all()
    caller.close()


@pytest.fixture
def ready(caller: Caller, examples: Examples) -> str:
    """Return the id of a READY session of user1 that the guide's own code has created."""
    wanted = ["a session name", OWNER, "VIRTUAL", None, None, None, 1, False, None, None, None]
    created = examples.run("create_sessions", [wanted])["create_sessions"]
    assert created["UnsuccessfulList"] == []
    session_id: str = created["SuccessfulList"][0]["Id"]
    wait_for("a READY session", lambda: caller.state(session_id) == "READY")
    return session_id


class TestAsTheyStand:
    def test_the_first_request_of_the_guide(self, examples: Examples) -> None:
        answer = examples.run(
            "describe_sessions",
            session_ids=["SessionId1895", "SessionId1897"],
            owner="an owner 1890",
            tags=[{"Key": "ram", "Value": "4gb"}],
        )["describe_sessions"]
        assert answer["Sessions"] == []
        assert answer["RequestId"]

    def test_create_sessions(self, caller: Caller, examples: Examples) -> None:
        answer = examples.run("create_sessions", GUIDE_SESSIONS)["create_sessions"]
        refused = [each["CreateSessionRequestData"] for each in answer["UnsuccessfulList"]]
        asked = {each["Name"]: each for each in answer["SuccessfulList"] + refused}
        assert sorted(asked) == ["session1", "session2", "session3"]
        assert {each["Owner"] for each in asked.values()} == {"user1"}
        assert {each["State"] for each in answer["SuccessfulList"]} <= {"CREATING"}
        assert all(each["FailureReason"] for each in answer["UnsuccessfulList"])

    def test_describe_servers(self, caller: Caller, examples: Examples) -> None:
        answer = examples.run("describe_servers", max_results=2)["describe_servers"]
        assert 1 <= len(answer["Servers"]) <= 2
        assert all(server["Host"]["Os"]["Family"] == "linux" for server in answer["Servers"])

    def test_describe_sessions(self, examples: Examples) -> None:
        answer = examples.run(
            "describe_sessions", owner="user1", tags=[{"Key": "os", "Value": "windows"}]
        )["describe_sessions"]
        assert answer["Sessions"] == []

    def test_delete_sessions(self, examples: Examples) -> None:
        wanted = [["SessionId123", "an owner user1"], ["SessionIdabc", "user99"]]
        answer = examples.run("delete_sessions", wanted)["delete_sessions"]
        reason = "The requested dcvSession does not exist"
        assert answer["SuccessfulList"] == []
        assert answer["UnsuccessfulList"] == [
            {"SessionId": "SessionId123", "FailureReason": reason},
            {"SessionId": "SessionIdabc", "FailureReason": reason},
        ]

    def test_get_session_connection_data(self, examples: Examples) -> None:
        call = "get_session_connection_data"
        answer = examples.run(call, "sessionId12345", "user1")[call]
        assert answer["status"] == 404
        assert list(json.loads(answer["body"])) == ["error"]

    def test_get_session_screenshots(self, examples: Examples) -> None:
        call = "get_session_screenshots"
        answer = examples.run(call, ["sessionId1", "sessionId2"], 800, 600)[call]
        assert answer["SuccessfulList"] == []
        assert {each["FailureReason"] for each in answer["UnsuccessfulList"]} == {
            "Dcv session not found."
        }
        assert answer["UnsuccessfulList"][1]["GetSessionScreenshotRequestData"] == {
            "SessionId": "sessionId2",
            "MaxWidth": 800,
            "MaxHeight": 600,
        }

    def test_close_servers_which_opens_them_again(self, examples: Examples) -> None:
        answers = examples.run("close_servers", ["serverId1", "serverId2"])
        unknown = {"FailureCode": "DCV_SERVER_NOT_FOUND", "FailureReason": "Dcv server not found."}
        for call, request in (
            ("close_servers", "CloseServerRequestData"),
            ("open_servers", "OpenServerRequestData"),
        ):
            assert answers[call]["SuccessfulList"] == []
            assert failures(answers[call], request) == [
                {request: {"ServerId": "serverId1"}, **unknown},
                {request: {"ServerId": "serverId2"}, **unknown},
            ]

    def test_open_servers(self, examples: Examples) -> None:
        answer = examples.run("open_servers", ["serverId1", "serverId2"])["open_servers"]
        assert len(answer["UnsuccessfulList"]) == 2

    def test_update_session_permissions(self, examples: Examples) -> None:
        call = "update_session_permissions"
        wanted = ["SessionId1897", "an owner 1890", "file_base64_encoded"]
        answer = examples.run(call, [wanted])[call]
        assert answer["SuccessfulList"] == []
        assert [each["SessionId"] for each in answer["UnsuccessfulList"]] == ["SessionId1897"]


class TestEntriesThatLackWhatTheyNeed:
    """They come back as they were sent: no client may find that impossible."""

    def test_create_sessions(self, caller: Caller, examples: Examples) -> None:
        nothing = [None] * 11
        answer = examples.run("create_sessions", [nothing])["create_sessions"]
        assert failures(answer, "CreateSessionRequestData") == [
            {"CreateSessionRequestData": {}, "FailureReason": "Name is required."}
        ]

    def test_get_session_screenshots(self, examples: Examples) -> None:
        call = "get_session_screenshots"
        (failure,) = examples.run(call, [None])[call]["UnsuccessfulList"]
        assert sent(failure["GetSessionScreenshotRequestData"]) == {}

    def test_close_and_open_servers(self, examples: Examples) -> None:
        answers = examples.run("close_servers", [None])
        (not_closed,) = answers["close_servers"]["UnsuccessfulList"]
        (not_opened,) = answers["open_servers"]["UnsuccessfulList"]
        assert sent(not_closed["CloseServerRequestData"]) == {}
        assert sent(not_opened["OpenServerRequestData"]) == {}


class TestOnASession:
    def test_it_is_described_whole(self, ready: str, caller: Caller, examples: Examples) -> None:
        call = "describe_sessions"
        (session,) = examples.run(call, session_ids=[ready], owner=OWNER)[call]["Sessions"]
        assert session["Name"] == "a session name"
        assert session["State"] == "READY"
        assert session["NumOfConnections"] == 0
        assert session["Server"]["Port"].isdigit()
        assert session["Server"]["Endpoints"][0]["Protocol"] == "HTTP"
        servers = examples.run("describe_servers", [session["Server"]["Id"]])["describe_servers"]
        assert servers["Servers"][0]["VirtualSessionCount"] == 1
        assert examples.run(call, [ready], owner="an owner 1890")[call]["Sessions"] == []

    def test_there_is_a_url_to_connect(self, ready: str, examples: Examples) -> None:
        answers = examples.run("get_session_connection_data", ready, "DOMAIN\\user 1/2")
        data = answers["get_session_connection_data"]
        server, token = data["Session"]["Server"], data["ConnectionToken"]
        assert answers["get_url_to_connect"] == (
            f"https://{server['Ip']}:{server['Port']}{server['WebUrlPath']}"
            f"?authToken={token}#{ready}"
        )
        assert len(token.split(".")) == 3
        assert data["Session"]["State"] == "READY"

    def test_a_picture_of_it_fits_the_sizes(self, ready: str, examples: Examples) -> None:
        call = "get_session_screenshots"
        answer = examples.run(call, [ready, "sessionId2"], 80, 60)[call]
        shot = answer["SuccessfulList"][0]["SessionScreenshot"]
        image = shot["Images"][0]
        with Image.open(io.BytesIO(base64.b64decode(image["Data"], validate=True))) as picture:
            assert (picture.format or "").lower() == image["Format"]
            assert picture.width <= 80
            assert picture.height <= 60
        assert shot["SessionId"] == ready
        assert [each["Primary"] for each in shot["Images"]].count(True) == 1
        assert len(answer["UnsuccessfulList"]) == 1

    def test_a_picture_without_sizes_is_taken_too(self, ready: str, examples: Examples) -> None:
        call = "get_session_screenshots"
        assert len(examples.run(call, [ready])[call]["SuccessfulList"]) == 1

    def test_its_permissions_are_replaced(self, ready: str, examples: Examples) -> None:
        call = "update_session_permissions"
        text = base64.b64encode(b"[permissions]\n%owner% allow builtin\n").decode()
        answer = examples.run(call, [[ready, OWNER, text]])[call]
        assert answer["UnsuccessfulList"] == []
        assert answer["SuccessfulList"] == [{"SessionId": ready}]

    def test_only_its_owner_can_delete_it(
        self, ready: str, caller: Caller, examples: Examples
    ) -> None:
        call = "delete_sessions"
        assert examples.run(call, [[ready, "user99"]])[call]["SuccessfulList"] == []
        answer = examples.run(call, [[ready, OWNER]])[call]
        assert answer["SuccessfulList"] == [{"SessionId": ready, "State": "DELETING"}]
        wait_for("the end of it", lambda: caller.state(ready) in ("DELETED", None))

    def test_a_busy_server_is_not_closed(
        self, ready: str, caller: Caller, examples: Examples
    ) -> None:
        (session,) = caller.post("describeSessions", {"SessionIds": [ready]})["Sessions"]
        answers = examples.run("close_servers", [session["Server"]["Id"]])
        (failure,) = answers["close_servers"]["UnsuccessfulList"]
        assert sent(failure["CloseServerRequestData"]) == {"ServerId": session["Server"]["Id"]}
        assert failure["FailureCode"]


def test_an_idle_server_is_closed_and_opened(caller: Caller, examples: Examples) -> None:
    server_id = wait_for("an idle server", caller.idle_servers)[0]
    answers = examples.run("close_servers", [server_id, "serverId2"])
    for call in ("close_servers", "open_servers"):
        assert answers[call]["SuccessfulList"] == [{"ServerId": server_id}]
        assert len(answers[call]["UnsuccessfulList"]) == 1
    wait_for("the server", lambda: server_id in caller.idle_servers())
