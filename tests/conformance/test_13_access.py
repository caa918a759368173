"""Access: who may use the API, and how often, with which tokens, or without any.

Several brokers of one fleet, each with settings of its own, and an authorization server beside it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from deskfleet.broker import main as broker_main
from deskfleet.broker.service.auth_servers import AuthServers
from deskfleet.core.records import AuthServer
from deskfleet.settings import BrokerSettings
from support import openapi
from support.auth_server import JwksServer, jwk, jwks_server, key_set, private_key, signed
from support.programs import Portal, Site, trust
from support.waiting import until

pytestmark = pytest.mark.own_broker

RSA, EC = private_key("RSA-2048"), private_key("P-256")
SCOPE = "dcv-session-manager/sm_scope"
NO_HEADER = {"error": "No authorization header"}

OPERATIONS: list[tuple[str, str, Any]] = [
    ("POST", "/describeSessions", {}),
    ("POST", "/createSessions", [{"Name": "x", "Owner": "ada", "Type": "VIRTUAL"}]),
    ("POST", "/deleteSessions", [{"SessionId": "x", "Owner": "ada"}]),
    ("POST", "/getSessionScreenshots", [{"SessionId": "x"}]),
    ("PUT", "/sessionPermissions", []),
    ("GET", "/sessionConnectionData/aSession/aOwner", None),
    ("POST", "/describeServers", {}),
    ("POST", "/openServers", [{"ServerId": "x"}]),
    ("POST", "/closeServers", [{"ServerId": "x"}]),
]


@dataclass
class World:
    site: Site
    jwks: JwksServer
    clients: dict[str, tuple[str, str]] = field(default_factory=dict)
    description: Any = field(default_factory=openapi.description)

    def _hold_to_its_word(self, port: int | None, answer: httpx.Response) -> None:
        # Other doors are not described.
        if answer.request.url.port == port:
            answer.read()
            assert openapi.faults(self.description, answer) == []

    @contextmanager
    def door(self, broker: str = "broker", token: str | None = None) -> Iterator[httpx.Client]:
        url = self.site.url(broker)
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        with httpx.Client(
            base_url=url,
            verify=trust(self.site.ca_file),
            headers=headers,
            timeout=30,
            trust_env=False,
            event_hooks={"response": [partial(self._hold_to_its_word, httpx.URL(url).port)]},
        ) as client:
            yield client

    def status(self, token: str, broker: str = "broker") -> int:
        with self.door(broker, token) as door:
            return door.post("/describeSessions", json={}).status_code

    @contextmanager
    def broker(self, name: str, **settings: object) -> Iterator[None]:
        """Run one more broker of the fleet, with settings of its own."""
        config = self.site.folder / f"{name}.toml"
        lines = [f"{key} = {json.dumps(value)}\n" for key, value in settings.items()]
        config.write_text("".join(lines))
        self.site.start_broker(name, "--config", str(config))
        try:
            yield
        finally:
            self.site.stop(name)

    @contextmanager
    def registered(self, **wanted: Any) -> Iterator[None]:
        """Let the external server's tokens open the API; without the command line: it is slow."""
        server = AuthServer(
            id=self.jwks.url, registered_at=datetime.now(UTC), allow_private=True, **wanted
        )
        self._with_servers(lambda servers: servers.register(server))
        try:
            yield
        finally:
            self._with_servers(lambda servers: servers.unregister(server.id))

    def _with_servers(self, use: Callable[[AuthServers], Awaitable[object]]) -> None:
        async def whole() -> None:
            settings = BrokerSettings(state=self.site.broker_state)
            async with broker_main.auth_servers_only(settings) as servers:
                await use(servers)

        asyncio.run(whole())
        self.catch_up()

    def catch_up(self) -> None:
        """Let all brokers see what the store holds: they look at it before they say how they are.

        Who may call is decided by what a broker knew half a second ago, at worst.
        """
        for name in self.site._programs:
            with self.door(name) as door:
                assert door.get("/health").status_code == 200

    def renew_keys(self) -> None:
        async def whole() -> None:
            settings = BrokerSettings(state=self.site.broker_state)
            async with broker_main.access_only(settings) as access:
                await access.renew_signing_key()

        asyncio.run(whole())

    def client(self, name: str) -> tuple[str, str]:
        if name not in self.clients:
            said = self.site.command("register-api-client", "--client-name", name)
            id, password = [line.partition(": ")[2] for line in said.splitlines()]
            self.clients[name] = id, password
        return self.clients[name]

    def own_token(self, name: str = "one") -> str:
        credentials = self.client(name)
        with self.door() as door:
            answer = door.post("/oauth2/token?grant_type=client_credentials", auth=credentials)
        assert answer.status_code == 200
        return str(answer.json()["access_token"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder: Path = tmp_path_factory.mktemp("access")
    with (
        jwks_server(folder / "authority") as (jwks, ca_file),
        pytest.MonkeyPatch.context() as patch,
        Site(folder) as site,
    ):
        # What the system trusts, for the brokers: the authority of the key server alone.
        patch.setenv("SSL_CERT_FILE", str(ca_file))
        jwks.body = key_set(jwk(RSA, "rsa"), jwk(EC, "ec"))
        site.start_broker()
        # The port is taken first of all; the authority is made after that.
        until(site.ca_file.exists)
        yield World(site, jwks)


def until_alone(portal: Portal) -> None:
    """Wait until no agent of another test is given time any more to come back."""
    until(lambda: not portal.available(), seconds=30)


def external(key: Any = RSA, algorithm: str = "RS256", kid: str = "rsa", **claims: Any) -> str:
    now = int(time.time())
    merged = {
        "iss": "login",
        "aud": "api",
        "scope": f"x {SCOPE}",
        "client_id": "portal",
        "iat": now,
        "exp": now + 600,
        **claims,
    }
    return signed(key, algorithm, kid, merged)


class TestExternalServers:
    def test_their_tokens_open_the_api_while_they_are_registered(self, world: World) -> None:
        command, url = world.site.command, ("--url", world.jwks.url)
        tokens = [external(), external(EC, "ES256", "ec")]
        assert [world.status(token) for token in tokens] == [401, 401]
        wanted = ("--issuer", "login", "--audience", "api", "--scope", SCOPE)
        said = command("register-auth-server", *url, "--allow-private", *wanted)
        assert said == "Jwk url registered.\n"
        assert command("list-auth-servers") == f'Urls: [ "{world.jwks.url}" ]\n'
        assert [world.status(token) for token in tokens * 2] == [200] * 4
        assert world.status(world.own_token()) == 200
        [told] = json.loads(command("list-auth-servers", "--output", "json"))
        assert (told["url"], told["audience"]) == (world.jwks.url, "api")
        said = command("unregister-auth-server", *url)
        assert said == f"Jwk url{world.jwks.url} unregistered\n"
        world.catch_up()
        assert [world.status(token) for token in tokens] == [401, 401]
        assert command("list-auth-servers") == "Urls: [ ]\n"

    @pytest.mark.parametrize(
        ("wrong", "reason"),
        [
            ({"aud": "other"}, "the token is for another audience"),
            ({"iss": "other"}, "no authorization server that is known here has made the token"),
            ({"exp": -61}, "the token has expired"),
            ({"nbf": 120}, "the token is not valid yet"),
            ({"token_use": "id"}, "the token is no access token"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
    )
    def test_a_claim_that_is_not_as_registered(
        self, world: World, wrong: dict[str, Any], reason: str
    ) -> None:
        now = int(time.time())
        claims: dict[str, Any] = {
            name: now + value if isinstance(value, int) else value for name, value in wrong.items()
        }
        wanted = {"issuer": "login", "audience": "api", "scope": SCOPE}
        with world.registered(**wanted), world.door("broker", external(**claims)) as door:
            answer = door.post("/describeSessions", json={})
            assert world.status(external()) == 200
        assert (answer.status_code, answer.json()) == (401, {"error": reason})
        assert answer.headers["www-authenticate"] == (
            f'Bearer error="invalid_token", error_description="{reason}"'
        )

    @pytest.mark.parametrize(
        "wrong",
        [
            (EC, "ES256", "rsa"),
            (private_key("RSA-2048", 2), "RS256", "rsa"),
            (RSA, "RS256", "other"),
        ],
        ids=["key of another kind", "another key", "unknown key"],
    )
    def test_a_key_that_is_not_the_servers(self, world: World, wrong: Any) -> None:
        with world.registered():
            assert world.status(external(*wrong)) == 401
            assert world.status(external()) == 200

    def test_a_scope_that_is_lacking_is_told(self, world: World) -> None:
        with world.registered(scope=SCOPE), world.door("broker", external(scope="x")) as door:
            answer = door.post("/describeSessions", json={})
        assert answer.status_code == 403
        assert answer.json() == {"error": "The token has not the scope that is wanted here."}
        assert answer.headers["www-authenticate"] == (
            'Bearer error="insufficient_scope",'
            f' error_description="{answer.json()["error"]}", scope="{SCOPE}"'
        )

    def test_a_pinned_algorithm_shuts_the_others_out(self, world: World) -> None:
        with world.registered(algorithm="ES256"):
            assert world.status(external(EC, "ES256", "ec")) == 200
            assert world.status(external()) == 401

    def test_a_key_server_that_was_never_there_says_try_again(self, world: World) -> None:
        world.jwks.status = 500
        try:
            with world.registered(), world.door("broker", external()) as door:
                answer = door.post("/describeSessions", json={})
                # The fleet's own tokens don't depend on it, and are refused for what they are.
                assert world.status(external(iss="deskfleet", kid="first")) == 401
                assert world.status(world.own_token()) == 200
        finally:
            world.jwks.status = 200
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0

    def test_a_broker_that_is_no_authorization_server(self, world: World) -> None:
        own, credentials = world.own_token(), world.client("one")
        with world.broker("strict", enable_authorization_server=False), world.registered():
            with world.door("strict") as door:
                answer = door.post("/oauth2/token?grant_type=client_credentials", auth=credentials)
                assert answer.status_code == 400
                assert answer.json()["error"] == "unsupported_grant_type"
                assert "issues no tokens" in answer.json()["error_description"]
                assert door.post("/describeSessions", json={}).json() == NO_HEADER
            assert world.status(own, "strict") == 401
            assert world.status(external(), "strict") == 200
            assert world.status(own) == 200


class TestWithoutAuthorization:
    def test_all_nine_operations_need_no_header(self, world: World) -> None:
        with world.broker("open", enable_authorization=False), world.door("open") as door:
            for method, path, body in OPERATIONS:
                answer = door.request(method, path, json=body)
                expected = 404 if method == "GET" else 200
                assert answer.status_code == expected, (path, answer.text)
            stale = {"Authorization": "Bearer of nothing"}
            assert door.post("/describeSessions", json={}, headers=stale).status_code == 200
            # Other brokers and agents still say who they are.
            agents = world.site.agent_url("open")
            assert door.post(f"{agents}/broker/poke").status_code == 401
        assert "authorization.off" in world.site.log("open")

    def test_otherwise_each_needs_one(self, world: World) -> None:
        with world.door() as door:
            for method, path, body in OPERATIONS:
                answer = door.request(method, path, json=body)
                assert (answer.status_code, answer.json()) == (401, NO_HEADER)
                assert answer.headers["www-authenticate"] == "Bearer"


class TestAgentsWithoutAStatement:
    DRIVER = ("--driver", "simulated")

    def test_a_broker_may_enrol_whoever_comes(self, world: World) -> None:
        with world.broker("hall", enable_agent_authorization=False):
            portal = world.site.portal("hall")
            until_alone(portal)
            world.site.start_agent(
                "guest", *self.DRIVER, brokers=["hall"], enrolled_by_statement=False
            )
            try:
                until(portal.available)
                # It is a server with credentials like any other, and stays one.
                session_id = portal.ready("ada")
                portal.delete(session_id, "ada")
                portal.wait(session_id, "DELETED")
            finally:
                world.site.stop("guest")
        assert "agent-authorization.off" in world.site.log("hall")

    def test_otherwise_it_is_told_what_it_needs(self, world: World) -> None:
        program = world.site.start_agent("stranger", *self.DRIVER, enrolled_by_statement=False)
        try:
            assert program.process.wait(20) == 1
        finally:
            world.site.stop("stranger")
        assert "it needs software_statement_path" in world.site.log("stranger")

    def test_one_that_is_refused_is_told_in_a_sentence(self, world: World, tmp_path: Path) -> None:
        statement = tmp_path / "statement"
        statement.write_text("of another fleet")
        program = world.site.start_agent(
            "refused",
            *self.DRIVER,
            *("--software-statement-path", str(statement)),
            enrolled_by_statement=False,
        )
        try:
            assert program.process.wait(20) == 1
        finally:
            world.site.stop("refused")
        log = world.site.log("refused")
        assert "Traceback" not in log
        assert log.strip().splitlines()[-1] == (
            "deskfleet: the broker does not enrol this server: unapproved_software_statement;"
            f" it needs another {statement}, a file with what"
            " `deskfleet broker generate-software-statement` printed"
        )


class TestRefusedTokens:
    @pytest.mark.parametrize("text", ["=", "x", "a.b.c", "e30.e30.", "A" * 9000])
    def test_a_bad_token_is_told_in_both_forms(self, world: World, text: str) -> None:
        with world.door("broker", text) as door:
            answer = door.post("/describeSessions", json={})
        assert answer.status_code == 401
        reason = answer.json()["error"]
        assert answer.headers["www-authenticate"] == (
            f'Bearer error="invalid_token", error_description="{reason}"'
        )

    def test_another_scheme(self, world: World) -> None:
        with world.door() as door:
            answer = door.post("/describeSessions", json={}, auth=("a", "b"))
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"


class TestTheTokenEndpoint:
    def ask(self, world: World, query: str = "", **more: Any) -> httpx.Response:
        with world.door() as door:
            return door.post(f"/oauth2/token{query}", **more)

    def test_the_ways_to_ask(self, world: World) -> None:
        id, password = world.client("one")
        grant = {"grant_type": "client_credentials"}
        secret = {"client_id": id, "client_secret": password}
        for answer in (
            self.ask(world, "?grant_type=client_credentials", auth=(id, password)),
            self.ask(world, auth=(id, password), data=grant),
            self.ask(world, auth=(id, password), data={**grant, "scope": "anything"}),
            self.ask(world, "?grant_type=client_credentials", auth=(id, password), data=grant),
            self.ask(world, data={**grant, **secret}),
            self.ask(world, auth=(id, password), data={**grant, "client_id": id}),
        ):
            assert answer.status_code == 200, answer.text
            assert answer.headers["cache-control"] == "no-store"
            assert answer.json().keys() == {"access_token", "token_type", "expires_in"}
            assert world.status(answer.json()["access_token"]) == 200

    def test_the_ways_to_be_refused(self, world: World) -> None:
        id, password = world.client("one")
        grant = {"grant_type": "client_credentials"}
        twice = "?grant_type=client_credentials&grant_type=password"
        secret = f"?grant_type=client_credentials&client_id={id}&client_secret={password}"
        basic = base64.b64encode(b"no colon").decode()
        for answer, status, error in (
            (self.ask(world, auth=(id, password)), 400, "invalid_request"),
            (self.ask(world, twice, auth=(id, password)), 400, "invalid_request"),
            (
                self.ask(world, auth=(id, password), data={**grant, "client_secret": password}),
                *(400, "invalid_request"),
            ),
            (
                self.ask(world, auth=(id, password), data={**grant, "client_id": "another"}),
                *(400, "invalid_request"),
            ),
            (
                self.ask(world, "?grant_type=password", auth=(id, password)),
                *(400, "unsupported_grant_type"),
            ),
            (self.ask(world, "?grant_type=client_credentials"), 401, "invalid_client"),
            (self.ask(world, secret), 401, "invalid_client"),
            (
                self.ask(world, data=grant, headers={"Authorization": f"Basic {basic}"}),
                *(401, "invalid_client"),
            ),
            (self.ask(world, data=grant, auth=(id, "wrong")), 401, "unauthorized_client"),
        ):
            assert (answer.status_code, answer.json()["error"]) == (status, error)
            if status == 401:
                assert answer.headers["www-authenticate"].startswith("Basic ")
                assert answer.headers["cache-control"] == "no-store"
        assert self.ask(world, data=grant, auth=(id, "wrong")).json() == {
            "error": "unauthorized_client"
        }

    def test_who_guesses_has_to_wait(self, world: World) -> None:
        guessed, other = world.client("one"), world.client("two")
        query = "?grant_type=client_credentials"
        with world.broker("guarded"), world.door("guarded") as door:
            url = f"/oauth2/token{query}"
            statuses = [door.post(url, auth=(guessed[0], "x")).status_code for _ in range(7)]
            assert statuses == [401] * 5 + [429] * 2
            blocked = door.post(url, auth=guessed)
            assert blocked.status_code == 429
            assert 1 <= int(blocked.headers["retry-after"]) <= 12
            assert door.post(url, auth=other).status_code == 200

    def test_right_passwords_are_not_counted(self, world: World) -> None:
        credentials = world.client("two")
        with ThreadPoolExecutor(8) as pool, world.door() as door:
            url = "/oauth2/token?grant_type=client_credentials"
            answers = pool.map(lambda _: door.post(url, auth=credentials).status_code, range(60))
            assert set(answers) == {200}


class TestLimits:
    def test_a_caller_that_calls_too_often(self, world: World) -> None:
        one, two = world.own_token("one"), world.own_token("two")
        with (
            world.broker("limited", max_api_requests_per_second=5),
            world.door("limited", one) as door,
        ):
            started = time.monotonic()
            answers = [door.post("/describeSessions", json={}) for _ in range(40)]
            spent = time.monotonic() - started
            passed = [answer for answer in answers if answer.status_code == 200]
            stopped = [answer for answer in answers if answer.status_code == 429]
            assert len(passed) + len(stopped) == 40
            assert 5 <= len(passed) <= 5 + 5 * spent + 1
            assert stopped[0].json() == {"error": "Too many requests"}
            assert stopped[0].headers["retry-after"] == "1"
            assert world.status(two, "limited") == 200
            assert door.get("/health").status_code == 200
        log = world.site.log("limited").splitlines()
        throttled = [line for line in log if '"status": 429' in line]
        # One line tells of many: far fewer lines than refusals.
        assert 1 <= len(throttled) <= 1 + spent

    def test_none_is_none(self, world: World) -> None:
        with (
            world.broker("unlimited", max_api_requests_per_second=0),
            world.door("unlimited", world.own_token()) as door,
        ):
            assert {door.get("/describeSessions").status_code for _ in range(3)} == {405}
            answers = {door.post("/describeServers", json={}).status_code for _ in range(100)}
            assert answers == {200}


class TestKeyRenewal:
    def test_no_token_dies_of_it_under_load(self, world: World) -> None:
        """Clients get tokens from either broker and use all that they have at the other."""
        credentials = world.client("one")
        with world.broker("second"):
            stop, used = threading.Event(), list[str]()
            kinds = [("broker", "second"), ("second", "broker")] * 2
            with ThreadPoolExecutor(len(kinds)) as pool:
                users = [
                    pool.submit(self._use, world, credentials, giver, taker, stop, used)
                    for giver, taker in kinds
                ]
                try:
                    for _ in range(4):
                        world.renew_keys()
                        enough = len(used) + 60
                        until(lambda: len(used) >= enough or any(one.done() for one in users))  # noqa: B023
                finally:
                    stop.set()
                for user in users:
                    user.result()
        assert len({_key_of(token) for token in used}) >= 4

    def test_connection_tokens_live_on(self, world: World) -> None:
        with world.broker("second"):
            portal = Portal(world.site.url(), world.site.ca_file, *world.client("one"))
            until_alone(portal)
            world.site.start_agent("agent", "--driver", "simulated", brokers=("broker",))
            try:
                until(portal.available)
                session = portal.ready("root")
                link = portal.link(session, "bob")
                assert world.site.command("renew-auth-server-api-key") == "Keys renewed.\n"
                token = link.partition("authToken=")[2].partition("#")[0]
                form = {"sessionId": session, "authenticationToken": token}
                with world.door("second") as door:
                    agents = world.site.agent_url("second")
                    told = door.post(f"{agents}/agent/validate-authentication-token", data=form)
                assert told.text == '<auth result="yes"><username>bob</username></auth>'
            finally:
                portal.close()
                world.site.stop("agent")

    @staticmethod
    def _use(
        world: World,
        credentials: tuple[str, str],
        giver: str,
        taker: str,
        stop: threading.Event,
        used: list[str],
    ) -> None:
        tokens: list[str] = []
        with world.door(giver) as giving, world.door(taker) as taking:
            while not stop.is_set():
                answer = giving.post(
                    "/oauth2/token?grant_type=client_credentials", auth=credentials
                )
                assert answer.status_code == 200, answer.text
                tokens.append(answer.json()["access_token"])
                for token in (tokens[0], tokens[len(tokens) // 2], tokens[-1]):
                    headers = {"Authorization": f"Bearer {token}"}
                    answer = taking.post("/describeSessions", json={}, headers=headers)
                    assert answer.status_code == 200, answer.text
                    used.append(token)


def _key_of(token: str) -> str:
    head = token.partition(".")[0]
    return str(json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))["kid"])
