"""Leave for a terminal to load a card, held in the books before the host's MAC2 is out (card.md §4.2, books.md).

At most one credit each: MAC2 is good for one value of the card's online counter, which every load uses up. A permit is
bound to the first value that MAC2 was given for, and to another only once a proof says that it did not happen at that.
From then on its amount is taken from whoever pays and stands in doubt, whatever the terminal reports or hides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from backoffice import ledger
from backoffice.database import Row, Tx
from backoffice.enterprises import Setting, number_setting
from backoffice.ledger import transfer
from cardlib.errors import Conflict, FormatError, Refused
from cardlib.profile import Purse

MAX_FEN = 0x7FFFFFFF
FREE = ("allowed", "released")
"""States in which no MAC2 is out that a card would take."""


@dataclass(frozen=True, slots=True)
class Permit:
    """A load that a terminal may do; ``account`` pays for it, nobody where it is empty (an undo).

    With ``upto_fen`` the purse must hold just that afterwards.
    """

    terminal: bytes
    request_id: str
    source: str
    card_serial: bytes
    purse: Purse
    amount_fen: int
    account: str
    upto_fen: int | None = None
    state: str = "allowed"
    card_seq: int | None = None

    @classmethod
    def of(cls, row: Row) -> Self:
        """From its row."""
        return cls(
            row["terminal"], row["request_id"], row["source"], row["card_serial"], Purse(row["purse"]),
            row["amount_fen"], row["account"], row["upto_fen"], row["state"], row["card_seq"],
        )  # fmt: skip

    @property
    def payer(self) -> str:
        """The account that its load is booked against: doubt once it holds the amount."""
        return ledger.IN_DOUBT if self.state in ("held", "done") else self.account


def require_active_card(tx: Tx, enterprise_id: int, card_serial: bytes) -> None:
    """Raise Refused ``card_state`` unless the card is one of this enterprise, in use."""
    state = tx.value(
        "SELECT state FROM card_application WHERE enterprise_id = ? AND card_serial = ?", (enterprise_id, card_serial)
    )
    if state != "active":
        raise Refused("card_state", f"card {card_serial.hex().upper()} is {state or 'not issued here'}, not active")


def _require_no_void(tx: Tx, enterprise_id: int, wanted: Permit) -> None:
    """Raise Refused ``void_balance`` while the chip holds what has expired: money on top of it could not be told apart.

    An undo gives back what was on the chip, so nothing new comes to it.
    """
    if wanted.account and ledger.void(tx, enterprise_id, wanted.card_serial, wanted.purse) > 0:
        serial = wanted.card_serial.hex().upper()
        raise Refused("void_balance", f"card {serial} holds an expired balance: `onecard wallet expire` takes it off")


def _require_still_good(tx: Tx, enterprise_id: int, source: str) -> None:
    """What became of a source since leave was given. Raises Refused ``voucher_expired``, ``undo``."""
    kind, _, name = source.partition(":")
    if kind == "voucher":
        sql = "SELECT state FROM voucher WHERE enterprise_id = ? AND number = ?"
        if tx.value(sql, (enterprise_id, name)) != "open":
            raise Refused("voucher_expired", "it is void")
    elif kind == "undo":
        sql = "SELECT undone_by FROM transaction_record WHERE enterprise_id = ? AND record_id = ?"
        if by := tx.value(sql, (enterprise_id, name)):
            raise Refused("undo", f"the payment was undone by {by}")


def undo_given(tx: Tx, enterprise_id: int, record_id: str) -> bool:
    """Whether a terminal has MAC2 for the undo of a payment, or has done it."""
    return _user_of(tx, enterprise_id, f"undo:{record_id}") is not None


def allow(tx: Tx, enterprise_id: int, wanted: Permit) -> Permit:
    """Give leave; the same request again finds what became of it.

    Raises Refused ``card_state``, ``used``, ``void_balance``, FormatError, Conflict when the request
    id was for something else.
    """
    if not 0 < wanted.amount_fen <= MAX_FEN or not 1 <= len(wanted.request_id.encode()) <= 64:
        raise FormatError(f"a load is of 1 to {MAX_FEN} fen, under a request id of 1 to 64 bytes")
    require_active_card(tx, enterprise_id, wanted.card_serial)
    if wanted.source and (other := _user_of(tx, enterprise_id, wanted.source)) not in (None, _place(wanted)):
        assert other is not None
        raise Refused("used", f"{wanted.source} was used at terminal {other[0].hex().upper()}")
    row = tx.one(_ONE, (enterprise_id, *_place(wanted)))
    if row is None or row["state"] in FREE:
        _require_no_void(tx, enterprise_id, wanted)
    if row is None:
        tx.execute(
            "INSERT INTO load_permit (enterprise_id, terminal, request_id, source, card_serial, purse, amount_fen,"
            " upto_fen, account, state, created_ms, changed_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'allowed', ?, ?)",
            (enterprise_id, *_place(wanted), wanted.source, wanted.card_serial, int(wanted.purse), wanted.amount_fen,
             wanted.upto_fen, wanted.account, tx.now_ms, tx.now_ms),
        )  # fmt: skip
        return wanted
    found = Permit.of(row)
    same = all(
        getattr(found, name) == getattr(wanted, name) for name in ("source", "card_serial", "purse", "amount_fen")
    )
    # Another card or shift may have it; but what a source gives once never hangs on a request made up for cash.
    if found.state in FREE and found.source == wanted.source and (wanted.source or same):
        tx.execute(
            "UPDATE load_permit SET card_serial = ?, amount_fen = ?, upto_fen = ?, account = ?, changed_ms = ?"
            f" {_WHERE}",
            (wanted.card_serial, wanted.amount_fen, wanted.upto_fen, wanted.account, tx.now_ms, enterprise_id,
             *_place(wanted)),
        )  # fmt: skip
        return wanted
    if not same:
        raise Conflict(f"request {wanted.request_id} was for another card or amount: take a new one")
    return found


_WHERE = "WHERE enterprise_id = ? AND terminal = ? AND request_id = ?"
_ONE = f"SELECT * FROM load_permit {_WHERE}"


def _place(permit: Permit) -> tuple[bytes, str]:
    return permit.terminal, permit.request_id


def _user_of(tx: Tx, enterprise_id: int, source: str) -> tuple[bytes, str] | None:
    row = tx.one(
        "SELECT terminal, request_id FROM load_permit WHERE enterprise_id = ? AND source = ?"
        " AND state IN ('held', 'done')",
        (enterprise_id, source),
    )
    return (row[0], row[1]) if row else None


def find(tx: Tx, enterprise_id: int, wanted: Permit) -> Permit:
    """The permit for what a terminal is about to load. Raises Refused ``not_allowed``."""
    row = tx.one(_ONE, (enterprise_id, *_place(wanted)))
    found = Permit.of(row) if row else None
    load = ("card_serial", "purse", "amount_fen")
    if found is None or any(getattr(found, name) != getattr(wanted, name) for name in load):
        raise Refused("not_allowed", f"terminal {wanted.terminal.hex().upper()} has no leave for this load")
    return found


def hold(tx: Tx, enterprise_id: int, wanted: Permit, card_seq: int, balance_fen: int) -> Permit:
    """Bind a permit to the card's counter and take its amount from whoever pays: MAC2 may be given afterwards.

    ``wanted`` says what the terminal is about to load; ``balance_fen`` is what the card proved (MAC1) to hold.
    Raises Refused ``not_allowed``, ``card_state``, ``void_balance``, ``purse_limit``, ``done``, ``open``, ``used``.
    """
    found = find(tx, enterprise_id, wanted)
    require_active_card(tx, enterprise_id, found.card_serial)
    if found.state == "done":
        raise Refused("done", f"request {found.request_id} was carried out already")
    if found.state == "held":
        if found.card_seq != card_seq:
            raise Refused("open", f"request {found.request_id} may have been done: collect the journals")
        return found
    _require_no_void(tx, enterprise_id, found)
    if not found.source.startswith("undo:"):
        most = number_setting(tx, enterprise_id, Setting.PURSE_LIMIT_FEN)
        if balance_fen + found.amount_fen > most:
            raise Refused("purse_limit", f"the purse would hold {balance_fen + found.amount_fen} fen, more than {most}")
    if found.upto_fen not in (None, balance_fen + found.amount_fen):
        raise Refused("not_allowed", f"the purse holds {balance_fen} fen: ask anew")
    if found.source and (other := _user_of(tx, enterprise_id, found.source)):
        raise Refused("used", f"{found.source} was used at terminal {other[0].hex().upper()}")
    _require_still_good(tx, enterprise_id, found.source)
    return _change(tx, enterprise_id, found, "held", card_seq)


def _change(tx: Tx, enterprise_id: int, permit: Permit, state: str, card_seq: int | None) -> Permit:
    """Move a permit along, and its amount with it: held takes it from its account, released gives it back."""
    tx.execute(
        f"UPDATE load_permit SET state = ?, card_seq = ?, changed_ms = ? {_WHERE}",
        (state, card_seq, tx.now_ms, enterprise_id, *_place(permit)),
    )
    row = tx.one(_ONE, (enterprise_id, *_place(permit)))
    assert row is not None
    changed = Permit.of(row)
    if changed.account and state in ("held", "released"):
        ways = (changed.account, ledger.IN_DOUBT), (ledger.IN_DOUBT, changed.account)
        giver, getter = ways[state == "released"]
        entry_id = f"permit/{permit.terminal.hex()}/{permit.request_id}/{tx.new_id()}"
        kind = "load held" if state == "held" else "load released"
        ledger.post(tx, enterprise_id, transfer(entry_id, kind, tx.now_ms, giver, getter, changed.amount_fen, "office"))
    return changed


def proven(tx: Tx, enterprise_id: int, done: Permit, card_seq: int) -> None:
    """The card's TAC was right: this permit's load used the counter, so no other's can have."""
    row = tx.one(_ONE, (enterprise_id, *_place(done)))
    found = Permit.of(row) if row else None
    if found is not None and found.state == "held" and found.card_seq == card_seq:
        _change(tx, enterprise_id, found, "done", card_seq)
        _release_others(tx, enterprise_id, found)


