"""Pages: nothing is missed or sent twice, and a token can't be made up."""

from __future__ import annotations

import base64
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskfleet.broker.service.paging import MAX_TOKEN_CHARACTERS, Paging
from deskfleet.core.change import Stored, Tombstone
from deskfleet.core.fleet import Fleet, Place, place_of
from deskfleet.core.records import Session
from deskfleet.errors import Invalid
from support.builders import NOON, FastSigner, a_fleet, a_session

QUERY = ["sessions", [], ["alice"], [("tag", "ü")]]
PAGING = Paging(FastSigner())


def fleet_of(count: int) -> Fleet:
    return a_fleet(
        *(a_session(f"s{n:03}", created_at=NOON + timedelta(seconds=n // 3)) for n in range(count))
    )


def page(
    fleet: Fleet, size: int, token: str | None, query: object = QUERY
) -> tuple[list[str], str | None]:
    after = PAGING.after(token, query)
    rows = (one for id in fleet.listed(Session, after) if (one := fleet.session(id)))
    sessions, token = PAGING.page(rows, size, query, place_of)
    return [one.id for one in sessions], token


def some_token(query: object = QUERY) -> str:
    token = page(fleet_of(3), 1, None, query)[1]
    assert token is not None
    return token


class TestGoingThrough:
    @given(count=st.integers(0, 20), sizes=st.lists(st.integers(1, 7), min_size=25, max_size=25))
    def test_all_rows_once_whatever_the_sizes(self, count: int, sizes: list[int]) -> None:
        fleet = fleet_of(count)
        read: list[str] = []
        token = None
        for size in sizes:
            ids, token = page(fleet, size, token)
            read += ids
            if token is None:
                break
            assert len(ids) == size
        assert read == [f"s{n:03}" for n in range(count)]

    def test_the_last_page_has_no_token_even_when_it_is_full(self) -> None:
        assert page(fleet_of(4), 4, None)[1] is None
        assert page(fleet_of(0), 4, None) == ([], None)

    def test_rows_that_come_and_go_in_between_cost_no_other_row(self) -> None:
        fleet = fleet_of(9)
        first, token = page(fleet, 3, None)
        # The last row that was sent goes, and so does one that wasn't; one comes.
        fleet.apply(Tombstone(100, "session", first[-1]))
        fleet.apply(Tombstone(101, "session", "s004"))
        fleet.apply(Stored(102, a_session("s999", created_at=NOON + timedelta(days=1))))
        rest, token = page(fleet, 100, token)
        assert rest == ["s003", "s005", "s006", "s007", "s008", "s999"]
        assert token is None

    def test_a_token_fits_in_a_url(self) -> None:
        assert set(some_token()) <= set(base64.urlsafe_b64encode(bytes(range(256))).decode()) | {
            *"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_="
        }


class TestRefusing:
    def test_a_token_of_another_query(self) -> None:
        token = some_token()
        for query in (["servers", []], [*QUERY, "x"], ["sessions", [], ["bob"], [("tag", "ü")]]):
            with pytest.raises(Invalid, match="NextToken"):
                PAGING.after(token, query)

    def test_a_token_of_another_fleet(self) -> None:
        class Other(FastSigner):
            def hash(self, secret: str) -> bytes:
                return super().hash("other" + secret)

        with pytest.raises(Invalid):
            Paging(Other()).after(some_token(), QUERY)

    def test_every_changed_bit(self) -> None:
        sealed = bytearray(base64.urlsafe_b64decode(some_token()))
        for bit in range(8 * len(sealed)):
            sealed[bit // 8] ^= 1 << bit % 8
            with pytest.raises(Invalid):
                PAGING.after(base64.urlsafe_b64encode(sealed).decode(), QUERY)
            sealed[bit // 8] ^= 1 << bit % 8

    @pytest.mark.parametrize("token", ["", "x", "%%%", "é", "AAAA", "=", "A" * 2000, "\x00", "a b"])
    def test_what_never_was_a_token(self, token: str) -> None:
        with pytest.raises(Invalid, match="NextToken"):
            PAGING.after(token, QUERY)

    @given(st.text(max_size=MAX_TOKEN_CHARACTERS + 10))
    def test_noise(self, token: str) -> None:
        with pytest.raises(Invalid):
            PAGING.after(token, QUERY)


def test_no_token_is_the_beginning() -> None:
    nowhere: Place | None = PAGING.after(None, QUERY)
    assert nowhere is None
