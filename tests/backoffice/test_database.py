"""The database adapter: nothing lost, nothing half done, clear errors; and the rules the schema itself keeps."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backoffice.database import Database, DatabaseRole, migrations
from cardlib.errors import CheckFailed, ConfigError, Conflict, DatabaseError, NotFound

ADD = "INSERT INTO setting (enterprise_id, name, value, changed_ms) VALUES (?, ?, ?, 0)"
COUNT = "SELECT COUNT(*) FROM setting"


def bump(database: Database, times: int) -> None:
    """Read, add one, write back: loses updates unless the write lock is held from the start."""
    for _ in range(times):
        with database.write() as tx:
            value = int(tx.value("SELECT value FROM setting WHERE enterprise_id = 1 AND name = 'n'"))
            tx.execute("UPDATE setting SET value = ? WHERE enterprise_id = 1 AND name = 'n'", (str(value + 1),))


def bump_in_process(path: str, times: int) -> None:
    with Database(path, "enterprise") as database:
        bump(database, times)


def start_counter(db: Database) -> None:
    with db.write() as tx:
        tx.execute(ADD, (1, "n", "0"))


def counter(db: Database) -> int:
    with db.read() as tx:
        return int(tx.value("SELECT value FROM setting WHERE enterprise_id = 1 AND name = 'n'"))


def test_commit_and_roll_back(db: Database) -> None:
    """A block that ends is kept whole; one that raises leaves nothing."""
    with db.write() as tx:
        tx.execute(ADD, (1, "a", "x"))
    with pytest.raises(ZeroDivisionError), db.write() as tx:
        tx.execute(ADD, (1, "b", str(1 // int(tx.value(COUNT) - 1))))
    with db.read() as tx:
        assert [row["name"] for row in tx.all("SELECT name FROM setting")] == ["a"]


def test_two_administrators_in_threads(db: Database) -> None:
    """Read-modify-write by four threads at once loses no update."""
    start_counter(db)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: bump(db, 25), range(4)))
    assert counter(db) == 100


def test_two_administrators_in_processes(db: Database) -> None:
    """Read-modify-write by two processes at once loses no update."""
    start_counter(db)
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=bump_in_process, args=(str(db.path), 40)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert counter(db) == 80


def test_first_use_by_many_at_once(tmp_path: Path) -> None:
    """Several commands that make the same database at once end with one schema."""
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: Database(tmp_path / "x.db", "enterprise", migrate=True), range(4)))
    with made[0].read() as tx:
        assert tx.value("SELECT COUNT(*) FROM schema_migration") == len(migrations("enterprise"))
    for database in made:
        database.close()


def test_reader_sees_one_state(db: Database) -> None:
    """A read transaction doesn't see what others commit meanwhile, and waits for nobody."""
    with db.read() as tx:
        assert tx.value(COUNT) == 0
        writer = threading.Thread(target=start_counter, args=(db,))
        writer.start()
        writer.join(30)
        assert tx.value(COUNT) == 0
    with db.read() as tx:
        assert tx.value(COUNT) == 1


def test_busy_is_a_clear_error_within_the_time_allowed(db: Database) -> None:
    """Who can't get the write lock in time hears that the database is busy."""
    other = Database(db.path, "enterprise", busy_ms=50)
    with other, db.write(), pytest.raises(DatabaseError, match="busy"), other.write():
        pass


def test_reading_changes_nothing(db: Database) -> None:
    """A statement that writes is refused inside ``read``, and writing works again afterwards."""
    with pytest.raises(DatabaseError), db.read() as tx:
        tx.execute(ADD, (1, "a", "x"))
    start_counter(db)
    assert counter(db) == 0


def test_transactions_do_not_nest(db: Database) -> None:
    """A transaction inside another one is a bug, said at once."""
    with db.write(), pytest.raises(RuntimeError, match="nest"), db.write():
        pass


def add_twice_and_go_on(db: Database) -> None:
    with db.write() as tx:
        tx.execute(ADD, (1, "a", "x"))
        with contextlib.suppress(Conflict):
            tx.execute(ADD, (1, "a", "y"))
        tx.execute(ADD, (1, "b", "x"))


def add_many_twice_and_go_on(db: Database) -> None:
    with db.write() as tx:
        tx.execute(ADD, (1, "a", "x"))
        with contextlib.suppress(Conflict):
            tx.executemany(ADD, [(1, "c", "y"), (1, "a", "y")])


def test_swallowed_error_spoils_the_transaction(db: Database) -> None:
    """After an error nothing of the transaction is kept, even when the caller ignores it."""
    with pytest.raises(DatabaseError, match="failed before"):
        add_twice_and_go_on(db)
    with pytest.raises(DatabaseError, match="failed before"):
        add_many_twice_and_go_on(db)
    with db.read() as tx:
        assert tx.value(COUNT) == 0


def test_transaction_ends_with_its_block(db: Database) -> None:
    """A Tx kept beyond its block does nothing."""
    with db.write() as tx:
        pass
    with pytest.raises(DatabaseError):
        tx.execute(ADD, (1, "a", "x"))


