"""Money to and from a card in the office's reader: recharge, subsidy, refund, online undo, expiry (requirement D9).

Each is a journaled job: torn, it continues when the same card is presented again; a repeated request id gives
the first outcome.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from backoffice import audit, expiry, ledger, permits
from backoffice.audit import Event
from backoffice.database import Tx
from backoffice.enterprises import Setting, number_setting
from backoffice.jobs import Result
from backoffice.ledger import card_account
from backoffice.operators import Operator, Permission, require
from backoffice.settlement import SPENDS
from backoffice.station import Desk, Office, Work, run
from cardlib.errors import FormatError, NotFound, Refused
from cardlib.profile import Purse
from cardlib.purse import CardSession, MoneyRequest, balance, debit, load, unload
from cardlib.records import Transaction, local_when
from cardlib.transport import Transport

PAYERS = (ledger.BANK, ledger.VOUCHERS, "cash/")
"""Accounts, or beginnings of their names, that a recharge is paid from."""


@dataclass(frozen=True, slots=True)
class Move:
    """What to do with one purse. ``account`` stands against it; an undo names the payment (``undoes``) instead."""

    kind: str
    serial: bytes
    purse: Purse
    amount_fen: int
    loads: bool
    account: str = ""
    undoes: str = ""

    def check(self) -> None:
        """Raises FormatError for amounts of nothing and beyond what a card can count."""
        if not 0 < self.amount_fen <= 0x7FFFFFFF:
            raise FormatError(f"an amount is 1 to {0x7FFFFFFF} fen, not {self.amount_fen}")


def recharge(
    office: Office,
    operator: Operator,
    card: Transport,
    serial: bytes,
    amount_fen: int,
    *,
    account: str = ledger.BANK,
    request_id: str | None = None,
) -> Result:
    """Load the main purse; ``account`` paid for it (``bank``, ``vouchers``, a cash drawer).

    Raises Refused: permission, ``card_state``, ``recharge_limit``, ``purse_limit``; FormatError; OutcomeUnknown when
    the card was pulled away: present it again.
    """
    require(operator, Permission.WALLET_RECHARGE, office.enterprise_id)
    if not account.startswith(PAYERS):
        raise FormatError(f"a recharge is paid from {', '.join(PAYERS)}..., not from {account}")
    move = Move("recharge", serial, Purse.MAIN, amount_fen, loads=True, account=account)
    with office.db.read() as tx:
        most = number_setting(tx, office.enterprise_id, Setting.RECHARGE_LIMIT_FEN)
    if amount_fen > most:
        raise Refused("recharge_limit", f"one recharge is at most {most} fen")
    return _do(office, operator, card, move, request_id)


def subsidise(
    office: Office,
    operator: Operator,
    card: Transport,
    serial: bytes,
    amount_fen: int,
    *,
    request_id: str | None = None,
) -> Result:
    """Load the subsidy purse out of what the enterprise grants. Raises as :func:`recharge`."""
    require(operator, Permission.WALLET_SUBSIDY, office.enterprise_id)
    move = Move("subsidy", serial, Purse.SUBSIDY, amount_fen, loads=True, account=ledger.SUBSIDIES)
    return _do(office, operator, card, move, request_id)


def refund(
    office: Office,
    operator: Operator,
    card: Transport,
    serial: bytes,
    amount_fen: int,
    *,
    request_id: str | None = None,
) -> Result:
    """Take money off the main purse and owe it to its holder. Raises as :func:`recharge`, Refused ``balance``."""
    require(operator, Permission.WALLET_REFUND, office.enterprise_id)
    move = Move("refund", serial, Purse.MAIN, amount_fen, loads=False, account=ledger.REFUNDS)
    return _do(office, operator, card, move, request_id)


def expire(
    office: Office, operator: Operator, card: Transport, serial: bytes, *, request_id: str | None = None
) -> Result:
    """Take off both purses what has expired, now that the enterprise's date is over or by `settle expire` before.

    Raises Refused ``not_expired``, ``not_certain``; else as :func:`recharge`.
    """
    require(operator, Permission.WALLET_REFUND, office.enterprise_id)
    with office.db.read() as tx:
        over = not _void(tx, office.enterprise_id, serial)
        if over:
            expiry.date_over(tx, office.enterprise_id, office.offset_min)

    def void(tx: Tx) -> None:
        expiry.expire_card(tx, operator, office.enterprise_id, serial, office.offset_min)

    return _empty(office, operator, card, serial, request_id, void if over else None)


def empty(office: Office, operator: Operator, card: Transport, serial: bytes) -> None:
    """Take off the chip what `settle expire` made void, if anything, so that what follows moves real money only.

    A job of its own. Raises as :func:`recharge`.
    """
    with office.db.read() as tx:
        held = _void(tx, office.enterprise_id, serial)
    if held:
        _empty(office, operator, card, serial, None, None)


def _void(tx: Tx, enterprise_id: int, serial: bytes) -> int:
    return sum(ledger.void(tx, enterprise_id, serial, purse) for purse in Purse)


def _empty(
    office: Office, operator: Operator, card: Transport, serial: bytes, request_id: str | None,
    void: Callable[[Tx], None] | None,
) -> Result:  # fmt: skip
    def held(purse: Purse) -> Result:
        with office.db.read() as tx:
            fen = ledger.void(tx, office.enterprise_id, serial, purse)
        return {"fen": min(fen, balance(card, purse))}

    def act(work: Work) -> Result:
        desk = office.desk(work, ledger.VOID)
        desk.open_card(card, serial)
        if void is not None:
            work.once("expired", void)
        taken = 0
        for purse in Purse:
            fen = work.phase(purse.name.lower(), partial(held, purse))["fen"]
            if fen:
                _carried(work, card, desk, Move("expire", serial, purse, fen, loads=False), any_state=True)
                taken += fen
        return {"amount_fen": taken, "balance_fen": balance(card, Purse.MAIN)}

    return run(office, operator, "expire", serial.hex(), {"request": request_id}, request_id, act)


def undo(
    office: Office, operator: Operator, card: Transport, record_id: str, *, request_id: str | None = None
) -> Result:
    """Give a posted payment back, once, whatever terminal took it (profile.md, Undo, online).

    Raises NotFound, Refused ``undo`` when it is no posted payment; else as :func:`recharge`.
    """
    require(operator, Permission.WALLET_REFUND, office.enterprise_id)
    with office.db.read() as tx:
        row = tx.one(
            "SELECT card_serial, purse, kind, amount_fen, verdict FROM transaction_record"
            " WHERE enterprise_id = ? AND record_id = ?",
            (office.enterprise_id, record_id),
        )
    if row is None:
        raise NotFound(f"there is no payment {record_id}")
    if row["verdict"] != "posted" or row["kind"] not in SPENDS:
        raise Refused("undo", f"{record_id} is no posted payment: {row['verdict']}")
    move = Move("undo", row["card_serial"], Purse(row["purse"]), row["amount_fen"], loads=True, undoes=record_id)
    return _do(office, operator, card, move, request_id)


def _do(office: Office, operator: Operator, card: Transport, move: Move, request_id: str | None) -> Result:
    move.check()
    arguments = {
        "purse": move.purse.name, "amount_fen": move.amount_fen, "account": move.account, "undoes": move.undoes,
        "request": request_id,
    }  # fmt: skip

    def act(work: Work) -> Result:
        empty(office, operator, card, move.serial)
        return _carried(work, card, office.desk(work, move.account), move)

    return run(office, operator, move.kind, move.serial.hex(), arguments, request_id, act)


def _carried(work: Work, card: Transport, desk: Desk, move: Move, *, any_state: bool = False) -> Result:
    """Carry a move out and tell the audit log, once."""
    done = carry_out(card, desk, move, any_state=any_state)

    def tell(tx: Tx) -> None:
        audit.record(
            tx, work.enterprise_id, Event.WALLET_MOVED, work.info.actor, f"card:{move.serial.hex().upper()}",
            kind=move.kind, amount_fen=move.amount_fen, job=work.info.job_id,
        )  # fmt: skip

    work.once(f"told {move.purse.name.lower()}", tell)
    return {"amount_fen": done.amount_fen, "balance_fen": done.balance_after_fen}


def carry_out(card: Transport, desk: Desk, move: Move, *, any_state: bool = False) -> Transaction:
    """Do a move exactly once for the desk's job, or find that it was done. Raises as :func:`recharge`."""
    session = desk.open_card(card, move.serial)
    done = desk.moved(move.serial, move.purse, move.amount_fen)
    if done is not None:
        return done
    office = desk.office
    with office.db.read() as tx:
        _check_now(tx, office.enterprise_id, move, any_state)
    return _act(card, desk, session, move)


