"""A real broker on loopback, and all that strangers and careless clients send to it.

Each bad request is answered with its status and one line of JSON, leaves no secret in the logs,
and the broker goes on.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import hmac
import json
import logging
import ssl
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Self
from xml.etree import ElementTree as ET

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from deskfleet import connections, listener
from deskfleet.agent.broker_door import BrokerDoor
from deskfleet.broker.service.access import Audience
from deskfleet.broker.stores.group_commit import GroupCommit
from deskfleet.broker.stores.memory import MemoryStore
from deskfleet.broker.web import throttle
from deskfleet.broker.web.limits import MAX_BODY_BYTES
from deskfleet.core.change import Stored, Tombstone
from deskfleet.core.records import AgentClient, Endpoint, Revision, SigningKey
from deskfleet.errors import StoreFailed, Unavailable
from deskfleet.gate import Gate
from deskfleet.observe import RepeatsFilter
from deskfleet.ports import Lost
from deskfleet.system import SystemClock
from deskfleet.wire.messages import (
    VERSION,
    Desired,
    FactsChanged,
    Heartbeat,
    Hello,
    Observation,
    Refusal,
    Welcome,
    decode_from_broker,
    encode,
)
from support.builders import a_link, a_report, a_server, a_session, some_facts
from support.running_broker import CALL_SECONDS, RunningBroker, read_all, running_broker
from support.waiting import until

USER_TOKEN = "the users' token"
COUNT = 7
"""Sessions that are there."""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    with running_broker(tmp_path_factory.mktemp("broker")) as running:
        endpoint = Endpoint(ip_address="10.0.0.7", port=8444)
        ready = a_session("ready", server="n1")
        running.write(
            a_server(),
            some_facts(gpu="yes", endpoints=(endpoint,)),
            a_link(broker_id=running.broker_id),
            ready,
            a_report(ready),
            *(
                a_session(f"old{n}", ended_at=running.house.clock.now(), owner=f"user{n % 2}")
                for n in range(COUNT - 1)
            ),
        )
        yield running


@pytest.fixture
def http(broker: RunningBroker) -> Iterator[httpx.Client]:
    """Yield a client with a good token; afterwards the broker has to be as good as before."""
    with broker.http(broker.doors.client_port) as client:
        client.headers["Authorization"] = f"Bearer {broker.token}"
        yield client
    is_well(broker)


@pytest.fixture
def agent_http(broker: RunningBroker) -> Iterator[httpx.Client]:
    with broker.http(broker.doors.agent_port) as client:
        yield client
    is_well(broker)


def is_well(broker: RunningBroker) -> None:
    with broker.http(broker.doors.client_port) as client:
        answer = client.post(
            "/describeSessions", headers={"Authorization": f"Bearer {broker.token}"}
        )
    assert answer.status_code == 200
    assert len(answer.json()["Sessions"]) == COUNT
    text, records = broker.log.text(), list(broker.log.records)
    broker.log.records.clear()
    assert not [one for one in records if one.name == "asyncio" or one.exc_info], text
    secrets = [broker.token, broker.client.client_password, broker.statement]
    assert not [secret for secret in secrets if secret in text]


def reason(answer: httpx.Response, status: int) -> str:
    """Check that an answer is a refusal of the one form that there is, and return its reason."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    # The token endpoint may say more, as RFC 6749 has it.
    assert "error" in body
    assert set(body) <= {"error", "error_description"}
    assert body["error"]
    assert len(body["error"].splitlines()) == 1
    assert len(answer.content) < 1000
    return str(body["error"])


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def segment(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class TestTokens:
    def claims(self, broker: RunningBroker) -> dict[str, Any]:
        claims: dict[str, Any] = jwt.decode(broker.token, options={"verify_signature": False})
        return claims

    def test_no_header_is_told_in_the_words_that_clients_compare(
        self, broker: RunningBroker, http: httpx.Client
    ) -> None:
        del http.headers["Authorization"]
        for method, path in (("GET", "/sessionConnectionData/s/o"), ("POST", "/createSessions")):
            answer = http.request(method, path)
            assert reason(answer, 401) == "No authorization header"
            assert answer.headers["www-authenticate"] == "Bearer"

    @pytest.mark.parametrize(
        "header",
        [
            "",
            "Bearer",
            "Basic eDp5",
            "Token x",
            "Bearer x",
            "Bearer a.b.c",
            "Bearer ...",
        ],
    )
    def test_what_is_no_token(self, http: httpx.Client, header: str) -> None:
        reason(http.post("/describeSessions", headers={"Authorization": header}), 401)

    def test_bytes_that_are_no_text(self, broker: RunningBroker) -> None:
        with broker.raw(broker.doors.client_port) as raw:
            raw.sendall(
                b"POST /describeSessions HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n"
                b"Authorization: Bearer \xff\xfe.\x80.\x80\r\nConnection: close\r\n\r\n"
            )
            assert read_all(raw).startswith(b"HTTP/1.1 401 ")
        is_well(broker)

    @pytest.mark.parametrize("audience", [one for one in Audience if one is not Audience.API])
    def test_a_token_for_another_door(
        self, broker: RunningBroker, http: httpx.Client, audience: Audience
    ) -> None:
        token = broker.sign(audience, sub=broker.client.client_id)
        answer = http.post("/describeSessions", headers=bearer(token))
        assert reason(answer, 401) == "the token is not valid"

    def test_one_that_has_expired(self, broker: RunningBroker, http: httpx.Client) -> None:
        token = broker.sign(Audience.API, timedelta(seconds=-61), sub=broker.client.client_id)
        answer = http.post("/describeSessions", headers=bearer(token))
        assert reason(answer, 401) == "the token has expired"

    def test_one_of_nobody(self, broker: RunningBroker, http: httpx.Client) -> None:
        for claims in ({}, {"sub": "nobody"}, {"sub": None}, {"sub": ["x"]}):
            token = broker.sign(Audience.API, **claims)
            reason(http.post("/describeSessions", headers=bearer(token)), 401)

    def test_forged_ones(self, broker: RunningBroker, http: httpx.Client) -> None:
        claims = self.claims(broker)
        body = segment(claims)
        [key] = list(broker.house.replica.fleet.each(SigningKey))
        stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)

        def hs256(header: dict[str, Any]) -> str:
            signed = f"{segment(header)}.{body}"
            mac = hmac.digest(key.public_pem.encode(), signed.encode(), "sha256")
            return f"{signed}.{segment(mac)}"

        good_head, good_body, good_signature = broker.token.split(".")
        forged = {
            "none": f"{segment({'alg': 'none', 'kid': key.id})}.{body}.",
            "none with a signature": f"{segment({'alg': 'none', 'kid': key.id})}.{body}.AAAA",
            "None": f"{segment({'alg': 'None', 'kid': key.id})}.{body}.",
            "the public key as a secret": hs256({"alg": "HS256", "kid": key.id, "typ": "JWT"}),
            "without a key id": hs256({"alg": "HS256"}),
            "a stranger's key": jwt.encode(claims, stranger, "RS256", headers={"kid": key.id}),
            "an unknown key": jwt.encode(claims, stranger, "RS256", headers={"kid": "other"}),
            "its own key": jwt.encode(
                claims,
                stranger,
                "RS256",
                headers={"jwk": json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(stranger))},
            ),
            "a key id that is none": f"{segment({'alg': 'RS256', 'kid': {'a': 1}})}.{body}.AAAA",
            "a key id that is a path": f"{segment({'alg': 'RS256', 'kid': '../x'})}.{body}.AAAA",
            "a changed body": f"{good_head}.{segment({**claims, 'sub': 'x'})}.{good_signature}",
            "without a signature": f"{good_head}.{good_body}.",
            "a part too many": f"{broker.token}.AAAA",
            "a nested header": f"{segment(b'[' * 5000)}.{body}.AAAA",
        }
        for name, token in forged.items():
            answer = http.post("/describeSessions", headers=bearer(token))
            assert reason(answer, 401) == "the token is not valid", name

    def test_one_that_is_too_long(self, http: httpx.Client) -> None:
        answer = http.post("/describeSessions", headers=bearer("A" * 9000))
        assert reason(answer, 401) == "the token is too long"

    def test_a_good_one_in_another_case(self, broker: RunningBroker, http: httpx.Client) -> None:
        answer = http.post("/describeServers", headers={"Authorization": f"bEARER {broker.token}"})
        assert answer.status_code == 200


