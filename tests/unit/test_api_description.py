"""The description of the API and the structs that are sent and read say the same."""

from __future__ import annotations

import inspect
import json
from typing import Any

import httpx
import msgspec
import pytest

from deskfleet.broker.web import shapes
from deskfleet.broker.web.routes import client_routes
from support import openapi

# (method, path): tag, operationId, schema of the body, whether a body must come, schema of the
# answer. Generated clients take the names of their classes and methods from these.
OPERATIONS: dict[tuple[str, str], tuple[str, str, str | None, bool, str]] = {
    ("post", "/describeSessions"): (
        "sessions",
        "describeSessions",
        "DescribeSessionsRequestData",
        False,
        "DescribeSessionsResponse",
    ),
    ("post", "/createSessions"): (
        "sessions",
        "createSessions",
        "[CreateSessionRequestData]",
        True,
        "CreateSessionsResponse",
    ),
    ("post", "/deleteSessions"): (
        "sessions",
        "deleteSessions",
        "[DeleteSessionRequestData]",
        True,
        "DeleteSessionsResponse",
    ),
    ("post", "/getSessionScreenshots"): (
        "sessions",
        "getSessionScreenshots",
        "[GetSessionScreenshotRequestData]",
        True,
        "GetSessionScreenshotsResponse",
    ),
    ("put", "/sessionPermissions"): (
        "sessionPermissions",
        "updateSessionPermissions",
        "[UpdateSessionPermissionsRequestData]",
        True,
        "UpdateSessionPermissionsResponse",
    ),
    ("get", "/sessionConnectionData/{sessionId}/{user}"): (
        "GetSessionConnectionData",
        "GetSessionConnectionData",
        None,
        False,
        "GetSessionConnectionDataResponse",
    ),
    ("post", "/describeServers"): (
        "servers",
        "describeServers",
        "DescribeServersRequestData",
        False,
        "DescribeServersResponse",
    ),
    ("post", "/openServers"): (
        "servers",
        "openServers",
        "[OpenServerRequestData]",
        True,
        "OpenServersResponse",
    ),
    ("post", "/closeServers"): (
        "servers",
        "closeServers",
        "[CloseServerRequestData]",
        True,
        "CloseServersResponse",
    ),
    ("post", "/oauth2/token"): ("access", "requestAccessToken", None, False, "AccessToken"),
}

API = openapi.description()
FOR_ANYBODY = ["/dcv-session-manager-api.yaml", "/health"]

NEEDED_IN_REQUESTS = {
    "CreateSessionRequestData": ["Name", "Owner", "Type"],
    "DeleteSessionRequestData": ["SessionId", "Owner"],
    "UpdateSessionPermissionsRequestData": ["SessionId", "Owner", "PermissionsFile"],
    "GetSessionScreenshotRequestData": ["SessionId"],
    "OpenServerRequestData": ["ServerId"],
    "CloseServerRequestData": ["ServerId"],
}
"""As the developer guide has it."""


class Anything:
    """Stands for the handlers: the table is walked, nothing is called."""

    def __getattr__(self, name: str) -> Any:
        return name


def structs() -> dict[str, type[msgspec.Struct]]:
    return {
        name: found
        for name, found in inspect.getmembers(shapes, inspect.isclass)
        if issubclass(found, shapes.Asked | shapes.Answer)
        and found not in (shapes.Asked, shapes.Answer)
    }


def form(schema: dict[str, Any]) -> str:
    """Reduce a schema, ours or the description's, to what must agree."""
    if "anyOf" in schema:
        (only,) = (each for each in schema["anyOf"] if each != {"type": "null"})
        return form(only)
    if "$ref" in schema:
        return openapi.referred(schema)
    if schema["type"] == "array":
        return f"[{form(schema['items'])}]{most(schema)}"
    return f"{schema['type']}{span(schema)}"


def most(schema: dict[str, Any]) -> str:
    return f" up to {schema['maxItems']}" if "maxItems" in schema else ""


def span(schema: dict[str, Any]) -> str:
    if "maxLength" in schema:
        return f" up to {schema['maxLength']}"
    if "enum" in schema:
        return f" {sorted(schema['enum'])}"
    if schema.get("format") in ("int32", "int64"):
        bits = int(schema["format"][3:]) - 1
        return f" {-(2**bits)}..{2**bits - 1}"
    if "minimum" in schema:
        return f" {schema['minimum']}..{schema['maximum']}"
    return f" {schema['format']}" if "format" in schema else ""


