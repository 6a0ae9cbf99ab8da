"""The audit log: typed events, append-only, hash-chained in batches (design.md, ideas 9; books.md, Books).

Events are appended without a chain, so that writers don't wait for one row. :func:`seal` numbers and hashes
all since its last run; :func:`verify` proves the sealed part and counts the rest. A hash is SHA-256(hash before,
as 64 hex digits || the event's line of text), so that an export can be checked by anybody who has ``sha256sum``
(docs/keys.md, Audit). Who keeps a :class:`Head` elsewhere notices truncation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from enum import StrEnum, unique
from hashlib import sha256
from typing import NamedTuple, Self

from backoffice.database import Row, Tx
from cardlib.errors import CheckFailed, FormatError
from keymgmt.keys import KeyRef

FORMAT = 1
MAX_TEXT = 64
_SUBJECT = re.compile(r"[a-z]+:[^\s\x00-\x1f]{1,57}")
_DETAILS = frozenset(
    {
        "account", "amount_fen", "application", "batch", "card", "count", "day", "digest", "enterprise", "entry",
        "job", "kcv", "key", "kind", "list_version", "name", "new_card", "number", "operator", "outcome", "purpose",
        "reason", "request", "role", "sam", "second_operator", "state_from", "state_to", "terminal", "version",
    }
)  # fmt: skip


@unique
class Event(StrEnum):
    """What can be written to the audit log."""

    ENTERPRISE_REGISTERED = "enterprise.registered"
    ENTERPRISE_STATE = "enterprise.state"
    ENTERPRISE_SETTING = "enterprise.setting"
    SUBSCRIPTION = "enterprise.subscription"
    OPERATOR_ADDED = "operator.added"
    OPERATOR_CHANGED = "operator.changed"
    OPERATOR_LOCKED = "operator.locked"
    OPERATOR_REFUSED = "operator.refused"
    MEMBERS_IMPORTED = "member.imported"
    MEMBERS_EXPORTED = "member.exported"
    MEMBER_CHANGED = "member.changed"
    NUMBER_BOUND = "number.bound"
    NUMBER_RELEASED = "number.released"
    BATCH_RECEIVED = "batch.received"
    CARD_REGISTERED = "card.registered"
    CARD_WASHED = "card.washed"
    SLOT_OPENED = "card.slot_opened"
    CARD_ISSUED = "card.issued"
    CARD_CHANGED = "card.changed"
    CARD_REKEYED = "card.rekeyed"
    WALLET_MOVED = "wallet.moved"
    TERMINAL_REGISTERED = "terminal.registered"
    TERMINAL_CHANGED = "terminal.changed"
    SAM_REGISTERED = "sam.registered"
    SAM_LOST = "sam.lost"
    BLACKLIST_CHANGED = "blacklist.changed"
    BLACKLIST_PUBLISHED = "blacklist.published"
    BLACKLIST_EXPORTED = "blacklist.exported"
    JOURNAL_COLLECTED = "settlement.collected"
    SETTLED = "settlement.run"
    DAY_CLOSED = "settlement.day_closed"
    DAY_REOPENED = "settlement.day_reopened"
    BALANCES_EXPIRED = "ledger.expired"
    LEDGER_CORRECTED = "ledger.corrected"
    LEDGER_SEALED = "ledger.sealed"
    KEY_CHANGED = "key.changed"
    KEY_USED = "key.used"
    KEY_CEREMONY = "key.ceremony"
    KEY_MOVED = "key.moved"
    KEY_STORE_HEAD = "key.store_head"
    MOTHER_CARD = "key.mother_card"
    ATTENDANCE_PLANNED = "attendance.planned"
    ATTENDANCE_CORRECTED = "attendance.corrected"
    DATABASE = "database.changed"
    WEB_ACCESS = "web.access"
    VOUCHERS_CHANGED = "wallet.vouchers"
    SUBSIDY_GRANTED = "wallet.subsidy_granted"


class Head(NamedTuple):
    """The end of a chain: number of its last entry and that entry's hash of 32 bytes."""

    number: int
    hash: bytes

    def encode(self) -> str:
        """As text, to be kept elsewhere: ``number:hash``."""
        return f"{self.number}:{self.hash.hex()}"

    @classmethod
    def decode(cls, text: str) -> Self:
        """Inverse of :meth:`encode`. Raises FormatError."""
        match = re.fullmatch(r"(\d{1,18}):([0-9a-fA-F]{64})", text.strip())
        if not match:
            raise FormatError("a kept head looks like NUMBER:HASH with a hash of 64 hex digits")
        return cls(int(match[1]), bytes.fromhex(match[2]))


class Proof(NamedTuple):
    """What a verification found: entries proven by the chain, entries not yet sealed, the chain's end."""

    sealed: int
    unsealed: int
    head: Head


START = Head(0, bytes(32))


def key_subject(ref: KeyRef) -> str:
    """How events name a master key: ``key:PURPOSE.VERSION``, an enterprise's with ``.NUMBER`` behind."""
    owner = "" if ref.enterprise_id is None else f".{ref.enterprise_id}"
    return f"key:{ref.purpose.name.lower()}.{ref.version}{owner}"


