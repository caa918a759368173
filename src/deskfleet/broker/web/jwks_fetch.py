"""Fetches the key sets of external authorization servers: the one thing a broker asks of strangers.

Laws: https with a certificate that the system trusts, no redirects, no proxy, 256 KiB, 5 s in all.
A name is resolved once, its addresses are judged, and the connection goes to one that was judged,
so that a name server can't say one thing to the judge and another to the connection. Private
addresses need the registration's leave; link-local ones, where clouds keep credentials, have none.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import httpx

from deskfleet.core.records import AuthServer
from deskfleet.errors import Forbidden, Unavailable

MAX_BYTES = 256 * 1024
SECONDS = 5.0
CONNECT_SHARE = 0.4
"""Of the time in all, for connecting, and again for TLS."""
MOST_ADDRESSES = 4

_NAT64 = IPv6Network("64:ff9b::/96")

Resolve = Callable[[str, int], Awaitable[list[str]]]


async def resolve(host: str, port: int) -> list[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class JwksFetch:
    def __init__(
        self,
        trust: Callable[[], ssl.SSLContext] = ssl.create_default_context,
        resolve: Resolve = resolve,
        *,
        seconds: float = SECONDS,
    ) -> None:
        self._trust = trust
        self._resolve = resolve
        self._seconds = seconds
        self._context: ssl.SSLContext | None = None

    async def __call__(self, server: AuthServer) -> bytes:
        """Return what a server's URL holds. Raises `Unavailable` and `Forbidden`."""
        try:
            async with asyncio.timeout(self._seconds):
                return await self._fetch(server)
        except TimeoutError as error:
            raise Unavailable(f"no answer within {self._seconds:g} s") from error
        except (httpx.InvalidURL, UnicodeError) as error:
            raise Unavailable("the URL can't be read") from error

    async def _fetch(self, server: AuthServer) -> bytes:
        url = httpx.URL(server.id)
        host = url.raw_host.decode("ascii")
        try:
            addresses = await self._resolve(host, url.port or 443)
        except OSError as error:
            raise Unavailable(f"the name {host} can't be resolved") from error
        for address in addresses:
            refuse_inner(address, allow_private=server.allow_private)
        trouble = "it has no address"
        for address in addresses[:MOST_ADDRESSES]:
            try:
                return await self._read(url, host, address)
            except (httpx.HTTPError, OSError) as error:
                trouble = f"it can't be reached: {str(error) or type(error).__name__}"
        raise Unavailable(trouble)

    async def _read(self, url: httpx.URL, host: str, address: str) -> bytes:
        if self._context is None:
            # At the first use: reading what the system trusts takes some time.
            self._context = self._trust()
        headers = {
            "Host": url.netloc.decode("ascii"),
            "Accept": "application/json",
            "Accept-Encoding": "identity",
        }
        pinned = url.copy_with(host=address.partition("%")[0])
        # A handshake that hangs ends by its own limit, before the whole does: cancelled, it would
        # leave its socket to the garbage collector.
        limits = httpx.Timeout(self._seconds, connect=self._seconds * CONNECT_SHARE)
        client = httpx.AsyncClient(verify=self._context, trust_env=False, timeout=limits)
        async with (
            client,
            client.stream(
                "GET", pinned, headers=headers, extensions={"sni_hostname": host}
            ) as answer,
        ):
            if answer.status_code != 200 or "content-encoding" in answer.headers:
                raise Unavailable(f"it answers with status {answer.status_code}, not with a body")
            body = bytearray()
            async for chunk in answer.aiter_raw():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise Unavailable(f"its answer has more than {MAX_BYTES} bytes")
            return bytes(body)


def refuse_inner(text: str, *, allow_private: bool) -> None:
    """Raise `Forbidden` for an address that a stranger's name has no business to point to."""
    address = _meant(ip_address(text))
    if address.is_link_local or address.is_multicast or address.is_unspecified:
        raise Forbidden(f"its address {text} is not one of a server")
    site_local = isinstance(address, IPv6Address) and address.is_site_local
    if (site_local or not address.is_global) and not allow_private:
        raise Forbidden(f"its address {text} is private; --allow-private allows that")


def _meant(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address that an IPv6 address carries, if it does."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address
