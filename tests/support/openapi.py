"""The API description, loaded, and answers held against it as strictly as the strictest client."""

from __future__ import annotations

import copy
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


def violations(api: Json, value: Json, name: str, *, whole: bool = True) -> list[str]:
    """List what a client that throws on unknown members and wrong types would throw on.

    `whole` also lists what is missing of that which is promised.
    """
    return list(_violations(api, value, schemas(api)[name], name, whole))


def without_promises(api: Json) -> Json:
    """Return the description of what a broker refuses as a whole: what it doesn't, is relaxed.

    An entry without what is required of it fails alone, and null is as good as absent.
    """
    relaxed = copy.deepcopy(api)
    for name, schema in schemas(relaxed).items():
        if name.endswith("RequestData") and schema.get("additionalProperties") is False:
            schema.pop("required", None)
            for member in schema["properties"].values():
                member["nullable"] = True
    return relaxed


def _is_of(value: Json, types: tuple[type, ...]) -> bool:
    return isinstance(value, types) and (bool in types or not isinstance(value, bool))


def _violations(api: Json, value: Json, schema: Json, at: str, whole: bool) -> list[str]:
    if "$ref" in schema:
        schema = schemas(api)[referred(schema)]
    if not _is_of(value, _TYPES[schema["type"]]):
        return [f"{at}: {value!r} is not of type {schema['type']}"]
    found: list[str] = []
    if value not in schema.get("enum", [value]):
        found.append(f"{at}: {value!r} is none of {schema['enum']}")
    if schema["type"] == "array":
        for index, entry in enumerate(value):
            found += _violations(api, entry, schema["items"], f"{at}[{index}]", whole)
    if schema["type"] == "object":
        # What repeats a request has what the client has sent.
        promised = schema.get("required", []) if whole and not _is_request(schema) else []
        found += [f"{at}.{member}: missing" for member in promised if member not in value]
        for member, entry in value.items():
            known = schema["properties"].get(member)
            deeper = f"{at}.{member}"
            found += (
                _violations(api, entry, known, deeper, whole) if known else [f"{deeper}: unknown"]
            )
    return found


def _is_request(schema: Json) -> bool:
    return schema.get("additionalProperties") is False
