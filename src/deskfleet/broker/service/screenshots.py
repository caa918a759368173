"""Pictures of sessions, asked of the servers that run them.

The one use case that waits for a server. A server whose link another broker holds is asked
through that broker. Pictures pass through; nothing is stored, and nothing that isn't the picture
that was asked for goes to a client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from deskfleet.broker.service.camera import MOST_PICTURES, Pictures
from deskfleet.broker.service.links import Links
from deskfleet.broker.service.liveness import Liveness
from deskfleet.broker.service.observing import in_utc
from deskfleet.broker.service.replica import Replica
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


@dataclass(frozen=True, slots=True)
class Wish:
    session_id: str
    max_width: int
    max_height: int
    format: str


Shot: TypeAlias = Pictures | Refusal
AskBroker: TypeAlias = Callable[[Broker, Wish], Awaitable[Shot]]
"""Asks another broker for the pictures of a session on a server that is linked to it."""


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

    async def take(self, wishes: Sequence[Wish], *, mine: str | None = None) -> list[Shot]:
        """Take all pictures at once; the answers stand in the order of the wishes.

        Where `mine` names an owner, the sessions of others aren't there.
        """
        await self._replica.catch_up()
        shots = (self._take(wish, mine, pass_on=True) for wish in wishes)
        return list(await asyncio.gather(*shots))

    async def take_here(self, wish: Wish) -> Shot:
        """Take a picture for another broker: of a server that is linked here, or not at all."""
        await self._replica.catch_up()
        return await self._take(wish, None, pass_on=False)

    async def _take(self, wish: Wish, mine: str | None, *, pass_on: bool) -> Shot:
        session = self._sessions.find(wish.session_id, mine)
        if session is None:
            return NO_SUCH_SESSION
        state = self._sessions.view(session).seen.state
        if state is State.DELETED or session.server_id is None:
            return NO_SUCH_SESSION if state is State.DELETED else Refusal(_not_ready(state))
        if state is not State.READY:
            return Refusal(_not_ready(state))
        agent = self._links.of(session.server_id)
        try:
            if agent is None:
                return await self._elsewhere(session.server_id, wish, pass_on=pass_on)
            until = asyncio.get_running_loop().time() + SCREENSHOT_SECONDS
            async with asyncio.timeout_at(until):
                pictures = await agent.camera.take(
                    name_on_server(session),
                    max_width=wish.max_width,
                    max_height=wish.max_height,
                    format=wish.format,
                    until=until,
                )
            return _flaw(pictures, wish) or pictures
        except Missing:
            return NO_SUCH_SESSION
        except TimeoutError:
            return LATE
        except (TooLarge, Unavailable) as error:
            return Refusal(error.message)

    async def _elsewhere(self, server_id: str, wish: Wish, *, pass_on: bool) -> Shot:
        link = self._fleet.link(server_id)
        broker = None if link is None else self._fleet.get(Broker, link.broker_id)
        if not pass_on or broker is None or not self._liveness.is_reachable(server_id):
            raise Unavailable("the session's server can't be reached")
        return await self._ask_broker(broker, wish)


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