DESCRIBE = "/describeSessions"
UNREADABLE = "The body is not valid JSON in UTF-8."


class TestBodies:
    @pytest.mark.parametrize(
        "body",
        [
            b"{",
            b"}",
            b"nul",
            b"{}x",
            b"{} {}",
            b"'x'",
            b"{'a': 1}",
            b'{"SessionIds": [}',
            b'{"SessionIds": ["\xff"]}',
            b"\xef\xbb\xbf{}",
            '{"MaxResults": 1}'.encode("utf-16"),
            b'{"SessionIds": ["\\ud800"]}',
            b'{"SessionIds": ["\x00"]}',
            b'{"MaxResults": NaN}',
            b'{"MaxResults": 01}',
            b'{"MaxResults": 1,}',
            b" ",
        ],
    )
    def test_what_is_no_json(self, http: httpx.Client, body: bytes) -> None:
        assert reason(http.post(DESCRIBE, content=body), 400) == UNREADABLE

    @pytest.mark.parametrize(
        ("path", "body", "told"),
        [
            (DESCRIBE, b"null", "The body: "),
            (DESCRIBE, b"[]", "The body: "),
            (DESCRIBE, b'"x"', "The body: "),
            (DESCRIBE, b'{"x": 1}', 'Unrecognized field "x"'),
            (DESCRIBE, b'{"sessionIds": []}', 'Unrecognized field "sessionIds"'),
            (DESCRIBE, b'{"SessionIds": [null]}', "SessionIds"),
            (DESCRIBE, b'{"SessionIds": "x"}', "SessionIds"),
            (DESCRIBE, b'{"Filters": [{"Key": "owner"}]}', "Filters"),
            (DESCRIBE, b'{"Filters": [{"Key": "color", "Value": "x"}]}', "Filters: 'color'"),
            (DESCRIBE, b'{"MaxResults": 1, "MaxResults": 2}', 'Duplicate field "MaxResults"'),
            (DESCRIBE, b'{"MaxResults": 1, "M\\u0061xResults": 2}', 'Duplicate field "MaxResults"'),
            (DESCRIBE, b'{"SessionIds": ' + b"[" * 100_000, ""),
            (DESCRIBE, b"[" * 100_000, ""),
            (DESCRIBE, b'{"x":' * 50_000, ""),
            ("/createSessions", b"", UNREADABLE),
            ("/createSessions", b"{}", "The body: "),
            ("/createSessions", b"[1]", "[0]"),
            ("/createSessions", b'[{"Name": 5}]', "[0].Name"),
            ("/createSessions", b'[{"Name": "a", "x\\ny": 5}]', 'Unrecognized field "xy"'),
            ("/createSessions", b'[{"MaxConcurrentClients": 1e400}]', ""),
            ("/createSessions", b'[{"MaxConcurrentClients": 9223372036854775808}]', "Clients"),
            ("/createSessions", b'[{"MaxConcurrentClients": ' + b"9" * 5000 + b"}]", ""),
            ("/createSessions", b'[{"Name": "' + b"x" * 70_000 + b'"}]', "Name"),
            ("/createSessions", b"[" + b"{}," * 1000 + b"{}]", "The body: "),
            ("/deleteSessions", b'[{"Force": "yes"}]', "[0].Force"),
            ("/getSessionScreenshots", b'[{"MaxWidth": 0}]', "MaxWidth must be greater than 0"),
            ("/getSessionScreenshots", b'[{"MaxHeight": -1}]', "MaxHeight must be greater than 0"),
            ("/openServers", b'{"ServerId": "x"}', "The body: "),
            ("/closeServers", b'[{"ServerId": ["x"]}]', "[0].ServerId"),
        ],
    )
    def test_what_is_not_asked_like_that(
        self, http: httpx.Client, path: str, body: bytes, told: str
    ) -> None:
        assert told in reason(http.post(path, content=body), 400)

    @pytest.mark.parametrize(
        "value", ["0", "-1", "1001", "1.5", '"5"', "true", "1e30", "9" * 4400, "[]"]
    )
    def test_pages_of_an_odd_size(self, http: httpx.Client, value: str) -> None:
        for path in (DESCRIBE, "/describeServers"):
            answer = http.post(path, content=f'{{"MaxResults": {value}}}')
            assert "MaxResults" in reason(answer, 400)

    def test_nothing_of_a_body_comes_back_but_names(self, http: httpx.Client) -> None:
        for body in ('[{"Name": ["s3cret"]}]', '[{"Type": {"s3cret": 1}}]', '["s3cret"]'):
            assert "s3cret" not in reason(http.post("/createSessions", content=body), 400)

    def test_one_that_is_packed(self, http: httpx.Client) -> None:
        for coding, body in (("gzip", gzip.compress(b"{}")), ("br", b"x"), ("deflate", b"x")):
            answer = http.post(DESCRIBE, content=body, headers={"Content-Encoding": coding})
            assert reason(answer, 400) == "a request body must not be compressed"
        identity = http.post(DESCRIBE, content=b"{}", headers={"Content-Encoding": "identity"})
        assert identity.status_code == 200

    def test_a_hundred_megabytes_with_and_without_saying_so(self, http: httpx.Client) -> None:
        chunk = b" " * (1 << 20)

        def chunks() -> Iterator[bytes]:
            for _ in range(100):
                yield chunk

        for headers in ({"Content-Length": str(100 << 20)}, {}):
            answer = http.post(DESCRIBE, content=chunks(), headers=headers)
            assert reason(answer, 413) == f"a request body may have {MAX_BODY_BYTES} bytes"

    def test_a_large_one_is_refused_before_it_is_sent(self, broker: RunningBroker) -> None:
        with broker.raw(broker.doors.client_port) as raw:
            raw.sendall(
                b"POST /createSessions HTTP/1.1\r\nHost: x\r\nContent-Length: 104857600\r\n"
                + f"Authorization: Bearer {broker.token}\r\nConnection: close\r\n\r\n".encode()
            )
            assert read_all(raw).startswith(b"HTTP/1.1 413 ")
        is_well(broker)

    def test_the_largest_that_is_taken(self, http: httpx.Client) -> None:
        body = b"{}" + b" " * (MAX_BODY_BYTES - 2)
        assert http.post(DESCRIBE, content=body).status_code == 200
        reason(http.post(DESCRIBE, content=body + b" "), 413)

    def test_no_body_is_an_empty_one(self, http: httpx.Client) -> None:
        for path in (DESCRIBE, "/describeServers"):
            assert http.post(path).status_code == http.post(path, content=b"{}").status_code == 200


