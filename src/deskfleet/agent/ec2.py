"""What Amazon EC2's instance metadata service says of this machine, where there is one.

Speaks version 2 of the service only: a token, then the identity document, which holds all four
facts. Whatever else answers at that address (another cloud's service, a proxy, nonsense) counts
as absent. Asks for no credentials, and uses no proxy.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import Annotated

import httpx
import msgspec

from deskfleet.core.records import Aws

log = logging.getLogger(__name__)

METADATA_URL = "http://169.254.169.254"
FIRST_ANSWER_SECONDS = 0.2
"""On EC2 the service answers within a few milliseconds; elsewhere often nobody says no."""
WHOLE_SECONDS = 2.0

_MAX_BYTES = 64 * 1024
_TOKEN_HEADER = "X-aws-ec2-metadata-token"  # noqa: S105  (the name of a header)

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=r"\A[\w.-]+\Z")]


class _IdentityDocument(msgspec.Struct, rename="camel"):
    instance_id: _Name
    region: _Name | None = None
    instance_type: _Name | None = None
    image_id: _Name | None = None


def ask_metadata_service(
    base_url: str = METADATA_URL, first_answer_seconds: float = FIRST_ANSWER_SECONDS
) -> Aws | None:
    """Return what the service says, None where there is none. Blocks: not for an event loop."""
    return asyncio.run(_ask(base_url, first_answer_seconds))


async def _ask(base_url: str, first_answer_seconds: float) -> Aws | None:
    plain = {"Accept-Encoding": "identity"}
    # Nothing here goes over TLS; httpx would load all the world's authorities for it.
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    async with httpx.AsyncClient(
        base_url=base_url, headers=plain, trust_env=False, verify=nobody
    ) as client:
        try:
            async with asyncio.timeout(first_answer_seconds):
                token = await _token(client)
            async with asyncio.timeout(WHOLE_SECONDS):
                document = await _fetch(
                    client,
                    "GET",
                    "/latest/dynamic/instance-identity/document",
                    {_TOKEN_HEADER: token},
                )
            return _parsed(document)
        except (TimeoutError, httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            log.info("ec2.absent", extra={"reason": f"{type(error).__name__}: {error}"[:200]})
            return None


async def _token(client: httpx.AsyncClient) -> str:
    lifetime = {f"{_TOKEN_HEADER}-ttl-seconds": "60"}
    token = (await _fetch(client, "PUT", "/latest/api/token", lifetime)).decode("ascii")
    if not token.isprintable() or not token:
        raise ValueError("the token is not one")
    return token


async def _fetch(
    client: httpx.AsyncClient, method: str, path: str, headers: dict[str, str]
) -> bytes:
    async with client.stream(method, path, headers=headers) as response:
        response.raise_for_status()
        content = bytearray()
        async for piece in response.aiter_raw():
            content += piece
            if len(content) > _MAX_BYTES:
                raise ValueError("the answer is too long")
        return bytes(content)


def _parsed(document: bytes) -> Aws:
    """Decode an identity document; msgspec's errors are ValueErrors."""
    identity = msgspec.json.decode(document, type=_IdentityDocument)
    return Aws(
        region=identity.region,
        instance_type=identity.instance_type,
        instance_id=identity.instance_id,
        image_id=identity.image_id,
    )
