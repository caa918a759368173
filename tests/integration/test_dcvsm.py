"""`dcvsm` as a shell runs it: against deskfleet's broker, and against one that is not."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deskfleet import __version__
from deskfleet.cli import dcvsm as program
from deskfleet.cli.dcvsm_commands import COMMANDS
from deskfleet.client.api import Client
from deskfleet.client.tokens import ClientPassword
from support.programs import LiveBroker
from support.scripted_broker import TOKEN, TOKEN_PATH, Answer, ScriptedBroker, scripted_broker
from support.waiting import until

DCVSM = [sys.executable, "-m", "deskfleet.cli.dcvsm"]
PASSWORD = "guarded-password"
PERMISSIONS = "[permissions]\n%owner% allow builtin\n"
ENCODED = base64.b64encode(PERMISSIONS.encode()).decode()


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Dcvsm = Callable[..., Ended]
"""Runs a command line in an environment that holds the keywords and nothing of this machine's."""


def environment(home: Path, more: Mapping[str, str]) -> dict[str, str]:
    mine = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DCV_SM_", "XDG_CONFIG_HOME", "HTTPS_PROXY", "HTTP_PROXY"))
    }
    return {**mine, "HOME": str(home), **more}


@pytest.fixture
def dcvsm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Dcvsm:
    """Run the program in this process, which is fast; a few tests run it as one of its own."""

    def run(*arguments: str, **more: str) -> Ended:
        with monkeypatch.context() as patch:
            patch.setattr(os, "environ", environment(tmp_path, more))
            patch.setattr(sys, "argv", ["dcvsm", *arguments])
            with pytest.raises(SystemExit) as ended:
                program.main()
        out, err = capsys.readouterr()
        code = ended.value.code
        return Ended(code if isinstance(code, int) else 0, out, err)

    return run


