"""The door for other brokers of the fleet, and the way to theirs.

A broker shows a short-lived token that the fleet's key has signed: whoever shares the store and
its key is a peer.
"""

from __future__ import annotations

import logging
import math
from datetime import timedelta

import httpx
import msgspec
from starlette.requests import Request
from starlette.responses import Response

from deskfleet.broker.service.access import Access, Audience
from deskfleet.broker.service.house import House
from deskfleet.broker.service.room import Room
from deskfleet.broker.service.screenshots import Shot, Wish
from deskfleet.broker.web.held import held
from deskfleet.broker.web.limits import body_of
from deskfleet.core.placement import Refusal
from deskfleet.core.records import Broker
from deskfleet.errors import Invalid, Unavailable
from deskfleet.ports import Clock, Picture

log = logging.getLogger(__name__)

TOKEN_LIFE = timedelta(minutes=5)
TOKEN_RENEWAL_SECONDS = 120.0
POKE_SECONDS = 2.0
SCREENSHOT_SECONDS = 12.0
"""A little more than the other broker waits for its server."""
UNREACHED_SECONDS = 30.0
"""How long a broker that a poke did not reach gets no other: looking up its name takes threads."""


class ShotAnswer(msgspec.Struct):
    pictures: tuple[Picture, ...] = ()
    reason: str | None = None


class Peers:
    """What other brokers ask of this one."""

    def __init__(self, house: House) -> None:
        self._house = house

    async def poke(self, request: Request) -> Response:
        self._house.housekeeping.poke()
        return Response(status_code=204)

    async def screenshot(self, request: Request) -> Response:
        try:
            wish = msgspec.json.decode(await body_of(request), type=Wish)
        except msgspec.DecodeError as error:
            raise Invalid("not a wish for a screenshot") from error
        room = self._house.screenshots.room()
        return await held(self._screenshot(wish, room), room)

    async def _screenshot(self, wish: Wish, room: Room) -> Response:
        shot = await self._house.screenshots.take_here(wish, room)
        answer = (
            ShotAnswer(reason=shot.reason)
            if isinstance(shot, Refusal)
            else ShotAnswer(pictures=shot)
        )
        return Response(msgspec.json.encode(answer), media_type="application/json")


class PeerClient:
    """What this broker asks of others."""

    def __init__(self, access: Access, http: httpx.AsyncClient, clock: Clock) -> None:
        self._access = access
        self._http = http
        self._token: tuple[float, str] | None = None
        self._clock = clock
        self._no_poke_before: dict[str, float] = {}
        """By brokers' ids; infinite while a poke is unanswered."""

    async def poke(self, broker: Broker) -> None:
        """Tell a broker that there is news, unless it was out of reach a moment ago."""
        now = self._clock.monotonic()
        later = {one: when for one, when in self._no_poke_before.items() if when > now}
        self._no_poke_before = later
        if broker.id in later:
            return
        later[broker.id] = math.inf
        reached = False
        try:
            await self._http.post(
                f"{broker.url}/broker/poke", headers=self._headers(), timeout=POKE_SECONDS
            )
            reached = True
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # It finds out at its next poll; but where this goes on, somebody has to see to it.
            facts = {"broker_id": broker.id, "url": broker.url, "reason": str(error)}
            log.warning("poke.lost", extra=facts)
        finally:
            wait = 0.0 if reached else UNREACHED_SECONDS
            self._no_poke_before[broker.id] = self._clock.monotonic() + wait

    async def screenshot(self, broker: Broker, wish: Wish) -> Shot:
        try:
            response = await self._http.post(
                f"{broker.url}/broker/screenshot",
                content=msgspec.json.encode(wish),
                headers=self._headers(),
                timeout=SCREENSHOT_SECONDS,
            )
            response.raise_for_status()
            answer = msgspec.json.decode(response.content, type=ShotAnswer)
        except (httpx.HTTPError, httpx.InvalidURL, msgspec.DecodeError) as error:
            raise Unavailable("the session's broker can't be reached") from error
        return answer.pictures if answer.reason is None else Refusal(answer.reason)

    def _headers(self) -> dict[str, str]:
        now = self._clock.monotonic()
        if self._token is None or now - self._token[0] > TOKEN_RENEWAL_SECONDS:
            self._token = now, self._access.sign(Audience.BROKER, {}, TOKEN_LIFE)
        return {"Authorization": f"Bearer {self._token[1]}"}
