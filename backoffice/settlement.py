"""Settlement: every collected record judged once, chained by the card's own counters, posted (books.md).

Cards are worked through in order, so that each card's keys are derived once and memory stays flat. Running it
again on the same records changes nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum, unique
from itertools import groupby
from typing import Any, NamedTuple

from backoffice import ledger, permits, registry
from backoffice.database import Database, Row, Tx
from backoffice.ledger import Entry, card_account, cash_account, takings_account, transfer
from backoffice.sequences import Chain, Move, Position, follow
from cardlib.errors import FormatError, MacMismatch, OneCardError
from cardlib.profile import Purse, TransactionType
from cardlib.records import DEFAULT_OFFSET_MIN, Outcome, Transaction, tac_input
from cardlib.sam import Host

CARDS_AT_ONCE = 200
ACTOR = "settlement"


@unique
class Verdict(StrEnum):
    """What settlement made of a record; those of ``RETRIED`` are looked at again each time."""

    NEW = "new"
    POSTED = "posted"
    NOT_DONE = "not_done"
    IN_DOUBT = "in_doubt"
    DUPLICATE = "duplicate"
    FORGED = "forged"
    UNCHECKED = "unchecked"
    UNKNOWN_TERMINAL = "unknown_terminal"
    UNKNOWN_SAM = "unknown_sam"
    SAM_LOST = "sam_lost"
    UNKNOWN_CARD = "unknown_card"
    CARD_STATE = "card_state"
    UNPAIRED = "unpaired"


V = Verdict
RETRIED = frozenset({V.NEW, V.UNCHECKED, V.UNKNOWN_TERMINAL, V.UNKNOWN_SAM, V.UNKNOWN_CARD, V.UNPAIRED})
REFUSED = frozenset(V) - {V.NEW, V.POSTED, V.NOT_DONE, V.IN_DOUBT, V.DUPLICATE}
LOADS = (TransactionType.LOAD_ED, TransactionType.LOAD_EP)
SPENDS = (
    TransactionType.WITHDRAW, TransactionType.PURCHASE_ED, TransactionType.PURCHASE_EP, TransactionType.COMPOSITE,
)  # fmt: skip
SPENDABLE = ("active", "issued")
"""States of an application in which a terminal may move its money; stations may in any."""
CLOCK_TOLERANCE_MS = 300_000
"""How much a terminal's clock may be behind ours for a card that was just handed out."""


class Settled(NamedTuple):
    """What one run did: records by the verdict they got in it, ledger entries posted."""

    verdicts: dict[Verdict, int]
    entries: int


class Finding(NamedTuple):
    """A record that was refused or contradicts another, by name."""

    record_id: str
    verdict: str
    cause: str
    terminal: bytes
    journal_seq: int
    card_serial: bytes | None
    amount_fen: int | None


@dataclass(slots=True)
class _Record:
    """A row under work, and what of it may change."""

    row: Row
    kind: TransactionType
    verdict: Verdict
    cause: str
    genuine: bool
    booked: str
    chained: bool
    open: bool
    undone_by: str | None
    outcome: Outcome
    was: tuple[object, ...] = ()

    @classmethod
    def of(cls, row: Row) -> _Record:
        record = cls(
            row, TransactionType(row["kind"]), Verdict(row["verdict"]), row["cause"], bool(row["genuine"]),
            row["booked"], bool(row["chained"]), bool(row["open"]), row["undone_by"], Outcome(row["outcome"]),
        )  # fmt: skip
        record.was = record.state
        return record

    @property
    def record_id(self) -> str:
        return str(self.row["record_id"])

    @property
    def state(self) -> tuple[object, ...]:
        return (
            self.verdict.value, self.cause, int(self.genuine), self.booked, int(self.chained), int(self.open),
            self.undone_by,
        )  # fmt: skip

    @property
    def place(self) -> tuple[int, bool, int]:
        return self.row["purse"], self.kind.online, self.row["card_seq"]

    def move(self) -> Move:
        row = self.row
        change = row["amount_fen"] if self.kind in LOADS else -row["amount_fen"]
        before, sure = row["balance_before_fen"], self.genuine
        return Move(row["record_id"], self.kind.online, row["card_seq"], before, change, row["utc_ms"], sure)

    def transaction(self, enterprise_id: int) -> Transaction:
        row = self.row
        return Transaction(
            enterprise_id, row["terminal"], row["sam_serial"], row["terminal_seq"], row["card_serial"],
            Purse(row["purse"]), self.kind, row["amount_fen"], row["balance_before_fen"], 0, row["card_seq"],
            row["key_version"], row["algorithm"], row["local_time"], row["utc_ms"], row["tac"],
        )  # fmt: skip


