"""What clients are told when a request fails as a whole."""

from __future__ import annotations

import json
import re

import pytest

from support.conformance import Api

OBJECTS = ["describeServers", "describeSessions"]
ARRAYS = [
    *("closeServers", "createSessions", "deleteSessions"),
    *("getSessionScreenshots", "openServers", "sessionPermissions"),
]
NOT_JSON = [b"{", b"[{]", b"\xff\xfe", b"{'a': 1}", b"NaN", b'{"a":1}x']


def post(api: Api, operation: str, content: bytes) -> tuple[int, str]:
    method = "PUT" if operation == "sessionPermissions" else "POST"
    answer = api.send(method, f"/{operation}", content=content)
    return answer.status_code, api.reason(answer)


class TestInvalidInput400:
    @pytest.mark.parametrize("operation", [*OBJECTS, *ARRAYS])
    @pytest.mark.parametrize("body", NOT_JSON, ids=str)
    def test_a_body_that_is_no_json(self, api: Api, operation: str, body: bytes) -> None:
        status, reason = post(api, operation, body)
        assert status == 400
        assert reason

    @pytest.mark.parametrize("operation", ARRAYS)
    @pytest.mark.parametrize("body", [b"{}", b"", b"null", b'"x"', b"[null]", b"[[]]", b"[1]"])
    def test_a_batch_that_is_no_array_of_objects(
        self, api: Api, operation: str, body: bytes
    ) -> None:
        assert post(api, operation, body)[0] == 400

    @pytest.mark.parametrize("operation", OBJECTS)
    @pytest.mark.parametrize("body", [b"[]", b"null", b'"x"', b"1"])
    def test_a_description_that_is_no_object(self, api: Api, operation: str, body: bytes) -> None:
        assert post(api, operation, body)[0] == 400

    @pytest.mark.parametrize(
        ("operation", "item"),
        [
            ("createSessions", {"Name": 5}),
            ("createSessions", {"MaxConcurrentClients": "1"}),
            ("createSessions", {"MaxConcurrentClients": 1.5}),
            ("createSessions", {"AutorunFileArguments": "x"}),
            ("createSessions", {"EnqueueRequest": "true"}),
            ("deleteSessions", {"Force": "yes"}),
            ("closeServers", {"Force": 1}),
            ("openServers", {"ServerId": []}),
            ("sessionPermissions", {"PermissionsFile": {}}),
            ("getSessionScreenshots", {"MaxWidth": "800"}),
            ("getSessionScreenshots", {"MaxWidth": 2**63}),
        ],
        ids=lambda value: str(value) if isinstance(value, dict) else None,
    )
    def test_a_member_of_the_wrong_type_is_named(
        self, api: Api, operation: str, item: dict[str, object]
    ) -> None:
        assert next(iter(item)) in api.refused(operation, [item])

    def test_an_id_that_is_null(self, api: Api) -> None:
        assert "SessionIds" in api.refused("describeSessions", {"SessionIds": [None]})

    @pytest.mark.parametrize("operation", ARRAYS)
    def test_an_unknown_member_is_told_as_clients_look_for_it(
        self, api: Api, operation: str
    ) -> None:
        assert 'Unrecognized field "Unknown"' in api.refused(operation, [{"Unknown": 1}])

    def test_another_failure_does_not_mention_the_sizes(self, api: Api) -> None:
        assert not re.search("Max(Width|Height)", api.refused("getSessionScreenshots", [{"X": 1}]))

    @pytest.mark.own_broker
    def test_an_array_of_more_than_a_thousand(self, api: Api) -> None:
        assert api.refused("openServers", [{"ServerId": "x"}] * 1001)
        assert len(api.call("openServers", [{"ServerId": "x"}] * 1000)["UnsuccessfulList"]) == 1000

    @pytest.mark.own_broker
    def test_a_member_that_stands_twice(self, api: Api) -> None:
        status, reason = post(api, "openServers", b'[{"ServerId": "a", "ServerId": "b"}]')
        assert (status, reason) == (400, 'Duplicate field "ServerId"')

    @pytest.mark.own_broker
    def test_a_body_that_is_nested_too_deeply(self, api: Api) -> None:
        assert post(api, "openServers", b"[" * 100_000)[0] == 400

    @pytest.mark.own_broker
    def test_a_body_that_is_compressed(self, api: Api) -> None:
        headers = {"Authorization": f"Bearer {api.token()}", "Content-Encoding": "gzip"}
        answer = api.send("POST", "/openServers", content=b"x", headers=headers)
        assert answer.status_code == 400


@pytest.mark.own_broker
class TestTooLarge413:
    def test_a_body_of_more_than_four_megabytes(self, api: Api) -> None:
        body = json.dumps([{"ServerId": "x" * 60_000}] * 100).encode()
        assert len(body) > 4 * 1024 * 1024
        assert post(api, "openServers", body)[0] == 413


class TestNotFound404:
    @pytest.mark.parametrize("path", ["/", "/describeServers/", "/v1/describeServers", "/x"])
    def test_a_path_that_is_none(self, api: Api, path: str) -> None:
        answer = api.send("POST", path, json={})
        assert answer.status_code == 404

    @pytest.mark.own_broker
    def test_it_is_told_as_every_failure_is(self, api: Api) -> None:
        assert api.reason(api.send("POST", "/x", json={}))


@pytest.mark.own_broker
class TestMethodNotAllowed405:
    @pytest.mark.parametrize("operation", [*OBJECTS, *ARRAYS])
    @pytest.mark.parametrize("method", ["GET", "DELETE", "PATCH"])
    def test_another_method(self, api: Api, operation: str, method: str) -> None:
        answer = api.send(method, f"/{operation}")
        assert answer.status_code == 405
        assert answer.headers["allow"] == ("PUT" if operation == "sessionPermissions" else "POST")
        assert api.reason(answer)


@pytest.mark.own_broker
class TestWhatAFailureNeverTells:
    @pytest.mark.parametrize("operation", [*OBJECTS, *ARRAYS])
    @pytest.mark.parametrize("body", [*NOT_JSON, b'[{"x": "Traceback"}]', b"[" * 100_000], ids=len)
    def test_a_stack_trace_or_a_path_of_the_server(
        self, api: Api, operation: str, body: bytes
    ) -> None:
        _, reason = post(api, operation, body)
        assert "Traceback" not in reason
        assert not re.search(
            r"\.py\b|(?<![\w:])/(?:usr|home|root|opt|var|tmp|srv|etc|work)/", reason
        )

    def test_what_the_request_held(self, api: Api) -> None:
        secret = "s3cr3t-that-came-by-mistake"
        for body in ([{"ServerId": {"x": secret}}], [{"Force": secret}], {"ServerIds": secret}):
            operation = "closeServers" if isinstance(body, list) else "describeServers"
            assert secret not in api.refused(operation, body)
