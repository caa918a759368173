"""Logs tell the facts, one line each, and no secret, whoever logged it and however."""

from __future__ import annotations

import copy
import io
import json
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from deskfleet.errors import SetupFailed
from deskfleet.observe import (
    MASK,
    MAX_FIELD,
    MAX_FIELDS,
    MAX_ITEMS,
    MAX_SELDOM,
    RepeatsFilter,
    Secret,
    configure_logging,
    redact,
    seldom,
)

JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJib2IifQ.c2lnbmF0dXJlLXNpZ25hdHVyZQ"
log = logging.getLogger("deskfleet.tests")


def configured(*, as_json: bool = True, level: str = "debug") -> io.StringIO:
    """Configure as a program does; the handlers of pytest, which fail their callers, are gone."""
    root = logging.getLogger()
    root.handlers[:] = [h for h in root.handlers if type(h).__module__ == "deskfleet.observe"]
    stream = io.StringIO()
    configure_logging(level, stream, json=as_json)
    return stream


def fail(text: str) -> None:
    raise ValueError(text)


def only_line(stream: io.StringIO) -> dict[str, Any]:
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1, lines
    decoded: dict[str, Any] = json.loads(lines[0])
    return decoded


class TestSeldom:
    def written(self, *moments: tuple[float, str, dict[str, Any]]) -> list[tuple[str, int]]:
        """Return which of these events are written, with how many were left out before."""
        now = 0.0
        repeats = RepeatsFilter(lambda: now)
        told = []
        for moment, event, fields in moments:
            now = moment
            record = log.makeRecord(log.name, logging.INFO, "f", 1, event, (), None, extra=fields)
            if repeats.filter(record):
                told.append((event, getattr(record, "left_out", 0)))
        return told

    def test_every_ten_seconds_for_each_address_and_kind(self) -> None:
        one, other = seldom("192.0.2.1", "/path", 401), seldom("192.0.2.2", "/path", 401)
        assert self.written(
            (0.0, "a.refused", one),
            (0.1, "a.refused", one),
            (0.2, "a.refused", other),
            (0.3, "a.refused", seldom("192.0.2.1", "/path", 429)),
            (0.4, "another.refused", one),
            (9.9, "a.refused", one),
            (10.0, "a.refused", one),
            (10.1, "a.refused", one),
            (30.0, "a.refused", one),
            (50.0, "a.refused", one),
        ) == [
            ("a.refused", 0),
            ("a.refused", 0),
            ("a.refused", 0),
            ("another.refused", 0),
            ("a.refused", 2),
            ("a.refused", 1),
            ("a.refused", 0),
        ]

    def test_a_host_has_a_whole_network(self) -> None:
        hosts = [(0.0, "a.b", seldom(f"2001:db8::{number}")) for number in range(1, 9)]
        assert self.written(*hosts) == [("a.b", 0)]

    def test_all_else_is_written_always(self) -> None:
        assert len(self.written(*[(0.0, "a.b", {"address": "192.0.2.1"})] * 5)) == 5

    def test_memory_has_an_end(self) -> None:
        repeats = RepeatsFilter(lambda: 0.0)
        for number in range(MAX_SELDOM + 100):
            fields = seldom(str(number))
            assert repeats.filter(log.makeRecord("x", 20, "f", 1, "a.b", (), None, extra=fields))
        assert len(repeats._written) == MAX_SELDOM

    def test_in_lines(self) -> None:
        stream = configured()
        for _ in range(3):
            log.info("token.refused", extra={"address": "192.0.2.1", **seldom("192.0.2.1")})
            logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
        for _ in range(2):
            logging.getLogger("uvicorn.error").error("Exception in ASGI application")
        lines = [json.loads(line) for line in stream.getvalue().splitlines()]
        assert [line["event"] for line in lines] == [
            "token.refused",
            "Invalid HTTP request received.",
            *["Exception in ASGI application"] * 2,
        ]
        assert set(lines[0]) == {"time", "level", "logger", "event", "address"}


