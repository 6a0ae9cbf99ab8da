"""One-line fixtures for test rigs: a small enterprise on simulated hardware, and a pytest plugin that gives it.

    def test_lunch(enterprise, card):
        enterprise.recharge(card, 50_00)
        assert enterprise.pos.pay(card, 12_00).balance_fen == 38_00

Fixtures: ``enterprise``, ``card``, ``sam``, ``reader``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from random import Random

import pytest

from cardlib.crypto import Algorithm, make_key
from cardlib.crypto.sealing import Argon2Params
from cardlib.errors import OutcomeUnknown, TransportError
from cardlib.iso7816 import pin_bytes
from cardlib.profile import AccessRights, CardKind, Holder, Purpose, Purse, make_serial
from cardlib.purse import MoneyRequest, balance, load, open_application
from cardlib.records import Transaction, local_when
from cardlib.sam import CardSam, Sam
from keymgmt.delivery import StoreKeys
from keymgmt.handle import KeyHandle
from keymgmt.keys import PLATFORM_PURPOSES, KeyRef, KeyState
from keymgmt.personalise import PersonalPlan, Station, personalise
from keymgmt.samload import SamKind, SamPlan, make_sam
from keymgmt.slot import SlotPlan, open_slot
from keymgmt.softsam import SoftSam
from keymgmt.steps import MemorySteps
from keymgmt.store import FileStore
from keymgmt.wash import WashPlan, wash
from simulator.card import Card
from simulator.reader import Reader
from simulator.sam import SamCard
from terminals.config import Kind, TerminalConfig
from terminals.journal import Journal
from terminals.policy import Rules
from terminals.pos import Pos
from terminals.reasons import Reason
from terminals.screen import MemoryScreen

TRANSPORT_KEY = bytes.fromhex("404142434445464748494A4B4C4D4E4F")
"""Key of the simulated vendor: no secret, it opens nothing but simulated cards."""
PIN = "123456"
START, EXPIRY = date(2026, 1, 1), date(2035, 12, 31)
NOON_MS = 1_790_049_600_000
"""2026-09-22 12:00 at +08:00: when a rig's clock starts."""
CHEAP = Argon2Params(memory_kib=64, iterations=1, lanes=1)
OFFICE, TILL = b"OFFICE", b"TILL01"


class MemoryJournal:
    """A write-ahead journal that lives as long as the test."""

    def __init__(self) -> None:
        self.open: dict[int, Transaction] = {}
        self.moves: list[Transaction] = []

    def intent(self, move: Transaction, /) -> int:
        """See ``cardlib.purse.Journal``."""
        ref = len(self.moves) + len(self.open) + 1
        self.open[ref] = move
        return ref

    def committed(self, ref: int, move: Transaction, /) -> None:
        """See ``cardlib.purse.Journal``."""
        self.moves.append(move)
        del self.open[ref]

    def not_done(self, ref: int, reason: str, /) -> None:  # noqa: ARG002  # the interface has a reason
        """See ``cardlib.purse.Journal``."""
        del self.open[ref]


@dataclass
class Listed:
    """A blacklist that a test writes to; fresh at any time."""

    now_ms: Callable[[], int]
    cards: dict[bytes, Reason] = field(default_factory=dict)
    version: int = 1

    @property
    def created_ms(self) -> int:
        """When the list was last known to be true: now."""
        return self.now_ms()

    def lookup(self, card_serial: bytes) -> Reason | None:
        """Why a card is listed, or None."""
        return self.cards.get(card_serial)


@dataclass
class OneSam:
    """A terminal's source of its one SAM."""

    sam: Sam

    def lease(self) -> AbstractContextManager[Sam]:
        """The SAM, for one tap."""
        return nullcontext(self.sam)


