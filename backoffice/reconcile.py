"""What is missing, who is behind, and whether the books agree with what the cards themselves said (books.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from backoffice import audit, ledger, registry
from backoffice.audit import Event
from backoffice.database import Row, Tx
from backoffice.ledger import Entry, card_account
from backoffice.operators import Operator, Permission, require, require_two
from backoffice.sequences import Position
from backoffice.settlement import LOADS, REFUSED, spans
from cardlib.errors import FormatError, NotFound, Refused
from cardlib.profile import Purse
from cardlib.records import DEFAULT_OFFSET_MIN

NO_MONEY = (registry.TerminalKind.ACCESS, registry.TerminalKind.ATTENDANCE)


class Gap(NamedTuple):
    """A purse whose books are certain only up to ``certain``; missing counters read ``4-6,9``.

    ``outstanding_fen`` is the net change of what is missing, negative when spent; with nothing missing it is
    a balance that does not follow, unexplained.
    """

    card_serial: bytes
    purse: Purse
    certain: Position
    missing_offline: str
    missing_online: str
    outstanding_fen: int


class Behind(NamedTuple):
    """A terminal whose journal is not complete: entries missing in between, or nothing since ``last_ms``."""

    terminal: bytes
    name: str
    missing: str
    last_seq: int
    last_ms: int | None


class Difference(NamedTuple):
    """Books and card disagree by ``difference_fen`` (card minus books); ``causes`` explain all but the rest."""

    card_serial: bytes
    purse: Purse
    books_fen: int
    card_fen: int
    difference_fen: int
    causes: tuple[str, ...]
    unexplained_fen: int


class _Sums(NamedTuple):
    """Signed fen of a purse's genuine records: booked, in doubt, refused, and those not chained yet."""

    doubt: int = 0
    refused: int = 0
    floating: int = 0
    booked: int = 0


def gaps(tx: Tx, enterprise_id: int) -> list[Gap]:
    """Purses with records missing, by card; a missing online one is a load that nobody reported: an alarm."""
    rows = tx.all(
        "SELECT * FROM purse_position WHERE enterprise_id = ?"
        " AND (missing_offline <> '' OR missing_online <> '' OR outstanding_fen <> 0) ORDER BY card_serial, purse",
        (enterprise_id,),
    )
    return [
        Gap(
            row["card_serial"],
            Purse(row["purse"]),
            Position(row["balance_fen"], row["offline_seq"], row["online_seq"]),
            row["missing_offline"],
            row["missing_online"],
            row["outstanding_fen"],
        )
        for row in rows
    ]


def position(tx: Tx, enterprise_id: int, card_serial: bytes, purse: Purse) -> Position:
    """Up to where the records of a purse are certain; the start when nothing is known."""
    row = _position(tx, enterprise_id, card_serial, purse)
    return Position(row["balance_fen"], row["offline_seq"], row["online_seq"]) if row else Position()


def _position(tx: Tx, enterprise_id: int, card_serial: bytes, purse: Purse) -> Row | None:
    return tx.one(
        "SELECT * FROM purse_position WHERE enterprise_id = ? AND card_serial = ? AND purse = ?",
        (enterprise_id, card_serial, int(purse)),
    )


def behind(tx: Tx, enterprise_id: int, until_ms: int) -> list[Behind]:
    """Money terminals in service whose journal is not here without holes up to ``until_ms``."""
    found = []
    for terminal in registry.terminals(tx, enterprise_id):
        if terminal.state != "active" or terminal.kind in NO_MONEY:
            continue
        missing, last_seq, last_ms = _collected(tx, enterprise_id, terminal.terminal)
        silent = terminal.kind not in registry.STATIONS and (last_ms is None or last_ms < until_ms)
        if missing or silent:
            found.append(Behind(terminal.terminal, terminal.name, missing, last_seq, last_ms))
    return found


def _collected(tx: Tx, enterprise_id: int, terminal: bytes) -> tuple[str, int, int | None]:
    """Journal sequences missing in between, the last one here and its time."""
    holes: list[int] = []
    last_seq, last_ms = 0, None
    for row in tx.all(
        "SELECT first_seq, last_seq, last_ms FROM journal_span WHERE enterprise_id = ? AND terminal = ?"
        " ORDER BY first_seq",
        (enterprise_id, terminal),
    ):
        holes += range(last_seq + 1, row["first_seq"])
        last_seq, last_ms = row["last_seq"], row["last_ms"]
    return spans(holes), last_seq, last_ms


