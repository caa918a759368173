"""One agent link: what counts, what is out of date, and what breaks the protocol."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from deskfleet.errors import ProtocolError
from deskfleet.wire.link import SILENT_BEATS, AgentLink, BrokerLink, LinkState
from deskfleet.wire.messages import (
    VERSION,
    Desired,
    FactsChanged,
    FromAgent,
    FromBroker,
    Heartbeat,
    Hello,
    Observation,
    PicturePart,
    Refusal,
    Screenshot,
    TakeScreenshot,
    Welcome,
)
from support.builders import some_facts

WELCOME = Welcome(epoch=7, heartbeat_seconds=5.0)
WISH = TakeScreenshot(request=1, session_id="s1", max_width=1, max_height=1, format="png")
FROM_BROKER: tuple[FromBroker, ...] = (
    WELCOME,
    Refusal(reason="no", retry_after_seconds=1),
    Desired(epoch=7, serial=1, desires=()),
    WISH,
)
HELLO = Hello(version=VERSION, facts=some_facts(), observed=())
FROM_AGENT: tuple[FromAgent, ...] = (
    HELLO,
    Observation(epoch=7, serial=0, observed=()),
    FactsChanged(epoch=7, facts=some_facts()),
    Heartbeat(epoch=7),
    PicturePart(request=1, picture=0, content=b""),
    Screenshot(request=1),
)


def agent(state: LinkState) -> AgentLink:
    link = AgentLink(now=0.0)
    if state is not LinkState.NEW:
        link.hello(some_facts(), ())
    if state is LinkState.OPEN:
        link.receive(WELCOME, 1.0)
    if state is LinkState.ENDED:
        link.end()
    return link


def broker(state: LinkState) -> BrokerLink:
    link = BrokerLink(now=0.0, heartbeat_seconds=5.0)
    if state is not LinkState.NEW:
        link.receive(HELLO, 1.0)
    if state is LinkState.OPEN:
        link.welcome(7)
    if state is LinkState.ENDED:
        link.end()
    return link


class TestTheAgentsEnd:
    def test_from_hello_to_welcome(self) -> None:
        link = AgentLink(now=0.0)
        assert link.hello(some_facts(), ()) == HELLO
        assert link.receive(WELCOME, 1.0) == WELCOME
        assert (link.state, link.epoch, link.heartbeat_seconds) == (LinkState.OPEN, 7, 5.0)

    def test_a_refusal_ends_it(self) -> None:
        link = agent(LinkState.GREETED)
        refusal = Refusal(reason="full", retry_after_seconds=3)
        assert link.receive(refusal, 1.0) == refusal
        assert link.state is LinkState.ENDED

    @pytest.mark.parametrize(
        ("state", "taken"),
        [
            (LinkState.NEW, ()),
            (LinkState.GREETED, (Welcome, Refusal)),
            (LinkState.OPEN, (Desired, TakeScreenshot)),
            (LinkState.ENDED, ()),
        ],
    )
    def test_every_message_at_every_state(
        self, state: LinkState, taken: tuple[type[FromBroker], ...]
    ) -> None:
        for message in FROM_BROKER:
            link = agent(state)
            if isinstance(message, taken):
                assert link.receive(message, 2.0) == message
            else:
                with pytest.raises(ProtocolError, match=type(message).__name__):
                    link.receive(message, 2.0)

    def test_only_the_newest_desired_set_of_this_link_counts(self) -> None:
        link = agent(LinkState.OPEN)
        sets = [
            Desired(epoch=7, serial=4, desires=()),
            Desired(epoch=7, serial=3, desires=()),
            Desired(epoch=7, serial=4, desires=()),
            Desired(epoch=6, serial=9, desires=()),
            Desired(epoch=8, serial=9, desires=()),
            Desired(epoch=7, serial=5, desires=()),
        ]
        assert [link.receive(one, 2.0) is not None for one in sets] == [
            True,
            False,
            True,
            False,
            False,
            True,
        ]
        assert link.serial == 5
        assert link.observation((), 2.0) == Observation(epoch=7, serial=5, observed=())

    def test_a_heartbeat_is_due_when_nothing_else_was_sent(self) -> None:
        link = agent(LinkState.OPEN)
        assert link.heartbeat(4.9) is None
        assert link.heartbeat(5.0) == Heartbeat(epoch=7)
        assert link.heartbeat(9.9) is None
        assert link.facts(some_facts(), 9.9) == FactsChanged(epoch=7, facts=some_facts())
        assert link.heartbeat(14.8) is None
        assert link.heartbeat(14.9) is not None

    def test_silence_is_counted_in_beats(self) -> None:
        link = agent(LinkState.OPEN)
        limit = 1.0 + SILENT_BEATS * 5.0
        assert not link.is_silent(limit)
        assert link.is_silent(limit + 0.1)
        link.receive(WISH, limit + 0.1)
        assert not link.is_silent(limit + 0.2)

    @pytest.mark.parametrize("state", [LinkState.NEW, LinkState.GREETED, LinkState.ENDED])
    def test_nothing_is_sent_on_a_link_that_is_not_open(self, state: LinkState) -> None:
        sends: list[Callable[[AgentLink], object]] = [
            lambda link: link.observation((), 1.0),
            lambda link: link.facts(some_facts(), 1.0),
        ]
        for send in sends:
            with pytest.raises(ProtocolError):
                send(agent(state))
        assert agent(state).heartbeat(1e9) is None

    def test_one_hello_is_enough(self) -> None:
        with pytest.raises(ProtocolError):
            agent(LinkState.GREETED).hello(some_facts(), ())


class TestTheBrokersEnd:
    @pytest.mark.parametrize(
        ("state", "taken"),
        [
            (LinkState.NEW, (Hello,)),
            (LinkState.GREETED, ()),
            (LinkState.OPEN, (Observation, FactsChanged, Heartbeat, PicturePart, Screenshot)),
            (LinkState.ENDED, ()),
        ],
    )
    def test_every_message_at_every_state(
        self, state: LinkState, taken: tuple[type[FromAgent], ...]
    ) -> None:
        for message in FROM_AGENT:
            link = broker(state)
            if isinstance(message, taken):
                assert link.receive(message, 2.0) == message
            else:
                with pytest.raises(ProtocolError, match=type(message).__name__):
                    link.receive(message, 2.0)

    @pytest.mark.parametrize("epoch", [6, 8])
    def test_what_carries_another_epoch_is_not_listened_to(self, epoch: int) -> None:
        link = broker(LinkState.OPEN)
        messages: list[FromAgent] = [
            Observation(epoch=epoch, serial=0, observed=()),
            FactsChanged(epoch=epoch, facts=some_facts()),
            Heartbeat(epoch=epoch),
        ]
        assert [link.receive(message, 2.0) for message in messages] == [None, None, None]

    def test_the_welcome_answers_a_hello_and_nothing_else(self) -> None:
        link = broker(LinkState.GREETED)
        assert link.welcome(7) == WELCOME
        for state in (LinkState.NEW, LinkState.OPEN, LinkState.ENDED):
            with pytest.raises(ProtocolError):
                broker(state).welcome(8)

    def test_a_refusal_ends_it(self) -> None:
        link = broker(LinkState.GREETED)
        assert link.refuse("full", 2.5) == Refusal(reason="full", retry_after_seconds=2.5)
        with pytest.raises(ProtocolError):
            link.receive(Heartbeat(epoch=0), 2.0)

    def test_serials_never_go_back(self) -> None:
        link = broker(LinkState.OPEN)
        assert [link.desired(serial, ()).serial for serial in (3, 5, 4)] == [3, 5, 5]
        assert link.desired(6, ()) == Desired(epoch=7, serial=6, desires=())
        with pytest.raises(ProtocolError):
            broker(LinkState.GREETED).desired(1, ())

    def test_silence_is_counted_in_beats(self) -> None:
        link = broker(LinkState.OPEN)
        limit = 1.0 + SILENT_BEATS * 5.0
        assert not link.is_silent(limit)
        assert link.is_silent(limit + 0.1)
        # An old link's heartbeat is a sign of life of this connection all the same.
        link.receive(Heartbeat(epoch=3), limit)
        assert not link.is_silent(limit + 0.1)
