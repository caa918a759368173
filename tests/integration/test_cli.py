"""The commands, as a shell runs them, against a real broker with a real agent."""

from __future__ import annotations

import errno
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import pytest

from deskfleet.client.api import Client
from deskfleet.client.shapes import DeleteSessionRequestData
from deskfleet.client.tokens import ClientPassword
from support.fault_proxy import FaultProxy
from support.programs import LiveBroker
from support.waiting import until

DESKFLEET = [sys.executable, "-m", "deskfleet"]
NOWHERE = "https://127.0.0.1:1"
PERMIT_NONE = ["update-session-permissions", "x", "--permissions-file", "/none"]


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def environment(more: Mapping[str, str]) -> dict[str, str]:
    mine = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DCV_SM_", "DESKFLEET_", "NO_COLOR", "COLUMNS"))
    }
    return {**mine, "LOGNAME": "ada", **more}


def deskfleet(*arguments: str, **more: str) -> Ended:
    done = subprocess.run(
        [*DESKFLEET, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
        env=environment(more),
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def ended_with(stdout: IO[bytes], *arguments: str, **more: str) -> Ended:
    """Run a command that prints to this file."""
    done = subprocess.run(
        [*DESKFLEET, *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
        env=environment(more),
    )
    return Ended(done.returncode, "", done.stderr)


def on_a_terminal(*arguments: str, **more: str) -> tuple[int, str]:
    """Run a command on a terminal; return its code and everything it wrote there."""
    ours, theirs = pty.openpty()
    settings = environment({"TERM": "xterm", "COLUMNS": "100", **more})
    with subprocess.Popen(
        [*DESKFLEET, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=settings
    ) as program:
        os.close(theirs)
        written = b"".join(iter(lambda: _read(ours), b""))
        code = program.wait(timeout=60)
    os.close(ours)
    return code, written.decode()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError as error:
        if error.errno == errno.EIO:  # the last writer has closed the terminal
            return b""
        raise


@pytest.fixture
def state(live_broker: LiveBroker) -> dict[str, str]:
    return {"DESKFLEET_STATE": str(live_broker.state)}


@pytest.fixture
def client(live_broker: LiveBroker) -> Iterator[Client]:
    credentials = ClientPassword(live_broker.client_id, live_broker.client_password)
    with Client(live_broker.url, credentials=credentials, ca_file=live_broker.ca_file) as opened:
        yield opened


@pytest.fixture
def session(state: dict[str, str]) -> Iterator[str]:
    """Yield the id of a READY session of ada."""
    made = deskfleet("create-session", "--name", "cad", "--wait", **state)
    assert made.code == 0, made.err
    id: str = made.json["SuccessfulList"][0]["Id"]
    yield id
    deskfleet("delete-session", id, "--wait", **state)


def test_the_life_of_a_session(state: dict[str, str], client: Client) -> None:
    made = deskfleet(
        *("create-session", "--name", "life", "--type", "virtual"),
        *("--max-concurrent-clients", "3", "--requirements", "server:Host.Os.Family = 'linux'"),
        "--wait",
        **state,
    )
    assert made.code == 0, made.err
    (told,) = made.json["SuccessfulList"]
    assert (told["State"], told["Owner"], told["Type"]) == ("READY", "ada", "VIRTUAL")
    assert told["MaxConcurrentClients"] == 3
    id = told["Id"]

    listed = deskfleet("describe-sessions", "--session-ids", f"{id},nobody", **state)
    assert [each["Id"] for each in listed.json["Sessions"]] == [id]
    assert listed.json["Sessions"][0] == told

    gone = deskfleet("delete-session", "--session-id", id, "--owner", "ada", "--wait", **state)
    assert gone.code == 0, gone.err
    assert gone.json["SuccessfulList"] == [{"SessionId": id, "State": "DELETED"}]
    (seen,) = client.sessions(session_ids=[id])
    assert seen.state == "DELETED"


def test_sessions_are_listed_by_owner_tag_and_page(
    state: dict[str, str], session: str, client: Client
) -> None:
    deskfleet("create-session", "--name", "hers", "--owner", "bea", "--wait", **state)
    both = {each.id for each in client.sessions()}
    assert len(both) >= 2
    ada = deskfleet("describe-sessions", "--owner", "ada", **state).json["Sessions"]
    assert session in {each["Id"] for each in ada}
    assert {each["Owner"] for each in ada} == {"ada"}
    tagged = deskfleet("describe-sessions", session, "--tag", "driver=simulated", **state)
    assert len(tagged.json["Sessions"]) == 1
    assert deskfleet("describe-sessions", "--tag", "driver=none", **state).json["Sessions"] == []

    first = deskfleet("describe-sessions", "--max-results", "1", **state).json
    assert len(first["Sessions"]) == 1
    following = ("--max-results", "1000", "--next-token", first["NextToken"])
    rest = deskfleet("describe-sessions", *following, **state).json
    pages = [*first["Sessions"], *rest["Sessions"]]
    assert {each["Id"] for each in pages} == both
    for each in client.sessions(owner="bea"):
        deskfleet("delete-session", each.id, "--owner", "bea", **state)


def test_a_session_of_somebody_else_is_not_deleted(state: dict[str, str], session: str) -> None:
    ended = deskfleet("delete-session", session, "--owner", "bea", **state)
    assert ended.code == 254
    (failed,) = ended.json["UnsuccessfulList"]
    assert failed["SessionId"] == session
    assert ended.err == f"deskfleet: {session}: {failed['FailureReason']}\n"


def test_servers_are_listed_closed_and_opened(state: dict[str, str]) -> None:
    (server,) = deskfleet("describe-servers", **state).json["Servers"]
    id = server["Id"]
    assert server["Availability"] == "AVAILABLE"
    try:
        closed = deskfleet("close-servers", "--server-ids", id, "--force", **state)
        assert closed.code == 0, closed.err
        assert closed.json["SuccessfulList"] == [{"ServerId": id}]
        (seen,) = deskfleet("describe-servers", id, **state).json["Servers"]
        assert seen["UnavailabilityReason"] == "SERVER_CLOSED"
        refused = deskfleet("create-session", "--name", "late", "--wait", **state)
        assert refused.code == 254
        assert "no dcv server found" in refused.err.lower()
    finally:
        opened = deskfleet("open-servers", id, **state)
    assert opened.code == 0, opened.err
    (seen,) = deskfleet("describe-servers", id, **state).json["Servers"]
    assert seen["Availability"] == "AVAILABLE"
    unknown = deskfleet("open-servers", "nobody", **state)
    assert unknown.code == 254
    assert unknown.json["UnsuccessfulList"][0]["FailureCode"] == "DCV_SERVER_NOT_FOUND"


def test_the_link_lets_its_user_in(state: dict[str, str], session: str) -> None:
    by_id = deskfleet("connect", session, **state)
    assert by_id.code == 0, by_id.err
    split = urlsplit(by_id.out.strip())
    assert (split.scheme, split.fragment) == ("https", session)
    assert split.query.startswith("authToken=")
    by_name = deskfleet("connect", "cad", **state)
    assert urlsplit(by_name.out.strip()).fragment == session
    assert deskfleet("connect", "cad", "--user", "bea", **state).code == 254
    data = deskfleet("get-session-connection-data", session, "--user", "bea", **state).json
    assert data["Session"]["Id"] == session
    assert data["ConnectionToken"].count(".") == 2


def test_a_session_is_meant_by_its_name_where_it_is_the_users_own(
    state: dict[str, str], session: str, tmp_path: Path
) -> None:
    rules = tmp_path / "rules"
    rules.write_text("[permissions]\n%owner% allow builtin\n")
    shown = deskfleet("describe-sessions", "cad", **state).json["Sessions"]
    assert [each["Id"] for each in shown] == [session]
    data = deskfleet("get-session-connection-data", "cad", **state)
    assert data.json["Session"]["Id"] == session
    pictures = deskfleet("get-session-screenshots", "cad", "--folder", str(tmp_path), **state)
    assert pictures.out == f"{tmp_path / session}.png\n"
    changed = deskfleet(
        "update-session-permissions", "cad", "--permissions-file", str(rules), **state
    )
    assert changed.json["SuccessfulList"] == [{"SessionId": session}]
    for unknown in (("cad", "--owner", "bea"), ("--session-id", "cad"), ("CAD",)):
        refused = deskfleet("delete-session", *unknown, **state)
        assert refused.code == 254
        assert "does not exist" in refused.err
    gone = deskfleet("delete-session", "cad", "--wait", **state)
    assert gone.json["SuccessfulList"] == [{"SessionId": session, "State": "DELETED"}]
    # Its name is free again.
    assert deskfleet("connect", "cad", **state).code == 254


def test_of_sessions_with_one_name_none_is_meant(state: dict[str, str], session: str) -> None:
    twin = deskfleet("create-session", "--name", "cad", "--wait", **state)
    id = twin.json["SuccessfulList"][0]["Id"]
    for command in ("delete-session", "connect"):
        refused = deskfleet(command, "cad", **state)
        assert (refused.code, refused.out) == (254, "")
        assert "ada has 2 sessions with the name cad: " in refused.err
        assert session in refused.err
        assert id in refused.err
    assert deskfleet("delete-session", id, "--wait", **state).code == 0
    assert deskfleet("describe-sessions", "cad", **state).json["Sessions"][0]["Id"] == session


def test_the_link_is_opened_in_the_browser_without_being_its_argument(
    state: dict[str, str], session: str, tmp_path: Path
) -> None:
    """`webbrowser` runs what BROWSER names with the address as its argument."""
    note, browser = tmp_path / "note", tmp_path / "browser"
    browser.write_text(
        f"#!{sys.executable}\n"
        "import sys, httpx\n"
        "answer = httpx.get(sys.argv[1], trust_env=False, timeout=30)\n"
        f"open({str(note)!r}, 'w').write(sys.argv[1] + ' ' + answer.headers['location'])\n"
    )
    browser.chmod(0o700)
    opened = deskfleet("connect", session, "--browser", **state, BROWSER=f"{browser} %s")
    assert opened.code == 0, opened.err
    assert opened.err == ""
    until(lambda: note.exists() and note.read_text().endswith(session))
    argument, link = note.read_text().split(" ")
    assert link == opened.out.strip()
    assert "authToken" not in argument


def test_connecting_to_nothing_is_told(state: dict[str, str]) -> None:
    ended = deskfleet("connect", "nobody", **state)
    assert (ended.code, ended.out) == (254, "")
    assert ended.err == "deskfleet: there is no session nobody, nor has ada one of that name\n"


def test_connecting_to_what_was_deleted_is_told(state: dict[str, str], session: str) -> None:
    assert deskfleet("delete-session", session, "--wait", **state).code == 0
    ended = deskfleet("connect", session, **state)
    assert (ended.code, ended.out) == (254, "")
    assert ended.err == f"deskfleet: {session} is DELETED\n"


def test_screenshots_are_described_or_written(
    state: dict[str, str], session: str, tmp_path: Path
) -> None:
    described = deskfleet("get-session-screenshots", session, "--output", "table", **state)
    assert described.code == 0, described.err
    assert "png" in described.out
    folder = tmp_path / "new" / "folder"
    written = deskfleet(
        "get-session-screenshots",
        *("--session-ids", f"{session},nobody", "--max-width", "40", "--max-height", "40"),
        *("--folder", str(folder)),
        **state,
    )
    assert written.code == 254
    assert "nobody" in written.err
    assert written.out == f"{folder / session}.png\n"
    assert (folder / f"{session}.png").read_bytes().startswith(b"\x89PNG")


def test_permissions_are_a_file_or_its_base64(
    state: dict[str, str], session: str, tmp_path: Path
) -> None:
    file = tmp_path / "own.perm"
    file.write_text("[permissions]\n%owner% allow builtin\n")
    given = deskfleet(
        "update-session-permissions", session, "--permissions-file", str(file), **state
    )
    assert given.code == 0, given.err
    encoded = "W3Blcm1pc3Npb25zXQolb3duZXIlIGFsbG93IGJ1aWx0aW4K"
    again = ("update-session-permissions", "--session-id", session, "--permission-file", encoded)
    assert deskfleet(*again, **state).code == 0
    file.write_text("[permissions]\nnonsense\n")
    broken = deskfleet(
        "update-session-permissions", session, "--permission-file", str(file), **state
    )
    assert broken.code == 254
    missing = deskfleet(
        "update-session-permissions", session, "--permission-file", "/none!", **state
    )
    assert missing.code == 252


def test_waiting_gives_up_with_a_reason(state: dict[str, str], client: Client) -> None:
    ended = deskfleet(
        *("create-session", "--name", "queued", "--requirements", "tag:nowhere = 'x'"),
        *("--enqueue-request", "--wait", "--wait-seconds", "0.5"),
        **state,
    )
    (told,) = ended.json["SuccessfulList"]
    assert ended.code == 254
    assert f"{told['Id']} is CREATING: queued: No DCV server found" in ended.err
    deskfleet("delete-session", told["Id"], "--wait", **state)


def test_an_interrupt_ends_waiting(live_broker: LiveBroker, client: Client) -> None:
    arguments = ["create-session", "--name", "interrupted", "--requirements", "tag:nowhere = 'x'"]

    def queued() -> list[str]:
        return [
            each.id
            for each in client.sessions(owner="ada")
            if each.name == "interrupted" and each.state == "CREATING"
        ]

    port = urlsplit(live_broker.url).port
    assert port is not None
    with FaultProxy(port) as line:
        through_it = {
            "DESKFLEET_BROKER_URL": line.url,
            "DESKFLEET_CA_FILE": str(live_broker.ca_file),
            "DCV_SM_CLIENT_ID": live_broker.client_id,
            "DCV_SM_CLIENT_PASSWORD": live_broker.client_password,
        }
        with subprocess.Popen(
            [*DESKFLEET, *arguments, "--enqueue-request", "--wait"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(through_it),
        ) as program:
            try:
                until(queued)
                # What it sends now, it sends while it waits.
                sent = line.up.passed
                until(lambda: line.up.passed > sent)
                program.send_signal(signal.SIGINT)
                out, err = program.communicate(timeout=20)
            finally:
                program.kill()
    [waiting] = queued()
    client.delete_sessions([DeleteSessionRequestData(session_id=waiting, owner="ada")])
    assert program.returncode == 130
    assert b"Traceback" not in out + err
    assert err.decode() == f"deskfleet: {waiting} is not waited for any longer, and lives on\n"


def test_people_see_tables_colours_and_a_spinner(state: dict[str, str]) -> None:
    code, written = on_a_terminal("create-session", "--name", "seen", "--wait", **state)
    assert code == 0, written
    # By its first picture it may be there already.
    assert "seen: CREATING" in written or "seen: READY" in written
    assert "\x1b[32mREADY" in written
    code, written = on_a_terminal("describe-sessions", "--owner", "ada", NO_COLOR="1", **state)
    assert code == 0, written
    assert "READY" in written
    assert "\x1b[32m" not in written
    for each in deskfleet("describe-sessions", "--owner", "ada", **state).json["Sessions"]:
        deskfleet("delete-session", each["Id"], **state)


def test_an_old_terminal_gets_a_spinner_that_it_can_show(state: dict[str, str]) -> None:
    old = {"PYTHONIOENCODING": "ascii", **state}
    code, written = on_a_terminal("create-session", "--name", "seen", "--wait", **old)
    assert code == 0, written
    assert "seen: " in written
    assert "\\u28" not in written
    for each in deskfleet("describe-sessions", "--owner", "ada", **state).json["Sessions"]:
        deskfleet("delete-session", each["Id"], **state)


def test_programs_see_json_or_plain_tables(state: dict[str, str], session: str) -> None:
    table = deskfleet("describe-sessions", "--output", "table", **state)
    assert session in table.out
    assert "\x1b" not in table.out
    assert "Sessions" in deskfleet("describe-sessions", **state).json


def test_a_name_that_the_terminal_can_not_show_is_spelled_out(state: dict[str, str]) -> None:
    made = deskfleet("create-session", "--name", "Büro 日", "--wait", **state)
    id = made.json["SuccessfulList"][0]["Id"]
    old = {"PYTHONIOENCODING": "ascii", **state}
    assert deskfleet("describe-sessions", id, **old).json["Sessions"][0]["Name"] == "Büro 日"
    table = deskfleet("describe-sessions", id, "--output", "table", **old)
    assert r"B\u00fcro \u65e5" in table.out, table.err
    deskfleet("delete-session", id, **state)


@pytest.mark.parametrize("arguments", [["describe-servers"], ["--version"], ["connect", "-h"]])
def test_an_answer_that_can_not_be_printed_is_told(
    arguments: list[str], state: dict[str, str]
) -> None:
    with Path("/dev/full").open("wb") as full:
        done = ended_with(full, *arguments, **state)
    assert done.code == 255
    assert done.err == "deskfleet: the answer can't be printed: No space left on device\n"


def test_a_fleet_that_can_not_say_where_it_is_ends_with_the_reason(tmp_path: Path) -> None:
    ports = [part for each in ("client", "agent", "desktop") for part in (f"--{each}-port", "0")]
    with Path("/dev/full").open("wb") as full:
        done = ended_with(
            full, "up", "--driver", "simulated", "--state", str(tmp_path / "s"), *ports
        )
    assert done.code == 255
    assert done.err == "deskfleet: the answer can't be printed: No space left on device\n"


def test_who_reads_no_more_is_told_nothing(state: dict[str, str]) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with open(theirs, "wb") as left:  # noqa: PTH123 (a descriptor)
        done = ended_with(left, "describe-servers", **state)
    assert (done.code, done.err) == (1, "")


def test_a_closed_output_is_one_that_nobody_wants(state: dict[str, str]) -> None:
    shell = ["sh", "-c", '"$@" >&-', "sh", *DESKFLEET, "describe-servers"]
    done = subprocess.run(
        shell, stderr=subprocess.PIPE, check=False, timeout=60, env=environment(state)
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("arguments", "more"),
    [
        (["create-session", "--name", "B\udcfcro"], {}),
        (["get-session-connection-data", "\udcfc", "--user", "ada"], {}),
        (["describe-servers"], {"DCV_SM_CLIENT_ID": "\udcfc", "DCV_SM_CLIENT_PASSWORD": "x"}),
    ],
)
def test_bytes_that_are_no_text_are_told(
    arguments: list[str], more: dict[str, str], state: dict[str, str]
) -> None:
    ended = deskfleet(*arguments, **more, **state)
    assert ended.code == 252
    assert ended.err.startswith("deskfleet: a value on the command line or in the environment is ")
    assert "Traceback" not in ended.err


def test_the_environment_is_enough(live_broker: LiveBroker, tmp_path: Path) -> None:
    where = {
        "DESKFLEET_STATE": str(tmp_path),
        "DESKFLEET_BROKER_URL": live_broker.url,
        "DESKFLEET_CA_FILE": str(live_broker.ca_file),
        "DCV_SM_CLIENT_ID": live_broker.client_id,
    }
    assert deskfleet("describe-servers", **where).code == 253
    where["DCV_SM_CLIENT_PASSWORD"] = live_broker.client_password
    assert deskfleet("describe-servers", **where).code == 0
    where["DCV_SM_AUTH_SERVER_URL"] = (
        f"{live_broker.url}/oauth2/token?grant_type=client_credentials"
    )
    assert deskfleet("describe-servers", **where).code == 0
    wrong = deskfleet("describe-servers", **{**where, "DCV_SM_CLIENT_PASSWORD": "secret-guess"})
    assert wrong.code == 253
    assert "secret-guess" not in wrong.err


def test_a_ready_token_is_enough(live_broker: LiveBroker, tmp_path: Path) -> None:
    flags = ("--broker-url", live_broker.url, "--ca-bundle", str(live_broker.ca_file))
    refused = deskfleet(
        "describe-servers", *flags, "--state", str(tmp_path), DCV_SM_OAUTH2_TOKEN="none"
    )
    assert refused.code == 253
    assert "Traceback" not in refused.err


def test_a_certificate_of_a_stranger_is_refused(
    live_broker: LiveBroker, state: dict[str, str], tmp_path: Path
) -> None:
    strange = tmp_path / "strange.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-subj", "/CN=stranger", "-days", "1", "-keyout", os.devnull),
            *("-out", str(strange)),
        ],
        check=True,
        capture_output=True,
    )
    refused = deskfleet("describe-servers", "--ca-file", str(strange), **state)
    assert refused.code == 255
    assert "certificate is not trusted" in refused.err
    warned = deskfleet("describe-servers", "--ca-file", str(strange), "--no-verify-ssl", **state)
    assert warned.code == 0
    assert warned.err.startswith("deskfleet: warning: ")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["describe-sessions"], 253, "no broker is known here: start one with `deskfleet up`"),
        (["describe-sessions", "--broker-url", NOWHERE], 255, "can't be reached"),
        (["describe-sessions", "--broker-url", "http://broker"], 253, "not an https URL"),
        (["create-session", "--name", "x", "--type", "tablet"], 252, "tablet"),
        (["delete-session"], 252, "no id was given"),
        (["delete-session", "a", "--session-id", "b"], 252, "only one id"),
        (["describe-sessions", "--max-results", "0"], 2, "--max-results"),
        (["create-session"], 2, "--name"),
        (["create-sesion"], 2, "create-session"),
        (["describe-sessions", "--output", "xml"], 2, "xml"),
        (["describe-sessions", "--broker-url", NOWHERE], 255, "reached: Connection refused\n"),
        (PERMIT_NONE, 252, "/none is no permissions file, nor the base64 of one: No such file"),
        (["broker", "run", "--config", "/none"], 1, "/none can't be read: No such file"),
    ],
)
def test_every_end_has_its_code_and_a_sentence(
    arguments: list[str], code: int, said: str, tmp_path: Path
) -> None:
    settings = {"DESKFLEET_STATE": str(tmp_path), "DCV_SM_OAUTH2_TOKEN": "t"}
    if code == 252:
        settings["DESKFLEET_BROKER_URL"] = NOWHERE
    ended = deskfleet(*arguments, **settings)
    assert ended.code == code, ended.err
    assert said in ended.err
    assert "Traceback" not in ended.err


def test_a_command_loads_neither_broker_nor_agent() -> None:
    """It is what makes the commands start fast."""
    listing = "import sys; from deskfleet.cli.main import application; application([]); "
    asked = "print([name for name in sys.modules if name.startswith(('deskfleet.broker', "
    asked += "'deskfleet.agent', 'sqlalchemy', 'starlette', 'httpx', 'cryptography'))])"
    done = subprocess.run(
        [sys.executable, "-c", listing + asked], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_program_tells_its_version_and_commands() -> None:
    assert deskfleet("--version").out.startswith("deskfleet ")
    listed = deskfleet("--help").out
    for name in ("up", "broker", "agent", "connect", "create-session", "close-servers"):
        assert f"\n  {name} " in listed
