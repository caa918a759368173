"""The door for connection gateways: where is this session?

The protocol is the original's: parameters in the query (or in a form), JSON out. A gateway looks at
nothing but the status of a refusal; the texts are for people who look for what is wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import parse_qs

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from deskfleet.broker.service.resolver import TRANSPORTS, NotFound, Resolver
from deskfleet.broker.web.limits import MAX_FORM_BYTES, body_of
from deskfleet.broker.web.shapes import Answer
from deskfleet.core.token_uses import is_address
from deskfleet.errors import Invalid

log = logging.getLogger(__name__)

NO_SUCH = "The requested combination of transport and sessionId does not exist"
"""The words of the original."""
SHOWN = 128
"""Characters of what a stranger has sent, in a log or an answer."""


class ResolvedSession(Answer, frozen=True):
    session_id: str
    transport_protocol: str
    dcv_server_endpoint: str
    port: int
    web_url_path: str


class Gateways:
    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    async def resolve_session(self, request: Request) -> Response:
        """Answer where a session is, or 404 with what is missing."""
        given = await _parameters(request)
        session_id = _only(given, "sessionId")
        transport = _only(given, "transport")
        if transport not in TRANSPORTS:
            raise Invalid(f"Invalid transport parameter: {transport[:SHOWN]}")
        client = _only(given, "clientIpAddress") if any(given.get("clientIpAddress", ())) else None
        if client is not None and not is_address(client):
            raise Invalid(f"Invalid clientIpAddress parameter: {client[:SHOWN]}")
        found = await self._resolver.resolve(session_id, transport)
        if isinstance(found, NotFound):
            return _not_found(found, session_id, transport)
        answer = ResolvedSession(
            session_id=session_id,
            transport_protocol=transport,
            dcv_server_endpoint=found.dns_name,
            port=found.port,
            web_url_path=found.web_url_path,
        )
        return Response(msgspec.json.encode(answer), media_type="application/json")


def _not_found(found: NotFound, session_id: str, transport: str) -> Response:
    level = logging.WARNING if found.is_nameless else logging.INFO
    log.log(
        level,
        "gateway.unresolved",
        extra={"session_id": session_id[:SHOWN], "transport": transport, "reason": found.reason},
    )
    body = {"error": NO_SUCH, **({"reason": found.reason} if found.is_nameless else {})}
    return Response(msgspec.json.encode(body), 404, media_type="application/json")


async def _parameters(request: Request) -> Mapping[str, Sequence[str]]:
    """Return the parameters of the query and of a form in the body. Raises `Invalid`."""
    body = await body_of(request, MAX_FORM_BYTES)
    given: dict[str, list[str]] = {}
    for name, values in _fields(request.scope["query_string"], body):
        given.setdefault(name, []).extend(values)
    return given


def _fields(*texts: bytes) -> Iterator[tuple[str, list[str]]]:
    for text in texts:
        try:
            yield from parse_qs(text.decode(), keep_blank_values=True, max_num_fields=20).items()
        except (UnicodeDecodeError, ValueError) as error:
            raise Invalid("the parameters can't be read") from error


def _only(given: Mapping[str, Sequence[str]], name: str) -> str:
    values = set(given.get(name, ()))
    if not values - {""}:
        raise Invalid(f"Missing {name} parameter")
    if len(values) > 1:
        raise Invalid(f"Invalid {name} parameter: it is given more than once")
    return values.pop()