class TestPaths:
    @pytest.mark.parametrize(
        "path",
        [
            "/",
            "/nothing",
            "/describeSessions/",
            "/describesessions",
            "/%2e%2e/etc/passwd",
            "/\u00e9",
        ],
    )
    def test_there_is_nothing_else(self, http: httpx.Client, path: str) -> None:
        answer = http.post(path, follow_redirects=False)
        assert reason(answer, 404) == "there is nothing at this path"

    def test_two_slashes_are_not_one(self, broker: RunningBroker) -> None:
        with broker.raw(broker.doors.client_port) as raw:
            raw.sendall(
                b"POST //describeSessions HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 0\r\n"
                b"Connection: close\r\n\r\n"
            )
            answer = read_all(raw)
        assert answer.split(b" ")[1] in {b"404", b"400"}
        assert b"evil" not in answer

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("GET", DESCRIBE, "POST"),
            ("PUT", DESCRIBE, "POST"),
            ("DELETE", "/createSessions", "POST"),
            ("POST", "/sessionPermissions", "PUT"),
            ("POST", "/sessionConnectionData/s/u", "GET"),
            ("GET", "/oauth2/token", "POST"),
            ("POST", "/health", "GET"),
            ("PURGE", DESCRIBE, "POST"),
        ],
    )
    def test_another_method(self, http: httpx.Client, method: str, path: str, allowed: str) -> None:
        answer = http.request(method, path)
        assert reason(answer, 405) == "this path has another method"
        assert allowed in answer.headers["allow"]

    def test_each_door_has_its_own(self, http: httpx.Client, agent_http: httpx.Client) -> None:
        for path in ("/register", "/agent/validate-authentication-token", "/broker/poke"):
            reason(http.post(path), 404)
        reason(agent_http.post(DESCRIBE, headers=http.headers), 404)

    def test_what_anybody_may_read(self, http: httpx.Client) -> None:
        del http.headers["Authorization"]
        assert http.get("/health").json() == {"status": "ok"}
        page = http.get("/dcv-session-manager-api.yaml")
        assert page.status_code == 200
        assert "openapi" in page.text
        assert "server" not in page.headers