class TestJsonLines:
    def test_hold_the_event_and_its_facts(self) -> None:
        stream = configured()
        log.info("session.started", extra={"session_id": "s1", "seats": 3, "ready": True})
        line = only_line(stream)
        assert line["event"] == "session.started"
        assert line["level"] == "info"
        assert line["logger"] == "deskfleet.tests"
        assert (line["session_id"], line["seats"], line["ready"]) == ("s1", 3, True)
        assert line["time"].endswith("Z")
        assert "T" in line["time"]

    def test_keep_fields_that_bear_our_names(self) -> None:
        stream = configured()
        log.info("x.y", extra={"time": "noon", "event": "forged"})
        line = only_line(stream)
        assert line["event"] == "x.y"
        assert (line["time_"], line["event_"]) == ("noon", "forged")

    @pytest.mark.parametrize("odd", ["a\r\nb", "\x1b[2Jx", "\x9b2J", "\x7f", "\u2028", "\u202e"])
    def test_can_not_be_forged(self, odd: str) -> None:
        stream = configured()
        log.info("request.refused %s", odd, extra={"name_": odd, odd: 1})
        text = stream.getvalue()
        assert text.isascii()
        assert text[:-1].isprintable()
        assert only_line(stream)["name_"] == odd

    def test_cap_what_they_hold(self) -> None:
        stream = configured()
        log.info("y" * 100_000, extra={"name_": "z" * 100_000, "items": ["x"] * 100_000})
        line = only_line(stream)
        assert len(line["name_"]) < MAX_FIELD + 50
        assert len(line["event"]) < MAX_FIELD + 50
        assert len(line["items"]) == MAX_ITEMS

    def test_that_would_be_too_long_go_without_their_fields(self) -> None:
        stream = configured()
        big = {f"f{i}": ["x" * 10_000] * 100 for i in range(50)}
        log.info("x.y", extra=big)
        line = only_line(stream)
        assert (line["event"], line["fields_dropped"]) == ("x.y", MAX_FIELDS)

    def test_hold_odd_values_as_text(self) -> None:
        stream = configured()
        log.info(
            "x.y", extra={"load": float("nan"), "raw": b"\x00", "set": {"a"}, "deep": [[[[[1]]]]]}
        )
        line = only_line(stream)
        assert line["load"] == "nan"
        assert line["set"] == ["a"]

    def test_hold_the_exception(self) -> None:
        stream = configured()
        try:
            fail("broken\nhere")
        except ValueError:
            log.exception("x.failed")
        line = only_line(stream)
        assert "ValueError: broken\nhere" in line["exception"]


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no")


class Shifting(Mapping[str, str]):
    def __getitem__(self, key: str) -> str:
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(["gone"])

    def __len__(self) -> int:
        return 1


class TestNoRecordFailsItsCaller:
    def test_not_one_with_wrong_arguments(self) -> None:
        stream = configured()
        log.info("only %d", "text")
        log.info("too many", 1, 2)  # noqa: PLE1205  (the mistake is the point)
        assert [json.loads(t)["event"] for t in stream.getvalue().splitlines()] == [
            "only %d",
            "too many",
        ]

    def test_not_one_with_odd_objects(self) -> None:
        stream = configured()
        log.info("x.y", extra={"odd": Unprintable(), "gone": Shifting()})
        line = only_line(stream)
        assert (line["odd"], line["gone"]) == ("<Unprintable>", "<Shifting>")
        log.info(Unprintable())
        assert json.loads(stream.getvalue().splitlines()[1])["event"] == "record.unprintable"


class TestText:
    def test_is_one_readable_line(self) -> None:
        stream = configured(as_json=False)
        log.warning("server.full", extra={"server_id": "s1", "reason": "no seat", "seats": 2})
        text = stream.getvalue()
        assert text.endswith(
            'WARNING deskfleet.tests server.full server_id=s1 reason="no seat" seats=2\n'
        )

    def test_can_not_be_forged(self) -> None:
        stream = configured(as_json=False)
        log.info("a\nb \x1b[31m", extra={"name_": "c\r\nd\x9b\u202e", "list": ["e\x1b\u2028"]})
        lines = stream.getvalue().split("\n")
        assert len(lines) == 2
        assert lines[0].isprintable()

    def test_shows_other_scripts_as_they_are(self) -> None:
        stream = configured(as_json=False)
        log.info("x.y", extra={"owner": "Åsa-美"})
        assert "owner=Åsa-美" in stream.getvalue()

    def test_indents_a_traceback(self) -> None:
        stream = configured(as_json=False)
        try:
            fail("broken \x1b[2J")
        except ValueError:
            log.exception("x.failed")
        head, *rest = stream.getvalue().rstrip("\n").split("\n")
        assert head.endswith("x.failed")
        assert all(line.startswith("    ") and line.isprintable() for line in rest)


LEAKS = [
    f"https://h:8443/?authToken={JWT}#session",
    "https://h/?a=1&authToken=hunter2-hunter2&b=2",
    "authToken%3Dhunter2-hunter2",
    "Authorization: Bearer hunter2-hunter2",
    "authorization: Basic aHVudGVyMi1odW50ZXIy",
    "Proxy-Authorization: Digest hunter2-hunter2, nonce=hunter2-hunter2",
    "{'Authorization': 'Bearer hunter2-hunter2', 'Accept': 'x'}",
    "[(b'Authorization', b'Basic hunter2-hunter2'), (b'cookie', b'sid=hunter2-hunter2; a=b')]",
    '{"client_secret": "hunter2-hunter2 hunter2-hunter2", "a": 1}',
    '{\\"client_secret\\": \\"hunter2-hunter2\\"}',
    "grant_type=client_credentials&client_secret=hunter2-hunter2",
    "client-password: hunter2-hunter2",
    "software-statement: hunter2-hunter2",
    "Set-Cookie: desk=hunter2-hunter2; Path=/; Secure",
    "Cookie: a=hunter2-hunter2; b=hunter2-hunter2",
    "X-aws-ec2-metadata-token: hunter2-hunter2",
    "connection token='hunter2-hunter2'",
    f"the broker said {JWT} and hung up",
    f"cut off {JWT[:30]}",
    "postgresql://fleet:hunter2-hunter2@db/fleet",
    "-----BEGIN PRIVATE KEY-----\nhunter2-hunter2\n-----END PRIVATE KEY-----",
    "-----BEGIN EC PRIVATE KEY-----\nhunter2-hunter2",
]


