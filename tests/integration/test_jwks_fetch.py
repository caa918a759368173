"""Fetching a key set from a server over real TLS: what is believed, and where nobody is sent."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from deskfleet.broker.web.jwks_fetch import MAX_BYTES, JwksFetch, refuse_inner
from deskfleet.core.records import AuthServer
from deskfleet.errors import Forbidden, Unavailable
from support.auth_server import JwksServer, jwks_server, trusting
from support.builders import NOON
from support.tls_server import NAME


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[JwksServer, JwksFetch]]:
    with jwks_server(tmp_path / "authority") as (server, ca_file):
        yield server, JwksFetch(lambda: trusting(ca_file))


def fetch(fetch: JwksFetch, url: str, *, allow_private: bool = True) -> bytes:
    server = AuthServer(id=url, registered_at=NOON, allow_private=allow_private)

    async def whole() -> bytes:
        return await fetch(server)

    # The loop that brokers run on; it also closes what a failed handshake leaves.
    return uvloop.run(whole())


def port_of(url: str) -> int:
    return int(url.partition("localhost:")[2].partition("/")[0])


def test_a_key_set_arrives(served: tuple[JwksServer, JwksFetch]) -> None:
    server, fetching = served
    assert fetch(fetching, server.url) == server.body
    assert server.hosts == [f"localhost:{port_of(server.url)}"]


def test_a_private_address_needs_leave(served: tuple[JwksServer, JwksFetch]) -> None:
    server, fetching = served
    with pytest.raises(Forbidden, match="--allow-private"):
        fetch(fetching, server.url, allow_private=False)
    assert server.asked == 0


def test_a_redirect_is_not_followed(served: tuple[JwksServer, JwksFetch]) -> None:
    server, fetching = served
    server.status, server.headers = 302, {"Location": server.url}
    with pytest.raises(Unavailable, match="status 302"):
        fetch(fetching, server.url)
    assert server.asked == 1


def test_too_much_is_not_read(served: tuple[JwksServer, JwksFetch]) -> None:
    server, fetching = served
    server.body = b" " * (MAX_BYTES + 1)
    with pytest.raises(Unavailable, match="more than"):
        fetch(fetching, server.url)
    server.body = b" " * MAX_BYTES
    assert len(fetch(fetching, server.url)) == MAX_BYTES


def test_what_is_packed_is_not_unpacked(served: tuple[JwksServer, JwksFetch]) -> None:
    server, fetching = served
    server.headers = {"Content-Encoding": "gzip"}
    with pytest.raises(Unavailable):
        fetch(fetching, server.url)


def test_a_certificate_of_a_stranger(served: tuple[JwksServer, JwksFetch]) -> None:
    server, _ = served
    with pytest.raises(Unavailable, match="can't be reached"):
        fetch(JwksFetch(), server.url)
    assert server.asked == 0


def test_the_certificate_must_have_the_name_that_was_asked_for(
    served: tuple[JwksServer, JwksFetch], tmp_path: Path
) -> None:
    server, _ = served

    async def to_loopback(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    fetching = JwksFetch(lambda: trusting(tmp_path / "authority" / "ca.pem"), to_loopback)
    # The connection goes to the address that was judged, whatever others say of the name.
    assert fetch(fetching, server.url.replace("localhost", NAME)) == server.body
    assert server.hosts == [f"{NAME}:{port_of(server.url)}"]
    with pytest.raises(Unavailable, match="can't be reached"):
        fetch(fetching, server.url.replace("localhost", "other.example"))
    assert server.asked == 1


def test_a_name_is_resolved_once_and_one_inner_address_spoils_it(
    served: tuple[JwksServer, JwksFetch],
) -> None:
    server, _ = served
    asked = []

    async def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["93.184.215.14", "169.254.169.254"] if len(asked) == 1 else ["127.0.0.1"]

    with pytest.raises(Forbidden, match=r"169\.254"):
        fetch(JwksFetch(resolve=rebinding), server.url)
    assert asked == ["localhost"]
    assert server.asked == 0


def test_a_server_that_says_nothing_is_given_up() -> None:
    # The system takes the connection; nobody accepts it.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(Unavailable, match="can't be reached: ConnectTimeout"):
            fetch(JwksFetch(seconds=0.3), url)


def test_all_of_it_has_a_limit() -> None:
    async def never(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(Unavailable, match=r"no answer within 0\.1 s"):
        fetch(JwksFetch(resolve=never, seconds=0.1), "https://login.example/")


@pytest.mark.parametrize("url", ["https://127.0.0.1:1/", "https://nowhere.invalid/"])
def test_nobody_there(url: str) -> None:
    with pytest.raises(Unavailable):
        fetch(JwksFetch(), url)


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
def test_addresses_of_the_open_network(address: str) -> None:
    refuse_inner(address, allow_private=False)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "192.0.2.1"),
        *("::1", "fd00::1", "fec0::1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::a00:1"),
        "2001:0:a00:1::",
    ],
)
def test_private_ones(address: str) -> None:
    with pytest.raises(Forbidden, match="private"):
        refuse_inner(address, allow_private=False)
    refuse_inner(address, allow_private=True)


@pytest.mark.parametrize(
    "address",
    [
        *("169.254.169.254", "0.0.0.0", "224.0.0.1", "::", "fe80::1", "fe80::1%eth0", "ff02::1"),
        *("::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::"),
    ],
)
def test_addresses_that_nothing_allows(address: str) -> None:
    for allow_private in (False, True):
        with pytest.raises(Forbidden, match="not one of a server"):
            refuse_inner(address, allow_private=allow_private)
