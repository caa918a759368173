"""How often, and from where, a connection token opens its session.

The first use from a known address binds a token to that address for the rest of its life: who gets
hold of it elsewhere gets nothing. Where tokens are of single use, nobody uses one again. A server
that doesn't say from where its client comes binds nothing, and isn't let into what is bound.
"""

from __future__ import annotations

import ipaddress

from deskfleet.core.placement import Refusal
from deskfleet.core.records import TokenUse
from deskfleet.core.session import replace

MAX_ADDRESS = 255

USED = Refusal("the token was used before")
BOUND = Refusal("the token is bound to another address")


def use(known: TokenUse | None, asked: TokenUse, *, single_use: bool) -> TokenUse | Refusal | None:
    """Return what is to be remembered of a use, None for nothing new, or why it is refused."""
    if known is None:
        return asked if single_use or asked.client_address else None
    if single_use:
        return USED
    if known.client_address is None:
        # It was used where its server didn't say by whom.
        address = asked.client_address
        return None if address is None else replace(known, client_address=address)
    return None if asked.client_address == known.client_address else BOUND


def client_address(text: str) -> str | None:
    """Return an address in its one spelling, None for no address.

    A port behind it is dropped, since each connection has another one, and so is the scope of a
    link-local address. IPv4 inside of IPv6 is IPv4. What isn't an address stays as it is: it can
    still be told from others.
    """
    text = text.strip()
    for spelling in (text, text.strip("[]"), _without_port(text)):
        try:
            address = ipaddress.ip_address(spelling.partition("%")[0])
        except ValueError:
            continue
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return str(mapped or address)
    return text.lower()[:MAX_ADDRESS] or None


def is_address(text: str) -> bool:
    """Tell whether `client_address` can make an IP address of this."""
    known = client_address(text)
    try:
        return known is not None and bool(ipaddress.ip_address(known))
    except ValueError:
        return False


def _without_port(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    # An IPv6 address without brackets has no port that could be told from it.
    return text.partition(":")[0] if text.count(":") == 1 else text
