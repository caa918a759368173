"""What broker and agent write, the other one reads; anything else ends the link."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect

from deskfleet.broker.service.camera import MOST_PICTURES
from deskfleet.broker.stores.codec import Codec
from deskfleet.broker.web.bodies import MAX_NAME
from deskfleet.core import permissions, requirements
from deskfleet.core.change import Stored
from deskfleet.core.pictures import MOST_BYTES
from deskfleet.core.records import (
    MOST_CHARACTERS,
    Endpoint,
    Facts,
    Gpu,
    Intent,
    Phase,
    Report,
    SessionRequest,
    Type,
)
from deskfleet.core.requirements import parse
from deskfleet.core.server import Seats, is_full, told_bytes
from deskfleet.core.session import LATEST, replace
from deskfleet.errors import ProtocolError
from deskfleet.ports import Picture, Running, SessionSpec
from deskfleet.settings import BrokerSettings
from deskfleet.wire.bounds import MOST_ID_CHARACTERS, bounded
from deskfleet.wire.messages import (
    MAX_MESSAGE_BYTES,
    MAX_SET_BYTES,
    MOST_PART_BYTES,
    Desire,
    Desired,
    FactsChanged,
    FromAgent,
    FromBroker,
    Heartbeat,
    Hello,
    Observation,
    Observed,
    PicturePart,
    Refusal,
    Screenshot,
    TakeScreenshot,
    Welcome,
    decode_from_agent,
    decode_from_broker,
    encode,
    in_parts,
)
from support.builders import NOON, a_report, a_request, a_session, a_spec, some_facts

DEFAULTS = BrokerSettings()

FACTS = some_facts(
    load=(0.5, 0.25, 0.125),
    gpu="yes",
    endpoints=(Endpoint(ip_address="10.0.0.7", port=8444),),
    types=(Type.VIRTUAL, Type.CONSOLE),
    unhealthy="no X",
)
OBSERVED = Observed(
    report=a_report(a_session(server="n1"), connections=2, last_disconnection_at=NOON),
    running=Running(
        session_id="s1", generation=1, owner="alice", type=Type.VIRTUAL, created_at=NOON
    ),
)
SPEC = SessionSpec(
    session_id="s1",
    generation=3,
    request=a_request(autorun_file_arguments=("--a", "b c"), requirements="tag:a = 'ü'"),
)
FROM_AGENT: list[FromAgent] = [
    Hello(version=1, facts=FACTS, observed=(OBSERVED,)),
    Observation(epoch=1, serial=2, observed=(OBSERVED, Observed(report=OBSERVED.report))),
    FactsChanged(epoch=1, facts=FACTS),
    Heartbeat(epoch=9),
    PicturePart(request=3, picture=1, content=b"\x89\0"),
    Screenshot(request=3, pictures=(Picture(format="png", content=b"\x89\0", taken_at=NOON),)),
    Screenshot(request=3, missing=True, reason="gone"),
]
FROM_BROKER: list[FromBroker] = [
    Welcome(epoch=4, heartbeat_seconds=10.0),
    Refusal(reason="try another", retry_after_seconds=0.5),
    Desired(epoch=4, serial=8, desires=(Desire(spec=SPEC, intent=Intent.STOP, started=True),)),
    TakeScreenshot(request=1, session_id="s1", max_width=160, max_height=100, format="jpeg"),
]


@pytest.mark.parametrize("message", FROM_AGENT, ids=lambda message: type(message).__name__)
def test_what_an_agent_writes_is_read(message: FromAgent) -> None:
    line = encode(message)
    assert decode_from_agent(line) == message
    assert decode_from_agent(line.decode()) == message


@pytest.mark.parametrize("message", FROM_BROKER, ids=lambda message: type(message).__name__)
def test_what_a_broker_writes_is_read(message: FromBroker) -> None:
    assert decode_from_broker(encode(message)) == message


def test_neither_reads_what_only_the_other_may_say() -> None:
    for message in FROM_AGENT:
        with pytest.raises(ProtocolError):
            decode_from_broker(encode(message))
    for answer in FROM_BROKER:
        with pytest.raises(ProtocolError):
            decode_from_agent(encode(answer))


def test_members_of_a_newer_peer_are_ignored() -> None:
    line = json.dumps({"type": "heartbeat", "epoch": 1, "mood": {"is": ["good"]}})
    assert decode_from_agent(line) == Heartbeat(epoch=1)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"type":"heartbeat"}',
        b'{"type":"heartbeat","epoch":"1"}',
        b'{"type":"heartbeat","epoch":1.5}',
        b'{"type":"heartbeat","epoch":1}{}',
        b'{"type":"\xff","epoch":1}',
        b'{"type":"heartbeat","epoch":1,"x":' + b"[" * 100_000,
        '{"type":"heartbeat","epoch":1',
        "\udc80",
    ],
)
def test_garbage_is_refused(line: bytes | str) -> None:
    with pytest.raises(ProtocolError, match="can't be read"):
        decode_from_agent(line)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("last_disconnection_at", "2030-01-01T00:00:00"),
        ("last_disconnection_at", "yesterday"),
        ("connections", 2**63),
        ("generation", -(2**63) - 1),
        ("phase", "DREAMING"),
    ],
)
def test_a_report_that_no_client_could_read_is_refused(member: str, value: Any) -> None:
    report: dict[str, Any] = {"id": "s", "server_id": "n", "generation": 1, "phase": "RUNNING"}
    text = json.dumps(
        {"type": "observation", "epoch": 1, "serial": 1, "observed": [{"report": report}]}
    )
    assert decode_from_agent(text)
    report[member] = value
    with pytest.raises(ProtocolError):
        decode_from_agent(
            json.dumps(
                {"type": "observation", "epoch": 1, "serial": 1, "observed": [{"report": report}]}
            )
        )


def test_a_message_may_be_so_large_and_no_larger() -> None:
    line = encode(Heartbeat(epoch=1))
    assert decode_from_agent(line + b" " * (MAX_MESSAGE_BYTES - len(line))) == Heartbeat(epoch=1)
    with pytest.raises(ProtocolError, match="larger"):
        decode_from_agent(line + b" " * (MAX_MESSAGE_BYTES - len(line) + 1))


@pytest.mark.parametrize(
    "sizes",
    [(), (0,), (MOST_PART_BYTES,), (MOST_PART_BYTES + 1,), (MOST_BYTES,), (7, 10**6, 9, 10**6)],
)
def test_a_picture_of_any_size_is_said_in_small_messages(sizes: tuple[int, ...]) -> None:
    pictures = tuple(
        Picture(format="png", content=bytes([place]) * size, taken_at=NOON)
        for place, size in enumerate(sizes)
    )
    *parts, last = in_parts(Screenshot(request=3, pictures=pictures))
    contents = [b""] * len(sizes)
    for part in parts:
        assert isinstance(part, PicturePart)
        assert len(encode(part)) < MAX_MESSAGE_BYTES / 16
        assert 0 < len(part.content) <= MOST_PART_BYTES
        contents[part.picture] += part.content
    assert isinstance(last, Screenshot)
    assert len(encode(last)) < MAX_MESSAGE_BYTES
    told = [one.content for one in last.pictures]
    assert [a + b for a, b in zip(contents, told, strict=True)] == [one.content for one in pictures]


def test_what_fits_is_said_in_one_message() -> None:
    for answer in (
        Screenshot(request=3, missing=True, reason="gone"),
        Screenshot(request=3, pictures=(Picture(format="png", content=b"x", taken_at=NOON),) * 16),
    ):
        assert list(in_parts(answer)) == [answer]
    full = Picture(format="png", content=b"x" * MOST_PART_BYTES, taken_at=NOON)
    [message] = in_parts(Screenshot(request=3, pictures=(full,) * MOST_PICTURES))
    assert len(encode(message)) < MAX_MESSAGE_BYTES


def unlimited(info: inspect.Type, path: str = "") -> Iterator[str]:
    """Yield the ways to all texts, lists and tables of a type that have no limit."""
    match info:
        case inspect.StrType(max_length=None):
            yield path
        case inspect.StructType(cls=kind, fields=fields):
            for field in fields:
                yield from unlimited(field.type, f"{path}/{kind.__name__}.{field.name}")
        case inspect.UnionType(types=types):
            for one in types:
                yield from unlimited(one, path)
        case inspect.VarTupleType(item_type=item, max_length=most):
            yield from unlimited(item, f"{path}[]")
            yield from () if most else (path,)
        case inspect.DictType(key_type=key, value_type=value, max_length=most):
            yield from (*unlimited(key, f"{path}:key"), *unlimited(value, f"{path}:value"))
            yield from () if most else (path,)
        case inspect.ListType() | inspect.SetType() | inspect.AnyType() | inspect.RawType():
            yield path


def test_no_text_list_or_table_of_an_agent_is_without_a_limit() -> None:
    found = list(unlimited(inspect.type_info(FromAgent)))
    assert "/Observation.observed[]/Observed.report/Report.id" in found
    assert len(found) > 50
    assert list(unlimited(inspect.type_info(bounded(FromAgent)))) == []


@pytest.mark.parametrize(
    "facts",
    [
        some_facts(hostname="x" * 1_000_000),
        some_facts(tags={f"dcv:{number}": "x" for number in range(20_000)}),
        some_facts(tags={"x" * 10_000: ""}),
        some_facts(endpoints=(Endpoint(ip_address="10.0.0.7", port=1),) * 20_000),
    ],
    ids=["hostname", "tags", "tag", "endpoints"],
)
def test_facts_that_are_too_long_are_refused(facts: Facts) -> None:
    for message in (FactsChanged(epoch=1, facts=facts), Hello(version=1, facts=facts, observed=())):
        with pytest.raises(ProtocolError, match="length"):
            decode_from_agent(encode(message))


def spec_of(request: SessionRequest) -> SessionSpec:
    return SessionSpec(session_id="s1", generation=1, request=request, created_at=NOON)


def test_so_are_ids_and_sets() -> None:
    for observed in (
        (OBSERVED,) * 10_001,
        (replace(OBSERVED, report=replace(OBSERVED.report, id="x" * 257)),),
        (Observed(report=OBSERVED.report, spec=spec_of(a_request(owner="x" * 10_000))),),
    ):
        with pytest.raises(ProtocolError, match="length"):
            decode_from_agent(encode(Observation(epoch=1, serial=1, observed=observed)))


def test_each_has_room_for_what_is_asked_for() -> None:
    asked = a_request(
        permissions_file=LONGEST_FILE, name="x" * 256, init_file="x" * MOST_CHARACTERS
    )
    observed = (Observed(report=OBSERVED.report, spec=spec_of(asked)),)
    sent = Observation(epoch=1, serial=1, observed=observed)
    assert decode_from_agent(encode(sent)) == sent
    tags = {f"key-{number}": "x" * MOST_CHARACTERS for number in range(900)}
    facts = FactsChanged(epoch=1, facts=some_facts(tags=tags))
    assert decode_from_agent(encode(facts)) == facts


LONGEST_FILE = base64.b64encode(b"#" * permissions.MAX_BYTES).decode()
WIDE = "\N{GRINNING FACE}"
"""A character that takes as many bytes as any that may stand in all of these."""
LARGEST = a_request(
    name=WIDE * MAX_NAME,
    owner=WIDE * MAX_NAME,
    init_file=WIDE * MOST_CHARACTERS,
    autorun_file=WIDE * MOST_CHARACTERS,
    autorun_file_arguments=(WIDE * DEFAULTS.autorun_file_arguments_max_argument_length,)
    * DEFAULTS.autorun_file_arguments_max_size,
    storage_root=WIDE * MOST_CHARACTERS,
    requirements="tag:a='" + "\x01" * (requirements.MAX_LENGTH - 8) + "'",
    permissions_file=LONGEST_FILE,
    max_concurrent_clients=2**31 - 1,
    dcv_gl_enabled=True,
    enqueue=True,
    disable_retry=True,
)


def test_a_thousand_of_the_largest_sessions_fit_into_one_set() -> None:
    parse(LARGEST.requirements or "")
    permissions.decode(LONGEST_FILE)
    taken, desires = Seats(), []
    for number in range(1_000):
        session = a_session(f"{number:036}", server="n1", request=LARGEST)
        assert not is_full(some_facts(), taken)
        taken.add(session)
        desires.append(Desire(spec=a_spec(session), intent=Intent.RUN, started=True))
    line = encode(Desired(epoch=1, serial=1, desires=tuple(desires)))
    assert len(line) < taken.told_bytes < MAX_SET_BYTES
    read = decode_from_broker(line)
    assert isinstance(read, Desired)
    assert read.desires[-1] == desires[-1]


def test_a_session_is_told_in_no_more_bytes_than_are_counted() -> None:
    for id in ("s1", "\x01" * MOST_ID_CHARACTERS):
        for request in (a_request(), a_request(owner="\x01" * 99), LARGEST):
            spec = SessionSpec(session_id=id, generation=2**31, request=request, created_at=LATEST)
            desire = Desire(spec=spec, intent=Intent.RUN, started=True)
            one, two = ((desire,) * count for count in (1, 2))
            sizes = [len(encode(Desired(epoch=1, serial=1, desires=some))) for some in (one, two)]
            assert sizes[1] - sizes[0] <= told_bytes(request)


def test_what_is_stored_has_no_limit() -> None:
    session = a_session(reason="x" * 1_000_000, owner="y" * 1_000_000)
    codec = Codec()
    assert codec.decode("session", "s1", 2, codec.encode(session)) == Stored(2, session)


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_nothing_but_a_protocol_error_comes_of_noise(noise: bytes | str) -> None:
    for decode in (decode_from_agent, decode_from_broker):
        with pytest.raises(ProtocolError):
            decode(noise)


@given(
    at=st.datetimes(timezones=st.just(UTC)),
    reason=st.none() | st.text(),
    generation=st.integers(0, 2**63 - 1),
    phase=st.sampled_from(Phase),
)
def test_reports_survive_the_wire(
    at: datetime, reason: str | None, generation: int, phase: Phase
) -> None:
    report = Report(
        id="s",
        server_id="n",
        generation=generation,
        phase=phase,
        reason=reason,
        last_disconnection_at=at,
    )
    sent = Observation(epoch=1, serial=1, observed=(Observed(report=report),))
    assert decode_from_agent(encode(sent)) == sent


def test_a_gpu_without_a_name_is_one_all_the_same() -> None:
    facts = some_facts()
    line = encode(FactsChanged(epoch=1, facts=facts)).replace(
        b'"memory_used":1000', b'"memory_used":1000,"gpus":[{}]'
    )
    read = decode_from_agent(line)
    assert isinstance(read, FactsChanged)
    assert read.facts.host.gpus == (Gpu(),)
