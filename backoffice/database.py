"""One thin adapter over the database: transactions, rows, migrations. Domain code writes plain SQL with ``?``.

The SQL of this package runs on SQLite and PostgreSQL alike; what differs between engines (pragmas,
triggers, column types) stays in this file. After an error a transaction can only be rolled back.
"""

from __future__ import annotations

import os
import random
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from importlib import resources
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self, TypeVar
from weakref import WeakSet

from cardlib.errors import CheckFailed, ConfigError, Conflict, DatabaseError, NotFound, OneCardError

T = TypeVar("T")
Cell = Any
"""What a column holds: int, str, bytes or None; the query says which."""
DatabaseRole = Literal["platform", "enterprise"]
BUSY_MS = 10_000
PLATFORM = 0
"""The ``enterprise_id`` of what belongs to the platform itself (its operators, audit log, jobs)."""

_MIGRATION = re.compile(r"(\d{4})_(all|platform|enterprise)_\w+\.sql")
_APPEND_ONLY = re.compile(r"^-- append only: (\w+)(?: sealed by ([\w, ]+))?$", re.MULTILINE)
_PRAGMAS: dict[str, int | str] = {
    "journal_mode": "wal",
    "synchronous": 2,
    "foreign_keys": 1,
    "recursive_triggers": 1,
    "trusted_schema": 0,
}
_UNIQUE = (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY)
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_CAUSES = {
    sqlite3.SQLITE_BUSY: "the database is busy: another command holds it; try again",
    sqlite3.SQLITE_LOCKED: "the database is busy: another command holds it; try again",
    sqlite3.SQLITE_FULL: "the disk is full: nothing was changed; make room and try again",
    sqlite3.SQLITE_IOERR: "the disk failed to read or write: check it, then run `onecard db verify`",
    sqlite3.SQLITE_READONLY: "the database is read-only: check the file's and folder's permissions",
    sqlite3.SQLITE_CANTOPEN: "the database can't be opened: check the path and its permissions",
    sqlite3.SQLITE_NOTADB: "the file is not a database",
    sqlite3.SQLITE_CORRUPT: "the database file is damaged: restore the last backup",
}


class Row(Protocol):
    """A row: by position, by name, unpackable."""

    def __getitem__(self, key: int | str, /) -> Cell: ...
    def __iter__(self) -> Iterator[Cell]: ...
    def __len__(self) -> int: ...
    def keys(self) -> list[str]: ...


class Result(Protocol):
    """What a statement gave: rows to iterate, or the number of rows it changed."""

    @property
    def rowcount(self) -> int: ...
    def __iter__(self) -> Iterator[Cell]: ...
    def fetchone(self) -> Cell: ...
    def fetchall(self) -> list[Cell]: ...


class Migration(NamedTuple):
    """A numbered change of the schema."""

    number: int
    name: str
    sql: str

    @property
    def digest(self) -> str:
        """SHA-256 of its text: an applied migration never changes."""
        return sha256(self.sql.encode()).hexdigest()


