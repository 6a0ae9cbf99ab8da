"""Cards and tills without chips: records with right proofs, made as fast as a test can ask for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from backoffice import registry
from backoffice.database import Database
from backoffice.operators import Operator, Role
from backoffice.registry import TerminalKind
from cardlib.crypto import Algorithm
from cardlib.crypto.sealing import Argon2Params
from cardlib.profile import CardKind, Purpose, Purse, TransactionType, make_serial
from cardlib.records import (
    Event,
    JournalEntry,
    JournalFile,
    Note,
    Outcome,
    Report,
    Transaction,
    genesis,
    local_when,
    tac_input,
)
from keymgmt.keys import PLATFORM_PURPOSES, KeyRef, KeyState
from keymgmt.softsam import SoftSam
from keymgmt.store import FileStore

ENTERPRISE = 1001
T0 = 1_790_000_000_000
PASSPHRASE = b"open sesame"
ADMIN = Operator(ENTERPRISE, "anna", Role.ADMINISTRATOR)
SECOND = Operator(ENTERPRISE, "ben", Role.FINANCE)
CHEAP = Argon2Params(memory_kib=64, iterations=1, lanes=1)


def make_store(
    path: Path, now_ms: Callable[[], int] = lambda: T0, algorithm: Algorithm = Algorithm.TDES, seed: int = 3
) -> FileStore:
    """A key store with version 1 of every key active; the platform's own are 3DES, as chips are delivered."""
    store = FileStore.create_file(path, PASSPHRASE, CHEAP, random_bytes=Random(seed).randbytes, now_ms=now_ms)
    for purpose in Purpose:
        if purpose is Purpose.PIN:
            continue
        refs = [KeyRef(purpose, 1)] + ([] if purpose in PLATFORM_PURPOSES else [KeyRef(purpose, 1, ENTERPRISE)])
        for ref in refs:
            store.create(ref, Algorithm.TDES if purpose in PLATFORM_PURPOSES else algorithm, "test")
            store.set_state(ref, KeyState.ACTIVE, "test")
    return store


def terminal_number(n: int) -> bytes:
    return n.to_bytes(6, "big")


def sam_serial(n: int) -> bytes:
    return make_serial(CardKind.SAM, 1, n)


def card_serial(n: int) -> bytes:
    return make_serial(CardKind.CPU_CARD, 1, n)


@dataclass
class Till:
    """A terminal's journal, kept in memory."""

    number: int
    sam: bytes = b""
    entries: list[JournalEntry] = field(default_factory=list)
    terminal_seq: int = 0

    def __post_init__(self) -> None:
        self.sam = self.sam or sam_serial(self.number)
        self.terminal = terminal_number(self.number)

    def append(self, event: Event, ref: int | None, record: Report | None, reason: str = "", utc_ms: int = T0) -> int:
        previous = self.entries[-1].hash if self.entries else genesis(ENTERPRISE, self.terminal)
        self.entries.append(JournalEntry(len(self.entries) + 1, event, ref, record, reason, utc_ms, previous))
        return len(self.entries)

    def note(self, code: str, text: str = "", utc_ms: int = T0) -> None:
        self.append(Event.RECORD, None, Note(code, text), utc_ms=utc_ms)

    def file(self, first: int = 1, last: int | None = None) -> bytes:
        part = self.entries[first - 1 : last]
        previous = part[0].previous if part else genesis(ENTERPRISE, self.terminal)
        return JournalFile(ENTERPRISE, self.terminal, self.sam, first, previous, tuple(part)).encode()


