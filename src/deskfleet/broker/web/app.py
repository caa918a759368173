"""The doors of a broker as ASGI applications.

Around every route, from outside in: nothing unexpected escapes; who calls, and that it is not too
often, is settled before anything is read, and who calls once more where the body kept us waiting;
what happened is logged in one line.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.routing import Route as StarletteRoute
from starlette.types import Message, Receive, Scope, Send

from deskfleet.broker.service.house import House
from deskfleet.broker.web.agents import Agents
from deskfleet.broker.web.api import Api, Defaults
from deskfleet.broker.web.callers import Callers, Known, Rules
from deskfleet.broker.web.gateways import Gateways
from deskfleet.broker.web.oauth import OAuth
from deskfleet.broker.web.pages import Pages
from deskfleet.broker.web.peers import Peers
from deskfleet.broker.web.problems import problem, refusal, status_of
from deskfleet.broker.web.rights import settle
from deskfleet.broker.web.routes import (
    Caller,
    Endpoint,
    Route,
    agent_routes,
    client_routes,
    gateway_routes,
)
from deskfleet.broker.web.throttle import Limits, Throttle, too_many
from deskfleet.errors import DeskfleetError, StoreFailed, Unavailable
from deskfleet.gate import vouch
from deskfleet.observe import seldom

log = logging.getLogger(__name__)

PROMPT_SECONDS = 0.1
"""A body that takes longer is from somebody who may have been shut out meanwhile."""

REPEATED = {401, 429}
"""Who is refused like this comes again, by the thousands."""

CLIENT_CLOSED = 499
"""Nobody reads it; the line in the log says why there is no answer."""


class Door:
    """One door as an ASGI application: a path without parameters is found in one step.

    All else is Starlette's to find: parameters, which stay as they were encoded, WebSockets, and
    what is not there.
    """

    def __init__(self, fixed: Mapping[tuple[str, str], Endpoint], starlette: Starlette) -> None:
        self._fixed = fixed
        self._starlette = starlette

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._fixed.get((scope.get("method", ""), scope["path"]))
        if endpoint is None:
            # Parted before it is decoded: what a client has encoded may hold a slash.
            path = str(scope["raw_path"], "latin-1")
            await self._starlette({**scope, "path": path}, receive, send)
        else:
            response = await endpoint(Request(scope, receive, send))
            await response(scope, receive, send)


def client_app(
    house: House, defaults: Defaults, rules: Rules, limits: Limits, *, describes_api: bool = True
) -> Door:
    throttle = Throttle(limits, house.clock.monotonic)
    oauth = OAuth(house.access, throttle, issues_api_tokens=rules.own_tokens)
    pages = Pages(house.replica)
    routes = client_routes(Api(house, defaults), oauth, pages)
    if not describes_api:
        routes = tuple(one for one in routes if one.endpoint != pages.api_description)
    return _app(Guard(house, rules, throttle), routes)


def agent_app(house: House, limits: Limits, *, enrols_anybody: bool = False) -> Door:
    throttle = Throttle(limits, house.clock.monotonic)
    agents = Agents(house)
    oauth = OAuth(house.access, throttle, enrols_anybody=enrols_anybody)
    routes = agent_routes(agents, oauth, Peers(house), Pages(house.replica))
    guard = Guard(house, Rules(), throttle)
    return _app(guard, routes, WebSocketRoute("/agent/link", agents.link))


def gateway_app(house: House, limits: Limits) -> Door:
    guard = Guard(house, Rules(), Throttle(limits, house.clock.monotonic))
    return _app(guard, gateway_routes(Gateways(house.resolver), Pages(house.replica)))


def _app(guard: Guard, routes: Iterable[Route], *more: BaseRoute) -> Door:
    guarded = {(route.method, route.path): guard.around(route) for route in routes}
    served = [
        StarletteRoute(path, endpoint, methods=[method])
        for (method, path), endpoint in guarded.items()
    ]
    # The exception handlers are for what happens outside of a route.
    handlers: dict[Any, Any] = {
        404: lambda request, error: refusal(404, "there is nothing at this path"),
        405: lambda request, error: refusal(405, "this path has another method", error.headers),
    }
    app = Starlette(routes=[*served, *more], exception_handlers=handlers)
    # A slash too many makes another path; a redirect would name a host that a client chose.
    app.router.redirect_slashes = False
    fixed = {where: endpoint for where, endpoint in guarded.items() if "{" not in where[1]}
    return Door(fixed, app)


class Guard:
    """What stands around every route of a door."""

    def __init__(self, house: House, rules: Rules, throttle: Throttle) -> None:
        self._callers = Callers(house, rules)
        self._throttle = throttle
        self._clock = house.clock

    def around(self, route: Route) -> Endpoint:
        async def guarded(request: Request) -> Response:
            started = self._clock.monotonic()
            caller = None
            try:
                known = await self._callers.of(route.caller, request)
                caller = known.name
                if caller is not None:
                    vouch(request.scope)
                wait = self._wait(route, caller, request)
                response = too_many(wait) if wait else await self._admit(route, known, request)
            except DeskfleetError as error:
                if status_of(error) == 500 and not isinstance(error, StoreFailed):
                    log.exception("request.failed")
                response = problem(_for_clients(error))
            except ClientDisconnect:
                response = Response(status_code=CLIENT_CLOSED)
            except Exception:
                log.exception("request.failed")
                response = refusal(500, "internal error")
            self._log(route, caller, request, response.status_code, started)
            return response

        return guarded

    def _wait(self, route: Route, caller: str | None, request: Request) -> float:
        if route.caller is not Caller.CLIENT:
            return 0.0
        return self._throttle.call(caller or self._throttle.address(request.scope))

    def _log(
        self, route: Route, caller: str | None, request: Request, status: int, started: float
    ) -> None:
        # Reads, and what brokers ask of each other, are the bulk, and nobody's news if all is well.
        often = "escribe" in route.path or route.caller is Caller.PEER
        level = logging.DEBUG if status < 400 and often else logging.INFO
        if not log.isEnabledFor(level):
            return
        facts = {
            "route": route.path,
            "caller": caller,
            "status": status,
            "milliseconds": round((self._clock.monotonic() - started) * 1000, 2),
        }
        if (
            route.caller is Caller.ANYBODY
            or status in REPEATED
            or (caller is None and status >= 400)
        ):
            address = self._throttle.address(request.scope)
            facts |= {"address": address, **seldom(address, route.path, status)}
        log.log(level, "request.answered", extra=facts)

    async def _admit(self, route: Route, known: Known, request: Request) -> Response:
        """Let a request in as far as its caller's rights go. Raises `Forbidden`."""
        if route.scope is None:
            return await route.endpoint(request)
        _settle(route, known, request)
        started = self._clock.monotonic()

        async def receive() -> Message:
            message = await request.receive()
            late = self._clock.monotonic() - started > PROMPT_SECONDS
            if late and not message.get("more_body", False):
                # A request may be parked before its last byte for as long as bodies are waited for.
                _settle(route, await self._callers.of(route.caller, request), request)
            return message

        return await route.endpoint(Request(request.scope, receive))


def _settle(route: Route, known: Known, request: Request) -> None:
    if route.scope is not None:
        known.rights.check(route.scope)
        settle(request, known.rights, known.client)


def _for_clients(error: DeskfleetError) -> DeskfleetError:
    # What is wrong with the store is the administrator's to know.
    return Unavailable("the store can't be reached") if isinstance(error, StoreFailed) else error
