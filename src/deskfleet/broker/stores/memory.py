"""A store that lasts as long as its process.

Owns its rows and nothing else. It keeps the laws of the real stores (one suite checks them all),
encodes and decodes as they do, and ships with them: a broker is given it by whoever composes one
(`main.running`), and several brokers of one process may share it. No setting chooses it.

Laws: safe to call from any thread. Closing it forgets nothing, for another broker may hold it.
Must not be used where an answer has to survive the process.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from deskfleet.broker.stores.codec import Codec
from deskfleet.broker.stores.settlement import Key, Row, settle
from deskfleet.core.change import ABSENT, ChangeSet, Stored, Tombstone
from deskfleet.core.records import Revision
from deskfleet.errors import Compacted
from deskfleet.ports import Lost


class MemoryStore:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._codec = Codec()
        self._revision: Revision = ABSENT + 1
        self._floor: Revision = 0
        self._rows: dict[Key, Row] = {}
        """In the order of their revisions, so that the newest are found from the end."""

    def load(self) -> tuple[Revision, Iterable[Stored]]:
        with self._lock:
            read = [self._read(key, row) for key, row in self._rows.items()]
            return self._revision, [item for item in read if isinstance(item, Stored)]

    def changes(self, since: Revision) -> tuple[Revision, Sequence[Stored | Tombstone]]:
        with self._lock:
            if not self._floor <= since <= self._revision:
                raise Compacted
            newest: list[Stored | Tombstone] = []
            for key, row in reversed(self._rows.items()):
                if row.revision <= since:
                    break
                item = self._read(key, row)
                if item is not None:
                    newest.append(item)
            return self._revision, newest[::-1]

    def commit(self, change_sets: Sequence[ChangeSet]) -> Sequence[Revision | Lost]:
        with self._lock:
            keys = {change.key for change_set in change_sets for change in change_set}
            current = {
                key: row.revision
                for key in keys
                if (row := self._rows.get(key)) is not None and row.body is not None
            }
            settlement = settle(change_sets, self._revision, current, self._codec.encode)
            for key, row in settlement.rows.items():
                self._rows.pop(key, None)
                self._rows[key] = row
            self._revision = settlement.revision
            return settlement.outcomes

    def compact(self, before: Revision) -> None:
        with self._lock:
            gone = {
                key: row.revision
                for key, row in self._rows.items()
                if row.body is None and row.revision < before
            }
            for key in gone:
                del self._rows[key]
            self._floor = max(self._floor, *gone.values(), ABSENT)

    def glance(self) -> Revision | None:
        return self._revision

    def close(self) -> None:
        """Change nothing: the rows live as long as the object."""

    def _read(self, key: Key, row: Row) -> Stored | Tombstone | None:
        return self._codec.decode(*key, row.revision, row.body)
