"""A machine over the whole life of cards: whatever is done, torn and repeated, money is conserved and told once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from backoffice import cards, ledger, reconcile, settlement, wallet
from backoffice.jobs import Result
from backoffice.ledger import card_account
from cardlib.errors import Conflict, NotFound, OutcomeUnknown, Refused, TransportError
from cardlib.profile import Purse
from simulator.card import Card
from tests.backoffice.desk import Counter, World
from tests.backoffice.kit import ADMIN, ENTERPRISE

AMOUNTS = st.integers(1, 200)
CUTS = st.one_of(st.just(0), st.integers(1, 60))
WHICH = st.integers(0, 5)


@dataclass
class Held:
    """A card of the model: the chip, and what its holder would say of it."""

    chip: Card
    serial: bytes
    state: str = "active"


def some(*states: str) -> Callable[[Cards], bool]:
    """Precondition: there is a card in one of these states."""
    return lambda self: any(held.state in states for held in self.cards)


class Cards(RuleBasedStateMachine):
    """Issue, recharge, pay, tear, undo, lose, unlock, reissue, cancel, settle, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.world = World(Path(self.folder.name))
        self.tills = [Counter(self.world, n) for n in (1, 2)]
        self.cards: list[Held] = []
        self.members = 0
        self.requests: dict[str, tuple[Callable[[], Result], Result | tuple[type[Exception], str]]] = {}
        self.paid: list[str] = []

        for n in range(2):
            self.issue(0, posted=False)
            self.recharge(n, 1000, 0, subsidy=bool(n))

    def teardown(self) -> None:
        self.finish()
        self.world.close()
        self.folder.cleanup()

    def pick(self, which: int, *states: str) -> Held | None:
        fitting = [held for held in self.cards if held.state in states]
        return fitting[which % len(fitting)] if fitting else None

    def do(self, chips: list[Card], cut: int, work: Callable[[str], Result]) -> Result | None:
        """Do a request, torn at a step of its last chip if ``cut``; then again until it has an outcome."""
        request = f"r{len(self.requests)}"

        def again() -> Result:
            for chip in chips:
                chip.reset()
            return work(request)

        if chips and cut:
            for chip in chips:
                chip.reset()
            chips[-1].power.cut_at(cut)
            with suppress(TransportError, OutcomeUnknown, Refused):
                work(request)
            chips[-1].power.cut_at(0)
        try:
            outcome: Result | tuple[type[Exception], str] = again()
        except (Refused, Conflict, NotFound) as error:
            outcome = type(error), str(error)
        self.requests[request] = again, outcome
        return outcome if isinstance(outcome, dict) else None

    @rule(cut=CUTS, posted=st.booleans())
    @precondition(lambda self: len(self.cards) < 4)
    def issue(self, cut: int, posted: bool) -> None:
        self.members += 1
        number, chip = self.world.member(self.members), self.world.blank()
        outcome = self.do(
            [chip], cut * 7,
            lambda r: cards.issue(self.world.office, ADMIN, number, self.world.new(chip, posted=posted), request_id=r),
        )  # fmt: skip
        assert outcome is not None
        self.cards.append(Held(chip, bytes.fromhex(outcome["card"]), outcome["state"]))

    @rule(which=WHICH)
    @precondition(some("posted"))
    def confirm(self, which: int) -> None:
        held = self.pick(which, "posted")
        if held:
            self.do([], 0, lambda r: cards.confirm_receipt(self.world.office, ADMIN, held.serial, request_id=r))
            held.state = "active"

    @rule(which=WHICH, amount=AMOUNTS, cut=CUTS, subsidy=st.booleans())
    @precondition(some("active", "posted", "lost"))
    def recharge(self, which: int, amount: int, cut: int, subsidy: bool) -> None:
        held = self.pick(which, "active", "posted", "lost")
        if held:
            act = wallet.subsidise if subsidy else wallet.recharge
            outcome = self.do(
                [held.chip], cut, lambda r: act(self.world.office, ADMIN, held.chip, held.serial, amount, request_id=r)
            )
            assert (outcome is not None) == (held.state == "active")

    @rule(which=WHICH, amount=AMOUNTS, cut=CUTS)
    @precondition(some("active"))
    def refund(self, which: int, amount: int, cut: int) -> None:
        held = self.pick(which, "active")
        if held:
            before = self.world.on_card(held.chip)[Purse.MAIN]
            outcome = self.do(
                [held.chip], cut,
                lambda r: wallet.refund(self.world.office, ADMIN, held.chip, held.serial, amount, request_id=r),
            )  # fmt: skip
            assert (outcome is not None) == (before >= amount)

    @rule(taps=st.lists(st.tuples(WHICH, st.integers(0, 1), AMOUNTS, CUTS), min_size=1, max_size=6))
    @precondition(some("active"))
    def lunch(self, taps: list[tuple[int, int, int, int]]) -> None:
        """Some payments, torn or not; a till finds out about a torn one when it sees that card again."""
        for which, till, amount, cut in taps:
            held = self.pick(which, "active")
            assert held is not None
            held.chip.reset()
            held.chip.power.cut_at(cut)
            with suppress(TransportError, OutcomeUnknown, Refused):
                self.paid.append(self.tills[till].pay(held.chip, amount, reset=False).origin.hex())
            held.chip.power.cut_at(0)

    @rule(which=WHICH, cut=CUTS)
    @precondition(lambda self: self.paid)
    def undo(self, which: int, cut: int) -> None:
        record = self.paid[which % len(self.paid)]
        with self.world.db.read() as tx:
            row = tx.one("SELECT card_serial FROM transaction_record WHERE record_id = ?", (record,))
        held = next((one for one in self.cards if row is not None and one.serial == row[0]), None)
        if held and held.state == "active":
            self.do([held.chip], cut, lambda r: wallet.undo(self.world.office, ADMIN, held.chip, record, request_id=r))

    @rule(which=WHICH)
    @precondition(some("active"))
    def lose(self, which: int) -> None:
        held = self.pick(which, "active", "lost")
        if held:
            self.do([], 0, lambda r: cards.lose(self.world.office, ADMIN, held.serial, "lost", request_id=r))
            held.state = "lost"

    @rule(which=WHICH)
    @precondition(some("lost", "replaced"))
    def unlock(self, which: int) -> None:
        held = self.pick(which, "lost", "active", "replaced")
        if held:
            outcome = self.do(
                [], 0, lambda r: cards.unlock(self.world.office, ADMIN, held.serial, "found", request_id=r)
            )
            assert (outcome is not None) == (held.state == "lost")
            held.state = "active" if outcome else held.state

    @rule(which=WHICH, cut=CUTS, present=st.booleans())
    @precondition(some("active", "lost"))
    def reissue(self, which: int, cut: int, present: bool) -> None:
        held = self.pick(which, "active", "lost")
        if held and which > 2 and (present or held.state == "lost"):
            self.collect()
            if not present:
                self.world.now += 4 * 86_400_000
            new = self.world.blank()
            before = self.world.on_card(held.chip)
            outcome = self.do(
                [new, held.chip] if present else [new], cut,
                lambda r: cards.reissue(
                    self.world.office, ADMIN, held.serial, self.world.new(new),
                    old_card=held.chip if present else None, request_id=r,
                ),
            )  # fmt: skip
            assert outcome is not None
            held.state = "replaced" if present else "left behind"
            self.cards.append(Held(new, bytes.fromhex(outcome["card"])))
            if present:
                assert self.world.on_card(new) == before

    @rule(which=WHICH, cut=CUTS)
    @precondition(some("active", "lost", "posted"))
    def cancel(self, which: int, cut: int) -> None:
        held = self.pick(which, "active", "lost", "posted")
        if held and which > 3:
            outcome = self.do(
                [held.chip], cut,
                lambda r: cards.cancel(self.world.office, ADMIN, held.serial, "leaves", card=held.chip, request_id=r),
            )  # fmt: skip
            assert outcome is not None
            held.state = "cancelled"

    @rule()
    def collect(self) -> None:
        for till in self.tills:
            till.collect()

    @rule(which=st.integers(0, 50))
    @precondition(lambda self: self.requests)
    def repeat(self, which: int) -> None:
        """A request id said again gives its first outcome and changes nothing."""
        again, first = self.requests[f"r{which % len(self.requests)}"]
        before = self.world.books()
        if isinstance(first, dict):
            assert again() == first
        else:
            with pytest.raises(first[0]) as refused:
                again()
            assert str(refused.value) == first[1]
        assert self.world.books() == before

    @invariant()
    def money_is_conserved(self) -> None:
        """Books add up to zero and prove themselves; the chips hold what went in and did not come out."""
        books = self.world.books()
        assert sum(books.values()) == 0

    def finish(self) -> None:
        """At the end every torn payment is found out, every journal is in: books and chips say the same."""
        for held in self.cards:
            if held.state in ("active", "lost"):
                for till in self.tills:
                    held.chip.reset()
                    till.resolve(held.chip)
        self.collect()
        books = self.world.books()
        for held in self.cards:
            if held.state in ("active", "lost", "posted"):
                for purse, fen in self.world.on_card(held.chip).items():
                    assert books.get(card_account(held.serial, purse), 0) == fen
        assert ledger.TRANSFERS not in books
        with self.world.db.read() as tx:
            lost = {held.serial for held in self.cards if held.state == "left behind"}
            assert [gap for gap in reconcile.gaps(tx, ENTERPRISE) if gap.card_serial not in lost] == []
            assert [one for one in reconcile.reconcile(tx, ENTERPRISE) if one.card_serial not in lost] == []
            assert settlement.findings(tx, ENTERPRISE) == []


TestCards = Cards.TestCase
TestCards.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
