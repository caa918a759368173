"""Pictures of sessions, asked of the servers that run them.

The one use case that waits for a server. A server whose link another broker holds is asked
through that broker. Pictures pass through; nothing is stored, and nothing that isn't the picture
that was asked for goes to a client.

Law: pictures that a broker holds take room, of their answer and of all that this broker has for
them, until the answer is sent. What there is no room for is refused, alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias

from deskfleet.broker.service.camera import MOST_PICTURES, Pictures
from deskfleet.broker.service.links import Links
from deskfleet.broker.service.liveness import Liveness
from deskfleet.broker.service.observing import in_utc
from deskfleet.broker.service.replica import Replica
from deskfleet.broker.service.room import Room
from deskfleet.broker.service.sessions import Sessions
from deskfleet.core.pictures import look
from deskfleet.core.placement import Refusal
from deskfleet.core.records import Broker
from deskfleet.core.session import State, name_on_server
from deskfleet.errors import Missing, TooLarge, Unavailable
from deskfleet.wire.messages import SCREENSHOT_SECONDS

NO_SUCH_SESSION = Refusal("Dcv session not found.")
"""Compared by clients, letter by letter."""

NO_PICTURE = Refusal("What the session's server sent is no picture.")
LATE = Refusal("the server did not send a screenshot in time")
NO_INSTANT = Refusal("The session's server sent a picture of a time that no calendar has.")
FULL = (
    "The answer has no room left for this screenshot: ask for fewer at once, or for smaller ones."
)
CROWDED = "More screenshots are asked for than this broker has room for now; ask again."

MOST_ANSWER_BYTES = 64 * 1024 * 1024
"""Of the pictures of one answer; each takes a third more in base64."""
MOST_BYTES_AT_ONCE = 4 * MOST_ANSWER_BYTES
AT_ONCE = 16
"""Of one request."""
PATIENCE_SECONDS = 1.0
"""For how long others wait for a server that takes its time."""


@dataclass(frozen=True, slots=True)
class Wish:
    session_id: str
    max_width: int
    max_height: int
    format: str


Shot: TypeAlias = Pictures | Refusal
AskBroker: TypeAlias = Callable[[Broker, Wish], Awaitable[Shot]]
"""Asks another broker for the pictures of a session on a server that is linked to it."""


class _Round:
    """What the wishes of one request share."""

    def __init__(self, room: Room, mine: str | None = None, *, pass_on: bool = True) -> None:
        self.room, self.mine, self.pass_on = room, mine, pass_on
        self.until = asyncio.get_running_loop().time() + SCREENSHOT_SECONDS
        """One limit for all, not one after the other."""
        self._turns = asyncio.Semaphore(AT_ONCE)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, which is another's as soon as this one takes long."""
        await self._turns.acquire()
        is_over = False

        def pass_on() -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                self._turns.release()

        patience = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, pass_on)
        try:
            yield
        finally:
            patience.cancel()
            pass_on()


class Screenshots:
    def __init__(
        self,
        replica: Replica,
        liveness: Liveness,
        sessions: Sessions,
        links: Links,
        ask_broker: AskBroker,
    ) -> None:
        self._replica = replica
        self._fleet = replica.fleet
        self._liveness = liveness
        self._sessions = sessions
        self._links = links
        self._ask_broker = ask_broker
        self._all = Room(MOST_BYTES_AT_ONCE, CROWDED)

    def room(self) -> Room:
        """Return the room of one answer, to be left when that is sent."""
        return Room(MOST_ANSWER_BYTES, FULL, within=self._all)

    async def take(
        self, wishes: Sequence[Wish], room: Room, *, mine: str | None = None
    ) -> list[Shot]:
        """Take all pictures, a few at a time; the answers stand in the order of the wishes.

        The same wish is asked once. Where `mine` names an owner, the sessions of others aren't
        there.
        """
        await self._replica.catch_up()
        one = _Round(room, mine)
        async with asyncio.TaskGroup() as group:
            taking = {
                wish: group.create_task(self._take(wish, one)) for wish in dict.fromkeys(wishes)
            }
        return _in_each_place(wishes, {wish: task.result() for wish, task in taking.items()}, room)

    async def take_here(self, wish: Wish, room: Room) -> Shot:
        """Take a picture for another broker: of a server that is linked here, or not at all."""
        await self._replica.catch_up()
        return await self._take(wish, _Round(room, pass_on=False))

    async def _take(self, wish: Wish, one: _Round) -> Shot:
        try:
            async with asyncio.timeout_at(one.until), one.turn():
                return await self._ask(wish, one)
        except Missing:
            return NO_SUCH_SESSION
        except TimeoutError:
            return LATE
        except (TooLarge, Unavailable) as error:
            return Refusal(error.message)

    async def _ask(self, wish: Wish, one: _Round) -> Shot:
        session = self._sessions.find(wish.session_id, one.mine)
        if session is None:
            return NO_SUCH_SESSION
        state = self._sessions.view(session).seen.state
        if state is State.DELETED or session.server_id is None:
            return NO_SUCH_SESSION if state is State.DELETED else Refusal(_not_ready(state))
        if state is not State.READY:
            return Refusal(_not_ready(state))
        if one.room.was_short:
            raise TooLarge(one.room.reason)
        agent = self._links.of(session.server_id)
        if agent is None:
            return await self._elsewhere(session.server_id, wish, one)
        pictures = await agent.camera.take(
            name_on_server(session),
            max_width=wish.max_width,
            max_height=wish.max_height,
            format=wish.format,
            until=one.until,
            room=one.room,
        )
        return _flaw(pictures, wish) or pictures

    async def _elsewhere(self, server_id: str, wish: Wish, one: _Round) -> Shot:
        link = self._fleet.link(server_id)
        broker = None if link is None else self._fleet.get(Broker, link.broker_id)
        if not one.pass_on or broker is None or not self._liveness.is_reachable(server_id):
            raise Unavailable("the session's server can't be reached")
        shot = await self._ask_broker(broker, wish)
        if not isinstance(shot, Refusal):
            one.room.take(_size(shot))
        return shot


def _in_each_place(wishes: Sequence[Wish], shots: Mapping[Wish, Shot], room: Room) -> list[Shot]:
    """Answer each wish; what stands in the answer once more takes its room once more."""
    answers: list[Shot] = []
    answered: set[Wish] = set()
    for wish in wishes:
        shot = shots[wish]
        try:
            if wish in answered and not isinstance(shot, Refusal):
                room.take(_size(shot))
        except TooLarge as error:
            shot = Refusal(error.message)
        answered.add(wish)
        answers.append(shot)
    return answers


def _size(pictures: Pictures) -> int:
    return sum(len(picture.content) for picture in pictures)


def _flaw(pictures: Pictures, wish: Wish) -> Refusal | None:
    """Return why pictures go to no client: not what they say, larger than asked for, too many."""
    is_asked_for = 0 < len(pictures) <= MOST_PICTURES and all(
        (seen := look(picture.content)) is not None
        and seen.format == picture.format
        and (seen.width <= wish.max_width and seen.height <= wish.max_height)
        for picture in pictures
    )
    if not is_asked_for:
        return NO_PICTURE
    return None if all(in_utc(picture.taken_at) for picture in pictures) else NO_INSTANT


def _not_ready(state: State) -> str:
    return f"The session is {state}; only READY sessions have a picture."
