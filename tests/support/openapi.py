"""The API description, loaded, and answers held against it as strictly as the strictest client."""

from __future__ import annotations

from importlib import resources
from typing import Any, TypeAlias

import yaml

Json: TypeAlias = Any

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


def description() -> Json:
    text = (resources.files("deskfleet.broker.web") / "dcv-session-manager-api.yaml").read_text()
    return yaml.safe_load(text)


def schemas(api: Json) -> dict[str, Json]:
    found: dict[str, Json] = api["components"]["schemas"]
    return found


def referred(schema: Json) -> str:
    """Return the name that a `$ref` leads to."""
    return str(schema["$ref"]).rpartition("/")[2]


def violations(api: Json, value: Json, name: str) -> list[str]:
    """List what a client that throws on unknown members and wrong types would throw on."""
    return list(_violations(api, value, schemas(api)[name], name))


def _is_of(value: Json, types: tuple[type, ...]) -> bool:
    return isinstance(value, types) and (bool in types or not isinstance(value, bool))


def _violations(api: Json, value: Json, schema: Json, at: str) -> list[str]:
    if "$ref" in schema:
        schema = schemas(api)[referred(schema)]
    if not _is_of(value, _TYPES[schema["type"]]):
        return [f"{at}: {value!r} is not of type {schema['type']}"]
    found: list[str] = []
    if schema["type"] == "array":
        for index, entry in enumerate(value):
            found += _violations(api, entry, schema["items"], f"{at}[{index}]")
    if schema["type"] == "object":
        for member, entry in value.items():
            known = schema["properties"].get(member)
            deeper = f"{at}.{member}"
            found += _violations(api, entry, known, deeper) if known else [f"{deeper}: unknown"]
    return found
