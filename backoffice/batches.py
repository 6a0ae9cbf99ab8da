"""Batches of chips that vendors delivered: which chip is of which, its transport key wrapped as it came."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple

from backoffice import audit
from backoffice.audit import Event
from backoffice.database import PLATFORM, Database, Row, Tx
from backoffice.operators import Operator, Permission, require
from cardlib.crypto import Algorithm
from cardlib.errors import Conflict, NotFound
from cardlib.profile import CardKind
from keymgmt.batchfile import BatchFile, BatchHead, ChipRow

_COLUMNS = "batch_id, vendor, kind, algorithm, key_check, wrapped_key"


class Batch(NamedTuple):
    """A batch and how much of it is washed."""

    head: BatchHead
    cards: int
    washed: int
    received_ms: int


class WashSteps:
    """How far the washing of each chip is, in the platform's database: see ``keymgmt.steps.StepJournal``."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def done(self, job: str, step: str) -> None:
        """See ``keymgmt.steps.StepJournal``."""
        with self._db.write() as tx:
            tx.execute(
                "INSERT INTO wash_step SELECT ?, COALESCE(MAX(number), 0) + 1, ?, ? FROM wash_step WHERE job = ?",
                (job, step, tx.now_ms, job),
            )

    def steps(self, job: str) -> Sequence[str]:
        """See ``keymgmt.steps.StepJournal``."""
        with self._db.read() as tx:
            return [row[0] for row in tx.all("SELECT step FROM wash_step WHERE job = ? ORDER BY number", (job,))]


def receive(tx: Tx, actor: Operator, file: BatchFile, data: bytes) -> Batch:
    """Keep a batch file that was checked; the same file again changes nothing.

    Raises Conflict for another file of this batch, or a chip that another batch has already.
    """
    require(actor, Permission.CARD_WASH, PLATFORM)
    head, digest = file.head, sha256(data).digest()
    known = tx.one("SELECT digest FROM vendor_batch WHERE batch_id = ?", (head.batch,))
    if known is not None:
        if known["digest"] != digest:
            raise Conflict(f"batch {head.batch} was received with other content: ask {head.vendor} for a new batch id")
        return get(tx, head.batch)
    tx.execute(
        "INSERT INTO vendor_batch (batch_id, vendor, kind, cards, digest, received_ms, algorithm, key_check,"
        " wrapped_key) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (head.batch, head.vendor, int(head.kind), len(file.chips), digest, tx.now_ms, int(head.algorithm), head.check,
         head.wrapped or None),
    )  # fmt: skip
    for row in file.chips:
        twin = tx.one("SELECT batch_id FROM vendor_chip WHERE chip = ?", (row.chip,))
        if twin is not None:
            raise Conflict(f"chip {row.chip} is in batch {twin['batch_id']} already: ask {head.vendor} which is right")
    tx.executemany("INSERT INTO vendor_chip VALUES (?, ?, ?, ?)",
                   [(row.chip, head.batch, row.atr, row.wrapped) for row in file.chips])  # fmt: skip
    subject = f"batch:{head.batch}"
    audit.record(tx, PLATFORM, Event.BATCH_RECEIVED, actor.name, subject, count=len(file.chips), digest=digest.hex())
    return get(tx, head.batch)


def get(tx: Tx, batch_id: str) -> Batch:
    """One batch. Raises NotFound."""
    found = listing(tx, batch_id)
    if not found:
        raise NotFound(f"no batch {batch_id} was received: onecard card batch receive FILE")
    return found[0]


def listing(tx: Tx, batch_id: str = "") -> list[Batch]:
    """All batches, the newest first, or the one named."""
    rows = tx.all(
        f"SELECT {_COLUMNS}, cards, received_ms, (SELECT COUNT(*) FROM card WHERE card.batch_id = vendor_batch.batch_id"
        " AND card.wash_version > 0) AS washed FROM vendor_batch WHERE batch_id = ? OR ? = ''"
        " ORDER BY received_ms DESC, batch_id",
        (batch_id, batch_id),
    )
    return [Batch(_head(row), row["cards"], row["washed"], row["received_ms"]) for row in rows]


def of_chip(tx: Tx, chip: str) -> tuple[BatchHead, ChipRow] | None:
    """The batch of a chip and its row, or None."""
    row = tx.one("SELECT batch_id, atr, wrapped_key FROM vendor_chip WHERE chip = ?", (chip,))
    if row is None:
        return None
    head = tx.one(f"SELECT {_COLUMNS} FROM vendor_batch WHERE batch_id = ?", (row["batch_id"],))
    assert head is not None
    return _head(head), ChipRow(chip, row["atr"], row["wrapped_key"])


def chips_of(tx: Tx, batch_id: str) -> list[Row]:
    """The chips of a batch: chip, atr, serial and wash_version (None for those never begun)."""
    return tx.all(
        "SELECT vendor_chip.chip, vendor_chip.atr, card.serial, card.wash_version FROM vendor_chip"
        " LEFT JOIN card ON card.chip = vendor_chip.chip WHERE vendor_chip.batch_id = ? ORDER BY vendor_chip.chip",
        (batch_id,),
    )


def _head(row: Row) -> BatchHead:
    return BatchHead(
        row["vendor"], row["batch_id"], CardKind(row["kind"]), Algorithm(row["algorithm"]), row["key_check"] or b"",
        row["wrapped_key"] or b"",
    )  # fmt: skip
