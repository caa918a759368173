"""One agent link as a state machine, both roles, without IO.

The agent speaks first (`Hello`), the broker answers `Welcome` with the link's epoch or `Refusal`.
From then on each message carries that epoch; another epoch means another, older link, and is not
listened to. A desired set counts only if its serial is not below the last one's. Silence is
measured by the caller's monotonic clock: the agent beats, and either side gives up after
`SILENT_BEATS` of them.

Laws: nothing is accepted before the welcome; nothing of an old epoch; nothing after the end.
"""

from __future__ import annotations

from enum import StrEnum

from deskfleet.core.records import Facts
from deskfleet.errors import ProtocolError
from deskfleet.wire.messages import (
    VERSION,
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
)

SILENT_BEATS = 3


class LinkState(StrEnum):
    NEW = "new"
    GREETED = "greeted"
    """Hello is said, its answer is awaited."""
    OPEN = "open"
    ENDED = "ended"


class AgentLink:
    """The agent's end of a link."""

    def __init__(self, now: float) -> None:
        self.state = LinkState.NEW
        self.epoch = 0
        self.serial = 0
        self.heartbeat_seconds = 10.0
        self._heard_at = now
        self._sent_at = now

    def hello(self, facts: Facts, observed: tuple[Observed, ...]) -> Hello:
        if self.state is not LinkState.NEW:
            raise ProtocolError(f"hello on a link that is {self.state}")
        self.state = LinkState.GREETED
        return Hello(version=VERSION, facts=facts, observed=observed)

    def receive(self, message: FromBroker, now: float) -> FromBroker | None:
        """Take in a message; return it where it counts, None where it is out of date."""
        self._heard_at = now
        match message:
            case Welcome() if self.state is LinkState.GREETED:
                self.state = LinkState.OPEN
                self.epoch = message.epoch
                self.heartbeat_seconds = message.heartbeat_seconds
                return message
            case Refusal() if self.state is LinkState.GREETED:
                self.state = LinkState.ENDED
                return message
            case Desired() if self.state is LinkState.OPEN:
                if message.epoch != self.epoch or message.serial < self.serial:
                    return None
                self.serial = message.serial
                return message
            case TakeScreenshot() if self.state is LinkState.OPEN:
                return message
            case _:
                raise ProtocolError(f"{type(message).__name__} on a link that is {self.state}")

    def observation(self, observed: tuple[Observed, ...], now: float) -> Observation:
        self._sent(now)
        return Observation(epoch=self.epoch, serial=self.serial, observed=observed)

    def facts(self, facts: Facts, now: float) -> FactsChanged:
        self._sent(now)
        return FactsChanged(epoch=self.epoch, facts=facts)

    def heartbeat(self, now: float) -> Heartbeat | None:
        """Return the heartbeat where one is due."""
        if self.state is not LinkState.OPEN or now - self._sent_at < self.heartbeat_seconds:
            return None
        self._sent(now)
        return Heartbeat(epoch=self.epoch)

    def is_silent(self, now: float) -> bool:
        return now - self._heard_at > SILENT_BEATS * self.heartbeat_seconds

    def end(self) -> None:
        self.state = LinkState.ENDED

    def _sent(self, now: float) -> None:
        if self.state is not LinkState.OPEN:
            raise ProtocolError(f"can't send on a link that is {self.state}")
        self._sent_at = now


class BrokerLink:
    """The broker's end of a link."""

    def __init__(self, now: float, heartbeat_seconds: float) -> None:
        self.state = LinkState.NEW
        self.epoch = 0
        self.serial = 0
        self.heartbeat_seconds = heartbeat_seconds
        self._heard_at = now

    def receive(self, message: FromAgent, now: float) -> FromAgent | None:
        """Take in a message; return it where it counts, None where it is of another epoch."""
        self._heard_at = now
        match message:
            case Hello() if self.state is LinkState.NEW:
                self.state = LinkState.GREETED
                return message
            case PicturePart() | Screenshot() if self.state is LinkState.OPEN:
                return message
            case Observation() | FactsChanged() | Heartbeat() if self.state is LinkState.OPEN:
                return message if message.epoch == self.epoch else None
            case _:
                raise ProtocolError(f"{type(message).__name__} on a link that is {self.state}")

    def welcome(self, epoch: int) -> Welcome:
        if self.state is not LinkState.GREETED:
            raise ProtocolError(f"welcome on a link that is {self.state}")
        self.state = LinkState.OPEN
        self.epoch = epoch
        return Welcome(epoch=epoch, heartbeat_seconds=self.heartbeat_seconds)

    def refuse(self, reason: str, retry_after_seconds: float) -> Refusal:
        self.state = LinkState.ENDED
        return Refusal(reason=reason, retry_after_seconds=retry_after_seconds)

    def desired(self, serial: int, desires: tuple[Desire, ...]) -> Desired:
        if self.state is not LinkState.OPEN:
            raise ProtocolError(f"can't send on a link that is {self.state}")
        self.serial = max(self.serial, serial)
        return Desired(epoch=self.epoch, serial=self.serial, desires=desires)

    def is_silent(self, now: float) -> bool:
        return now - self._heard_at > SILENT_BEATS * self.heartbeat_seconds

    def end(self) -> None:
        self.state = LinkState.ENDED
