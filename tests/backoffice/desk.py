"""An office with simulated cards in its reader: both databases, keys, members."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

from backoffice import blacklists, cards, chips, enterprises, journals, ledger, members, reconcile, registry, settlement
from backoffice.cards import NewCard
from backoffice.database import PLATFORM, Database
from backoffice.ledger import card_account
from backoffice.members import Member
from backoffice.operators import Operator, Role
from backoffice.registry import TerminalKind
from backoffice.station import Office
from cardlib.crypto import Algorithm, make_key
from cardlib.errors import OneCardError, OutcomeUnknown, TransportError
from cardlib.iso7816 import pin_bytes
from cardlib.profile import Purse
from cardlib.purse import CardSession, MoneyRequest, balance, composite_debit, open_application, recover
from cardlib.records import Event, Outcome, Transaction, local_when
from keymgmt.handle import KeyHandle
from keymgmt.softsam import SoftSam
from keymgmt.steps import read_identity
from keymgmt.store import FileStore
from simulator.card import Card
from tests.backoffice.kit import ADMIN, ENTERPRISE, PASSPHRASE, T0, Till, make_store, sam_serial, terminal_number

TRANSPORT_KEY = bytes(range(0x40, 0x50))
PIN = pin_bytes("123456")
OPERATOR = Operator(PLATFORM, "root", Role.PLATFORM)


class Counter:
    """A till that pays with simulated cards: SAM in software, journal in memory."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.till = Till(number)
        self.sam = SoftSam(world.store, ENTERPRISE, terminal_number(number), sam_serial(number))
        self.open: dict[int, Transaction] = {}
        with world.db.write() as tx:
            registry.register(tx, ADMIN, ENTERPRISE, self.till.terminal, TerminalKind.POS, f"till {number}")
            registry.fit_sam(tx, ADMIN, ENTERPRISE, self.till.terminal, self.till.sam)

    def intent(self, move: Transaction) -> int:
        ref = self.till.append(Event.INTENT, None, move, utc_ms=self.world.now)
        self.open[ref] = move
        return ref

    def committed(self, ref: int, move: Transaction) -> None:
        self.till.append(Event.COMMITTED, ref, move, utc_ms=self.world.now)
        del self.open[ref]

    def not_done(self, ref: int, reason: str) -> None:
        self.till.append(Event.NOT_DONE, ref, None, reason, utc_ms=self.world.now)
        del self.open[ref]

    def resolve(self, card: Card) -> CardSession:
        """Open the card and find out how torn payments with it ended."""
        session = open_application(card, self.sam, ENTERPRISE, self.world.random_bytes)
        for ref, move in list(self.open.items()):
            if move.card_serial == session.factor:
                recover(card, self.sam, self, session, ref, move)
        return session

    def pay(self, card: Card, amount_fen: int, *, reset: bool = True) -> Transaction:
        if reset:
            card.reset()
        world, session = self.world, self.resolve(card)
        when = local_when(world.now)
        request = MoneyRequest(Purse.MAIN, amount_fen, when, world.now)
        return composite_debit(card, self.sam, self, session, request, ()).move

    def collect(self) -> None:
        journals.collect(self.world.db, ENTERPRISE, self.till.file())
        self.world.settle()

    def close_books(self) -> None:
        """Everything up to now is in the journal, and the journal is in."""
        self.till.note("shift_close", "1", self.world.now)
        self.collect()


