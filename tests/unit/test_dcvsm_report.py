"""What dcvsm tells on standard error holds no secret, whatever a broker answers."""

from __future__ import annotations

import base64
import io
import json
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from deskfleet.cli.dcvsm_report import Report

SECRET = "eyJhbGciOiJSUzI1NiJ9.c2VjcmV0.c2lnbmF0dXJl"
PASSWORD = "p ä/ss&wörd%"
BASIC = base64.b64encode(f"id:{PASSWORD}".encode()).decode()


def told(report: Report) -> str:
    stream = report._stream
    assert isinstance(stream, io.StringIO)
    return stream.getvalue()


@pytest.fixture
def report() -> Report:
    return Report(io.StringIO(), debug=True)


def ask(report: Report, **more: Any) -> None:
    report.request(httpx.Request("POST", "https://broker:8443/x", **more))


def answer(report: Report, status: int = 200, **more: Any) -> None:
    report.response(httpx.Response(status, **more))


def test_requests_and_answers_are_told(report: Report) -> None:
    ask(report, json={"Name": "cad"}, headers={"Authorization": f"Bearer {SECRET}"})
    answer(report, json={"NextToken": "page-2", "RequestId": "1"})
    assert told(report).splitlines() == [
        "dcvsm: debug: > POST https://broker:8443/x",
        "dcvsm: debug: > Authorization: Bearer ***",
        'dcvsm: debug: > {"Name": "cad"}',
        "dcvsm: debug: < HTTP 200 OK",
        "dcvsm: debug: < content-type: application/json",
        "dcvsm: debug: < content-length: 38",
        'dcvsm: debug: < {"NextToken": "page-2", "RequestId": "1"}',
    ]


def test_without_debug_nothing_is_told_and_secrets_are_learned() -> None:
    report = Report(io.StringIO())
    answer(report, json={"access_token": "opaque-token"})
    assert told(report) == ""
    report.tell("it says opaque-token, again opaque-token")
    assert told(report) == "dcvsm: it says ***, again ***\n"


@pytest.mark.parametrize(
    "body",
    [
        {"access_token": SECRET},
        {"refresh_token": SECRET, "id_token": SECRET},
        {"ConnectionToken": SECRET, "Session": {"Id": "1"}},
        {"connection-token": SECRET},
        {"Deep": [{"er": {"client_secret": SECRET}}]},
        {"Password": SECRET},
        {"tokens": [SECRET]},
        {"Credential": {"x": SECRET}},
    ],
)
def test_secret_members_are_masked(body: Any, report: Report) -> None:
    ask(report, json=body)
    answer(report, json=body)
    assert SECRET not in told(report)
    assert "***" in told(report)


@pytest.mark.parametrize("secret", [SECRET, PASSWORD, "short", BASIC])
@pytest.mark.parametrize(
    "form",
    [
        str,
        lambda text: quote(text, safe=""),
        lambda text: quote(text, safe="/"),
        json.dumps,
        lambda text: " ".join(text.split()),
        lambda text: base64.b64encode(text.encode()).decode(),
    ],
)
def test_what_is_known_to_be_secret_is_masked_anywhere(
    secret: str, form: Any, report: Report
) -> None:
    report.learn(secret)
    report.tell(f"echo: [{form(secret)}]")
    answer(report, json={"error": f"bad {form(secret)}"}, headers={"server": form(secret).encode()})
    for each in (secret, form(secret)):
        assert each not in told(report)


def test_a_secret_that_is_cut_off_is_masked(report: Report) -> None:
    report.learn(SECRET)
    for length in range(12, len(SECRET)):
        report.tell(f"invalid header {SECRET[:length]}")
    assert set(told(report).splitlines()) == {"dcvsm: invalid header ***"}


def test_credentials_in_a_request_are_known_from_then_on(report: Report) -> None:
    ask(report, headers={"Authorization": f"Basic {BASIC}"})
    report.tell(f"the proxy says: {BASIC}")
    assert BASIC not in told(report)


def test_bodies_that_are_not_json_are_not_shown(report: Report) -> None:
    answer(report, text=f"access_token={SECRET}")
    assert SECRET not in told(report)
    assert "bytes that are not JSON" in told(report)


def test_pictures_are_not_shown(report: Report) -> None:
    answer(report, json={"Images": [{"Data": "iVBORw0KGgo=", "Primary": True}]})
    assert "iVBORw0KGgo" not in told(report)
    assert "12 characters of a picture" in told(report)


def test_queries_are_not_shown(report: Report) -> None:
    url = "https://tokens/x?api_key=hidden"
    report.request(httpx.Request("POST", url))
    answer(report, 302, headers={"Location": "https://elsewhere/?code=hidden"})
    assert "hidden" not in told(report)
    report.request(httpx.Request("POST", "https://t/x?grant_type=client_credentials"))
    assert "?grant_type=client_credentials" in told(report)


def test_control_characters_stay_out_of_the_terminal(report: Report) -> None:
    report.tell("a\x1b[31mb\x07\u202ec\nsecond")
    answer(report, json={"Name": "\x1b[31m\x9b"}, headers={"server": "x\x1b]0;title\x07"})
    assert "dcvsm: abc\ndcvsm: second\n" in told(report)
    assert "\x1b" not in told(report)
    assert "\x9b" not in told(report)
