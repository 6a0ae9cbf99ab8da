"""A shop for tests: simulated cards and SAM, a host in memory, a POS and a recharge terminal on real journal files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from random import Random
from typing import ClassVar

from cardlib import iso7816 as iso
from cardlib.crypto.keys import Key
from cardlib.errors import CardRemoved, NotFound, OneCardError, OutcomeUnknown, Refused, TransportError
from cardlib.profile import (
    CardKind,
    DayCounters,
    PublicInfo,
    Purpose,
    Purse,
    TransactionType,
    issuer_id,
    make_serial,
)
from cardlib.purse import balance, initialize_purchase, load, open_application
from cardlib.records import Transaction, pending, tac_input
from cardlib.sam import CardSam, Sam
from cardlib.transport import Transport
from simulator.card import Card
from terminals.config import Kind, TerminalConfig
from terminals.journal import Journal
from terminals.policy import Rules
from terminals.pos import Pos
from terminals.reasons import Reason
from terminals.recharge import Recharge
from terminals.runtime import Receipt, Terminal
from terminals.screen import MemoryScreen
from tests.cardlib.world import (
    ENTERPRISE,
    PIN,
    SAM_SERIAL,
    TERMINAL,
    KeyHost,
    MemoryJournal,
    make_application,
    make_sam,
    masters,
    request,
)

NOW = 1_790_000_000_000  # 2026-09-21 22:13:20 at +08:00
RULES = Rules(ENTERPRISE)


@dataclass
class FixedLists:
    """A blacklist that a test writes."""

    version: int = 3
    created_ms: int | None = NOW
    listed: dict[bytes, Reason] = field(default_factory=dict)

    def lookup(self, card_serial: bytes) -> Reason | None:
        return self.listed.get(card_serial)


@dataclass
class OneSam:
    """A SAM source of one SAM."""

    sam: Sam

    def lease(self) -> AbstractContextManager[Sam]:
        return nullcontext(self.sam)


@dataclass
class MemoryOffice:
    """A back office that a test can switch off, and that remembers what it allowed."""

    host: KeyHost
    refuse: str = ""
    away: bool = False
    undone: list[Transaction] = field(default_factory=list)
    loads: list[tuple[bytes, int, str]] = field(default_factory=list)

    def _answer(self) -> None:
        if self.away:
            raise TransportError("no line")
        if self.refuse:
            raise Refused(self.refuse, "the books say no")

    def allow_undo(self, paid: Transaction) -> None:
        self._answer()
        self.undone.append(paid)

    def redeem(self, card_serial: bytes, number: str, secret: str) -> int:
        self._answer()
        return 1_000

    def claim(self, card_serial: bytes, balance_fen: int) -> tuple[str, int]:
        self._answer()
        return "claim:1:b:M", 1_000

    def loading(self, request_id: str) -> KeyHost:
        return self.host

    def allow_load(self, card_serial: bytes, amount_fen: int, request_id: str, shift: int) -> None:
        self._answer()
        self.loads.append((card_serial, amount_fen, request_id))


class Shop:
    """Cards, one SAM, one POS or recharge terminal. ``restart`` is a crash: a new process on the same file."""

    opened: ClassVar[list[Shop]] = []

    def __init__(self, folder: Path, rules: Rules = RULES, *, recharge: bool = False, algorithm: int = 0) -> None:
        self.folder = folder
        self.rules = rules
        self.kind: type[Terminal] = Recharge if recharge else Pos
        self.algorithm = algorithm
        self.now_ms = NOW
        self.random = Random(5)
        self.masters = masters(1, algorithm)
        self.host = KeyHost(self.card_key)
        self.office = MemoryOffice(self.host)
        self.lists = FixedLists()
        self.screen = MemoryScreen()
        self.free_bytes = 1 << 30
        self.sam_card = make_sam(self.masters, self.random)
        self.sam = CardSam(self.sam_card, lambda: PIN)
        # A recharge terminal's SAM holds 39/02 instead of purchase keys; the host stands in for it.
        self.sams = OneSam(self.host if recharge else self.sam)
        self.journal = self._open()
        self.terminal = self._terminal()
        self.terminal.open_shift("zhang")
        self.opened.append(self)

    def card_key(self, purpose: Purpose, version: int, factor: bytes) -> Key:
        if version != 1:
            raise NotFound(f"no key of version {version}")
        return self.masters[purpose].diversify(factor)

    def _open(self) -> Journal:
        return Journal(
            self.folder / "pos.db", ENTERPRISE, TERMINAL, SAM_SERIAL, lambda: self.now_ms,
            free_bytes=lambda: self.free_bytes,
        )  # fmt: skip

    def _terminal(self) -> Terminal:
        config = TerminalConfig(1, Kind.POS, ENTERPRISE, Path(), Path(), bytes(32), rules=self.rules)
        return self.kind(
            config, self.journal, self.lists, self.sams, lambda: self.now_ms, self.random.randbytes, self.screen,
            self.office,
        )  # fmt: skip

    @property
    def pos(self) -> Pos:
        assert isinstance(self.terminal, Pos)
        return self.terminal

    @property
    def recharger(self) -> Recharge:
        assert isinstance(self.terminal, Recharge)
        return self.terminal

    def set_rules(self, rules: Rules) -> None:
        self.rules = rules
        self.terminal = self._terminal()

    def restart(self, *, sam_too: bool = True) -> None:
        """The terminal loses power: its process is gone, and with it the SAM's open purchase."""
        self.journal.close()
        if sam_too:
            self.sam_card.reset()
            self.sam = CardSam(self.sam_card, lambda: PIN)
            self.sams.sam = self.host if self.kind is Recharge else self.sam
        self.journal = self._open()
        self.terminal = self._terminal()

    def new_card(self, sequence: int = 1, subsidy_fen: int = 0, main_fen: int = 0, *, issuer: int = ENTERPRISE) -> Card:
        """A card of the enterprise with its serial, filled; ``issuer`` is who it says that it is of."""
        serial = make_serial(CardKind.CPU_CARD, 1, sequence)
        card = Card.blank(self.random.randbytes)
        make_application(card, lambda purpose, version, _: self.card_key(purpose, version, serial), 1, self.algorithm)
        iso.select(card, 0x3F01)
        info = PublicInfo(issuer_id(ENTERPRISE), 3, 1, bytes(2) + serial, date(2024, 1, 1), date(2034, 1, 1))
        protect = iso.SecureMessaging(self.card_key(Purpose.MAINTENANCE, 1, serial))
        iso.update_binary(card, 0x0015, info.encode(), protect=protect)
        for purse, fen in ((Purse.SUBSIDY, subsidy_fen), (Purse.MAIN, main_fen)):
            if fen:
                card.reset()
                session = open_application(card, self.host, ENTERPRISE, self.random.randbytes, Purpose.RECHARGE)
                load(card, self.host, MemoryJournal(), session, request(purse, fen))
        card.reset()
        return card

    def look(self, card: Card) -> CardState:
        """What a card holds, read by an authenticated host; the card is left reset."""
        card.power.cut_at(0)
        card.reset()
        session = open_application(card, self.host, ENTERPRISE, self.random.randbytes, Purpose.TERMINAL)
        counters = DayCounters.decode(iso.read_record(card, 0x17, 1, by_tag=True))
        balances = balance(card, Purse.SUBSIDY), balance(card, Purse.MAIN)
        seqs = tuple(
            initialize_purchase(card, kind, 1, 0, TERMINAL).seq
            for kind in (TransactionType.PURCHASE_ED, TransactionType.PURCHASE_EP)
        )
        assert session.version == 1
        card.reset()
        return CardState(balances, seqs, counters)

    def moves(self) -> list[Transaction]:
        """Committed moves in the chain, after its full check."""
        self.journal.verify()
        entries = self.journal.collect(1).entries
        return [e.record for e in entries if e.event == 2 and isinstance(e.record, Transaction)]

    def open_moves(self) -> list[Transaction]:
        entries = pending(self.journal.collect(1).entries)
        return [e.record for e in entries if isinstance(e.record, Transaction)]

    def agree(self, card: Card, subsidy_fen: int, main_fen: int) -> CardState:
        """Assert that card and journal tell the same story, starting from these balances; returns the card's side.

        Every proof in the journal is genuine: the TAC is recomputed from the record.
        """
        state = self.look(card)
        start = {Purse.SUBSIDY: subsidy_fen, Purse.MAIN: main_fen}
        paid = given = 0
        serial = card_serial(card)
        for move in (m for m in self.moves() if m.card_serial == serial):
            sign = 1 if move.kind.online else -1
            start[move.purse] += sign * move.amount_fen
            paid += 0 if move.kind.online else move.amount_fen
            given += move.amount_fen if move.kind.online and move.undo_of else 0
            if move.tac:
                self.host.verify_tac(serial, 1, move.algorithm, tac_input(move), move.tac)
        assert state.balances_fen == (start[Purse.SUBSIDY], start[Purse.MAIN])
        assert state.counters.day_spent_fen == paid - given
        return state

    def until_done(self, card: Card, act: Callable[[Transport], Receipt]) -> Receipt:
        """Present a card again and again, as a patient holder does."""
        for _ in range(5):
            card.power.cut_at(0)
            card.reset()
            try:
                return act(card)
            except (OutcomeUnknown, TransportError):
                continue
        raise AssertionError("it never ends")


