"""How much an agent may say: every text, list and table of its messages has a limit.

The limits are the wire's alone. What is stored was let in once, by whichever version, and must
decode for ever; so the records themselves have none, and the types that do are made of them here.

Law: what follows `bounded(type)` is a `type`, and holds no text, list or table without a limit.
Only bytes have none of their own: a message has.
"""

from __future__ import annotations

import functools
from operator import or_
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec

from deskfleet.core.records import MOST_CHARACTERS, Facts, Report, SessionRequest
from deskfleet.ports import Running

MOST_ENTRIES = 10_000
MOST_TAGS = 1_000
MOST_ID_CHARACTERS = 256
MOST_PERMISSIONS_CHARACTERS = 128 * 1024
"""A permissions file of the greatest size, in base64, fits."""

_TEXT = Annotated[str, msgspec.Meta(max_length=MOST_CHARACTERS)]
_ID = Annotated[str, msgspec.Meta(max_length=MOST_ID_CHARACTERS)]
_PERMISSIONS = Annotated[str, msgspec.Meta(max_length=MOST_PERMISSIONS_CHARACTERS)]

OF_THEIR_OWN: dict[tuple[type, str], Any] = {
    (Report, "id"): _ID,
    (Running, "session_id"): _ID,
    (SessionRequest, "permissions_file"): _PERMISSIONS | None,
    (Facts, "tags"): Annotated[dict[_TEXT, _TEXT], msgspec.Meta(max_length=MOST_TAGS)],
}


def bounded(kind: Any) -> Any:
    """Return a type like this one, with limits; for decoding with it, and nothing else."""
    if kind is str:
        return _TEXT
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _bounded_struct(kind)
    origin, parts = get_origin(kind), get_args(kind)
    if origin in {Union, UnionType}:
        return functools.reduce(or_, map(bounded, parts))
    if origin is tuple and parts[-1] is Ellipsis:
        any_tuple: Any = tuple
        many = any_tuple[bounded(parts[0]), ...]
        return Annotated[many, msgspec.Meta(max_length=MOST_ENTRIES)]
    return kind


@functools.cache
def _bounded_struct(kind: type[msgspec.Struct]) -> Any:
    config = kind.__struct_config__
    fields: list[Any] = []
    for field in msgspec.structs.fields(kind):
        type = OF_THEIR_OWN.get((kind, field.name)) or bounded(field.type)
        fields.append((field.name, type) if field.required else (field.name, type, None))
    return msgspec.defstruct(
        kind.__name__, fields, kw_only=True, tag=config.tag, tag_field=config.tag_field
    )


def cut(text: str) -> str:
    """Return as much of a text as may be said."""
    return text[:MOST_CHARACTERS]
