"""What can go wrong between a client and its broker.

ClientError
├── Unreachable             no answer: network, TLS or time
├── Unreadable              an answer that the API doesn't have
└── Refused                 the broker said no: HTTP's `status`, and its reason as the message
    └── CredentialsRefused  neither this client nor its token is known there

A part of a batch that fails is no exception: it stands in the answer's `unsuccessful_list`.
"""

from __future__ import annotations

from deskfleet.errors import DeskfleetError


class ClientError(DeskfleetError):
    """The broker could not be asked."""

    code = "client.error"


class Unreachable(ClientError):
    """The broker can't be reached."""

    code = "client.unreachable"


class Unreadable(ClientError):
    """The broker's answer can't be read."""

    code = "client.unreadable"


class Refused(ClientError):
    """The broker refused the request."""

    code = "client.refused"

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status

    @property
    def may_pass(self) -> bool:
        """Whether the same request may be granted later."""
        return self.status == 429 or self.status >= 500


class CredentialsRefused(Refused):
    """The broker does not know this client."""

    code = "client.credentials-refused"
