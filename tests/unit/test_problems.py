"""What a client is told when something is refused, and how much of a body is read before."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from deskfleet import errors
from deskfleet.broker.web.limits import body_of
from deskfleet.broker.web.problems import STATUS, problem, refusal, status_of
from deskfleet.errors import DeskfleetError, Invalid, TooLarge


def kinds(kind: type[DeskfleetError] = DeskfleetError) -> Iterator[type[DeskfleetError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from kinds(child)


def a_problem(kind: type[DeskfleetError], message: str) -> DeskfleetError:
    error = kind.__new__(kind)
    DeskfleetError.__init__(error, message)
    if isinstance(error, errors.Unavailable):
        error.retry_after = 3
    return error


def told(response: Response) -> dict[str, Any]:
    assert response.media_type == "application/json"
    value: dict[str, Any] = json.loads(bytes(response.body))
    return value


@pytest.mark.parametrize("kind", list(kinds()))
def test_every_kind_of_error_has_a_status_and_one_line(kind: type[DeskfleetError]) -> None:
    response = problem(a_problem(kind, "the reason"))
    assert response.status_code == status_of(a_problem(kind, "x"))
    expected = "internal error" if response.status_code == 500 else "the reason"
    assert told(response) == {"error": expected}


def test_the_table_of_statuses() -> None:
    assert {kind.__name__: status for kind, status in STATUS.items()} == {
        "Invalid": 400,
        "Unauthenticated": 401,
        "Forbidden": 403,
        "Missing": 404,
        "Conflict": 400,
        "TooLarge": 413,
        "Unavailable": 503,
    }
    assert status_of(errors.RequirementsInvalid("x", 1)) == 400
    assert status_of(errors.StoreFailed("secret path")) == 500


def test_codes_are_unlike_each_other() -> None:
    codes = [kind.code for kind in kinds()]
    assert len(set(codes)) == len(codes)


def test_an_error_without_words_says_its_default() -> None:
    assert errors.Missing().message == "There is nothing here."
    assert told(problem(errors.Unauthenticated())) == {"error": "No authorization header"}


def test_headers_say_what_to_do() -> None:
    assert problem(errors.Unavailable(retry_after=7)).headers["retry-after"] == "7"
    assert problem(errors.Unauthenticated()).headers["www-authenticate"] == "Bearer"
    assert refusal(405, "x", {"Allow": "GET"}).headers["allow"] == "GET"


class TestBodies:
    def read(
        self,
        *chunks: bytes,
        headers: dict[str, str] | None = None,
        limit: int = 10,
    ) -> bytes:
        raw = [(k.encode(), v.encode()) for k, v in (headers or {}).items()]
        messages = [{"type": "http.request", "body": one, "more_body": True} for one in chunks]
        messages.append({"type": "http.request", "more_body": False})

        async def whole() -> bytes:
            left = iter(messages)

            async def receive() -> dict[str, Any]:
                for message in left:
                    return message
                await asyncio.Event().wait()
                raise AssertionError

            request = Request({"type": "http", "headers": raw}, receive)
            return await body_of(request, limit)

        return asyncio.run(whole())

    def test_pieces_become_one(self) -> None:
        assert self.read() == b""
        assert self.read(b"01", b"", b"23456789") == b"0123456789"

    def test_a_body_over_the_limit_whether_it_says_so_or_not(self) -> None:
        for chunks, headers in (
            ((b"01234567890",), {}),
            ((b"012345", b"67890"), {}),
            ((), {"content-length": "11"}),
            ((), {"content-length": "9" * 30}),
            ((), {"content-length": "-1"}),
            ((), {"content-length": "1e1"}),
        ):
            with pytest.raises(TooLarge):
                self.read(*chunks, headers=headers)

    def test_what_is_packed_is_not_unpacked(self) -> None:
        assert self.read(b"{}", headers={"content-encoding": "identity"}) == b"{}"
        for coding in ("gzip", "br", "identity, gzip"):
            with pytest.raises(Invalid, match="compressed"):
                self.read(b"{}", headers={"content-encoding": coding})

    def test_who_has_gone_is_not_answered(self) -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        with pytest.raises(ClientDisconnect):
            asyncio.run(body_of(Request({"type": "http", "headers": []}, receive)))