@dataclass(frozen=True)
class CardState:
    """Balances (subsidy, main), offline counters, and the day counters of a card."""

    balances_fen: tuple[int, int]
    seqs: tuple[int, ...]
    counters: DayCounters


def card_serial(card: Card) -> bytes:
    """Serial of a test card."""
    from cardlib.purse import identify  # noqa: PLC0415

    card.reset()
    serial = identify(card, ENTERPRISE).factor
    card.reset()
    return serial


def cuts(limit: int = 400) -> range:
    """Steps to cut at; a test stops at the first that is not reached."""
    return range(1, limit)


@contextmanager
def torn(card: Card, step: int) -> Iterator[list[bool]]:
    """Cut power at a step; the list gets True when the block ended before that step came."""
    ended: list[bool] = []
    card.power.cut_at(step)
    try:
        with suppress(OutcomeUnknown, CardRemoved):
            yield ended
        if card.power.armed:
            ended.append(True)
    finally:
        card.power.cut_at(0)


def refused(act: Callable[[], object]) -> str:
    """The reason code with which something is refused."""
    try:
        act()
    except Refused as e:
        return e.reason
    except OneCardError as e:
        raise AssertionError(f"{type(e).__name__} instead of a refusal: {e}") from e
    raise AssertionError("it was allowed")


def with_rules(**changes: object) -> Rules:
    """The shop's rules with changes."""
    return replace(RULES, **changes)  # type: ignore[arg-type]  # checked by dataclass at run time
