"""How much of a request is read before it is refused."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from deskfleet.errors import Invalid, TooLarge

MAX_BODY_BYTES = 4 * 1024 * 1024
"""1,000 sessions with their permissions files fit."""

MAX_FORM_BYTES = 64 * 1024

BODY_SECONDS = 30.0


async def body_of(
    request: Request, limit: int = MAX_BODY_BYTES, seconds: float = BODY_SECONDS
) -> bytes:
    """Read the body, but never more than `limit` bytes of it, nor for ever. Raises `TooLarge`."""
    # From the bare scope and messages: Starlette's comforts cost more than small bodies do.
    for name, value in request.scope["headers"]:
        if name == b"content-encoding" and value != b"identity":
            raise Invalid("a request body must not be compressed")
        if name == b"content-length" and (not value.isdigit() or int(value) > limit):
            raise TooLarge(f"a request body may have {limit} bytes")
    try:
        async with asyncio.timeout(seconds):
            return await _received(request, limit)
    except TimeoutError as error:
        raise Invalid(f"the body did not arrive within {seconds:g} s") from error


async def _received(request: Request, limit: int) -> bytes:
    body = bytearray()
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > limit:
            raise TooLarge(f"a request body may have {limit} bytes")
        more = message.get("more_body", False)
    return bytes(body)
