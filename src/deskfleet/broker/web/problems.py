"""What a client is told when something is refused or goes wrong.

One table maps the branches of `errors.py` to statuses. The body is `{"error": "one line"}`, the
form that clients of the original know; what RFC 6750 says of tokens stands beside it in the header
`WWW-Authenticate`. What is not in the tree is a bug: it is logged with its traceback, and the
client is told no more than the id of the request.
"""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from deskfleet.errors import (
    Conflict,
    DeskfleetError,
    Forbidden,
    InsufficientScope,
    Invalid,
    InvalidToken,
    Missing,
    TooLarge,
    Unauthenticated,
    Unavailable,
)

STATUS: dict[type[DeskfleetError], int] = {
    Invalid: 400,
    Unauthenticated: 401,
    Forbidden: 403,
    Missing: 404,
    # The original answers what a session's state forbids with 400, and clients rely on it.
    Conflict: 400,
    TooLarge: 413,
    Unavailable: 503,
}


def status_of(error: DeskfleetError) -> int:
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    return 500


def problem(error: DeskfleetError) -> Response:
    headers = {}
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(error.retry_after)
    challenge = _challenge(error)
    if challenge:
        headers["WWW-Authenticate"] = challenge
    status = status_of(error)
    return refusal(status, "internal error" if status == 500 else error.message, headers)


def _challenge(error: DeskfleetError) -> str | None:
    """Return what RFC 6750 (section 3) tells a client that showed no token, or a bad one."""
    if isinstance(error, InvalidToken):
        return f'Bearer error="invalid_token", error_description="{error.message}"'
    if isinstance(error, InsufficientScope):
        return (
            f'Bearer error="insufficient_scope", error_description="{error.message}",'
            f' scope="{error.scope}"'
        )
    return "Bearer" if isinstance(error, Unauthenticated) else None


def refusal(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    body = msgspec.json.encode({"error": text})
    return Response(body, status, headers, "application/json")
