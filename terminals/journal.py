"""A terminal's write-ahead journal: one SQLite file, append-only, hash-chained, fsynced before money moves.

Two things live in it. The *chain* of ``cardlib.records`` entries is what settlement collects: nothing in it
changes, and nothing leaves it before it was acknowledged. *Jobs* are the terminal's own view: one payment, undo
or load with its one or two purse transactions (legs), so that a torn one goes on at the next tap. Both are
written in the same database transaction and can't disagree.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum, unique
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

from cardlib.errors import CheckFailed, Conflict, DatabaseError, FormatError, NotFound
from cardlib.profile import Purse
from cardlib.records import (
    Event,
    JournalEntry,
    JournalFile,
    Note,
    PassageReport,
    PunchReport,
    Report,
    Transaction,
    genesis,
    pending,
)
from terminals.policy import LastPayment, Leg, Operation
from terminals.reasons import Reason

APPLICATION_ID = 0x4F434A31  # "OCJ1"
SCHEMA_VERSION = 1
RESERVE_BYTES = 1 << 20
"""Kept free on the disk and in the file's own limit, so that what was begun can always be finished."""
START_CHECK = 100_000
"""Newest entries followed at the start; a longer journal is followed whole when it is collected, or by ``verify``."""
BUSY_MS = 5_000
_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)

_SCHEMA = """
CREATE TABLE head (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    enterprise_id INTEGER NOT NULL, terminal BLOB NOT NULL,
    first_seq INTEGER NOT NULL, first_previous BLOB NOT NULL,
    last_seq INTEGER NOT NULL, last_hash BLOB NOT NULL,
    acked_seq INTEGER NOT NULL CHECK (acked_seq <= last_seq),
    newest_money_ms INTEGER NOT NULL,
    shifts INTEGER NOT NULL, shift INTEGER,
    list_version INTEGER NOT NULL, list_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE entry (seq INTEGER PRIMARY KEY, utc_ms INTEGER NOT NULL, body BLOB NOT NULL, hash BLOB NOT NULL) STRICT;
CREATE TRIGGER entry_kept BEFORE DELETE ON entry WHEN OLD.seq > (SELECT acked_seq FROM head)
    BEGIN SELECT RAISE(ABORT, 'an entry leaves the journal only after it was collected'); END;
CREATE TRIGGER entry_fixed BEFORE UPDATE ON entry BEGIN SELECT RAISE(ABORT, 'an entry never changes'); END;
CREATE TABLE job (
    id INTEGER PRIMARY KEY, operation TEXT NOT NULL, sale TEXT NOT NULL, shift INTEGER NOT NULL, card BLOB NOT NULL,
    amount_fen INTEGER NOT NULL, utc_ms INTEGER NOT NULL, counters BLOB, undo_of INTEGER,
    state TEXT NOT NULL CHECK (state IN ('open', 'done', 'void', 'partial', 'in_doubt')), suspect INTEGER NOT NULL
) STRICT;
CREATE INDEX job_open ON job (id) WHERE state = 'open';
CREATE INDEX job_card ON job (card, utc_ms);
CREATE INDEX job_sale ON job (sale) WHERE sale <> '';
CREATE INDEX job_undo ON job (undo_of) WHERE undo_of IS NOT NULL;
CREATE TABLE leg (
    job INTEGER NOT NULL, number INTEGER NOT NULL, purse INTEGER NOT NULL, amount_fen INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('planned', 'intent', 'committed', 'not_done', 'in_doubt')),
    intent_seq INTEGER, closed_seq INTEGER, proven INTEGER NOT NULL,
    PRIMARY KEY (job, number)
) STRICT, WITHOUT ROWID;
CREATE INDEX leg_open ON leg (intent_seq) WHERE state = 'intent';
"""


class StorageFull(DatabaseError):
    """The disk took nothing more; what was being written is not there."""


@unique
class LegState(Enum):
    """How far one purse transaction of a job is."""

    PLANNED = "planned"
    INTENT = "intent"
    COMMITTED = "committed"
    NOT_DONE = "not_done"
    IN_DOUBT = "in_doubt"  # the card can't tell any more: settlement will