class World:
    """Both databases, keys, an office; cards are made by its own flows."""

    def __init__(
        self, folder: Path, algorithm: Algorithm = Algorithm.TDES, seed: int = 3, *, fresh: bool = True
    ) -> None:
        self.now = T0
        self.random_bytes: Callable[[int], bytes] = Random(5).randbytes
        self.db = Database(folder / "e.db", "enterprise", migrate=fresh, now_ms=self.clock)
        self.platform = Database(folder / "p.db", "platform", migrate=fresh, now_ms=self.clock)
        if fresh:
            self.store = make_store(folder / "keys", self.clock, algorithm, seed)
            with self.platform.write() as tx:
                enterprises.register(tx, OPERATOR, ENTERPRISE, "A company", "e.db")
        else:
            self.store = FileStore(folder / "keys", PASSPHRASE)
            self.now = time.time_ns() // 1_000_000  # later than any lease of the process before
            self.random_bytes = os.urandom
        self.office = self.new_office()

    @classmethod
    def again(cls, folder: Path) -> World:
        """The same enterprise, opened by another process."""
        return cls(folder, fresh=False)

    def new_office(self) -> Office:
        """As a fresh process would have it."""
        initial = KeyHandle(make_key(TRANSPORT_KEY), "vendor")
        return Office(self.platform, self.db, ENTERPRISE, self.store, self.clock, self.random_bytes, OPERATOR, initial)

    def clock(self) -> int:
        self.now += 1000
        return self.now

    def close(self) -> None:
        self.store.close()
        self.db.close()
        self.platform.close()

    def member(self, number: int, phone: bool = True) -> str:
        name = f"M{number:03}"
        with self.db.write() as tx:
            member = Member(name, f"成员 {number}", f"138{number:08}" if phone else "", groups=5)
            members.add(tx, ADMIN, ENTERPRISE, member)
        return name

    def blank(self) -> Card:
        return Card.vendor_fresh(TRANSPORT_KEY, self.random_bytes)

    def new(self, card: Card | None = None, *, posted: bool = False) -> NewCard:
        return NewCard(card or self.blank(), PIN, posted)

    def issued(self, number: int = 1) -> tuple[Card, bytes]:
        """A member with an active card."""
        card = self.blank()
        outcome = cards.issue(self.office, ADMIN, self.member(number), self.new(card))
        card.reset()
        return card, bytes.fromhex(outcome["card"])

    def settle(self) -> None:
        settlement.settle(self.db, ENTERPRISE, self.office.host())

    def books(self) -> dict[str, int]:
        """All accounts; the books are proven on the way."""
        with self.db.read() as tx:
            ledger.verify(tx, ENTERPRISE)
            found = ledger.balances(tx, ENTERPRISE)
        assert sum(found.values()) == 0
        return {account: fen for account, fen in found.items() if fen}

    def purse(self, serial: bytes, purse: Purse = Purse.MAIN) -> int:
        return self.books().get(card_account(serial, purse), 0)

    def on_card(self, card: Card) -> dict[Purse, int]:
        """What the chip itself holds."""
        card.reset()
        open_application(card, self.office.host(), ENTERPRISE, self.random_bytes)
        return {purse: balance(card, purse) for purse in Purse}

    def state(self, serial: bytes) -> tuple[str, str]:
        """The application's state and the chip's."""
        with self.db.read() as tx, self.platform.read() as ptx:
            return cards.get(tx, ENTERPRISE, serial).state.value, chips.get(ptx, serial).state.value

    def listed(self) -> set[str]:
        with self.db.read() as tx:
            return {entry.card_serial.hex() for entry in blacklists.listing(tx, ENTERPRISE)}

    def agrees(self) -> None:
        """Nothing missing, nothing refused, books and cards the same."""
        with self.db.read() as tx:
            assert reconcile.gaps(tx, ENTERPRISE) == []
            assert reconcile.reconcile(tx, ENTERPRISE) == []
            assert settlement.findings(tx, ENTERPRISE) == []


def serial_of(card: Card) -> bytes:
    card.reset()
    identity = read_identity(card)
    assert identity is not None
    card.reset()
    return identity.serial


def torn(work: Callable[[], object], chips_: list[Card], step: int, cut: Card) -> bool:
    """Do ``work`` with power cut at a step of one card, then again until it is done; False when the cut never came."""
    cut.power.cut_at(step)
    with suppress(TransportError, OutcomeUnknown):
        work()
    came = not cut.power.armed
    cut.power.cut_at(0)
    if came:
        for chip in chips_:
            chip.reset()
        work()
    return came


__all__ = ["OneCardError", "Outcome"]