class Enterprise:
    """A whole small enterprise: keys, issuing station, a till, cards. Everything random comes from ``seed``.

    ``clock_ms`` is what its clocks show, ``access`` what new cards may do at doors; a test changes both.
    """

    def __init__(
        self, folder: Path, enterprise_id: int = 1, seed: int = 1, algorithm: Algorithm = Algorithm.TDES
    ) -> None:
        self.folder = folder
        self.enterprise_id = enterprise_id
        self.algorithm = algorithm
        self.random_bytes = Random(seed).randbytes
        self.clock_ms = NOON_MS
        self.access = AccessRights(START, EXPIRY)
        self.journal = MemoryJournal()
        self.lists = Listed(self.now_ms)
        self._cards = self._sales = 0
        self._closing: list[Journal | FileStore] = []

    def now_ms(self) -> int:
        """What the rig's clocks show."""
        return self.clock_ms

    def close(self) -> None:
        """Close the files."""
        while self._closing:
            self._closing.pop().close()

    @cached_property
    def keys(self) -> FileStore:
        """A key store with a root key of every purpose."""
        path = self.folder / f"keys-{self.enterprise_id}"
        store = FileStore.create_file(path, b"a test rig", CHEAP, random_bytes=self.random_bytes, now_ms=self.now_ms)
        self._closing.append(store)
        for purpose in Purpose:
            algorithm = Algorithm.TDES if purpose in PLATFORM_PURPOSES else self.algorithm
            ref = KeyRef(purpose, 1)
            store.create(ref, algorithm, "rig")
            store.set_state(ref, KeyState.ACTIVE, "rig")
        return store

    @cached_property
    def host(self) -> SoftSam:
        """The enterprise's host: the keys that no terminal holds."""
        return SoftSam(self.keys, self.enterprise_id, OFFICE, make_serial(CardKind.SAM, 0, 1))

    @property
    def source(self) -> StoreKeys:
        """What fills key files of this enterprise's cards and SAMs."""
        return StoreKeys(self.keys, self.enterprise_id)

    @property
    def initial(self) -> KeyHandle:
        """The simulated vendor's key."""
        return KeyHandle(make_key(TRANSPORT_KEY), "vendor")

    def issue(self, card: Card, name: str = "张三", member: str = "1001") -> bytes:
        """Wash a vendor-fresh card, open its slot, personalise it; returns its serial."""
        self._cards += 1
        serial = make_serial(CardKind.CPU_CARD, 1, self._cards)
        wash(card, WashPlan("wash", serial, 1, START, 1, self.initial), self.keys, MemorySteps())
        self.join(card, serial, name, member)
        return serial

    def join(self, card: Card, serial: bytes, name: str = "张三", member: str = "1001") -> None:
        """Open this enterprise's slot on a washed card and personalise it, beside whatever is there."""
        steps = MemorySteps()
        open_slot(card, SlotPlan("slot", serial, self.enterprise_id, "ONECARD", self.algorithm), self.keys, steps)
        plan = PersonalPlan(
            "personalise", serial, self.enterprise_id, 1, Holder(1, 0, name, member),
            self.access, START, EXPIRY, pin_bytes(PIN), self.algorithm,
        )  # fmt: skip
        personalise(card, plan, Station(self.host, self.source, steps, self.journal, self.now_ms, self.random_bytes))
        card.reset()

    def neighbour(self, folder: Path, enterprise_id: int) -> Enterprise:
        """Another enterprise of the same platform: same root keys, keys of its own."""
        other = Enterprise(folder, enterprise_id, enterprise_id, self.algorithm)
        other.__dict__["keys"] = self.keys
        return other

    def new_card(self) -> Card:
        """A washed and personalised card, its purses empty."""
        card = Card.vendor_fresh(TRANSPORT_KEY, self.random_bytes)
        self.issue(card)
        return card

    def new_sam(self, kind: SamKind = SamKind.POS, terminal: bytes = TILL, pin: bytes | None = None) -> SamCard:
        """A SAM for one terminal, holding that kind of terminal's keys only; with a PIN when one is given."""
        self._cards += 1
        sam = SamCard.vendor_fresh(TRANSPORT_KEY, self.random_bytes, algorithm=self.algorithm)
        serial = make_serial(CardKind.SAM, 1, self._cards)
        initial = KeyHandle(make_key(TRANSPORT_KEY, self.algorithm), "vendor")
        plan = SamPlan("sam", serial, terminal, self.enterprise_id, kind, (1,), START, EXPIRY, pin=pin)
        make_sam(sam, plan, initial, self.keys, MemorySteps())
        sam.reset()
        return sam

    @cached_property
    def sam(self) -> SamCard:
        """The SAM of the till."""
        return self.new_sam()

    @cached_property
    def pos(self) -> Pos:
        """A till with its SAM, on a journal file, its shift open."""
        return self.new_pos(self.sam)

    def new_pos(self, sam: SamCard, rules: Rules | None = None) -> Pos:
        """A till with this SAM and these rules."""
        opened = CardSam(sam)
        path = self.folder / f"till-{opened.info().terminal.hex()}.db"
        journal = Journal(path, self.enterprise_id, opened.info().terminal, opened.info().serial, self.now_ms)
        self._closing.append(journal)
        config = TerminalConfig(
            1, Kind.POS, self.enterprise_id, path, path, bytes(32), rules=rules or Rules(self.enterprise_id)
        )
        pos = Pos(config, journal, self.lists, OneSam(opened), self.now_ms, self.random_bytes, MemoryScreen())
        if journal.shift is None:
            pos.open_shift("rig")
        return pos

    def recharge(self, card: Card, amount_fen: int, purse: Purse = Purse.MAIN) -> None:
        """Load a purse by the host, as at the counter."""
        card.reset()
        session = open_application(card, self.host, self.enterprise_id, self.random_bytes, Purpose.RECHARGE)
        request = MoneyRequest(purse, amount_fen, local_when(self.clock_ms), self.clock_ms)
        load(card, self.host, self.journal, session, request)
        card.reset()

    def pay_patiently(self, card: Card, amount_fen: int, taps: int = 5) -> None:
        """Pay once, presenting a torn card again until the till knows how it ended."""
        self._sales += 1
        for _ in range(taps):
            try:
                self.pos.pay(card, amount_fen, f"rig {self._sales}")
            except (OutcomeUnknown, TransportError):
                card.reset()
            else:
                return
        raise OutcomeUnknown("rig", "the payment never came to an end")

    def balances(self, card: Card) -> tuple[int, int]:
        """What the subsidy and the main purse hold, in fen."""
        card.reset()
        open_application(card, self.host, self.enterprise_id, self.random_bytes)
        found = balance(card, Purse.SUBSIDY), balance(card, Purse.MAIN)
        card.reset()
        return found

    def balance(self, card: Card) -> int:
        """What the main purse holds, in fen."""
        return self.balances(card)[1]


