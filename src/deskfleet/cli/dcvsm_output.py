"""What `dcvsm` prints on standard output: the API's answer as JSON with snake_case keys.

Keys are those of the clients that are generated from the API's description, in its order; a
member that an answer leaves out is null, as it is there. Values are the API's own, dates among
them. Members that the description doesn't have come last.

Law: whatever a broker answers, only printable ASCII leaves here.

Must not: ask a broker anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, get_args

import msgspec

from deskfleet.client.problems import Unreadable

_WORDS = (re.compile(r"([A-Z]+)([A-Z][a-z])"), re.compile(r"([a-z\d])([A-Z])"))
_NAMES = ("session_id", "server_id", "name")


def snake(name: str) -> str:
    """Return `ec2_instance_type` for `EC2InstanceType`, by the rules of the generators."""
    for between in _WORDS:
        name = between.sub(r"\1_\2", name)
    return name.replace("-", "_").lower()


def members(answer: bytes, kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Read an answer of the API as what is printed. Raises `Unreadable` where it is no object."""
    try:
        told = _told(json.loads(answer), kind)
    except (ValueError, RecursionError) as error:
        raise Unreadable("the broker's answer is not JSON") from error
    if not isinstance(told, dict):
        raise Unreadable("the broker's answer is not a JSON object")
    return told


def printed(told: dict[str, Any]) -> str:
    return json.dumps(told, indent=4).replace("\x7f", "\\u007f")


def failures(told: dict[str, Any]) -> Iterator[str]:
    """Yield what became of each part of a batch that was refused, in one sentence."""
    for failed in told.get("unsuccessful_list") or ():
        asked = failed if isinstance(failed, dict) else {}
        reason = asked.get("failure_reason") or asked.get("failure_code") or "refused"
        yield ": ".join([*_subjects(asked), str(reason)])


def _subjects(failed: dict[str, Any]) -> list[str]:
    """Return the name of what was asked for, of the entry itself or of the request in it."""
    requests = [member for member in failed.values() if isinstance(member, dict)]
    found = (each.get(name) for each in (failed, *requests) for name in _NAMES)
    return [name for name in found if isinstance(name, str) and name][:1]


def _told(value: Any, kind: type[msgspec.Struct] | None) -> Any:
    if isinstance(value, list):
        return [_told(each, kind) for each in value]
    if not isinstance(value, dict):
        return value
    told = {} if kind is None else _known(value, kind)
    for name, member in value.items():
        told.setdefault(snake(name), _told(member, None))
    return told


def _known(value: dict[str, Any], kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {
        field.name: _told(value.get(field.encode_name), _struct_in(field.type))
        for field in msgspec.structs.fields(kind)
    }


def _struct_in(kind: Any) -> type[msgspec.Struct] | None:
    """Return the struct of `Server | None` or `tuple[Server, ...]`."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    return next(filter(None, map(_struct_in, get_args(kind))), None)