def fill_disk(db: Database) -> None:
    with db.write() as tx:
        tx.execute(f"PRAGMA max_page_count={tx.value('PRAGMA page_count') + 2}")
        for number in range(1000):
            tx.execute(ADD, (2, f"n{number}", "x" * 4000))


def test_full_disk_leaves_nothing_half_done(db: Database) -> None:
    """When the file can't grow, the error says so, all of the transaction is gone, and small work goes on."""
    start_counter(db)
    with pytest.raises(DatabaseError, match="full"):
        fill_disk(db)
    with db.read() as tx:
        assert tx.value(COUNT) == 1
    bump(db, 1)
    assert counter(db) == 1
    db.verify()


WRITER = """
import sys
from backoffice.database import Database
with Database(sys.argv[1], "enterprise") as db:
    for n in range(100000):
        with db.write() as tx:
            for half in "ab":
                tx.execute("INSERT INTO setting VALUES (7, ?, 'x', 0)", (f"{n}{half}",))
        print(n, flush=True)
"""


@pytest.mark.parametrize("acknowledged", [1, 7, 23])
def test_kill_in_the_middle_of_a_write(db: Database, acknowledged: int) -> None:
    """After kill -9 every acknowledged transaction is there, and each one is there whole or not at all."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(db.path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) == acknowledged:
                os.kill(writer.pid, signal.SIGKILL)
                break
    with db.read() as tx:
        names = {row[0] for row in tx.all("SELECT name FROM setting WHERE enterprise_id = 7")}
    assert {f"{n}{half}" for n in range(acknowledged + 1) for half in "ab"} <= names
    assert {name[:-1] + "a" for name in names} == {name for name in names if name.endswith("a")}
    assert {name[:-1] + "b" for name in names} == {name for name in names if name.endswith("b")}
    db.verify()


def test_missing_file(tmp_path: Path) -> None:
    """A missing database isn't made by mistake: the error says how to make one."""
    with pytest.raises(NotFound, match="onecard init"):
        Database(tmp_path / "none.db", "enterprise")
    with pytest.raises(DatabaseError, match="can't be made"):
        Database(tmp_path / "no folder" / "none.db", "enterprise", migrate=True)


def test_private_file(db: Database) -> None:
    """Other users of the machine can't read the database."""
    assert db.path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_not_a_database(tmp_path: Path, content: bytes) -> None:
    """A file that is no database is named as such and stays as it is."""
    path = tmp_path / "x.db"
    path.write_bytes(content)
    with pytest.raises(DatabaseError, match=r"x\.db: .*(not a database|damaged)"):
        Database(path, "enterprise", migrate=True)
    assert path.read_bytes() == content


def test_damaged_file(db: Database) -> None:
    """Pages overwritten with garbage are found by verify or refused when read, never read as data."""
    with db.write() as tx:
        tx.executemany(ADD, [(1, f"n{number}", "x" * 500) for number in range(500)])
    db.close()
    with sqlite3.connect(db.path) as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    raw.close()
    content = bytearray(db.path.read_bytes())
    content[-200_000:-100_000] = os.urandom(100_000)
    db.path.write_bytes(content)
    with pytest.raises((CheckFailed, DatabaseError)), Database(db.path, "enterprise") as damaged:
        damaged.verify()


def test_strangers_database(tmp_path: Path) -> None:
    """Another program's database is not taken over."""
    with sqlite3.connect(tmp_path / "x.db") as raw:
        raw.execute("CREATE TABLE songs (title)")
    raw.close()
    with pytest.raises(DatabaseError, match="not a database of this program"):
        Database(tmp_path / "x.db", "enterprise", migrate=True)


def test_other_role(db: Database) -> None:
    """The enterprise's database isn't taken for the platform's."""
    with pytest.raises(DatabaseError, match="enterprise database"):
        Database(db.path, "platform", migrate=True)


def test_newer_version(db: Database) -> None:
    """A database that a newer version made is refused, and nothing in it is touched."""
    with db.write() as tx:
        tx.execute("INSERT INTO schema_migration VALUES ('enterprise', 9999, 'x', 0)")
    with pytest.raises(DatabaseError, match="newer version"):
        Database(db.path, "enterprise", migrate=True)


def test_older_version(tmp_path: Path) -> None:
    """A database without all migrations is refused until it is migrated on purpose."""
    path = tmp_path / "x.db"
    sqlite3.connect(path).close()
    with pytest.raises(DatabaseError, match="onecard db migrate"):
        Database(path, "enterprise")
    Database(path, "enterprise", migrate=True).close()
    with Database(path, "enterprise") as database:
        assert database.version() == migrations("enterprise")[-1].number


def test_changed_migration(db: Database) -> None:
    """A migration that was applied in another wording is refused."""
    with db.write() as tx:
        tx.execute("UPDATE schema_migration SET digest = 'other' WHERE number = 1")
    with pytest.raises(DatabaseError, match="differs"):
        Database(db.path, "enterprise", migrate=True)


