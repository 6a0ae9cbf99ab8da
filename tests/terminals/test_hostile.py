"""Cards that lie, swapped cards and cards of others: refused with a reason, and the journal never says a wrong fen."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from cardlib.errors import OneCardError, OutcomeUnknown, Refused, TransportError
from cardlib.profile import Purse
from cardlib.transport import Decorator, Transport
from simulator.card import Card
from simulator.hostile import FalseBalance, Lie, StuckCounter, Swapped, WrongMac1, WrongMac2, WrongTac, hostile
from terminals.journal import JobState
from terminals.reasons import BY_CODE
from terminals.runtime import Receipt
from tests.terminals.shop import Shop, card_serial, refused, torn

BALANCES = (300, 5_000)
ACTS: dict[str, Callable[[Shop, Transport], Receipt]] = {
    "split": lambda shop, card: shop.pos.pay(card, 700),
    "main": lambda shop, card: shop.pos.pay(card, 100),
    "undo": lambda shop, card: shop.pos.undo_last(card),
    "undo online": lambda shop, card: shop.pos.undo_last(card, online=True),
}


def moved(shop: Shop, card: Card) -> int:
    """What the journal says has gone off a card."""
    mine = [move for move in shop.moves() if move.card_serial == card_serial(card)]
    return sum(-move.amount_fen if move.kind.online else move.amount_fen for move in mine)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("lie", Lie)
def test_liars_by_seed(tmp_path: Path, lie: Lie, seed: int) -> None:
    """Whatever a card lies about, each refusal has a reason and the journal has just what went off the real card."""
    shop = Shop(tmp_path)
    card = shop.new_card(1, *BALANCES)
    liar = hostile(card, lie, seed, rate=0.4)
    for _ in range(12):
        for act in ACTS.values():
            card.reset()
            before = shop.journal.last_seq
            try:
                act(shop, liar)
            except Refused as e:
                assert e.reason in BY_CODE  # noqa: PT017  # success is allowed too
            shop.journal.verify()
            assert sum(shop.look(card).balances_fen) == sum(BALANCES) - moved(shop, card)
            assert shop.journal.last_seq >= before
    assert liar.lies
    assert shop.journal.open_jobs() == []


@pytest.mark.parametrize("lie", Lie)
def test_torn_liars(tmp_path: Path, lie: Lie) -> None:
    """A liar that is also pulled away raises only known errors; the chain stays whole and the honest card goes on."""
    shop = Shop(tmp_path)
    card = shop.new_card(1, *BALANCES)
    liar = hostile(card, lie, 9, rate=0.5)
    for step in range(1, 60, 3):
        card.reset()
        with torn(card, step), suppress(Refused, OutcomeUnknown, TransportError):
            shop.pos.pay(liar, 20, f"R{step}")
        shop.journal.verify()
    card.reset()
    for job in shop.journal.open_jobs():
        assert job.card_serial == card_serial(card)
    assert shop.pos.pay(card, 20, "last").amount_fen == 20
    assert shop.journal.open_jobs() == []


def test_wrong_mac2_is_handed_nothing(tmp_path: Path) -> None:
    """A card whose payment proof is wrong is refused; the record is unverified, in doubt, and can't be undone here."""
    shop = Shop(tmp_path)
    card = shop.new_card(1, *BALANCES)
    assert refused(lambda: shop.pos.pay(WrongMac2(card), 700, "R1")) == "illegal_card"
    assert [move.mac2_verified for move in shop.moves()] == [False]
    sale = shop.journal.sale("R1")
    assert sale is not None
    assert sale.state is JobState.IN_DOUBT
    card.reset()
    with pytest.raises(OutcomeUnknown):
        shop.pos.pay(card, 700, "R1")
    assert refused(lambda: shop.pos.undo_last(card)) == "nothing_to_undo"
    assert shop.journal.open_jobs() == []


def test_wrong_tac_is_settlement_s_to_find(tmp_path: Path) -> None:
    """No terminal can check a payment's TAC: the record carries it as it came. A load's TAC the host checks at once."""
    shop = Shop(tmp_path)
    card = shop.new_card(1, 0, 5_000)
    receipt = shop.pos.pay(WrongTac(card), 100)
    assert receipt.moves[0].mac2_verified
    with pytest.raises(OneCardError):
        shop.agree(card, 0, 5_000)
    (tmp_path / "r").mkdir()
    recharge = Shop(tmp_path / "r", recharge=True)
    card = recharge.new_card(2, 0, 5_000)
    assert refused(lambda: recharge.recharger.recharge(WrongTac(card), 100, "C1")) == "illegal_card"
    with pytest.raises(OutcomeUnknown):
        recharge.recharger.recharge(card, 100, "C1")


