"""The link that opens a session in a browser, made of its connection data.

Law: whatever a server says of itself, the result is one https URL to that server's address whose
only secret is the connection token; a browser never sees more than that.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import quote

from deskfleet.client.problems import Unreadable
from deskfleet.client.shapes import GetSessionConnectionDataResponse

_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_])?", re.ASCII)
_PATH_SAFE = "/-._~!$&'()*+,;=:@%"


def link(connection_data: GetSessionConnectionDataResponse) -> str:
    """Return `https://{Ip}:{Port}{WebUrlPath}?authToken={ConnectionToken}#{SessionId}`.

    Raises `Unreadable` where the server's address is none.
    """
    session = connection_data.session
    server = session.server
    if server is None or server.ip is None or server.port is None:
        raise Unreadable(f"the broker names no server to reach session {session.id} on")
    if not re.fullmatch(r"[0-9]{1,5}", server.port, re.ASCII):
        raise Unreadable(f"the port of session {session.id} is none: {server.port!r}")
    return link_to(
        f"{_host(server.ip)}:{server.port}",
        server.web_url_path,
        connection_data.connection_token,
        session.id,
    )


def link_to(place: str, path: str | None, token: str, session_id: str) -> str:
    """Return the link to a session at a place, `HOST:PORT`."""
    below = quote((path or "").lstrip("/"), safe=_PATH_SAFE)
    return f"https://{place}/{below}?authToken={quote(token, safe='')}#{quote(session_id, safe='')}"


def _host(address: str) -> str:
    try:
        ip = ipaddress.ip_address(address.strip("[]"))
    except ValueError:
        if _HOST_NAME.fullmatch(address):
            return address
        raise Unreadable(f"the address of the session's server is none: {address!r}") from None
    return f"[{ip}]" if ip.version == 6 else str(ip)