def reconcile(tx: Tx, enterprise_id: int) -> list[Difference]:
    """Every purse whose books differ from what its card said last, each with its causes; none are hidden."""
    books = ledger.balances(tx, enterprise_id, "card/")
    sums, void = _all_sums(tx, enterprise_id), ledger.voids(tx, enterprise_id)
    rows = tx.all("SELECT * FROM purse_position WHERE enterprise_id = ?", (enterprise_id,))
    found = []
    for row in rows:
        key = row["card_serial"], Purse(row["purse"])
        account = card_account(*key)
        found.append(_compare(key, row, books.pop(account, 0), sums.get(key, _Sums()), void.get(account, 0)))
    for account, fen in books.items():
        _, serial, purse = account.split("/")
        key = bytes.fromhex(serial), Purse[purse.upper()]
        found.append(_compare(key, None, fen, sums.get(key, _Sums()), void.get(account, 0)))
    return sorted(difference for difference in found if difference.difference_fen)


def _compare(key: tuple[bytes, Purse], row: Row | None, books_fen: int, sums: _Sums, void_fen: int) -> Difference:
    """Card minus books = what is missing + what was refused - what is only in doubt - what has no record at all.

    Of the last, an expired balance that the chip still holds (``void_fen``) is a cause of its own.
    """
    outstanding, missing = 0, ""
    card_fen = sums.floating
    if row is not None:
        outstanding = row["outstanding_fen"]
        card_fen += row["balance_fen"] + outstanding
        kinds = (("offline", row["missing_offline"]), ("online", row["missing_online"]))
        missing = ", ".join(f"{kind} {numbers}" for kind, numbers in kinds if numbers)
    unrecorded = books_fen - sums.booked - sums.doubt
    unexplained = card_fen - books_fen
    causes = []
    for cause, fen in (
        (f"not collected yet: {missing}", outstanding if missing else 0),
        ("records that settlement refused", sums.refused),
        ("outcome in doubt", -sums.doubt),
        ("expired, still on the chip", void_fen),
        ("booked without a record, as corrections are", -unrecorded - void_fen),
    ):
        if fen:
            causes.append(f"{cause}: {fen} fen")
            unexplained -= fen
    return Difference(*key, books_fen, card_fen, card_fen - books_fen, tuple(causes), unexplained)


def _all_sums(tx: Tx, enterprise_id: int) -> dict[tuple[bytes, Purse], _Sums]:
    loads = ", ".join(str(int(kind)) for kind in LOADS)
    refused = ", ".join(f"'{verdict}'" for verdict in sorted(REFUSED))
    signed = f"CASE WHEN kind IN ({loads}) THEN amount_fen ELSE -amount_fen END"
    rows = tx.execute(
        "SELECT card_serial, purse,"
        f" SUM(CASE WHEN booked = 'doubt' AND kind NOT IN ({loads}) THEN -amount_fen ELSE 0 END),"
        f" SUM(CASE WHEN genuine = 1 AND verdict IN ({refused}) THEN {signed} ELSE 0 END),"
        f" SUM(CASE WHEN genuine = 1 AND chained = 0 AND verdict <> 'duplicate' THEN {signed} ELSE 0 END),"
        f" SUM(CASE WHEN booked = 'yes' THEN {signed} ELSE 0 END)"
        " FROM transaction_record WHERE enterprise_id = ? GROUP BY card_serial, purse",
        (enterprise_id,),
    )
    return {(row[0], Purse(row[1])): _Sums(*list(row)[2:]) for row in rows}


