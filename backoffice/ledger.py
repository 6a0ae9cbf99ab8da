"""Double-entry books of one enterprise (books.md, Books): integer fen, append-only, sum zero, sealed in batches.

Amounts are signed: positive for the account that gets, negative for the one that gives; those of one entry
add up to zero. An entry's id is made by its origin, so that a repeat is recognised and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from typing import Any

import cbor2

from backoffice.audit import Head, Proof
from backoffice.database import Row, Tx
from cardlib.errors import CheckFailed, Conflict, FormatError, NotFound, Refused
from cardlib.profile import Purse

MAX_FEN = 10**15
"""No single amount is larger: 10 million million yuan is a mistake, not money."""
START = Head(0, sha256(b"onecard ledger 1").digest())
CHUNK = 500

IN_DOUBT = "in-doubt"
DIFFERENCES = "differences"
VOUCHERS = "vouchers"
SUBSIDIES = "subsidies"
REFUNDS = "refunds"
EXPIRED = "expired"
TRANSFERS = "transfers"
VOID = "void"
"""Names, in an order, the expired balance that a chip still holds: taken off, it has left the card's account before."""
BANK = "bank"


def card_account(card_serial: bytes, purse: Purse) -> str:
    """What the enterprise owes the holder of one purse."""
    return f"card/{card_serial.hex()}/{purse.name.lower()}"


def takings_account(terminal: bytes, day: str) -> str:
    """What a terminal took on a day (YYYY-MM-DD of the enterprise)."""
    return f"takings/{terminal.hex()}/{day}"


def cash_account(terminal: bytes, shift: str) -> str:
    """Cash in the drawer of a recharge terminal in one shift: negative is cash held."""
    return f"cash/{terminal.hex()}/{shift}"


def expiry_id(card_serial: bytes, purse: Purse, what: str = "") -> str:
    """Id of an entry about a purse's expired balance, or what they all begin with."""
    return f"expiry/{card_serial.hex()}/{purse.name.lower()}/{what}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry to post: ``postings`` is account → signed fen, ``at_ms`` when it happened (UTC)."""

    entry_id: str
    kind: str
    at_ms: int
    postings: Mapping[str, int]
    operator: str
    second_operator: str | None = None
    corrects: str | None = None
    note: str = ""

    @property
    def digest(self) -> bytes:
        """SHA-256 over what makes two postings the same: id, kind, amounts, what it corrects."""
        return _digest(self.entry_id, self.kind, self.corrects, sorted(self.postings.items()))


def _digest(entry_id: str, kind: str, corrects: str | None, postings: Sequence[tuple[str, int]]) -> bytes:
    return sha256(cbor2.dumps([entry_id, kind, corrects, postings])).digest()


def transfer(entry_id: str, kind: str, at_ms: int, giver: str, getter: str, amount_fen: int, operator: str) -> Entry:
    """Entry that moves ``amount_fen`` from one account to another. Raises FormatError unless it is above zero."""
    if amount_fen <= 0:
        raise FormatError(f"an amount of {amount_fen} fen can't be moved")
    return Entry(entry_id, kind, at_ms, {giver: -amount_fen, getter: amount_fen}, operator)