@dataclass(slots=True)
class _Books:
    """What a run knows beside the records: registry, closed days, and what it is going to write."""

    tx: Tx
    enterprise_id: int
    host: Host
    offset_min: int
    terminals: Mapping[bytes, registry.Terminal]
    sams: Mapping[bytes, registry.Sam]
    closed: frozenset[str]
    states: dict[bytes, list[tuple[int, str]]] = field(default_factory=dict)
    positions: dict[tuple[bytes, int], Row] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    updates: list[tuple[object, ...]] = field(default_factory=list)
    places: list[tuple[object, ...]] = field(default_factory=list)
    verdicts: dict[Verdict, int] = field(default_factory=dict)


def settle(db: Database, enterprise_id: int, host: Host, offset_min: int = DEFAULT_OFFSET_MIN) -> Settled:
    """Judge, chain and post everything that is open, a few hundred cards to a transaction."""
    verdicts: dict[Verdict, int] = {}
    entries = 0
    after = b""
    while True:
        with db.write() as tx:
            cards = [
                row[0]
                for row in tx.execute(
                    "SELECT DISTINCT card_serial FROM transaction_record WHERE enterprise_id = ? AND open = 1"
                    " AND card_serial > ? ORDER BY card_serial LIMIT ?",
                    (enterprise_id, after, CARDS_AT_ONCE),
                )
            ]
            if not cards:
                return Settled(verdicts, entries)
            part = settle_cards(tx, enterprise_id, host, cards, offset_min)
        after = cards[-1]
        entries += part.entries
        for verdict, count in part.verdicts.items():
            verdicts[verdict] = verdicts.get(verdict, 0) + count


def settle_cards(
    tx: Tx, enterprise_id: int, host: Host, cards: list[bytes], offset_min: int = DEFAULT_OFFSET_MIN
) -> Settled:
    """Settle what is open of some cards, in the caller's transaction."""
    books = _Books(
        tx, enterprise_id, host, offset_min, {t.terminal: t for t in registry.terminals(tx, enterprise_id)},
        registry.sams(tx, enterprise_id),
        frozenset(r[0] for r in tx.execute("SELECT day FROM closed_day WHERE enterprise_id = ?", (enterprise_id,))),
    )  # fmt: skip
    _load_cards(books, cards)
    rows = groupby(_open_rows(tx, enterprise_id, cards), key=lambda row: row["card_serial"])
    found = {serial: [_Record.of(row) for row in part] for serial, part in rows}
    for serial in cards:
        _settle_card(books, serial, found.get(serial, []))
    tx.executemany(
        "UPDATE transaction_record SET verdict = ?, cause = ?, genuine = ?, booked = ?, chained = ?, open = ?,"
        " undone_by = ?, changed_ms = ? WHERE enterprise_id = ? AND record_id = ?",
        books.updates,
    )
    tx.executemany(_POSITION, books.places)
    posted = ledger.post(tx, enterprise_id, *books.entries)
    permits.resolve(tx, enterprise_id, cards)
    return Settled(books.verdicts, posted + _honour(tx, enterprise_id, cards))


