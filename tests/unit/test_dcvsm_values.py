"""Values of dcvsm's options that need more than the library for command lines has."""

from __future__ import annotations

import pytest

from deskfleet.cli.dcvsm_values import ids, listed, segment, spelled_out, truth
from deskfleet.errors import Invalid

VALUED = {"--name", "--enqueue-request"}


@pytest.mark.parametrize(
    ("given", "spelled"),
    [
        ([], []),
        (["--enqueue-request"], ["--enqueue-request=true"]),
        (["--enqueue-request", "false"], ["--enqueue-request=false"]),
        (["--enqueue-request", "maybe"], ["--enqueue-request=maybe"]),
        (["--enqueue-request=false"], ["--enqueue-request=false"]),
        (["--enqueue-request", "--name", "x"], ["--enqueue-request=true", "--name", "x"]),
        (["--name", "--enqueue-request"], ["--name", "--enqueue-request"]),
        (["--name", "--name", "--enqueue-request"], ["--name", "--name", "--enqueue-request=true"]),
        (["--name=x", "--enqueue-request"], ["--name=x", "--enqueue-request=true"]),
        (["--force", "--enqueue-request", "true"], ["--force", "--enqueue-request=true"]),
        (["--name"], ["--name"]),
        (["--enqueue-request", ""], ["--enqueue-request="]),
    ],
)
def test_a_flag_with_a_value_is_told_from_a_bare_one(given: list[str], spelled: list[str]) -> None:
    assert spelled_out(given, VALUED) == spelled


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (None, ()),
        ("", ()),
        ("a", ("a",)),
        ("a,b", ("a", "b")),
        (" a , b ,", ("a", "b")),
        ('"a,b",c', ("a,b", "c")),
        ('--title="x"', ('--title="x"',)),
    ],
)
def test_lists_have_commas(text: str | None, parts: tuple[str, ...]) -> None:
    assert listed("--x", text) == parts


@pytest.mark.parametrize("text", ['"a', "a\nb", '"a"b'])
def test_a_broken_list_is_refused_by_name(text: str) -> None:
    with pytest.raises(Invalid, match="--x"):
        listed("--x", text)


@pytest.mark.parametrize("text", ["", ",", " , "])
def test_ids_that_name_nothing_are_not_all(text: str) -> None:
    with pytest.raises(Invalid, match="--session-ids names nothing"):
        ids("--session-ids", text)


@pytest.mark.parametrize(
    ("value", "part"),
    [("a/b", "a%2Fb"), ("D\\u", "D%5Cu"), ("a b?c#d", "a%20b%3Fc%23d"), ("ä", "%C3%A4")],
)
def test_a_part_of_a_path_stays_one(value: str, part: str) -> None:
    assert segment("--user", value) == part


@pytest.mark.parametrize("value", ["", ".", "..", "\udcff"])
def test_what_would_lead_elsewhere_is_refused(value: str) -> None:
    with pytest.raises(Invalid, match="--user"):
        segment("--user", value)


def test_truths() -> None:
    assert truth("--x", "True")
    assert not truth("--x", "FALSE")
    with pytest.raises(Invalid, match="neither true nor false"):
        truth("--x", "1")
