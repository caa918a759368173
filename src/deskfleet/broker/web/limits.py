"""How much of a request is read before it is refused."""

from __future__ import annotations

from starlette.requests import ClientDisconnect, Request

from deskfleet.errors import Invalid, TooLarge

MAX_BODY_BYTES = 4 * 1024 * 1024
"""1,000 sessions with their permissions files fit."""

MAX_FORM_BYTES = 64 * 1024


async def body_of(request: Request, limit: int = MAX_BODY_BYTES) -> bytes:
    """Read the body, but never more than `limit` bytes of it. Raises `TooLarge`.

    How long it may take is the listener's to see to (`connections.py`).
    """
    # From the bare scope and messages: Starlette's comforts cost more than small bodies do.
    for name, value in request.scope["headers"]:
        if name == b"content-encoding" and value != b"identity":
            raise Invalid("a request body must not be compressed")
        if name == b"content-length" and (not value.isdigit() or int(value) > limit):
            raise TooLarge(f"a request body may have {limit} bytes")
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
