"""Balance expiry (requirements C7, D9): once the enterprise's date is over, what cards hold becomes void, exactly once.

In the books it moves from the card's account to ``expired`` at once. The chip follows at its next desk, which takes
it off before anything is loaded (``wallet.empty``); until then :func:`backoffice.ledger.void` says how much that is,
and a till that takes it all the same has honoured it: settlement gives it back. So card account + void = chip, always.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

from backoffice import audit, ledger, reconcile
from backoffice.audit import Event
from backoffice.database import Database, Tx
from backoffice.enterprises import Setting, setting
from backoffice.ledger import Entry, card_account, expiry_id
from backoffice.operators import Operator, Permission, require
from backoffice.settlement import day_of
from cardlib.errors import Conflict, NotFound, Refused
from cardlib.profile import Purse
from cardlib.records import DEFAULT_OFFSET_MIN

PAGE = 2_000
REVERSED = "/reversed"


class Expiring(NamedTuple):
    """What becomes void of a purse, or ``left``: why it can't be told yet."""

    card_serial: bytes
    purse: Purse
    amount_fen: int
    left: str


def date_over(tx: Tx, enterprise_id: int, offset_min: int = DEFAULT_OFFSET_MIN) -> str:
    """The enterprise's date, the last on which balances are worth something. Raises Refused ``not_expired``."""
    date = str(setting(tx, enterprise_id, Setting.BALANCE_EXPIRES))
    if not date:
        raise Refused("not_expired", "balances here do not expire: onecard enterprise set balance_expires DATE")
    if day_of(tx.now_ms, offset_min) <= date:
        raise Refused("not_expired", f"balances are good until the end of {date}")
    return date


def accounts(tx: Tx, enterprise_id: int) -> int:
    """How many purses :func:`expire` looks at."""
    return sum(fen > 0 for fen in ledger.balances(tx, enterprise_id, "card/").values())


def expire(
    db: Database, operator: Operator, enterprise_id: int, offset_min: int = DEFAULT_OFFSET_MIN, *, dry_run: bool = False
) -> Iterator[Expiring]:
    """Move every certain balance to ``expired``, a few hundred purses to a transaction; again, it goes on.

    A purse expires once for each date. What was loaded after both the date and its setting stays. Raises Refused:
    permission, ``not_expired``.
    """
    require(operator, Permission.SETTLE_CLOSE, enterprise_id)
    with db.read() as tx:
        date_over(tx, enterprise_id, offset_min)
    after = "card/"
    while True:
        with db.read() if dry_run else db.write() as tx:
            names = [
                row[0]
                for row in tx.all(
                    "SELECT account FROM ledger_posting WHERE enterprise_id = ? AND account > ? AND account < 'card/~'"
                    " GROUP BY account HAVING SUM(amount_fen) > 0 ORDER BY account LIMIT ?",
                    (enterprise_id, after, PAGE),
                )
            ]
            found = _plan(tx, enterprise_id, names, offset_min)
            if not dry_run:
                _post(tx, operator, enterprise_id, found, date_over(tx, enterprise_id, offset_min))
        yield from found
        if len(names) < PAGE:
            return
        after = names[-1]


def expire_card(tx: Tx, operator: Operator, enterprise_id: int, card_serial: bytes, offset_min: int) -> None:
    """The same for the card at a desk, which has said what it holds. Raises Refused ``not_certain``."""
    names = [card_account(card_serial, purse) for purse in Purse]
    found = _plan(tx, enterprise_id, names, offset_min)
    if uncertain := next((one for one in found if one.left), None):
        raise Refused("not_certain", f"card {card_serial.hex().upper()}: {uncertain.left}: collect and settle first")
    _post(tx, operator, enterprise_id, found, date_over(tx, enterprise_id, offset_min))


def waited_for(tx: Tx, enterprise_id: int, offset_min: int = DEFAULT_OFFSET_MIN) -> list[reconcile.Behind]:
    """Terminals whose journals up to the end of the date are still to come, unless its closing accepted that."""
    date = date_over(tx, enterprise_id, offset_min)
    accepted = tx.value("SELECT accepted FROM closed_day WHERE enterprise_id = ? AND day = ?", (enterprise_id, date))
    by_name = set(json.loads(accepted)) if accepted else set()
    behind = reconcile.behind(tx, enterprise_id, reconcile.end_of_day(date, offset_min))
    return [one for one in behind if one.terminal.hex() not in by_name]


