"""A fleet whose tokens come from an OpenID provider, and from nobody else.

Two providers, one for each kind of key; a broker that issues no tokens; an agent. What an
administrator does is done with the commands, what a user does with `dcvsm` and an OAuth library.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from authlib.integrations.requests_client import OAuth2Session

from support.openid_provider import (
    AUDIENCE,
    DISCOVERY,
    Provider,
    Registered,
    openid_provider,
)
from support.programs import Site, trust
from support.waiting import until

SCOPE = "fleet/use"
ALGORITHMS = "RS256", "ES256"
NEW_KEY_SECONDS = 60
"""A broker asks for keys that it doesn't know once in 30 s."""


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class House:
    site: Site
    providers: dict[str, Provider]
    ca_bundle: Path
    """Vouches for the broker, and for the providers."""

    @property
    def url(self) -> str:
        return self.site.url()

    def discovered(self, algorithm: str) -> Any:
        with httpx.Client(verify=trust(self.ca_bundle), trust_env=False, timeout=30) as http:
            answer = http.get(self.providers[algorithm].issuer + DISCOVERY)
        assert answer.status_code == 200
        return answer.json()

    def register(self, algorithm: str) -> str:
        told = self.discovered(algorithm)
        return self.site.command(
            *("register-auth-server", "--url", told["jwks_uri"], "--allow-private"),
            *("--issuer", told["issuer"], "--audience", AUDIENCE, "--scope", SCOPE),
        )

    def dcvsm(self, algorithm: str, client: Registered, *command: str) -> Ended:
        told = self.discovered(algorithm)
        mine = {key: text for key, text in os.environ.items() if not key.startswith("DCV_SM_")}
        named = {
            "DCV_SM_CLIENT_ID": client.id,
            "DCV_SM_CLIENT_PASSWORD": client.secret,
            "HOME": str(self.site.folder),
        }
        done = subprocess.run(
            [
                *(sys.executable, "-m", "deskfleet.cli.dcvsm", "--broker-url", self.url),
                *("--auth-server-url", told["token_endpoint"]),
                # The system vouches for the provider.
                *("--ca-bundle", str(self.site.ca_file), *command),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**mine, **named},
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def library(self, algorithm: str, client: Registered, **more: Any) -> OAuth2Session:
        """Return an HTTP client that has fetched its token."""
        made = OAuth2Session(client.id, client.secret, default_timeout=30, **more)
        # With it, the machine's settings would go before what is said here.
        made.trust_env = False
        made.verify = str(self.ca_bundle)
        made.fetch_token(
            self.discovered(algorithm)["token_endpoint"], grant_type="client_credentials"
        )
        return made


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder: Path = tmp_path_factory.mktemp("openid")
    config = folder / "broker.toml"
    config.write_text("enable_authorization_server = false\n")
    with ExitStack() as stack:
        providers = {
            each: stack.enter_context(openid_provider(folder / "login", each))
            for each in ALGORITHMS
        }
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        # What the system trusts, for the broker: the authority of the providers alone.
        patch.setenv("SSL_CERT_FILE", str(folder / "login" / "ca.pem"))
        site = stack.enter_context(Site(folder))
        site.start_broker("broker", "--config", str(config))
        site.start_agent("agent", "--driver", "simulated")
        bundle = folder / "bundle.pem"
        bundle.write_text(site.ca_file.read_text() + (folder / "login" / "ca.pem").read_text())
        made = House(site, providers, bundle)
        for each in ALGORITHMS:
            assert made.register(each) == "Jwk url registered.\n"
        yield made


@pytest.fixture(params=ALGORITHMS)
def algorithm(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(house: House, algorithm: str) -> Registered:
    return house.providers[algorithm].client("portal", SCOPE, "profile")


def test_a_session_from_its_making_to_its_end(
    house: House, algorithm: str, client: Registered
) -> None:
    def run(*command: str) -> Any:
        ended = house.dcvsm(algorithm, client, *command)
        assert ended.code == 0, ended.err
        return json.loads(ended.out)

    def state(id: str) -> str:
        (seen,) = run("describe-sessions", "--session-ids", id)["sessions"]
        return str(seen["state"])

    until(lambda: run("describe-servers")["servers"], seconds=20)
    made = run("create-session", *("--name", "cad", "--owner", "ada", "--type", "virtual"))
    id = made["successful_list"][0]["id"]
    until(lambda: state(id) == "READY", seconds=20)
    told = run("get-session-connection-data", "--session-id", id, "--user", "ada")
    assert told["connection_token"]
    run("delete-session", "--session-id", id, "--owner", "ada")
    until(lambda: state(id) == "DELETED", seconds=20)


def test_a_token_is_the_librarys_and_not_ours(
    house: House, algorithm: str, client: Registered
) -> None:
    with house.library(algorithm, client) as portal:
        token = portal.token["access_token"]
        assert jwt.get_unverified_header(token)["alg"] == algorithm
        assert jwt.get_unverified_header(token)["typ"] == "at+jwt"
        answer = portal.post(f"{house.url}/describeServers", json={})
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["Servers"]) == 1


def test_fewer_scopes_are_asked_for_or_given(
    house: House, algorithm: str, client: Registered
) -> None:
    with house.library(algorithm, client, scope="profile") as portal:
        answer = portal.post(f"{house.url}/describeServers", json={})
    assert answer.status_code == 403
    assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]
    stranger = house.providers[algorithm].client("stranger", "profile")
    ended = house.dcvsm(algorithm, stranger, "describe-servers")
    assert ended.code == 254
    assert "The token has not the scope that is wanted here." in ended.err


def test_who_the_provider_does_not_know_gets_no_token(
    house: House, algorithm: str, client: Registered
) -> None:
    wrong = Registered(client.id, "wrong", client.scopes)
    ended = house.dcvsm(algorithm, wrong, "describe-servers")
    assert (ended.code, ended.out) == (253, "")
    assert "invalid_client" in ended.err


def test_without_a_registration_its_tokens_open_nothing(
    house: House, algorithm: str, client: Registered
) -> None:
    keys = house.discovered(algorithm)["jwks_uri"]
    with house.library(algorithm, client) as portal:
        said = house.site.command("unregister-auth-server", "--url", keys)
        assert said == f"Jwk url{keys} unregistered\n"
        try:
            until(
                lambda: portal.post(f"{house.url}/describeServers", json={}).status_code == 401,
                seconds=20,
            )
            assert house.dcvsm(algorithm, client, "describe-servers").code == 253
        finally:
            house.register(algorithm)
        until(
            lambda: portal.post(f"{house.url}/describeServers", json={}).status_code == 200,
            seconds=20,
        )


def test_keys_that_the_provider_renews_are_found_without_a_command(house: House) -> None:
    provider = house.providers["ES256"]
    client = provider.client("renewing", SCOPE)
    with house.library("ES256", client) as before, house.library("ES256", client) as after:
        assert before.post(f"{house.url}/describeServers", json={}).status_code == 200
        provider.keys.renew()
        after.fetch_token(
            house.discovered("ES256")["token_endpoint"], grant_type="client_credentials"
        )
        until(
            lambda: after.post(f"{house.url}/describeServers", json={}).status_code == 200,
            seconds=NEW_KEY_SECONDS,
        )
        assert before.post(f"{house.url}/describeServers", json={}).status_code == 200
