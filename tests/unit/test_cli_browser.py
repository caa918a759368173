"""A link reaches the user's own browser, once, and stands in nobody's arguments."""

from __future__ import annotations

import os
from contextlib import closing
from http.client import HTTPConnection
from urllib.parse import urlsplit

import httpx
import pytest

from deskfleet.cli.browser import open_in_browser

LINK = "https://192.0.2.7:8444/?authToken=secret#s1"
NOBODY = 65534


def test_the_browser_is_redirected_to_the_link() -> None:
    answers: list[httpx.Response] = []

    def launch(url: str) -> bool:
        assert "secret" not in url
        answers.append(httpx.get(url, trust_env=False))
        return True

    assert open_in_browser(LINK, limit=5, launch=launch)
    assert answers[0].status_code == 303
    assert answers[0].headers["Location"] == LINK


def test_the_link_is_given_once_and_only_at_its_address() -> None:
    statuses: list[int] = []

    def launch(url: str) -> bool:
        root = url.rpartition("/")[0]
        addresses = (f"{root}/favicon.ico", f"{root}/", url, url)
        statuses.extend(httpx.get(each, trust_env=False).status_code for each in addresses)
        return True

    assert open_in_browser(LINK, limit=5, launch=launch)
    assert statuses == [404, 404, 303, 404]


def test_no_browser_is_told() -> None:
    assert not open_in_browser(LINK, limit=5, launch=lambda _: False)
    assert not open_in_browser(LINK, limit=0.05, launch=lambda _: True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_does_not_get_the_link() -> None:
    """The address stands in the process list, so others can try it."""
    statuses: list[int] = []

    def launch(url: str) -> bool:
        statuses.extend(status_for(user, url) for user in (NOBODY, 0))
        return True

    assert open_in_browser(LINK, limit=5, launch=launch)
    assert statuses == [404, 303]


def status_for(user: int, url: str) -> int:
    """Fetch over a connection that belongs to a user."""
    split = urlsplit(url)
    connection = HTTPConnection(f"{split.hostname}:{split.port}", timeout=5)
    os.seteuid(user)
    try:
        connection.connect()
    finally:
        os.seteuid(0)
    with closing(connection):
        connection.request("GET", split.path)
        return connection.getresponse().status