@dataclass
class Purses:
    """A card's money and counters, and the key that proves its moves."""

    store: FileStore
    serial: bytes
    balance: dict[Purse, int] = field(default_factory=lambda: dict.fromkeys(Purse, 0))
    offline: dict[Purse, int] = field(default_factory=lambda: dict.fromkeys(Purse, 0))
    online: dict[Purse, int] = field(default_factory=lambda: dict.fromkeys(Purse, 0))

    def intent(
        self, till: Till, kind: TransactionType, amount_fen: int, utc_ms: int, undo_of: bytes = b"", request: str = ""
    ) -> Transaction:
        purse = kind.purse
        if not kind.online:
            till.terminal_seq += 1
        seq = (self.online if kind.online else self.offline)[purse]
        return Transaction(
            ENTERPRISE, till.terminal, till.sam, 0 if kind.online else till.terminal_seq, self.serial, purse, kind,
            amount_fen, self.balance[purse], 0, seq, 1, 0, local_when(utc_ms), utc_ms, undo_of=undo_of,
            request_id=request,
        )  # fmt: skip

    def perform(self, move: Transaction) -> Transaction:
        """The card does it and proves it."""
        counter = self.online if move.kind.online else self.offline
        assert (counter[move.purse], self.balance[move.purse]) == (move.card_seq, move.balance_before_fen)
        counter[move.purse] += 1
        self.balance[move.purse] = move.balance_after_fen
        tac = self.store.handle(KeyRef(Purpose.TAC, 1, ENTERPRISE), self.serial).tac(tac_input(move))
        return replace(move, tac=tac, mac2_verified=True, outcome=Outcome.COMMITTED)

    def do(
        self, till: Till, kind: TransactionType, amount_fen: int, utc_ms: int = T0, undo_of: bytes = b""
    ) -> Transaction:
        """A whole move, journaled."""
        move = self.intent(till, kind, amount_fen, utc_ms, undo_of)
        ref = till.append(Event.INTENT, None, move, utc_ms=utc_ms)
        done = self.perform(move)
        till.append(Event.COMMITTED, ref, done, utc_ms=utc_ms)
        return done

    def load(self, till: Till, amount_fen: int, utc_ms: int = T0, purse: Purse = Purse.MAIN) -> Transaction:
        kind = TransactionType.LOAD_EP if purse is Purse.MAIN else TransactionType.LOAD_ED
        return self.do(till, kind, amount_fen, utc_ms)

    def pay(self, till: Till, amount_fen: int, utc_ms: int = T0, purse: Purse = Purse.MAIN) -> Transaction:
        kind = TransactionType.COMPOSITE if purse is Purse.MAIN else TransactionType.PURCHASE_ED
        return self.do(till, kind, amount_fen, utc_ms)

    def torn(self, till: Till, amount_fen: int, utc_ms: int = T0, done: bool = True) -> tuple[int, Transaction]:
        """A payment whose answer was lost: the intent alone is journaled."""
        move = self.intent(till, TransactionType.COMPOSITE, amount_fen, utc_ms)
        ref = till.append(Event.INTENT, None, move, utc_ms=utc_ms)
        return ref, self.perform(move) if done else move


class Kit:
    """An enterprise with a host, tills registered, and cards that are in use."""

    def __init__(self, db: Database, folder: Path) -> None:
        self.db = db
        self.store = make_store(folder / "keys")
        self.host = SoftSam(self.store, ENTERPRISE, terminal_number(900), sam_serial(900))

    def till(self, number: int, kind: TerminalKind = TerminalKind.POS, sam: bytes = b"") -> Till:
        till = Till(number, sam)
        with self.db.write() as tx:
            registry.register(tx, ADMIN, ENTERPRISE, till.terminal, kind, f"till {number}")
            registry.fit_sam(tx, ADMIN, ENTERPRISE, till.terminal, till.sam)
        return till

    def card(self, number: int, state: str = "active", at_ms: int = T0 - 1000) -> Purses:
        """A card of a member of its own, in a state since ``at_ms``."""
        serial = card_serial(number)
        with self.db.write() as tx:
            tx.execute(
                "INSERT INTO member (enterprise_id, member_number, name, state, created_ms, changed_ms)"
                " VALUES (?, ?, ?, 'active', ?, ?)",
                (ENTERPRISE, f"M{number}", f"Member {number}", at_ms, at_ms),
            )
            tx.execute(
                "INSERT INTO card_application (enterprise_id, card_serial, member_number, kind, state, slot,"
                " key_version, starts, expires, created_ms, changed_ms)"
                " VALUES (?, ?, ?, 2, ?, 1, 1, '2026-01-01', '2031-01-01', ?, ?)",
                (ENTERPRISE, serial, f"M{number}", state, at_ms, at_ms),
            )
        self.turn(serial, "slot", state, at_ms)
        return Purses(self.store, serial)

    def turn(self, serial: bytes, old: str, new: str, at_ms: int) -> None:
        with self.db.write() as tx:
            tx.execute(
                "INSERT INTO card_transition (enterprise_id, transition_id, card_serial, state_from, state_to, actor,"
                " reason, at_ms) VALUES (?, ?, ?, ?, ?, 'test', 'test', ?)",
                (ENTERPRISE, tx.new_id(), serial, old, new, at_ms),
            )

    def dump(self) -> dict[str, list[tuple[object, ...]]]:
        """Everything that settlement writes, to compare before and after."""
        tables = ("transaction_record", "record_conflict", "purse_position", "ledger_entry", "ledger_posting")
        with self.db.read() as tx:
            return {name: [tuple(row) for row in tx.all(f"SELECT * FROM {name} ORDER BY 1, 2, 3")] for name in tables}