def forms_of(schema: dict[str, Any]) -> dict[str, str]:
    return {member: form(each) for member, each in schema["properties"].items()}


def test_the_same_schemas_are_described_and_coded() -> None:
    assert set(openapi.schemas(API)) == set(structs())


@pytest.mark.parametrize("name", sorted(structs()))
def test_a_schema_has_the_same_members_of_the_same_types_on_both_sides(name: str) -> None:
    _, coded = msgspec.json.schema_components(
        structs().values(), ref_template="#/components/schemas/{name}"
    )
    assert forms_of(openapi.schemas(API)[name]) == forms_of(coded[name])


@pytest.mark.parametrize("name", sorted(structs()))
def test_what_is_required_is_always_there_and_nothing_else(name: str) -> None:
    required = [
        each.encode_name for each in msgspec.structs.fields(structs()[name]) if each.required
    ]
    assert openapi.schemas(API)[name].get("required", []) == required


@pytest.mark.parametrize("name", NEEDED_IN_REQUESTS)
def test_what_an_entry_needs_is_said_in_words_since_its_lack_is_no_failure_of_the_call(
    name: str,
) -> None:
    words = openapi.schemas(API)[name]["description"]
    needed = NEEDED_IN_REQUESTS[name]
    if set(needed) == set(openapi.schemas(API)[name]["properties"]) and len(needed) > 1:
        assert "All members are needed" in words
    else:
        assert all(member in words.partition(" needed.")[0] for member in needed)


@pytest.mark.parametrize("name", sorted(structs()))
def test_what_refuses_unknown_members_says_so(name: str) -> None:
    closed = openapi.schemas(API)[name].get("additionalProperties", True) is False
    assert closed is structs()[name].__struct_config__.forbid_unknown_fields


@pytest.mark.parametrize("name", sorted(openapi.schemas(API)))
def test_null_is_allowed_where_it_is_as_good_as_absent(name: str) -> None:
    schema = openapi.schemas(API)[name]
    nullable = {member for member, each in schema["properties"].items() if each.get("nullable")}
    is_request = issubclass(structs()[name], shapes.Asked)
    optional = {
        each.encode_name for each in msgspec.structs.fields(structs()[name]) if not each.required
    }
    assert schema["type"] == "object"
    assert nullable == (optional if is_request else set())


@pytest.mark.parametrize(("method", "path"), sorted(OPERATIONS))
def test_an_operation_bears_the_names_that_generated_clients_use(method: str, path: str) -> None:
    operation = API["paths"][path][method]
    tag, operation_id, body, must, answer = OPERATIONS[method, path]
    content = operation.get("requestBody", {}).get("content", {})
    bodies = [form(each["schema"]) for kind, each in content.items() if kind == "application/json"]
    limit = f" up to {shapes.MAX_ENTRIES}" if body and body.startswith("[") else ""
    ok = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert operation["tags"] == [tag]
    assert operation["operationId"] == operation_id
    assert bodies == ([f"{body}{limit}"] if body else [])
    assert operation.get("requestBody", {}).get("required", False) is must
    assert operation.get("x-codegen-request-body-name") == ("body" if body else None)
    assert openapi.referred(ok) == answer


def test_nothing_else_is_described_but_what_anybody_may_read() -> None:
    described = {(method, path) for path, item in API["paths"].items() for method in item}
    assert described == {*OPERATIONS, *(("get", path) for path in FOR_ANYBODY)}


def test_every_call_but_for_a_token_and_what_anybody_may_read_needs_a_bearer_token() -> None:
    assert API["components"]["securitySchemes"]["bearerAuth"]["type"] == "http"
    assert API["components"]["securitySchemes"]["bearerAuth"]["scheme"] == "bearer"
    assert API["security"] == [{"bearerAuth": []}]
    own = {
        path for path, item in API["paths"].items() for call in item.values() if "security" in call
    }
    assert own == {"/oauth2/token", *FOR_ANYBODY}


@pytest.mark.parametrize(("method", "path"), sorted(OPERATIONS))
def test_every_failure_is_described_as_an_error(method: str, path: str) -> None:
    responses = dict(API["paths"][path][method]["responses"])
    del responses["200"]
    assert {"400", "401", "429", "500", "503"} <= set(responses)
    for response in responses.values():
        shared = API["components"]["responses"][openapi.referred(response)]
        content = shared["content"]["application/json"]
        name = openapi.referred(content["schema"])
        assert name in {"Error", "OAuthError"}
        assert openapi.violations(API, content["example"], name) == []


