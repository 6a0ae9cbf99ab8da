"""Vouchers: a number and a secret on paper, good for one recharge at a terminal with a line (terminals.md, Recharge).

Secrets are 80 random bits, printed once; only a hash is kept. Which ones are used is told by their permits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import date
from hashlib import sha256
from hmac import compare_digest
from typing import NamedTuple

from backoffice import audit, ledger, permits
from backoffice.audit import Event
from backoffice.database import Database, Tx
from backoffice.operators import Operator, Permission, require
from backoffice.permits import Permit
from backoffice.settlement import day_of
from cardlib.errors import Conflict, FormatError, NotFound, Refused
from cardlib.profile import Purse

MAX_BATCH = 10_000
MAX_TRIES, LOCK_MS = 5, 3_600_000
_LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Without those that are taken for others."""
_BATCH = re.compile(r"[A-Za-z0-9._-]{1,16}")


class Voucher(NamedTuple):
    """One as printed; ``secret`` is four groups of four characters."""

    number: str
    secret: str


class Batch(NamedTuple):
    """A batch as listed."""

    batch: str
    amount_fen: int
    expires: str
    vouchers: int
    used: int
    cancelled: int


def check_batch(batch: str, amount_fen: int, expires: str) -> None:
    """Raise FormatError unless these can be a batch's name, amount and last day."""
    if not _BATCH.fullmatch(batch):
        raise FormatError("a batch's name has 1 to 16 of A-Z a-z 0-9 . _ -")
    if not 0 < amount_fen <= permits.MAX_FEN:
        raise FormatError(f"an amount is 1 to {permits.MAX_FEN} fen, not {amount_fen}")
    try:
        day = date.fromisoformat(expires).isoformat()
    except ValueError:
        day = ""
    if day != expires:
        raise FormatError(f"{expires} is no date like 2027-12-31")


def make(
    tx: Tx,
    actor: Operator,
    enterprise_id: int,
    batch: str,
    count: int,
    amount_fen: int,
    expires: str,
    random_bytes: Callable[[int], bytes],
) -> list[Voucher]:
    """Make a batch; nobody can show its secrets again. Raises Refused, FormatError, Conflict for a name taken."""
    require(actor, Permission.WALLET_RECHARGE, enterprise_id)
    check_batch(batch, amount_fen, expires)
    if not 1 <= count <= MAX_BATCH:
        raise FormatError(f"a batch has 1 to {MAX_BATCH} vouchers, not {count}")
    if tx.one("SELECT number FROM voucher WHERE enterprise_id = ? AND batch = ?", (enterprise_id, batch)):
        raise Conflict(f"there is a batch {batch}: give a new name")
    taken = {row[0] for row in tx.execute("SELECT number FROM voucher WHERE enterprise_id = ?", (enterprise_id,))}
    made: dict[str, Voucher] = {}
    while len(made) < count:
        number = f"{int.from_bytes(random_bytes(8), 'big') % 10**12:012}"
        if number not in taken:
            made[number] = Voucher(number, _spell(random_bytes(10)))
    tx.executemany(
        "INSERT INTO voucher (enterprise_id, number, batch, digest, amount_fen, expires, state, created_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, 'open', ?)",
        (
            (enterprise_id, one.number, batch, _digest(one.number, one.secret), amount_fen, expires, tx.now_ms)
            for one in made.values()
        ),
    )
    audit.record(
        tx, enterprise_id, Event.VOUCHERS_CHANGED, actor.name, f"batch:{batch}", count=count, amount_fen=amount_fen
    )
    return list(made.values())


def cancel(tx: Tx, actor: Operator, enterprise_id: int, batch: str) -> int:
    """Make what is not used of a batch void; returns how many of it are. Raises Refused, NotFound."""
    require(actor, Permission.WALLET_RECHARGE, enterprise_id)
    if batch not in {one.batch for one in batches(tx, enterprise_id)}:
        raise NotFound(f"there is no batch {batch}")
    tx.execute("UPDATE voucher SET state = 'cancelled' WHERE enterprise_id = ? AND batch = ?", (enterprise_id, batch))
    found = next(one for one in batches(tx, enterprise_id) if one.batch == batch)
    audit.record(
        tx, enterprise_id, Event.VOUCHERS_CHANGED, actor.name, f"batch:{batch}", count=found.cancelled,
        state_to="cancelled",
    )  # fmt: skip
    return found.cancelled