def every_cut(make: Callable[[], Card], limit: int = 1000) -> Iterator[tuple[Card, int]]:
    """Cards armed to lose power at their first, second, third ... step; stop when :func:`survived` says so."""
    for step in range(1, limit):
        card = make()
        card.power.cut_at(step)
        yield card, step


def survived(card: Card) -> bool:
    """Whether the armed cut never came, because the protocol was shorter; it comes no more."""
    armed = card.power.armed
    card.power.cut_at(0)
    return armed


@pytest.fixture
def enterprise(tmp_path: Path) -> Iterator[Enterprise]:
    """A small enterprise on simulated hardware."""
    made = Enterprise(tmp_path)
    yield made
    made.close()


@pytest.fixture
def card(enterprise: Enterprise) -> Card:
    """A washed and personalised card of ``enterprise``, its purses empty."""
    return enterprise.new_card()


@pytest.fixture
def sam(enterprise: Enterprise) -> SamCard:
    """The SAM of the enterprise's till."""
    return enterprise.sam


@pytest.fixture
def reader() -> Iterator[Reader]:
    """An empty simulated reader: ``reader.put(card)``, ``reader.take()``."""
    made = Reader()
    yield made
    made.take()


__all__: Sequence[str] = ["Enterprise", "card", "enterprise", "every_cut", "reader", "sam", "survived"]