@unique
class JobState(Enum):
    """How a job stands; OPEN means that its card is awaited."""

    OPEN = "open"
    DONE = "done"
    VOID = "void"  # no money moved
    PARTIAL = "partial"  # the first leg stands, the second was given up
    IN_DOUBT = "in_doubt"


_AFTER = {
    Event.INTENT: (LegState.INTENT, "intent_seq"),
    Event.COMMITTED: (LegState.COMMITTED, "closed_seq"),
    Event.NOT_DONE: (LegState.NOT_DONE, "closed_seq"),
}


@dataclass(frozen=True, slots=True)
class JobLeg:
    """One purse transaction of a job; ``proven`` when MAC2 or the host said so."""

    number: int
    purse: Purse
    amount_fen: int
    state: LegState
    intent_seq: int | None
    closed_seq: int | None
    proven: bool


@dataclass(frozen=True, slots=True)
class Job:
    """One payment, undo or load. ``counters`` is the card's record 0017/01 before it; ``undo_of`` a job's id."""

    id: int
    operation: Operation
    sale: str
    shift: int
    card_serial: bytes
    amount_fen: int
    utc_ms: int
    counters: bytes | None
    undo_of: int | None
    state: JobState
    suspect: bool
    legs: tuple[JobLeg, ...]

    @property
    def committed(self) -> tuple[JobLeg, ...]:
        """Legs that are certain: always the first ones, as each waits for the one before."""
        return tuple(leg for leg in self.legs if leg.state is LegState.COMMITTED)

    @property
    def waiting(self) -> bool:
        """Whether money may be under way: its card must come back. All moved and only counters left is not."""
        begun = any(leg.state in {LegState.INTENT, LegState.COMMITTED} for leg in self.legs)
        return self.state is JobState.OPEN and begun and len(self.committed) < len(self.legs)

    @property
    def committed_fen(self) -> int:
        """Money that has moved for certain."""
        return sum(leg.amount_fen for leg in self.committed)


class Standing(NamedTuple):
    """Open shift; the newest of money moves and signed lists ever seen; time of the first entry nobody collected."""

    shift: int | None
    clock_floor_ms: int
    oldest_uncollected_ms: int | None