def post(tx: Tx, enterprise_id: int, *entries: Entry) -> int:
    """Append entries and return how many were new; one that stands there with the same content is passed over.

    Raises Conflict when its id stands there with other content, FormatError when amounts are not whole
    non-zero fen that add up to zero.
    """
    unique: dict[str, tuple[Entry, bytes]] = {}
    for entry in entries:
        _check(entry)
        digest = entry.digest
        if unique.setdefault(entry.entry_id, (entry, digest))[1] != digest:
            raise Conflict(f"ledger entry {entry.entry_id} is given twice with different content")
    for entry_id, digest in list(_known(tx, enterprise_id, list(unique))):
        if unique.pop(entry_id)[1] != digest:
            raise Conflict(f"ledger entry {entry_id} exists with other content: post a correction instead")
    fresh = unique.values()
    tx.executemany(
        "INSERT INTO ledger_entry (enterprise_id, entry_id, kind, at_ms, posted_ms, operator, second_operator,"
        " corrects, note, digest) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            (enterprise_id, e.entry_id, e.kind, e.at_ms, tx.now_ms, e.operator, e.second_operator, e.corrects, e.note,
             digest)
            for e, digest in fresh
        ),
    )  # fmt: skip
    tx.executemany(
        "INSERT INTO ledger_posting (enterprise_id, entry_id, account, amount_fen) VALUES (?, ?, ?, ?)",
        ((enterprise_id, e.entry_id, account, fen) for e, _ in fresh for account, fen in e.postings.items()),
    )
    return len(fresh)


def _check(entry: Entry) -> None:
    amounts: list[int] = list(entry.postings.values())
    if not all(type(fen) is int and 0 < abs(fen) <= MAX_FEN for fen in amounts):
        raise FormatError(f"ledger entry {entry.entry_id}: amounts are whole fen, not zero, at most {MAX_FEN}")
    total = sum(amounts, 0)
    if not amounts or total:
        raise FormatError(f"ledger entry {entry.entry_id}: amounts add up to {total} fen, not to zero")