_POSITION = (
    "INSERT INTO purse_position (enterprise_id, card_serial, purse, balance_fen, offline_seq, online_seq,"
    " missing_offline, missing_online, outstanding_fen, changed_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (enterprise_id, card_serial, purse) DO UPDATE SET balance_fen = excluded.balance_fen,"
    " offline_seq = excluded.offline_seq, online_seq = excluded.online_seq,"
    " missing_offline = excluded.missing_offline, missing_online = excluded.missing_online,"
    " outstanding_fen = excluded.outstanding_fen, changed_ms = excluded.changed_ms"
)


def _in(cards: list[bytes]) -> str:
    return f"IN ({', '.join('?' * len(cards))})"


def _open_rows(tx: Tx, enterprise_id: int, cards: list[bytes]) -> Iterator[Row]:
    yield from tx.execute(
        f"SELECT * FROM transaction_record WHERE enterprise_id = ? AND open = 1 AND card_serial {_in(cards)}"
        " ORDER BY card_serial, utc_ms, record_id",
        (enterprise_id, *cards),
    )


def _load_cards(books: _Books, cards: list[bytes]) -> None:
    """Histories of states and positions of the cards at hand."""
    key = (books.enterprise_id, *cards)
    sql = f"SELECT card_serial, created_ms FROM card_application WHERE enterprise_id = ? AND card_serial {_in(cards)}"
    for row in books.tx.execute(sql, key):
        books.states[row[0]] = [(row["created_ms"], "slot")]
    for row in books.tx.execute(
        "SELECT card_serial, at_ms, state_to FROM card_transition WHERE enterprise_id = ?"
        f" AND card_serial {_in(cards)} ORDER BY at_ms, transition_id",
        key,
    ):
        books.states[row[0]].append((row[1], row[2]))
    for row in books.tx.execute(
        f"SELECT * FROM purse_position WHERE enterprise_id = ? AND card_serial {_in(cards)}", key
    ):
        books.positions[row["card_serial"], row["purse"]] = row


def _settle_card(books: _Books, serial: bytes, records: list[_Record]) -> None:
    """All that is open of one card: judged, chained purse by purse, booked.

    ``known`` holds each record once, also a closed one that an open one speaks of: nobody works on a stale copy.
    """
    known = {record.record_id: record for record in records}
    for record in records:
        if record.verdict in RETRIED:
            _judge(books, record)
    for purse in Purse:
        _chain(books, serial, purse, known)
    for record in list(known.values()):
        _book(books, record, known)
        record.open = (
            record.verdict in RETRIED
            or record.verdict is V.IN_DOUBT
            or (record.genuine and not record.chained and record.verdict is not V.DUPLICATE)
        )
    for record in known.values():
        if record.state != record.was:
            books.updates.append((*record.state, books.tx.now_ms, books.enterprise_id, record.record_id))
            if record.verdict.value != record.was[0]:
                books.verdicts[record.verdict] = books.verdicts.get(record.verdict, 0) + 1


# Judging one record (books.md: terminal and SAM, seen before, TAC, card and its state)


def _judge(books: _Books, record: _Record) -> None:
    row = record.row
    record.cause = row["cause"]
    if record.outcome is Outcome.NOT_DONE:
        record.verdict, record.genuine = V.NOT_DONE, False
        return
    if record.kind not in (*LOADS, *SPENDS, TransactionType.UNLOAD):
        record.verdict, record.cause = V.FORGED, f"cards of this profile do not know type {record.kind.value:02X}"
        return
    proof, why = _check_proof(books, record)
    record.genuine = proof is V.POSTED
    if proof is V.IN_DOUBT and record.chained:
        proof, why = V.POSTED, ""  # the card's later records have decided already
    verdict, cause = _check_place(books, row)
    if verdict is None and proof in (V.FORGED, V.UNCHECKED):
        verdict, cause = proof, why
    if verdict is None:
        verdict, cause = _check_card(books, row)
        if proof is V.IN_DOUBT and verdict is V.CARD_STATE:
            verdict, cause = None, ""  # whether it happened at all comes first: see _happened
    record.verdict, record.cause = verdict or proof, cause or why


