"""What broker and agent write, the other one reads; anything else ends the link."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskfleet.core.records import Endpoint, Gpu, Intent, Phase, Report, Type
from deskfleet.errors import ProtocolError
from deskfleet.ports import Picture, Running, SessionSpec
from deskfleet.wire.messages import (
    MAX_MESSAGE_BYTES,
    Desire,
    Desired,
    FactsChanged,
    FromAgent,
    FromBroker,
    Heartbeat,
    Hello,
    Observation,
    Observed,
    Refusal,
    Screenshot,
    TakeScreenshot,
    Welcome,
    decode_from_agent,
    decode_from_broker,
    encode,
)
from support.builders import NOON, a_report, a_request, a_session, some_facts

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
