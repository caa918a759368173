"""Getting started with Session Manager API: the client, its credentials, the first request."""

from __future__ import annotations

import base64

import jwt
import pytest
import yaml

from support.conformance import UNKNOWN_ID, Api

OPERATIONS = [
    ("POST", "/closeServers"),
    ("POST", "/createSessions"),
    ("POST", "/describeServers"),
    ("POST", "/describeSessions"),
    ("POST", "/deleteSessions"),
    ("GET", f"/sessionConnectionData/{UNKNOWN_ID}/user1"),
    ("POST", "/getSessionScreenshots"),
    ("POST", "/openServers"),
    ("PUT", "/sessionPermissions"),
]
WITHOUT_HEADER = {"error": "No authorization header"}


class TestStep1GenerateYourApiClient:
    def test_the_yaml_file_is_available_at_its_url_to_anybody(self, api: Api) -> None:
        answer = api.send("GET", "/dcv-session-manager-api.yaml", headers={})
        assert answer.status_code == 200
        assert yaml.safe_load(answer.text)["openapi"].startswith("3.0.")

    @pytest.mark.parametrize(("method", "path"), OPERATIONS)
    def test_the_yaml_file_describes(self, api: Api, method: str, path: str) -> None:
        described = yaml.safe_load(api.send("GET", "/dcv-session-manager-api.yaml").text)["paths"]
        named = path.replace(f"{UNKNOWN_ID}/user1", "{sessionId}/{user}")
        assert method.lower() in described[named]

    @pytest.mark.own_broker
    def test_the_yaml_file_is_the_one_that_answers_are_held_to(self, api: Api) -> None:
        served = yaml.safe_load(api.send("GET", "/dcv-session-manager-api.yaml").text)
        assert served == api.description


class TestStep2RegisterYourClientApi:
    @pytest.mark.own_broker
    def test_the_id_and_the_password_look_as_clients_expect(self, api: Api) -> None:
        assert len(api.target.client_id) == 36
        assert base64.b64decode(api.target.client_password, validate=True)


class TestStep3GetAnAccessToken:
    def test_access_token(self, api: Api) -> None:
        assert api.ask_for_token().json()["access_token"]

    def test_token_type(self, api: Api) -> None:
        assert api.ask_for_token().json()["token_type"].lower() == "bearer"

    def test_expires_in_is_a_whole_number_of_seconds(self, api: Api) -> None:
        seconds = api.ask_for_token().json()["expires_in"]
        assert type(seconds) is int
        assert seconds > 60

    def test_the_grant_type_may_stand_in_a_form(self, api: Api) -> None:
        form = {"grant_type": "client_credentials"}
        assert api.ask_for_token(params={}, data=form).status_code == 200

    def test_no_content_type_and_no_body_are_needed(self, api: Api) -> None:
        assert api.ask_for_token(headers={}).status_code == 200

    def test_an_older_token_lives_on_beside_a_newer_one(self, api: Api) -> None:
        tokens = [api.token() for _ in range(3)]
        for token in tokens:
            headers = {"Authorization": f"Bearer {token}"}
            answer = api.send("POST", "/describeServers", json={}, headers=headers)
            assert answer.status_code == 200

    @pytest.mark.own_broker
    def test_a_token_is_not_to_be_kept_by_anybody_between(self, api: Api) -> None:
        assert api.ask_for_token().headers["cache-control"] == "no-store"

    def test_a_wrong_password_is_refused(self, api: Api) -> None:
        answer = api.ask_for_token(auth=(api.target.client_id, "wrong"))
        assert answer.status_code in {400, 401}
        assert answer.json()["error"] == "unauthorized_client"

    def test_an_unknown_client_is_refused_in_the_same_words(self, api: Api) -> None:
        known = api.ask_for_token(auth=(api.target.client_id, "wrong"))
        unknown = api.ask_for_token(auth=(UNKNOWN_ID, api.target.client_password))
        assert (unknown.status_code, unknown.text) == (known.status_code, known.text)

    def test_a_request_without_credentials_is_refused(self, api: Api) -> None:
        assert api.http.post("/oauth2/token?grant_type=client_credentials").status_code >= 400

    @pytest.mark.parametrize("grant", ["password", "authorization_code", "refresh_token", "x"])
    def test_another_grant_is_refused(self, api: Api, grant: str) -> None:
        assert api.ask_for_token(params={"grant_type": grant}).status_code == 400

    def test_no_grant_at_all_is_refused(self, api: Api) -> None:
        assert api.ask_for_token(params={}).status_code == 400

    def test_credentials_that_are_no_base64_are_refused(self, api: Api) -> None:
        headers = {"Authorization": "Basic !!!"}
        assert api.ask_for_token(auth=None, headers=headers).status_code in {400, 401}


class TestStep3MakeAnApiRequest:
    def test_the_first_request_of_the_guide(self, api: Api) -> None:
        body = {
            "SessionIds": ["SessionId1895", "SessionId1897"],
            "Filters": [
                {"Key": "tag:ram", "Value": "4gb"},
                {"Key": "owner", "Value": "an owner 1890"},
            ],
        }
        assert api.call("describeSessions", body)["Sessions"] == []

    @pytest.mark.parametrize(("method", "path"), OPERATIONS)
    def test_without_a_header_nothing_is_answered(self, api: Api, method: str, path: str) -> None:
        answer = api.send(method, path, headers={})
        assert answer.status_code == 401
        assert answer.json() == WITHOUT_HEADER

    @pytest.mark.parametrize(("method", "path"), OPERATIONS)
    def test_a_token_that_is_none_opens_nothing(self, api: Api, method: str, path: str) -> None:
        answer = api.send(
            method, path, headers={"Authorization": "Bearer eyJhbGciOiJub25lIn0.e30."}
        )
        assert answer.status_code == 401
        assert api.reason(answer) != WITHOUT_HEADER["error"]

    def test_an_altered_token_opens_nothing(self, api: Api) -> None:
        head, payload, seal = api.token().split(".")
        claims = jwt.decode(f"{head}.{payload}.{seal}", options={"verify_signature": False})
        claims["exp"] += 10_000
        altered = jwt.encode(claims, "x" * 32, "HS256").split(".")[1]
        for token in (
            f"{head}.{altered}.{seal}",
            f"{head}.{payload}.{seal[::-1]}",
            f"{head}.{payload}.",
        ):
            headers = {"Authorization": f"Bearer {token}"}
            assert api.send("POST", "/describeServers", headers=headers).status_code == 401

    def test_a_connection_token_is_no_access_token(self, api: Api, session: str) -> None:
        token = api.connection_data(session, "somebody")["ConnectionToken"]
        headers = {"Authorization": f"Bearer {token}"}
        assert api.send("POST", "/describeServers", headers=headers).status_code == 401

    @pytest.mark.parametrize("scheme", ["Basic", "Token"])
    def test_another_scheme_opens_nothing(self, api: Api, scheme: str) -> None:
        headers = {"Authorization": f"{scheme} {api.token()}"}
        assert api.send("POST", "/describeServers", headers=headers).status_code == 401

    def test_the_scheme_is_known_in_any_letter_case(self, api: Api) -> None:
        headers = {"Authorization": f"bearer {api.token()}"}
        assert api.send("POST", "/describeServers", json={}, headers=headers).status_code == 200


class TestHealth:
    def test_anybody_may_ask_whether_the_broker_is_well(self, api: Api) -> None:
        assert api.send("GET", "/health", headers={}).status_code == 200
