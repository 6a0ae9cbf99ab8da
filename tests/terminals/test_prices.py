"""Prices: periods of the day, what charges cost, discounts; then all of it on simulated card and SAM."""

from __future__ import annotations

from datetime import date, datetime
from functools import partial
from pathlib import Path

import pytest

from cardlib import iso7816 as iso
from cardlib.errors import Conflict
from cardlib.profile import AccessRights, DayCounters, Purpose
from simulator.card import Card
from terminals.config import parse
from terminals.journal import JobState
from terminals.policy import PurseOrder
from terminals.prices import Charge, Item, Period, Prices, counting_day, discounted, percent_of, period_at, price
from terminals.reasons import Reason
from tests.cardlib.world import ENTERPRISE
from tests.terminals.shop import NOW, Shop, card_serial, cuts, refused, torn, with_rules

HOUR_MS = 3_600_000
LUNCH = Period(2, "lunch", 11 * 60, 13 * 60, 1_200, times=1, limit_fen=2_000)
NIGHT = Period(4, "night", 22 * 60, 2 * 60, 800, times=2, limit_fen=1_500)
PRICES = Prices(
    (LUNCH, NIGHT),
    items=(Item("101", "rice", 150), Item("102", "soup", 333)),
    unit_fen=50,
    timed_fen=7,
    timed_step_s=30,
)
TODAY = date(2026, 9, 21)


@pytest.mark.parametrize(
    ("at", "number", "day"),
    [
        ("10:59:59", 0, 21), ("11:00:00", 2, 21), ("12:59:59", 2, 21), ("13:00:00", 0, 21),
        ("22:00:00", 4, 21), ("23:59:59", 4, 21), ("00:00:00", 4, 20), ("01:59:59", 4, 20), ("02:00:00", 0, 21),
    ],
)  # fmt: skip
def test_periods_over_midnight_belong_to_the_day_they_began(at: str, number: int, day: int) -> None:
    """A period holds from its first minute until before its end; after midnight it counts for the day before."""
    local = datetime.fromisoformat(f"2026-09-21T{at}")
    period = period_at(PRICES.periods, local)
    assert (period.number if period else 0) == number
    assert counting_day(PRICES.periods, local) == (date(2026, 9, day), number)


def test_a_period_of_a_whole_day() -> None:
    """One that ends when it starts holds for 24 hours."""
    assert all(Period(1, "day", 300, 300).covers(minute) for minute in range(1_440))


AT_NIGHT = datetime.fromisoformat("2026-09-21T23:00")


@pytest.mark.parametrize(
    ("charge", "fen"),
    [
        (Charge((500,)), 500),
        (Charge((500, 1, 20)), 521),
        (Charge(meals=2), 1_600),
        (Charge(items=(("101", 2), ("102", 1))), 633),
        (Charge(units=3), 150),
        (Charge(seconds=1), 7),
        (Charge(seconds=30), 7),
        (Charge(seconds=31), 14),
        (Charge((1,), 1, (("101", 1),), 1, 1), 1_008),
        (Charge(), 0),
        (Charge((-1,)), Reason.AMOUNT_INVALID),
        (Charge((500, -1)), Reason.AMOUNT_INVALID),
        (Charge(items=(("101", -1),)), Reason.AMOUNT_INVALID),
        (Charge(units=-1), Reason.AMOUNT_INVALID),
        (Charge(items=(("101", 1), ("999", 1))), Reason.NO_SUCH_ITEM),
    ],
)
def test_each_way_to_charge_has_its_price(charge: Charge, fen: int | Reason) -> None:
    """Parts add up; a started step of time is paid whole; what has no price says so."""
    assert price(charge, PRICES, AT_NIGHT) == fen


@pytest.mark.parametrize("charge", [Charge(meals=1), Charge(units=1), Charge(seconds=1)])
def test_what_has_no_price_is_not_sold(charge: Charge) -> None:
    """A way to charge that the terminal has no price for is refused, not free."""
    assert price(charge, Prices(), AT_NIGHT) is Reason.NO_PRICE
    assert price(Charge(meals=1), PRICES, datetime.fromisoformat("2026-09-21T15:00")) is Reason.OUTSIDE_PERIOD