def test_removed_guard_is_found(db: Database) -> None:
    """Verify notices that the trigger which keeps the audit log append-only is gone."""
    db.verify()
    with db.write() as tx:
        tx.execute("DROP TRIGGER audit_event_delete")
    with pytest.raises(CheckFailed, match="trigger audit_event_delete"):
        db.verify()


def test_backup(db: Database, tmp_path: Path) -> None:
    """A backup is a whole database of its own, and never overwrites a file."""
    start_counter(db)
    db.backup(tmp_path / "copy.db")
    with Database(tmp_path / "copy.db", "enterprise") as copy:
        copy.verify()
        assert counter(copy) == 0
    with pytest.raises(Conflict):
        db.backup(tmp_path / "copy.db")
    with pytest.raises(ConfigError):
        db.backup(tmp_path / "no folder" / "copy.db")


def test_threads_leave_no_connections(db: Database) -> None:
    """A thread's connection is closed when the thread ends; closing the database closes the rest."""
    for _ in range(5):
        thread = threading.Thread(target=db.version)
        thread.start()
        thread.join(30)
    assert len(db._connections) == 1
    db.close()
    assert len(db._connections) == 0
    assert db.version() >= 3


def test_ids_sort_by_time_and_call(db: Database) -> None:
    """Ids made later sort later and never repeat."""
    with db.write() as tx:
        ids = [tx.new_id() for _ in range(1000)]
    assert ids == sorted(set(ids))
    assert {len(one) for one in ids} == {27}


def test_unique_keys_begin_with_the_enterprise(db: Database) -> None:
    """Every unique key of the enterprise schema begins with enterprise_id, so that a shard can hold it."""
    keys = 0
    with db.read() as tx:
        for table in [row[0] for row in tx.all("SELECT name FROM sqlite_master WHERE type = 'table'")]:
            for index in tx.all(f"PRAGMA index_list({table})"):
                if index["unique"]:
                    first = tx.one(f"PRAGMA index_info({index['name']})")
                    assert first is not None
                    assert first["name"] == "enterprise_id", f"{table}: {index['name']}"
                    keys += 1
            rowid = [row for row in tx.all(f"PRAGMA table_info({table})") if row["pk"] and row["type"] == "INTEGER"]
            assert not rowid or rowid[0]["name"] == "enterprise_id", table
    assert keys >= 15


@pytest.mark.parametrize("role", ["platform", "enterprise"])
def test_money_and_time_are_checked_integers(role: DatabaseRole) -> None:
    """Every *_fen column is BIGINT with a CHECK, every *_ms column BIGINT, and each table states its types."""
    for migration in migrations(role):
        for line in migration.sql.splitlines():
            column = re.match(r"\s+(\w+_(?:fen|ms)) (.*)", line)
            if column:
                assert column[2].startswith("BIGINT"), f"{migration.name}: {line}"
                assert column[1].endswith("_ms") or "CHECK" in column[2], f"{migration.name}: {line}"


def test_text_is_no_number(db: Database) -> None:
    """The schema refuses a text where a number belongs, which plain SQLite would keep."""
    with pytest.raises(DatabaseError, match="schema refuses"), db.write() as tx:
        tx.execute("INSERT INTO setting VALUES (1, 'a', 'x', 'yesterday')")


@pytest.mark.parametrize(
    "table", ["audit_event", "request", "outbox_event", "card_transition", "journal_entry", "punch"]
)
@pytest.mark.parametrize(
    "change",
    [
        "UPDATE {0} SET enterprise_id = 2",
        "DELETE FROM {0}",
        "REPLACE INTO {0} SELECT * FROM {0}",
    ],
)
def test_append_only(db: Database, table: str, change: str) -> None:
    """Rows of append-only tables can't be changed, deleted or replaced."""
    with db.write() as tx:
        if table == "card_transition":
            tx.execute("INSERT INTO member VALUES (1, '1', 'n', NULL, '', 0, '', '', 'active', 0, 0)")
            card = "INSERT INTO card_application VALUES (1, ?, '1', 1, 'slot', 1, 1, ?, ?, NULL, NULL, 0, 0)"
            tx.execute(card, (bytes(8), "2026-01-01", "2030-01-01"))
        rows = {
            "audit_event": "(1, 'x', 0, 'e', 'a', 's:1', '{}', 1, x'00')",
            "request": "(1, 'r', 'c', x'00', '{}', 0)",
            "outbox_event": "(1, 'x', 't', '{}', 0)",
            "card_transition": "(1, 'x', zeroblob(8), 'a', 'b', 'c', 'd', NULL, 0)",
            "journal_entry": "(1, zeroblob(6), 1, x'00', zeroblob(32), 0)",
            "punch": "(1, 'pin:1', '2026-11-02 08:59:00', 'adms:X', 0, 1, 0, '', 0, 0)",
        }
        tx.execute(f"INSERT INTO {table} VALUES {rows[table]}")
    with pytest.raises(DatabaseError, match="append-only"), db.write() as tx:
        tx.execute(change.format(table))
