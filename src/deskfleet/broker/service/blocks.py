"""Keeps what was made of many sessions in a row, joined, for as long as none of them changes.

Who reads a fleet page by page meets the same neighbours again and again. A look at a block costs
one comparison of identities for each session in it, and touches none of them.

Laws: what is given is what joining the parts now would give; a session is in one block at most, so
that blocks take no more memory than their parts. Must not: be given parts in another order than
the listing's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from deskfleet.broker.service.showing import Showing
from deskfleet.core.fleet import Place

T = TypeVar("T")

TOGETHER = 64
"""Sessions in a block: one that changes costs the joining of so many."""


@dataclass(frozen=True, slots=True)
class _Block(Generic[T]):
    places: Sequence[Place]
    joined: T


class Blocks(Generic[T]):
    def __init__(
        self, showing: Showing[T], join: Callable[[list[T]], T], together: int = TOGETHER
    ) -> None:
        self._showing = showing
        self._together = together
        self._join = join
        self._kept: dict[str, _Block[T]] = {}
        """By the first session of each."""
        self._block_of: dict[str, str] = {}
        showing.on_drop(self._drop)

    def of(self, places: Sequence[Place]) -> list[T]:
        """Return what is made of these sessions of the fleet as caught up, block by block."""
        self._showing.refresh()
        size = self._together
        return [self._joined(places[at : at + size]) for at in range(0, len(places), size)]

    def _joined(self, places: Sequence[Place]) -> T:
        first = places[0][1]
        block = self._kept.get(first)
        if block is None or block.places != places:
            ids = [id for _, id in places]
            joined = self._join(self._showing.kept(ids))
            if len(places) < self._together or not self._showing.is_sure():
                return joined
            block = _Block(places, joined)
            self._keep(block, first, ids)
        return block.joined

    def _keep(self, block: _Block[T], first: str, ids: list[str]) -> None:
        for id in ids:
            self._drop(id)
            self._block_of[id] = first
        self._kept[first] = block

    def _drop(self, session_id: str) -> None:
        first = self._block_of.pop(session_id, None)
        if first is not None:
            self._kept.pop(first, None)
