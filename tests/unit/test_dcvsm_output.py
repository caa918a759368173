"""What dcvsm prints: keys of the generated clients, in the order of the description."""

from __future__ import annotations

import inspect
import json
from typing import Any

import msgspec
import pytest

from deskfleet.cli.dcvsm_output import failures, members, printed, snake
from deskfleet.client import shapes
from deskfleet.client.problems import Unreadable
from support import openapi

API = openapi.description()
FIELDS = {
    (field.encode_name, field.name)
    for _, kind in inspect.getmembers(shapes, inspect.isclass)
    if issubclass(kind, msgspec.Struct)
    for field in msgspec.structs.fields(kind)
}
SESSIONS = shapes.DescribeSessionsResponse
CREATED = shapes.CreateSessionsResponse


def told(answer: Any, kind: type[msgspec.Struct] = SESSIONS) -> dict[str, Any]:
    return members(json.dumps(answer).encode(), kind)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # As openapi-generator 7 names the attributes of its Python models.
        ("EC2InstanceType", "ec2_instance_type"),
        ("EC2InstanceId", "ec2_instance_id"),
        ("EC2ImageId", "ec2_image_id"),
        ("NextToken", "next_token"),
        ("OneMinute", "one_minute"),
        ("NumberOfCpus", "number_of_cpus"),
        ("PhysicalCoresPerCpu", "physical_cores_per_cpu"),
        ("DefaultDnsName", "default_dns_name"),
        ("DcvGlEnabled", "dcv_gl_enabled"),
        ("WebUrlPath", "web_url_path"),
        ("Id", "id"),
        ("HTTPPort", "http_port"),
        ("some-Name", "some_name"),
    ],
)
def test_names_are_those_of_the_generators(name: str, expected: str) -> None:
    assert snake(name) == expected


def test_every_member_of_the_api_is_named_by_the_same_rule() -> None:
    assert len(FIELDS) > 60
    assert {snake(wire) for wire, _ in FIELDS} == {name for _, name in FIELDS}
    assert all(snake(wire) == name for wire, name in FIELDS)


@pytest.mark.parametrize(
    "name", [name for name in openapi.schemas(API) if name.endswith("Response")]
)
def test_an_empty_answer_has_every_key_of_its_description_in_order(name: str) -> None:
    kind = getattr(shapes, name, None) or shapes.UnsuccessfulSession
    described = [snake(member) for member in openapi.schemas(API)[name]["properties"]]
    assert list(told({}, kind)) == described
    assert set(told({}, kind).values()) == {None}


def test_what_the_broker_gives_is_printed_as_it_is() -> None:
    when = "2020-10-06T10:15:31.633Z"
    session = {
        "StorageRoot": "/ä",
        "Id": "1",
        "CreationTime": when,
        "NumOfConnections": 9007199254740993,
        "Server": {"Port": "8443", "Endpoints": [{"Port": 8443}], "Host": {"Aws": {"Region": "x"}}},
    }
    answer = told({"Sessions": [session]})
    (seen,) = answer["sessions"]
    assert seen["creation_time"] == when
    assert seen["num_of_connections"] == 9007199254740993
    assert seen["server"]["port"] == "8443"
    assert seen["server"]["endpoints"][0] == {
        "ip_address": None,
        "port": 8443,
        "web_url_path": None,
        "protocol": None,
    }
    assert list(seen["server"]["host"]["aws"]) == [
        "region",
        "ec2_instance_type",
        "ec2_instance_id",
        "ec2_image_id",
    ]
    assert list(seen)[:3] == ["id", "name", "owner"]
    assert json.loads(printed(answer)) == answer


def test_members_that_nobody_knows_come_last() -> None:
    answer = told({"FutureThing": {"InnerThing": [1]}, "Sessions": [], "sessions": "a second one"})
    assert list(answer) == ["request_id", "sessions", "next_token", "future_thing"]
    assert answer["future_thing"] == {"inner_thing": [1]}
    assert answer["sessions"] == []


@pytest.mark.parametrize(
    "answer", [b"", b"no", b"[]", b'"x"', b"null", b"\xff", b"[" * 100_000, b'{"a":' * 100_000]
)
def test_what_is_no_answer_is_unreadable(answer: bytes) -> None:
    with pytest.raises(Unreadable):
        members(answer, SESSIONS)


def test_wrong_types_are_shown_rather_than_refused() -> None:
    answer = told({"Sessions": {"Id": 1}, "NextToken": [None]})
    assert answer["next_token"] == [None]
    assert told({"Sessions": None})["sessions"] is None


def test_only_printable_ascii_leaves() -> None:
    hostile = "".join(map(chr, [*range(32), *range(127, 160), 0x202E, 0xD800, 0x1F600]))
    text = printed(told({"NextToken": hostile, hostile: hostile}))
    assert all(" " <= each <= "~" or each == "\n" for each in text)
    assert json.loads(text)["next_token"] == hostile


@pytest.mark.parametrize(
    ("failed", "sentence"),
    [
        ({"SessionId": "1", "FailureReason": "gone"}, "1: gone"),
        ({"CreateSessionRequestData": {"Name": "n"}, "FailureReason": "full"}, "n: full"),
        ({"OpenServerRequestData": {"ServerId": "s"}, "FailureCode": "NONE"}, "s: NONE"),
        ({"FailureReason": "why"}, "why"),
        ({}, "refused"),
        ("nonsense", "refused"),
    ],
)
def test_each_refusal_is_a_sentence(failed: Any, sentence: str) -> None:
    assert list(failures(told({"UnsuccessfulList": [failed]}, CREATED))) == [sentence]


@pytest.mark.parametrize("answer", [{}, {"UnsuccessfulList": None}, {"UnsuccessfulList": []}])
def test_nothing_refused_is_nothing_told(answer: Any) -> None:
    assert list(failures(told(answer, CREATED))) == []
