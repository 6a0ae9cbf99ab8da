"""Cards pulled away and terminals losing power at every step: afterwards card and journal agree, nothing twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from sqlite3 import Connection

import pytest

from cardlib.errors import OneCardError, OutcomeUnknown, Refused, TransportError
from cardlib.records import Note
from cardlib.transport import Transport
from simulator.card import Card
from terminals.journal import JobState, Journal
from terminals.policy import PurseOrder
from terminals.runtime import Receipt
from tests.terminals.shop import Shop, card_serial, cuts, refused, torn, with_rules

Shops = Iterator[tuple[Shop, Card, int]]
PAYMENTS = {
    "main": ((0, 5_000), 700, PurseOrder.SUBSIDY_FIRST),
    "subsidy": ((5_000, 0), 700, PurseOrder.SUBSIDY_FIRST),
    "split": ((300, 5_000), 700, PurseOrder.SUBSIDY_FIRST),
    "split main first": ((5_000, 300), 700, PurseOrder.MAIN_FIRST),
}


def shops(folder: Path, balances: tuple[int, int], order: PurseOrder = PurseOrder.SUBSIDY_FIRST) -> Shops:
    """A new shop and the same card for each step to cut at."""
    image = b""
    for step in cuts():
        place = folder / f"{step}"
        place.mkdir()
        shop = Shop(place, with_rules(purse_order=order))
        image = image or shop.new_card(1, *balances).snapshot()
        yield shop, Card.restore(image, shop.random.randbytes), step
        shop.journal.close()
    raise AssertionError("the last step was never reached")


def settled(shop: Shop) -> None:
    assert shop.journal.open_jobs() == []
    assert shop.open_moves() == []


@pytest.mark.parametrize(("payment", "crash"), [*((p, False) for p in PAYMENTS), ("split", True)])
def test_a_torn_payment_is_made_exactly_once(tmp_path: Path, payment: str, crash: bool) -> None:
    """The same card presented again with the same sale pays the amount once, whatever step it was pulled away at."""
    balances, amount, order = PAYMENTS[payment]
    for shop, card, step in shops(tmp_path, balances, order):
        with torn(card, step) as ended:
            shop.pos.pay(card, amount, "R1")
        if crash:
            shop.restart()
        receipt = shop.until_done(card, lambda c, s=shop: s.pos.pay(c, amount, "R1"))  # type: ignore[misc]
        assert (receipt.job.state, receipt.amount_fen) == (JobState.DONE, amount)
        state = shop.agree(card, *balances)
        assert sum(state.balances_fen) == sum(balances) - amount
        assert state.counters.times == 1
        settled(shop)
        if ended:
            return


@pytest.mark.parametrize("payment", PAYMENTS)
def test_a_torn_payment_given_up_is_found_out(tmp_path: Path, payment: str) -> None:
    """When the card comes back for another sale, the torn one is closed as what it was and never charged again."""
    balances, amount, order = PAYMENTS[payment]
    seen = set()
    for shop, card, step in shops(tmp_path, balances, order):
        with torn(card, step) as ended:
            shop.pos.pay(card, amount, "R1")
        receipt = shop.until_done(card, lambda c, s=shop: s.pos.pay(c, 100, "R2"))  # type: ignore[misc]
        assert receipt.amount_fen == 100
        first = shop.journal.sale("R1")
        part = first.committed_fen if first else 0
        seen.add(part)
        assert sum(shop.agree(card, *balances).balances_fen) == sum(balances) - 100 - part
        assert shop.look(card).counters.times == (2 if part else 1)
        settled(shop)
        if ended:
            assert seen == ({0, 300, 700} if "split" in payment else {0, 700})
            return


def test_another_card_meanwhile(tmp_path: Path) -> None:
    """With a torn payment open, another card pays a new sale; the first is logged as suspect and resolved later."""
    balances = (300, 5_000)
    for shop, card, step in shops(tmp_path, balances):
        other = shop.new_card(2, 0, 1_000)
        with torn(card, step) as ended:
            shop.pos.pay(card, 700, "R1")
        waits = any(job.waiting for job in shop.journal.open_jobs())
        if waits:
            assert refused(lambda s=shop, o=other: s.pos.pay(o, 700, "R1")) == "pending_other_card"  # type: ignore[misc]
            other.reset()
        shop.pos.pay(other, 200, "R2")
        notes = [e.record.code for e in shop.journal.collect(1).entries if isinstance(e.record, Note)]
        assert ("suspect" in notes) == waits
        shop.agree(other, 0, 1_000)
        shop.until_done(card, lambda c, s=shop: s.pos.pay(c, 700, "R1"))  # type: ignore[misc]
        assert sum(shop.agree(card, *balances).balances_fen) == 4_600
        settled(shop)
        if ended:
            return


def test_others_wait_when_policy_says_so(tmp_path: Path) -> None:
    """While a payment is in doubt no other card is served, if the enterprise wants it so; the same card is."""
    shop = Shop(tmp_path, with_rules(serve_others_while_pending=False))
    card, other = shop.new_card(1, 300, 5_000), shop.new_card(2, 0, 1_000)
    step = next(step for step in cuts() if tear_until_unknown(shop, card, step))
    assert step
    assert refused(lambda: shop.pos.pay(other, 100)) == "pending_other_card"
    shop.until_done(card, lambda c: shop.pos.pay(c, 700, "R1"))
    other.reset()
    assert shop.pos.pay(other, 100).amount_fen == 100


def tear_until_unknown(shop: Shop, card: Card, step: int) -> bool:
    card.reset()
    with torn(card, step):
        shop.pos.pay(card, 700, "R1")
    return any(job.waiting for job in shop.journal.open_jobs())


@pytest.mark.parametrize(
    ("payment", "crash", "online"),
    [*((p, False, False) for p in PAYMENTS), ("split", True, False), ("split", False, True), ("main", True, True)],
)
def test_a_torn_undo_gives_back_exactly_once(tmp_path: Path, payment: str, crash: bool, online: bool) -> None:
    """Presented again, the undone card has what it had before the payment, and the payment can't be undone twice."""
    balances, amount, order = PAYMENTS[payment]
    for shop, card, step in shops(tmp_path, balances, order):
        shop.pos.pay(card, amount, "R1")
        card.reset()
        got: list[Receipt] = []
        with torn(card, step) as ended:
            got.append(shop.pos.undo_last(card, online=online))
        if crash:
            shop.restart()
        if not got:
            got.append(shop.until_done(card, lambda c, s=shop: s.pos.undo_last(c, online=online)))  # type: ignore[misc]
        assert got[0].amount_fen == amount
        card.reset()
        assert refused(lambda s=shop, c=card: s.pos.undo_last(c, online=online)) == "nothing_to_undo"  # type: ignore[misc]
        assert shop.agree(card, *balances).balances_fen == balances
        settled(shop)
        if ended:
            return