class Journal:
    """The journal file of one terminal; one process has it open. Raises CheckFailed when it was damaged or edited.

    ``free_bytes`` tells how much room the disk has (tests fill it). Also Conflict when another process has it
    open or it belongs to another terminal, DatabaseError when the disk fails.
    """

    def __init__(
        self,
        path: Path,
        enterprise_id: int,
        terminal: bytes,
        sam_serial: bytes,
        now_ms: Callable[[], int],
        *,
        limit_bytes: int = 1 << 30,
        free_bytes: Callable[[], int] | None = None,
    ) -> None:
        self.path = path
        self.enterprise_id = enterprise_id
        self.terminal = terminal
        self.sam_serial = sam_serial
        self._now_ms = now_ms
        self.limit_bytes = limit_bytes
        self._free_bytes = free_bytes or self._disk_free
        self._mutex = threading.RLock()
        self._lock_file = _lock(path)
        try:
            self._db = self._open()
            self.last_seq = 0
            self.last_hash = b""
            self._unsaved: Job | None = None
            self._newest: dict[int, Transaction] = {}  # saves decoding what was written a moment ago
            self._none_open = False
            self._load_head()
            self._check(START_CHECK)
        except BaseException:
            self._lock_file.close()
            raise

    # --- opening ---------------------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        with _errors(self.path):
            db = sqlite3.connect(self.path, timeout=BUSY_MS / 1000, isolation_level=None, check_same_thread=False)
            try:
                self._prepare(db)
            except BaseException:
                db.close()
                raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "trusted_schema = OFF"):
            db.execute(f"PRAGMA {pragma}")
        if db.execute("PRAGMA synchronous").fetchone() != (2,) or db.execute("PRAGMA journal_mode").fetchone() != (
            "wal",
        ):
            raise DatabaseError(f"{self.path}: this disk can't be made to keep what is written")
        (application,), (version,) = (
            db.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
        )
        if (application, version) == (0, 0) and not db.execute("SELECT 1 FROM sqlite_schema").fetchone():
            self._create(db)
        elif (application, version) != (APPLICATION_ID, SCHEMA_VERSION):
            raise CheckFailed(f"{self.path} is no journal of version {SCHEMA_VERSION}: leave it as it is")

    def _create(self, db: sqlite3.Connection) -> None:
        start = genesis(self.enterprise_id, self.terminal)
        head = (self.enterprise_id, self.terminal, start, start)
        script = f"BEGIN IMMEDIATE; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"
        db.executescript(script + _SCHEMA)
        db.execute("INSERT INTO head VALUES (1, ?, ?, 1, ?, 0, ?, 0, 0, 0, NULL, 0, 0)", head)
        db.execute("COMMIT")
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # else a power cut may forget that the file exists
        finally:
            os.close(folder)

    def _load_head(self) -> None:
        owner = self._one("SELECT enterprise_id, terminal FROM head")
        if owner != (self.enterprise_id, self.terminal):
            raise Conflict(f"{self.path} is the journal of another terminal: export it and give this one its own file")
        self.last_seq, self.last_hash = self._one("SELECT last_seq, last_hash FROM head")

    def _check(self, newest: int | None = None) -> None:
        """Follow the chain over the bytes as stored, all of it or its end; see that head and open legs agree with it.

        A terminal that nobody collected for a year must start at once.
        """
        seq, digest = self._one("SELECT first_seq - 1, first_previous FROM head")
        if newest is None or self.last_seq - seq <= newest:
            with _errors(self.path):
                damage = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if damage != "ok":
                raise CheckFailed(f"{self.path} is damaged ({damage}): save the file, then start with a new one")
        else:
            seq = self.last_seq - newest
            found = self._one("SELECT hash FROM entry WHERE seq = ?", (seq,))
            if found is None:
                raise self._edited(f"entry {seq} is missing")
            digest = found[0]
        for number, body, stored in self._each("SELECT seq, body, hash FROM entry WHERE seq > ? ORDER BY seq", (seq,)):
            digest = sha256(digest + body).digest()
            seq += 1
            if number != seq or digest != stored:
                raise self._edited(f"entry {number} does not follow the one before it")
        if (seq, digest) != (self.last_seq, self.last_hash):
            raise self._edited(f"the chain ends at entry {seq}, the head says {self.last_seq}")
        for (intent,) in self._rows("SELECT intent_seq FROM leg WHERE state = 'intent'"):
            if self.entry(intent).event is not Event.INTENT:
                raise self._edited(f"entry {intent} is no intent")

    def _edited(self, what: str) -> CheckFailed:
        return CheckFailed(f"{self.path} was damaged or edited: {what}; save the file, then start with a new one")

    def verify(self) -> None:
        """Decode every entry and compare the chain's open intents with the jobs'. Raises CheckFailed."""
        first, previous = self._one("SELECT first_seq, first_previous FROM head")
        self._check()
        try:
            waiting = {entry.seq for entry in pending(self._decode(first, previous, self.last_seq))}
        except FormatError as e:
            raise self._edited(str(e)) from e
        rows = self._rows(
            "SELECT intent_seq FROM leg WHERE state IN ('intent', 'in_doubt') AND intent_seq >= ?", (first,)
        )
        if waiting != {seq for (seq,) in rows}:
            raise self._edited("its open intents are not those of the jobs")

    def close(self) -> None:
        """Let the file go. Nothing is written: what was promised is on the disk already."""
        with self._mutex:
            self._db.close()
            self._lock_file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- SQL -------------------------------------------------------------------------------------------------

    def _rows(self, sql: str, params: Sequence[Any] = ()) -> list[Any]:
        with self._mutex, _errors(self.path):
            return self._db.execute(sql, params).fetchall()

    def _each(self, sql: str, params: Sequence[Any] = ()) -> Iterator[Any]:
        """Rows one by one: a journal may be larger than memory."""
        with self._mutex, _errors(self.path):
            yield from self._db.execute(sql, params)

    def _one(self, sql: str, params: Sequence[Any] = ()) -> Any:  # noqa: ANN401  # columns of any type
        rows = self._rows(sql, params)
        return rows[0] if rows else None

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """One transaction: committed and fsynced, or undone with the head as it was."""
        with self._mutex:
            before = self.last_seq, self.last_hash
            try:
                with _errors(self.path):
                    self._db.execute("BEGIN IMMEDIATE")
                    yield self._db
                    self._db.execute("COMMIT")
            except BaseException:
                self.last_seq, self.last_hash = before
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _disk_free(self) -> int:
        stat = os.statvfs(self.path.parent)
        return stat.f_bavail * stat.f_frsize

    def _need_room(self) -> None:
        used = self.path.stat().st_size
        if self._free_bytes() < RESERVE_BYTES or used + RESERVE_BYTES > self.limit_bytes:
            raise Reason.STORAGE_FULL.refusal(f"{self.path}: collect and prune the journal")

    def _append(self, event: Event, ref: int | None, record: Report | None, reason: str = "") -> int:
        """Add one entry within the transaction under way."""
        seq, utc_ms = self.last_seq + 1, self._now_ms()
        body = JournalEntry(seq, event, ref, record, reason, utc_ms, self.last_hash).encode()
        digest = sha256(self.last_hash + body).digest()
        self._db.execute("INSERT INTO entry VALUES (?, ?, ?, ?)", (seq, utc_ms, body, digest))
        # Notes do not count as the newest time: a clock once far ahead would doubt itself until that day.
        money_ms = utc_ms if event is Event.INTENT else 0
        self._db.execute(
            "UPDATE head SET last_seq = ?, last_hash = ?, newest_money_ms = max(newest_money_ms, ?)",
            (seq, digest, money_ms),
        )
        self.last_seq, self.last_hash = seq, digest
        return seq

    # --- jobs ------------------------------------------------------------------------------------------------

    def begin(
        self,
        operation: Operation,
        card_serial: bytes,
        legs: Sequence[Leg],
        *,
        sale: str = "",
        counters: bytes | None = None,
        undo_of: int | None = None,
        durable: bool = True,
    ) -> Job:
        """Write down what is about to be done, before anything on the card changes.

        A job that is not ``durable`` is written with its first intent: when nothing on the card changes before it.
        Raises Refused(storage_full) when there is no room to see it through.
        """
        self._need_room()
        job_id, shift = self._one("SELECT (SELECT coalesce(max(id), 0) + 1 FROM job), coalesce(shift, 0) FROM head")
        planned = tuple(
            JobLeg(n, leg.purse, leg.amount_fen, LegState.PLANNED, None, None, proven=False)
            for n, leg in enumerate(legs)
        )
        amount_fen = sum(leg.amount_fen for leg in legs)
        job = Job(
            job_id, operation, sale, shift, card_serial, amount_fen, self._now_ms(), counters, undo_of,
            JobState.OPEN, suspect=False, legs=planned,
        )  # fmt: skip
        self._unsaved = job
        if durable:
            try:
                with self._write():
                    self._save(job_id)
            except StorageFull as e:
                raise Reason.STORAGE_FULL.refusal(str(e)) from e
            self._unsaved = None
        return job

    def _save(self, job_id: int) -> None:
        """Add a job that was only begun, within the transaction under way."""
        job = self._unsaved
        if job is None or job.id != job_id:
            return
        self._none_open = False
        values = (job.id, job.operation.value, job.sale, job.shift, job.card_serial, job.amount_fen, job.utc_ms)
        self._db.execute(
            "INSERT INTO job VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'open', 0)", (*values, job.counters, job.undo_of)
        )
        rows = [(job.id, leg.number, leg.purse, leg.amount_fen) for leg in job.legs]
        self._db.executemany("INSERT INTO leg VALUES (?, ?, ?, ?, 'planned', NULL, NULL, 0)", rows)

    def leg(self, job: Job, number: int) -> LegJournal:
        """The journal that the purse protocol writes one leg of a job to."""
        return LegJournal(self, job.id, number)

    def write_leg(
        self, leg: LegJournal, event: Event, t: Transaction | None = None, ref: int | None = None, reason: str = ""
    ) -> int:
        """Add the entry of a leg and move leg and job along, in one transaction. Raises DatabaseError."""
        state, column = _AFTER[event]
        with self._write() as db:
            self._save(leg.job_id)
            seq = self._append(event, ref, t, reason)
            db.execute(
                f"UPDATE leg SET state = ?, {column} = ?, proven = ? WHERE job = ? AND number = ?",
                (state.value, seq, t is not None and t.mac2_verified, leg.job_id, leg.number),
            )
            # Else the caller judges the proof, or still has the counters of an undo to write, and finishes the job.
            if t is not None and t.mac2_verified:
                db.execute(
                    "UPDATE job SET state = 'done' WHERE id = ?1 AND undo_of IS NULL AND "
                    "NOT EXISTS (SELECT 1 FROM leg WHERE job = ?1 AND state <> 'committed')",
                    (leg.job_id,),
                )
        self._unsaved = None
        self._newest = {} if t is None else {seq: t}
        return seq

    def job(self, job_id: int) -> Job:
        """A job by its id. Raises NotFound."""
        if self._unsaved is not None and self._unsaved.id == job_id:
            return self._unsaved
        found = self._jobs("id = ?", job_id)
        if not found:
            raise NotFound(f"{self.path} has no job {job_id}")
        return found[0]

    def _jobs(self, where: str, *params: object) -> list[Job]:
        rows = self._rows(f"SELECT * FROM job WHERE {where}", params)  # fixed texts of this module
        return [self._read_job(row) for row in rows]

    def _read_job(self, row: Sequence[Any]) -> Job:
        rows = self._rows(
            "SELECT number, purse, amount_fen, state, intent_seq, closed_seq, proven FROM leg "
            "WHERE job = ? ORDER BY number",
            (row[0],),
        )
        legs = tuple(
            JobLeg(n, Purse(purse), fen, LegState(state), intent, closed, bool(proven))
            for n, purse, fen, state, intent, closed, proven in rows
        )
        job_id, kind, sale, shift, card, fen, utc_ms, counters, undo_of, state, suspect = row
        return Job(
            job_id,
            Operation(kind),
            sale,
            shift,
            card,
            fen,
            utc_ms,
            counters,
            undo_of,
            JobState(state),
            bool(suspect),
            legs,
        )

    def open_jobs(self) -> list[Job]:
        """Jobs whose card is awaited, oldest first."""
        if self._none_open:
            return []
        found = self._jobs("state = 'open' ORDER BY id")
        self._none_open = not found
        return found

    def open_intents(self) -> list[JournalEntry]:
        """Intents whose outcome is unknown, oldest first."""
        rows = self._rows("SELECT intent_seq FROM leg WHERE state = 'intent' ORDER BY intent_seq")
        return [self.entry(seq) for (seq,) in rows]

    def sale(self, sale: str) -> Job | None:
        """The newest job of a sale that is not void: what the same sale number gave before."""
        found = self._jobs("sale = ? AND sale <> '' AND state <> 'void' ORDER BY id DESC LIMIT 1", sale)
        return found[0] if found else None

    def last_payment(self) -> tuple[Job, LastPayment] | None:
        """The newest payment that took money, and what the undo rules ask about it."""
        found = self._jobs("operation = 'pay' AND state IN ('done', 'partial') ORDER BY id DESC LIMIT 1")
        if not found:
            return None
        job = found[0]
        undone = self._one("SELECT 1 FROM job WHERE undo_of = ? AND state <> 'void'", (job.id,)) is not None
        proven = all(leg.proven for leg in job.committed)
        return job, LastPayment(job.card_serial, job.utc_ms, job.shift, proven, undone)

    def undo_of(self, paid: Job) -> Job | None:
        """The undo of a payment, unless it came to nothing."""
        found = self._jobs("undo_of = ? AND state <> 'void' ORDER BY id DESC LIMIT 1", paid.id)
        return found[0] if found else None

    def last_paid_ms(self, card_serial: bytes) -> int | None:
        """When this card last paid here and was not given its money back."""
        sql = (
            "SELECT max(utc_ms) FROM job AS paid WHERE card = ? AND operation = 'pay' AND state IN ('done', 'partial') "
            "AND NOT EXISTS (SELECT 1 FROM job WHERE undo_of = paid.id AND state <> 'void')"
        )
        found: int | None = self._one(sql, (card_serial,))[0]
        return found

    def mark_suspect(self, job: Job) -> None:
        """Another card is served before this one came back: say so in the chain, once."""
        with self._write() as db:
            db.execute("UPDATE job SET suspect = 1 WHERE id = ?", (job.id,))
            self._append(Event.RECORD, None, Note("suspect", _about(job)))

    def finish(self, job: Job, *, disputed: bool = False) -> Job:
        """Close a job whose legs all are known or given up; its state follows from them. Raises Conflict.

        ``disputed``: a card's proof was wrong, so that only settlement can tell what was paid.
        """
        job = self.job(job.id)
        states = {leg.state for leg in job.legs}
        if LegState.INTENT in states:
            raise Conflict(f"job {job.id} has an intent whose outcome is unknown")
        if states == {LegState.COMMITTED} and not disputed:
            state = JobState.DONE
        elif disputed or LegState.IN_DOUBT in states:
            state = JobState.IN_DOUBT
        else:
            state = JobState.PARTIAL if LegState.COMMITTED in states else JobState.VOID
        if job is self._unsaved:
            self._unsaved = None  # nothing happened, nothing is written
            return replace(job, state=state)
        if job.state is state:
            return job
        with self._write() as db:
            db.execute("UPDATE job SET state = ? WHERE id = ?", (state.value, job.id))
            if state in {JobState.PARTIAL, JobState.IN_DOUBT}:
                self._append(
                    Event.RECORD, None, Note(state.value, f"job {job.id} card {job.card_serial.hex().upper()}")
                )
        return self.job(job.id)

    def doubt(self, job: Job, number: int) -> None:
        """The card can't tell any more how a leg ended: its intent stays open for settlement."""
        with self._write() as db:
            db.execute("UPDATE leg SET state = 'in_doubt' WHERE job = ? AND number = ?", (job.id, number))

    # --- entries ---------------------------------------------------------------------------------------------

    def note(self, code: str, text: str = "") -> int:
        """Add a note to the chain and return its sequence. Raises DatabaseError."""
        with self._write():
            return self._append(Event.RECORD, None, Note(code, text))

    def report(self, record: PunchReport | PassageReport) -> int:
        """Add a punch or a passage to the chain and return its sequence.

        Raises Refused ``storage_full``, DatabaseError: then nothing may follow from it.
        """
        self._need_room()
        with self._write():
            return self._append(Event.RECORD, None, record)

    def entry(self, seq: int) -> JournalEntry:
        """One entry of the chain. Raises NotFound when it is not there (any more), CheckFailed when it is damaged."""
        row = self._one("SELECT body FROM entry WHERE seq = ?", (seq,))
        if row is None:
            raise NotFound(f"{self.path} has no entry {seq}")
        before = self._one("SELECT hash FROM entry WHERE seq = ?", (seq - 1,))
        previous = before or self._one("SELECT first_previous FROM head")
        try:
            return JournalEntry.decode(row[0], previous[0])
        except FormatError as e:
            raise self._edited(str(e)) from e

    def transaction(self, leg: JobLeg) -> Transaction:
        """What the chain says of a leg: its committed record, else its intent. Raises NotFound."""
        seq = leg.closed_seq if leg.state is LegState.COMMITTED else leg.intent_seq
        record = self._newest.get(seq or 0) or self.entry(seq or 0).record
        if not isinstance(record, Transaction):
            raise self._edited(f"entry {seq} has no transaction")
        return record

    def standing(self) -> Standing:
        """What decisions ask of the journal, at once."""
        sql = (
            "SELECT shift, max(newest_money_ms, list_ms), (SELECT utc_ms FROM entry WHERE seq = acked_seq + 1) "
            "FROM head"
        )
        return Standing(*self._one(sql))

    @property
    def list_version(self) -> int:
        """The newest list version ever in force here, also when the list itself was lost since."""
        return int(self._one("SELECT list_version FROM head")[0])

    def clock_floor(self, utc_ms: int) -> None:
        """Before this time the clock is doubtful, whatever money moved; for a clock that two operators set back."""
        with self._write() as db:
            db.execute("UPDATE head SET newest_money_ms = ?", (utc_ms,))

    def list_taken(self, version: int, created_ms: int) -> None:
        """Remember what list came into force, so that none before it ever does again."""
        with self._write() as db:
            values = (version, created_ms)
            db.execute("UPDATE head SET list_version = max(list_version, ?), list_ms = max(list_ms, ?)", values)
            self._append(Event.RECORD, None, Note("list", f"version {version} of {created_ms}"))

    # --- shifts ----------------------------------------------------------------------------------------------

    @property
    def shift(self) -> int | None:
        """Number of the open shift."""
        return self.standing().shift

    @property
    def last_shift(self) -> int:
        """Number of the newest shift, open or closed; 0 before the first."""
        return int(self._one("SELECT shifts FROM head")[0])

    def open_shift(self, operator: str) -> int:
        """Open the next shift and return its number. Raises Conflict when one is open."""
        with self._write() as db:
            number, current = db.execute("SELECT shifts + 1, shift FROM head").fetchone()
            if current is not None:
                raise Conflict(f"shift {current} is open: close it first")
            db.execute("UPDATE head SET shifts = ?, shift = ?", (number, number))
            self._append(Event.RECORD, None, Note("shift_open", f"{number} {operator}"))
        return int(number)

    def close_shift(self, summary: str) -> None:
        """Close the open shift with its totals in the chain. Raises Conflict when none is open."""
        with self._write() as db:
            (current,) = db.execute("SELECT shift FROM head").fetchone()
            if current is None:
                raise Conflict("no shift is open")
            db.execute("UPDATE head SET shift = NULL")
            self._append(Event.RECORD, None, Note("shift_close", f"{current} {summary}"))

    def moved(self, shift: int) -> list[tuple[Operation, Purse, int, int]]:
        """Per operation and purse of a shift: how many purse transactions are certain, and their fen."""
        sql = (
            "SELECT operation, purse, count(*), sum(leg.amount_fen) FROM job JOIN leg ON leg.job = job.id "
            "WHERE shift = ? AND leg.state = 'committed' GROUP BY operation, purse ORDER BY operation, purse"
        )
        return [(Operation(kind), Purse(purse), count, fen) for kind, purse, count, fen in self._rows(sql, (shift,))]

    # --- collecting ------------------------------------------------------------------------------------------

    @property
    def acked_seq(self) -> int:
        """Last entry that the back office has."""
        return int(self._one("SELECT acked_seq FROM head")[0])

    @property
    def first_seq(self) -> int:
        """First entry that is still here, or the next one to come."""
        return int(self._one("SELECT first_seq FROM head")[0])

    def _decode(self, from_seq: int, previous: bytes, to_seq: int) -> Iterator[JournalEntry]:
        sql = "SELECT body, hash FROM entry WHERE seq BETWEEN ? AND ? ORDER BY seq"
        for seq, (body, stored) in enumerate(self._each(sql, (from_seq, to_seq)), from_seq):
            digest = sha256(previous + body).digest()
            if digest != stored:
                raise self._edited(f"entry {seq} does not follow the one before it")
            yield JournalEntry.decode(body, previous)
            previous = digest

    def collect(self, from_seq: int | None = None, count: int = 1 << 16) -> JournalFile:
        """Entries from a sequence on (by default the first not acknowledged), as the export format has them.

        Raises NotFound when they were pruned or never were, CheckFailed where the chain is broken.
        """
        with self._mutex:
            first, start, acked = self._one("SELECT first_seq, first_previous, acked_seq FROM head")
            seq = acked + 1 if from_seq is None else from_seq
            if not first <= seq <= self.last_seq + 1:
                raise NotFound(f"{self.path} holds entries {first} to {self.last_seq}, not {seq}")
            before = self._one("SELECT hash FROM entry WHERE seq = ?", (seq - 1,))
            previous = before[0] if before else start
            entries = self._decode(seq, previous, min(self.last_seq, seq + count - 1))
        return JournalFile(self.enterprise_id, self.terminal, self.sam_serial, seq, previous, tuple(entries))

    def export(self, path: Path, from_seq: int | None = None) -> int:
        """Write entries to a file, whole or not at all, and return the last sequence in it. Raises DatabaseError."""
        file = self.collect(from_seq)
        beside = path.with_name(path.name + ".part")
        try:
            with beside.open("wb") as out:
                out.write(file.encode())
                out.flush()
                os.fsync(out.fileno())
            beside.replace(path)
        except OSError as e:
            beside.unlink(missing_ok=True)
            raise DatabaseError(f"{path} can't be written: {e.strerror}") from e
        return file.first_seq + len(file.entries) - 1

    def ack(self, seq: int) -> None:
        """The back office has all up to ``seq``; an older one changes nothing. Raises Conflict beyond the end."""
        with self._write() as db:
            if seq > self.last_seq:
                raise Conflict(f"{self.path} ends at entry {self.last_seq}: {seq} can't be acknowledged")
            db.execute("UPDATE head SET acked_seq = max(acked_seq, ?)", (seq,))

    def prune(self, keep_ms: int) -> int:
        """Forget entries that were acknowledged and are older than ``keep_ms``; returns how many."""
        with self._write() as db:
            limit_ms = self._now_ms() - keep_ms
            waiting = "SELECT min(intent_seq) FROM leg WHERE state = 'intent'"
            sql = f"SELECT coalesce(min(seq), ?) FROM entry WHERE utc_ms >= ? OR seq > ? OR seq >= ({waiting})"
            (keep_from,) = db.execute(sql, (self.last_seq + 1, limit_ms, self.acked_seq)).fetchone()
            last = db.execute("SELECT seq, hash FROM entry WHERE seq = ?", (keep_from - 1,)).fetchone()
            if last is None:
                return 0
            gone = db.execute("DELETE FROM entry WHERE seq < ?", (keep_from,)).rowcount
            db.execute("UPDATE head SET first_seq = ?, first_previous = ?", (keep_from, last[1]))
            db.execute(
                "DELETE FROM job WHERE state <> 'open' AND utc_ms < ? AND NOT EXISTS "
                "(SELECT 1 FROM leg WHERE leg.job = job.id AND max(intent_seq, coalesce(closed_seq, 0)) >= ?)",
                (limit_ms, keep_from),
            )
            db.execute("DELETE FROM leg WHERE job NOT IN (SELECT id FROM job)")
        return gone


