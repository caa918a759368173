"""The two doors of a broker as ASGI applications.

Around every route, from outside in: nothing unexpected escapes; who calls is settled before
anything is read; what happened is logged in one line.
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
from starlette.types import Receive, Scope, Send

from deskfleet.broker.service.access import Access, Audience
from deskfleet.broker.service.house import House
from deskfleet.broker.web.agents import Agents
from deskfleet.broker.web.api import Api, Defaults
from deskfleet.broker.web.oauth import OAuth
from deskfleet.broker.web.pages import Pages
from deskfleet.broker.web.peers import Peers
from deskfleet.broker.web.problems import problem, refusal, status_of
from deskfleet.broker.web.routes import Caller, Endpoint, Route, agent_routes, client_routes
from deskfleet.errors import DeskfleetError, StoreFailed, Unauthenticated, Unavailable

log = logging.getLogger(__name__)

CLIENT_CLOSED = 499
"""Nobody reads it; the line in the log says why there is no answer."""


class Door:
    """One door as an ASGI application: a path without parameters is found in one step.

    All else is Starlette's to find: parameters, WebSockets, and what is not there.
    """

    def __init__(self, fixed: Mapping[tuple[str, str], Endpoint], starlette: Starlette) -> None:
        self._fixed = fixed
        self._starlette = starlette

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._fixed.get((scope.get("method", ""), scope["path"]))
        if endpoint is None:
            await self._starlette(scope, receive, send)
        else:
            response = await endpoint(Request(scope, receive, send))
            await response(scope, receive, send)


def client_app(house: House, defaults: Defaults) -> Door:
    routes = client_routes(Api(house, defaults), OAuth(house.access), Pages(house.replica))
    return _app(house, routes)


def agent_app(house: House) -> Door:
    agents = Agents(house)
    routes = agent_routes(agents, OAuth(house.access), Peers(house), Pages(house.replica))
    return _app(house, routes, WebSocketRoute("/agent/link", agents.link))


def _app(house: House, routes: Iterable[Route], *more: BaseRoute) -> Door:
    guarded = {(route.method, route.path): _guard(house, route) for route in routes}
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


def _guard(house: House, route: Route) -> Endpoint:
    endpoint, clock = route.endpoint, house.clock

    async def guarded(request: Request) -> Response:
        started = clock.monotonic()
        caller = None
        try:
            caller = await _caller(house, route.caller, request)
            response = await endpoint(request)
        except DeskfleetError as error:
            if status_of(error) == 500 and not isinstance(error, StoreFailed):
                log.exception("request.failed")
            response = problem(_for_clients(error))
        except ClientDisconnect:
            response = Response(status_code=CLIENT_CLOSED)
        except Exception:
            log.exception("request.failed")
            response = refusal(500, "internal error")
        _log(route, caller, response.status_code, clock.monotonic() - started)
        return response

    return guarded


def _for_clients(error: DeskfleetError) -> DeskfleetError:
    # What is wrong with the store is the administrator's to know.
    return Unavailable("the store can't be reached") if isinstance(error, StoreFailed) else error


async def _caller(house: House, caller: Caller, request: Request) -> str | None:
    """Return who calls. Raises `Unauthenticated`."""
    try:
        return _known_caller(house.access, caller, request)
    except Unauthenticated:
        if _authorization(request) is None:
            raise
        # The client, or the key, may be news from another broker.
        await house.replica.catch_up()
        return _known_caller(house.access, caller, request)


def _known_caller(access: Access, caller: Caller, request: Request) -> str | None:
    if caller is Caller.ANYBODY:
        return None
    header = _authorization(request)
    if header is None:
        raise Unauthenticated
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated("a Bearer token is wanted")
    if caller is Caller.PEER:
        access.verify(Audience.BROKER, token.strip())
        return "broker"
    return access.api_client(token.strip()).id


def _authorization(request: Request) -> str | None:
    # Looked up in the bare scope: Starlette would wrap and decode all headers for this one.
    for name, value in request.scope["headers"]:
        if name == b"authorization":
            return str(value, "latin-1")
    return None


def _log(route: Route, caller: str | None, status: int, seconds: float) -> None:
    # Reads that went well are the bulk, and nobody's news.
    level = logging.DEBUG if status < 400 and "escribe" in route.path else logging.INFO
    if log.isEnabledFor(level):
        log.log(
            level,
            "request.answered",
            extra={
                "route": route.path,
                "caller": caller,
                "status": status,
                "milliseconds": round(seconds * 1000, 2),
            },
        )
