"""Every exception of deskfleet, by what the caller can do about it.

DeskfleetError
├── Invalid              mend the request
│   ├── RequirementsInvalid
│   └── PermissionsInvalid
├── Unauthenticated      say who you are
│   └── InvalidToken     get another token
├── Forbidden            ask for a right you lack
│   └── InsufficientScope
├── Missing              nothing is there (or you may not know that it is)
├── Conflict             look again: the state forbids it now
├── TooLarge             send less
├── Unavailable          try again later
├── StartFailed          a driver could not start a session; the reason goes to its owner
├── SetupFailed          this program can't run here; the message is the whole story for a person
├── ProtocolError        the peer of an agent link broke the protocol
├── StoreFailed          the store is gone: stop rather than answer from memory
├── Compacted            internal: the changes asked for are no longer kept; load everything
└── Stale                internal: a lost race; catch up and decide again

The docstring of a class is its default message. Codes are public and append-only: never
renamed, never used again for something else. An expected "no" is not an exception but a value
(`deskfleet.core.placement.Refusal`).
"""

from __future__ import annotations

import re
from typing import ClassVar

_NUMBER = re.compile(r"^\[Errno -?\d+\] ")


class DeskfleetError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str | None = None) -> None:
        self.message = message or (type(self).__doc__ or "").strip()
        super().__init__(self.message)


def plain(error: Exception) -> str:
    """Return what the system says of a failure, without its number, and the path that we name."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def unreached(error: Exception) -> str:
    """Return in one line why a server can't be reached, and of its certificate what to do."""
    text = _NUMBER.sub("", " ".join(str(error).split())) or type(error).__name__
    if "Hostname mismatch" in text or "IP address mismatch" in text:
        return f"its certificate is for other names than this one ({text})"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"its certificate is not trusted here; name its authority's CA file ({text})"
    return text


class Invalid(DeskfleetError):
    """The request is not valid."""

    code = "request.invalid"


class RequirementsInvalid(Invalid):
    """The requirements expression is not valid."""

    code = "requirements.syntax"

    def __init__(self, message: str, column: int) -> None:
        super().__init__(message)
        self.column = column


class PermissionsInvalid(Invalid):
    """The permissions file is not valid."""

    code = "permissions.syntax"

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


class Unauthenticated(DeskfleetError):
    """No authorization header"""

    code = "access.unauthenticated"


class InvalidToken(Unauthenticated):
    """The token is not valid."""

    code = "access.token"


class Forbidden(DeskfleetError):
    """You may not do this."""

    code = "access.forbidden"


class InsufficientScope(Forbidden):
    """The token has not the scope that is wanted here."""

    code = "access.scope"
    scope = ""
    """What is wanted; the client is told."""

    def __init__(self, message: str | None = None, *, scope: str = "") -> None:
        super().__init__(message)
        self.scope = scope


class Missing(DeskfleetError):
    """There is nothing here."""

    code = "request.missing"


class Conflict(DeskfleetError):
    """The present state does not allow this."""

    code = "state.conflict"


class TooLarge(DeskfleetError):
    """The request is too large."""

    code = "request.too-large"


class Unavailable(DeskfleetError):
    """This can't be answered right now; try again."""

    code = "service.unavailable"

    def __init__(self, message: str | None = None, *, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StartFailed(DeskfleetError):
    """The session could not be started."""

    code = "session.start-failed"


class SetupFailed(DeskfleetError):
    """deskfleet can't run here."""

    code = "setup.failed"


class ProtocolError(DeskfleetError):
    """The peer broke the link protocol."""

    code = "link.protocol"


class StoreFailed(DeskfleetError):
    """The store failed."""

    code = "store.failed"


class Compacted(DeskfleetError):
    """The changes asked for are no longer kept."""

    code = "store.compacted"


class Stale(DeskfleetError):
    """The records have changed since they were read."""

    code = "store.stale"