def _check_place(books: _Books, row: Row) -> tuple[Verdict | None, str]:
    sam = books.sams.get(row["sam_serial"])
    if row["terminal"] not in books.terminals:
        return V.UNKNOWN_TERMINAL, "no such terminal is registered"
    if sam is None or sam.terminal != row["terminal"]:
        return V.UNKNOWN_SAM, "no such SAM was ever in this terminal"
    if sam.lost_ms is not None and row["utc_ms"] >= sam.lost_ms:
        return V.SAM_LOST, f"the SAM was reported lost at {sam.lost_ms}"
    return None, ""


def _check_proof(books: _Books, record: _Record) -> tuple[Verdict, str]:
    """POSTED when the card's proof is right, IN_DOUBT when it gave none."""
    row = record.row
    if record.outcome is not Outcome.COMMITTED:
        return V.IN_DOUBT, ""
    if record.kind is TransactionType.UNLOAD:
        # MAC3 is made under a session key: the station checked it, or had the card's word after authenticating it.
        if _is_station(books, row):
            return V.POSTED, ""
        return V.IN_DOUBT, "the proof of an unload is checked where it is made: later records decide"
    if not row["tac"]:
        return V.IN_DOUBT, "the card gave no proof: its later records decide"
    try:
        move = record.transaction(books.enterprise_id)
        books.host.verify_tac(row["card_serial"], row["key_version"], row["algorithm"], tac_input(move), row["tac"])
    except (MacMismatch, FormatError) as e:
        return V.FORGED, str(e)
    except OneCardError as e:
        return V.UNCHECKED, f"the proof could not be checked: {e}"
    return V.POSTED, ""


def _check_card(books: _Books, row: Row) -> tuple[Verdict | None, str]:
    history = books.states.get(row["card_serial"])
    if history is None:
        return V.UNKNOWN_CARD, "no application was ever issued to this card"
    if _is_station(books, row):
        return None, ""
    state = _state_at(history, row["utc_ms"])
    if state in ("not issued", "slot"):
        state = _state_at(history, row["utc_ms"] + CLOCK_TOLERANCE_MS)
    return (None, "") if state in SPENDABLE else (V.CARD_STATE, f"the card was {state} at that time")


def _state_at(history: list[tuple[int, str]], at_ms: int) -> str:
    at = bisect_right(history, at_ms, key=lambda change: change[0])
    return history[at - 1][1] if at else "not issued"


def _is_station(books: _Books, row: Row) -> bool:
    sam = books.sams.get(row["sam_serial"])
    return sam is not None and sam.terminal == row["terminal"] and sam.kind in registry.STATIONS


# Chaining the records of one purse


def _chain(books: _Books, serial: bytes, purse: Purse, known: dict[str, _Record]) -> None:
    """Follow the purse's counters and balances; close unknown outcomes, find what is missing or used twice.

    Where a card denies what was inferred, or another record disproves it, what followed is followed anew.
    """
    row = books.positions.get((serial, purse))
    start = at = Position(row["balance_fen"], row["offline_seq"], row["online_seq"]) if row else Position()
    denied = [r for r in known.values() if r.row["purse"] == purse and r.chained and r.verdict is V.NOT_DONE]
    for record in denied:
        if record.chained:
            at = _rewind(books, record, known, at) or at  # else it keeps the place, for a record to come
    while True:
        waiting = {
            record.record_id: record
            for record in known.values()
            if record.row["purse"] == purse and not record.chained and record.verdict is not V.DUPLICATE
            and (record.genuine or record.verdict is V.IN_DOUBT)
        }  # fmt: skip
        if not waiting and at == start and (row is None or row["said_ms"] is None):
            return
        moves = [record.move() for record in waiting.values()]
        chain = follow(at, moves, _said(row, at, moves))
        for record_id in chain.certain:
            waiting[record_id].chained = True
        for record_id in chain.done:
            _happened(books, waiting[record_id])
        for record_id in chain.undone:
            waiting[record_id].verdict, waiting[record_id].cause = (
                V.NOT_DONE,
                "the card used this number for another move",
            )
        at = chain.position
        for record_id in chain.reused:
            disproved = _resolve_reuse(books, waiting[record_id], known)
            if disproved is not None:
                at = _rewind(books, disproved, known, at) or _swap(waiting[record_id], disproved, at)
                break
        else:
            break
    if row is None or _position_of(chain) != tuple(row)[3:9]:
        books.places.append((books.enterprise_id, serial, int(purse), *_position_of(chain), books.tx.now_ms))