class Tx:
    """One transaction. Any error in it spoils it: what follows raises, and it is rolled back."""

    __slots__ = ("_connection", "_failed", "_new_id", "now_ms")

    def __init__(self, connection: sqlite3.Connection, now_ms: int, new_id: Callable[[int], str]) -> None:
        self._connection = connection
        self._failed = False
        self._new_id = new_id
        self.now_ms = now_ms

    def execute(self, sql: str, params: Sequence[Cell] = ()) -> Result:
        """Run one statement. Raises Conflict on a unique or foreign key, DatabaseError on anything else."""
        self.check()
        try:
            return self._connection.execute(sql, params)
        except sqlite3.Error as error:
            self._failed = True
            raise translate(error) from error

    def executemany(self, sql: str, rows: Iterable[Sequence[Cell]]) -> int:
        """Run one statement for each of ``rows``; returns the rows changed. Raises as :meth:`execute`."""
        self.check()
        try:
            return self._connection.executemany(sql, rows).rowcount
        except sqlite3.Error as error:
            self._failed = True
            raise translate(error) from error

    def all(self, sql: str, params: Sequence[Cell] = ()) -> list[Row]:
        """All rows of a query."""
        return self.execute(sql, params).fetchall()

    def one(self, sql: str, params: Sequence[Cell] = ()) -> Row | None:
        """The first row of a query, or None."""
        row: Row | None = self.execute(sql, params).fetchone()
        return row

    def value(self, sql: str, params: Sequence[Cell] = ()) -> Cell:
        """The first column of the first row of a query, or None."""
        row = self.one(sql, params)
        return None if row is None else row[0]

    def new_id(self) -> str:
        """A fresh id of 27 characters that sorts by time and, within one process, by call."""
        return self._new_id(self.now_ms)

    def check(self) -> None:
        """Raise DatabaseError when this transaction is over or spoilt."""
        if self._failed or not self._connection.in_transaction:
            raise DatabaseError("this transaction failed before: nothing of it is kept")


def translate(error: sqlite3.Error) -> OneCardError:
    """The project's error for an engine's: by code, never by text. Values of rows never show in it."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        raise error
    if code in _UNIQUE:
        return Conflict(f"the database has that already, or lacks what it refers to ({error})")
    if isinstance(error, sqlite3.IntegrityError):
        return DatabaseError(f"the schema refuses this ({error})")
    cause = _CAUSES.get(code & 0xFF)
    if cause is None:
        raise error
    return DatabaseError(cause)


class _Open:
    """A thread's connection: closed when the thread ends."""

    __slots__ = ("__weakref__", "connection")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def __del__(self) -> None:
        self.connection.close()


