"""Tokens for API clients and agents, and the enrolment of agents.

RFC 6749 client credentials: the Basic header, and the grant type in the query (as the developer
guide has it) or in a form (as the RFC has it). RFC 7591 dynamic registration with a software
statement for agents.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable
from datetime import timedelta
from urllib.parse import parse_qs, unquote_plus

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from deskfleet.broker.service.access import Access
from deskfleet.broker.web import rendering
from deskfleet.broker.web.limits import MAX_FORM_BYTES, body_of
from deskfleet.broker.web.problems import refusal
from deskfleet.broker.web.shapes import AccessToken
from deskfleet.errors import Forbidden, Invalid, Unauthenticated

TOKEN_LIFE = timedelta(hours=1)
MAX_NAME = 256

Issue = Callable[[str, str], Awaitable[str]]


class Registration(msgspec.Struct):
    """What an agent registers with (RFC 7591, section 3.1.1)."""

    software_statement: str
    client_name: str = ""


class Registered(msgspec.Struct):
    """RFC 7591, section 3.2.1. The client's id is also its server's."""

    client_id: str
    client_secret: str
    client_secret_expires_at: int = 0
    grant_types: tuple[str, ...] = ("client_credentials",)
    token_endpoint_auth_method: str = "client_secret_basic"  # noqa: S105


class OAuth:
    def __init__(self, access: Access) -> None:
        self._access = access

    async def api_token(self, request: Request) -> Response:
        return await _token(
            request, lambda id, password: self._access.api_token(id, password, life=TOKEN_LIFE)
        )

    async def agent_token(self, request: Request) -> Response:
        return await _token(
            request, lambda id, password: self._access.agent_token(id, password, life=TOKEN_LIFE)
        )

    async def register(self, request: Request) -> Response:
        try:
            asked = msgspec.json.decode(await body_of(request, MAX_FORM_BYTES), type=Registration)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Invalid("invalid_client_metadata") from error
        try:
            credentials = await self._access.register_agent(
                asked.software_statement, asked.client_name[:MAX_NAME]
            )
        except Forbidden:
            return refusal(400, "unapproved_software_statement")
        body = Registered(
            client_id=credentials.client_id,
            client_secret=credentials.client_password,
        )
        return _secret(msgspec.json.encode(body), status=201)


async def _token(request: Request, issue: Issue) -> Response:
    basic = {"WWW-Authenticate": 'Basic realm="deskfleet"'}
    credentials = _basic(request.headers.get("authorization", ""))
    if credentials is None:
        return refusal(401, "invalid_client", basic)
    grant = request.query_params.get("grant_type") or await _form_grant(request)
    if grant is None:
        return refusal(400, "invalid_request")
    if grant != "client_credentials":
        return refusal(400, "unsupported_grant_type")
    try:
        token = await issue(*credentials)
    except Unauthenticated:
        return refusal(401, "unauthorized_client", basic)
    answer = AccessToken(
        access_token=token,
        token_type="Bearer",  # noqa: S106
        expires_in=int(TOKEN_LIFE.total_seconds()),
    )
    return _secret(rendering.encode(answer))


def _basic(header: str) -> tuple[str, str] | None:
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None
    client_id, colon, password = text.partition(":")
    # RFC 6749 wants both form-encoded, real clients don't; ids and passwords have neither + nor %.
    return (unquote_plus(client_id), password) if colon else None


async def _form_grant(request: Request) -> str | None:
    body = await body_of(request, MAX_FORM_BYTES)
    try:
        values = parse_qs(body.decode(), max_num_fields=20).get("grant_type")
    except (UnicodeDecodeError, ValueError) as error:
        raise Invalid("invalid_request") from error
    return values[0] if values else None


def _secret(body: bytes, status: int = 200) -> Response:
    headers = {"Cache-Control": "no-store", "Pragma": "no-cache"}
    return Response(body, status, headers, "application/json")
