"""By which DNS names servers are reached: an administrator's mappings, read and looked up.

A mapping names its server by its id, its address, or its EC2 instance; the file is that of the
original's `register-server-dns-mappings`, whose documentation spells its keys in several ways. Keys
are compared without case, so what `describe-server-dns-mappings` prints can be read again.

Laws: a file is taken whole or refused with the number of the entry that is wrong and why. The
nearest mapping wins: by id, then by EC2 instance, then by address, then what the server says.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from deskfleet.core.fleet import Fleet
from deskfleet.core.placement import Refusal
from deskfleet.core.records import DnsMapping, Endpoint, Facts, ServerIdType
from deskfleet.errors import Invalid

MAX_SERVER_ID = 200
"""With the type before it, it has to be an id of the store."""
MAX_NAME = 253

_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*", re.ASCII)
_TYPES = {kind.value.casefold(): kind for kind in ServerIdType}
_INTERNAL = ("internaldnsname", "internaldnsnames")
_EXTERNAL = ("externaldnsname", "externaldnsnames")


def mapping_id(kind: ServerIdType, server_id: str) -> str:
    """Return the record's id: two mappings of one id are the same one."""
    return f"{kind}/{server_id}"


def read_mappings(content: bytes) -> list[DnsMapping]:
    """Read a file of mappings. Raises `Invalid` with the first entry that is wrong, and why."""
    try:
        entries = msgspec.json.decode(content.removeprefix(b"\xef\xbb\xbf"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"it is not JSON: {error}") from error
    if not isinstance(entries, list):
        raise Invalid("it must be a JSON array of mappings")
    mappings: dict[str, int] = {}
    read: list[DnsMapping] = []
    for number, entry in enumerate(entries, start=1):
        try:
            mapping = _mapping(entry)
        except Invalid as error:
            raise Invalid(f"entry {number}: {error.message}") from error
        earlier = mappings.setdefault(mapping.id, number)
        if earlier != number:
            what = f"{mapping.server_id_type} {mapping.server_id}"
            raise Invalid(f"entry {number}: {what} is in entry {earlier}, too")
        read.append(mapping)
    return read


def name_of(fleet: Fleet, facts: Facts, endpoint: Endpoint) -> str | Refusal:
    """Return the name by which a gateway reaches a server at one of its endpoints."""
    keys = list(_keys(facts, endpoint))
    for kind, value in keys:
        mapping = fleet.get(DnsMapping, mapping_id(kind, value))
        if mapping is not None:
            return mapping.internal_name
    if facts.dns_name:
        return facts.dns_name
    looked_for = ", ".join(f"{kind} {value}" for kind, value in keys)
    return Refusal(
        f"server {facts.id} (host {facts.hostname}) has no DNS name: no mapping is registered for"
        f" {looked_for}, and its agent knows no full name of its host"
    )


def _keys(facts: Facts, endpoint: Endpoint) -> Iterator[tuple[ServerIdType, str]]:
    yield ServerIdType.ID, facts.id
    if facts.host.aws is not None and facts.host.aws.instance_id:
        yield ServerIdType.EC2_INSTANCE_ID, facts.host.aws.instance_id
    for address in dict.fromkeys((_address(facts.ip), _address(endpoint.ip_address))):
        yield ServerIdType.IP, address


def _mapping(entry: Any) -> DnsMapping:
    members = _members(entry, "the entry", ("ServerIdType", "ServerId", "DnsNames"))
    kind = _TYPES.get(_text(members, "ServerIdType").casefold())
    if kind is None:
        raise Invalid(f"ServerIdType must be one of {', '.join(ServerIdType)}")
    server_id = _server_id(kind, _text(members, "ServerId"))
    names = _members(
        members.get("dnsnames"),
        "DnsNames",
        ("InternalDnsName", "InternalDnsNames", "ExternalDnsName", "ExternalDnsNames"),
    )
    internal = _name(names, _INTERNAL, "InternalDnsName")
    if internal is None:
        raise Invalid("DnsNames has no InternalDnsName")
    return DnsMapping(
        id=mapping_id(kind, server_id),
        server_id_type=kind,
        server_id=server_id,
        internal_name=internal,
        external_name=_name(names, _EXTERNAL, "ExternalDnsName"),
    )


def _members(value: Any, what: str, known: Sequence[str]) -> dict[str, Any]:
    """Return an object's members by their names without case."""
    if value is None:
        raise Invalid(f"{what} is missing")
    if not isinstance(value, dict):
        raise Invalid(f"{what} must be a JSON object")
    spelled = {name.casefold() for name in known}
    members: dict[str, Any] = {}
    for name, member in value.items():
        if name.casefold() not in spelled:
            raise Invalid(f"{what} has an unknown key {_quoted(name)}: it may have {_list(known)}")
        if name.casefold() in members:
            raise Invalid(f"{what} has the key {_quoted(name)} twice")
        members[name.casefold()] = member
    return members


def _text(members: Mapping[str, Any], name: str) -> str:
    value = members.get(name.casefold())
    if value is None:
        raise Invalid(f"{name} is missing")
    if not isinstance(value, str) or not value.strip():
        raise Invalid(f"{name} must be a text, and not empty")
    return value.strip()


def _server_id(kind: ServerIdType, value: str) -> str:
    if kind is ServerIdType.IP:
        try:
            return str(ipaddress.ip_address(value))
        except ValueError as error:
            raise Invalid(f"ServerId {_quoted(value)} is not an IP address") from error
    if len(value) > MAX_SERVER_ID or not value.isprintable():
        raise Invalid(f"ServerId must be printable, with up to {MAX_SERVER_ID} characters")
    return value


def _name(names: Mapping[str, Any], spellings: Sequence[str], what: str) -> str | None:
    given = [(key, names[key]) for key in spellings if names.get(key) is not None]
    if len(given) > 1:
        raise Invalid(f"DnsNames has {what} in two spellings")
    if not given:
        return None
    name = _text(names, given[0][0]) if isinstance(given[0][1], str) else None
    if name is None:
        raise Invalid(f"{what} must be a text")
    name = name.removesuffix(".")
    if _is_address(name):
        raise Invalid(f"{what} {name} is an address: gateways want a DNS name")
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise Invalid(f"{what} {_quoted(name)} is not a DNS name")
    return name


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return text


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        # Digits and dots are read as an IPv4 address by whoever is given them as a host.
        return bool(re.fullmatch(r"[0-9.]+", text, re.ASCII))
    return True


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:80]}…")


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)