def test_false_balance_buys_nothing(tmp_path: Path) -> None:
    """A card that claims to be rich is refused by its own purse, and its counters are put back."""
    shop = Shop(tmp_path)
    for sequence, balances in ((1, (0, 300)), (2, (300, 0)), (3, (300, 300))):
        card = shop.new_card(sequence, *balances)
        before = shop.look(card)
        rich = FalseBalance(card, balance_fen=10_000_000)
        assert refused(lambda r=rich: shop.pos.pay(r, 700)) == "balance"  # type: ignore[misc]
        assert shop.look(card) == before


def test_stuck_counter(tmp_path: Path) -> None:
    """A card that tells an old counter does not accept the MAC computed with it: nothing is charged."""
    shop = Shop(tmp_path)
    card = shop.new_card(1, 0, 5_000)
    stuck = StuckCounter(card)
    shop.pos.pay(stuck, 100)
    card.reset()
    assert refused(lambda: shop.pos.pay(stuck, 100)) == "card_refused"
    assert shop.agree(card, 0, 5_000).balances_fen == (0, 4_900)


@pytest.mark.parametrize("act", ["pay", "undo", "recharge"])
def test_swapped_in_the_middle(tmp_path: Path, act: str) -> None:
    """Another card of the same enterprise, or of a stranger, put on at any command is never charged or credited."""
    shop = Shop(tmp_path, recharge=act == "recharge")
    card, second = shop.new_card(1, *BALANCES), shop.new_card(2, *BALANCES)
    for at in range(1, 24):
        if act == "undo":
            card.reset()
            shop.pos.pay(card, 20)
        for other in (second, Card.blank()):
            card.reset()
            second.reset()
            swapped = Swapped(card, other, at)
            with suppress(Refused, OutcomeUnknown, TransportError):
                run(shop, act, swapped, f"R{at}")
            assert shop.look(second).balances_fen == BALANCES
            card.reset()
            with suppress(Refused):
                run(shop, act, card, "")
            assert shop.journal.open_jobs() == []
            assert sum(shop.look(card).balances_fen) == sum(BALANCES) - moved(shop, card)


def run(shop: Shop, act: str, card: Transport, sale: str) -> object:
    if act == "recharge":
        return shop.recharger.recharge(card, 20, sale, Purse.SUBSIDY)
    return shop.pos.pay(card, 10, sale) if act == "pay" else shop.pos.undo_last(card)


def test_wrong_mac1_of_undo_and_load(tmp_path: Path) -> None:
    """A wrong proof before a credit stops it: no intent, no money, and the honest card can still be undone."""
    shop = Shop(tmp_path)
    card = shop.new_card(1, *BALANCES)
    shop.pos.pay(card, 700)
    for online in (False, True):
        card.reset()
        assert refused(lambda o=online: shop.pos.undo_last(WrongMac1(card), online=o)) == "illegal_card"  # type: ignore[misc]
        assert shop.look(card).balances_fen == (0, 4_600)
    card.reset()
    assert shop.pos.undo_last(card).amount_fen == 700
    assert shop.agree(card, *BALANCES).balances_fen == BALANCES


class ClaimsBlocked(Decorator):
    """A stranger's card that gives itself out for another one whose application is blocked, with a made-up proof."""

    def __init__(self, inner: Transport, fci: bytes) -> None:
        super().__init__(inner)
        self.fci = fci

    def transceive(self, command: bytes) -> bytes:
        if command[1] == 0xA4:
            return self.fci + b"\x6a\x81"
        return b"PROVEDOK\x90\x00" if command[1] == 0x5A else b"\x6a\x81"


def test_a_blocked_card_proves_nothing_it_can_not_prove(tmp_path: Path) -> None:
    """Somebody who pulled the card away before paying can't close the payment with a fake of it that is "blocked"."""
    for sam_too in (False, True):
        folder = tmp_path / f"{sam_too}"
        folder.mkdir()
        shop = Shop(folder)
        card = shop.new_card(1, 0, 5_000)
        fci = card.transceive(bytes.fromhex("00A404000D") + b"\xf0ONECARD\x01\0\0\0\x07" + b"\0")[:-2]
        card.reset()
        with suppress(OutcomeUnknown):
            shop.pos.pay(NeverPays(card), 700, "R1")
        shop.restart(sam_too=sam_too)
        assert refused(lambda f=fci, c=card, s=shop: s.pos.pay(ClaimsBlocked(c, f), 700, "R1")) == "application_blocked"  # type: ignore[misc]
        assert [job.waiting for job in shop.journal.open_jobs()] == [True]
        card.reset()
        assert shop.pos.pay(card, 700, "R1").amount_fen == 700
        assert shop.agree(card, 0, 5_000).balances_fen == (0, 4_300)


class NeverPays(Decorator):
    """Loses the command that would move the money."""

    def transceive(self, command: bytes) -> bytes:
        if command[:2] == b"\x80\x54":
            raise TransportError("pulled away")
        return self.inner.transceive(command)
