"""Balance expiry: certain balances become void once, chips follow at their next desk, two operators can reverse it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backoffice import cards, enterprises, expiry, journals, ledger, reconcile, wallet
from backoffice.enterprises import Setting
from backoffice.expiry import Expiring
from backoffice.ledger import card_account
from cardlib.errors import Conflict, NotFound, Refused
from cardlib.profile import Purse
from simulator.card import Card
from tests.backoffice.desk import Counter, World, torn
from tests.backoffice.kit import ADMIN, ENTERPRISE, SECOND

DAY_MS = 86_400_000
PAST, YESTERDAY, TODAY, LATER = "2026-01-01", "2026-09-20", "2026-09-21", "2027-12-31"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An office in the evening of 2026-09-21."""
    made = World(tmp_path)
    yield made
    made.close()


def until(world: World, date: str) -> None:
    """Balances are worth something up to and with this date."""
    with world.db.write() as tx:
        enterprises.change_setting(tx, ADMIN, ENTERPRISE, Setting.BALANCE_EXPIRES.name, date)


def expire(world: World, *, dry_run: bool = False) -> list[Expiring]:
    return list(expiry.expire(world.db, ADMIN, ENTERPRISE, dry_run=dry_run))


def filled(world: World, main_fen: int = 5000, subsidy_fen: int = 0, number: int = 1) -> tuple[Card, bytes]:
    card, serial = world.issued(number)
    wallet.recharge(world.office, ADMIN, card, serial, main_fen)
    if subsidy_fen:
        card.reset()
        wallet.subsidise(world.office, ADMIN, card, serial, subsidy_fen)
    card.reset()
    return card, serial


def expired(world: World) -> int:
    return world.books().get(ledger.EXPIRED, 0)


def void(world: World, serial: bytes) -> dict[str, int]:
    with world.db.read() as tx:
        return {p.name: fen for p in Purse if (fen := ledger.void(tx, ENTERPRISE, serial, p))}


def explained(world: World) -> None:
    """Nothing unexplained, and what the chip has beyond the books is named as expired."""
    with world.db.read() as tx:
        for one in reconcile.reconcile(tx, ENTERPRISE):
            assert one.unexplained_fen == 0
            assert one.causes == (f"expired, still on the chip: {one.difference_fen} fen",)


def reverse(world: World, serial: bytes, purse: Purse = Purse.MAIN) -> str:
    with world.db.write() as tx:
        return expiry.propose_reversal(tx, ADMIN, ENTERPRISE, serial, purse, "a mistake").entry_id


def test_both_purses_expire_once_and_the_books_stay_true(world: World) -> None:
    """Each certain balance moves to the expired ones, once for a date; what the chip still holds is explained."""
    _, serial = filled(world, 5000, 700)
    until(world, YESTERDAY)
    assert expire(world) == [Expiring(serial, Purse.MAIN, 5000, ""), Expiring(serial, Purse.SUBSIDY, 700, "")]
    assert (expired(world), world.purse(serial)) == (5700, 0)
    assert void(world, serial) == {"MAIN": 5000, "SUBSIDY": 700}
    explained(world)
    assert expire(world) == []
    assert expired(world) == 5700


def test_nothing_expires_before_the_date_is_over(world: World) -> None:
    """Without a date, and up to its end, nothing expires; nor when somebody only looks, or may not."""
    filled(world)
    for date in ("", TODAY, LATER):
        until(world, date)
        with pytest.raises(Refused) as refused:
            expire(world)
        assert refused.value.reason == "not_expired"
    until(world, YESTERDAY)
    before = world.books()
    assert [one.amount_fen for one in expire(world, dry_run=True)] == [5000]
    assert world.books() == before
    clerk = ADMIN._replace(role=type(ADMIN.role).AUDITOR)
    with pytest.raises(Refused):
        list(expiry.expire(world.db, clerk, ENTERPRISE))
    assert world.books() == before


def test_the_next_desk_empties_the_chip_first(world: World) -> None:
    """A recharge after expiry takes the void money off the chip, then loads: chip and books agree, nothing is lost."""
    card, serial = filled(world, 5000, 700)
    until(world, YESTERDAY)
    expire(world)
    assert wallet.recharge(world.office, ADMIN, card, serial, 2000)["balance_fen"] == 2000
    assert world.on_card(card) == {Purse.SUBSIDY: 0, Purse.MAIN: 2000}
    assert (expired(world), world.purse(serial), void(world, serial)) == (5700, 2000, {})
    world.agrees()
    assert expire(world) == []
    until(world, TODAY)
    world.now += DAY_MS
    assert [one.amount_fen for one in expire(world)] == [2000]


def test_what_was_loaded_after_the_date_stays(world: World) -> None:
    """A recharge between the date and the run is fresh money: only the old one expires."""
    card, serial = filled(world)
    until(world, TODAY)
    world.now += DAY_MS
    wallet.recharge(world.office, ADMIN, card, serial, 300)
    assert [one.amount_fen for one in expire(world)] == [5000]
    assert world.purse(serial) == 300
    card.reset()
    assert wallet.expire(world.office, ADMIN, card, serial)["balance_fen"] == 300
    assert world.purse(serial) == 300
    world.agrees()