def batches(tx: Tx, enterprise_id: int) -> list[Batch]:
    """All batches: how many vouchers, how many of them used or cancelled before they were."""
    return [
        Batch(*row)
        for row in tx.all(
            "SELECT v.batch, MIN(v.amount_fen), MIN(v.expires), COUNT(*), COUNT(p.request_id),"
            " SUM(CASE WHEN v.state = 'cancelled' AND p.request_id IS NULL THEN 1 ELSE 0 END) FROM voucher v"
            " LEFT JOIN load_permit p ON p.enterprise_id = v.enterprise_id AND p.source = 'voucher:' || v.number"
            " AND p.state IN ('held', 'done') WHERE v.enterprise_id = ? GROUP BY v.batch ORDER BY v.batch",
            (enterprise_id,),
        )
    ]


def redeem(
    db: Database, enterprise_id: int, terminal: bytes, card_serial: bytes, number: str, secret: str, offset_min: int
) -> Permit:
    """Leave for a terminal to load a voucher's amount; the voucher is used once MAC2 is given, not before.

    Each try is counted before it is checked; five wrong ones lock the voucher for an hour. Raises Refused ``voucher``
    (number or secret, nobody learns which), ``voucher_locked``, ``voucher_expired``, and as :func:`permits.allow`.
    """
    with db.write() as tx:
        found = _tried(tx, enterprise_id, number, secret)
    if found is None:
        raise Refused("voucher", "number or secret is wrong")
    amount_fen, expires, state = found
    if state != "open" or day_of(db.now_ms(), offset_min) > expires:
        raise Refused("voucher_expired", f"the voucher was good until {expires}" if state == "open" else "it is void")
    request_id = f"voucher:{number}"
    wanted = Permit(terminal, request_id, request_id, card_serial, Purse.MAIN, amount_fen, ledger.VOUCHERS)
    with db.write() as tx:
        return permits.allow(tx, enterprise_id, wanted)


def _tried(tx: Tx, enterprise_id: int, number: str, secret: str) -> tuple[int, str, str] | None:
    """Count a try and check it: amount, last day and state, or None. Raises Refused ``voucher_locked``."""
    where, key = "WHERE enterprise_id = ? AND number = ?", (enterprise_id, number)
    row = tx.one(f"SELECT * FROM voucher {where}", key)
    if row is None:
        return None
    if tx.now_ms < row["locked_until_ms"]:
        raise Refused("voucher_locked", "too many wrong secrets for this voucher: try in an hour")
    right = compare_digest(_digest(number, secret), row["digest"])
    tries = 0 if right else row["tries"] + 1
    until_ms = tx.now_ms + LOCK_MS if tries >= MAX_TRIES else 0
    tx.execute(f"UPDATE voucher SET tries = ?, locked_until_ms = ? {where}", (tries % MAX_TRIES, until_ms, *key))
    return (row["amount_fen"], row["expires"], row["state"]) if right else None


def _spell(raw: bytes) -> str:
    value = int.from_bytes(raw, "big")
    letters = "".join(_LETTERS[value >> 5 * place & 31] for place in range(16))
    return "-".join(_groups(letters))


def _groups(letters: str) -> Iterator[str]:
    yield from (letters[at : at + 4] for at in range(0, len(letters), 4))


def _digest(number: str, secret: str) -> bytes:
    """However people write it: case, dashes and spaces do not count, nor O for 0 and I or L for 1."""
    letters = "".join(letter for letter in secret.upper() if letter.isalnum())
    return sha256(f"{number}:{letters.translate(str.maketrans('OIL', '011'))}".encode()).digest()
