"""Collecting terminals' journals: each record once, whatever comes again or contradicts (books.md, Settlement).

Nothing is judged here. Entries are kept as evidence, money moves become rows for :mod:`backoffice.settlement`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from operator import attrgetter
from typing import NamedTuple

import cbor2

from backoffice import attendance
from backoffice.database import Database, Tx
from cardlib.errors import FormatError, NotFound, Refused
from cardlib.records import Event, JournalEntry, JournalFile, Note, Outcome, PunchReport, Transaction, genesis

CHUNK = 2000
NEW = "new"
_COLUMNS = (
    "enterprise_id, record_id, terminal, journal_seq, shift, sam_serial, terminal_seq, card_serial, purse, kind,"
    " card_seq, amount_fen, balance_before_fen, key_version, algorithm, local_time, utc_ms, list_version, undo_of,"
    " request_id, digest, outcome, tac, proven, closing, verdict, cause, genuine, booked, chained, open, received_ms,"
    " changed_ms"
)
_INSERT = f"INSERT INTO transaction_record ({_COLUMNS}) VALUES ({', '.join('?' * 33)})"


class Collected(NamedTuple):
    """Outcome of collecting: new records, entries that were here already, contradictions by name."""

    terminal: bytes
    records: int
    closings: int
    duplicates: int
    conflicts: tuple[str, ...]


@dataclass(slots=True)
class Report:
    """One money move of a journal: its intent and, once known, how it ended."""

    place: int
    shift: str
    move: Transaction
    outcome: Outcome = Outcome.UNKNOWN
    tac: bytes = b""
    proven: bool = False
    reason: str = ""

    def close(self, entry: JournalEntry) -> bool:
        """Take the closing entry over; False when it speaks of another move."""
        closed = entry.record
        if isinstance(closed, Transaction):
            if intent_of(closed) != self.move:
                return False
            self.outcome, self.tac, self.proven = Outcome.COMMITTED, closed.tac, closed.mac2_verified
        else:
            self.outcome, self.reason = Outcome.NOT_DONE, entry.reason
        return True

    @property
    def closing(self) -> bytes | None:
        """Digest of how it ended, None while that is unknown."""
        if self.outcome is Outcome.UNKNOWN:
            return None
        return sha256(bytes([self.outcome]) + self.tac).digest()

    @property
    def record_id(self) -> str:
        """Origin in hex; attempts of a load share it until one succeeds, so they add where they were reported."""
        origin = self.move.origin.hex()
        return f"{origin}-{self.move.terminal.hex()}-{self.place}" if self.move.kind.online else origin


def intent_of(move: Transaction) -> Transaction:
    """The move as its intent said it."""
    if move.outcome is Outcome.UNKNOWN and not move.tac and not move.mac2_verified:
        return move
    return replace(move, tac=b"", mac2_verified=False, outcome=Outcome.UNKNOWN)


def collect(db: Database, enterprise_id: int, raw: bytes) -> Collected:
    """Take in a journal file. The same file again changes nothing; contradictions are kept aside and named.

    Raises FormatError when the file is damaged, Refused ``foreign_journal`` when it is another enterprise's.
    """
    file = JournalFile.decode(raw)
    if file.enterprise_id != enterprise_id:
        raise Refused("foreign_journal", f"the journal belongs to enterprise {file.enterprise_id}")
    if file.first_seq == 1 and file.previous != genesis(enterprise_id, file.terminal):
        raise FormatError(f"the journal of terminal {file.terminal.hex()} does not begin as that terminal's must")
    hashes = [entry.previous for entry in file.entries[1:]] + [file.head]
    total = Collected(file.terminal, 0, 0, 0, ())
    for start in range(0, len(file.entries), CHUNK):
        with db.write() as tx:
            part = file.entries[start : start + CHUNK]
            found = take(tx, enterprise_id, file.terminal, part, hashes[start : start + CHUNK])
        total = Collected(
            file.terminal,
            total.records + found.records,
            total.closings + found.closings,
            total.duplicates + found.duplicates,
            total.conflicts + found.conflicts,
        )
    return total


def take(
    tx: Tx, enterprise_id: int, terminal: bytes, entries: Sequence[JournalEntry], hashes: Sequence[bytes]
) -> Collected:
    """Store consecutive entries of one journal and the money moves in them."""
    first, last = entries[0].seq, entries[-1].seq
    rows = tx.all(
        "SELECT journal_seq, hash FROM journal_entry WHERE enterprise_id = ? AND terminal = ?"
        " AND journal_seq BETWEEN ? AND ?",
        (enterprise_id, terminal, first, last),
    )
    here = {row["journal_seq"]: row["hash"] for row in rows}
    merger = _Merger(tx, enterprise_id, terminal)
    fresh = [(entry, hash_) for entry, hash_ in zip(entries, hashes, strict=True) if here.get(entry.seq) != hash_]
    duplicates = len(entries) - len(fresh)
    for entry, _ in fresh:
        if entry.seq in here:
            merger.contradiction("journal entry differs from the one collected before", entry)
    tx.executemany(
        "INSERT INTO journal_entry (enterprise_id, terminal, journal_seq, entry, hash, received_ms)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (
            (enterprise_id, terminal, entry.seq, entry.encode(), hash_, tx.now_ms)
            for entry, hash_ in fresh
            if entry.seq not in here
        ),
    )
    shift = _extend(tx, enterprise_id, terminal, entries, hashes, merger)
    merger.merge([entry for entry, _ in fresh], shift)
    merger.keep_punches([entry for entry, _ in fresh if entry.seq not in here])
    return Collected(terminal, merger.records, merger.closings, duplicates + merger.repeated, tuple(merger.conflicts))


class _Merger:
    """Brings reports together with the rows that are here: new, closing, repeated, contradicting."""

    def __init__(self, tx: Tx, enterprise_id: int, terminal: bytes) -> None:
        self.tx, self.enterprise_id, self.terminal = tx, enterprise_id, terminal
        self.records = self.closings = self.repeated = 0
        self.conflicts: list[str] = []

    def merge(self, entries: Iterable[JournalEntry], shift: str) -> None:
        reports: dict[int, Report] = {}
        late: list[JournalEntry] = []
        for entry in entries:
            if isinstance(entry.record, Note):
                shift = _shift_after(entry.record, shift)
            elif entry.event is Event.INTENT and isinstance(entry.record, Transaction):
                if entry.record.enterprise_id != self.enterprise_id or entry.record.terminal != self.terminal:
                    self.contradiction("the record names another enterprise or terminal", entry)
                else:
                    reports[entry.seq] = Report(entry.seq, shift, intent_of(entry.record))
            elif entry.ref is not None:
                report = reports.get(entry.ref)
                if report is None:
                    late.append(entry)
                elif report.outcome is not Outcome.UNKNOWN or not report.close(entry):
                    self.contradiction("the closing entry speaks of another move", entry)
        self._adopt(reports)
        self._store(list(reports.values()))
        for entry in late:
            self._close_late(entry)

    def keep_punches(self, entries: Iterable[JournalEntry]) -> None:
        """Punches of entries that were not here before: an entry that contradicts another gives none."""
        rows = []
        for entry in entries:
            punch = entry.record
            if not isinstance(punch, PunchReport):
                continue
            if punch.enterprise_id != self.enterprise_id or punch.terminal != self.terminal:
                self.contradiction("the record names another enterprise or terminal", entry)
            elif (row := attendance.reported(punch, entry.seq)) is None:
                self.contradiction("the punch has no time or direction that there is", entry)
            else:
                rows.append(row)
        attendance.keep(self.tx, self.enterprise_id, rows)

    def _adopt(self, reports: dict[int, Report]) -> None:
        """Give intents the closing entries that came before them, in a file of a later stretch."""
        if all(report.outcome is not Outcome.UNKNOWN for report in reports.values()):
            return
        for row in self.tx.all(
            "SELECT intent_seq, entry FROM journal_orphan WHERE enterprise_id = ? AND terminal = ?",
            (self.enterprise_id, self.terminal),
        ):
            report = reports.get(row["intent_seq"])
            if report is None:
                continue
            entry = JournalEntry.decode(row["entry"], bytes(32))
            if not report.close(entry):
                self.contradiction("the closing entry speaks of another move", entry)
            self.tx.execute(
                "DELETE FROM journal_orphan WHERE enterprise_id = ? AND terminal = ? AND intent_seq = ?",
                (self.enterprise_id, self.terminal, row["intent_seq"]),
            )

    def contradiction(self, cause: str, entry: JournalEntry) -> None:
        name = f"{self.terminal.hex()}-{entry.seq}-{entry.hash.hex()[:16]}"
        self._conflict(name, entry.seq, cause, entry.encode())

    def _conflict(self, name: str, seq: int, cause: str, content: bytes) -> None:
        self.tx.execute(
            "INSERT INTO record_conflict (enterprise_id, conflict_id, terminal, journal_seq, cause, content,"
            " received_ms) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (enterprise_id, conflict_id) DO NOTHING",
            (self.enterprise_id, name, self.terminal, seq, cause, content, self.tx.now_ms),
        )
        self.conflicts.append(f"{name}: {cause}")

    def _store(self, reports: list[Report]) -> None:
        known = self._known([report.record_id for report in reports])
        fresh: dict[str, Report] = {}
        for report in reports:
            record_id = report.record_id
            digest = _digest(report.move)
            if record_id in fresh:
                row = (_digest(fresh[record_id].move), fresh[record_id].closing)
            elif record_id in known:
                row = known[record_id]
            else:
                fresh[record_id] = report
                continue
            if row[0] != digest or (None not in (row[1], report.closing) and row[1] != report.closing):
                name = f"{record_id}-{sha256(digest + (report.closing or b'')).hexdigest()[:16]}"
                self._conflict(name, report.place, "same origin, other content", report.move.encode())
            elif row[1] is None and report.closing is not None:
                if record_id in fresh:
                    fresh[record_id] = report
                else:
                    self.close(record_id, report)
            else:
                self.repeated += 1
        self.tx.executemany(_INSERT, (_row(report, self.tx.now_ms) for report in fresh.values()))
        self.records += len(fresh)

    def _known(self, ids: list[str]) -> dict[str, tuple[bytes, bytes | None]]:
        found = {}
        for start in range(0, len(ids), 500):
            part = ids[start : start + 500]
            sql = (
                "SELECT record_id, digest, closing FROM transaction_record WHERE enterprise_id = ?"
                f" AND record_id IN ({', '.join('?' * len(part))})"
            )
            for row in self.tx.execute(sql, (self.enterprise_id, *part)):
                found[row["record_id"]] = (row["digest"], row["closing"])
        return found

    def _close_late(self, entry: JournalEntry) -> None:
        """A closing entry whose intent came with an earlier file."""
        row = self.tx.one(
            "SELECT record_id FROM transaction_record WHERE enterprise_id = ? AND terminal = ? AND journal_seq = ?",
            (self.enterprise_id, self.terminal, entry.ref),
        )
        if row is None:
            self.tx.execute(
                "INSERT INTO journal_orphan (enterprise_id, terminal, intent_seq, entry) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (enterprise_id, terminal, intent_seq) DO NOTHING",
                (self.enterprise_id, self.terminal, entry.ref, entry.encode()),
            )
            return
        report = Report(entry.ref or 0, "", load_move(self.tx, self.enterprise_id, row["record_id"]))
        if not report.close(entry):
            self.contradiction("the closing entry speaks of another move", entry)
        elif not self.close(row["record_id"], report):
            self.contradiction("the move was closed otherwise before", entry)

    def close(self, record_id: str, report: Report) -> bool:
        """Close an open row, or add the proof it lacked; True as well when it was closed in the same way before."""
        closed = self.tx.execute(
            "UPDATE transaction_record SET outcome = ?, tac = ?, proven = ?, closing = ?, cause = ?, verdict = ?,"
            " open = 1, changed_ms = ? WHERE enterprise_id = ? AND record_id = ?"
            " AND (closing IS NULL OR (outcome = ? AND length(tac) < ?))",
            (report.outcome, report.tac, report.proven, report.closing, report.reason, NEW, self.tx.now_ms,
             self.enterprise_id, record_id, report.outcome, len(report.tac)),
        ).rowcount  # fmt: skip
        self.closings += closed
        if closed:
            return True
        sql = "SELECT closing, outcome FROM transaction_record WHERE enterprise_id = ? AND record_id = ?"
        row = self.tx.one(sql, (self.enterprise_id, record_id))
        assert row is not None
        # Whoever asked the card later may have found its proof replaced: the same outcome without proof agrees.
        same = row["closing"] == report.closing or (row["outcome"] == report.outcome and not report.tac)
        self.repeated += same
        return same


def close_record(tx: Tx, enterprise_id: int, record_id: str, outcome: Outcome, tac: bytes, reason: str = "") -> None:
    """Close a record as its card itself told us; what its terminal will say later must be the same."""
    move = load_move(tx, enterprise_id, record_id)
    report = Report(0, "", move, outcome, tac, reason=reason)
    _Merger(tx, enterprise_id, move.terminal).close(record_id, report)


_values = attrgetter(*(field.name for field in fields(Transaction)))


def _digest(move: Transaction) -> bytes:
    """SHA-256 over what the intent says, every field of it."""
    return sha256(cbor2.dumps(_values(move))).digest()


def _row(report: Report, now_ms: int) -> tuple[object, ...]:
    t = report.move
    return (
        t.enterprise_id, report.record_id, t.terminal, report.place, report.shift, t.sam_serial, t.terminal_seq,
        t.card_serial, t.purse, t.kind, t.card_seq, t.amount_fen, t.balance_before_fen, t.key_version, t.algorithm,
        t.when, t.utc_ms, t.list_version, t.undo_of, t.request_id, _digest(t), report.outcome, report.tac,
        report.proven, report.closing, NEW, report.reason, 0, "no", 0, 1, now_ms, now_ms,
    )  # fmt: skip


def load_move(tx: Tx, enterprise_id: int, record_id: str) -> Transaction:
    """The move of a record as its intent said it, from the journal kept as evidence. Raises NotFound."""
    row = tx.one(
        "SELECT j.entry, j.journal_seq FROM transaction_record r JOIN journal_entry j"
        " ON j.enterprise_id = r.enterprise_id AND j.terminal = r.terminal AND j.journal_seq = r.journal_seq"
        " WHERE r.enterprise_id = ? AND r.record_id = ?",
        (enterprise_id, record_id),
    )
    entry = row and JournalEntry.decode(row["entry"], bytes(32))
    if not entry or not isinstance(entry.record, Transaction):
        raise NotFound(f"there is no record {record_id}")
    return intent_of(entry.record)


def _shift_after(note: Note, shift: str) -> str:
    """The shift that stands once ``note`` was written: "1 anna" opens shift 1."""
    if note.code == "shift_open":
        return note.text.split(" ", 1)[0]
    return "" if note.code == "shift_close" else shift


def _extend(
    tx: Tx,
    enterprise_id: int,
    terminal: bytes,
    entries: Sequence[JournalEntry],
    hashes: Sequence[bytes],
    merger: _Merger,
) -> str:
    """Bring the stretches collected so far up to date; returns the shift that was open before ``entries``."""
    first, last = entries[0].seq, entries[-1].seq
    end = (last, hashes[-1], entries[-1].utc_ms)
    before = ""
    touching = tx.all(
        "SELECT * FROM journal_span WHERE enterprise_id = ? AND terminal = ? AND first_seq <= ? AND last_seq >= ?",
        (enterprise_id, terminal, last + 1, first - 1),
    )
    shift = ""
    for span in touching:
        if span["last_seq"] == first - 1:
            before = span["shift"]
            if span["last_hash"] != entries[0].previous:
                merger.contradiction("the entry does not follow the one collected before", entries[0])
        first = min(first, span["first_seq"])
        if span["last_seq"] >= end[0]:
            end, shift = (span["last_seq"], span["last_hash"], span["last_ms"]), span["shift"]
    if end[0] == last:
        shift = before
        for entry in entries:
            shift = _shift_after(entry.record, shift) if isinstance(entry.record, Note) else shift
    if len(touching) == 1 and touching[0]["first_seq"] == first:
        tx.execute(
            "UPDATE journal_span SET last_seq = ?, last_hash = ?, last_ms = ?, shift = ?"
            " WHERE enterprise_id = ? AND terminal = ? AND first_seq = ?",
            (*end, shift, enterprise_id, terminal, first),
        )
        return before
    for span in touching:
        tx.execute(
            "DELETE FROM journal_span WHERE enterprise_id = ? AND terminal = ? AND first_seq = ?",
            (enterprise_id, terminal, span["first_seq"]),
        )
    tx.execute(
        "INSERT INTO journal_span (enterprise_id, terminal, first_seq, last_seq, last_hash, last_ms, shift)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (enterprise_id, terminal, first, *end, shift),
    )
    return before