def leaks(text: str) -> bool:
    return "hunter2" in text or "eyJ" in text or "aHVudGVyMi" in text or "c2lnbmF0dXJl" in text


class TestSecrets:
    @pytest.mark.parametrize("text", LEAKS)
    def test_are_masked_in_text(self, text: str) -> None:
        assert leaks(text)
        assert MASK in redact(text)
        assert not leaks(redact(text))

    def test_leave_the_rest_readable(self) -> None:
        assert redact(LEAKS[1]) == f"https://h/?a=1&authToken={MASK}&b=2"
        assert redact(LEAKS[0]).endswith("#session")
        plain = (
            "token.issued for session s1 of owner bob; 3 tokens, GET /createSessions 200 basic auth"
        )
        assert redact(plain) == plain

    @pytest.mark.parametrize("as_json", [True, False])
    @pytest.mark.parametrize("text", LEAKS)
    def test_are_masked_wherever_a_record_holds_them(self, text: str, *, as_json: bool) -> None:
        stream = configured(as_json=as_json)
        log.info(text)
        log.info("argument %s", text)
        log.info("argument %(a)s", {"a": text})
        log.info("field", extra={"answer": text, "nested": {"list": [text, {text: text}]}})
        try:
            fail(text)
        except ValueError:
            try:
                fail("outer")
            except ValueError:
                log.exception("exception", stack_info=True)
        logging.getLogger("some.library").warning("other loggers too: %s", text)
        assert len(stream.getvalue().splitlines()) >= 6
        assert not leaks(stream.getvalue())

    def test_are_masked_by_the_name_of_a_field(self) -> None:
        stream = configured()
        fields = {"client_secret": "abc", "authToken": "abc", "nested": {"Authorization": ["abc"]}}
        log.info("x.y", extra={**fields, "password": Secret("abc"), "token_count": 3, "tokens": 4})
        assert "abc" not in stream.getvalue()
        assert only_line(stream)["token_count"] == 3

    def test_stay_masked_for_other_handlers(self) -> None:
        stream, other = configured(), io.StringIO()
        late = logging.StreamHandler(other)
        logging.getLogger().addHandler(late)
        try:
            fail("client_secret=hunter2")
        except ValueError:
            log.exception("x.failed authToken=%s", "hunter2")
        assert "ValueError" in other.getvalue()
        assert not leaks(stream.getvalue() + other.getvalue())

    @pytest.mark.parametrize(
        "hostile",
        ["token ", "a-", "eyJ", "://a:", "-----BEGIN ", 'token"', "authorization\\", "A "],
    )
    def test_are_looked_for_in_bounded_time(self, hostile: str) -> None:
        begin = time.process_time()
        redact(hostile * 100_000)
        assert time.process_time() - begin < 2


class TestSecret:
    def test_prints_masked_and_reveals(self) -> None:
        secret = Secret("hunter2")
        shown = f"{secret} {secret!r} {secret!s:>20} {[secret]} {copy.deepcopy({'k': secret})}"
        assert "hunter2" not in shown + "%s" % secret  # noqa: UP031  (that spelling is the point)
        assert secret.reveal() == "hunter2"
        assert not hasattr(secret, "__dict__")

    def test_compares_by_what_it_holds(self) -> None:
        assert Secret("a") == Secret("a")
        assert Secret("a") != Secret("b")
        assert Secret("a") != "a"
        assert len({Secret("a"), Secret("a")}) == 1
        assert not Secret("")


class TestConfiguring:
    def test_again_replaces_and_does_not_double(self) -> None:
        first, second = configured(), configured()
        log.info("x.y")
        assert first.getvalue() == ""
        assert len(second.getvalue().splitlines()) == 1

    def test_refuses_an_unknown_level(self) -> None:
        with pytest.raises(SetupFailed, match="debug"):
            configure_logging("loud", io.StringIO(), json=True)

    def test_holds_talkative_libraries_down(self) -> None:
        stream = configured(level="debug")
        logging.getLogger("httpx").info('HTTP Request: GET https://h/?q=1 "200"')
        logging.getLogger("httpcore.http11").debug("headers")
        logging.getLogger("uvicorn.access").info("access")
        assert stream.getvalue() == ""
        assert not logging.getLogger("uvicorn.access").hasHandlers()
        logging.getLogger("uvicorn.error").warning("kept")
        assert only_line(stream)["event"] == "kept"

    def test_level_error_holds_for_libraries_too(self) -> None:
        stream = configured(level="error")
        logging.getLogger("httpx").warning("x")
        log.warning("x")
        assert stream.getvalue() == ""