def _rewind(books: _Books, record: _Record, known: dict[str, _Record], at: Position) -> Position | None:
    """Where the chain stood before ``record``, with everything after it open again; None where that can't be told."""
    records = _of_purse(books, record, known)
    own, before = record.kind.online, record.row["balance_before_fen"]
    chained = sorted((r for r in records if r.chained and r.verdict is not V.DUPLICATE), key=lambda r: -r.place[2])
    lanes = [[r for r in chained if r.kind.online is online] for online in (False, True)]
    taken = [0, 0]
    taken[own] = sum(r.place[2] >= record.place[2] for r in lanes[own])
    balance = at.balance_fen - sum(r.move().change_fen for r in lanes[own][: taken[own]])
    for other in lanes[1 - own]:
        if balance == before:
            break
        balance -= other.move().change_fen
        taken[1 - own] += 1
    back = Position(before, at.offline_seq - taken[0], at.online_seq - taken[1])
    whole = all(
        [r.place[2] for r in lane[:n]] == list(range(top - 1, top - n - 1, -1))
        for lane, n, top in zip(lanes, taken, at[1:], strict=True)
    )
    if balance != before or not whole or back[1 + own] != record.place[2]:
        return None  # a gap given up or a cloned card lies in between
    for r in records:
        if r.place[2] >= back[1 + r.kind.online]:
            _reopen(books, r)
    return back


def _swap(record: _Record, disproved: _Record, at: Position) -> Position:
    """Let a record have the place of one that it disproves, where nothing else can be followed anew."""
    record.chained, disproved.chained = True, False
    return at


def _reopen(books: _Books, record: _Record) -> None:
    """Take back what other records said of this one."""
    if record.verdict is V.DUPLICATE or not (record.chained or record.verdict is V.NOT_DONE):
        return
    record.chained = False
    if record.outcome is not Outcome.NOT_DONE and _check_proof(books, record)[0] is V.IN_DOUBT:
        record.verdict, record.cause, record.genuine = V.IN_DOUBT, "", False


def _happened(books: _Books, record: _Record) -> None:
    """An unknown outcome that later records closed as done: posted, if the card was allowed to at that time."""
    record.chained = True
    verdict, record.cause = _check_card(books, record.row)
    record.verdict = verdict or V.POSTED
    record.genuine = record.genuine or verdict is not None


def _position_of(chain: Chain) -> tuple[int, int, int, str, str, int]:
    return *chain.position, spans(chain.missing_offline), spans(chain.missing_online), chain.outstanding_fen