@pytest.mark.parametrize("act", ["recharge", "expire"])
def test_cut_anywhere_the_chip_is_emptied_once(world: World, act: str) -> None:
    """Power cut at any step of a desk after expiry: the same command again ends with chip and books agreed."""
    for step in range(1, 400, 23):
        card, serial = filled(world, 5000, 700, number=step)
        until(world, PAST)
        assert len(expire(world)) == 2

        def work(card: Card = card, serial: bytes = serial) -> None:
            if act == "recharge":
                wallet.recharge(world.office, ADMIN, card, serial, 5000)
            else:
                wallet.expire(world.office, ADMIN, card, serial)

        came = torn(work, [card], step, card)
        left = 5000 if act == "recharge" else 0
        assert world.on_card(card) == {Purse.SUBSIDY: 0, Purse.MAIN: left}
        assert (world.purse(serial), void(world, serial)) == (left, {})
        world.agrees()
        if not came:
            return
    raise AssertionError("it never ends")


def test_what_is_not_certain_is_named_and_left(world: World) -> None:
    """With a journal outstanding a balance stays; it expires when the journal is in, by what is left then."""
    card, serial = filled(world)
    till = Counter(world, 1)
    till.pay(card, 300)
    until(world, TODAY)
    world.now += DAY_MS
    (left,) = expire(world)
    assert left.amount_fen == 5000
    assert "till 1" in left.left
    till.pay(card, 200)
    till.till.note("shift_close", "1", world.now)
    journals.collect(world.db, ENTERPRISE, till.till.file(3))  # the second payment alone came in
    world.settle()
    (left,) = expire(world)
    assert left.left.startswith("records ")
    assert left.left.endswith(" are missing")
    assert expired(world) == 0
    till.close_books()
    assert [(one.amount_fen, one.left) for one in expire(world)] == [(4500, "")]
    assert (expired(world), world.purse(serial)) == (4500, 0)
    explained(world)


def test_two_operators_give_it_back_once(world: World) -> None:
    """One proposes, another approves: the chip's money is worth something again, and this date does not take it."""
    card, serial = filled(world)
    until(world, YESTERDAY)
    expire(world)
    entry = reverse(world, serial)
    with pytest.raises(Conflict):
        reverse(world, serial)
    with world.db.write() as tx, pytest.raises(Refused) as refused:
        expiry.approve(tx, ADMIN, ENTERPRISE, entry)
    assert refused.value.reason == "two_operators"
    for _ in range(2):
        with world.db.write() as tx:
            expiry.approve(tx, SECOND, ENTERPRISE, entry)
        assert (expired(world), world.purse(serial), void(world, serial)) == (0, 5000, {})
    with pytest.raises(Conflict):
        reverse(world, serial)
    world.agrees()
    assert expire(world) == []
    assert wallet.refund(world.office, ADMIN, card, serial, 5000)["balance_fen"] == 0
    with world.db.write() as tx, pytest.raises(NotFound):
        expiry.propose_reversal(tx, ADMIN, ENTERPRISE, serial, Purse.SUBSIDY, "none")


def test_given_back_after_the_chip_was_emptied_it_is_owed(world: World) -> None:
    """What a desk took off already is owed to the holder; a reversal proposed before that is refused."""
    card, serial = filled(world)
    until(world, YESTERDAY)
    expire(world)
    early = reverse(world, serial)
    wallet.expire(world.office, ADMIN, card, serial)
    with pytest.raises(Refused) as refused, world.db.write() as tx:
        expiry.approve(tx, SECOND, ENTERPRISE, early)
    assert refused.value.reason == "expiry_changed"
    assert (expired(world), world.purse(serial)) == (5000, 0)
    other, serial = filled(world, 900, number=2)
    until(world, PAST)
    expire(world)
    wallet.expire(world.office, ADMIN, other, serial)
    with world.db.write() as tx:
        made = expiry.propose_reversal(tx, ADMIN, ENTERPRISE, serial, Purse.MAIN, "a mistake")
        expiry.approve(tx, SECOND, ENTERPRISE, made.entry_id)
    assert (expired(world), world.books()[ledger.REFUNDS]) == (5000, 900)
    world.agrees()


def test_what_a_till_takes_all_the_same_was_honoured(world: World) -> None:
    """A till whose date was extended takes void money: it comes back from the expired ones, and the rest stays void."""
    card, serial = filled(world)
    till = Counter(world, 1)
    until(world, YESTERDAY)
    till.close_books()
    expire(world)
    until(world, LATER)
    till.pay(card, 1200)
    till.collect()
    assert (expired(world), world.purse(serial), void(world, serial)) == (3800, 0, {"MAIN": 3800})
    explained(world)
    assert wallet.recharge(world.office, ADMIN, card, serial, 100)["balance_fen"] == 0 + 100
    assert expired(world) == 3800
    world.agrees()


def test_refund_reissue_and_cancel_move_what_is_worth_something(world: World) -> None:
    """Void money is neither refunded nor carried to a new card nor owed at cancellation."""
    card, serial = filled(world, 5000, number=1)
    until(world, YESTERDAY)
    assert len(expire(world)) == 1
    with pytest.raises(Refused) as refused:
        wallet.refund(world.office, ADMIN, card, serial, 100)
    assert refused.value.reason == "balance"
    for number, end in ((2, "reissue"), (3, "cancel")):
        card, serial = filled(world, 3000, number=number)
        until(world, YESTERDAY)
        expire(world)
        if end == "reissue":
            new = world.new()
            assert cards.reissue(world.office, ADMIN, serial, new, old_card=card)["carried_fen"] == {}
        else:
            assert cards.cancel(world.office, ADMIN, serial, "left", card=card)["settled_fen"] == {}
        assert world.books().get(card_account(serial, Purse.MAIN), 0) == 0
    assert expired(world) == 11000
    assert ledger.TRANSFERS not in world.books()
    world.agrees()
