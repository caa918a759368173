"""Which sessions a client asks for: by their ids, their owner, and the tags of their servers.

Laws: all that is given must fit; sessions come in the order of listings. What fits few is gathered
and put in order; for what fits many the listing is walked, and a page of it is soon full. So no
question costs much more than a page, whatever the size of the fleet.

Must not: outlive a change of the fleet. The caller has caught up, and lets nothing happen until it
has taken what it wants.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from collections.abc import Set as AbstractSet
from datetime import datetime

from deskfleet.core.fleet import Fleet, Place, Tag, place_of
from deskfleet.core.records import Session
from deskfleet.core.session import is_over

PAGE = 1000
"""So many are taken at once, as a rule."""


class Selection:
    def __init__(
        self,
        fleet: Fleet,
        ids: Collection[str],
        owners: Collection[str],
        tags: Collection[Tag],
        page: int = PAGE,
    ) -> None:
        """Nothing is no condition: `ids`, `owners` or `tags` that are empty fit all sessions."""
        self._fleet = fleet
        self._page = page
        self._ids = frozenset(ids)
        self._owners = frozenset(owners)
        self._servers = _servers_with(fleet, frozenset(tags)) if tags else None

    def places(self, after: Place | None, until: datetime) -> Iterator[Place]:
        """Yield the places of those that fit and stand after a place, the oldest first.

        Those that have ended until an instant are left out.
        """
        if not self._ids and not self._owners and self._servers is None:
            places, over = self._fleet.places(Session, after), self._fleet.ended(Session, until)
            return _without(places, frozenset(over)) if over else places
        fitting = (one for one in self._candidates(after) if self._fits(one))
        return (place_of(one) for one in fitting if not is_over(one, until))

    def _candidates(self, after: Place | None) -> Iterable[Session]:
        few = self._few()
        if few is None:
            return self._fleet.sessions_after(after)
        later = (one for one in few if after is None or place_of(one) > after)
        return sorted(later, key=place_of)

    def _few(self) -> Iterable[Session] | None:
        """Return sessions with all among them that fit, None where they would be many."""
        fleet = self._fleet
        if self._ids:
            return [one for id in self._ids if (one := fleet.session(id)) is not None]
        if len(self._owners) > 1:
            return ()
        # Sorting so many costs as much as walking until a page of them is found.
        most = int((fleet.count(Session) * self._page) ** 0.5)
        for owner in self._owners:
            if fleet.count_of(owner) <= most:
                return fleet.sessions_of(owner)
        if self._servers is None:
            return None
        found: list[Session] = []
        for server_id in self._servers:
            found += fleet.sessions_ever_on(server_id)
            if len(found) > most:
                return None
        return found

    def _fits(self, session: Session) -> bool:
        return (
            (not self._ids or session.id in self._ids)
            and all(session.request.owner == owner for owner in self._owners)
            and (self._servers is None or session.server_id in self._servers)
        )


def _servers_with(fleet: Fleet, tags: AbstractSet[Tag]) -> AbstractSet[str]:
    """Return the servers that have all of these tags."""
    few, *others = sorted((fleet.servers_tagged(*tag) for tag in tags), key=len)
    return frozenset(id for id in few if all(id in other for other in others)) if others else few


def _without(places: Iterator[Place], ids: AbstractSet[str]) -> Iterator[Place]:
    return (place for place in places if place[1] not in ids)
