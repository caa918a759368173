"""Which servers meet a requirement, in rank order: remembered while the same is asked for again.

Portals send the same few expressions again and again, and the servers that stand first may all be
of another kind. A `View` tests each server once, and again only when something about it changed.
Few are kept, the ones that were used last; their memory is bounded by that.

Law: a view says what testing every server now would say. It knows nothing of seats that a batch has
taken, nor of who can be reached.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TypeAlias

from deskfleet.core.candidates import Candidate, Candidates, Rank
from deskfleet.core.ordered import Ordered
from deskfleet.core.requirements import Requirements

Tag: TypeAlias = tuple[str, str]

MOST = 16
TOGETHER = 256
"""So many servers are sifted by one clause after the other: in the order in which they lie in
memory, and few enough to stay in the processor's cache from clause to clause. That is three times
as fast as one server after the other in rank order."""
SHARE = 4
"""Where more than one in so many servers changed, all are tested again."""


class View:
    def __init__(self, candidates: Candidates, requirements: Requirements, tag: Tag | None) -> None:
        """`tag` names servers that are not to be looked at: all that don't have it."""
        self._candidates = candidates
        self._clauses = requirements.clauses
        self._tag = tag
        self._moment = 0
        self._rebuild()

    @property
    def backlog(self) -> int:
        """Return at most how many servers have to be tested before it is up to date."""
        return self._candidates.touched.moment - self._moment

    @property
    def meeting(self) -> Mapping[str, Rank]:
        """The servers that meet the requirement, and those of which nobody knows what they are."""
        return self._meeting

    @property
    def lacking(self) -> Mapping[str, int]:
        """How many servers fall first at each clause."""
        return self._lacking

    def ranked(self) -> list[Rank]:
        """Return who meets the requirement, the best one first. Not to be kept nor changed."""
        return self._order.values()

    def refresh(self) -> None:
        ledger = self._candidates.touched
        touched = ledger.since(self._moment)
        if len(touched) * SHARE > len(self._candidates) or self._moment < ledger.floor:
            self._rebuild()
            return
        self._moment = ledger.moment
        for id in touched:
            self._forget(id)
        self._test(list(self._candidates.these(touched)))

    def _rebuild(self) -> None:
        self._moment = self._candidates.touched.moment
        self._meeting: dict[str, Rank] = {}
        self._order: Ordered[Rank] = Ordered()
        self._fallen_at: dict[str, str] = {}
        self._lacking: Counter[str] = Counter()
        for some in together(self._candidates.these(None)):
            self._test(some)

    def _test(self, some: list[Candidate]) -> None:
        left = some
        if self._tag is not None:
            key, value = self._tag
            left = [one for one in some if one.facts and one.facts.tags.get(key) == value]
        for text, test in self._clauses:
            fallen = [one.id for one in left if one.facts is not None and not test(one.facts)]
            if fallen:
                self._fallen_at.update(dict.fromkeys(fallen, text))
                self._lacking[text] += len(fallen)
                left = [one for one in left if one.id not in self._fallen_at]
        for one in left:
            rank = self._meeting[one.id] = self._candidates.rank_of(one.id)
            self._order.add(rank)

    def _forget(self, id: str) -> None:
        rank = self._meeting.pop(id, None)
        if rank is not None:
            self._order.remove(rank)
        clause = self._fallen_at.pop(id, None)
        if clause is not None:
            self._lacking[clause] -= 1


class Views:
    def __init__(self, candidates: Candidates) -> None:
        self._candidates = candidates
        self._kept: dict[tuple[str, Tag | None], View] = {}

    def clear(self) -> None:
        self._kept = {}

    def known(self, text: str, tag: Tag | None) -> View | None:
        """Return the view of a requirement that was made before; it may have a backlog."""
        return self._kept.get((text, tag))

    def of(self, text: str, requirements: Requirements, tag: Tag | None) -> View:
        """Return the view of a requirement, up to date."""
        view = self._kept.pop((text, tag), None)
        if view is None:
            view = View(self._candidates, requirements, tag)
            while len(self._kept) >= MOST:
                del self._kept[next(iter(self._kept))]
        else:
            view.refresh()
        # Put last: who was not used for longest is first.
        self._kept[text, tag] = view
        return view


def together(candidates: Iterable[Candidate]) -> Iterator[list[Candidate]]:
    left = iter(candidates)
    while some := list(islice(left, TOGETHER)):
        yield some
