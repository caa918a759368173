"""What a broker and an agent say to each other, and how it is written.

One JSON object per WebSocket text message, tagged by its `type`; instants are RFC 3339, bytes
are base64. Sets are always whole: a lost, doubled or late message is mended by the next one.
`serial` is the fleet revision that a desired set was computed at, so it only grows.

Law: a message that doesn't decode, or is larger than its limits (those of what an agent says are in
`bounds.py`), ends the link; unknown members are ignored, so that a newer peer can add some.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias, TypeVar

import msgspec

from deskfleet.core.records import Facts, Frozen, Intent, Report
from deskfleet.core.server import MOST_TOLD_BYTES
from deskfleet.errors import ProtocolError
from deskfleet.ports import Picture, Running, SessionSpec
from deskfleet.wire.bounds import bounded

VERSION = 1
"""Of this protocol. A broker refuses a hello of another version."""

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""Of what an agent says. Full sets of some ten thousand sessions fit."""

MOST_PART_BYTES = 128 * 1024
"""Of a picture in one message; a larger one comes in parts. What else an agent has to say gets in
between, heartbeats above all, however slow the line is."""

MAX_SET_BYTES = MOST_TOLD_BYTES + 16 * 1024 * 1024
"""Of what a broker says: a desired set holds the permissions files of all sessions that are to run
on a server. No session is placed on one of which there is so much to say; what is more than that
is for brokers that place, or change permissions, at the same moment."""


SCREENSHOT_SECONDS = 10.0
"""For how long a client waits for a screenshot."""


class Observed(Frozen, frozen=True):
    """One session as an agent sees it."""

    report: Report
    running: Running | None = None
    """What a broker needs to adopt a session that deskfleet did not create."""
    spec: SessionSpec | None = None
    """Of a session that it did create and that the last desired set does not name: with it a broker
    that has lost the session takes it up again as it was."""


class Hello(Frozen, frozen=True, tag="hello"):
    """The first message of an agent."""

    version: int
    facts: Facts
    observed: tuple[Observed, ...]


class Observation(Frozen, frozen=True, tag="observation"):
    """The whole observed set, as of the desired set `serial` (0 before the first)."""

    epoch: int
    serial: int
    observed: tuple[Observed, ...]


class FactsChanged(Frozen, frozen=True, tag="facts"):
    epoch: int
    facts: Facts


class Heartbeat(Frozen, frozen=True, tag="heartbeat"):
    epoch: int


class PicturePart(Frozen, frozen=True, tag="picture-part"):
    """The next bytes of a picture, before the `Screenshot` to which it belongs."""

    request: int
    picture: int
    """Its place among the pictures."""
    content: bytes


class Screenshot(Frozen, frozen=True, tag="screenshot"):
    """The answer to `TakeScreenshot`: pictures, or the reason why there are none.

    The content of a picture follows what came of it in parts.
    """

    request: int
    pictures: tuple[Picture, ...] = ()
    missing: bool = False
    reason: str | None = None


class Welcome(Frozen, frozen=True, tag="welcome"):
    """The answer to `Hello`: the link is this agent's only one now, and this is its epoch."""

    epoch: int
    heartbeat_seconds: float


class Refusal(Frozen, frozen=True, tag="refusal"):
    """Instead of `Welcome`; the link ends."""

    reason: str
    retry_after_seconds: float


class Desire(Frozen, frozen=True):
    """What one session on a server should be."""

    spec: SessionSpec
    intent: Intent
    started: bool = False
    """This generation is known to have run: if it isn't there it has ended, so don't start it."""


class Desired(Frozen, frozen=True, tag="desired"):
    """The whole desired set of a server. What isn't named in it is left alone."""

    epoch: int
    serial: int
    desires: tuple[Desire, ...]


class TakeScreenshot(Frozen, frozen=True, tag="take-screenshot"):
    request: int
    session_id: str
    max_width: int
    max_height: int
    format: str
    seconds: float = SCREENSHOT_SECONDS
    """For how long somebody waits for it, from now on."""


FromAgent: TypeAlias = Hello | Observation | FactsChanged | Heartbeat | PicturePart | Screenshot
FromBroker: TypeAlias = Welcome | Refusal | Desired | TakeScreenshot
Message: TypeAlias = FromAgent | FromBroker

T = TypeVar("T")

_encoder = msgspec.json.Encoder()
_bounds: msgspec.json.Decoder[object] = msgspec.json.Decoder(bounded(FromAgent))
_from_agent: msgspec.json.Decoder[FromAgent] = msgspec.json.Decoder(FromAgent)
_from_broker: msgspec.json.Decoder[FromBroker] = msgspec.json.Decoder(FromBroker)


def in_parts(answer: Screenshot) -> Iterator[PicturePart | Screenshot]:
    """Yield the messages that say an answer: each is small, whatever the pictures are."""
    whole = []
    for place, picture in enumerate(answer.pictures):
        size = len(picture.content)
        for at in range(0, size, MOST_PART_BYTES) if size > MOST_PART_BYTES else ():
            part = picture.content[at : at + MOST_PART_BYTES]
            yield PicturePart(request=answer.request, picture=place, content=part)
        rest = picture.content if size <= MOST_PART_BYTES else b""
        whole.append(msgspec.structs.replace(picture, content=rest))
    yield msgspec.structs.replace(answer, pictures=tuple(whole))


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def decode_from_agent(line: bytes | str) -> FromAgent:
    _decode(_bounds, line, MAX_MESSAGE_BYTES)
    return _decode(_from_agent, line, MAX_MESSAGE_BYTES)


def decode_from_broker(line: bytes | str) -> FromBroker:
    return _decode(_from_broker, line, MAX_SET_BYTES)


def _decode(decoder: msgspec.json.Decoder[T], line: bytes | str, limit: int) -> T:
    if len(line) > limit:
        raise ProtocolError("a message is larger than the limit")
    try:
        return decoder.decode(line)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ProtocolError(f"a message can't be read: {error}") from error
