"""How much of a request is read before it is refused."""

from __future__ import annotations

from starlette.requests import Request

from deskfleet.errors import Invalid, TooLarge

MAX_BODY_BYTES = 4 * 1024 * 1024
"""1,000 sessions with their permissions files fit."""

MAX_FORM_BYTES = 64 * 1024


async def body_of(request: Request, limit: int = MAX_BODY_BYTES) -> bytes:
    """Read the body, but never more than `limit` bytes of it. Raises `TooLarge`."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Invalid("a request body must not be compressed")
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > limit:
        raise TooLarge(f"a request body may have {limit} bytes")
    chunks = bytearray()
    async for chunk in request.stream():
        chunks += chunk
        if len(chunks) > limit:
            raise TooLarge(f"a request body may have {limit} bytes")
    return bytes(chunks)