def _plan(tx: Tx, enterprise_id: int, names: list[str], offset_min: int) -> list[Expiring]:
    """What of some accounts, in order of name, expires now; those that did for this date are passed over."""
    if not names:
        return []
    date = date_over(tx, enterprise_id, offset_min)
    end_ms = reconcile.end_of_day(date, offset_min)
    set_ms = tx.value(
        "SELECT changed_ms FROM setting WHERE enterprise_id = ? AND name = 'balance_expires'", (enterprise_id,)
    )
    span = (enterprise_id, names[0], names[-1])
    fresh = {
        row[0]: row[1]
        for row in tx.execute(
            "SELECT p.account, SUM(p.amount_fen) FROM ledger_posting p JOIN ledger_entry e"
            " ON e.enterprise_id = p.enterprise_id AND e.entry_id = p.entry_id WHERE p.enterprise_id = ?"
            " AND p.account BETWEEN ? AND ? AND p.amount_fen > 0 AND e.at_ms >= ?"
            " AND NOT (p.entry_id >= 'expiry/' AND p.entry_id < 'expiry/~') GROUP BY p.account",
            (*span, max(end_ms, set_ms)),
        )
    }
    gaps = {(gap.card_serial, gap.purse): gap for gap in reconcile.gaps(tx, enterprise_id)}
    behind = waited_for(tx, enterprise_id, offset_min)
    missing = "journals are still to come of " + ", ".join(f"{one.terminal.hex()} ({one.name})" for one in behind)
    found = []
    for name in names:
        _, serial, purse_name = name.split("/")
        card_serial, purse = bytes.fromhex(serial), Purse[purse_name.upper()]
        fen = ledger.balance(tx, enterprise_id, name) - fresh.get(name, 0)
        if fen <= 0 or _known(tx, enterprise_id, expiry_id(card_serial, purse, date)):
            continue
        left = ""
        if gap := gaps.get((card_serial, purse)):
            numbers = ", ".join(filter(None, (gap.missing_offline, gap.missing_online)))
            left = f"records {numbers} are missing" if numbers else "its balance does not follow from its records"
        elif _is_open(tx, enterprise_id, card_serial):
            left = "records are not settled or in doubt"
        elif behind and not _said_since(tx, enterprise_id, card_serial, purse, end_ms):
            left = missing
        found.append(Expiring(card_serial, purse, fen, left))
    return found


def _post(tx: Tx, operator: Operator, enterprise_id: int, found: list[Expiring], date: str) -> None:
    entries = [
        ledger.transfer(
            expiry_id(one.card_serial, one.purse, date), "expiry", tx.now_ms, card_account(one.card_serial, one.purse),
            ledger.EXPIRED, one.amount_fen, operator.name,
        )
        for one in found if not one.left
    ]  # fmt: skip
    ledger.post(tx, enterprise_id, *entries)
    if entries:
        fen = sum(entry.postings[ledger.EXPIRED] for entry in entries)
        audit.record(
            tx, enterprise_id, Event.BALANCES_EXPIRED, operator.name, f"date:{date}", amount_fen=fen,
            number=len(entries),
        )  # fmt: skip


def _known(tx: Tx, enterprise_id: int, entry_id: str) -> bool:
    sql = "SELECT entry_id FROM ledger_entry WHERE enterprise_id = ? AND entry_id = ?"
    return tx.one(sql, (enterprise_id, entry_id)) is not None


def _is_open(tx: Tx, enterprise_id: int, card_serial: bytes) -> bool:
    sql = "SELECT record_id FROM transaction_record WHERE enterprise_id = ? AND card_serial = ? AND open = 1 LIMIT 1"
    return tx.one(sql, (enterprise_id, card_serial)) is not None


def _said_since(tx: Tx, enterprise_id: int, card_serial: bytes, purse: Purse, end_ms: int) -> bool:
    """Whether the card itself was asked after the date, so that no journal can know more."""
    sql = "SELECT said_ms FROM purse_position WHERE enterprise_id = ? AND card_serial = ? AND purse = ?"
    said_ms = tx.value(sql, (enterprise_id, card_serial, int(purse)))
    return said_ms is not None and said_ms >= end_ms


