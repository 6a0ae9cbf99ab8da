"""The pytest plugin that ships with the package: a rig's tests in a few lines."""

from __future__ import annotations

import pytest

from cardlib.crypto import Algorithm
from cardlib.errors import CardRemoved, Conflict, LineTimeout, OutcomeUnknown, Refused, TransportError
from cardlib.iso7816 import select
from simulator.card import Card
from simulator.reader import Reader
from simulator.rig import Enterprise, every_cut, survived
from simulator.sam import SamCard
from terminals.reasons import Reason


def test_lunch(enterprise: Enterprise, card: Card) -> None:
    """A rig's first test: recharge, pay, undo, and the money is where it should be."""
    enterprise.recharge(card, 50_00)
    assert enterprise.pos.pay(card, 12_00).balance_fen == 38_00
    enterprise.pos.undo_last(card)
    assert enterprise.balance(card) == 50_00


def test_torn_lunch(enterprise: Enterprise) -> None:
    """A rig's second test: power goes at every step of a payment; after the next tap it was made exactly once."""

    def charged() -> Card:
        card = enterprise.new_card()
        enterprise.recharge(card, 10_00)
        return card

    for card, step in every_cut(charged):
        try:
            enterprise.pos.pay(card, 3_00, sale=f"lunch {step}")
        except (OutcomeUnknown, TransportError):
            card.reset()
            assert enterprise.pos.pay(card, 3_00, sale=f"lunch {step}").amount_fen == 3_00
        whole = survived(card)
        assert enterprise.balance(card) == 7_00
        if whole:
            break
    else:
        pytest.fail("the payment never got through")
    assert step > 10


@pytest.mark.parametrize("algorithm", [Algorithm.TDES, Algorithm.SM4])
def test_both_suites(tmp_path_factory: pytest.TempPathFactory, algorithm: Algorithm) -> None:
    """An enterprise works the same with 3DES and with SM4 cards and SAMs."""
    enterprise = Enterprise(tmp_path_factory.mktemp("rig"), 77, 3, algorithm)
    card = enterprise.new_card()
    enterprise.recharge(card, 20_00)
    assert enterprise.pos.pay(card, 5_00).balance_fen == 15_00
    enterprise.close()


def test_foreign_card(tmp_path_factory: pytest.TempPathFactory, enterprise: Enterprise) -> None:
    """A card of another enterprise is refused with that reason, and nothing on it changes."""
    other = Enterprise(tmp_path_factory.mktemp("other"), 2, seed=9)
    card = other.new_card()
    before = card.snapshot()
    with pytest.raises(Refused) as caught:
        enterprise.pos.pay(card, 1_00)
    assert caught.value.reason == Reason.NO_APPLICATION.code
    assert card.snapshot() == before
    other.close()


def test_two_enterprises_on_one_card(tmp_path_factory: pytest.TempPathFactory, enterprise: Enterprise) -> None:
    """One card holds two enterprises' applications of one platform; each pays from its own."""
    card = enterprise.new_card()
    second = enterprise.neighbour(tmp_path_factory.mktemp("second"), 2)
    second.join(card, card_serial(card))
    enterprise.recharge(card, 10_00)
    second.recharge(card, 20_00)
    assert second.pos.pay(card, 5_00).balance_fen == 15_00
    assert enterprise.balance(card) == 10_00
    second.close()


def card_serial(card: Card) -> bytes:
    """The serial in the MF's identity file."""
    card.reset()
    found = card.transceive(bytes.fromhex("00B0850008"))
    assert found[-2:] == b"\x90\x00"
    return found[:8]


def test_listed_card(enterprise: Enterprise, card: Card) -> None:
    """A blacklisted card is refused offline, with the reason."""
    enterprise.recharge(card, 10_00)
    enterprise.lists.cards[card_serial(card)] = Reason.LOST
    with pytest.raises(Refused) as caught:
        enterprise.pos.pay(card, 1_00)
    assert caught.value.reason == Reason.LOST.code
    assert enterprise.balance(card) == 10_00


def test_sam_holds_only_its_terminals_keys(sam: SamCard) -> None:
    """The till's SAM lists purchase, refund, card and terminal keys, and no load or TAC key."""
    select(sam, 0x1001)
    listed = sam.transceive(bytes.fromhex("80EA000000"))
    assert {listed[i] for i in range(0, len(listed) - 2, 6)} == {0x02, 0x04, 0x08, 0x0A}


def test_reader(reader: Reader, card: Card) -> None:
    """A card lies on the reader until it is taken off, also in the middle of a command."""
    with pytest.raises(CardRemoved):
        reader.transceive(bytes.fromhex("00A40000023F00"))
    with pytest.raises(LineTimeout):
        reader.wait_card(1)
    reader.put(card)
    reader.wait_card(1)
    with pytest.raises(Conflict):
        reader.put(card)
    assert reader.atr == card.atr
    assert reader.transceive(bytes.fromhex("00A40000023F00"))[-2:] == b"\x90\x00"
    reader.before_command = lambda _: reader.take()
    with pytest.raises(CardRemoved):
        reader.transceive(bytes.fromhex("00A40000023F00"))