def test_a_full_menu_is_served() -> None:
    """2 000 items can be sold by their codes."""
    items = tuple(Item(str(n), f"dish {n}", n) for n in range(2_000))
    assert price(Charge(items=(("1999", 1), ("3", 2))), Prices(items=items), AT_NIGHT) == 2_005


@pytest.mark.parametrize(
    ("fen", "percent", "paid"),
    [(1_000, 100, 1_000), (1_000, 0, 0), (1_000, 200, 2_000), (1, 50, 1), (1, 49, 0), (3, 50, 2), (333, 85, 283),
     (99_999_999, 200, 199_999_998)],
)  # fmt: skip
def test_discounts_round_half_up_to_fen(fen: int, percent: int, paid: int) -> None:
    """Half a fen is one fen."""
    assert discounted(fen, percent) == paid


def test_a_card_pays_by_its_cheapest_group() -> None:
    """Bit n is group n; of several groups the holder's best counts; groups above 15 and none at all pay in full."""
    discounts = (80, *(100,) * 13, 50, 200)
    assert percent_of(discounts, 1) == 80
    assert percent_of(discounts, 1 << 14 | 1) == 50
    assert percent_of(discounts, 1 << 15) == 200
    assert percent_of(discounts, 0) == percent_of(discounts, 1 << 16) == 100


# --- on a simulated card and SAM ---------------------------------------------------------------------------------


def put_in_groups(shop: Shop, card: Card, groups: int) -> Card:
    """Write a card's groups, with its own maintenance key."""
    key = shop.card_key(Purpose.MAINTENANCE, 1, card_serial(card))
    iso.select(card, 0x3F01)
    rights = AccessRights(None, None, groups.to_bytes(8, "big"))
    iso.update_binary(card, 0x0019, rights.encode(), protect=iso.SecureMessaging(key))
    card.reset()
    return card


def selling(tmp_path: Path, **changes: object) -> Shop:
    return Shop(tmp_path, with_rules(prices=PRICES, **changes))


def move_to(shop: Shop, ms: int) -> None:
    shop.now_ms = NOW + ms
    shop.lists.created_ms = shop.now_ms


@pytest.mark.parametrize(
    ("reason", "ms", "charge"),
    [
        ("outside_period", 4 * HOUR_MS, Charge((100,))),
        ("period_limit", 0, Charge((1_501,))),
        ("no_such_item", 0, Charge(items=(("7", 1),))),
        ("amount_invalid", 0, Charge()),
        ("amount_invalid", 0, Charge((1, -1))),
    ],
)
def test_refused_and_nothing_charged(tmp_path: Path, reason: str, ms: int, charge: Charge) -> None:
    """A charge that prices or periods refuse leaves card and journal as they were."""
    shop = selling(tmp_path)
    card = shop.new_card(1, 600, 5_000)
    before = shop.look(card)
    move_to(shop, ms)
    assert refused(lambda: shop.pos.pay(card, charge)) == reason
    assert shop.look(card) == before
    assert not [*shop.moves(), *shop.open_moves(), *shop.journal.open_jobs()]


def test_no_price_is_a_refusal(tmp_path: Path) -> None:
    """A till without a unit price sells no units; a doubtful clock is said first."""
    shop = Shop(tmp_path)
    card = shop.new_card(1, 0, 500)
    assert refused(lambda: shop.pos.pay(card, Charge(units=1))) == "no_price"
    shop.now_ms = 0
    card.reset()
    assert refused(lambda: shop.pos.pay(card, Charge(units=1))) == "clock_doubtful"


def test_times_per_meal_hold_across_tills_and_midnight(tmp_path: Path) -> None:
    """The card counts per meal: a second till after midnight refuses the third, the next day's meal starts anew."""
    (tmp_path / "b").mkdir()
    one, two = selling(tmp_path), selling(tmp_path / "b")
    card = one.new_card(1, 500, 9_000)
    one.pos.pay(card, Charge(items=(("101", 1),)))
    card.reset()
    move_to(two, 2 * HOUR_MS)  # 00:13
    two.pos.pay(card, Charge((600,)))
    assert two.look(card).counters == DayCounters.of(TODAY, 4, 2, 750, 750)
    assert refused(lambda: two.pos.pay(card, 1)) == "count_limit"
    card.reset()
    move_to(two, 13 * HOUR_MS)  # 11:13, lunch
    two.pos.pay(card, Charge(meals=1))
    assert two.look(card).counters == DayCounters.of(date(2026, 9, 22), 2, 1, 1_200, 1_200)