class TestHeads:
    """What comes before the body, as no library would send it."""

    def say(self, broker: RunningBroker, *parts: bytes) -> bytes:
        with broker.raw(broker.doors.client_port) as raw:
            try:
                for part in parts:
                    raw.sendall(part)
            except (ConnectionError, OSError):
                pass
            return read_all(raw)

    @pytest.mark.parametrize(
        "head",
        [
            b"\x00\x01\x02\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET\r\n\r\n",
            b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n",
            b"POST /describeSessions HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
            b"POST /describeSessions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
            b"POST /describeSessions HTTP/1.1\r\nHost: x\r\nContent-Length: \xb2\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, x\r\n\r\n",
            b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nHo st: x\r\n\r\n",
        ],
    )
    def test_garbage(self, broker: RunningBroker, head: bytes) -> None:
        answer = self.say(broker, head)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"Traceback" not in answer
        is_well(broker)

    def test_one_without_an_end(self, broker: RunningBroker) -> None:
        line = b"X-Padding: " + b"x" * 60_000 + b"\r\n"
        answer = self.say(broker, b"GET /health HTTP/1.1\r\nHost: x\r\n", *[line] * 100)
        # The broker hangs up; whether its reason is still read depends on what was under way.
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
        answer = self.say(broker, b"GET /" + b"x" * 5_000_000)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
        is_well(broker)

    def test_one_that_takes_for_ever(
        self, broker: RunningBroker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as hasty:
            hasty.setattr(connections, "HEAD_SECONDS", 0.2)
            for beginning in (b"", b"GET /health HTT", b"GET /health HTTP/1.1\r\nHost: x\r\n"):
                assert self.say(broker, beginning) == b""
        whole = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        with broker.raw(broker.doors.client_port) as raw:
            raw.sendall(whole)
            answer = raw.recv(1000)
            while not answer.endswith(b"}"):
                answer += raw.recv(1000)
            assert answer.startswith(b"HTTP/1.1 200 ")
            monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
            raw.sendall(whole[:10])
            assert read_all(raw) == b""
        is_well(broker)


class TestNoise:
    """Whoever says nonsense is told of once in a while, not each time."""

    def told(
        self, broker: RunningBroker, door: int, *asked: tuple[str, dict[str, Any]]
    ) -> list[str]:
        """Return what is logged of requests that are sent ten times each."""
        repeats = RepeatsFilter(lambda: 0.0)
        broker.log.records.clear()
        broker.log.addFilter(repeats)
        try:
            with broker.http(door) as client:
                for path, options in asked:
                    for _ in range(10):
                        client.post(path, **options)
        finally:
            broker.log.removeFilter(repeats)
        ours = [one for one in broker.log.records if one.levelno >= logging.INFO]
        assert all(one.__dict__["address"] == "127.0.0.1" for one in ours)
        return [one.getMessage() for one in ours]

    def test_at_the_door_for_clients(self, broker: RunningBroker) -> None:
        asked: list[tuple[str, dict[str, Any]]] = [
            ("/oauth2/token", {"content": b"nonsense"}),
            ("/createSessions", {"headers": bearer("nonsense")}),
            ("/nowhere", {}),
        ]
        told = self.told(broker, broker.doors.client_port, *asked)
        assert told == ["request.answered"] * 2
        is_well(broker)

    def test_at_the_door_for_agents(self, broker: RunningBroker) -> None:
        token = {"sessionId": "x", "authenticationToken": "y", "clientAddress": "z"}
        asked: list[tuple[str, dict[str, Any]]] = [
            ("/agent/validate-authentication-token", {"content": b"nonsense"}),
            ("/agent/validate-authentication-token", {"data": token}),
            ("/register", {"json": {"software_statement": "nonsense"}}),
        ]
        told = self.told(broker, broker.doors.agent_port, *asked)
        assert sorted(told) == ["request.answered"] * 2 + ["token.refused"]
        is_well(broker)

    def test_what_known_clients_do_wrong_is_told_each_time(
        self, broker: RunningBroker, http: httpx.Client
    ) -> None:
        broker.log.records.clear()
        repeats = RepeatsFilter(lambda: 0.0)
        broker.log.addFilter(repeats)
        for _ in range(5):
            http.post("/createSessions", content=b"nonsense")
        broker.log.removeFilter(repeats)
        assert broker.log.events() == ["request.answered"] * 5


class TestUsers:
    @pytest.mark.parametrize(
        "user",
        [
            "alice",
            "DOMAIN\\user",
            "a/b",
            "user@x",
            "a b",
            "ümläut",
            "a%2Fb",
            "100%",
            "x;y",
            "a+b",
            "?q#f",
        ],
    )
    def test_every_name_reaches_the_token(
        self, broker: RunningBroker, http: httpx.Client, user: str
    ) -> None:
        quoted = urllib.parse.quote(user, safe="")
        answer = http.get(f"/sessionConnectionData/ready/{quoted}")
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        body = answer.json()
        assert set(body) == {"Session", "ConnectionToken"}
        assert body["Session"]["Id"] == "ready"
        assert body["Session"]["Server"]["Port"] == "8444"
        claims = jwt.decode(body["ConnectionToken"], options={"verify_signature": False})
        assert claims["dcvSessionUser"] == user

    def test_names_that_are_none(self, http: httpx.Client) -> None:
        names = ("", "%00", "a%0Db", "%7F", "%EF%BF%BE", "x" * 257, "%C3%BC" * 257, "%FF%0D")
        for name in names:
            answer = http.get(f"/sessionConnectionData/ready/{name}")
            assert "user" in reason(answer, 400)
            assert "not found" not in answer.text

    @pytest.mark.parametrize(
        "path",
        [
            "/sessionConnectionData/ready%2Falice",
            "/sessionConnectionData%2Fready/alice",
            "/sessionConnectionData//alice",
        ],
    )
    def test_an_encoded_slash_parts_nothing(self, http: httpx.Client, path: str) -> None:
        assert reason(http.get(path), 404) == "there is nothing at this path"

    def test_a_session_id_that_is_no_text(self, http: httpx.Client) -> None:
        assert "sessionId" in reason(http.get("/sessionConnectionData/%FF/alice"), 400)

    def test_sessions_that_are_not_there_or_not_ready(
        self, broker: RunningBroker, http: httpx.Client
    ) -> None:
        assert "not found" in reason(http.get("/sessionConnectionData/nothing/u"), 404)
        told = reason(http.get("/sessionConnectionData/old1/u"), 400)
        assert "neither in READY" in told
        assert "not found" not in told


class TestListings:
    def test_the_pages_together_are_the_whole(self, http: httpx.Client) -> None:
        seen: list[str] = []
        body: dict[str, Any] = {"MaxResults": 3, "Filters": []}
        while True:
            answer = http.post(DESCRIBE, json=body).json()
            seen += [one["Id"] for one in answer["Sessions"]]
            if "NextToken" not in answer:
                break
            # A client may ask for fewer than before.
            body = {"MaxResults": 2, "Filters": [], "NextToken": answer["NextToken"]}
        assert sorted(seen) == sorted({"ready", *(f"old{n}" for n in range(COUNT - 1))})

    def test_tokens_that_were_not_given(self, http: httpx.Client) -> None:
        token = http.post(DESCRIBE, json={"MaxResults": 1}).json()["NextToken"]
        flipped = token[:-6] + ("A" if token[-6] != "A" else "B") + token[-5:]
        for odd in (flipped, token[:-4], token + "AAAA", "", "x", "é", "A" * 5000, token[::-1]):
            answer = http.post(DESCRIBE, json={"NextToken": odd})
            assert reason(answer, 400).startswith("NextToken")
        for body in ({"SessionIds": ["x"]}, {"Filters": [{"Key": "owner", "Value": "alice"}]}):
            reason(http.post(DESCRIBE, json={**body, "NextToken": token}), 400)
        reason(http.post("/describeServers", json={"NextToken": token}), 400)

    def test_filters(self, http: httpx.Client) -> None:
        def found(*filters: tuple[str, str], **more: Any) -> list[str]:
            body = {"Filters": [{"Key": k, "Value": v} for k, v in filters], **more}
            return sorted(one["Id"] for one in http.post(DESCRIBE, json=body).json()["Sessions"])

        assert found(("owner", "alice")) == ["ready"]
        assert found(("owner", "user1")) == ["old1", "old3", "old5"]
        assert found(("tag:gpu", "yes")) == ["ready"]
        assert found(("tag:gpu", "yes"), ("owner", "user1")) == []
        assert found(SessionIds=["old1", "nothing", "ready"]) == ["old1", "ready"]
        assert found(SessionIds=[]) == found()

    def test_unknown_servers_are_not_returned(self, http: httpx.Client) -> None:
        assert http.post("/describeServers", json={"ServerIds": ["x"]}).json()["Servers"] == []
        [server] = http.post("/describeServers", json={"ServerIds": ["n1"]}).json()["Servers"]
        assert (server["Id"], server["Availability"]) == ("n1", "AVAILABLE")
        everything = http.post("/describeServers", json={"ServerIds": []}).json()["Servers"]
        assert server in everything


class TestBatches:
    def test_entries_fail_alone(self, http: httpx.Client) -> None:
        good = {"Name": "n", "Owner": "zoe", "Type": "VIRTUAL"}
        bad: list[tuple[dict[str, Any], str]] = [
            ({}, "Name is required."),
            ({**good, "Owner": " "}, "Owner is required."),
            ({**good, "Type": "X"}, "Type must be CONSOLE or VIRTUAL."),
            ({**good, "Name": "a\nb"}, "control character"),
            ({**good, "Owner": "-rf"}, "must not begin with"),
            ({**good, "Owner": "x" * 257}, "longer than 256 characters"),
            ({**good, "MaxConcurrentClients": 0}, "at least 1"),
            ({**good, "InitFile": "x" * 4097}, "InitFile is longer than 4096"),
            ({**good, "StorageRoot": "x" * 4097}, "StorageRoot is longer than 4096"),
            ({**good, "AutorunFileArguments": ["x"] * 51}, "more than 50"),
            ({**good, "AutorunFileArguments": ["x" * 151]}, "more than 150"),
            ({**good, "AutorunFileArguments": ["a\nb"]}, "AutorunFileArguments contains a control"),
            ({**good, "StorageRoot": "/a\u2028b"}, "StorageRoot contains a control character"),
            ({**good, "Requirements": "tag:gpu ="}, "column"),
            ({**good, "Requirements": "tag:gpu = 'no'"}, "lack tag:gpu = 'no'"),
            ({**good, "Requirements": "(" * 5000, "EnqueueRequest": True}, ""),
            ({**good, "PermissionsFile": "!!!"}, "PermissionsFile: "),
            ({**good, "Type": "console"}, "can't run console sessions"),
        ]
        answer = http.post("/createSessions", json=[*(entry for entry, _ in bad), good])
        assert answer.status_code == 200
        body = answer.json()
        [created] = body["SuccessfulList"]
        assert created["State"] == "CREATING"
        refused = body["UnsuccessfulList"]
        assert [one["CreateSessionRequestData"] for one in refused] == [one for one, _ in bad]
        for one, (_, told) in zip(refused, bad, strict=True):
            assert told in one["FailureReason"]
        deletion = {"SessionId": created["Id"], "Owner": "zoe", "Force": True}
        assert http.post("/deleteSessions", json=[deletion]).json()["SuccessfulList"]

    def test_foreign_and_unknown_sessions_look_alike(self, http: httpx.Client) -> None:
        entries = [
            {"SessionId": "ready", "Owner": "bob"},
            {"SessionId": "nothing", "Owner": "alice"},
            {"SessionId": "old1", "Owner": "user1"},
            {"SessionId": "ready"},
            {"Owner": "alice"},
            {},
        ]
        file = base64.b64encode(b"[permissions]\n").decode()
        calls: list[tuple[str, str, dict[str, str]]] = [
            ("POST", "/deleteSessions", {}),
            ("PUT", "/sessionPermissions", {"PermissionsFile": file}),
        ]
        for method, path, more in calls:
            answer = http.request(method, path, json=[{**one, **more} for one in entries]).json()
            assert answer["SuccessfulList"] == []
            reasons = {one["FailureReason"] for one in answer["UnsuccessfulList"]}
            assert reasons == {"The requested dcvSession does not exist"}
            assert len(answer["UnsuccessfulList"]) == len(entries)

    def test_unknown_servers_and_pictures(self, http: httpx.Client) -> None:
        for path in ("/openServers", "/closeServers"):
            [failed] = http.post(path, json=[{"ServerId": "x"}]).json()["UnsuccessfulList"]
            assert failed["FailureCode"] == "DCV_SERVER_NOT_FOUND"
            assert failed["FailureReason"] == "Dcv server not found."
        [failed] = http.post("/closeServers", json=[{"ServerId": "n1"}]).json()["UnsuccessfulList"]
        assert failed["FailureCode"] == "DCV_SERVER_HAS_SESSIONS"
        wishes = [{"SessionId": "x", "MaxWidth": None}, {}, {"SessionId": "ready"}]
        answer = http.post("/getSessionScreenshots", json=wishes)
        assert answer.headers["cache-control"] == "no-store"
        failed = answer.json()["UnsuccessfulList"]
        assert [one["FailureReason"] for one in failed] == [
            "Dcv session not found.",
            "Dcv session not found.",
            "the session's server can't be reached",
        ]

    def test_empty_ones(self, http: httpx.Client) -> None:
        for method, path in (
            ("POST", "/createSessions"),
            ("POST", "/deleteSessions"),
            ("POST", "/getSessionScreenshots"),
            ("PUT", "/sessionPermissions"),
            ("POST", "/openServers"),
            ("POST", "/closeServers"),
        ):
            body = http.request(method, path, json=[]).json()
            assert (body["SuccessfulList"], body["UnsuccessfulList"]) == ([], [])
            assert len(body["RequestId"]) == 36


def basic(text: str | bytes) -> dict[str, str]:
    raw = text.encode() if isinstance(text, str) else text
    return {"Authorization": f"Basic {base64.b64encode(raw).decode()}"}


class TestGrants:
    PATH = "/oauth2/token"
    GRANT = "client_credentials"

    def good(self, broker: RunningBroker) -> dict[str, str]:
        return basic(f"{broker.client.client_id}:{broker.client.client_password}")

    def test_in_the_query_and_in_a_form(self, broker: RunningBroker, http: httpx.Client) -> None:
        good = self.good(broker)
        answers = [
            http.post(self.PATH, params={"grant_type": self.GRANT}, headers=good),
            http.post(self.PATH, data={"grant_type": self.GRANT, "scope": "x"}, headers=good),
            http.post(self.PATH, content=b"grant_type=client_credentials", headers=good),
        ]
        tokens = set()
        for answer in answers:
            assert answer.status_code == 200
            body = answer.json()
            assert set(body) == {"access_token", "token_type", "expires_in"}
            assert (body["token_type"].lower(), body["expires_in"]) == ("bearer", 3600)
            assert answer.headers["cache-control"] == "no-store"
            tokens.add(body["access_token"])
        assert len(tokens) == 3
        for token in tokens:
            assert http.post(DESCRIBE, headers=bearer(token)).status_code == 200
        text = broker.log.text()
        assert not [token for token in tokens if token in text]

    @pytest.mark.parametrize(
        "header",
        [
            {},
            {"Authorization": "Bearer x"},
            {"Authorization": "Basic"},
            {"Authorization": "Basic %%%"},
            {"Authorization": "Basic eDp5e"},
            basic("no colon"),
            basic(b"\xff:\xff"),
        ],
    )
    def test_who_does_not_say_who_it_is(self, http: httpx.Client, header: dict[str, str]) -> None:
        del http.headers["Authorization"]
        answer = http.post(self.PATH, params={"grant_type": self.GRANT}, headers=header)
        assert reason(answer, 401) == "invalid_client"
        assert answer.headers["www-authenticate"].startswith("Basic")

    def test_wrong_ones(self, broker: RunningBroker, http: httpx.Client) -> None:
        id, password = broker.client.client_id, broker.client.client_password
        told = set()
        for pair in (f"{id}:wrong", f"{id}:", f"nobody:{password}", ":", f"{id}:{id}", "x:\x00"):
            answer = http.post(self.PATH, params={"grant_type": self.GRANT}, headers=basic(pair))
            told.add(reason(answer, 401))
        assert told == {"unauthorized_client"}

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            (b"", "invalid_request"),
            (b"grant=client_credentials", "invalid_request"),
            (b"grant_type=", "invalid_request"),
            (b"grant_type=password", "unsupported_grant_type"),
            (b"grant_type=authorization_code&code=x", "unsupported_grant_type"),
            (b"grant_type=CLIENT_CREDENTIALS", "unsupported_grant_type"),
            (b"\xff\xfe", "invalid_request"),
            (b"a=1&" * 50, "invalid_request"),
        ],
    )
    def test_other_grants(
        self, broker: RunningBroker, http: httpx.Client, content: bytes, told: str
    ) -> None:
        answer = http.post(self.PATH, content=content, headers=self.good(broker))
        assert reason(answer, 400) == told

    def test_a_form_without_an_end(self, broker: RunningBroker, http: httpx.Client) -> None:
        answer = http.post(self.PATH, content=b"x" * 70_000, headers=self.good(broker))
        assert "65536" in reason(answer, 413)

    def test_each_door_knows_its_own(
        self, broker: RunningBroker, http: httpx.Client, agent_http: httpx.Client
    ) -> None:
        query = {"grant_type": self.GRANT}
        answer = agent_http.post(self.PATH, params=query, headers=self.good(broker))
        assert reason(answer, 401) == "unauthorized_client"


