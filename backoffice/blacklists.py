"""The enterprise's blacklist over time: staged changes, published versions, files for terminals (blacklist.md).

An entry stands in the versions from_version <= v < until_version. What is staged belongs to the version that
comes next; publishing makes that version, so any delta can be told from the table.
"""

from __future__ import annotations

from typing import NamedTuple

from backoffice import audit
from backoffice.audit import Event
from backoffice.database import Tx
from backoffice.operators import Operator, Permission, require
from cardlib import blacklist
from cardlib.blacklist import Blacklist, FileKind, ListReason, Signer
from cardlib.errors import Conflict, NotFound
from cardlib.profile import check_serial

DELTA_MS = 90 * 86_400_000
"""How far behind a terminal may be to get a delta."""
TOKEN_MS = 31 * 86_400_000
"""How long a revoked token is named: none lasts more than 30 days (link.md)."""
MAX_REVOKED = 100


class Entry(NamedTuple):
    """A card on the list, or staged for it (``published`` False)."""

    card_serial: bytes
    reason: ListReason
    at_ms: int
    published: bool


class Export(NamedTuple):
    """A signed file for a terminal, and the version it leads to."""

    kind: FileKind
    version: int
    raw: bytes


def add(tx: Tx, actor: Operator, enterprise_id: int, card_serial: bytes, reason: ListReason) -> bool:
    """Put a card on the next list; False when it is there for that reason. Raises Refused, FormatError."""
    require(actor, Permission.BLACKLIST_CHANGE, enterprise_id)
    return put(tx, enterprise_id, card_serial, reason, actor.name)


def remove(tx: Tx, actor: Operator, enterprise_id: int, card_serial: bytes) -> bool:
    """Take a card off the next list; False when it is not there. Raises Refused, FormatError."""
    require(actor, Permission.BLACKLIST_CHANGE, enterprise_id)
    return take_off(tx, enterprise_id, card_serial, actor.name)


def put(tx: Tx, enterprise_id: int, card_serial: bytes, reason: ListReason, actor: str) -> bool:
    """:func:`add` for flows that have their own permission, such as a report of loss."""
    check_serial(card_serial)
    after = version(tx, enterprise_id) + 1
    standing = _standing(tx, enterprise_id, card_serial)
    if standing is not None and standing[1] is reason:
        return False
    if standing is not None:
        _end(tx, enterprise_id, card_serial, standing[0], after)
    where, key = "WHERE enterprise_id = ? AND card_serial = ?", (enterprise_id, card_serial)
    staged_off = f"{where} AND until_version = ? AND reason = ?"
    undone = tx.execute(
        f"UPDATE blacklist_entry SET until_version = NULL {staged_off}", (*key, after, int(reason))
    ).rowcount
    if not undone:
        tx.execute("INSERT INTO blacklist_entry VALUES (?, ?, ?, NULL, ?, ?)", (*key, after, int(reason), tx.now_ms))
    _note(tx, enterprise_id, card_serial, actor, "listed", reason.name.lower())
    return True


def take_off(tx: Tx, enterprise_id: int, card_serial: bytes, actor: str) -> bool:
    """:func:`remove` for flows that have their own permission, such as an unlock."""
    check_serial(card_serial)
    standing = _standing(tx, enterprise_id, card_serial)
    if standing is None:
        return False
    _end(tx, enterprise_id, card_serial, standing[0], version(tx, enterprise_id) + 1)
    _note(tx, enterprise_id, card_serial, actor, "off", standing[1].name.lower())
    return True


def prune(tx: Tx, enterprise_id: int, today: str, actor: str) -> int:
    """Take cards off whose application expired before ``today`` (ISO date): terminals refuse those anyway."""
    expired = tx.all(
        "SELECT b.card_serial FROM blacklist_entry b JOIN card_application a"
        " ON a.enterprise_id = b.enterprise_id AND a.card_serial = b.card_serial"
        " WHERE b.enterprise_id = ? AND b.until_version IS NULL AND a.expires < ?",
        (enterprise_id, today),
    )
    for row in expired:
        take_off(tx, enterprise_id, row["card_serial"], actor)
    return len(expired)


def version(tx: Tx, enterprise_id: int) -> int:
    """The version published last, 0 before the first."""
    found: int = tx.value(
        "SELECT COALESCE(MAX(version), 0) FROM blacklist_version WHERE enterprise_id = ?", (enterprise_id,)
    )
    return found


def staged(tx: Tx, enterprise_id: int) -> tuple[int, int]:
    """How many entries the next version would add and remove."""
    after = version(tx, enterprise_id) + 1
    sql = "SELECT COUNT(*) FROM blacklist_entry WHERE enterprise_id = ? AND {} = ?"
    added, removed = (tx.value(sql.format(f"{end}_version"), (enterprise_id, after)) for end in ("from", "until"))
    return added, removed


def publish(tx: Tx, enterprise_id: int, actor: str) -> int:
    """Make what is staged the next version; returns the version in force. The first one may be empty."""
    current = version(tx, enterprise_id)
    added, removed = staged(tx, enterprise_id)
    if current and not added and not removed:
        return current
    row = (enterprise_id, current + 1, added, removed, tx.now_ms)
    tx.execute("INSERT INTO blacklist_version VALUES (?, ?, ?, ?, ?)", row)
    subject = f"blacklist:{current + 1}"
    audit.record(tx, enterprise_id, Event.BLACKLIST_PUBLISHED, actor, subject, list_version=current + 1, count=added)
    return current + 1


