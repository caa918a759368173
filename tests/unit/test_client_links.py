"""A link leads to the session's server and nowhere else."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest

from deskfleet.client.links import link
from deskfleet.client.problems import Unreadable
from deskfleet.client.shapes import GetSessionConnectionDataResponse, Server, Session


def connection(
    server: Server | None, *, token: str = "aa.b-b.c_c", id: str = "s1"
) -> GetSessionConnectionDataResponse:
    session = Session(id=id, name="", owner="ada", type="VIRTUAL", state="READY", server=server)
    return GetSessionConnectionDataResponse(session=session, connection_token=token)


@pytest.mark.parametrize(
    ("ip", "path", "start"),
    [
        ("10.0.0.7", "/", "https://10.0.0.7:8444/?"),
        ("10.0.0.7", None, "https://10.0.0.7:8444/?"),
        ("10.0.0.7", "", "https://10.0.0.7:8444/?"),
        ("10.0.0.7", "desktop/", "https://10.0.0.7:8444/desktop/?"),
        ("2001:db8::7", "/", "https://[2001:db8::7]:8444/?"),
        ("[2001:db8::7]", "/", "https://[2001:db8::7]:8444/?"),
        ("node-1.example", "/", "https://node-1.example:8444/?"),
    ],
)
def test_a_link_is_made_of_the_connection_data(ip: str, path: str | None, start: str) -> None:
    server = Server(ip=ip, port="8444", web_url_path=path)
    assert link(connection(server)) == f"{start}authToken=aa.b-b.c_c#s1"


@pytest.mark.parametrize(
    "server",
    [
        None,
        Server(ip="10.0.0.7"),
        Server(port="8444"),
        Server(ip="evil.example/?", port="8444"),
        Server(ip="me@evil.example", port="8444"),
        Server(ip="", port="8444"),
        Server(ip="10.0.0.7", port="8444@evil.example"),
        Server(ip="10.0.0.7", port=""),
    ],
)
def test_an_address_that_is_none_makes_no_link(server: Server | None) -> None:
    with pytest.raises(Unreadable):
        link(connection(server))


def test_nothing_breaks_out_of_its_place() -> None:
    server = Server(ip="10.0.0.7", port="8444", web_url_path="/x?authToken=mine#y\n")
    made = link(connection(server, token="a&b#c", id="id with space#"))
    split = urlsplit(made)
    assert (split.hostname, split.port) == ("10.0.0.7", 8444)
    assert parse_qs(split.query) == {"authToken": ["a&b#c"]}
    assert split.path == "/x%3FauthToken=mine%23y%0A"
    assert split.fragment == "id%20with%20space%23"


@pytest.mark.parametrize("path", ["//evil.example/", "/\\evil.example"])
def test_a_path_is_never_another_host(path: str) -> None:
    made = link(connection(Server(ip="10.0.0.7", port="8444", web_url_path=path)))
    assert urlsplit(made).netloc == "10.0.0.7:8444"
