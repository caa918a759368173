"""What `dcv` prints, and what is made of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from deskfleet.agent.drivers import dcv_answers
from deskfleet.core.records import Type
from deskfleet.errors import Unavailable
from deskfleet.ports import Door

WHOLE = {
    "id": "s",
    "owner": "alice",
    "name": "Größe",
    "type": "console",
    "num-of-connections": 2,
    "creation-time": "2026-03-04T05:06:07.123456Z",
    "last-disconnection-time": "2026-03-04T06:00:00Z",
    "licenses": [{"product": "dcv", "status": "LICENSED"}],
    "x11-display": ":1",
    "display-layout": [{"width": 1, "height": 1, "x": 0, "y": 0}],
}


def test_a_list_with_all_and_with_the_least() -> None:
    whole, least = dcv_answers.sessions(
        json.dumps([WHOLE, {"id": "t", "owner": "bob", "num-of-connections": 0}]).encode()
    )
    assert (whole.kind, whole.num_of_connections, whole.name) == (Type.CONSOLE, 2, "Größe")
    assert whole.created_at == datetime(2026, 3, 4, 5, 6, 7, 123456, UTC)
    assert whole.last_disconnection_at == datetime(2026, 3, 4, 6, 0, tzinfo=UTC)
    assert (least.id, least.type, least.created_at) == ("t", "", None)


@pytest.mark.parametrize("text", ["", "soon", "0000-00-00T00:00:00Z", "2026-13-01"])
def test_a_time_that_is_none(text: str) -> None:
    one = dcv_answers.session(json.dumps({**WHOLE, "last-disconnection-time": text}).encode())
    assert one.last_disconnection_at is None


@pytest.mark.parametrize(
    "output",
    [
        b"",
        b"{}",
        b"null",
        b'[{"owner":"x"}]',
        b"[[]]",
        b"[",
        b"\xff",
        b'[{"id":1}]',
        b"Session: 'a'",
        b'[{"id":"s","x":' + b"[" * 100_000,
        b'[{"id":"s","num-of-connections":-1}]',
    ],
)
def test_nonsense_is_not_an_empty_list(output: bytes) -> None:
    with pytest.raises(Unavailable, match="can't be understood"):
        dcv_answers.sessions(output)


@pytest.mark.parametrize(
    ("told", "doors"),
    [
        ([{"protocol": "http", "port": 8443}], [(8443, "/", "HTTP")]),
        ({"endpoints": [{"type": "QUIC", "port": 9}]}, [(9, "/", "QUIC")]),
        (
            {"web-port": 1, "quic-port": 2, "web-url-path": "/d"},
            [(1, "/d", "HTTP"), (2, "/d", "QUIC")],
        ),
        ([{"port": 8443}, {"fingerprint": "00:11"}], []),
        ([{"protocol": "http", "port": 0}, {"protocol": "http", "port": "x"}], []),
        ("text", []),
    ],
)
def test_ports_are_found_where_it_is_sure_what_they_are(told: Any, doors: list[Any]) -> None:
    found = dcv_answers.doors(json.dumps(told).encode())
    assert found == tuple(Door(port=a, web_url_path=b, protocol=c) for a, b, c in doors)


def test_endpoints_that_are_no_json_name_no_port() -> None:
    assert dcv_answers.doors(b"Endpoint: 8443") == ()
    assert dcv_answers.doors(b"[" * 100_000) == ()


@pytest.mark.parametrize(
    ("output", "value"),
    [(b"8443\n", "8443"), (b"'/x'\n", "/x"), (b'"y"', "y"), (b"", ""), (b"'", "'")],
)
def test_a_setting_without_its_quotes(output: bytes, value: str) -> None:
    assert dcv_answers.setting(output) == value


@pytest.mark.parametrize(
    ("output", "version"),
    [
        (b"NICE DCV 2021.3 (r11591)\nCopyright (C) 2010-2021 NICE s.r.l.\n", "2021.3.11591"),
        (b"Amazon DCV 2024.0-19030\n", "2024.0.19030"),
        (b"Amazon DCV 2025.0 ", "2025.0"),
        (b"Copyright 2010-2024", None),
        (b"\xff", None),
    ],
)
def test_the_version_in_what_it_says_of_itself(output: bytes, version: str | None) -> None:
    assert dcv_answers.version(output) == version
