"""What is particular to SQLite in a SQL store.

Owns the connection's settings, how a write begins, which errors are mere waiting, when the
write-ahead log is folded back into the file, and a second connection that looks at the counter
beside the first one's work: a reader in WAL mode waits for nobody.

Laws: WAL, so that readers and the writer don't wait for each other; synchronous=FULL, so that a
commit is on the disk when it returns. The log is folded back by an explicit checkpoint: in an
automatic one SQLite swallows the errors of the disk. A file that is damaged, newer than this
program, or not a store at all is refused at the start; one that was removed or replaced under way
ends the store at the next commit, which would be gone at the next start.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from sqlalchemy import Connection, create_engine, insert, inspect
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from deskfleet.broker.stores import local_file
from deskfleet.broker.stores.schema import VERSION, Schema
from deskfleet.broker.stores.settlement import Row
from deskfleet.core.change import ABSENT
from deskfleet.core.records import Revision
from deskfleet.errors import SetupFailed, StoreFailed
from deskfleet.machine.mounts import mounted_here

_PAGE_BYTES = 4096
_PAGES_PER_ROW = 3
"""Its leaf in the table, in the primary key and in the index on revisions."""
_CHECKPOINT_PAGES = 4000
"""16 MB of log: some ten milliseconds of work, and a quick recovery after a crash."""
_GLANCE = "SELECT revision FROM counter WHERE id = 1"
_PRIMARY_CODE = 0xFF
"""SQLite's extended error codes carry the primary one in their low byte."""


class Sqlite:
    begin = "BEGIN IMMEDIATE"
    """Take the write lock before reading what the preconditions name. A deferred transaction
    would read first, and fail at its first write if another broker had written in between."""

    def __init__(self, url: URL, schema: Schema, busy_timeout: float) -> None:
        if not url.database or url.database == ":memory:" or url.query:
            raise SetupFailed("the SQLite store needs a plain file: sqlite:////path/to/store.db")
        self._path = Path(url.database).absolute()
        self._log_path = self._path.with_name(f"{self._path.name}-wal")
        self._schema = schema
        self._busy_timeout = busy_timeout
        self._log_pages = 0
        self._glancing: sqlite3.Connection | None = None
        self._files: tuple[tuple[int, int] | None, ...] = ()

    def open(self) -> Connection:
        """Open the file, or make it on first use. Raises `SetupFailed` where it can't serve."""
        try:
            local_file.check_folder(self._path, mounted_here())
            if not self._path.exists():
                local_file.create_whole(self._path, self._build)
            local_file.check_modes(self._path)
            with ExitStack() as opened:
                connection = opened.enter_context(self._connect(self._path))
                self._check(connection)
                # SQLite ignores errors when it makes the name of its log durable.
                local_file.sync_folder(self._path.parent)
                self._glancing = sqlite3.connect(
                    self._path, timeout=0, isolation_level=None, check_same_thread=False
                )
                opened.pop_all()
            self._files = self._identities()
        except OSError as error:
            raise SetupFailed(f"the store can't be opened: {self._path}: {error}") from error
        except DBAPIError as error:
            reason = self.explain(error)
            raise SetupFailed(f"the store can't be opened: {self._path}: {reason}") from error
        return connection

    def glance(self) -> Revision | None:
        """Return the revision of the last commit, in three microseconds: not by SQLAlchemy."""
        if self._glancing is None:
            return None
        try:
            row = self._glancing.execute(_GLANCE).fetchone()
        except sqlite3.Error:
            # Its reason is for the first connection to find, which ends the store.
            return None
        revision: Revision | None = row and row[0]
        return revision

    def close(self) -> None:
        if self._glancing is not None:
            self._glancing.close()
            self._glancing = None

    def is_busy(self, error: DBAPIError) -> bool:
        """Tell waiting in vain for another broker from a failure."""
        code = getattr(error.orig, "sqlite_errorcode", None)
        return isinstance(code, int) and code & _PRIMARY_CODE == sqlite3.SQLITE_BUSY

    def explain(self, error: DBAPIError) -> str:
        """Say what SQLite says, with its code's name, which tells I/O errors apart."""
        name = getattr(error.orig, "sqlite_errorname", None)
        return f"{error.orig} ({name})" if name else str(error.orig)

    def wrote(self, rows: Iterable[Row]) -> None:
        """Keep count of the log, in pages, rather too many than too few.

        Raises `StoreFailed` where what was written is not what will be found at the next start.
        """
        if self._identities() != self._files:
            raise StoreFailed(f"the store failed: {self._path} was removed or replaced")
        self._log_pages += _PAGES_PER_ROW + sum(
            _PAGES_PER_ROW + len(row.body or b"") // _PAGE_BYTES for row in rows
        )

    def _identities(self) -> tuple[tuple[int, int] | None, ...]:
        """Tell the files apart that lie where the store and its log should; costs microseconds."""
        found: list[tuple[int, int] | None] = []
        for path in (self._path, self._log_path):
            identity = None
            with suppress(OSError):
                there = path.stat()
                identity = there.st_dev, there.st_ino
            found.append(identity)
        return tuple(found)

    def tidy(self, connection: Connection) -> None:
        """Fold the log back once it is long. Called outside of a transaction."""
        if self._log_pages >= _CHECKPOINT_PAGES:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)").all()
            self._log_pages = 0

    def _connect(self, path: Path) -> Connection:
        engine = create_engine(
            URL.create("sqlite", database=str(path)),
            poolclass=NullPool,
            # Errors reach logs; bodies must not.
            hide_parameters=True,
            # The store sees to it that one thread at a time is inside.
            connect_args={"check_same_thread": False, "timeout": self._busy_timeout},
        )
        with ExitStack() as opened:
            # SQLAlchemy begins nothing by itself: reads are single statements, writes say `begin`.
            connection = opened.enter_context(engine.connect())
            connection.execution_options(isolation_level="AUTOCOMMIT")
            mode = connection.exec_driver_sql("PRAGMA journal_mode=WAL").scalar_one()
            if mode != "wal":
                raise SetupFailed(f"{path} can't use a write-ahead log (journal mode {mode})")
            connection.exec_driver_sql("PRAGMA synchronous=FULL")
            connection.exec_driver_sql("PRAGMA wal_autocheckpoint=0")
            opened.pop_all()
        return connection

    def _build(self, path: Path) -> None:
        with self._connect(path) as connection:
            connection.exec_driver_sql(self.begin)
            self._schema.metadata.create_all(connection)
            connection.execute(
                insert(self._schema.counter),
                {"id": 1, "revision": ABSENT + 1, "floor": 0, "schema_version": VERSION},
            )
            connection.exec_driver_sql("COMMIT")
            # The log doesn't go along when the file gets its name, and closing hides errors.
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").all()

    def _check(self, connection: Connection) -> None:
        """Refuse what is not a store, is newer than this program, or is damaged."""
        if not {"counter", "records"} <= set(inspect(connection).get_table_names()):
            raise SetupFailed(f"{self._path} is not a store of deskfleet")
        version = connection.execute(self._schema.version).scalar_one_or_none()
        if version is not None and version > VERSION:
            raise SetupFailed(
                f"{self._path} was written by a newer deskfleet (schema {version}, this program"
                f" knows {VERSION}); install that version"
            )
        damage = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
        if version is None or damage != "ok":
            raise SetupFailed(f"{self._path} is damaged ({damage}); restore it from a backup")
