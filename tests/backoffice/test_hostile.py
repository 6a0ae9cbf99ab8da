"""Cards that lie to the office: refused with the reason, or served as honest ones; no money is minted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from backoffice import cards, ledger, wallet
from cardlib.errors import MacMismatch, OneCardError
from cardlib.profile import Purse
from cardlib.transport import Transport
from simulator.card import Card
from simulator.hostile import Lie, Swapped, WrongTac, hostile
from tests.backoffice.desk import World
from tests.backoffice.kit import ADMIN


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A fresh enterprise."""
    made = World(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("lie", list(Lie))
@pytest.mark.parametrize("seed", [1, 2])
def test_lying_cards_mint_nothing(world: World, lie: Lie, seed: int) -> None:
    """Whatever a card says while it is charged, refunded, reissued: books sum to zero and owe no more than was paid."""
    old, serial = world.issued()
    wallet.recharge(world.office, ADMIN, old, serial, 1000)
    new = world.blank()
    acts: list[Callable[[Transport], object]] = [
        lambda chip: wallet.recharge(world.office, ADMIN, chip, serial, 300),
        lambda chip: wallet.refund(world.office, ADMIN, chip, serial, 200),
        lambda chip: cards.reissue(world.office, ADMIN, serial, world.new(new), old_card=chip),
    ]
    for act in acts:
        old.reset()
        new.reset()
        with suppress(OneCardError):
            act(hostile(old, lie, seed, rate=0.5))
    world.settle()
    books = world.books()
    paid_in = -books[ledger.BANK]
    owed = sum(fen for account, fen in books.items() if account.startswith("card/") or account == ledger.TRANSFERS)
    assert owed + books.get(ledger.REFUNDS, 0) + books.get(ledger.IN_DOUBT, 0) == paid_in <= 1300


def test_wrong_proof_is_never_taken_for_done(world: World) -> None:
    """A recharge whose TAC is wrong is not booked, now or when it is tried again, and says why."""
    card, serial = world.issued()
    for _ in range(2):
        card.reset()
        with pytest.raises(MacMismatch):
            wallet.recharge(world.office, ADMIN, WrongTac(card), serial, 500, request_id="r")
    assert world.books() == {}


@pytest.mark.parametrize("at", range(0, 40, 3))
def test_card_swapped_midway(world: World, at: int) -> None:
    """Another member's card put on in the middle gets nothing and loses nothing that is not in the books."""
    mine, serial = world.issued(1)
    other, other_serial = world.issued(2)
    wallet.recharge(world.office, ADMIN, other, other_serial, 900)
    for chip in (mine, other):
        chip.reset()
    with suppress(OneCardError):
        wallet.recharge(world.office, ADMIN, Swapped(mine, other, at), serial, 500, request_id="r")
    mine.reset()
    with suppress(OneCardError):
        wallet.recharge(world.office, ADMIN, mine, serial, 500, request_id="r")
    check(world, [(mine, serial), (other, other_serial)])


def check(world: World, held: list[tuple[Card, bytes]]) -> None:
    for chip, serial in held:
        assert world.on_card(chip)[Purse.MAIN] == world.purse(serial)