class Database:
    """A database of one role. Connections are per thread and stay open; do not carry one over a fork.

    ``migrate`` makes a missing file and brings an older schema up to date. Raises NotFound when the
    file is missing, DatabaseError when it is no database, another role's, or another version's.
    """

    def __init__(
        self,
        path: Path | str,
        role: DatabaseRole,
        *,
        migrate: bool = False,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
        busy_ms: int = BUSY_MS,
    ) -> None:
        self.path, self.role = Path(path), role
        self.now_ms, self.random_bytes = now_ms, random_bytes
        self._busy_ms = busy_ms
        self._count = count()
        self._local = threading.local()
        self._lock = threading.Lock()
        self._connections: WeakSet[_Open] = WeakSet()
        if not self.path.exists():
            if not migrate:
                raise NotFound(f"no database at {self.path}: run `onecard init`")
            try:
                os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o600))
            except OSError as error:
                raise DatabaseError(f"{self.path} can't be made: {error.strerror}") from error
        try:
            self._bring_up(migrate)
        except DatabaseError as error:
            self.close()
            raise DatabaseError(f"{self.path}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections of all threads; a later use opens new ones."""
        with self._lock:
            for opened in list(self._connections):
                opened.connection.close()
            self._connections.clear()
            self._local = threading.local()

    @contextmanager
    def read(self) -> Iterator[Tx]:
        """A consistent view that can't change anything."""
        connection = self._idle_connection()
        connection.execute("PRAGMA query_only=ON")
        try:
            with self._transaction(connection, "BEGIN") as tx:
                yield tx
        finally:
            connection.execute("PRAGMA query_only=OFF")

    @contextmanager
    def write(self) -> Iterator[Tx]:
        """A transaction that holds the write lock from its start; committed and on disk when the block ends.

        Raises DatabaseError when the lock is not had within the time allowed, or the disk is full.
        """
        with self._transaction(self._idle_connection(), "BEGIN IMMEDIATE") as tx:
            yield tx

    def version(self) -> int:
        """The number of the last migration applied."""
        with self.read() as tx:
            return int(tx.value("SELECT MAX(number) FROM schema_migration"))

    def verify(self) -> None:
        """Check the file's structure, schema, guards and foreign keys. Raises CheckFailed naming what is wrong."""
        with self.read() as tx:
            faults = [str(row[0]) for row in tx.all("PRAGMA integrity_check") if row[0] != "ok"]
            faults += [f"{row[0]}: row refers to a missing {row[2]}" for row in tx.all("PRAGMA foreign_key_check")]
            found, wanted = _objects(tx), _fresh_objects(self.role)
            faults += [f"{kind} {name} is missing or was changed" for kind, name, _ in sorted(wanted - found)]
        if faults:
            raise CheckFailed(f"{self.path}: {len(faults)} faults: " + "; ".join(faults[:10]))

    def backup(self, target: Path) -> None:
        """Write a consistent copy to a new file while others go on working.

        Raises Conflict if the file exists, ConfigError when it can't be made, DatabaseError; then there is no copy.
        """
        try:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError as error:
            raise Conflict(f"{target} exists: give a new name") from error
        except OSError as error:
            raise ConfigError(f"{target} can't be made: {error.strerror}") from error
        copy = sqlite3.connect(target)
        try:
            self._connection().backup(copy)
        except sqlite3.Error as error:
            target.unlink()
            raise translate(error) from error
        finally:
            copy.close()

    @contextmanager
    def _transaction(self, connection: sqlite3.Connection, begin: str) -> Iterator[Tx]:
        self._retry(lambda: connection.execute(begin))
        tx = Tx(connection, self.now_ms(), self._new_id)
        try:
            yield tx
            tx.check()
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise translate(error) from error
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def _retry(self, action: Callable[[], T]) -> T:
        """Do what takes a lock, again with jitter while another holds it, until the time allowed is over."""
        deadline = time.monotonic() + self._busy_ms / 1000
        while True:
            try:
                return action()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in _BUSY or time.monotonic() >= deadline:
                    raise translate(error) from error
                time.sleep(random.uniform(0.0005, 0.01))

    def _new_id(self, now_ms: int) -> str:
        return f"{now_ms:011x}{next(self._count) & 0xFFFF:04x}{self.random_bytes(6).hex()}"

    def _idle_connection(self) -> sqlite3.Connection:
        connection = self._connection()
        if connection.in_transaction:
            raise RuntimeError("transactions do not nest: pass the Tx on")
        return connection

    def _connection(self) -> sqlite3.Connection:
        opened: _Open | None = getattr(self._local, "opened", None)
        if opened is None:
            try:
                opened = self._retry(self._connect)
            except sqlite3.Error as error:
                raise translate(error) from error
            self._local.opened = opened
        return opened.connection

    def _connect(self) -> _Open:
        uri = f"{self.path.absolute().as_uri()}?mode=rw"
        connection = sqlite3.connect(uri, uri=True, timeout=0.2, isolation_level=None, check_same_thread=False)
        try:
            _prepare(connection, _PRAGMAS)
        except BaseException:
            connection.close()
            raise
        opened = _Open(connection)
        with self._lock:
            self._connections.add(opened)
        return opened

    def _bring_up(self, migrate: bool) -> None:
        with self.read() as tx:
            applied = _applied(tx, self.role)
        known = migrations(self.role)
        if len(applied) > len(known):
            raise DatabaseError(f"made by a newer version ({applied[-1][0]} > {known[-1].number}): update the program")
        for (number, digest), migration in zip(applied, known, strict=False):
            if (number, digest) != (migration.number, migration.digest):
                raise DatabaseError(f"migration {number} differs from this program's {migration.name}")
        if len(applied) < len(known):
            if not migrate:
                raise DatabaseError("made by an older version: run `onecard db migrate`")
            self._migrate()

    def _migrate(self) -> None:
        """Apply what is missing in one transaction; a second process that waited finds it done."""
        with self.write() as tx:
            tx.execute(
                "CREATE TABLE IF NOT EXISTS schema_migration"
                " (role TEXT NOT NULL, number INTEGER NOT NULL, digest TEXT NOT NULL, applied_ms INTEGER NOT NULL)"
            )
            done = {number for number, _ in _applied(tx, self.role)}
            for migration in migrations(self.role):
                if migration.number not in done:
                    _apply(tx, migration)
                    row = (self.role, migration.number, migration.digest, tx.now_ms)
                    tx.execute("INSERT INTO schema_migration VALUES (?, ?, ?, ?)", row)


def _prepare(connection: sqlite3.Connection, pragmas: dict[str, int | str]) -> None:
    """Set the pragmas and read them back: some file systems quietly keep another journal mode."""
    connection.row_factory = sqlite3.Row
    for name, wanted in pragmas.items():
        connection.execute(f"PRAGMA {name}={wanted}")
        got = connection.execute(f"PRAGMA {name}").fetchone()[0]
        if got != wanted:
            raise DatabaseError(f"{name} is {got}, not {wanted}: keep the database on a local disk")


def migrations(role: DatabaseRole) -> list[Migration]:
    """The migrations of a role, in order; ``all`` in a file's name means both roles."""
    found = []
    for file in resources.files("backoffice").joinpath("migrations").iterdir():
        match = _MIGRATION.fullmatch(file.name)
        if match and match[2] in ("all", role):
            found.append(Migration(int(match[1]), file.name, file.read_text("utf-8")))
    return sorted(found)


def _applied(tx: Tx, role: DatabaseRole) -> list[tuple[int, str]]:
    tables = {row[0] for row in tx.all("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "schema_migration" not in tables:
        if tables:
            raise DatabaseError("not a database of this program")
        return []
    rows = tx.all("SELECT role, number, digest FROM schema_migration ORDER BY number")
    if any(row["role"] != role for row in rows):
        raise DatabaseError(f"the {rows[0]['role']} database, not the {role} one")
    return [(row["number"], row["digest"]) for row in rows]


def _objects(tx: Tx) -> set[tuple[str, str, str]]:
    """Kind, name and text of every table, index and trigger but the engine's own."""
    rows = tx.all("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name <> 'schema_migration'")
    return {(row[0], row[1], row[2]) for row in rows}


def _fresh_objects(role: DatabaseRole) -> set[tuple[str, str, str]]:
    """What the migrations of a role make, from an empty database in memory."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        _prepare(connection, {})
        connection.execute("BEGIN")
        tx = Tx(connection, 0, str)
        for migration in migrations(role):
            _apply(tx, migration)
        return _objects(tx)
    finally:
        connection.close()


def _apply(tx: Tx, migration: Migration) -> None:
    """Run a migration in SQLite's words: strict tables, so that a text never stands where money should."""
    for statement in re.sub(r"--.*", "", migration.sql).split(";"):
        text = statement.strip().replace("BIGINT", "INTEGER")
        if text:
            tx.execute(f"{text} STRICT" if text.startswith("CREATE TABLE") else text)
    for table, seal in _APPEND_ONLY.findall(migration.sql):
        _guard(tx, table, [name.strip() for name in seal.split(",") if name.strip()])


def _guard(tx: Tx, table: str, seal: list[str]) -> None:
    """Make a table append-only; the columns in ``seal`` may be filled in, once."""
    columns = [row["name"] for row in tx.all(f"PRAGMA table_info({table})") if row["name"] not in seal]
    stop = f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
    tx.execute(f"CREATE TRIGGER {table}_delete BEFORE DELETE ON {table} {stop}")
    tx.execute(f"CREATE TRIGGER {table}_update BEFORE UPDATE OF {', '.join(columns)} ON {table} {stop}")
    if seal:
        once = f"WHEN OLD.{seal[0]} IS NOT NULL"
        tx.execute(f"CREATE TRIGGER {table}_seal BEFORE UPDATE OF {', '.join(seal)} ON {table} {once} {stop}")
