"""What is printed where the encoding of the output lacks characters."""

from __future__ import annotations

import codecs
import errno
import io
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskfleet.cli import stdout


@pytest.fixture(autouse=True)
def _prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    stdout.prepare()


@given(st.text(), st.sampled_from(["ascii", "latin-1", "cp1252", "utf-8"]))
def test_json_stays_json(text: str, encoding: str) -> None:
    document = json.dumps(text, ensure_ascii=False)
    written = document.encode(encoding, errors="deskfleet.spelled").decode(encoding)
    assert json.loads(written) == text


def test_what_the_encoding_has_stays_as_it_is() -> None:
    assert "größer 日🙂".encode("latin-1", errors="deskfleet.spelled") == (
        "größer ".encode("latin-1") + rb"\u65e5\ud83d\ude42"
    )


def test_it_stands_in_for_nothing_when_reading() -> None:
    with pytest.raises(UnicodeDecodeError):
        codecs.decode(b"\xff", "utf-8", errors="deskfleet.spelled")


def test_what_fails_elsewhere_is_not_said_of_the_output() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    for raised in (full, ExceptionGroup("tasks", [full])):
        with pytest.raises(type(raised)) as caught, stdout.printed():
            raise raised
        assert caught.value is raised
