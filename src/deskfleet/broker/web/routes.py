"""The API as one literal table: what can be called, at which door, by whom, and with which scope.

A route without an explicit `Caller` can't be written down here; a test walks the table, and sees
that each route for API clients has its scope.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum

from starlette.requests import Request
from starlette.responses import Response

from deskfleet.broker.web.agents import Agents
from deskfleet.broker.web.api import Api
from deskfleet.broker.web.gateways import Gateways
from deskfleet.broker.web.oauth import OAuth
from deskfleet.broker.web.pages import Pages
from deskfleet.broker.web.peers import Peers
from deskfleet.core.access import Scope

Endpoint = Callable[[Request], Awaitable[Response]]


class Caller(StrEnum):
    """Who may call."""

    ANYBODY = "anybody"
    CLIENT = "client"
    PEER = "peer"


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    path: str
    caller: Caller
    endpoint: Endpoint
    scope: Scope | None = None
    """What it asks of an API client; its handler isn't told of a client's rights without one."""


def client_routes(api: Api, oauth: OAuth, pages: Pages) -> tuple[Route, ...]:
    """Return what is served at the door for API clients."""
    return (
        Route("POST", "/describeSessions", Caller.CLIENT, api.describe_sessions, Scope.DESCRIBE),
        Route("POST", "/createSessions", Caller.CLIENT, api.create_sessions, Scope.CREATE),
        Route("POST", "/deleteSessions", Caller.CLIENT, api.delete_sessions, Scope.DELETE),
        Route(
            "POST",
            "/getSessionScreenshots",
            Caller.CLIENT,
            api.get_session_screenshots,
            Scope.SCREENSHOTS,
        ),
        Route(
            "PUT",
            "/sessionPermissions",
            Caller.CLIENT,
            api.update_session_permissions,
            Scope.PERMISSIONS,
        ),
        Route(
            "GET",
            # Some clients put a user there as it is, with its slashes.
            "/sessionConnectionData/{sessionId}/{user:path}",
            Caller.CLIENT,
            api.get_session_connection_data,
            Scope.CONNECT,
        ),
        Route("POST", "/describeServers", Caller.CLIENT, api.describe_servers, Scope.DESCRIBE),
        Route("POST", "/openServers", Caller.CLIENT, api.open_servers, Scope.SERVERS),
        Route("POST", "/closeServers", Caller.CLIENT, api.close_servers, Scope.SERVERS),
        Route("POST", "/oauth2/token", Caller.ANYBODY, oauth.api_token),
        Route("GET", "/dcv-session-manager-api.yaml", Caller.ANYBODY, pages.api_description),
        Route("GET", "/health", Caller.ANYBODY, pages.health),
    )


def agent_routes(agents: Agents, oauth: OAuth, peers: Peers, pages: Pages) -> tuple[Route, ...]:
    """Return what is served at the door for agents, verifiers and other brokers.

    The agent link itself is a WebSocket at `/agent/link`; it checks its caller itself.
    """
    return (
        Route("POST", "/register", Caller.ANYBODY, oauth.register),
        Route("POST", "/oauth2/token", Caller.ANYBODY, oauth.agent_token),
        Route(
            "POST",
            "/agent/validate-authentication-token",
            Caller.ANYBODY,
            agents.validate_token,
        ),
        Route("POST", "/broker/poke", Caller.PEER, peers.poke),
        Route("POST", "/broker/screenshot", Caller.PEER, peers.screenshot),
        Route("GET", "/health", Caller.ANYBODY, pages.health),
    )


def gateway_routes(gateways: Gateways, pages: Pages) -> tuple[Route, ...]:
    """Return what is served at the door for connection gateways.

    Who they are is settled in the TLS handshake, where the settings ask for a certificate.
    """
    return (
        Route("POST", "/resolveSession", Caller.ANYBODY, gateways.resolve_session),
        Route("GET", "/health", Caller.ANYBODY, pages.health),
    )