@pytest.mark.parametrize("crash", [False, True], ids=["same process", "crash"])
def test_a_torn_recharge_loads_exactly_once(tmp_path: Path, crash: bool) -> None:
    """The same card presented again with the same sale is loaded once, whatever step it was pulled away at."""
    image = b""
    for step in cuts():
        (tmp_path / f"{step}").mkdir()
        shop = Shop(tmp_path / f"{step}", recharge=True)
        image = image or shop.new_card(1, 0, 300).snapshot()
        card = Card.restore(image, shop.random.randbytes)
        with torn(card, step) as ended:
            shop.recharger.recharge(card, 5_000, "C1")
        if crash:
            shop.restart()
        receipt = shop.until_done(card, lambda c, s=shop: s.recharger.recharge(c, 5_000, "C1"))  # type: ignore[misc]
        assert (receipt.amount_fen, receipt.balance_fen) == (5_000, 5_300)
        assert shop.agree(card, 0, 300).balances_fen == (0, 5_300)
        assert shop.terminal.totals() == {"load_main_count": 1, "load_main_fen": 5_000}
        settled(shop)
        shop.journal.close()
        if ended:
            return
    raise AssertionError("the last step was never reached")


class Crash(BaseException):
    """The terminal's process ends here, whatever it was doing."""


@contextmanager
def crash_at(monkeypatch: pytest.MonkeyPatch, write: int, *, before: bool) -> Iterator[list[bool]]:
    """End the process before or after its n-th journal transaction; the list gets True when it came to its end."""
    real = Journal._write
    left = [write]
    ended: list[bool] = []

    @contextmanager
    def dying(self: Journal) -> Iterator[Connection]:
        left[0] -= 1
        if left[0] == 0 and before:
            raise Crash
        with real(self) as db:
            yield db
        if left[0] == 0:
            raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "_write", dying)
        with suppress(Crash):
            yield ended
            ended.append(True)