def test_an_agent_that_does_not_trust_its_broker_says_what_to_name(broker: RunningBroker) -> None:
    async def refused() -> str:
        url = f"https://localhost:{broker.doors.agent_port}"
        door = BrokerDoor([url], ssl.create_default_context(), SystemClock())
        try:
            with pytest.raises(Unavailable) as caught:
                await door.enrol(broker.statement, "n1")
        finally:
            await door.close()
        return caught.value.message

    message = asyncio.run(refused())
    assert "its certificate is not trusted here; name its authority's CA file" in message


def test_enrolment_has_a_limit_that_an_agent_waits_for(tmp_path: Path) -> None:
    async def enrolled(broker: RunningBroker) -> str:
        url = f"https://localhost:{broker.doors.agent_port}"
        door = BrokerDoor([url], broker.context, SystemClock())
        try:
            return (await door.enrol(broker.statement, "n1")).client_id
        finally:
            await door.close()

    def is_told_to_wait(broker: RunningBroker, http: httpx.Client) -> bool:
        # Whoever comes just behind a crowd may find that a place was added meanwhile.
        tries = (http.post("/register", content=b"") for _ in range(5000))
        refused = next(one for one in tries if one.status_code == 429)
        assert int(refused.headers["retry-after"]) == 1
        try:
            asyncio.run(enrolled(broker))
        except Unavailable as error:
            return "429" in error.message
        return False

    def is_let_in(broker: RunningBroker) -> bool:
        try:
            id = asyncio.run(enrolled(broker))
        except Unavailable:
            return False
        return broker.house.replica.fleet.get(AgentClient, id) is not None

    with running_broker(tmp_path / "state") as broker:
        with broker.http(broker.doors.agent_port) as http:
            until(lambda: is_told_to_wait(broker, http))
        until(lambda: is_let_in(broker))