def as_a_process(home: Path, *arguments: str, **more: str) -> Ended:
    done = subprocess.run(
        [*DCVSM, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
        env=environment(home, more),
    )
    return Ended(done.returncode, done.stdout, done.stderr)


# Against deskfleet's own broker, as the documentation sets dcvsm up: with its file.


@pytest.fixture
def conf(live_broker: LiveBroker, tmp_path: Path) -> str:
    path = tmp_path / "dcvsmcli.conf"
    path.write_text(
        f"[security]\nca-bundle = {live_broker.ca_file}\n"
        f"[authentication]\nclient-id = {live_broker.client_id}\n"
        f"client-password = {live_broker.client_password}\n"
        f"[broker]\nurl = {live_broker.url}\n"
    )
    return str(path)


@pytest.fixture
def client(live_broker: LiveBroker) -> Iterator[Client]:
    credentials = ClientPassword(live_broker.client_id, live_broker.client_password)
    with Client(live_broker.url, credentials=credentials, ca_file=live_broker.ca_file) as opened:
        yield opened


@pytest.fixture
def session(conf: str, dcvsm: Dcvsm, client: Client) -> Iterator[str]:
    """Yield the id of a READY session of ada."""
    made = dcvsm(*("--conf", conf, "create-session", "--name", "cad"), *ADA, "--type", "virtual")
    assert made.code == 0, made.err
    id: str = made.json["successful_list"][0]["id"]
    ready = client.wait_for(id, "READY", 20)
    assert ready is not None
    assert ready.state == "READY"
    yield id
    dcvsm("--conf", conf, "delete-session", "--session-id", id, *ADA)
    client.wait_for(id, "DELETED", 20)


ADA = ("--owner", "ada")


def test_a_session_is_created_with_all_options_and_deleted(
    conf: str, dcvsm: Dcvsm, client: Client, tmp_path: Path
) -> None:
    file = tmp_path / "own.perm"
    file.write_text(PERMISSIONS)
    made = dcvsm(
        *("--conf", conf, "create-session", "--name", "life", *ADA, "--type", "Virtual"),
        *("--max-concurrent-clients", "100", "--permissions-file", str(file)),
        *("--requirements", "server:Host.Os.Family = 'linux'", "--enqueue-request"),
        *("--autorun-file", "run.sh", "--autorun-file-arguments", "a,b", "--storage-root", "/s"),
        *("--init-file-path", "init.sh", "--dcv-gl-enabled"),
    )
    assert made.code == 0, made.err
    assert made.err == ""
    (told,) = made.json["successful_list"]
    assert list(made.json) == ["request_id", "successful_list", "unsuccessful_list"]
    assert (told["state"], told["owner"], told["type"]) == ("CREATING", "ada", "VIRTUAL")
    id = told["id"]
    ready = client.wait_for(id, "READY", 20)
    assert ready is not None
    assert (ready.state, ready.max_concurrent_clients, ready.storage_root) == ("READY", 100, "/s")

    gone = dcvsm("--conf", conf, "delete-session", "--session-id", id, *ADA, "--force")
    assert gone.code == 0, gone.err
    assert gone.json["successful_list"] == [{"session_id": id, "state": "DELETING"}]
    again = dcvsm("--conf", conf, "delete-session", "--session-id", "none", *ADA)
    assert again.code == 254
    assert again.json["unsuccessful_list"] == [
        {"session_id": "none", "failure_reason": "The requested dcvSession does not exist"}
    ]
    assert again.err == "dcvsm: none: The requested dcvSession does not exist\n"


def test_sessions_are_described_by_id_owner_and_page(
    conf: str, dcvsm: Dcvsm, session: str, client: Client
) -> None:
    describe = ("--conf", conf, "describe-sessions")
    one = dcvsm(*describe, "--session-ids", f"{session},nobody").json
    assert [each["id"] for each in one["sessions"]] == [session]
    (seen,) = client.sessions(session_ids=[session])
    assert seen.creation_time is not None
    assert one["sessions"][0]["creation_time"] == seen.creation_time.isoformat(
        "T", "milliseconds"
    ).replace("+00:00", "Z")
    assert dcvsm(*describe, "--owner", "nobody").json["sessions"] == []
    assert session in {each["id"] for each in dcvsm(*describe, *ADA).json["sessions"]}

    dcvsm("--conf", conf, "create-session", "--name", "b", *ADA, "--type", "VIRTUAL")
    first = dcvsm(*describe, "--max-results", "1").json
    assert len(first["sessions"]) == 1
    rest = dcvsm(*describe, "--max-results", "1000", "--next-token", first["next_token"]).json
    assert rest["next_token"] is None
    ids = [each["id"] for each in (*first["sessions"], *rest["sessions"])]
    assert sorted(ids) == sorted(each.id for each in client.sessions())


def test_servers_are_described_closed_and_opened(conf: str, dcvsm: Dcvsm) -> None:
    start = ("--conf", conf)
    (server,) = dcvsm(*start, "describe-servers", "--max-results", "1").json["servers"]
    id = server["id"]
    assert server["availability"] == "AVAILABLE"
    assert server["host"]["os"]["family"] == "linux"
    try:
        closed = dcvsm(*start, "close-servers", "--server-ids", id, "--force")
        assert (closed.code, closed.json["successful_list"]) == (0, [{"server_id": id}])
        (seen,) = dcvsm(*start, "describe-servers", "--server-ids", id).json["servers"]
        assert seen["unavailability_reason"] == "SERVER_CLOSED"
        refused = dcvsm(*start, "create-session", "--name", "late", *ADA, "--type", "CONSOLE")
        assert refused.code == 254
        (failed,) = refused.json["unsuccessful_list"]
        assert failed["create_session_request_data"]["name"] == "late"
        assert refused.err == f"dcvsm: late: {failed['failure_reason']}\n"
    finally:
        opened = dcvsm(*start, "open-servers", "--server-ids", f"{id},nobody")
    assert opened.code == 254
    assert opened.json["successful_list"] == [{"server_id": id}]
    assert opened.json["unsuccessful_list"] == [
        {
            "open_server_request_data": {"server_id": "nobody"},
            "failure_code": "DCV_SERVER_NOT_FOUND",
            "failure_reason": "Dcv server not found.",
        }
    ]
    assert dcvsm(*start, "describe-servers").json["servers"][0]["availability"] == "AVAILABLE"


def test_connection_data_holds_the_token_and_debug_does_not(
    conf: str, dcvsm: Dcvsm, session: str, live_broker: LiveBroker
) -> None:
    asked = ("get-session-connection-data", "--session-id", session, "--user", "bea")
    told = dcvsm("--conf", conf, "--debug", *asked)
    assert told.code == 0, told.err
    assert list(told.json) == ["session", "connection_token"]
    assert told.json["connection_token"].count(".") == 2
    assert told.json["session"]["id"] == session
    assert "/sessionConnectionData/" in told.err
    head, body, signature = told.json["connection_token"].split(".")
    for secret in (live_broker.client_password, head, body, signature):
        assert secret not in told.err
    missing = dcvsm("--conf", conf, *asked[:1], "--session-id", "none/../x", "--user", "bea")
    assert missing.code == 254
    assert missing.out == ""


def test_screenshots_are_printed(conf: str, dcvsm: Dcvsm, session: str) -> None:
    told = dcvsm(
        *("--conf", conf, "get-session-screenshots", "--session-ids", f"{session},nobody"),
        *("--max-width", "40", "--max-height", "30"),
    )
    assert told.code == 254
    (done,) = told.json["successful_list"]
    assert done["session_screenshot"]["session_id"] == session
    image = done["session_screenshot"]["images"][0]
    assert list(image) == ["format", "data", "creation_time", "primary"]
    assert base64.b64decode(image["data"]).startswith(b"\x89PNG")
    (failed,) = told.json["unsuccessful_list"]
    assert failed["get_session_screenshot_request_data"]["session_id"] == "nobody"


def test_permissions_are_replaced_by_a_file_or_its_base64(
    conf: str, dcvsm: Dcvsm, session: str, tmp_path: Path
) -> None:
    file = tmp_path / "own.perm"
    file.write_text(PERMISSIONS)
    update = ("--conf", conf, "update-session-permissions", "--session-id", session, *ADA)
    for option, value in (("--permission-file", str(file)), ("--permissions-file", ENCODED)):
        done = dcvsm(*update, option, value)
        assert done.code == 0, done.err
        assert done.json["successful_list"] == [{"session_id": session}]
    file.write_text("[permissions]\nnonsense\n")
    assert dcvsm(*update, "--permission-file", str(file)).code == 254
    assert dcvsm(*update, "--permission-file", str(tmp_path / "none!")).code == 252


def test_the_environment_is_enough(dcvsm: Dcvsm, live_broker: LiveBroker) -> None:
    flags = ("--broker-url", live_broker.url, "--ca-bundle", str(live_broker.ca_file))
    known = {"DCV_SM_CLIENT_ID": live_broker.client_id}
    lacking = dcvsm(*flags, "describe-servers", **known)
    assert lacking.code == 253
    assert "DCV_SM_CLIENT_PASSWORD" in lacking.err
    known["DCV_SM_CLIENT_PASSWORD"] = live_broker.client_password
    known["DCV_SM_AUTH_SERVER_URL"] = live_broker.url
    assert dcvsm(*flags, "describe-servers", **known).code == 0
    wrong = dcvsm(*flags, "describe-servers", **{**known, "DCV_SM_CLIENT_PASSWORD": PASSWORD})
    assert wrong.code == 253
    assert PASSWORD not in wrong.err
    refused = dcvsm(*flags, "describe-servers", DCV_SM_OAUTH2_TOKEN="no-token-at-all")
    assert refused.code == 253
    assert "no-token-at-all" not in refused.err


def test_an_unknown_authority_is_not_trusted_unless_said_so(
    dcvsm: Dcvsm, conf: str, tmp_path: Path
) -> None:
    lines = [line for line in Path(conf).read_text().splitlines() if "ca-bundle" not in line]
    Path(conf).write_text("\n".join(lines))
    refused = dcvsm("--conf", conf, "describe-servers")
    assert refused.code == 255
    assert "certificate is not trusted" in refused.err
    warned = dcvsm("--conf", conf, "--no-verify-ssl", "describe-servers")
    assert warned.code == 0
    assert warned.err.startswith("dcvsm: warning: the broker's certificate is not checked")


# Against a broker that is not deskfleet's.


@pytest.fixture(scope="module")
def script() -> Iterator[ScriptedBroker]:
    with scripted_broker() as broker:
        yield broker


@pytest.fixture
def foreign(script: ScriptedBroker) -> ScriptedBroker:
    script.granted()
    return script


def known(foreign: ScriptedBroker) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the options and the environment that reach the broker."""
    return ("--broker-url", foreign.url), {
        "DCV_SM_CLIENT_ID": "id",
        "DCV_SM_CLIENT_PASSWORD": PASSWORD,
    }


CREATE = ("create-session", "--name", "n", "--owner", "o")
VIRTUAL = {"Name": "n", "Owner": "o", "Type": "VIRTUAL"}
REQUESTS: list[tuple[tuple[str, ...], str, str, Any]] = [
    (("describe-sessions",), "POST", "/describeSessions", {}),
    (
        ("describe-sessions", "--session-ids", "a, b", "--owner", "o", "--max-results", "1"),
        "POST",
        "/describeSessions",
        {"SessionIds": ["a", "b"], "Filters": [{"Key": "owner", "Value": "o"}], "MaxResults": 1},
    ),
    (
        ("describe-sessions", "--next-token", "t", "--max-results=1000"),
        "POST",
        "/describeSessions",
        {"NextToken": "t", "MaxResults": 1000},
    ),
    (
        ("describe-servers", "--server-ids", "a", "--next-token", "t", "--max-results", "2"),
        "POST",
        "/describeServers",
        {"ServerIds": ["a"], "NextToken": "t", "MaxResults": 2},
    ),
    ((*CREATE, "--type", "Virtual"), "POST", "/createSessions", [VIRTUAL]),
    ((*CREATE, "--type", "console"), "POST", "/createSessions", [{**VIRTUAL, "Type": "CONSOLE"}]),
    (
        (*CREATE, "--type", "VIRTUAL", "--enqueue-request", "--dcv-gl-enabled"),
        "POST",
        "/createSessions",
        [{**VIRTUAL, "EnqueueRequest": True, "DcvGlEnabled": True}],
    ),
    (
        (*CREATE, "--enqueue-request", "False", "--type", "VIRTUAL"),
        "POST",
        "/createSessions",
        [{**VIRTUAL, "EnqueueRequest": False}],
    ),
    (
        (*CREATE, "--type", "VIRTUAL", "--enqueue-request=true"),
        "POST",
        "/createSessions",
        [{**VIRTUAL, "EnqueueRequest": True}],
    ),
    (
        (
            *(*CREATE, "--type", "VIRTUAL", "--autorun-file", "f", "--init-file-path", "i"),
            *("--autorun-file-arguments", 'a,"b,c"', "--max-concurrent-clients", "1"),
            *("--permissions-file", ENCODED, "--requirements", "tag:a = 'b'"),
            *("--storage-root", "/s"),
        ),
        "POST",
        "/createSessions",
        [
            {
                **VIRTUAL,
                "AutorunFile": "f",
                "InitFilePath": "i",
                "AutorunFileArguments": ["a", "b,c"],
                "MaxConcurrentClients": 1,
                "PermissionsFile": ENCODED,
                "Requirements": "tag:a = 'b'",
                "StorageRoot": "/s",
            }
        ],
    ),
    (
        ("delete-session", "--session-id", "a", "--owner", "o"),
        "POST",
        "/deleteSessions",
        [{"SessionId": "a", "Owner": "o"}],
    ),
    (
        ("delete-session", "--session-id", "a", "--owner", "o", "--force"),
        "POST",
        "/deleteSessions",
        [{"SessionId": "a", "Owner": "o", "Force": True}],
    ),
    (
        ("get-session-connection-data", "--session-id", "a/b", "--user", "D\\u x"),
        "GET",
        "/sessionConnectionData/a%2Fb/D%5Cu%20x",
        "",
    ),
    (
        ("get-session-screenshots", "--session-ids", "a,b", "--max-width", "7"),
        "POST",
        "/getSessionScreenshots",
        [{"SessionId": "a", "MaxWidth": 7}, {"SessionId": "b", "MaxWidth": 7}],
    ),
    (
        ("get-session-screenshots", "--session-ids", "a", "--max-height", "7"),
        "POST",
        "/getSessionScreenshots",
        [{"SessionId": "a", "MaxHeight": 7}],
    ),
    (
        ("open-servers", "--server-ids", "a,b"),
        "POST",
        "/openServers",
        [{"ServerId": "a"}, {"ServerId": "b"}],
    ),
    (("close-servers", "--server-ids", "a"), "POST", "/closeServers", [{"ServerId": "a"}]),
    (
        ("close-servers", "--server-ids", "a", "--force"),
        "POST",
        "/closeServers",
        [{"ServerId": "a", "Force": True}],
    ),
    (
        (
            *("update-session-permissions", "--session-id", "a", "--owner", "o"),
            *("--permission-file", ENCODED),
        ),
        "PUT",
        "/sessionPermissions",
        [{"SessionId": "a", "Owner": "o", "PermissionsFile": ENCODED}],
    ),
]


@pytest.mark.parametrize(
    ("arguments", "method", "path", "body"), REQUESTS, ids=lambda each: str(each)[:60]
)
def test_a_command_makes_this_request_and_no_other(
    arguments: tuple[str, ...],
    method: str,
    path: str,
    body: Any,
    dcvsm: Dcvsm,
    foreign: ScriptedBroker,
) -> None:
    foreign.answers[path] = Answer({"RequestId": "r", "NewThing": {"Deep": 1}})
    options, variables = known(foreign)
    ended = dcvsm(*options, *arguments, **variables)
    assert ended.code == 0, ended.err
    (token, call) = foreign.asked
    assert (token.method, token.path) == ("POST", f"{TOKEN_PATH}?grant_type=client_credentials")
    basic = base64.b64encode(f"id:{PASSWORD}".encode()).decode()
    assert token.authorization == f"Basic {basic}"
    assert call.authorization == f"Bearer {TOKEN}"
    assert (call.method, call.path, call.body) == (method, path, body)
    assert ended.json["request_id"] == "r"
    assert ended.json["new_thing"] == {"deep": 1}


def test_every_command_is_asked_above() -> None:
    commands = {command.__name__.replace("_", "-") for command in COMMANDS}
    assert {arguments[0] for arguments, *_ in REQUESTS} == commands


def test_a_ready_token_skips_the_token_request(dcvsm: Dcvsm, foreign: ScriptedBroker) -> None:
    foreign.answers["/describeServers"] = Answer()
    options, variables = known(foreign)
    assert dcvsm(*options, "describe-servers", **variables, DCV_SM_OAUTH2_TOKEN="mine").code == 0
    (call,) = foreign.asked
    assert call.authorization == "Bearer mine"


def test_tokens_come_from_the_server_that_is_named(dcvsm: Dcvsm, foreign: ScriptedBroker) -> None:
    foreign.answers["/describeServers"] = Answer()
    foreign.answers["/own"] = Answer({"access_token": "another"})
    options, variables = known(foreign)
    for name in ("--auth-server", "--auth-server-url"):
        foreign.asked.clear()
        told = dcvsm(*options, name, f"{foreign.url}/own", "describe-servers", **variables)
        assert told.code == 0, told.err
        token, call = foreign.asked
        assert (token.path, token.body) == ("/own", "grant_type=client_credentials")
        assert call.authorization == "Bearer another"


ECHO = {"echo": f"Bearer {TOKEN} and {PASSWORD}"}


@pytest.mark.parametrize(
    ("path", "answer", "code", "said"),
    [
        (TOKEN_PATH, Answer({"error": "unauthorized_client"}, 400), 253, "unauthorized_client"),
        (TOKEN_PATH, Answer({"error": "no"}, 401), 253, "client credentials: no"),
        (TOKEN_PATH, Answer("no", 403), 253, "no"),
        (TOKEN_PATH, Answer("no", 500), 254, "no"),
        (TOKEN_PATH, Answer("<html>"), 255, "can't be read"),
        (TOKEN_PATH, Answer({}), 255, "can't be read"),
        (TOKEN_PATH, Answer({}, 307, {"Location": "/elsewhere"}), 254, "not followed"),
        ("/describeServers", Answer({"error": "bad"}, 400), 254, "bad"),
        ("/describeServers", Answer({"error": "who"}, 401), 253, "who"),
        ("/describeServers", Answer({"error": "not you"}, 403), 254, "not you"),
        ("/describeServers", Answer("gone", 404), 254, "gone"),
        ("/describeServers", Answer("", 503), 254, "HTTP 503"),
        ("/describeServers", Answer("{"), 255, "not JSON"),
        ("/describeServers", Answer([]), 255, "not a JSON object"),
        ("/describeServers", Answer({"UnsuccessfulList": [{}]}), 254, "refused"),
        ("/describeServers", Answer({"UnsuccessfulList": None}), 0, ""),
        ("/describeServers", Answer({}, 302, {"Location": "/elsewhere"}), 254, "not followed"),
        ("/describeServers", Answer({}, 308, {"Location": "//other"}), 254, "not followed"),
        ("/describeServers", Answer({"error": json.dumps(ECHO)}, 400), 254, "***"),
    ],
)
@pytest.mark.parametrize("flags", [(), ("--debug",)])
def test_every_answer_has_its_code_and_shows_no_secret(
    path: str,
    answer: Answer,
    code: int,
    said: str,
    flags: tuple[str, ...],
    dcvsm: Dcvsm,
    foreign: ScriptedBroker,
) -> None:
    foreign.answers[path] = answer
    options, variables = known(foreign)
    ended = dcvsm(*flags, *options, "describe-servers", **variables)
    assert ended.code == code, ended.err
    assert said in ended.err
    for secret in (PASSWORD, TOKEN, base64.b64encode(f"id:{PASSWORD}".encode()).decode()):
        assert secret not in ended.err
    assert "Traceback" not in ended.err
    assert all("elsewhere" not in each.path for each in foreign.asked)
    assert bool(flags) == ("debug: >" in ended.err)


BROKER = ("--broker-url", "https://127.0.0.1:1")
READY = {"DCV_SM_OAUTH2_TOKEN": TOKEN}


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "said"),
    [
        (("--conf", "/none/x.conf", "describe-servers"), {}, 1, "/none/x.conf can't be read"),
        (("--conf", "/dev/null/x", "describe-servers"), {}, 1, "can't be read"),
        (("--conf", __file__, "describe-servers"), {}, 1, "is corrupt: line 1"),
        ((), {}, 2, ""),
        (("none",), {}, 2, "none"),
        (("create-sesion",), {}, 2, "create-session"),
        (("--conf",), {}, 2, "--conf"),
        (("--client-password", PASSWORD, "describe-servers"), {}, 2, "--client-password"),
        (("describe-servers", "--broker-url", "x"), {}, 2, "--broker-url"),
        (("describe-servers", "extra"), {}, 2, "extra"),
        (("describe-servers", "--max-results", "0"), {}, 2, "--max-results"),
        (("describe-servers", "--max-results", "1001"), {}, 2, "--max-results"),
        (("describe-sessions", "--max-results", "x"), {}, 2, "--max-results"),
        (("describe-sessions", "--tag", "a=b"), {}, 2, "--tag"),
        ((*CREATE, "--type", "VIRTUAL", "--max-concurrent-clients", "101"), {}, 2, "101"),
        ((*CREATE, "--type", "VIRTUAL", "--max-concurrent-clients", "0"), {}, 2, "0"),
        (CREATE, {}, 2, "--type"),
        (CREATE[:3], {}, 2, "--owner"),
        (("delete-session", "--session-id", "a"), {}, 2, "--owner"),
        (("delete-session", "--owner", "a"), {}, 2, "--session-id"),
        (("get-session-connection-data", "--session-id", "a"), {}, 2, "--user"),
        (("get-session-screenshots",), {}, 2, "--session-ids"),
        (("get-session-screenshots", "--session-ids", "a", "--max-width", "0"), {}, 2, "width"),
        (("open-servers",), {}, 2, "--server-ids"),
        (("close-servers",), {}, 2, "--server-ids"),
        (("update-session-permissions", "--session-id", "a", *ADA), {}, 2, "--permission-file"),
        ((*CREATE, "--type", "tablet"), {}, 252, "tablet is neither CONSOLE nor VIRTUAL"),
        ((*CREATE, "--type", "VIRTUAL", "--enqueue-request", "maybe"), {}, 252, "maybe"),
        ((*CREATE, "--type", "VIRTUAL", "--permissions-file", "no!"), {}, 252, "no!"),
        ((*CREATE, "--type", "VIRTUAL", "--autorun-file-arguments", '"'), {}, 252, "commas"),
        (("open-servers", "--server-ids", ","), {}, 252, "names nothing"),
        (("describe-servers", "--server-ids", ""), {}, 252, "names nothing"),
        (("get-session-connection-data", "--session-id", "..", "--user", "u"), {}, 252, "'..'"),
        ((*BROKER, "delete-session", "--session-id", "\udcff", *ADA), READY, 252, "UTF-8"),
        (("--output-format", "xml", "describe-servers"), READY, 252, "--output-format"),
        (("--broker-url", "http://broker", "describe-servers"), READY, 252, "not an https URL"),
        ((*BROKER, "--ca-bundle", "/none", "describe-servers"), READY, 252, "--ca-bundle"),
        (("describe-servers",), READY, 253, "broker url is not set"),
        ((*BROKER, "describe-servers"), {}, 253, "client id is not set"),
        (
            (*BROKER, "describe-servers"),
            {"DCV_SM_CLIENT_ID": "a", "DCV_SM_CLIENT_PASSWORD": "b", "DCV_SM_AUTH_SERVER_URL": "x"},
            253,
            "DCV_SM_AUTH_SERVER_URL",
        ),
        ((*BROKER, "describe-servers"), {"DCV_SM_OAUTH2_TOKEN": "\udcff"}, 253, "UTF-8"),
        ((*BROKER, "describe-servers"), READY, 255, "can't be reached"),
        ((*BROKER, "--output-format", "JSON", "describe-servers"), READY, 255, "reached"),
    ],
)
def test_every_end_has_its_code_and_a_sentence(
    arguments: tuple[str, ...], variables: dict[str, str], code: int, said: str, dcvsm: Dcvsm
) -> None:
    ended = dcvsm(*arguments, **variables)
    assert ended.code == code, ended.err
    assert said in ended.err + ended.out
    assert "Traceback" not in ended.err
    if code != 2:
        assert ended.out == ""
        assert ended.err.startswith("dcvsm: ")
        assert ended.err.count("\n") == 1


def test_a_bug_ends_in_a_sentence_and_its_trace_is_for_debug(
    dcvsm: Dcvsm, foreign: ScriptedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError(f"with {PASSWORD}")

    monkeypatch.setattr("deskfleet.cli.dcvsm_call.members", broken)
    foreign.answers["/describeServers"] = Answer()
    options, variables = known(foreign)
    ended = dcvsm(*options, "describe-servers", **variables)
    assert (ended.code, ended.err) == (255, "dcvsm: unexpected: ZeroDivisionError: with ***\n")
    traced = dcvsm(*options, "--debug", "describe-servers", **variables)
    assert "Traceback" in traced.err
    assert PASSWORD not in traced.err


def test_help_looks_as_known_and_needs_no_configuration(dcvsm: Dcvsm) -> None:
    for flag in ("-h", "--help"):
        told = dcvsm("--conf", "/none", flag)
        assert told.code == 0
        assert told.out.startswith("Usage: dcvsm [OPTIONS] COMMAND [ARGS]...\n")
        one = dcvsm("--conf", "/none", "create-session", flag)
        assert one.code == 0
        assert one.out.startswith("Usage: dcvsm create-session [OPTIONS]\n")
    assert dcvsm("--version").out == f"dcvsm, version {__version__}\n"


# As a process of its own.


def test_an_interrupt_ends_it(foreign: ScriptedBroker, tmp_path: Path) -> None:
    foreign.answers["/describeServers"] = Answer(never=True)
    options, variables = known(foreign)
    with subprocess.Popen(
        [*DCVSM, *options, "describe-servers"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(tmp_path, variables),
    ) as running:
        try:
            until(lambda: foreign.calls)
            running.send_signal(signal.SIGINT)
            out, err = running.communicate(timeout=20)
        finally:
            running.kill()
    assert running.returncode == 130
    assert out == b""
    assert b"Traceback" not in err


def test_the_file_of_the_user_is_found(foreign: ScriptedBroker, tmp_path: Path) -> None:
    foreign.answers["/describeServers"] = Answer({"Servers": []})
    (tmp_path / ".config").mkdir()
    (tmp_path / ".config" / "dcvsmcli.conf").write_text(
        f"[output]\ndebug = true\n[authentication]\nclient-id = id\nclient-password = {PASSWORD}\n"
        f"[broker]\nurl = {foreign.url}\nulr = x\n"
    )
    ended = as_a_process(tmp_path, "describe-servers")
    assert ended.code == 0, ended.err
    assert ended.json == {"request_id": None, "servers": [], "next_token": None}
    assert "warning: " in ended.err
    assert "is url in [broker] meant?" in ended.err
    assert f"debug: client-password: {tmp_path}/.config/dcvsmcli.conf: " in ended.err
    assert PASSWORD not in ended.err


def test_an_answer_that_can_not_be_printed_is_told(foreign: ScriptedBroker, tmp_path: Path) -> None:
    foreign.answers["/describeServers"] = Answer()
    options, variables = known(foreign)
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*DCVSM, *options, "describe-servers"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
            env=environment(tmp_path, variables),
        )
    assert done.returncode == 255
    assert done.stderr.startswith("dcvsm: the answer can't be printed: ")
    assert "Traceback" not in done.stderr


def test_a_closed_output_is_one_that_nobody_wants(foreign: ScriptedBroker, tmp_path: Path) -> None:
    foreign.answers["/describeServers"] = Answer()
    options, variables = known(foreign)
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *DCVSM, *options, "describe-servers"],
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
        env=environment(tmp_path, variables),
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_installed_script_is_this_program() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["scripts"]["dcvsm"] == f"{program.__name__}:{program.main.__name__}"