def spans(numbers: Iterable[int]) -> str:
    """Numbers as text: ``4-6,9``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(f"{first}-{last}" if first != last else str(first) for first, last in parts)


def _said(row: Row | None, start: Position, moves: list[Move]) -> Position | None:
    """What the card itself said last, unless a record speaks of a later time."""
    if row is None or row["said_ms"] is None:
        return None
    said = Position(row["said_balance_fen"], row["said_offline_seq"], row["said_online_seq"])
    tops = [max([start[1 + o], *(m.seq + 1 for m in moves if m.sure and m.online is bool(o))]) for o in (0, 1)]
    fresh = said.offline_seq >= tops[0] and said.online_seq >= tops[1]
    return said if fresh and all(m.utc_ms <= row["said_ms"] for m in moves if not m.sure) else None


def _of_purse(books: _Books, record: _Record, known: dict[str, _Record]) -> list[_Record]:
    """All records of a purse, those that are closed too."""
    for row in books.tx.all(
        "SELECT * FROM transaction_record WHERE enterprise_id = ? AND card_serial = ? AND purse = ?",
        (books.enterprise_id, record.row["card_serial"], record.place[0]),
    ):
        known.setdefault(row["record_id"], _Record.of(row))
    return [other for other in known.values() if other.place[0] == record.place[0]]


def _resolve_reuse(books: _Books, record: _Record, known: dict[str, _Record]) -> _Record | None:
    """A genuine record whose counter another record has: told twice, a cloned card, or that was taken for done.

    Returns the record that it disproves so.
    """
    others = [one for one in _of_purse(books, record, known) if one.chained and one.place == record.place]
    if twin := next((one for one in others if one.row["tac"] == record.row["tac"]), None):
        record.chained, record.verdict, record.cause = True, V.DUPLICATE, f"told before as {twin.record_id}"
        return None
    for other in others:
        proof, _ = _check_proof(books, other)
        if proof is not V.POSTED:
            if proof is V.IN_DOUBT:
                other.verdict, other.cause = V.NOT_DONE, f"the card used this number for {record.record_id}"
            other.genuine = False
            return other
    record.chained = True
    record.cause = f"the card used this number before: {others[0].record_id if others else 'before it was known here'}"
    return None


# Booking


def _book(books: _Books, record: _Record, known: dict[str, _Record]) -> None:
    """Post what the verdict asks for beyond what is booked already."""
    target = {V.POSTED: "yes", V.IN_DOUBT: "doubt"}.get(record.verdict, "no" if record.booked == "no" else "back")
    permit = _permit(books, record)
    if target == "doubt" and permit is not None and permit.payer == ledger.IN_DOUBT:
        target = record.booked  # its amount has stood in doubt since before the card was asked
    if record.verdict in RETRIED or record.booked == target:
        return
    accounts = _accounts(books, record, known)
    if accounts is None:
        if record.verdict is V.POSTED:
            record.verdict, record.cause = V.UNPAIRED, "the payment that this undoes is not posted"
        return
    giver, getter = (ledger.EXPIRED if account == ledger.VOID else account for account in accounts)
    # Where the amount lies in each state: any state leads to any other.
    lies = {"no": giver, "back": giver, "doubt": ledger.IN_DOUBT, "yes": getter}
    suffix = {"yes": "", "doubt": "/doubt"}.get(target, "/reversed" if record.booked == "yes" else "/back")
    source, target_account = lies[record.booked], lies[target]
    proven = "yes" in (record.booked, target)
    suffix += _round(books, record)
    record.booked = target
    row = record.row
    if row["amount_fen"] and source != target_account:
        entry_id, kind = record.record_id + suffix, record.kind.name.lower() + suffix
        books.entries.append(transfer(entry_id, kind, row["utc_ms"], source, target_account, row["amount_fen"], ACTOR))
        if ledger.VOID in accounts and proven:
            # It left the card's account when it expired: now the chip has followed.
            entry_id = ledger.expiry_id(row["card_serial"], Purse(row["purse"]), f"emptied/{entry_id}")
            pair = (getter, giver) if target == "yes" else (giver, getter)
            books.entries.append(transfer(entry_id, "expiry_emptied", row["utc_ms"], *pair, row["amount_fen"], ACTOR))


def _round(books: _Books, record: _Record) -> str:
    """Ending that keeps entries apart once a record was given back: nothing the first time, then /2, /3..."""
    if record.booked == "no":
        return ""
    rows = books.tx.all(
        "SELECT entry_id FROM ledger_entry WHERE enterprise_id = ? AND entry_id >= ? AND entry_id < ?",
        (books.enterprise_id, f"{record.record_id}/", f"{record.record_id}0"),
    )
    given_back = sum("/back" in row[0] or "/reversed" in row[0] for row in rows)
    return f"/{given_back + 1}" if given_back else ""


def _honour(tx: Tx, enterprise_id: int, cards: list[bytes]) -> int:
    """What a till took of an expired balance all the same was honoured: it comes back from ``expired``."""
    if not tx.one(
        "SELECT entry_id FROM ledger_entry WHERE enterprise_id = ? AND entry_id >= 'expiry/' AND entry_id < 'expiry/~'"
        " LIMIT 1",
        (enterprise_id,),
    ):
        return 0
    entries = []
    for serial, purse in ((serial, purse) for serial in cards for purse in Purse):
        void, account = ledger.void(tx, enterprise_id, serial, purse), card_account(serial, purse)
        if void <= 0 or (books_fen := ledger.balance(tx, enterprise_id, account)) >= 0:
            continue
        doubt = tx.value(
            "SELECT COALESCE(SUM(amount_fen), 0) FROM transaction_record WHERE enterprise_id = ? AND card_serial = ?"
            " AND purse = ? AND booked = 'doubt'",
            (enterprise_id, serial, int(purse)),
        )
        fen = min(void, -books_fen - doubt)
        if fen > 0:
            entry_id = ledger.expiry_id(serial, purse, f"spent/{tx.new_id()}")
            entries.append(transfer(entry_id, "expiry_spent", tx.now_ms, ledger.EXPIRED, account, fen, ACTOR))
    return ledger.post(tx, enterprise_id, *entries)


def _accounts(books: _Books, record: _Record, known: dict[str, _Record]) -> tuple[str, str] | None:
    """Who gives and who gets; None when that is not known yet."""
    row = record.row
    card = card_account(row["card_serial"], Purse(row["purse"]))
    permit = _permit(books, record)
    other = permit.payer if permit else _ordered(books, record)
    if other is None and row["undo_of"]:
        other = _undone(books, record, known)
        if other is None:
            return None
    if other is None and record.kind in LOADS:
        other = cash_account(row["terminal"], row["shift"] or _day(books, row))
    if other is None and record.kind is TransactionType.UNLOAD:
        other = ledger.SUBSIDIES
    if other is None and record.kind is TransactionType.WITHDRAW:
        other = cash_account(row["terminal"], row["shift"] or _day(books, row))
    if other is None:
        other = takings_account(row["terminal"], _day(books, row))
    return (other, card) if record.kind in LOADS else (card, other)


def _permit(books: _Books, record: _Record) -> permits.Permit | None:
    """The host's leave for a load at a terminal."""
    row = record.row
    asks = record.kind in LOADS and row["request_id"] and not row["undo_of"]
    return permits.covering(books.tx, books.enterprise_id, row) if asks else None


