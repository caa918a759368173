"""What an API client may do, without anybody who calls."""

from __future__ import annotations

import msgspec
import pytest

from deskfleet.core.access import (
    EVERYTHING,
    Rights,
    Scope,
    check_restrictions,
    rights_of,
    scopes_of,
)
from deskfleet.core.records import ApiClient
from deskfleet.errors import Forbidden, InsufficientScope, Invalid
from support.builders import NOON


def allowed(rights: Rights) -> set[Scope]:
    return {scope for scope in Scope if not raises(rights, scope)}


def raises(rights: Rights, scope: Scope) -> Forbidden | None:
    try:
        rights.check(scope)
    except Forbidden as error:
        return error
    return None


@pytest.mark.parametrize("scope", Scope)
def test_one_scope_allows_itself_alone(scope: Scope) -> None:
    assert allowed(Rights((scope.value,))) == {scope}
    for other in set(Scope) - {scope}:
        refused = raises(Rights((scope.value,)), other)
        assert isinstance(refused, InsufficientScope)
        assert refused.scope == other


def test_without_scopes_all_is_allowed_and_with_unknown_ones_nothing() -> None:
    assert allowed(EVERYTHING) == set(Scope)
    assert allowed(Rights(("of-another-version",))) == set()


def test_who_acts_for_an_owner_leaves_servers_alone() -> None:
    assert allowed(Rights(owner="ada")) == set(Scope) - {Scope.SERVERS}
    refused = raises(Rights(("servers", "create"), "ada"), Scope.SERVERS)
    assert isinstance(refused, Forbidden)
    assert not isinstance(refused, InsufficientScope)


@pytest.mark.parametrize(
    ("words", "scopes"),
    [
        ((), ()),
        (("create",), ("create",)),
        (("servers,create", "create describe"), ("describe", "create", "servers")),
        ((" delete ", ","), ("delete",)),
    ],
)
def test_scopes_are_read_as_people_write_them(
    words: tuple[str, ...], scopes: tuple[str, ...]
) -> None:
    assert scopes_of(words) == scopes


@pytest.mark.parametrize("word", ["fly", "Create", "*", "create;delete"])
def test_other_words_are_refused(word: str) -> None:
    with pytest.raises(Invalid, match="is not a scope; there are describe, create"):
        scopes_of(["create", word])


@pytest.mark.parametrize(
    "rights",
    [Rights(owner=""), Rights(owner="a\nb"), Rights(owner="a" * 257), Rights(("servers",), "ada")],
)
def test_restrictions_that_cannot_be_meant(rights: Rights) -> None:
    with pytest.raises(Invalid):
        check_restrictions(rights)


def test_a_client_of_an_older_version_may_do_all() -> None:
    row = {"type": "api-client", "id": "c", "name": "n", "secret_hash": "", "created_at": NOON}
    client = msgspec.convert(row, ApiClient, strict=False)
    assert rights_of(client) == EVERYTHING
    assert client.token_era == 0
