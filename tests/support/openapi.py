"""The API description, loaded, and answers held against it as strictly as the strictest client."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import resources
from typing import Any, TypeAlias

import httpx
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
_RANGES = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


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


def faults(api: Json, answer: httpx.Response, *, whole: bool = True) -> list[str]:
    """List in what an answer, read whole, differs from all that is described of its request.

    What no path or method of the description is asked for is refused as an `Error`.
    """
    request = answer.request
    path = request.url.raw_path.partition(b"?")[0].decode()
    responses = _responses(api, request.method.lower(), path)
    if responses is None:
        return violations(api, answer.json(), "Error") if answer.content else []
    asked = f"{request.method} {path} {answer.status_code}"
    response = responses.get(str(answer.status_code))
    if response is None:
        return [f"{asked}: the status isn't described"]
    if "$ref" in response:
        response = api["components"]["responses"][referred(response)]
    found = [
        f"{asked}: {name}: missing"
        for name, header in response.get("headers", {}).items()
        if header.get("required") and name not in answer.headers
    ]
    media = answer.headers.get("content-type", "").partition(";")[0]
    if media not in response["content"]:
        return [*found, f"{asked}: {media!r} isn't described"]
    # JSON is YAML, but not to a strict client.
    value = (json.loads if media == "application/json" else yaml.safe_load)(answer.content)
    schema = response["content"][media]["schema"]
    return found + list(_violations(api, value, schema, asked, whole))


def _responses(api: Json, method: str, path: str) -> Json:
    for template, operations in api["paths"].items():
        # A user may stand in the path as it is, with slashes.
        pattern = re.sub(r"\{\w+\}$", ".*", template)
        pattern = re.sub(r"\{\w+\}", "[^/]+", pattern)
        if re.fullmatch(pattern, path) and method in operations:
            return operations[method]["responses"]
    return None


def _is_of(value: Json, types: tuple[type, ...]) -> bool:
    return isinstance(value, types) and (bool in types or not isinstance(value, bool))


def _violations(api: Json, value: Json, schema: Json, at: str, whole: bool) -> Iterator[str]:
    if "$ref" in schema:
        schema = schemas(api)[referred(schema)]
    if not _is_of(value, _TYPES[schema["type"]]):
        yield f"{at}: {value!r} is not of type {schema['type']}"
        return
    if value not in schema.get("enum", [value]):
        yield f"{at}: {value!r} is none of {schema['enum']}"
    yield from _beyond_limits(value, schema, at)
    if schema["type"] == "array":
        for index, entry in enumerate(value):
            yield from _violations(api, entry, schema["items"], f"{at}[{index}]", whole)
    if schema["type"] == "object" and "properties" in schema:
        promised = schema.get("required", []) if whole else []
        yield from (f"{at}.{member}: missing" for member in promised if member not in value)
        for member, entry in value.items():
            known = schema["properties"].get(member)
            if known:
                yield from _violations(api, entry, known, f"{at}.{member}", whole)
            else:
                yield f"{at}.{member}: unknown"


def _beyond_limits(value: Json, schema: Json, at: str) -> Iterator[str]:
    form = schema.get("format")
    if form == "date-time" and not _INSTANT.fullmatch(value):
        yield f"{at}: {value!r} is no instant"
    if schema["type"] == "integer":
        least, most = _RANGES.get(form, (value, value))
        if not schema.get("minimum", least) <= value <= schema.get("maximum", most):
            yield f"{at}: {value!r} is out of range"
    for limit in ("maxLength", "maxItems"):
        if limit in schema and len(value) > schema[limit]:
            yield f"{at}: {limit} is {schema[limit]}"
