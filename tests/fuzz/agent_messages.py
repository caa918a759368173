"""What agents say, fuzzed from the frame to the rows that follow from it."""

from __future__ import annotations

from deskfleet.broker.service import observing
from deskfleet.broker.service.observing import desires, open_link, take_facts, take_observed
from deskfleet.broker.stores.codec import Codec
from deskfleet.core.change import Change, Put, Stored
from deskfleet.core.fleet import Fleet
from deskfleet.core.pictures import look
from deskfleet.core.records import Phase, Record, Report, Session, kind_of
from deskfleet.core.session import replace
from deskfleet.errors import ProtocolError
from deskfleet.ports import Picture
from deskfleet.wire.messages import (
    FactsChanged,
    FromAgent,
    Heartbeat,
    Hello,
    Observation,
    Observed,
    PicturePart,
    Screenshot,
    decode_from_agent,
    encode,
)
from support.builders import (
    NOON,
    a_fleet,
    a_link,
    a_report,
    a_server,
    a_session,
    a_spec,
    some_facts,
)
from support.fuzzing import Target
from support.house import running

ME = "n1"
PLACED = a_session("s1", server=ME)
KNOWN: list[Record] = [
    *(a_server(ME), some_facts(ME), a_link(ME), a_server("n2")),
    *(PLACED, a_session("s2", server=ME, ended_at=NOON)),
    a_session("s3", server="n2", adopted=True, generation=0),
    a_session("s4", server="n2"),
]
CODEC = Codec()


def agent_messages() -> Target[bytes]:
    """Laws: what an agent says changes rows of its own server only, none of them twice; what is
    written can be read again; and hearing it a second time adds no session."""
    return Target(
        readers=[_run],
        seeds=[
            *map(encode, _messages()),
            b"",
            b"[" * 50_000,
            b'{"type":"observation","epoch":1,"serial":1,"observed":[' + b"{}," * 20_000,
            b'{"type":"facts","epoch":1,"facts":{"id":"' + b"\\u0000" * 30_000 + b'"}}',
        ],
        words=[
            *(b'"type":"hello"', b'"observation"', b'"facts"', b'"heartbeat"', b'"screenshot"'),
            b'"picture-part"',
            *(b'"generation":', b'"phase":', b'"RUNNING"', b'"ENDED"', b'"FAILED"', b'"STARTING"'),
            *(b'"id":"console"', b'"s1"', b'"s2"', b'"s3"', b'"s4"', b'@n1"', b'@n2"', b'"owner":'),
            *(b'"running":{', b'"request":{', b'"created_at":"0001-01-01T00:00:00+14:00"', b"null"),
            *(b"{", b"}", b"[", b"]", b":", b",", b'"', b"-1", b"0", b"9" * 19, b"1e400", b"\\ud8"),
        ],
        modules=["service/observing.py", "core/session.py", "core/pictures.py"],
        longest=200_000,
    )


def _messages() -> list[FromAgent]:
    report = a_report(PLACED)
    foreign = Report(id="console", server_id=ME, generation=0, phase=Phase.RUNNING)
    observed = (
        Observed(report=report, running=running("s1", generation=1), spec=a_spec(PLACED)),
        Observed(report=foreign, running=running("console", owner="ann", created_at=NOON)),
        Observed(report=replace(foreign, id="s3"), running=running("s3")),
        Observed(report=replace(foreign, id="s3@n1"), running=running("s3@n1")),
        Observed(report=replace(report, id="s4", phase=Phase.ENDED, reason="over")),
    )
    many = tuple(
        Observed(report=replace(foreign, id=f"f{number}"), running=running(f"f{number}"))
        for number in range(300)
    )
    picture = Picture(format="png", content=b"\x89PNG\r\n\x1a\n" + b"\0" * 30, taken_at=NOON)
    facts = some_facts(ME, gpu="yes", load=(1.0, 2.0, 3.0))
    return [
        Hello(version=1, facts=facts, observed=observed),
        Observation(epoch=1, serial=0, observed=observed),
        Observation(epoch=1, serial=0, observed=many),
        FactsChanged(epoch=1, facts=some_facts(ME, tags={"a": "b"})),
        PicturePart(request=1, picture=0, content=b"\x89PNG\r\n\x1a\n"),
        Screenshot(request=1, pictures=(picture,)),
        Heartbeat(epoch=1),
    ]


def _run(frame: bytes) -> None:
    try:
        message = decode_from_agent(frame)
    except ProtocolError:
        return
    fleet = a_fleet(*KNOWN)
    _write(fleet, _changes_of(fleet, message))
    count = fleet.count(Session)
    assert count <= len(KNOWN) + observing.MOST_ADOPTED
    _write(fleet, _changes_of(fleet, message))
    assert fleet.count(Session) == count


def _changes_of(fleet: Fleet, message: FromAgent) -> list[Change]:
    match message:
        case Hello():
            facts = take_facts(fleet, replace(message.facts, id=ME), even_load=True)
            return [*open_link(fleet, ME, "b1", NOON), *facts, *_taken(fleet, message)]
        case Observation():
            desires(fleet, ME, message.observed)
            return _taken(fleet, message)
        case FactsChanged():
            return take_facts(fleet, replace(message.facts, id=ME), even_load=False)
        case Screenshot():
            for picture in message.pictures:
                look(picture.content)
    return []


def _taken(fleet: Fleet, message: Hello | Observation) -> list[Change]:
    return take_observed(fleet, ME, message.observed, NOON, retries=2).changes


def _write(fleet: Fleet, changes: list[Change]) -> None:
    assert len({change.key for change in changes}) == len(changes)
    revision = fleet.revision + 1
    for change in changes:
        if isinstance(change, Put):
            record = change.record
            before = fleet.session(record.id)
            assert before is None or before.server_id == ME
            assert getattr(record, "server_id", record.id) in {ME, None}
            kept = CODEC.decode(kind_of(record), record.id, revision, CODEC.encode(record))
            assert kept == Stored(revision, record)
            fleet.apply(kept)
