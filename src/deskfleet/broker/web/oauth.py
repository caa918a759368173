"""Tokens for API clients and agents, and the enrolment of agents.

RFC 6749 client credentials: the password in the Basic header or in a form, never in the address;
the grant type in the query (as the developer guide has it) or in a form (as the RFC has it).
Refusals have the RFC's words, but for wrong credentials, which the field knows as
`unauthorized_client`; who goes on with them has to wait. RFC 7591 dynamic registration with a
software statement for agents.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from urllib.parse import parse_qs, unquote_plus

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from deskfleet.broker.service.access import Access
from deskfleet.broker.web import rendering
from deskfleet.broker.web.limits import MAX_FORM_BYTES, body_of
from deskfleet.broker.web.problems import refusal
from deskfleet.broker.web.shapes import AccessToken, OAuthError
from deskfleet.broker.web.throttle import Throttle, too_many
from deskfleet.errors import Forbidden, Invalid, Unauthenticated
from deskfleet.gate import vouch

TOKEN_LIFE = timedelta(hours=1)
MAX_NAME = 256

BASIC = {"WWW-Authenticate": 'Basic realm="deskfleet"'}

Issue = Callable[[str, str], str]
Form = Mapping[str, Sequence[str]]


class Registration(msgspec.Struct):
    """What an agent registers with (RFC 7591, section 3.1.1)."""

    software_statement: str = ""
    client_name: str = ""


class Registered(msgspec.Struct):
    """RFC 7591, section 3.2.1. The client's id is also its server's."""

    client_id: str
    client_secret: str
    client_secret_expires_at: int = 0
    grant_types: tuple[str, ...] = ("client_credentials",)
    token_endpoint_auth_method: str = "client_secret_basic"  # noqa: S105


class OAuth:
    def __init__(
        self,
        access: Access,
        throttle: Throttle,
        *,
        issues_api_tokens: bool = True,
        enrols_anybody: bool = False,
    ) -> None:
        self._access = access
        self._throttle = throttle
        self._issues_api_tokens = issues_api_tokens
        self._enrols_anybody = enrols_anybody

    async def api_token(self, request: Request) -> Response:
        if not self._issues_api_tokens:
            return _error(
                400,
                "unsupported_grant_type",
                "this broker issues no tokens; ask the authorization server of the fleet",
            )
        return await self._token(
            request, lambda id, password: self._access.api_token(id, password, life=TOKEN_LIFE)
        )

    async def agent_token(self, request: Request) -> Response:
        return await self._token(
            request, lambda id, password: self._access.agent_token(id, password, life=TOKEN_LIFE)
        )

    async def register(self, request: Request) -> Response:
        # Each one is a record for ever: a statement that got about must not fill the store.
        wait = self._throttle.enrolment(self._throttle.address(request.scope))
        if wait:
            return too_many(wait)
        try:
            asked = msgspec.json.decode(await body_of(request, MAX_FORM_BYTES), type=Registration)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Invalid("invalid_client_metadata") from error
        name = asked.client_name[:MAX_NAME]
        try:
            if self._enrols_anybody:
                credentials = await self._access.register_any_agent(name)
            else:
                credentials = await self._access.register_agent(asked.software_statement, name)
        except Forbidden:
            return refusal(400, "unapproved_software_statement")
        vouch(request.scope)
        body = Registered(
            client_id=credentials.client_id,
            client_secret=credentials.client_password,
        )
        return _secret(msgspec.json.encode(body), status=201)

    async def _token(self, request: Request, issue: Issue) -> Response:
        form = await _form(request)
        credentials = _credentials(request, form)
        if credentials is None:
            return _error(401, "invalid_client", headers=BASIC)
        grants = {*request.query_params.getlist("grant_type"), *form.get("grant_type", ())}
        if len(grants) != 1:
            return _error(400, "invalid_request", "one grant_type is wanted")
        if grants != {"client_credentials"}:
            return _error(400, "unsupported_grant_type")
        client_id, address = credentials[0], self._throttle.address(request.scope)
        await self._access.catch_up()
        # Nothing is waited for from here to the count: of many guesses at once, so many are judged.
        wait = self._throttle.login(address, client_id)
        if wait:
            return too_many(wait)
        try:
            token = issue(*credentials)
        except Unauthenticated:
            self._throttle.login_refused(address, client_id)
            return _error(401, "unauthorized_client", headers=BASIC)
        vouch(request.scope)
        wait = self._throttle.call(client_id)
        return too_many(wait) if wait else _given(token)


def _given(token: str) -> Response:
    answer = AccessToken(
        access_token=token,
        token_type="Bearer",  # noqa: S106
        expires_in=int(TOKEN_LIFE.total_seconds()),
    )
    return _secret(rendering.encode(answer))


def _credentials(request: Request, form: Form) -> tuple[str, str] | None:
    """Return client id and password, from the header or from the form. Raises `Invalid`."""
    headers = request.headers.getlist("authorization")
    ids, passwords = form.get("client_id", []), form.get("client_secret", [])
    if len(headers) + len(passwords) > 1 or len(ids) > 1:
        raise Invalid("invalid_request")
    if headers:
        basic = _basic(headers[0])
        if basic is not None and ids not in ([], [basic[0]]):
            # RFC 6749, section 2.3: a client says in one way who it is.
            raise Invalid("invalid_request")
        return basic
    return (ids[0], passwords[0]) if ids and passwords else None


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


async def _form(request: Request) -> Form:
    body = await body_of(request, MAX_FORM_BYTES)
    try:
        return parse_qs(body.decode(), max_num_fields=20)
    except (UnicodeDecodeError, ValueError) as error:
        raise Invalid("invalid_request") from error


def _error(
    status: int,
    error: str,
    description: str | None = None,
    *,
    headers: Mapping[str, str] | None = None,
) -> Response:
    answer = _secret(
        rendering.encode(OAuthError(error=error, error_description=description)), status
    )
    answer.headers.update(headers or {})
    return answer


def _secret(body: bytes, status: int = 200) -> Response:
    headers = {**rendering.NO_STORE, "Pragma": "no-cache"}
    return Response(body, status, headers, "application/json")