def _ordered(books: _Books, record: _Record) -> str | None:
    """The account that the back office's own order named; only a station acts on orders."""
    row = record.row
    if not row["request_id"] or not _is_station(books, row):
        return None
    order = books.tx.one(
        "SELECT account FROM money_order WHERE enterprise_id = ? AND request_id = ? AND card_serial = ? AND purse = ?"
        " AND amount_fen = ?",
        (books.enterprise_id, row["request_id"], row["card_serial"], row["purse"], row["amount_fen"]),
    )
    return str(order["account"]) if order else None


def _undone(books: _Books, record: _Record, known: dict[str, _Record]) -> str | None:
    """Takings that an undo gives back; differences when that was done already; None until the payment is posted."""
    wanted = record.row["undo_of"].hex()
    paid = known.get(wanted)
    if paid is None:
        row = books.tx.one(
            "SELECT * FROM transaction_record WHERE enterprise_id = ? AND record_id = ?", (books.enterprise_id, wanted)
        )
        if row is None:
            return None
        paid = known[wanted] = _Record.of(row)
    if paid.verdict is not V.POSTED and record.booked == "no":
        return None
    row = record.row
    same = all(paid.row[name] == row[name] for name in ("card_serial", "purse", "amount_fen"))
    if paid.kind not in SPENDS or not same or paid.undone_by not in (None, record.record_id):
        record.cause = f"undone by {paid.undone_by}" if paid.undone_by else "it undoes another payment than it names"
        return ledger.DIFFERENCES
    if paid.undone_by is None and record.verdict is V.POSTED:
        paid.undone_by = record.record_id
    return takings_account(paid.row["terminal"], _day(books, row))