@dataclass(frozen=True, slots=True)
class LegJournal:
    """What ``cardlib.purse`` writes to: the entries of one leg, kept together with its job."""

    journal: Journal
    job_id: int
    number: int

    def intent(self, t: Transaction) -> int:
        """Write what is about to happen, fsynced, and return its sequence. Raises Refused(storage_full)."""
        try:
            return self.journal.write_leg(self, Event.INTENT, t)
        except StorageFull as e:
            raise Reason.STORAGE_FULL.refusal(str(e)) from e

    def committed(self, ref: int, t: Transaction) -> None:
        """The card did it; ``t`` carries the proof. Raises DatabaseError: the outcome then stays open."""
        self.journal.write_leg(self, Event.COMMITTED, t, ref)

    def not_done(self, ref: int, reason: str) -> None:
        """The card did not do it. Raises DatabaseError: the outcome then stays open."""
        self.journal.write_leg(self, Event.NOT_DONE, None, ref, reason)


def _about(job: Job) -> str:
    """What a note says of a job."""
    return f"{job.operation.value} {job.amount_fen} of card {job.card_serial.hex().upper()}, job {job.id}"


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """SQLite's errors as ours, by code."""
    damaged = f"{path} is damaged or no journal: save the file, then start with a new one"
    try:
        yield
    except UnicodeDecodeError as e:  # sqlite3 could not even say what is wrong
        raise CheckFailed(damaged) from e
    except sqlite3.Error as e:
        code = getattr(e, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise CheckFailed(damaged) from e
        if code in _FULL:
            raise StorageFull(f"{path}: the disk is full or fails") from e
        raise DatabaseError(f"{path}: {e}") from e


def _lock(path: Path) -> IO[bytes]:
    """Hold the file for this process; a process that dies lets it go."""
    try:
        file = path.with_name(path.name + ".lock").open("ab")
    except OSError as e:
        raise DatabaseError(f"{path} can't be opened: {e.strerror}") from e
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        file.close()
        raise Conflict(f"{path} is open in another process: stop that one first") from e
    return file