def _release_others(tx: Tx, enterprise_id: int, done: Permit) -> None:
    for row in tx.all(
        "SELECT * FROM load_permit WHERE enterprise_id = ? AND card_serial = ? AND purse = ? AND card_seq = ?"
        " AND state = 'held'",
        (enterprise_id, done.card_serial, int(done.purse), done.card_seq),
    ):
        _change(tx, enterprise_id, Permit.of(row), "released", done.card_seq)


def covering(tx: Tx, enterprise_id: int, record: Row) -> Permit | None:
    """The permit under which a record's load was done, where somebody pays for it."""
    row = tx.one(_ONE, (enterprise_id, record["terminal"], record["request_id"]))
    found = Permit.of(row) if row else None
    if found is None or not found.account or found.card_seq != record["card_seq"]:
        return None
    same = ("card_serial", "purse", "amount_fen")
    return found if all(getattr(found, name) == record[name] for name in same) else None


def resolve(tx: Tx, enterprise_id: int, cards: Sequence[bytes]) -> None:
    """Close permits of some cards by what is certain: which load used the counter, or that none has.

    A terminal's word that a load was not done is not enough: it could have kept the money.
    """
    marks = ", ".join("?" * len(cards))
    for row in tx.all(
        f"SELECT * FROM load_permit WHERE enterprise_id = ? AND state = 'held' AND card_serial IN ({marks})",
        (enterprise_id, *cards),
    ):
        permit = Permit.of(row)
        used = tx.one(
            "SELECT terminal, request_id FROM transaction_record WHERE enterprise_id = ? AND card_serial = ?"
            " AND purse = ? AND card_seq = ? AND kind IN (1, 2, 3) AND genuine = 1 AND chained = 1",
            (enterprise_id, permit.card_serial, int(permit.purse), permit.card_seq),
        )
        said = tx.one(
            "SELECT said_online_seq FROM purse_position WHERE enterprise_id = ? AND card_serial = ? AND purse = ?"
            " AND said_ms > ?",
            (enterprise_id, permit.card_serial, int(permit.purse), row["changed_ms"]),
        )
        if used is not None:
            mine = (used["terminal"], used["request_id"]) == _place(permit)
            _change(tx, enterprise_id, permit, "done" if mine else "released", permit.card_seq)
        elif said is not None and said["said_online_seq"] == permit.card_seq:
            _change(tx, enterprise_id, permit, "released", permit.card_seq)