def _day(books: _Books, row: Row) -> str:
    """The enterprise's date of a record; what comes after its day was closed counts for the day it comes."""
    digits = row["local_time"].hex()[:8]
    day = f"{digits[:4]}-{digits[4:6]}-{digits[6:]}"
    if digits.isdigit() and day not in books.closed:
        return day
    return day_of(books.tx.now_ms, books.offset_min)


def day_of(utc_ms: int, offset_min: int = DEFAULT_OFFSET_MIN) -> str:
    """Date of the enterprise, YYYY-MM-DD."""
    return f"{datetime.fromtimestamp(utc_ms / 1000, UTC) + timedelta(minutes=offset_min):%Y-%m-%d}"


def observe(
    tx: Tx, enterprise_id: int, card_serial: bytes, purse: Purse, said: Position, at_ms: int, fresh: bool = False
) -> None:
    """Note what a card itself said of a purse; :func:`settle_cards` then draws the conclusions.

    ``fresh``: a new application, whose counters begin there. An older word never replaces a newer one.
    """
    start = said if fresh else Position()
    tx.execute(
        "INSERT INTO purse_position (enterprise_id, card_serial, purse, balance_fen, offline_seq, online_seq,"
        " missing_offline, missing_online, outstanding_fen, said_balance_fen, said_offline_seq, said_online_seq,"
        " said_ms, changed_ms) VALUES (?, ?, ?, ?, ?, ?, '', '', 0, ?, ?, ?, ?, ?)"
        " ON CONFLICT (enterprise_id, card_serial, purse) DO UPDATE SET"
        " said_balance_fen = excluded.said_balance_fen, said_offline_seq = excluded.said_offline_seq,"
        " said_online_seq = excluded.said_online_seq, said_ms = excluded.said_ms, changed_ms = excluded.changed_ms"
        " WHERE purse_position.said_ms IS NULL OR purse_position.said_ms <= excluded.said_ms",
        (enterprise_id, card_serial, int(purse), *start, *said, at_ms, tx.now_ms),
    )


# Asking


def findings(tx: Tx, enterprise_id: int) -> list[Finding]:
    """Everything refused, told twice in contradiction, or odd: by name, in order of terminal and journal."""
    marks = ", ".join("?" * len(REFUSED))
    rows: list[Any] = tx.all(
        "SELECT record_id, verdict, cause, terminal, journal_seq, card_serial, amount_fen FROM transaction_record"
        f" WHERE enterprise_id = ? AND (verdict IN ({marks}, 'duplicate') OR (verdict = 'posted' AND cause <> ''))",
        (enterprise_id, *sorted(REFUSED)),
    )
    rows += tx.all(
        "SELECT conflict_id, 'conflict', cause, terminal, journal_seq, NULL, NULL FROM record_conflict"
        " WHERE enterprise_id = ?",
        (enterprise_id,),
    )
    return sorted((Finding(*row) for row in rows), key=lambda f: (f.terminal, f.journal_seq, f.record_id))
