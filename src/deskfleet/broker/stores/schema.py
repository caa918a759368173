"""The two tables of a SQL store, and every statement on them.

Owns names, columns and the schema's version. `records` holds one row for each record, dead or
alive; `counter` holds one row in all: the revision, the floor below which tombstones have been
dropped, and the version of this schema.

Laws: a statement that reads takes its revision from the same snapshot as its rows, by being one
statement, so that it needs no transaction on any database. Nothing here is particular to one
database but `upsert`. A change to the tables raises `VERSION` and keeps older brokers working.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Delete,
    Integer,
    LargeBinary,
    MetaData,
    Select,
    String,
    Table,
    Update,
    and_,
    bindparam,
    delete,
    func,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import Insert, insert

VERSION = 1


class Schema:
    """Tables and statements; compiled once by SQLAlchemy, which knows them by their identity."""

    def __init__(self) -> None:
        self.metadata = MetaData()
        self.records = Table(
            "records",
            self.metadata,
            Column("kind", String(32), primary_key=True),
            Column("id", String(255), primary_key=True),
            Column("revision", BigInteger, nullable=False, index=True),
            Column("body", LargeBinary, nullable=True),
        )
        self.counter = Table(
            "counter",
            self.metadata,
            Column("id", Integer, primary_key=True, autoincrement=False),
            Column("revision", BigInteger, nullable=False),
            Column("floor", BigInteger, nullable=False),
            Column("schema_version", Integer, nullable=False),
        )
        self.version = select(self.counter.c.schema_version).where(self.counter.c.id == 1)
        # The row lock orders the commits of several brokers; SQLite has none, and needs none.
        self.lock_counter = (
            select(self.counter.c.revision).where(self.counter.c.id == 1).with_for_update()
        )
        self.load = self._snapshot(since=False)
        self.changes = self._snapshot(since=True)
        self.current = self._current()
        self.upsert = self._upsert()
        self.advance = self._advance("revision")
        self.last_tombstone = self._last_tombstone()
        self.drop_tombstones = self._drop_tombstones()
        self.raise_floor = self._advance("floor")

    def _snapshot(self, *, since: bool) -> Select[int, int, str, str, int, bytes]:
        """Build the statement whose every row begins with the counter.

        One row always comes, so that the counter does; its record is NULL where there is none.
        """
        records, counter = self.records.c, self.counter.c
        wanted = records.revision > bindparam("since") if since else records.body.is_not(None)
        return (
            select(
                counter.revision,
                counter.floor,
                records.kind,
                records.id,
                records.revision,
                records.body,
            )
            .select_from(self.counter.outerjoin(self.records, wanted))
            .where(counter.id == 1)
            .order_by(records.revision)
        )

    def _current(self) -> Select[str, int]:
        records = self.records.c
        return select(records.id, records.revision).where(
            records.kind == bindparam("kind"),
            records.id.in_(bindparam("ids", expanding=True)),
            records.body.is_not(None),
        )

    def _upsert(self) -> Insert:
        statement = insert(self.records)
        return statement.on_conflict_do_update(
            index_elements=[self.records.c.kind, self.records.c.id],
            set_={
                "revision": statement.excluded.revision,
                "body": statement.excluded.body,
            },
        )

    def _advance(self, column: str) -> Update:
        return (
            update(self.counter)
            .where(self.counter.c.id == 1)
            .values({column: bindparam("value", type_=BigInteger)})
        )

    def _last_tombstone(self) -> Select[int | None]:
        records = self.records.c
        return select(func.max(records.revision)).where(
            and_(records.body.is_(None), records.revision < bindparam("before"))
        )

    def _drop_tombstones(self) -> Delete:
        records = self.records.c
        return delete(self.records).where(
            records.body.is_(None), records.revision < bindparam("before")
        )
