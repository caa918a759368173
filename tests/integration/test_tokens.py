"""Connection tokens at the door for desktop servers: from where, how often, and for how long.

Several brokers share one store; what one of them has answered binds all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from xml.etree import ElementTree as ET

import httpx
import pytest

from deskfleet.broker import main as broker_main
from deskfleet.broker.service.access import Audience
from deskfleet.broker.service.clients import Clients
from deskfleet.broker.service.signing_keys import MARGIN
from deskfleet.broker.stores.memory import MemoryStore
from deskfleet.broker.stores.sql import SqlStore
from deskfleet.core.change import ABSENT, Put
from deskfleet.core.records import ApiClient, Record, TokenUse
from deskfleet.errors import Missing, Unauthenticated
from deskfleet.settings import BrokerSettings
from deskfleet.system import SystemIds
from support.builders import (
    FakeClock,
    FastSigner,
    a_link,
    a_report,
    a_server,
    a_session,
    some_facts,
)
from support.house import TestHouse, a_house, signing_key, stored
from support.programs import Site, trust
from support.running_broker import RunningBroker, running_broker

PATH = "/agent/validate-authentication-token"
HERE, THERE = "10.0.0.9", "10.0.0.10"


def run(scenario: Coroutine[None, None, None]) -> None:
    asyncio.run(scenario)


@asynccontextmanager
async def houses(
    *open_store: Callable[[], MemoryStore | SqlStore], single_use: bool = False
) -> AsyncIterator[list[TestHouse]]:
    """Run brokers that know one session, `s1` on `n1`, with one clock."""
    clock = FakeClock()
    async with AsyncExitStack() as stack:
        brokers = [
            await stack.enter_async_context(
                a_house(make(), broker_id=f"b{number}", clock=clock, single_use=single_use)
            )
            for number, make in enumerate(open_store, start=1)
        ]
        session = a_session("s1", server="n1")
        records: list[Record] = [
            a_server(),
            some_facts(),
            a_link(broker_id="b1"),
            session,
            a_report(session),
        ]
        await brokers[0].write(signing_key(), *records)
        yield brokers


async def token_of(house: TestHouse) -> str:
    return (await house.sessions.connect("s1", "bob"))[1]


async def verdict(house: TestHouse, token: str, address: str = HERE) -> str:
    """Return the user that a broker lets in, or why it doesn't."""
    try:
        return await house.verifier.admit("s1", token, address)
    except (Missing, Unauthenticated) as error:
        return error.message


GONE = "the token does not open this session"
BOUND = "the token is bound to another address"
USED = "the token was used before"


class TestAddresses:
    def test_the_first_use_binds_a_token_for_its_life(self) -> None:
        async def scenario() -> None:
            async with houses(MemoryStore) as [house]:
                token, other = await token_of(house), await token_of(house)
                assert await verdict(house, token) == "bob"
                assert await verdict(house, token, THERE) == BOUND
                assert await verdict(house, token, "") == BOUND
                house.clock.advance(59 * 60)
                assert await verdict(house, token, f"[::ffff:{HERE}]:5000") == "bob"
                assert await verdict(house, other, THERE) == "bob"
                [use, _] = stored(house.store, TokenUse)
                assert isinstance(use, TokenUse)
                assert use.client_address == HERE
                assert token not in str(use)

        run(scenario())

    def test_an_address_that_is_not_said_binds_nothing(self) -> None:
        async def scenario() -> None:
            async with houses(MemoryStore) as [house]:
                token = await token_of(house)
                assert [await verdict(house, token, "") for _ in range(3)] == ["bob"] * 3
                assert not stored(house.store, TokenUse)
                assert await verdict(house, token, THERE) == "bob"
                assert await verdict(house, token, HERE) == BOUND

        run(scenario())

    def test_a_refused_token_binds_and_spends_nothing(self) -> None:
        async def scenario() -> None:
            async with houses(MemoryStore, single_use=True) as [house]:
                token = await token_of(house)
                with pytest.raises(Missing):
                    await house.verifier.admit("another", token, THERE)
                with pytest.raises(Unauthenticated):
                    await house.verifier.admit("s1", f"{token}x", THERE)
                assert not stored(house.store, TokenUse)
                assert await verdict(house, token) == "bob"

        run(scenario())

    def test_a_single_use_is_one_even_where_nobody_says_by_whom(self) -> None:
        async def scenario() -> None:
            async with houses(MemoryStore, single_use=True) as [house]:
                for address in (HERE, ""):
                    token = await token_of(house)
                    assert await verdict(house, token, address) == "bob"
                    for again in (address, HERE, THERE, ""):
                        assert await verdict(house, token, again) == USED

        run(scenario())