def accept_gap(
    tx: Tx, first: Operator, second: Operator, enterprise_id: int, card_serial: bytes, purse: Purse, reason: str
) -> int:
    """Give up waiting for what is missing of a purse: books follow the card, the rest goes to the differences.

    Two operators decide. Returns the fen that were outstanding. Raises Refused, NotFound when nothing is missing.
    """
    require_two(first, second, Permission.LEDGER_CORRECT, enterprise_id)
    row = _position(tx, enterprise_id, card_serial, purse)
    if row is None or not (row["missing_offline"] or row["missing_online"] or row["outstanding_fen"]):
        raise NotFound(f"nothing is missing of card {card_serial.hex().upper()}, {purse.name.lower()} purse")
    where = "WHERE enterprise_id = ? AND card_serial = ? AND purse = ? AND genuine = 1 AND chained = 0"
    key = (enterprise_id, card_serial, int(purse))
    tops = {0: row["said_offline_seq"] or 0, 1: row["said_online_seq"] or 0}
    floating = 0
    for record in tx.all(f"SELECT kind, card_seq, amount_fen FROM transaction_record {where}", key):
        online = record["kind"] in (*map(int, LOADS), 3)
        tops[online] = max(tops[online], record["card_seq"] + 1)
        floating += record["amount_fen"] if record["kind"] in LOADS else -record["amount_fen"]
    end = Position(
        row["balance_fen"] + row["outstanding_fen"] + floating,
        max(tops[0], row["offline_seq"]),
        max(tops[1], row["online_seq"]),
    )
    tx.execute(f"UPDATE transaction_record SET chained = 1, open = 0, changed_ms = ? {where}", (tx.now_ms, *key))
    tx.execute(
        "UPDATE purse_position SET balance_fen = ?, offline_seq = ?, online_seq = ?, missing_offline = '',"
        " missing_online = '', outstanding_fen = 0, changed_ms = ?"
        " WHERE enterprise_id = ? AND card_serial = ? AND purse = ?",
        (*end, tx.now_ms, *key),
    )
    outstanding = int(row["outstanding_fen"])
    entry_id = f"gap/{card_serial.hex()}/{int(purse)}/{end.offline_seq}-{end.online_seq}"
    if outstanding:
        postings = {card_account(card_serial, purse): outstanding, ledger.DIFFERENCES: -outstanding}
        entry = Entry(entry_id, "gap", tx.now_ms, postings, first.name, second.name, note=reason)
        ledger.post(tx, enterprise_id, entry)
    audit.record(
        tx, enterprise_id, Event.LEDGER_CORRECTED, first.name, f"card:{card_serial.hex().upper()}",
        second_operator=second.name, amount_fen=outstanding, reason=reason[:64],
    )  # fmt: skip
    return outstanding


def close_day(
    tx: Tx,
    operator: Operator,
    enterprise_id: int,
    day: str,
    accepted: Mapping[bytes, str],
    offset_min: int = DEFAULT_OFFSET_MIN,
) -> bool:
    """Close a day (YYYY-MM-DD): every terminal's journal complete, or its absence accepted by name and reason.

    Seals the books. Returns False when it is closed already. Raises FormatError, Refused: ``day_not_over``,
    ``unsettled`` (run settlement first), ``incomplete`` naming the terminals that are waited for.
    """
    require(operator, Permission.SETTLE_CLOSE, enterprise_id)
    end_ms = end_of_day(day, offset_min)
    if tx.one("SELECT day FROM closed_day WHERE enterprise_id = ? AND day = ?", (enterprise_id, day)):
        return False
    if tx.now_ms < end_ms:
        raise Refused("day_not_over", f"{day} is not over yet")
    new = tx.value(
        "SELECT COUNT(*) FROM transaction_record WHERE enterprise_id = ? AND open = 1 AND verdict = 'new'",
        (enterprise_id,),
    )
    if new:
        raise Refused("unsettled", f"{new} records are not settled: run the settlement, then close {day}")
    waited = [one for one in behind(tx, enterprise_id, end_ms) if one.terminal not in accepted]
    if waited:
        names = ", ".join(f"{one.terminal.hex()} ({one.name})" for one in waited)
        raise Refused("incomplete", f"journals are not complete for {day}: {names}; collect them or accept by name")
    sealed = ledger.seal(tx, enterprise_id)
    names_text = json.dumps({terminal.hex(): reason for terminal, reason in sorted(accepted.items())})
    tx.execute(
        "INSERT INTO closed_day (enterprise_id, day, operator, accepted, ledger_head, closed_ms)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (enterprise_id, day, operator.name, names_text, sealed.hash, tx.now_ms),
    )
    digest = sealed.hash.hex()
    audit.record(tx, enterprise_id, Event.DAY_CLOSED, operator.name, f"day:{day}", number=sealed.number, digest=digest)
    return True


def end_of_day(day: str, offset_min: int = DEFAULT_OFFSET_MIN) -> int:
    """When a day of the enterprise (YYYY-MM-DD) is over, UTC milliseconds. Raises FormatError."""
    try:
        start = datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError as e:
        raise FormatError(f"{day!r} is no date: write YYYY-MM-DD") from e
    return int((start + timedelta(days=1, minutes=-offset_min)).timestamp() * 1000)
