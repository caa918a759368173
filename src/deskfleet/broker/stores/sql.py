"""The store in a SQL database.

Owns one connection, and the order of the steps of a commit: lock the counter, read the revisions
that the change sets name, settle them, write the rows and the counter, commit.

Laws: an outcome is returned only after the database has made it durable. Waiting in vain for
another broker is `Unavailable` and wrote nothing; any other error of the database ends this
object: every later call raises `StoreFailed`, because after a failed write to a disk nothing
that is read back can be trusted until the store has been opened, and so checked, again.
What is particular to one database is in a module of its own (`sqlite`).
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from deskfleet.broker.stores.codec import Codec
from deskfleet.broker.stores.schema import Schema
from deskfleet.broker.stores.settlement import Key, Row, settle
from deskfleet.broker.stores.sqlite import Sqlite
from deskfleet.core.change import ChangeSet, Stored, Tombstone
from deskfleet.core.records import Revision
from deskfleet.errors import Compacted, SetupFailed, StoreFailed, Unavailable
from deskfleet.ports import Lost

_IDS_PER_QUERY = 500


class SqlStore:
    """A store at a database URL. Raises `SetupFailed` where it can't be opened.

    `busy_timeout` is how many seconds a call waits for other brokers.
    """

    def __init__(self, url: str, *, busy_timeout: float = 5.0) -> None:
        self._schema = Schema()
        self._codec = Codec()
        self._lock = threading.Lock()
        self._ended: str | None = None
        self._database = Sqlite(supported(url), self._schema, busy_timeout)
        self._connection = self._database.open()

    def load(self) -> tuple[Revision, Iterable[Stored]]:
        with self._guarded() as connection:
            rows = connection.execute(self._schema.load).all()
        revision: Revision = rows[0][0]
        return revision, [item for item in self._read(rows) if isinstance(item, Stored)]

    def changes(self, since: Revision) -> tuple[Revision, Sequence[Stored | Tombstone]]:
        with self._guarded() as connection:
            rows = connection.execute(self._schema.changes, {"since": since}).all()
        revision, floor = rows[0][0], rows[0][1]
        # A reader that is ahead of the store has seen what a restored backup doesn't hold.
        if not floor <= since <= revision:
            raise Compacted
        return revision, self._read(rows)

    def commit(self, change_sets: Sequence[ChangeSet]) -> Sequence[Revision | Lost]:
        schema = self._schema
        with self._guarded() as connection:
            self._database.tidy(connection)
            with self._transaction(connection):
                revision = connection.execute(schema.lock_counter).scalar_one()
                current = self._current(connection, change_sets)
                settlement = settle(change_sets, revision, current, self._codec.encode)
                if settlement.rows:
                    connection.execute(schema.upsert, _parameters(settlement.rows))
                    connection.execute(schema.advance, {"value": settlement.revision})
            self._database.wrote(settlement.rows.values())
        return settlement.outcomes

    def compact(self, before: Revision) -> None:
        schema = self._schema
        with self._guarded() as connection, self._transaction(connection):
            connection.execute(schema.lock_counter).scalar_one()
            last = connection.execute(schema.last_tombstone, {"before": before}).scalar_one()
            # Tombstones die oldest first, so the last one to go is above every earlier floor.
            if last is not None:
                connection.execute(schema.drop_tombstones, {"before": before})
                connection.execute(schema.raise_floor, {"value": last})

    def glance(self) -> Revision | None:
        return None if self._ended is not None else self._database.glance()

    def close(self) -> None:
        with self._lock:
            if self._ended is None:
                self._ended = "the store is closed"
            self._database.close()
            with suppress(DBAPIError):
                self._connection.close()
                self._connection.engine.dispose()

    @contextmanager
    def _guarded(self) -> Iterator[Connection]:
        """Lend the connection to one thread at a time, and end for good at the first failure."""
        with self._lock:
            if self._ended is not None:
                raise StoreFailed(self._ended)
            try:
                yield self._connection
            except DBAPIError as error:
                if self._database.is_busy(error):
                    raise Unavailable("the store is busy; try again") from error
                self._ended = f"the store failed: {self._database.explain(error)}"
                raise StoreFailed(self._ended) from error
            except StoreFailed as error:
                self._ended = error.message
                raise

    @contextmanager
    def _transaction(self, connection: Connection) -> Iterator[None]:
        connection.exec_driver_sql(self._database.begin)
        try:
            yield
            connection.exec_driver_sql("COMMIT")
        except BaseException:
            # Also after a failure: the lock must not stay with a broker that has stopped.
            with suppress(DBAPIError):
                connection.exec_driver_sql("ROLLBACK")
            raise

    def _current(
        self, connection: Connection, change_sets: Sequence[ChangeSet]
    ) -> dict[Key, Revision]:
        wanted: defaultdict[str, set[str]] = defaultdict(set)
        for change_set in change_sets:
            for change in change_set:
                kind, id = change.key
                wanted[kind].add(id)
        found: dict[Key, Revision] = {}
        for kind, ids in wanted.items():
            listed = list(ids)
            for start in range(0, len(listed), _IDS_PER_QUERY):
                some = listed[start : start + _IDS_PER_QUERY]
                rows = connection.execute(self._schema.current, {"kind": kind, "ids": some})
                found.update({(kind, id): revision for id, revision in rows})
        return found

    def _read(self, rows: Iterable[Sequence[Any]]) -> list[Stored | Tombstone]:
        """Decode the records of rows that begin with the counter."""
        decode = self._codec.decode
        read = [
            decode(kind, id, revision, body)
            for _, _, kind, id, revision, body in rows
            if kind is not None
        ]
        return [item for item in read if item is not None]


def supported(url: str) -> URL:
    """Return the URL of a store that there is a driver for. Raises `SetupFailed`."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise SetupFailed("the store's URL can't be read") from error
    if parsed.drivername not in {"sqlite", "sqlite+pysqlite"}:
        kind = parsed.drivername
        raise SetupFailed(f"a store of this kind is not supported: {kind}; sqlite:///FILE is")
    return parsed


def _parameters(rows: dict[Key, Row]) -> list[dict[str, object]]:
    return [
        {"kind": kind, "id": id, "revision": row.revision, "body": row.body}
        for (kind, id), row in rows.items()
    ]