ACTS: dict[str, Callable[[Shop, Transport], Receipt]] = {
    "pay": lambda shop, card: shop.pos.pay(card, 700, "R1"),
    "undo": lambda shop, card: shop.pos.undo_last(card),
}


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("payment", PAYMENTS)
def test_a_terminal_that_loses_power(
    tmp_path: Path, payment: str, act: str, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Around every journal write the process may die: at the next tap card and journal agree and the job done once."""
    balances, amount, order = PAYMENTS[payment]
    for shop, card, step in shops(tmp_path, balances, order):
        if act == "undo":
            shop.pos.pay(card, amount, "R1")
            card.reset()
        with crash_at(monkeypatch, step, before=before) as ended:
            ACTS[act](shop, card)
        shop.restart()
        card.reset()
        if act == "pay":
            assert shop.until_done(card, lambda c, s=shop: s.pos.pay(c, 700, "R1")).amount_fen == 700  # type: ignore[misc]
        else:
            with suppress(Refused):
                shop.until_done(card, lambda c, s=shop: s.pos.undo_last(c))  # type: ignore[misc]
        after = balances if act == "undo" else None
        state = shop.agree(card, *balances)
        assert after is None or state.balances_fen == after
        assert sum(state.balances_fen) == sum(balances) - (0 if act == "undo" else amount)
        settled(shop)
        if ended:
            return


@pytest.mark.parametrize("act", ACTS)
def test_a_sam_that_loses_power(tmp_path: Path, act: str) -> None:
    """A SAM pulled out at any step is a refusal with that reason; nothing is charged twice or lost."""
    balances = (300, 5_000)
    for shop, card, step in shops(tmp_path, balances):
        if act == "undo":
            shop.pos.pay(card, 700, "R1")
            card.reset()
        shop.sam_card.power.cut_at(step)
        ended = "sam_fault"
        with suppress(AssertionError):
            ended = refused(lambda s=shop, c=card: ACTS[act](s, c))  # type: ignore[misc]
        unproven = shop.journal.last_payment()
        shop.restart()
        card.reset()
        if act == "pay":
            shop.until_done(card, lambda c, s=shop: s.pos.pay(c, 700, "R1"))  # type: ignore[misc]
            assert sum(shop.agree(card, *balances).balances_fen) == 4_600
        elif not ended:
            shop.until_done(card, lambda c, s=shop: s.pos.undo_last(c))  # type: ignore[misc]
            assert shop.agree(card, *balances).balances_fen == balances
        settled(shop)
        # A payment whose MAC2 the SAM could not check any more counts, ends the search and is not proven.
        if ended and (unproven is None or unproven[1].proven):
            return


def test_tearing_again_and_again(tmp_path: Path) -> None:
    """Random tears, crashes, sales, undos and other cards by seed: money is where the journal says, to the fen."""
    for seed in range(6):
        (tmp_path / f"{seed}").mkdir()
        shop = Shop(tmp_path / f"{seed}")
        shop.random.seed(seed)
        cards = [shop.new_card(n, 500, 3_000) for n in (1, 2)]
        for turn in range(60):
            card, shop.now_ms = shop.random.choice(cards), shop.now_ms + 1_000
            card.reset()
            card.power.cut_at(shop.random.choice([0, 0, shop.random.randint(1, 70)]))
            with suppress(OneCardError):
                if shop.random.random() < 0.3:
                    shop.pos.undo_last(card, online=shop.random.random() < 0.3)
                else:
                    shop.pos.pay(card, shop.random.randint(1, 400), f"S{turn - shop.random.randint(0, 1)}")
            card.power.cut_at(0)
            if shop.random.random() < 0.15:
                shop.restart(sam_too=shop.random.random() < 0.5)
        for card in cards:
            card.reset()
            with suppress(Refused):
                shop.until_done(card, lambda c, s=shop: s.pos.pay(c, 1))  # type: ignore[misc]
            state = shop.look(card)
            mine = [move for move in shop.moves() if move.card_serial == card_serial(card)]
            given = sum(move.amount_fen * (1 if move.kind.online else -1) for move in mine)
            assert sum(state.balances_fen) == 3_500 + given
        settled(shop)
        shop.journal.close()


def test_pulled_before_anything_is_no_doubt(tmp_path: Path) -> None:
    """A card that leaves before its purse was touched is a TransportError, not an unknown outcome."""
    shop = Shop(tmp_path)
    card = shop.new_card(1, 0, 5_000)
    card.power.cut_at(1)
    with pytest.raises(TransportError) as caught:
        shop.pos.pay(card, 700)
    assert not isinstance(caught.value, OutcomeUnknown)
    settled(shop)
