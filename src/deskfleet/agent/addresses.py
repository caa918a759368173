"""Under which address this server is reached.

The choice is a pure function of what the machine's interfaces say; nothing is ever sent.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator, Mapping, Sequence

import psutil

from deskfleet.machine import here

# Documentation addresses (RFC 5737, RFC 3849): far away by definition, so that the kernel's
# answer is the one for the default route.
_FAR_AWAY = ((socket.AF_INET, "198.51.100.1"), (socket.AF_INET6, "2001:db8::1"))
_PORT = 9

Interfaces = Mapping[str, Sequence[str]]


def server_address(preferred_interface: str | None) -> str:
    """Return the address to tell clients: costs some system calls and contacts nobody."""
    interfaces = active_interfaces()
    preferred = here.interface_named(preferred_interface or "", interfaces)
    return choose(interfaces, preferred, routed_address())


def choose(interfaces: Interfaces, preferred: str | None, routed: str | None) -> str:
    """Choose the preferred interface's address, else that of the default route, else any.

    On one interface IPv4 goes before IPv6, and both before addresses that only reach the link.
    """
    wanted = sorted(interfaces.get(preferred or "", ()), key=_rank)
    if wanted:
        return wanted[0]
    if routed is not None:
        return routed
    others = [text for texts in interfaces.values() for text in texts if _rank(text) < _LOOPBACK]
    return min(others, key=_rank, default="127.0.0.1")


def active_interfaces() -> dict[str, list[str]]:
    """Return the addresses of each interface that is up, without IPv6 scopes."""
    stats = psutil.net_if_stats()
    found: dict[str, list[str]] = {}
    for name, addresses in psutil.net_if_addrs().items():
        if name in stats and stats[name].isup:
            families = (socket.AF_INET, socket.AF_INET6)
            texts = [a.address.partition("%")[0] for a in addresses if a.family in families]
            found[name] = texts
    return found


def routed_address() -> str | None:
    """Return the source address that the default route gives.

    Connecting a UDP socket makes the kernel look the route up and sends nothing.
    """
    return next(_source_addresses(), None)


def _source_addresses() -> Iterator[str]:
    for family, target in _FAR_AWAY:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((target, _PORT))
                address = str(probe.getsockname()[0]).partition("%")[0]
        except OSError:
            continue
        if _rank(address) < _LINK_LOCAL:
            yield address


_LINK_LOCAL = 2
_LOOPBACK = 3


def _rank(text: str) -> int:
    address = ipaddress.ip_address(text)
    if address.is_loopback or address.is_unspecified:
        return _LOOPBACK
    if address.is_link_local:
        return _LINK_LOCAL
    return 0 if address.version == 4 else 1
