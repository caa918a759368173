"""Which tokens of external authorization servers open the API, and what of them is asked when."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Coroutine
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization

from deskfleet.broker.service.external_tokens import REMEMBERED_TOKENS, ExternalTokens
from deskfleet.broker.service.key_sets import FRESH_SECONDS, RETRY_SECONDS, KeySets
from deskfleet.core.change import Stored, Tombstone
from deskfleet.core.fleet import Fleet
from deskfleet.core.records import AuthServer
from deskfleet.errors import Forbidden, InsufficientScope, InvalidToken, Unavailable
from support.auth_server import jwk, key_set, private_key, signed
from support.builders import NOON, FakeClock

URL = "https://login.example/jwks.json"
OTHER = "https://other.example/jwks.json"
NOW = int(NOON.timestamp())
RSA, RSA2 = private_key("RSA-2048"), private_key("RSA-2048", 2)
EC = private_key("P-256")


class World:
    """External tokens over a fleet that tests write into, and key sets that they serve."""

    def __init__(self, *servers: AuthServer) -> None:
        self.clock = FakeClock()
        self.fleet = Fleet()
        self.sets: dict[str, bytes | Exception] = {URL: key_set(jwk(RSA, "one"))}
        self.asked: list[str] = []
        self.was_asked = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.key_sets = KeySets(self.clock, self._fetch)
        self.tokens = ExternalTokens(self.fleet, self.clock, self.key_sets)
        for server in servers or (a_server(),):
            self.write(server)

    def write(self, server: AuthServer) -> None:
        self.fleet.revision += 1
        self.fleet.apply(Stored(self.fleet.revision, server))

    def drop(self, url: str) -> None:
        self.fleet.revision += 1
        self.fleet.apply(Tombstone(self.fleet.revision, "auth-server", url))

    async def _fetch(self, server: AuthServer) -> bytes:
        self.asked.append(server.id)
        self.was_asked.set()
        await self.gate.wait()
        body = self.sets[server.id]
        if isinstance(body, Exception):
            raise body
        return body

    async def caller(self, token: str) -> str | None:
        """Ask as a door does: what is remembered, then with the keys that are needed."""
        known = self.tokens.remembered(token)
        if known is not None:
            return known
        await self.tokens.learn(token)
        return self.tokens.caller(token)

    async def is_refused(self, token: str) -> bool:
        try:
            return await self.caller(token) is None
        except InvalidToken:
            return True


def a_server(url: str = URL, **fields: Any) -> AuthServer:
    return AuthServer(id=url, registered_at=NOON, **fields)


def token(**claims: Any) -> str:
    return signed(RSA, "RS256", "one", a_claim(**claims))


def a_claim(**claims: Any) -> dict[str, Any]:
    merged = {"iss": "login", "client_id": "portal", "iat": NOW, "exp": NOW + 3600, **claims}
    return {name: value for name, value in merged.items() if value is not None}


def run(scenario: Callable[[World], Coroutine[Any, Any, None]], *servers: AuthServer) -> None:
    async def whole() -> None:
        world = World(*servers)
        try:
            async with asyncio.timeout(20):
                await scenario(world)
        finally:
            await world.tokens.aclose()

    asyncio.run(whole())


def refused(text: str, *servers: AuthServer) -> None:
    async def scenario(world: World) -> None:
        assert await world.is_refused(text)

    run(scenario, *servers)


def admitted(text: str, caller: str = "portal", *servers: AuthServer) -> None:
    async def scenario(world: World) -> None:
        assert await world.caller(text) == caller
        assert world.tokens.remembered(text) == caller

    run(scenario, *servers)


class TestSignatures:
    def test_a_good_token(self) -> None:
        admitted(token())

    def test_every_algorithm_by_its_own_key(self) -> None:
        async def scenario(world: World) -> None:
            kinds = {"P-256": "ES256", "P-384": "ES384", "Ed25519": "EdDSA"}
            world.sets[URL] = key_set(*(jwk(private_key(kind), kind) for kind in kinds))
            for kind, algorithm in kinds.items():
                made = signed(private_key(kind), algorithm, kind, a_claim())
                assert await world.caller(made) == "portal"

        run(scenario)

    def test_a_public_key_is_no_shared_secret(self) -> None:
        pem = RSA.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        for secret in (pem, pem.strip(), jwk(RSA, "one")["n"].encode()):
            refused(forged({"alg": "HS256", "kid": "one"}, secret=secret))

    @pytest.mark.parametrize("algorithm", ["none", "None", "", "HS256", "RS512", "ES256", None, 5])
    def test_the_token_does_not_choose_the_algorithm(self, algorithm: Any) -> None:
        refused(forged({"alg": algorithm, "kid": "one"}))

    def test_another_algorithm_of_the_right_key(self) -> None:
        refused(signed(RSA, "RS384", "one", a_claim()))
        refused(signed(RSA, "PS256", "one", a_claim()))
        refused(signed(RSA, "RS256", "one", a_claim()), a_server(algorithm="PS256"))
        admitted(signed(RSA, "PS256", "one", a_claim()), "portal", a_server(algorithm="PS256"))

    def test_another_key_under_a_known_name(self) -> None:
        refused(signed(RSA2, "RS256", "one", a_claim()))

    def test_a_name_that_is_not_there(self) -> None:
        refused(signed(RSA, "RS256", "two", a_claim()))

    @pytest.mark.parametrize(
        "head",
        [
            {"jwk": {"kty": "RSA"}},
            {"jku": "https://evil.example/jwks.json"},
            {"x5u": "https://evil.example/"},
            {"x5c": ["AAAA"]},
            {"crit": ["exp"]},
            {"padding": "x" * 3000},
        ],
    )
    def test_headers_that_give_orders(self, head: dict[str, Any]) -> None:
        refused(signed(RSA, "RS256", "one", a_claim(), **head))

    def test_a_changed_claim(self) -> None:
        head, _, signature = token().split(".")
        refused(".".join([head, packed(a_claim(client_id="root")), signature]))

    @pytest.mark.parametrize("text", ["", "x", "..", "a.b.c", "é.é.é", "A" * 9000, "e30.e30."])
    def test_what_is_no_token(self, text: str) -> None:
        refused(text)

    def test_a_name_must_be_text(self) -> None:
        kids: tuple[Any, ...] = (5, ["one"], {}, True)
        for kid in kids:
            refused(forged({"alg": "RS256", "kid": kid}))


def packed(fields: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(fields).encode()).rstrip(b"=").decode()


def forged(head: dict[str, Any], secret: bytes = b"") -> str:
    body = f"{packed(head)}.{packed(a_claim())}"
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    return f"{body}.{base64.urlsafe_b64encode(signature.sign(body.encode(), secret)).decode()}"


class TestClaims:
    @pytest.mark.parametrize(
        "claims",
        [
            {"exp": NOW - 61},
            {"exp": None},
            {"exp": "tomorrow"},
            {"exp": True},
            {"iat": NOW + 3600},
            {"nbf": NOW + 120},
            {"nbf": "now"},
            {"nbf": True},
            {"token_use": "id"},
            {"client_id": None},
            {"client_id": 5},
            {"client_id": ""},
        ],
    )
    def test_what_no_token_may_say(self, claims: dict[str, Any]) -> None:
        refused(token(**claims))

    @pytest.mark.parametrize(
        ("claims", "caller"),
        [
            ({"exp": NOW - 30}, "portal"),
            ({"exp": NOW + 0.5, "iat": None}, "portal"),
            ({"token_use": "access", "nbf": NOW + 30}, "portal"),
            ({"client_id": None, "azp": "app", "sub": "x"}, "app"),
            ({"client_id": None, "sub": "somebody"}, "somebody"),
            ({"client_id": "x" * 5000}, "x" * 256),
            ({"aud": "anything", "jti": 5, "scope": 7}, "portal"),
        ],
    )
    def test_what_it_may(self, claims: dict[str, Any], caller: str) -> None:
        admitted(token(**claims), caller)

    def test_an_issuer_is_pinned(self) -> None:
        admitted(token(iss="login"), "portal", a_server(issuer="login"))
        for issuer in ("login/", "LOGIN", "", None, ["login"]):
            refused(token(iss=issuer), a_server(issuer="login"))

    @pytest.mark.parametrize(
        ("audience", "fits"),
        [
            ("api", True),
            (["x", "api"], True),
            ("api2", False),
            ("x api", False),
            ([], False),
            (None, False),
            (5, False),
            ({"api": 1}, False),
        ],
    )
    def test_an_audience_is_wanted(self, audience: Any, fits: bool) -> None:
        if fits:
            admitted(token(aud=audience), "portal", a_server(audience="api"))
        else:
            refused(token(aud=audience), a_server(audience="api"))

    @pytest.mark.parametrize(
        ("claims", "fits"),
        [
            ({"scope": "sm/read sm/write"}, True),
            ({"scope": "x sm/write y sm/read"}, True),
            ({"scp": "sm/read sm/write"}, True),
            ({"scp": ["sm/read", "sm/write"]}, True),
            ({"scope": "sm/read"}, False),
            ({"scope": "sm/read sm/writer"}, False),
            ({"scope": ""}, False),
            ({}, False),
            ({"scope": {"sm/read": 1, "sm/write": 1}}, False),
        ],
    )
    def test_a_scope_is_wanted(self, claims: dict[str, Any], fits: bool) -> None:
        server = a_server(scope="sm/read sm/write")
        if fits:
            admitted(token(**claims), "portal", server)
            return

        async def scenario(world: World) -> None:
            with pytest.raises(InsufficientScope) as caught:
                await world.caller(token(**claims))
            assert caught.value.scope == "sm/read sm/write"

        run(scenario, server)


class TestSeveralServers:
    def test_no_key_speaks_for_another_servers_issuer(self) -> None:
        async def scenario(world: World) -> None:
            world.sets[OTHER] = key_set(jwk(RSA2, "two"), jwk(RSA2, "one"))
            for kid in ("one", "two"):
                for issuer in ("login", "nobody", None):
                    made = signed(RSA2, "RS256", kid, a_claim(iss=issuer))
                    assert await world.is_refused(made)
            assert await world.caller(signed(RSA2, "RS256", "two", a_claim(iss="other")))

        run(scenario, a_server(issuer="login"), a_server(OTHER, issuer="other"))

    def test_a_server_without_an_issuer_does_not_speak_for_one_that_has(self) -> None:
        async def scenario(world: World) -> None:
            world.sets[OTHER] = key_set(jwk(RSA2, "two"))
            assert await world.caller(signed(RSA2, "RS256", "two", a_claim(iss="x"))) == "portal"
            assert await world.caller(signed(RSA2, "RS256", "two", a_claim(iss="login"))) is None

        run(scenario, a_server(issuer="login"), a_server(OTHER))

    def test_two_servers_with_a_key_of_the_same_name(self) -> None:
        async def scenario(world: World) -> None:
            world.sets[OTHER] = key_set(jwk(EC, "one"))
            assert await world.caller(signed(EC, "ES256", "one", a_claim())) == "portal"
            assert await world.caller(token()) == "portal"

        run(scenario, a_server(), a_server(OTHER))


class TestRemembering:
    def test_keys_are_read_once(self) -> None:
        async def scenario(world: World) -> None:
            for number in range(5):
                assert await world.caller(token(jti=str(number))) == "portal"
            assert world.asked == [URL]

        run(scenario)

    def test_a_remembered_token_expires(self) -> None:
        async def scenario(world: World) -> None:
            made = token(exp=NOW + 100)
            await world.caller(made)
            world.clock.advance(159)
            assert world.tokens.remembered(made) == "portal"
            world.clock.advance(2)
            assert world.tokens.remembered(made) is None
            with pytest.raises(InvalidToken, match="expired"):
                await world.caller(made)

        run(scenario)

    def test_a_server_that_is_not_registered_any_more(self) -> None:
        async def scenario(world: World) -> None:
            made = token()
            await world.caller(made)
            world.drop(URL)
            assert world.tokens.remembered(made) is None
            assert await world.caller(made) is None
            assert not world.tokens.expected

        run(scenario)

    def test_a_registration_that_asks_for_more(self) -> None:
        async def scenario(world: World) -> None:
            made = token(aud="api")
            await world.caller(made)
            world.write(a_server(audience="api"))
            assert await world.caller(made) == "portal"
            world.write(a_server(audience="other"))
            with pytest.raises(InvalidToken, match="audience"):
                await world.caller(made)

        run(scenario)

    def test_a_key_that_was_withdrawn(self) -> None:
        async def scenario(world: World) -> None:
            made = token(exp=NOW + 90_000)
            await world.caller(made)
            world.clock.advance(FRESH_SECONDS - 1)
            assert world.tokens.remembered(made) == "portal"
            world.sets[URL] = key_set(jwk(RSA2, "two"))
            world.clock.advance(2)
            assert world.tokens.remembered(made) is None
            assert await world.caller(made) is None

        run(scenario)

    def test_the_same_keys_again_leave_it_remembered(self) -> None:
        async def scenario(world: World) -> None:
            made = token(exp=NOW + 90_000)
            await world.caller(made)
            world.clock.advance(FRESH_SECONDS + 1)
            await world.tokens.learn(made)
            assert world.asked == [URL, URL]
            assert world.tokens.remembered(made) == "portal"

        run(scenario)

    def test_memory_is_bounded(self) -> None:
        async def scenario(world: World) -> None:
            first = token()
            await world.caller(first)
            known = world.tokens._verified[first]
            for number in range(REMEMBERED_TOKENS):
                world.tokens._verified[str(number)] = known
            await world.caller(token(jti="last"))
            assert len(world.tokens._verified) <= REMEMBERED_TOKENS + 1
            assert world.tokens.remembered(first) is None

        run(scenario)


class TestReadingKeys:
    def test_a_new_key_is_found_when_a_token_names_it(self) -> None:
        async def scenario(world: World) -> None:
            await world.caller(token())
            world.sets[URL] = key_set(jwk(RSA, "one"), jwk(RSA2, "two"))
            world.clock.advance(RETRY_SECONDS)
            assert await world.caller(signed(RSA2, "RS256", "two", a_claim())) == "portal"
            assert await world.caller(token()) == "portal"
            assert len(world.asked) == 2

        run(scenario)

    def test_a_flood_of_names_asks_once_in_thirty_seconds(self) -> None:
        async def scenario(world: World) -> None:
            await world.caller(token())
            for number in range(300):
                world.clock.advance(0.2)
                made = signed(EC, "ES256", f"made-up-{number}", a_claim())
                assert await world.caller(made) is None
                assert await world.caller(token()) == "portal"
            assert len(world.asked) <= 1 + 60 / RETRY_SECONDS

        run(scenario)

    def test_all_who_wait_wait_for_one_reading(self) -> None:
        async def scenario(world: World) -> None:
            world.gate.clear()
            waiting = [
                asyncio.create_task(world.caller(token(jti=str(number)))) for number in range(50)
            ]
            await world.was_asked.wait()
            world.gate.set()
            assert await asyncio.gather(*waiting) == ["portal"] * 50
            assert world.asked == [URL]

        run(scenario)

    def test_who_gives_up_does_not_take_the_reading_along(self) -> None:
        async def scenario(world: World) -> None:
            world.gate.clear()
            one = asyncio.create_task(world.caller(token()))
            two = asyncio.create_task(world.caller(token()))
            await world.was_asked.wait()
            one.cancel()
            await asyncio.gather(one, return_exceptions=True)
            world.gate.set()
            assert await two == "portal"

        run(scenario)

    def test_the_last_good_set_serves_while_the_server_is_away(self) -> None:
        async def scenario(world: World) -> None:
            await world.caller(token())
            for trouble in (Unavailable("gone"), Forbidden("moved"), b"<html>", b'{"keys": 1}'):
                world.sets[URL] = trouble
                world.clock.advance(FRESH_SECONDS)
                assert await world.caller(token(exp=NOW + 90_000, jti=repr(trouble))) == "portal"
            assert len(world.asked) == 5

        run(scenario)

    def test_nobody_waits_for_a_server_that_was_away_before(self) -> None:
        async def scenario(world: World) -> None:
            long = token(exp=NOW + 90_000)
            await world.caller(long)
            world.sets[URL] = Unavailable("gone")
            world.clock.advance(FRESH_SECONDS)
            assert await world.caller(long) == "portal"
            world.clock.advance(RETRY_SECONDS)
            world.gate.clear()  # now it hangs
            assert await world.caller(long) == "portal"
            assert len(world.asked) == 3

        run(scenario)

    def test_a_server_that_was_never_reached_says_try_again(self) -> None:
        async def scenario(world: World) -> None:
            world.sets[URL] = Unavailable("gone")
            for _ in range(3):
                with pytest.raises(Unavailable, match="can't be reached"):
                    await world.caller(token())
            assert world.asked == [URL]
            world.sets[URL] = key_set(jwk(RSA, "one"))
            world.clock.advance(RETRY_SECONDS)
            assert await world.caller(token()) == "portal"

        run(scenario)

    def test_one_that_is_away_does_not_stop_another(self) -> None:
        async def scenario(world: World) -> None:
            world.sets[OTHER] = Unavailable("gone")
            assert await world.caller(token()) == "portal"

        run(scenario, a_server(), a_server(OTHER))

    def test_an_empty_set_withdraws_all_keys(self) -> None:
        async def scenario(world: World) -> None:
            made = token(exp=NOW + 90_000)
            await world.caller(made)
            world.sets[URL] = key_set()
            world.clock.advance(FRESH_SECONDS)
            assert await world.caller(made) is None

        run(scenario)
