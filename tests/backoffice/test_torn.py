"""Power cut at every memory write and every answer of each flow: then again, and money and records agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backoffice import cards, ledger, wallet
from backoffice.jobs import Result
from cardlib.crypto import Algorithm
from cardlib.profile import Purse
from tests.backoffice.desk import Counter, World, torn
from tests.backoffice.kit import ADMIN


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A fresh enterprise."""
    made = World(tmp_path)
    yield made
    made.close()


def every_step(once: Callable[[int], bool]) -> int:
    """Run ``once(step)`` for step 1, 2, 3 ... until the cut never came; returns the steps there were."""
    step = 1
    while once(step):
        step += 1
        assert step < 2000
    return step - 1


def test_recharge_and_refund(world: World) -> None:
    """Wherever the card is pulled away, the amount is on the card once, in the books once, and counters agree."""
    card, serial = world.issued()
    expected = 0

    def once(step: int) -> bool:
        nonlocal expected
        expected += 100
        card.reset()
        came = torn(
            lambda: wallet.recharge(world.office, ADMIN, card, serial, 100, request_id=f"r{step}"), [card], step, card
        )
        assert world.on_card(card)[Purse.MAIN] == world.purse(serial) == expected
        expected -= 30
        card.reset()
        torn(lambda: wallet.refund(world.office, ADMIN, card, serial, 30, request_id=f"f{step}"), [card], step, card)
        assert world.on_card(card)[Purse.MAIN] == world.purse(serial) == expected
        return came

    assert every_step(once) > 20
    assert ledger.IN_DOUBT not in world.books()
    world.agrees()


def test_issue(world: World) -> None:
    """Wherever power fails, the same call finishes the same card; no number, member or serial is stuck."""
    count = 0

    def once(step: int) -> bool:
        nonlocal count
        count += 1
        number, card = world.member(count), world.blank()
        outcome: list[Result] = []
        came = torn(
            lambda: outcome.append(cards.issue(world.office, ADMIN, number, world.new(card))), [card], step, card
        )
        (found,) = outcome
        assert world.state(bytes.fromhex(found["card"])) == ("active", "in use")
        return came

    # Every step of washing, slot and personalising is torn in tests/keymgmt; every seventh shows the job around them.
    step = 1
    while once(step):
        step += 7
    assert step > 100
    world.agrees()


@pytest.mark.parametrize("cut", ["old", "new 1", "new 2", "new 3", "new 4", "sm4"])
def test_reissue(tmp_path: Path, cut: str) -> None:
    """Cut the old or the new card at every step of a reissue: the money arrives once, the old card ends empty."""
    which, _, share = cut.partition(" ")  # the new card's steps are shared out, so that tests run side by side
    world = World(tmp_path, Algorithm.SM4 if which == "sm4" else Algorithm.TDES)
    count = 0

    def once(step: int) -> bool:
        nonlocal count
        count += 1
        old, old_serial = world.issued(count)
        wallet.recharge(world.office, ADMIN, old, old_serial, 500)
        old.reset()
        wallet.subsidise(world.office, ADMIN, old, old_serial, 70)
        old.reset()
        new = world.blank()
        outcome: list[Result] = []
        came = torn(
            lambda: outcome.append(cards.reissue(world.office, ADMIN, old_serial, world.new(new), old_card=old)),
            [old, new],
            step,
            new if which == "new" else old,
        )
        (found,) = outcome
        assert found["carried_fen"] == {"main": 500, "subsidy": 70}
        serial = bytes.fromhex(found["card"])
        assert world.on_card(new) == {Purse.MAIN: 500, Purse.SUBSIDY: 70}
        assert (world.purse(serial), world.purse(serial, Purse.SUBSIDY)) == (500, 70)
        assert (world.purse(old_serial), world.purse(old_serial, Purse.SUBSIDY)) == (0, 0)
        assert (world.state(old_serial)[0], world.state(serial)[0]) == ("replaced", "active")
        return came

    step, stride = (int(share), 4) if share else (1, 1)
    while once(step):
        step += stride
    assert step > (300 if which == "new" else 40)
    books = world.books()
    assert ledger.IN_DOUBT not in books
    assert ledger.TRANSFERS not in books
    world.agrees()
    world.close()


def test_cancel(world: World) -> None:
    """Cut at every step of a cancellation: the balance is owed once and the card is dead."""
    count = 0

    def once(step: int) -> bool:
        nonlocal count
        count += 1
        card, serial = world.issued(count)
        wallet.recharge(world.office, ADMIN, card, serial, 500)
        card.reset()
        came = torn(lambda: cards.cancel(world.office, ADMIN, serial, "leaves", card=card), [card], step, card)
        assert world.books()[ledger.REFUNDS] == 500 * count
        assert world.state(serial) == ("cancelled", "cancelled")
        return came

    assert every_step(once) > 30
    world.agrees()


def test_undo(world: World) -> None:
    """Cut at every step of an online undo: the payment is given back once."""
    card, serial = world.issued()
    wallet.recharge(world.office, ADMIN, card, serial, 5000)
    till = Counter(world, 1)

    def once(step: int) -> bool:
        record = till.pay(card, 10).origin.hex()
        till.collect()
        card.reset()
        came = torn(lambda: wallet.undo(world.office, ADMIN, card, record, request_id=f"u{step}"), [card], step, card)
        assert world.on_card(card)[Purse.MAIN] == world.purse(serial) == 5000
        return came

    assert every_step(once) > 10
    world.agrees()
