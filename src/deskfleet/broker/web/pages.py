"""What anybody may read: the description of the API, and whether this broker is well."""

from __future__ import annotations

from importlib import resources

from starlette.requests import Request
from starlette.responses import Response

from deskfleet.broker.service.replica import Replica

API_DESCRIPTION = "dcv-session-manager-api.yaml"


class Pages:
    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._yaml = resources.files(__package__).joinpath(API_DESCRIPTION).read_bytes()

    async def api_description(self, request: Request) -> Response:
        return Response(self._yaml, media_type="application/yaml")

    async def health(self, request: Request) -> Response:
        """Answer 200 only where the store can be read: a broker without it is of no use."""
        await self._replica.catch_up()
        return Response(b'{"status":"ok"}', media_type="application/json")