@pytest.mark.parametrize(("method", "path"), sorted(OPERATIONS))
def test_an_operation_has_an_example_that_is_true_to_it(method: str, path: str) -> None:
    operation = API["paths"][path][method]
    *_, body, _, answer = OPERATIONS[method, path]
    ok = operation["responses"]["200"]["content"]["application/json"]
    assert openapi.violations(API, ok["example"], answer) == []
    if body is not None:
        asked = operation["requestBody"]["content"]["application/json"]["example"]
        name, entries = body.strip("[]"), asked if body.startswith("[") else [asked]
        for entry in entries:
            assert set(NEEDED_IN_REQUESTS.get(name, [])) <= set(entry)
            assert openapi.violations(API, entry, name) == []
            assert msgspec.convert(entry, structs()[name])


def test_the_links_lead_to_operations_with_parameters_that_they_have() -> None:
    calls = {call["operationId"]: call for item in API["paths"].values() for call in item.values()}
    for link in API["components"]["links"].values():
        known = {one["name"] for one in calls[link["operationId"]]["parameters"]}
        assert set(link["parameters"]) == known


def test_every_route_for_clients_is_described_and_nothing_else() -> None:
    routes = {
        (route.method.lower(), route.path.replace(":path", ""))
        for route in client_routes(*[Anything()] * 3)  # type: ignore[arg-type]
    }
    described = {(method, path) for path, item in API["paths"].items() for method in item}
    assert routes == described


def test_the_strict_reader_throws_on_what_strict_clients_throw_on() -> None:
    def throws(value: Any, name: str = "Server", *, whole: bool = False) -> bool:
        return bool(openapi.violations(API, value, name, whole=whole))

    assert not throws({"Port": "8443", "Availability": "AVAILABLE"})
    assert throws({"Port": 8443})
    assert throws({"Endpoints": [{"Port": True}]})
    assert throws({"Host": {"Os": {"Codename": "x"}}})
    assert throws({"Availability": "PERHAPS"})
    assert throws({"Port": "8443"}, whole=True)
    assert throws({"ConsoleSessionCount": 2**31})
    assert throws({"UnavailabilityReason": None})
    assert throws({"CreationTime": "2020-10-06 10:15:31.633Z"}, "Session")
    assert throws({"Name": "x" * 65_537}, "CreateSessionRequestData")
    assert throws({"MaxWidth": 0}, "GetSessionScreenshotRequestData")
    assert not throws({"Owner": "x"}, "CreateSessionRequestData", whole=True)


@pytest.mark.parametrize(
    ("status", "headers", "body", "fault"),
    [
        (200, {}, {"SuccessfulList": [], "UnsuccessfulList": [], "RequestId": "r"}, ""),
        (200, {}, {"SuccessfulList": [], "RequestId": "r"}, "UnsuccessfulList: missing"),
        (204, {}, {}, "status"),
        (400, {}, {"error": "no"}, ""),
        (400, {}, {"error": "no", "error_description": "no"}, "error_description: unknown"),
        (401, {"WWW-Authenticate": "Bearer"}, {"error": "no"}, ""),
        (401, {}, {"error": "no"}, "WWW-Authenticate: missing"),
        (429, {}, {"error": "no"}, "Retry-After: missing"),
        (400, {"Content-Type": "text/plain"}, {"error": "no"}, "text/plain"),
    ],
)
def test_the_strict_reader_finds_what_is_not_as_described(
    status: int, headers: dict[str, str], body: Any, fault: str
) -> None:
    request = httpx.Request("POST", "https://broker/createSessions?x")
    headers = {"Content-Type": "application/json", **headers}
    answer = httpx.Response(status, headers=headers, content=json.dumps(body), request=request)
    found = openapi.faults(API, answer)
    assert len(found) == bool(fault)
    assert fault in "".join(found)


def test_the_strict_reader_knows_a_user_who_stands_raw_in_the_path() -> None:
    def found(path: str) -> list[str]:
        request = httpx.Request("GET", f"https://broker{path}")
        return openapi.faults(API, httpx.Response(404, json={"error": "no"}, request=request))

    assert found("/sessionConnectionData/a%2Fb/DOMAIN/user") == []
    assert found("/nowhere") == []
    assert found("/health") == ["GET /health 404: the status isn't described"]