def _check_now(tx: Tx, enterprise_id: int, move: Move, any_state: bool) -> None:
    """What must hold at the moment before money moves. Raises Refused."""
    state = tx.value(
        "SELECT state FROM card_application WHERE enterprise_id = ? AND card_serial = ?", (enterprise_id, move.serial)
    )
    if state != "active" and not any_state:
        raise Refused("card_state", f"card {move.serial.hex().upper()} is {state or 'not issued here'}, not active")
    if move.undoes:
        sql = "SELECT undone_by FROM transaction_record WHERE enterprise_id = ? AND record_id = ?"
        taken = tx.value(sql, (enterprise_id, move.undoes))
        if taken:
            raise Refused("undo", f"{move.undoes} was undone by {taken}")
        if permits.undo_given(tx, enterprise_id, move.undoes):
            raise Refused("undo", f"a terminal may have undone {move.undoes}: collect its journal and settle first")
    elif move.loads and not any_state:
        most = number_setting(tx, enterprise_id, Setting.PURSE_LIMIT_FEN)
        held = ledger.balance(tx, enterprise_id, card_account(move.serial, move.purse))
        if held + move.amount_fen > most:
            raise Refused("purse_limit", f"the purse would hold {held + move.amount_fen} fen, more than {most}")


def _act(card: Transport, desk: Desk, session: CardSession, move: Move) -> Transaction:
    now = desk.office.now_ms()
    when = local_when(now, desk.office.offset_min)
    request = MoneyRequest(move.purse, move.amount_fen, when, now, undo_of=bytes.fromhex(move.undoes))
    if move.loads:
        return load(card, desk.host, desk, session, request).move
    if move.purse is Purse.SUBSIDY:
        return unload(card, desk.host, desk, session, request).move
    return debit(card, desk.host, desk, session, request).move