def at(tx: Tx, enterprise_id: int, which: int) -> Blacklist:
    """The list of a published version, known to be true now if it is the current one."""
    rows = tx.execute(
        "SELECT card_serial, reason FROM blacklist_entry WHERE enterprise_id = ? AND from_version <= ?"
        " AND (until_version IS NULL OR until_version > ?)",
        (enterprise_id, which, which),
    )
    made = Blacklist.of(enterprise_id, which, tx.now_ms, ((row[0], row[1]) for row in rows))
    made.revoked = revoked(tx, enterprise_id)
    return made


def export(tx: Tx, actor: Operator, enterprise_id: int, signer: Signer, have: int = 0) -> Export:
    """The file that brings a terminal with version ``have`` up to date: freshness, one delta, or the snapshot.

    Raises Refused, NotFound before anything was published, Conflict when ``have`` is no version of this list.
    """
    require(actor, Permission.BLACKLIST_EXPORT, enterprise_id)
    current = version(tx, enterprise_id)
    if not current:
        raise NotFound(f"enterprise {enterprise_id} has no list yet: run `onecard blacklist build`")
    if not 0 <= have <= current:
        raise Conflict(f"version {have} was never published here; the list is at {current}")
    if have == current:
        fresh = Blacklist(enterprise_id, current, tx.now_ms, None, revoked(tx, enterprise_id))
        return Export(FileKind.FRESHNESS, current, blacklist.freshness(signer, fresh))
    now = at(tx, enterprise_id, current)
    changes, left_ms = tx.one(
        "SELECT SUM(added + removed), MIN(created_ms) FROM blacklist_version WHERE enterprise_id = ? AND version > ?",
        (enterprise_id, have),
    ) or (0, 0)
    if not have or tx.now_ms - left_ms > DELTA_MS or changes > len(now):
        return Export(FileKind.SNAPSHOT, current, blacklist.snapshot(signer, now))
    return Export(FileKind.DELTA, current, blacklist.delta(signer, at(tx, enterprise_id, have), now))


def revoke_token(tx: Tx, actor: Operator, enterprise_id: int, token_id: bytes) -> bool:
    """Name an installer's token as revoked in every list file; False when it was. Raises Refused, Conflict."""
    require(actor, Permission.BLACKLIST_CHANGE, enterprise_id)
    known = revoked(tx, enterprise_id)
    if token_id in known:
        return False
    if len(known) >= MAX_REVOKED:
        raise Conflict(f"{MAX_REVOKED} tokens were revoked within 30 days: give the site a new authority")
    tx.execute("DELETE FROM revoked_token WHERE enterprise_id = ? AND token_id = ?", (enterprise_id, token_id))
    tx.execute("INSERT INTO revoked_token VALUES (?, ?, ?)", (enterprise_id, token_id, tx.now_ms))
    subject = f"token:{token_id.hex().upper()}"
    audit.record(tx, enterprise_id, Event.BLACKLIST_CHANGED, actor.name, subject, outcome="revoked")
    return True


def revoked(tx: Tx, enterprise_id: int) -> tuple[bytes, ...]:
    """Ids of revoked tokens that might not have expired yet."""
    sql = "SELECT token_id FROM revoked_token WHERE enterprise_id = ? AND at_ms > ? ORDER BY token_id"
    return tuple(row[0] for row in tx.all(sql, (enterprise_id, tx.now_ms - TOKEN_MS)))


def listing(tx: Tx, enterprise_id: int) -> list[Entry]:
    """The cards that the next version lists, by time."""
    current = version(tx, enterprise_id)
    rows = tx.all(
        "SELECT card_serial, reason, at_ms, from_version FROM blacklist_entry WHERE enterprise_id = ?"
        " AND until_version IS NULL ORDER BY at_ms, card_serial",
        (enterprise_id,),
    )
    return [Entry(serial, ListReason(reason), at_ms, start <= current) for serial, reason, at_ms, start in rows]


def _standing(tx: Tx, enterprise_id: int, card_serial: bytes) -> tuple[int, ListReason] | None:
    row = tx.one(
        "SELECT from_version, reason FROM blacklist_entry WHERE enterprise_id = ? AND card_serial = ?"
        " AND until_version IS NULL",
        (enterprise_id, card_serial),
    )
    return None if row is None else (row["from_version"], ListReason(row["reason"]))


def _end(tx: Tx, enterprise_id: int, card_serial: bytes, start: int, until: int) -> None:
    """End a standing entry with the next version; one that was never published just goes."""
    where, key = "WHERE enterprise_id = ? AND card_serial = ? AND from_version = ?", (enterprise_id, card_serial, start)
    if start == until:
        tx.execute(f"DELETE FROM blacklist_entry {where}", key)
    else:
        tx.execute(f"UPDATE blacklist_entry SET until_version = ? {where}", (until, *key))


def _note(tx: Tx, enterprise_id: int, card_serial: bytes, actor: str, outcome: str, reason: str) -> None:
    subject = f"card:{card_serial.hex().upper()}"
    audit.record(tx, enterprise_id, Event.BLACKLIST_CHANGED, actor, subject, outcome=outcome, reason=reason)