class TestClients:
    def test_a_token_ends_with_those_of_the_client_that_asked_for_it(self) -> None:
        async def scenario() -> None:
            store = MemoryStore()
            async with houses(lambda: store, lambda: store) as [one, two]:
                clients = Clients(one.replica, SystemIds(), FastSigner())

                async def token() -> str:
                    client = one.replica.fleet.get(ApiClient, client_id)
                    return (await one.sessions.connect("s1", "bob", client=client))[1]

                client_id = (await one.access.register_api_client("portal")).client_id
                first, nobodys = await token(), await token_of(one)
                await clients.renew_password(client_id, keep_tokens=True)
                assert await verdict(two, first) == "bob"
                await clients.renew_password(client_id, keep_tokens=False)
                assert await verdict(two, first) == GONE
                second = await token()
                assert await verdict(two, second) == "bob"
                await clients.deactivate(ApiClient, client_id)
                assert await verdict(two, second) == GONE
                await clients.activate(ApiClient, client_id)
                assert await verdict(two, second) == GONE
                assert await verdict(two, await token()) == "bob"
                assert await verdict(two, nobodys) == "bob"

        run(scenario())


class TestTwoBrokers:
    def test_what_one_has_bound_binds_the_other_and_a_new_life_of_both(
        self, tmp_path: Path
    ) -> None:
        def store() -> SqlStore:
            return SqlStore(f"sqlite:///{tmp_path / 'fleet.db'}")

        async def scenario() -> None:
            async with houses(store, store) as [first, second]:
                token = await token_of(first)
                assert await verdict(first, token) == "bob"
                assert await verdict(second, token) == "bob"
                assert await verdict(second, token, THERE) == BOUND
            async with a_house(store(), broker_id="b3") as third:
                assert await verdict(third, token, THERE) == BOUND
                assert await verdict(third, token) == "bob"

        run(scenario())

    def test_of_a_race_for_a_single_use_one_wins(self, tmp_path: Path) -> None:
        def store() -> SqlStore:
            return SqlStore(f"sqlite:///{tmp_path / 'fleet.db'}")

        async def scenario() -> None:
            async with houses(store, store, single_use=True) as brokers:
                for _ in range(40):
                    token = await token_of(brokers[0])
                    told = await asyncio.gather(
                        *(verdict(house, token) for house in brokers for _ in range(3))
                    )
                    assert sorted(told) == sorted(["bob", *[USED] * 5])

        run(scenario())

    def test_of_a_race_of_two_addresses_one_wins(self, tmp_path: Path) -> None:
        def store() -> SqlStore:
            return SqlStore(f"sqlite:///{tmp_path / 'fleet.db'}")

        async def scenario() -> None:
            async with houses(store, store) as [first, second]:
                for _ in range(40):
                    token = await token_of(first)
                    told = await asyncio.gather(
                        verdict(first, token, HERE), verdict(second, token, THERE)
                    )
                    assert sorted(told) == ["bob", BOUND]

        run(scenario())


def test_a_token_lives_as_long_as_is_said_and_not_a_second_longer() -> None:
    async def scenario() -> None:
        async with houses(MemoryStore) as [house]:
            token = await token_of(house)
            house.clock.advance(3599)
            assert await verdict(house, token) == "bob"
            house.clock.advance(1)
            assert await verdict(house, token) == "the token has expired"

    run(scenario())


def test_uses_are_forgotten_when_no_broker_takes_the_token_any_more() -> None:
    async def scenario() -> None:
        async with houses(MemoryStore, single_use=True) as [house]:
            token = await token_of(house)
            assert await verdict(house, token) == "bob"
            for minutes in (60, MARGIN.total_seconds() / 60):
                house.clock.advance(60 * minutes)
                await house.sweep()
                assert len(stored(house.store, TokenUse)) == 1
            assert await verdict(house, token) == "the token has expired"
            house.clock.advance(1)
            await house.sweep()
            assert not stored(house.store, TokenUse)

    run(scenario())


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    with running_broker(tmp_path_factory.mktemp("broker")) as running:
        session = a_session("s1", server="n1")
        running.write(a_server(), some_facts(), a_link(broker_id=running.broker_id), session)
        yield running


def fields(broker: RunningBroker) -> dict[str, str]:
    token = broker.sign(
        Audience.CONNECT,
        timedelta(hours=1),
        dcvSessionId="s1",
        dcvSessionUser="bob",
        dcvSessionGeneration=1,
    )
    return {"sessionId": "s1", "authenticationToken": token, "clientAddress": HERE}


