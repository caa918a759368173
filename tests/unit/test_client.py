"""The client: tokens, patience, paging, errors, and waiting; its broker is a scripted transport."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deskfleet.client.api import Client
from deskfleet.client.problems import (
    ClientError,
    CredentialsRefused,
    Refused,
    Unreachable,
    Unreadable,
)
from deskfleet.client.shapes import (
    CreateSessionRequestData,
    DeleteSessionRequestData,
    Session,
    UpdateSessionPermissionsRequestData,
)
from deskfleet.client.tokens import AccessToken, ClientPassword, Credentials
from deskfleet.client.transport import LONGEST_PAUSE, TRIES
from deskfleet.errors import SetupFailed

URL = "https://broker.example:8443"
PASSWORD = ClientPassword("id", "pass:word")
EMPTY = {"RequestId": "r", "Sessions": []}

Answer = httpx.Response | Exception


def session(id: str = "s1", state: str = "READY", **more: Any) -> dict[str, Any]:
    return {"Id": id, "Name": "n", "Owner": "ada", "Type": "VIRTUAL", "State": state, **more}


def described(*sessions: dict[str, Any], **more: Any) -> httpx.Response:
    return httpx.Response(200, json={"RequestId": "r", "Sessions": sessions, **more})


class Broker:
    """Answers API calls from a script (the last one for ever), and counts tokens."""

    def __init__(self, *script: Answer, life: int = 3600) -> None:
        self.script = list(script)
        self.calls: list[httpx.Request] = []
        self.bearers: list[str] = []
        self.token_requests: list[httpx.Request] = []
        self.token_answer: httpx.Response | None = None
        self.life = life

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/token"):
            return self._token(request)
        self.calls.append(request)
        self.bearers.append(request.headers["Authorization"].removeprefix("Bearer "))
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _token(self, request: httpx.Request) -> httpx.Response:
        self.token_requests.append(request)
        if self.token_answer is not None:
            return self.token_answer
        token = f"token-{len(self.token_requests)}"
        body = {"access_token": token, "token_type": "bearer", "expires_in": self.life}
        return httpx.Response(200, json=body)

    def body(self) -> Any:
        return json.loads(self.calls[-1].content)


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def time() -> Time:
    return Time()


Open = Callable[..., Client]


@pytest.fixture
def open_client(time: Time) -> Iterator[Open]:
    opened: list[Client] = []

    def open_(broker: Broker, credentials: Credentials = PASSWORD, url: str = URL) -> Client:
        client = Client(
            url,
            credentials=credentials,
            monotonic=time.monotonic,
            sleep=time.sleep,
            wire=httpx.MockTransport(broker),
        )
        opened.append(client)
        return client

    yield open_
    for client in opened:
        client.close()


def test_a_token_is_asked_for_as_the_developer_guide_shows(open_client: Open) -> None:
    broker = Broker(described())
    open_client(broker).describe_sessions()
    (asked,) = broker.token_requests
    assert str(asked.url) == f"{URL}/oauth2/token?grant_type=client_credentials"
    assert asked.method == "POST"
    assert asked.content == b""
    scheme, _, secret = asked.headers["Authorization"].partition(" ")
    assert (scheme, base64.b64decode(secret)) == ("Basic", b"id:pass:word")
    assert broker.bearers == ["token-1"]


def test_another_authorization_server_is_asked_in_the_form(open_client: Open) -> None:
    broker = Broker(described())
    elsewhere = ClientPassword("id", "password", "https://login.example/oauth2/token")
    open_client(broker, elsewhere).describe_sessions()
    (asked,) = broker.token_requests
    assert asked.url.host == "login.example"
    assert asked.content == b"grant_type=client_credentials"


def test_a_token_is_kept_and_renewed_at_80_percent_of_its_life(
    open_client: Open, time: Time
) -> None:
    broker = Broker(described(), life=100)
    client = open_client(broker)
    for moment in (0.0, 79.9, 80.0, 159.0):
        time.now = 1000.0 + moment
        client.describe_sessions()
    assert broker.bearers == ["token-1", "token-1", "token-2", "token-2"]


def test_a_refused_token_is_replaced_once(open_client: Open) -> None:
    broker = Broker(httpx.Response(401, json={"error": "expired"}), described())
    open_client(broker).describe_sessions()
    assert broker.bearers == ["token-1", "token-2"]


def test_a_client_that_stays_refused_is_told(open_client: Open) -> None:
    broker = Broker(httpx.Response(401, json={"error": "not you"}))
    with pytest.raises(CredentialsRefused, match=r"^not you$") as caught:
        open_client(broker).describe_sessions()
    assert caught.value.status == 401
    assert len(broker.calls) == 2


def test_a_given_token_is_used_and_never_renewed(open_client: Open) -> None:
    broker = Broker(httpx.Response(401, json={"error": "expired"}))
    with pytest.raises(CredentialsRefused):
        open_client(broker, AccessToken("mine")).describe_sessions()
    assert broker.bearers == ["mine"]
    assert broker.token_requests == []


def test_refused_credentials_are_told_without_the_password(open_client: Open) -> None:
    broker = Broker(described())
    broker.token_answer = httpx.Response(401, json={"error": "unauthorized_client"})
    with pytest.raises(CredentialsRefused, match="unauthorized_client") as caught:
        open_client(broker).describe_sessions()
    assert "pass:word" not in str(caught.value)
    assert broker.calls == []


def test_a_port_that_gives_no_tokens_is_told(open_client: Open) -> None:
    broker = Broker()
    broker.token_answer = httpx.Response(404, text="Not Found")
    with pytest.raises(Refused, match=r"^no access token is given here: HTTP 404 Not Found$"):
        open_client(broker).describe_sessions()


def test_secrets_are_not_in_representations() -> None:
    assert "pass:word" not in repr(PASSWORD)
    assert "mine" not in repr(AccessToken("mine"))


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_broker_is_asked_again_when_it_says(
    open_client: Open, time: Time, status: int
) -> None:
    busy = httpx.Response(status, json={"error": "busy"}, headers={"Retry-After": "3"})
    broker = Broker(busy, busy, described())
    assert open_client(broker).describe_sessions().sessions == ()
    assert time.slept == [3.0, 3.0]


def test_a_broker_that_stays_busy_is_left(open_client: Open) -> None:
    broker = Broker(httpx.Response(429, json={"error": "busy"}, headers={"Retry-After": "0"}))
    with pytest.raises(Refused, match="busy") as caught:
        open_client(broker).describe_sessions()
    assert caught.value.status == 429
    assert len(broker.calls) == TRIES


@pytest.mark.parametrize(
    "headers", [{}, {"Retry-After": "soon"}, {"Retry-After": "-1"}, {"Retry-After": "86400"}]
)
def test_what_gives_no_good_time_is_not_sent_again(
    open_client: Open, time: Time, headers: dict[str, str]
) -> None:
    broker = Broker(httpx.Response(503, json={"error": "down"}, headers=headers))
    with pytest.raises(Refused):
        open_client(broker).create_sessions([CreateSessionRequestData(name="n")])
    assert len(broker.calls) == 1
    assert time.slept == []
    assert LONGEST_PAUSE < 86400


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"error": "two\\nlines"}', "two lines"),
        (b'{"error": ""}', "HTTP 502 Bad Gateway"),
        (b"<html>  proxy\n error </html>", "HTTP 502 Bad Gateway: <html> proxy error </html>"),
        (b"", "HTTP 502 Bad Gateway"),
        (b"Bad Gateway", "HTTP 502 Bad Gateway"),
        (b"\xff\xfe", "HTTP 502 Bad Gateway: ��"),
        (b"x" * 10_000, f"HTTP 502 Bad Gateway: {'x' * 500}"),
    ],
)
def test_a_refusal_has_the_status_and_one_line(open_client: Open, body: bytes, reason: str) -> None:
    broker = Broker(httpx.Response(502, content=body))
    with pytest.raises(Refused) as caught:
        open_client(broker).describe_sessions()
    assert caught.value.message == reason
    assert caught.value.status == 502


@pytest.mark.parametrize(
    "answer",
    [b"", b"[]", b"{}", b'{"Sessions": [{"Id": 7}]}', b"\xff"],
    ids=["empty", "list", "lacking", "wrong type", "not text"],
)
def test_an_answer_that_is_none_is_told(open_client: Open, answer: bytes) -> None:
    with pytest.raises(Unreadable, match="describeSessions"):
        open_client(Broker(httpx.Response(200, content=answer))).describe_sessions()


def test_no_answer_is_told(open_client: Open) -> None:
    broker = Broker(httpx.ConnectError("Connection refused"))
    with pytest.raises(Unreachable, match=r"broker\.example:8443 .*Connection refused"):
        open_client(broker).describe_sessions()
    broker.script = [httpx.ConnectError("[Errno 111] Connection refused")]
    with pytest.raises(Unreachable, match=r"can't be reached: Connection refused$"):
        open_client(broker).describe_sessions()
    broker.script = [httpx.ReadTimeout("")]
    with pytest.raises(Unreachable, match="in time"):
        open_client(broker).describe_sessions()


def test_redirects_are_not_followed(open_client: Open) -> None:
    """A token must not travel to where an answer points."""
    broker = Broker(httpx.Response(302, headers={"Location": "https://evil.example/"}))
    with pytest.raises(Refused):
        open_client(broker).describe_sessions()
    assert len(broker.calls) == 1


@pytest.mark.parametrize(
    "url",
    ["http://broker.example:8443", "broker:8443", "https://", "ftp://x", "https://a:b@broker"],
)
def test_a_url_that_would_show_secrets_is_refused(open_client: Open, url: str) -> None:
    with pytest.raises(SetupFailed):
        open_client(Broker(described()), url=url)


def test_a_missing_authority_is_told(tmp_path: Path) -> None:
    with pytest.raises(SetupFailed, match=r"missing\.pem"):
        Client(URL, credentials=PASSWORD, ca_file=tmp_path / "missing.pem")


def test_members_that_are_not_known_are_ignored(open_client: Open) -> None:
    broker = Broker(described(session(Colour="red", Server={"Id": "x", "Rack": {"U": 4}})))
    (found,) = open_client(broker).describe_sessions().sessions
    assert found.server is not None
    assert found.server.id == "x"


def test_only_what_is_given_is_sent(open_client: Open) -> None:
    broker = Broker(described())
    client = open_client(broker)
    client.describe_sessions()
    assert broker.body() == {}
    client.describe_sessions(session_ids=["a"], owner="ada", tags={"gpu": "yes"}, max_results=5)
    assert broker.body() == {
        "SessionIds": ["a"],
        "Filters": [{"Key": "owner", "Value": "ada"}, {"Key": "tag:gpu", "Value": "yes"}],
        "MaxResults": 5,
    }


@pytest.mark.parametrize(
    ("call", "method", "path", "body"),
    [
        (
            lambda client: client.create_sessions([CreateSessionRequestData(name="n", owner="o")]),
            "POST",
            "/createSessions",
            [{"Name": "n", "Owner": "o"}],
        ),
        (
            lambda client: client.delete_sessions(
                [DeleteSessionRequestData(session_id="s", owner="o", force=True)]
            ),
            "POST",
            "/deleteSessions",
            [{"SessionId": "s", "Owner": "o", "Force": True}],
        ),
        (
            lambda client: client.update_session_permissions(
                [
                    UpdateSessionPermissionsRequestData(
                        session_id="s", owner="o", permissions_file="cA=="
                    )
                ]
            ),
            "PUT",
            "/sessionPermissions",
            [{"SessionId": "s", "Owner": "o", "PermissionsFile": "cA=="}],
        ),
        (
            lambda client: client.open_servers(["v"]),
            "POST",
            "/openServers",
            [{"ServerId": "v"}],
        ),
        (
            lambda client: client.close_servers(["v"], force=True),
            "POST",
            "/closeServers",
            [{"ServerId": "v", "Force": True}],
        ),
    ],
)
def test_batches_are_bare_lists(
    open_client: Open, call: Callable[[Client], Any], method: str, path: str, body: Any
) -> None:
    broker = Broker(httpx.Response(200, json={"SuccessfulList": [], "UnsuccessfulList": []}))
    answer = call(open_client(broker))
    assert answer.successful_list == answer.unsuccessful_list == ()
    assert (broker.calls[0].method, broker.calls[0].url.path) == (method, path)
    assert broker.body() == body


def test_ids_and_users_are_encoded_whole(open_client: Open) -> None:
    broker = Broker(
        httpx.Response(200, json={"Session": session("a/b"), "ConnectionToken": "t.t.t"})
    )
    answer = open_client(broker).get_session_connection_data("a/b", "DOMAIN\\ada x")
    assert broker.calls[0].url.raw_path == b"/sessionConnectionData/a%2Fb/DOMAIN%5Cada%20x"
    assert answer.connection_token == "t.t.t"


def test_pages_are_followed_with_the_same_question(open_client: Open) -> None:
    broker = Broker(described(session("a"), NextToken="1"), described(session("b"), NextToken=None))
    found = list(open_client(broker).sessions(owner="ada"))
    assert [each.id for each in found] == ["a", "b"]
    assert broker.body() == {"Filters": [{"Key": "owner", "Value": "ada"}], "NextToken": "1"}


def test_pages_without_an_end_are_left(open_client: Open) -> None:
    broker = Broker(described(session("a"), NextToken="1"))
    with pytest.raises(Unreadable, match="no end"):
        list(open_client(broker).sessions())


def test_servers_are_paged_too(open_client: Open) -> None:
    broker = Broker(
        httpx.Response(200, json={"Servers": [{"Id": "a"}], "NextToken": "1"}),
        httpx.Response(200, json={"Servers": [{"Id": "b"}]}),
    )
    assert [each.id for each in open_client(broker).servers()] == ["a", "b"]


def test_waiting_ends_with_the_state(open_client: Open) -> None:
    broker = Broker(
        described(session(state="CREATING")),
        described(session(state="UNKNOWN")),
        described(session(state="READY")),
    )
    seen: list[str] = []

    def note(now: Session) -> None:
        seen.append(now.state)

    found = open_client(broker).wait_for("s1", "READY", 30, seen=note)
    assert found is not None
    assert found.state == "READY"
    assert seen == ["CREATING", "UNKNOWN", "READY"]


def test_waiting_ends_when_the_state_can_not_come_any_more(open_client: Open, time: Time) -> None:
    broker = Broker(described(session(state="DELETED", StateReason="no disk")))
    found = open_client(broker).wait_for("s1", "READY", 30)
    assert found is not None
    assert (found.state, found.state_reason) == ("DELETED", "no disk")
    assert time.slept == []


def test_waiting_ends_when_the_session_is_gone(open_client: Open) -> None:
    assert open_client(Broker(described())).wait_for("s1", "DELETED", 30) is None


def test_waiting_ends_at_its_limit(open_client: Open, time: Time) -> None:
    found = open_client(Broker(described(session(state="CREATING")))).wait_for("s1", "READY", 5)
    assert found is not None
    assert found.state == "CREATING"
    assert sum(time.slept) == pytest.approx(5)


def test_waiting_outlives_a_broker_that_fails_meanwhile(open_client: Open) -> None:
    broker = Broker(
        httpx.ConnectError("refused"),
        httpx.Response(500, json={"error": "x"}),
        described(session()),
    )
    found = open_client(broker).wait_for("s1", "READY", 30)
    assert found is not None


@pytest.mark.parametrize(
    ("answer", "pauses"), [(httpx.ConnectError("refused"), 5), (httpx.Response(403), 0)]
)
def test_waiting_gives_the_failure_when_nothing_else_came(
    open_client: Open, time: Time, answer: Answer, pauses: float
) -> None:
    with pytest.raises(ClientError):
        open_client(Broker(answer)).wait_for("s1", "READY", 5)
    assert sum(time.slept) == pytest.approx(pauses)