def record(tx: Tx, enterprise_id: int, event: Event, actor: str, subject: str, **details: int | str) -> str:
    """Append an event; returns its id. ``subject`` is ``kind:id``; details are ids and numbers of known names.

    Secrets and personal data have no way in: unknown names raise FormatError, as do long texts.
    """
    if not _SUBJECT.fullmatch(subject) or not 1 <= len(actor) <= MAX_TEXT:
        raise FormatError("an audit event needs an actor and a subject written kind:id")
    unknown = details.keys() - _DETAILS
    if unknown:
        raise FormatError(f"audit events have no detail {', '.join(sorted(unknown))}")
    if any(isinstance(value, str) and len(value) > MAX_TEXT for value in details.values()):
        raise FormatError(f"audit details have at most {MAX_TEXT} characters")
    text = json.dumps(details, sort_keys=True, separators=(",", ":"))
    event_id = tx.new_id()
    tx.execute(
        "INSERT INTO audit_event (enterprise_id, event_id, at_ms, event, actor, subject, details)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (enterprise_id, event_id, tx.now_ms, event.value, actor, subject, text),
    )
    return event_id


def head(tx: Tx, enterprise_id: int) -> Head:
    """The end of the sealed chain; ``START`` before the first seal."""
    row = tx.one(
        "SELECT number, hash FROM audit_event WHERE enterprise_id = ? AND number IS NOT NULL"
        " ORDER BY number DESC LIMIT 1",
        (enterprise_id,),
    )
    return START if row is None else Head(row["number"], row["hash"])


def seal(tx: Tx, enterprise_id: int) -> Head:
    """Number and hash all events since the last run, in the caller's write transaction; returns the new end."""
    number, previous = head(tx, enterprise_id)
    rows = tx.all(
        "SELECT * FROM audit_event WHERE enterprise_id = ? AND number IS NULL ORDER BY event_id", (enterprise_id,)
    )
    sealed = []
    for row in rows:
        number += 1
        previous = _hash(previous, number, row)
        sealed.append((number, previous, enterprise_id, row["event_id"]))
    tx.executemany("UPDATE audit_event SET number = ?, hash = ? WHERE enterprise_id = ? AND event_id = ?", sealed)
    return Head(number, previous)


def verify(tx: Tx, enterprise_id: int, kept: Head | None = None) -> Proof:
    """Walk the chain from its start. Raises CheckFailed at the first entry that is edited, missing or out of order.

    With a ``kept`` head it also raises when the chain ends before it, or does not contain it.
    """
    number, previous = START
    rows = tx.execute(
        "SELECT * FROM audit_event WHERE enterprise_id = ? AND number IS NOT NULL ORDER BY number", (enterprise_id,)
    )
    for row in rows:
        number += 1
        if row["number"] != number:
            raise CheckFailed(f"audit log of {enterprise_id}: entry {number} is missing, {row['number']} follows")
        previous = _hash(previous, number, row)
        if row["hash"] != previous:
            raise CheckFailed(f"audit log of {enterprise_id}: entry {number} of {row['at_ms']} ms was changed")
        if kept is not None and kept.number == number and kept.hash != previous:
            raise CheckFailed(f"audit log of {enterprise_id}: entry {number} is not the one of the kept head")
    if kept is not None and kept.number > number:
        raise CheckFailed(f"audit log of {enterprise_id}: ends at {number}, the kept head is {kept.number}")
    unsealed = tx.value("SELECT COUNT(*) FROM audit_event WHERE enterprise_id = ? AND number IS NULL", (enterprise_id,))
    return Proof(number, unsealed, Head(number, previous))


class Entry(NamedTuple):
    """An event as read back; ``number`` is None until it is sealed."""

    event_id: str
    at_ms: int
    event: str
    actor: str
    subject: str
    details: dict[str, int | str]
    number: int | None


def entries(tx: Tx, enterprise_id: int, *, subject: str = "", after: str = "", limit: int = 100) -> list[Entry]:
    """Up to ``limit`` events after event id ``after``, oldest first, of one subject if given."""
    where, params = "enterprise_id = ? AND event_id > ?", [enterprise_id, after]
    if subject:
        where, params = f"{where} AND subject = ?", [*params, subject]
    columns = "event_id, at_ms, event, actor, subject, details, number"
    rows = tx.all(f"SELECT {columns} FROM audit_event WHERE {where} ORDER BY event_id LIMIT ?", [*params, limit])
    return [
        Entry(one, at_ms, event, who, what, json.loads(text), number)
        for one, at_ms, event, who, what, text, number in rows
    ]


def export(tx: Tx, enterprise_id: int) -> Iterator[str]:
    """The sealed part as lines ``hash of 64 hex digits, space, line``; a line is what :func:`_line` says.

    Each hash is SHA-256 over the hash before (64 zeros at first) and the line: nothing else is needed to check it.
    """
    for row in tx.execute(
        "SELECT * FROM audit_event WHERE enterprise_id = ? AND number IS NOT NULL ORDER BY number", (enterprise_id,)
    ):
        yield f"{row['hash'].hex()} {_line(row['number'], row)}"


def _line(number: int, row: Row) -> str:
    """An event as one line of ASCII JSON: format, enterprise, number, id, UTC ms, event, actor, subject, details."""
    content = (
        FORMAT, row["enterprise_id"], number, row["event_id"], row["at_ms"], row["event"], row["actor"],
        row["subject"], json.loads(row["details"]),
    )  # fmt: skip
    return json.dumps(content, separators=(",", ":"), sort_keys=True)


def _hash(previous: bytes, number: int, row: Row) -> bytes:
    return sha256((previous.hex() + _line(number, row)).encode()).digest()
