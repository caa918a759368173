"""Addresses of hosts, as they are counted."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network, ip_address


def counted(text: str) -> str | None:
    """Return what stands for an address where calls or connections are counted.

    Of IPv6 that is its network: each host has a whole one. None for what is no address.
    """
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(IPv6Network((int(address), 64), strict=False).network_address)
    return str(address)