def test_undo_gives_the_meal_back(tmp_path: Path) -> None:
    """An undone meal does not count, in its period and after it."""
    shop = selling(tmp_path, undo_window_ms=24 * HOUR_MS)
    card = shop.new_card(1, 500, 9_000)
    shop.pos.pay(card, Charge((1_400,)))
    card.reset()
    assert refused(lambda: shop.pos.pay(card, 200)) == "period_limit"
    card.reset()
    shop.pos.undo_last(card)
    assert shop.look(card).counters == DayCounters.of(TODAY, 4, 0, 0, 0)
    assert shop.pos.pay(card, Charge((1_500,))).amount_fen == 1_500


@pytest.mark.parametrize(("groups", "paid"), [(0, 333), (0b10, 283), (0b100, 666), (0b1000, 0)])
@pytest.mark.parametrize("order", [PurseOrder.SUBSIDY_FIRST, PurseOrder.SUBSIDY_ONLY, PurseOrder.MAIN_ONLY])
def test_groups_pay_their_percent(tmp_path: Path, groups: int, paid: int, order: PurseOrder) -> None:
    """A card pays by its group, nothing too; free meals are counted, proven, undone and asked for twice like others."""
    prices = Prices((NIGHT,), items=PRICES.items, discounts=(100, 85, 200, 0, *(100,) * 12))
    shop = Shop(tmp_path, with_rules(prices=prices, purse_order=order))
    card = put_in_groups(shop, shop.new_card(1, 1_000, 1_000), groups)
    soup = Charge(items=(("102", 1),))
    receipt = shop.pos.pay(card, soup, "S1")
    assert (receipt.amount_fen, receipt.job.state) == (paid, JobState.DONE)
    assert shop.pos.pay(card, soup, "S1") == receipt
    if paid:  # nothing is what every charge costs this card
        with pytest.raises(Conflict):
            shop.pos.pay(card, Charge(items=(("101", 1),)), "S1")
    assert shop.agree(card, 1_000, 1_000).counters == DayCounters.of(TODAY, 4, 1, paid, paid)
    shop.pos.undo_last(card)
    assert shop.agree(card, 1_000, 1_000).counters.times == 0


def test_a_free_meal_torn_anywhere_ends_once(tmp_path: Path) -> None:
    """A purchase of nothing is recovered like one of money: presented again, it is counted exactly once."""
    for step in cuts():
        (folder := tmp_path / str(step)).mkdir()
        shop = Shop(folder, with_rules(prices=Prices((NIGHT,), unit_fen=50, discounts=(0,) * 16)))
        card = put_in_groups(shop, shop.new_card(1, 0, 500), 1)
        act = partial(shop.pos.pay, amount=Charge(units=1), sale="S")
        with torn(card, step) as ended:
            act(card)
        shop.until_done(card, act)
        assert shop.agree(card, 0, 500).counters == DayCounters.of(TODAY, 4, 1, 0, 0)
        assert len(shop.moves()) == 1
        if ended:
            return
    raise AssertionError("the payment never ended")


def test_rules_from_a_file_hold_at_the_till(tmp_path: Path) -> None:
    """What a configuration says is what a card meets: its price and discount today, the expired balance tomorrow."""
    text = f"""version = 1
kind = "pos"
enterprise_id = {ENTERPRISE}
journal = "j"
lists = "l"
list_root_key = "{"00" * 32}"
[rules]
balance_expires = 2026-09-21
[discounts]
2 = 50
[[period]]
name = "night"
from = "22:00"
until = "21:00"
price_fen = 801
"""
    shop = Shop(tmp_path, parse(text).rules)
    card = put_in_groups(shop, shop.new_card(1, 0, 5_000), 0b100)
    assert shop.pos.pay(card, Charge(meals=1)).amount_fen == 401
    before = shop.look(card)
    move_to(shop, 12 * HOUR_MS)
    assert refused(lambda: shop.pos.pay(card, Charge(meals=1))) == "balance_expired"
    assert shop.look(card) == before