class TestEnrolment:
    def test_a_statement_enrols_and_what_it_gives_is_for_agents_only(
        self, broker: RunningBroker, http: httpx.Client, agent_http: httpx.Client
    ) -> None:
        answer = agent_http.post(
            "/register", json={"software_statement": broker.statement, "client_name": "n" * 999}
        )
        assert answer.status_code == 201
        assert answer.headers["cache-control"] == "no-store"
        body = answer.json()
        header = basic(f"{body['client_id']}:{body['client_secret']}")
        query = {"grant_type": "client_credentials"}
        token = agent_http.post("/oauth2/token", params=query, headers=header)
        assert token.status_code == 200
        reason(http.post("/oauth2/token", params=query, headers=header), 401)
        reason(http.post(DESCRIBE, headers=bearer(token.json()["access_token"])), 401)
        assert body["client_secret"] not in broker.log.text()

    @pytest.mark.parametrize(
        ("body", "told"),
        [
            (b'{"software_statement": "wrong"}', "unapproved_software_statement"),
            (b'{"software_statement": ""}', "unapproved_software_statement"),
            (b'{"software_statement": null}', "invalid_client_metadata"),
            (b'{"software_statement": "\\ud800"}', "invalid_client_metadata"),
            (b'{"software_statement": "\xff"}', "invalid_client_metadata"),
            (b"{}", "unapproved_software_statement"),
            (b"", "invalid_client_metadata"),
            (b"[" * 50_000, "invalid_client_metadata"),
        ],
    )
    def test_others_do_not(self, agent_http: httpx.Client, body: bytes, told: str) -> None:
        assert reason(agent_http.post("/register", content=body), 400) == told

    def test_peers_show_who_they_are(self, broker: RunningBroker, agent_http: httpx.Client) -> None:
        for path in ("/broker/poke", "/broker/screenshot"):
            reason(agent_http.post(path), 401)
            reason(agent_http.post(path, headers=bearer(broker.token)), 401)
        peer = bearer(broker.sign(Audience.BROKER))
        assert agent_http.post("/broker/poke", headers=peer).status_code == 204
        reason(agent_http.post("/broker/screenshot", headers=peer, content=b"{"), 400)
        reason(agent_http.post("/broker/screenshot", headers=peer, content=b"[" * 50_000), 400)


class TestVerifier:
    PATH = "/agent/validate-authentication-token"

    def verdict(self, answer: httpx.Response) -> ET.Element:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/xml")
        assert answer.headers["cache-control"] == "no-store"
        verdict = ET.fromstring(answer.text)
        assert verdict.tag == "auth"
        return verdict

    @pytest.mark.parametrize("user", ["alice", "a<b>&'\"c", "DOMAIN\\ü", "</username>", "]]>"])
    def test_yes_and_the_user_as_it_was_given(
        self, http: httpx.Client, agent_http: httpx.Client, user: str
    ) -> None:
        quoted = urllib.parse.quote(user, safe="")
        token = http.get(f"/sessionConnectionData/ready/{quoted}").json()["ConnectionToken"]
        form = {"sessionId": "ready", "authenticationToken": token, "clientAddress": "10.0.0.9"}
        # A token may be shown again: clients reconnect with it.
        for _ in range(2):
            verdict = self.verdict(agent_http.post(self.PATH, data=form))
            assert verdict.get("result") == "yes"
            assert verdict.findtext("username") == user

    def test_no_and_not_why_in_detail(
        self, broker: RunningBroker, http: httpx.Client, agent_http: httpx.Client
    ) -> None:
        token = http.get("/sessionConnectionData/ready/alice").json()["ConnectionToken"]
        claims: dict[str, Any] = {
            "dcvSessionId": "ready",
            "dcvSessionUser": "alice",
            "dcvSessionGeneration": 1,
        }
        expired = broker.sign(Audience.CONNECT, timedelta(seconds=-61), **claims)
        older = broker.sign(Audience.CONNECT, **{**claims, "dcvSessionGeneration": 0})
        bad = [
            ("old1", token),
            ("nothing", token),
            ("", token),
            ("<&>", token),
            ("ready", ""),
            ("ready", "<x>&"),
            ("ready", broker.token),
            ("ready", expired),
            ("ready", older),
            ("ready", token[:-3]),
            ("ready", "A" * 9000),
        ]
        for session_id, shown in bad:
            form = {"sessionId": session_id, "authenticationToken": shown}
            verdict = self.verdict(agent_http.post(self.PATH, data=form))
            assert verdict.get("result") == "no"
            assert verdict.findtext("message")
            assert verdict.find("username") is None
        assert token not in broker.log.text()
        assert "token.refused" in broker.log.events()

    @pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"a=1&" * 50, b"{}", b"sessionId"])
    def test_forms_that_are_none(self, agent_http: httpx.Client, body: bytes) -> None:
        verdict = self.verdict(agent_http.post(self.PATH, content=body))
        assert verdict.get("result") == "no"

    def test_one_without_an_end(self, agent_http: httpx.Client) -> None:
        verdict = self.verdict(agent_http.post(self.PATH, content=b"x" * 70_000))
        assert verdict.get("result") == "no"


