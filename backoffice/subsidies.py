"""Subsidies that members claim at a recharge terminal: granted by batch for a period, each claimed once, or expired."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum, unique
from typing import NamedTuple

from backoffice import audit, ledger, permits
from backoffice.audit import Event
from backoffice.database import Tx
from backoffice.operators import Operator, Permission, require
from backoffice.permits import Permit
from backoffice.settlement import day_of
from backoffice.vouchers import check_batch
from cardlib.errors import Conflict, FormatError, Refused
from cardlib.profile import Purse


@unique
class Way(StrEnum):
    """What a claim does to what the purse still holds: add to it, or bring it up to the amount (zeroing the rest)."""

    ADD = "add"
    FILL = "fill"


class Grants(NamedTuple):
    """A batch as listed."""

    batch: str
    period: int
    amount_fen: int
    way: str
    expires: str
    members: int
    claimed: int


def grant(
    tx: Tx,
    actor: Operator,
    enterprise_id: int,
    batch: str,
    period: int,
    amount_fen: int,
    way: Way,
    expires: str,
    members: Sequence[str] = (),
) -> int:
    """Grant each member (all active ones when none is named) an amount; returns how many.

    Raises Refused, FormatError, Conflict when there is a batch so named, or a member is unknown.
    """
    require(actor, Permission.WALLET_SUBSIDY, enterprise_id)
    check_batch(batch, amount_fen, expires)
    if not 1 <= period <= 0xFFFFFFFF:
        raise FormatError(f"a period is a number like 202612, not {period}")
    if tx.one("SELECT batch FROM subsidy_grant WHERE enterprise_id = ? AND batch = ?", (enterprise_id, batch)):
        raise Conflict(f"there is a batch {batch}: give a new name")
    rows = tx.all("SELECT member_number FROM member WHERE enterprise_id = ? AND state = 'active'", (enterprise_id,))
    active = {row[0] for row in rows}
    if unknown := set(members) - active:
        raise FormatError(f"{min(unknown)} is no member, or has left")
    named = sorted(set(members) or active)
    tx.executemany(
        "INSERT INTO subsidy_grant (enterprise_id, batch, member_number, period, amount_fen, way, expires, created_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        ((enterprise_id, batch, one, period, amount_fen, way.value, expires, tx.now_ms) for one in named),
    )
    audit.record(
        tx, enterprise_id, Event.SUBSIDY_GRANTED, actor.name, f"batch:{batch}", count=len(named), amount_fen=amount_fen
    )
    return len(named)


def listing(tx: Tx, enterprise_id: int) -> list[Grants]:
    """All batches: for how many members, and how many of them have claimed."""
    return [
        Grants(*row)
        for row in tx.all(
            "SELECT g.batch, MIN(g.period), MIN(g.amount_fen), MIN(g.way), MIN(g.expires), COUNT(*),"
            f" COUNT(p.request_id) FROM subsidy_grant g LEFT JOIN load_permit p ON {_CLAIMED}"
            " WHERE g.enterprise_id = ? GROUP BY g.batch ORDER BY g.batch",
            (enterprise_id,),
        )
    ]


_CLAIMED = (
    "p.enterprise_id = g.enterprise_id AND p.state IN ('held', 'done')"
    " AND p.source = 'claim:' || g.period || ':' || g.batch || ':' || g.member_number"
)


def claim(tx: Tx, enterprise_id: int, terminal: bytes, card_serial: bytes, balance_fen: int, offset_min: int) -> Permit:
    """Leave for a terminal to load the oldest grant that the card's holder has not claimed, or go on with a torn claim.

    ``balance_fen`` is what the subsidy purse holds by the terminal's word; the card has to prove it before MAC2 is
    given. Raises Refused ``nothing_to_claim``, ``purse_full``, and as :func:`permits.allow`.
    """
    permits.require_active_card(tx, enterprise_id, card_serial)
    today = day_of(tx.now_ms, offset_min)
    row = tx.one(
        "SELECT g.*, p.amount_fen AS held_fen FROM subsidy_grant g"
        " JOIN card_application a ON a.enterprise_id = g.enterprise_id AND a.member_number = g.member_number"
        f" LEFT JOIN load_permit p ON {_CLAIMED}"
        " WHERE g.enterprise_id = ? AND a.card_serial = ? AND g.expires >= ?"
        " AND (p.state IS NULL OR (p.state = 'held' AND p.terminal = ? AND p.card_serial = ?))"
        " ORDER BY g.period, g.batch LIMIT 1",
        (enterprise_id, card_serial, today, terminal, card_serial),
    )
    if row is None:
        raise Refused("nothing_to_claim", "no subsidy waits for the holder of this card")
    upto_fen = row["amount_fen"] if row["way"] == Way.FILL else None
    amount_fen = row["held_fen"] or (row["amount_fen"] if upto_fen is None else upto_fen - balance_fen)
    if amount_fen <= 0:
        raise Refused("purse_full", f"the subsidy purse is to be filled up to {upto_fen} fen and holds {balance_fen}")
    request_id = f"claim:{row['period']}:{row['batch']}:{row['member_number']}"
    return permits.allow(
        tx, enterprise_id,
        Permit(
            terminal, request_id, request_id, card_serial, Purse.SUBSIDY, amount_fen, ledger.SUBSIDIES, upto_fen
        ),
    )  # fmt: skip
