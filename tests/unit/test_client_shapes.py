"""The client's schemas are those of the API's description."""

from __future__ import annotations

import inspect
from typing import Any

import msgspec
import pytest

from deskfleet.client import shapes
from support import openapi

API = openapi.description()
STRUCTS = {
    name: kind
    for name, kind in inspect.getmembers(shapes, inspect.isclass)
    if issubclass(kind, msgspec.Struct) and kind.__module__ == shapes.__name__
}
BASES = {"Sent", "Told"}
OTHER_NAMES = {
    "DeleteSessionUnsuccessfulResponse": "UnsuccessfulSession",
    "UpdateSessionPermissionsUnsuccessfulResponse": "UnsuccessfulSession",
}
NOT_OF_AN_OPERATION = {"AccessToken", "Error", "OAuthError"}
"""The transport reads these itself."""
DESCRIBED = sorted(set(openapi.schemas(API)) - NOT_OF_AN_OPERATION)


def members(kind: type[Any]) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(kind)}


def test_every_schema_is_here() -> None:
    assert {OTHER_NAMES.get(name, name) for name in DESCRIBED} == set(STRUCTS) - BASES


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_schema_has_the_described_members(name: str) -> None:
    described = set(openapi.schemas(API)[name]["properties"])
    assert members(STRUCTS[OTHER_NAMES.get(name, name)]) == described