def _known(tx: Tx, enterprise_id: int, ids: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    for start in range(0, len(ids), CHUNK):
        part = ids[start : start + CHUNK]
        marks = ", ".join("?" * len(part))
        sql = f"SELECT entry_id, digest FROM ledger_entry WHERE enterprise_id = ? AND entry_id IN ({marks})"
        yield from ((row["entry_id"], row["digest"]) for row in tx.execute(sql, (enterprise_id, *part)))


def balance(tx: Tx, enterprise_id: int, account: str) -> int:
    """Sum of an account in fen; 0 when nothing was ever posted to it."""
    sql = "SELECT COALESCE(SUM(amount_fen), 0) FROM ledger_posting WHERE enterprise_id = ? AND account = ?"
    return int(tx.value(sql, (enterprise_id, account)))


def void(tx: Tx, enterprise_id: int, card_serial: bytes, purse: Purse) -> int:
    """Expired fen that the chip still holds: moved to ``expired``, not taken off, spent or given back since."""
    prefix = expiry_id(card_serial, purse)
    sql = (
        "SELECT COALESCE(-SUM(amount_fen), 0) FROM ledger_posting WHERE enterprise_id = ? AND entry_id >= ?"
        " AND entry_id < ? AND account = ?"
    )
    return int(tx.value(sql, (enterprise_id, prefix, prefix + "~", card_account(card_serial, purse))))


def voids(tx: Tx, enterprise_id: int) -> dict[str, int]:
    """The same of every account of a card that ever had any."""
    sql = (
        "SELECT account, -SUM(amount_fen) FROM ledger_posting WHERE enterprise_id = ? AND entry_id >= 'expiry/'"
        " AND entry_id < 'expiry/~' AND account >= 'card/' AND account < 'card/~' GROUP BY account"
    )
    return {row[0]: int(row[1]) for row in tx.execute(sql, (enterprise_id,))}


def balances(tx: Tx, enterprise_id: int, prefix: str = "") -> dict[str, int]:
    """Sums of all accounts whose name begins with ``prefix``, in order of name."""
    sql = (
        "SELECT account, SUM(amount_fen) FROM ledger_posting WHERE enterprise_id = ? AND account >= ? AND account < ?"
        " GROUP BY account ORDER BY account"
    )
    return {row[0]: int(row[1]) for row in tx.execute(sql, (enterprise_id, prefix, prefix + "\U0010ffff"))}


def entry(tx: Tx, enterprise_id: int, entry_id: str) -> Entry:
    """An entry as it was posted. Raises NotFound."""
    row = tx.one("SELECT * FROM ledger_entry WHERE enterprise_id = ? AND entry_id = ?", (enterprise_id, entry_id))
    if row is None:
        raise NotFound(f"the ledger of enterprise {enterprise_id} has no entry {entry_id}")
    sql = "SELECT account, amount_fen FROM ledger_posting WHERE enterprise_id = ? AND entry_id = ? ORDER BY account"
    postings = {row[0]: row[1] for row in tx.execute(sql, (enterprise_id, entry_id))}
    return Entry(
        entry_id, row["kind"], row["at_ms"], postings, row["operator"], row["second_operator"], row["corrects"],
        row["note"],
    )  # fmt: skip


def statement(tx: Tx, enterprise_id: int, account: str, since_ms: int = 0) -> list[Row]:
    """Entries that touched an account since a time, oldest first: entry_id, kind, at_ms, amount_fen, note."""
    return tx.all(
        "SELECT e.entry_id, e.kind, e.at_ms, p.amount_fen, e.note FROM ledger_posting p"
        " JOIN ledger_entry e ON e.enterprise_id = p.enterprise_id AND e.entry_id = p.entry_id"
        " WHERE p.enterprise_id = ? AND p.account = ? AND e.at_ms >= ? ORDER BY e.at_ms, e.posted_ms, e.entry_id",
        (enterprise_id, account, since_ms),
    )


def propose(tx: Tx, enterprise_id: int, proposal: Entry) -> None:
    """Put a correction up for a second operator.

    Raises FormatError, NotFound when what it corrects is unknown, Conflict when it is proposed already.
    """
    _check(proposal)
    sql = "SELECT operator FROM ledger_proposal WHERE enterprise_id = ? AND entry_id = ?"
    if by := tx.value(sql, (enterprise_id, proposal.entry_id)):
        raise Conflict(f"{proposal.entry_id} is proposed already, by {by}: another operator approves it")
    if proposal.corrects is not None:
        entry(tx, enterprise_id, proposal.corrects)
    body = cbor2.dumps([proposal.kind, proposal.at_ms, sorted(proposal.postings.items()), proposal.note])
    tx.execute(
        "INSERT INTO ledger_proposal (enterprise_id, entry_id, proposed_ms, operator, corrects, body)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (enterprise_id, proposal.entry_id, tx.now_ms, proposal.operator, proposal.corrects, body),
    )


def approve(tx: Tx, enterprise_id: int, entry_id: str, operator: str) -> Entry:
    """Post a proposed correction; approving it again changes nothing.

    Raises NotFound, and Refused (``two_operators``) when the proposer approves his own.
    """
    sql = "SELECT * FROM ledger_proposal WHERE enterprise_id = ? AND entry_id = ?"
    row = tx.one(sql, (enterprise_id, entry_id))
    if row is None:
        raise NotFound(f"no correction {entry_id} is proposed")
    if row["operator"] == operator:
        raise Refused("two_operators", f"{operator} proposed {entry_id}: another operator must approve it")
    kind, at_ms, postings, note = cbor2.loads(row["body"])
    approved = Entry(
        entry_id, kind, at_ms, dict(postings), row["operator"], operator, row["corrects"], note
    )  # fmt: skip
    post(tx, enterprise_id, approved)
    return approved


def proposals(tx: Tx, enterprise_id: int) -> list[Row]:
    """Corrections that wait for their second operator."""
    return tx.all(
        "SELECT p.* FROM ledger_proposal p WHERE p.enterprise_id = ? AND NOT EXISTS (SELECT 1 FROM ledger_entry e"
        " WHERE e.enterprise_id = p.enterprise_id AND e.entry_id = p.entry_id) ORDER BY p.proposed_ms, p.entry_id",
        (enterprise_id,),
    )


def head(tx: Tx, enterprise_id: int) -> Head:
    """The end of the sealed chain; ``START`` before the first seal."""
    row = tx.one(
        "SELECT seal_seq, seal_hash FROM ledger_entry WHERE enterprise_id = ? AND seal_seq IS NOT NULL"
        " ORDER BY seal_seq DESC LIMIT 1",
        (enterprise_id,),
    )
    return START if row is None else Head(row["seal_seq"], row["seal_hash"])


def seal(tx: Tx, enterprise_id: int) -> Head:
    """Number and hash all entries committed since the last run, in the caller's write transaction."""
    seq, last = head(tx, enterprise_id)
    updates = []
    for row in tx.execute(
        "SELECT * FROM ledger_entry WHERE enterprise_id = ? AND seal_seq IS NULL ORDER BY posted_ms, entry_id",
        (enterprise_id,),
    ):
        seq += 1
        last = _link(last, seq, row)
        updates.append((seq, last, enterprise_id, row["entry_id"]))
    tx.executemany(
        "UPDATE ledger_entry SET seal_seq = ?, seal_hash = ? WHERE enterprise_id = ? AND entry_id = ?", updates
    )
    return Head(seq, last)


def _link(previous: bytes, seq: int, row: Row) -> bytes:
    who = [row["at_ms"], row["posted_ms"], row["operator"], row["second_operator"], row["note"]]
    return sha256(previous + cbor2.dumps([seq, row["digest"], *who])).digest()


def verify(tx: Tx, enterprise_id: int, kept: Head | None = None) -> Proof:
    """Prove the books: every entry adds up and matches its digest, the sealed part is one unbroken chain.

    Raises CheckFailed that names the first entries at fault; with a ``kept`` head also when the chain does not
    contain it.
    """
    faults: list[str] = []
    (seq, last), unsealed = START, 0
    met = kept is None or kept == START
    for row, postings in _grouped(tx, enterprise_id, "NOT NULL"):
        seq += 1
        last = _link(last, seq, row)
        if (row["seal_seq"], row["seal_hash"]) != (seq, last):
            faults.append(f"{row['entry_id']}: the seal is broken at {row['seal_seq']}")
            seq, last = row["seal_seq"], row["seal_hash"]
        met = met or (seq, last) == kept
        faults += _faults(row, postings)
    for row, postings in _grouped(tx, enterprise_id, "NULL"):
        unsealed += 1
        faults += _faults(row, postings)
    sql = "SELECT COALESCE(SUM(amount_fen), 0) FROM ledger_posting WHERE enterprise_id = ?"
    total = tx.value(sql, (enterprise_id,))
    if total:
        faults.append(f"all accounts add up to {total} fen, not to zero")
    if not met:
        faults.append("the sealed entries do not contain the kept head")
    if faults:
        raise CheckFailed(f"ledger of enterprise {enterprise_id}: {len(faults)} faults: " + "; ".join(faults[:10]))
    return Proof(seq, unsealed, Head(seq, last))


def _grouped(tx: Tx, enterprise_id: int, seal: str) -> Iterator[tuple[Any, list[tuple[str, int]]]]:
    rows: Iterable[Any] = tx.execute(
        "SELECT e.*, p.account, p.amount_fen FROM ledger_entry e LEFT JOIN ledger_posting p"
        " ON p.enterprise_id = e.enterprise_id AND p.entry_id = e.entry_id"
        f" WHERE e.enterprise_id = ? AND e.seal_seq IS {seal} ORDER BY e.seal_seq, e.entry_id, p.account",
        (enterprise_id,),
    )
    for _, lines in groupby(rows, key=lambda row: row["entry_id"]):
        first, *others = lines
        yield first, [(row["account"], row["amount_fen"]) for row in (first, *others)]


def _faults(row: Row, postings: list[tuple[str, int]]) -> Iterator[str]:
    if sum(fen or 0 for _, fen in postings):
        yield f"{row['entry_id']}: amounts do not add up to zero"
    if _digest(row["entry_id"], row["kind"], row["corrects"], postings) != row["digest"]:
        yield f"{row['entry_id']}: content differs from what was posted"