class Link:
    """An agent's end of a link, which moves on only while a test waits for it."""

    def __init__(self, broker: RunningBroker, url: str, headers: dict[str, str]) -> None:
        self._runner = asyncio.Runner()

        async def opened() -> ClientConnection:
            return await connect(
                url,
                ssl=broker.context,
                additional_headers=headers,
                compression=None,
                max_size=None,
                ping_interval=None,
                proxy=None,
            )

        try:
            self._socket = self._runner.run(opened())
        except BaseException:
            self._runner.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._socket.close())
        self._runner.close()

    def send(self, frame: str | bytes) -> None:
        self._runner.run(self._socket.send(frame))

    def receive(self) -> str | bytes:
        async def received() -> str | bytes:
            async with asyncio.timeout(CALL_SECONDS):
                return await self._socket.recv()

        return self._runner.run(received())


def is_ill(broker: RunningBroker, server_id: str) -> bool:
    facts = broker.house.replica.fleet.facts(server_id)
    return facts is not None and facts.unhealthy is not None


class TestAgentLinks:
    @pytest.fixture
    def server_id(self, broker: RunningBroker) -> Iterator[str]:
        """Yield the id of an enrolled agent; afterwards a good link has to be welcome."""
        agent = broker.call(broker.house.access.register_agent(broker.statement, "n"))
        yield agent.client_id
        with self.link(broker, agent.client_id) as link:
            assert isinstance(self.greet(link), Welcome)
        is_well(broker)

    def link(self, broker: RunningBroker, server_id: str) -> Link:
        return self.dial(broker, bearer(broker.sign(Audience.AGENT, sub=server_id)))

    def dial(self, broker: RunningBroker, headers: dict[str, str]) -> Link:
        return Link(broker, f"wss://localhost:{broker.doors.agent_port}/agent/link", headers)

    def is_let_in(self, broker: RunningBroker, server_id: str) -> bool:
        try:
            self.link(broker, server_id).__exit__()
        except InvalidStatus as refusal:
            return refusal.response.status_code not in {403, 503}
        return True

    def greet(self, link: Link, version: int = VERSION) -> object:
        hello = Hello(version=version, facts=some_facts("anything"), observed=())
        link.send(encode(hello).decode())
        return decode_from_broker(link.receive())

    def is_ended(self, link: Link) -> bool:
        """Read until the link is closed; a link that goes on fails after a while."""
        with contextlib.suppress(ConnectionClosed):
            for _ in range(10):
                link.receive()
            return False
        return True

    def test_strangers_are_not_let_in(self, broker: RunningBroker, server_id: str) -> None:
        headers = [
            {},
            {"Authorization": "Basic eDp5"},
            bearer("x"),
            bearer(broker.token),
            bearer(broker.sign(Audience.AGENT, sub="nobody")),
            bearer(broker.sign(Audience.CONNECT, sub=server_id)),
            bearer(broker.sign(Audience.AGENT, timedelta(seconds=-61), sub=server_id)),
        ]
        for header in headers:
            with pytest.raises(InvalidStatus) as caught:
                self.dial(broker, header)
            assert caught.value.response.status_code == 403

    def test_who_shows_a_token_is_no_stranger(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two strangers at a time may be at this broker's doors: others have to become known."""
        monkeypatch.setattr(listener, "Gate", partial(Gate, most_strangers=2))
        with running_broker(tmp_path) as broker, contextlib.ExitStack() as held:

            def client(port: int) -> httpx.Client:
                return held.enter_context(broker.http(port))

            def is_full(port: int) -> bool:
                try:
                    return client(port).get("/health").status_code != 200
                except httpx.TransportError:
                    return True

            api, agents = broker.doors.client_port, broker.doors.agent_port
            given = client(api).post(
                "/oauth2/token",
                params={"grant_type": "client_credentials"},
                auth=(broker.client.client_id, broker.client.client_password),
            )
            assert given.status_code == 200
            assert client(api).post("/describeSessions", headers=bearer(broker.token)).is_success
            registration = {"software_statement": broker.statement, "client_name": "n"}
            enrolled = client(agents).post("/register", json=registration)
            peer = bearer(broker.sign(Audience.BROKER))
            assert client(agents).post("/broker/poke", headers=peer).is_success
            with self.link(broker, enrolled.json()["client_id"]):
                full = [is_full(port) for port in (api, agents, api, agents)]
                assert full == [False, False, True, True]
        assert "connection.refused" in broker.log.events()

    def test_another_version_is_told_so(self, broker: RunningBroker, server_id: str) -> None:
        for version in (0, 2, 99):
            with self.link(broker, server_id) as link:
                answer = self.greet(link, version)
                assert isinstance(answer, Refusal)
                assert "version" in answer.reason
                assert self.is_ended(link)
        until(lambda: "link.refused" in broker.log.events())

    @pytest.mark.parametrize(
        "frame",
        [
            "",
            "x",
            "{}",
            "[" * 100_000,
            '{"type":"hello"}',
            b"\x00\xff",
            b"",
            encode(Heartbeat(epoch=0)).decode(),
            encode(Observation(epoch=0, serial=0, observed=())).decode(),
        ],
    )
    def test_a_link_that_begins_with_noise(
        self, broker: RunningBroker, server_id: str, frame: str | bytes
    ) -> None:
        with self.link(broker, server_id) as link:
            link.send(frame)
            assert self.is_ended(link)

    def test_noise_on_an_open_link(self, broker: RunningBroker, server_id: str) -> None:
        hello = Hello(version=VERSION, facts=some_facts(), observed=())
        for frame in ("x", b"\x00", encode(hello).decode(), '{"type":"heartbeat","epoch":"1"}'):
            with self.link(broker, server_id) as link:
                assert isinstance(self.greet(link), Welcome)
                link.send(frame)
                assert self.is_ended(link)

    def test_a_message_that_is_too_large(self, broker: RunningBroker, server_id: str) -> None:
        with self.link(broker, server_id) as link:
            assert isinstance(self.greet(link), Welcome)
            with contextlib.suppress(ConnectionClosed):
                link.send(" " * (listener.MAX_WEBSOCKET_BYTES + 1))
            assert self.is_ended(link)
        until(lambda: "link.cut" in broker.log.events())

    def test_who_says_too_much_is_listened_to_slowly_and_to_the_end(
        self, broker: RunningBroker, server_id: str
    ) -> None:
        with self.link(broker, server_id) as link:
            welcome = self.greet(link)
            assert isinstance(welcome, Welcome)
            beat = encode(Heartbeat(epoch=welcome.epoch)).decode()
            ill = FactsChanged(epoch=welcome.epoch, facts=some_facts(unhealthy="no X"))
            began = time.monotonic()
            for _ in range(throttle.MESSAGES_AT_ONCE + 50):
                link.send(beat)
            link.send(encode(ill).decode())
            until(lambda: is_ill(broker, server_id))
            assert time.monotonic() - began > 45 / throttle.MESSAGES_PER_SECOND

    def test_who_begins_link_after_link_is_let_wait(self, broker: RunningBroker) -> None:
        agent = broker.call(broker.house.access.register_agent(broker.statement, "n"))
        for _ in range(throttle.LINKS_PER_MINUTE):
            self.link(broker, agent.client_id).__exit__()
        assert [self.is_let_in(broker, agent.client_id) for _ in range(50)].count(False) > 0
        is_well(broker)

    def test_what_an_old_epoch_says_is_passed_over(
        self, broker: RunningBroker, server_id: str
    ) -> None:
        with self.link(broker, server_id) as link:
            welcome = self.greet(link)
            assert isinstance(welcome, Welcome)
            for epoch in (welcome.epoch - 1, welcome.epoch + 1):
                link.send(encode(Heartbeat(epoch=epoch)).decode())
            assert isinstance(decode_from_broker(link.receive()), Desired)
            link.send(encode(Heartbeat(epoch=welcome.epoch)).decode())

    def test_the_younger_link_ends_the_older(self, broker: RunningBroker, server_id: str) -> None:
        with self.link(broker, server_id) as old:
            first = self.greet(old)
            with self.link(broker, server_id) as new:
                second = self.greet(new)
                assert isinstance(first, Welcome)
                assert isinstance(second, Welcome)
                assert second.epoch > first.epoch
                assert self.is_ended(old)
                assert isinstance(decode_from_broker(new.receive()), Desired)

    def test_other_paths_have_no_link(self, broker: RunningBroker) -> None:
        header = bearer(broker.token)
        for door in (f"{broker.doors.agent_port}/x", f"{broker.doors.client_port}/agent/link"):
            with pytest.raises(InvalidStatus):
                Link(broker, f"wss://localhost:{door}", header)
        is_well(broker)


class BrokenStore(MemoryStore):
    """A store that is gone from one moment on."""

    def __init__(self) -> None:
        super().__init__()
        self.broken = False

    def _check(self) -> None:
        if self.broken:
            raise StoreFailed("disk /dev/secret1 is full")

    def changes(self, since: Revision) -> tuple[Revision, list[Stored | Tombstone]]:
        self._check()
        revision, entries = super().changes(since)
        return revision, list(entries)

    def commit(self, change_sets: Any) -> list[Revision | Lost]:
        self._check()
        return list(super().commit(change_sets))

    def glance(self) -> Revision | None:
        return None if self.broken else super().glance()


class SlowStore(MemoryStore):
    """A store that, while a test says so, answers what is asked only once that is over."""

    def __init__(self) -> None:
        super().__init__()
        self.flows = threading.Event()
        self.flows.set()

    def changes(self, since: Revision) -> tuple[Revision, list[Stored | Tombstone]]:
        assert self.flows.wait(CALL_SECONDS)
        revision, entries = super().changes(since)
        return revision, list(entries)

    def glance(self) -> Revision | None:
        return super().glance() if self.flows.is_set() else None


def test_of_guesses_that_come_at_once_no_more_are_judged(tmp_path: Path) -> None:
    """All of them may be let in to the store before the first one is counted."""
    store, guesses = SlowStore(), 20

    def guess(number: int) -> int:
        with slow.http(slow.doors.client_port) as http:
            url = "/oauth2/token?grant_type=client_credentials"
            answer = http.post(url, auth=(slow.client.client_id, str(number)))
            return answer.status_code

    quiet: dict[str, Any] = {"poll_seconds": 60.0, "broker_beat_seconds": 60.0}
    with running_broker(tmp_path, store, **quiet) as slow, ThreadPoolExecutor(guesses) as pool:
        store.flows.clear()
        statuses = pool.map(guess, range(guesses))
        try:
            commits = slow.house.replica._commits
            assert isinstance(commits, GroupCommit)
            # The first of them is with the store, and the others stand behind it.
            until(lambda: len(commits._reads) == guesses - 1)
        finally:
            store.flows.set()
        told = Counter(statuses)
    assert told == {401: throttle.REFUSED_LOGINS_PER_MINUTE, 429: 15}


def flattened(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from flattened(inner)
    else:
        yield error


class TestWithoutAStore:
    def seen(self, folder: Path, ask: Callable[[httpx.Client], httpx.Response]) -> httpx.Response:
        """Return what a client is answered after the store is gone; the broker has to end."""
        answers: list[httpx.Response] = []
        with pytest.raises(BaseExceptionGroup) as caught:
            self.run_out(folder, ask, answers)
        assert {type(one) for one in flattened(caught.value)} == {StoreFailed}
        return answers[0]

    def run_out(
        self,
        folder: Path,
        ask: Callable[[httpx.Client], httpx.Response],
        answers: list[httpx.Response],
    ) -> None:
        store = BrokenStore()
        with running_broker(folder, store, poll_seconds=1.0, broker_beat_seconds=60.0) as broker:
            with broker.http(broker.doors.client_port) as client:
                client.headers.update(bearer(broker.token))
                assert client.post(DESCRIBE).status_code == 200
                store.broken = True
                answers.append(ask(client))
            broker.wait_for_end()

    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("GET", "/health", None),
            ("POST", DESCRIBE, {}),
            ("POST", "/createSessions", [{"Name": "a", "Owner": "b", "Type": "VIRTUAL"}]),
        ],
    )
    def test_nothing_is_answered_from_memory(
        self, tmp_path: Path, method: str, path: str, body: Any
    ) -> None:
        answer = self.seen(tmp_path, lambda client: client.request(method, path, json=body))
        assert reason(answer, 503) == "the store can't be reached"
        assert answer.headers["retry-after"] == "1"