# Taking it back


def propose_reversal(
    tx: Tx, operator: Operator, enterprise_id: int, card_serial: bytes, purse: Purse, reason: str
) -> Entry:
    """Propose to give the last expired balance of a purse back; another operator approves it (:func:`approve`).

    What the chip still holds is worth something again; what a desk took off since is owed to the holder (``refunds``).
    Raises Refused for permission, NotFound when nothing expired, Conflict when it is reversed or proposed already.
    """
    require(operator, Permission.LEDGER_CORRECT, enterprise_id)
    prefix = expiry_id(card_serial, purse)
    entry_id = tx.value(
        "SELECT entry_id FROM ledger_entry WHERE enterprise_id = ? AND entry_id >= ? AND entry_id < ?"
        " AND kind = 'expiry' ORDER BY entry_id DESC LIMIT 1",
        (enterprise_id, prefix, prefix + "~"),
    )
    if entry_id is None:
        raise NotFound(f"no balance of card {card_serial.hex().upper()}, {purse.name.lower()} purse, has expired")
    account = card_account(card_serial, purse)
    expired_fen = ledger.entry(tx, enterprise_id, entry_id).postings[ledger.EXPIRED]
    void_fen = min(expired_fen, ledger.void(tx, enterprise_id, card_serial, purse))
    owed_fen = min(expired_fen - void_fen, _emptied_since(tx, enterprise_id, entry_id, prefix))
    if _known(tx, enterprise_id, entry_id + REVERSED) or not void_fen + owed_fen:
        raise Conflict(f"{entry_id} was given back or spent already")
    getters = {account: void_fen, ledger.REFUNDS: owed_fen}
    postings = {ledger.EXPIRED: -void_fen - owed_fen} | {name: fen for name, fen in getters.items() if fen}
    made = Entry(
        entry_id + REVERSED, "expiry_reversed", tx.now_ms, postings, operator.name, corrects=entry_id, note=reason
    )
    ledger.propose(tx, enterprise_id, made)
    return made


def _emptied_since(tx: Tx, enterprise_id: int, entry_id: str, prefix: str) -> int:
    """Fen that desks took off the chip after a balance expired."""
    return int(
        tx.value(
            "SELECT COALESCE(-SUM(p.amount_fen), 0) FROM ledger_entry e JOIN ledger_posting p"
            " ON p.enterprise_id = e.enterprise_id AND p.entry_id = e.entry_id AND p.account = ?"
            " WHERE e.enterprise_id = ? AND e.entry_id >= ? AND e.entry_id < ? AND e.posted_ms >="
            " (SELECT posted_ms FROM ledger_entry WHERE enterprise_id = ? AND entry_id = ?)",
            (ledger.EXPIRED, enterprise_id, f"{prefix}emptied/", f"{prefix}emptied/~", enterprise_id, entry_id),
        )
    )


def approve(tx: Tx, operator: Operator, enterprise_id: int, entry_id: str) -> Entry:
    """Post a proposed correction, of whatever kind; again changes nothing.

    Raises as :func:`backoffice.ledger.approve`, and Refused ``expiry_changed`` when the chip no longer holds what
    the reversal of an expiry would give back.
    """
    require(operator, Permission.LEDGER_CORRECT, enterprise_id)
    new = not _known(tx, enterprise_id, entry_id)
    approved = ledger.approve(tx, enterprise_id, entry_id, operator.name)
    if entry_id.startswith("expiry/"):
        _, serial, purse, _ = entry_id.split("/", 3)
        if ledger.void(tx, enterprise_id, bytes.fromhex(serial), Purse[purse.upper()]) < 0:
            raise Refused(
                "expiry_changed",
                f"the balance of card {serial.upper()} was taken off or spent since {entry_id} was proposed: propose "
                "what is right with `onecard settle propose`, from expired to refunds",
            )
    if new:
        fen = sum(amount for amount in approved.postings.values() if amount > 0)
        audit.record(
            tx, enterprise_id, Event.LEDGER_CORRECTED, approved.operator, f"entry:{entry_id}",
            second_operator=operator.name, amount_fen=fen, reason=approved.note[:64],
        )  # fmt: skip
    return approved