def said(answer: httpx.Response) -> tuple[str | None, str | None]:
    """Return the result, and the user or the reason."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/xml")
    root = ET.fromstring(answer.text)
    assert root.tag == "auth"
    return root.get("result"), root.findtext("username") or root.findtext("message")


def test_two_real_brokers_on_one_file_agree(tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    config.write_text("single_use_connection_token = true\n")
    with Site(tmp_path) as site, ExitStack() as stack:
        for name in ("one", "two"):
            site.start_broker(name, "--config", str(config))
        forms = asyncio.run(_fresh_forms(BrokerSettings(state=site.broker_state), 12))
        doors = [
            stack.enter_context(
                httpx.Client(base_url=site.agent_url(name), verify=trust(site.ca_file), timeout=30)
            )
            for name in ("one", "two", "one", "two")
        ]
        pool = stack.enter_context(ThreadPoolExecutor(len(doors)))
        for form in forms:
            answers = pool.map(partial(_ask, form), doors)
            assert sorted(answers) == [("no", USED)] * 3 + [("yes", "bob")]
        # What was spent stays so over a new life of the broker.
        site.kill("one")
        site.start_broker("one", "--config", str(config))
        assert _ask(forms[0], doors[0]) == ("no", USED)
        assert not [form for form in forms if form["authenticationToken"] in site.log("one")]


async def _fresh_forms(settings: BrokerSettings, count: int) -> list[dict[str, str]]:
    """Write a session into the store of a fleet, and return what desktop servers ask with."""
    async with broker_main.access_only(settings) as access:
        placed: list[Record] = [a_server(), some_facts(), a_session("s1", server="n1")]
        await access._replica.commit(tuple(Put(record, ABSENT) for record in placed))
        claims = {"dcvSessionId": "s1", "dcvSessionUser": "bob", "dcvSessionGeneration": 1}
        return [
            {
                "sessionId": "s1",
                "authenticationToken": access.sign(Audience.CONNECT, claims, timedelta(hours=1)),
                "clientAddress": HERE,
            }
            for _ in range(count)
        ]


def _ask(form: dict[str, str], door: httpx.Client) -> tuple[str | None, str | None]:
    return said(door.post(PATH, data=form))


class TestForms:
    """Whatever comes, the answer is one that a desktop server can read."""

    @pytest.mark.parametrize(
        "content_type",
        [
            None,
            "application/x-www-form-urlencoded",
            "application/x-www-form-urlencoded; charset=UTF-8",
            "text/plain",
            "nonsense",
        ],
    )
    def test_the_content_type_does_not_matter(
        self, broker: RunningBroker, content_type: str | None
    ) -> None:
        body = str(httpx.QueryParams(fields(broker))).encode()
        headers = {} if content_type is None else {"Content-Type": content_type}
        with broker.http(broker.doors.agent_port) as http:
            assert said(http.post(PATH, content=body, headers=headers)) == ("yes", "bob")

    def test_the_address_may_be_missing_and_the_rest_may_not(self, broker: RunningBroker) -> None:
        whole = fields(broker)
        with broker.http(broker.doors.agent_port) as http:
            for name in whole:
                form = {key: value for key, value in whole.items() if key != name}
                result, _ = said(http.post(PATH, data=form))
                assert result == ("yes" if name == "clientAddress" else "no"), name

    @pytest.mark.parametrize("name", ["sessionId", "authenticationToken", "clientAddress"])
    def test_a_field_twice_is_a_no(self, broker: RunningBroker, name: str) -> None:
        form = fields(broker)
        pairs = str(httpx.QueryParams([*form.items(), (name, form[name])]))
        with broker.http(broker.doors.agent_port) as http:
            assert said(http.post(PATH, content=pairs.encode()))[0] == "no"

    @pytest.mark.parametrize(
        ("body", "headers"),
        [
            (b"", {}),
            (b"{}", {"Content-Type": "application/json"}),
            (b"\xff\xfes\x00e\x00s\x00", {"Content-Type": "text/plain; charset=utf-16"}),
            (b"sessionId=%ff%fe&authenticationToken=%00", {}),
            (b"sessionId=s1&authenticationToken=%3Cx%3E%26]]%3E", {}),
            (b"sessionId=\xe4\xf6", {"Content-Type": "text/plain; charset=latin-1"}),
            (b"a=1&" * 10_000, {}),
            (b"sessionId=s1;authenticationToken=x", {}),
            (b"\x1f\x8b\x08", {"Content-Encoding": "gzip"}),
            (b"--x\r\n\r\n--x--", {"Content-Type": "multipart/form-data; boundary=x"}),
            (b"<xml/>", {"Content-Type": "text/xml"}),
            (b"\0" * 60_000, {}),
        ],
    )
    def test_odd_bodies_are_a_no(
        self, broker: RunningBroker, body: bytes, headers: dict[str, str]
    ) -> None:
        with broker.http(broker.doors.agent_port) as http:
            result, message = said(http.post(PATH, content=body, headers=headers))
        assert result == "no"
        assert message

    @pytest.mark.parametrize("chunked", [False, True])
    def test_a_hundred_megabytes_are_a_no_and_not_kept(
        self, broker: RunningBroker, *, chunked: bool
    ) -> None:
        megabyte = b"x" * 1024 * 1024
        body = (megabyte for _ in range(100))
        headers = {} if chunked else {"Content-Length": str(100 * len(megabyte))}
        with broker.http(broker.doors.agent_port) as http:
            result, message = said(http.post(PATH, content=body, headers=headers))
        assert (result, message) == ("no", "a request body may have 65536 bytes")
