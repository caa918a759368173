"""Whose session a name stands for, where people can choose ids as well."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from deskfleet.cli.named import find, id_of
from deskfleet.cli.output import Output
from deskfleet.client.shapes import Session

OURS = "11111111-2222-4333-8444-555555555555"


@dataclass
class Known:
    """A broker's list of sessions, to be asked as the client asks."""

    known: Sequence[Session]

    def sessions(
        self, *, session_ids: Sequence[str] = (), owner: str | None = None
    ) -> Iterator[Session]:
        for each in self.known:
            if each.id in session_ids or each.owner == owner:
                yield each


@dataclass
class Run:
    client: Known
    output: Output


def run(*known: Session) -> Any:
    return Run(Known(known), Output())


def a_session(id: str, name: str, owner: str, state: str = "READY") -> Session:
    return Session(id=id, name=name, owner=owner, state=state, type="VIRTUAL")


MINE = a_session(OURS, "cad", "ada")


@pytest.mark.parametrize(
    ("known", "meant"),
    [
        ([MINE], OURS),
        # Whoever may make sessions by hand chooses their ids: no lure.
        ([a_session("cad", "x", "eve"), MINE], OURS),
        ([a_session("x", "cad", "eve")], None),
        ([a_session("cad", "x", "eve")], "cad"),
        ([a_session(OURS, "cad", "ada", "DELETED")], None),
        ([], None),
    ],
)
def test_a_name_stands_for_a_session_of_the_user_alone(
    known: list[Session], meant: str | None
) -> None:
    found = find(run(*known), "cad", "ada")
    assert (found.id if found else None) == meant
    assert id_of(run(*known), "cad", "ada") == (meant or "cad")


def test_an_id_that_a_broker_gave_is_no_name() -> None:
    named_so = a_session("66666666-2222-4333-8444-555555555555", OURS, "ada")
    assert find(run(named_so, MINE), OURS, "ada") == MINE
    assert id_of(run(named_so), OURS, "ada") == OURS
