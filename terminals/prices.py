"""What a sale costs: meal periods, menu, ways to charge, discounts by group. Pure: a charge and a local time in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta

from terminals.reasons import Reason

MAX_PERIODS = 8
MAX_ITEMS = 2_000
GROUPS = 16
"""Groups that a discount can be given to: bits 0 to 15 of the bitmap in the card's file 0019 (profile.md)."""
MAX_PERCENT = 200
DAY_MIN = 1_440


@dataclass(frozen=True, slots=True)
class Period:
    """One meal of the day, from ``start_min`` until before ``end_min`` (minutes after local midnight).

    One that ends when it starts or earlier ends on the next day. ``number`` (1 to 8) is what cards count by;
    ``times`` payments and ``limit_fen`` in all are allowed to a card in it.
    """

    number: int
    name: str
    start_min: int
    end_min: int
    price_fen: int | None = None
    times: int | None = None
    limit_fen: int | None = None

    @property
    def length_min(self) -> int:
        """1 to 1 440 minutes."""
        return (self.end_min - self.start_min - 1) % DAY_MIN + 1

    def covers(self, minute: int) -> bool:
        """Whether it holds at a minute of the day."""
        return (minute - self.start_min) % DAY_MIN < self.length_min


@dataclass(frozen=True, slots=True)
class Item:
    """One line of the menu."""

    code: str
    name: str
    price_fen: int


@dataclass(frozen=True, slots=True)
class Prices:
    """What a terminal sells: a price of None is none. ``discounts`` are percents to pay, by group 0 to 15."""

    periods: tuple[Period, ...] = ()
    refuse_outside: bool = True
    items: tuple[Item, ...] = ()
    unit_fen: int | None = None
    timed_fen: int | None = None
    timed_step_s: int = 60
    discounts: tuple[int, ...] = (100,) * GROUPS


NO_PRICES = Prices()


@dataclass(frozen=True, slots=True)
class Charge:
    """What is to be paid for; its parts are added up.

    ``keyed_fen``: amounts as keyed. ``meals``: so many times the period's fixed price. ``items``: menu codes and
    how many of each. ``units``: so many times the unit price. ``seconds``: each step begun at the timed price.
    """

    keyed_fen: tuple[int, ...] = ()
    meals: int = 0
    items: tuple[tuple[str, int], ...] = ()
    units: int = 0
    seconds: int = 0


def period_at(periods: tuple[Period, ...], local: datetime) -> Period | None:
    """The period that a local time is in."""
    minute = local.hour * 60 + local.minute
    return next((period for period in periods if period.covers(minute)), None)


def counting_day(periods: tuple[Period, ...], local: datetime) -> tuple[date, int]:
    """Day and meal under which a card counts a payment: a period over midnight belongs to the day it began on.

    Meal 0 is outside every period.
    """
    period = period_at(periods, local)
    if period is None:
        return local.date(), 0
    after_midnight = local.hour * 60 + local.minute < period.start_min
    return local.date() - timedelta(days=int(after_midnight)), period.number


def price(charge: Charge, prices: Prices, local: datetime) -> int | Reason:
    """Fen before any discount, or why there is no price."""
    counts = (charge.meals, charge.units, charge.seconds)
    if min((*counts, *charge.keyed_fen, *(count for _, count in charge.items))) < 0:
        return Reason.AMOUNT_INVALID
    period = period_at(prices.periods, local)
    if charge.meals and prices.periods and period is None:
        return Reason.OUTSIDE_PERIOD
    steps = -(-charge.seconds // prices.timed_step_s)
    fen = sum(charge.keyed_fen)
    for count, each in (
        (charge.meals, period.price_fen if period else None),
        (charge.units, prices.unit_fen),
        (steps, prices.timed_fen),
    ):
        if count and each is None:
            return Reason.NO_PRICE
        fen += count * (each or 0)
    menu = {item.code: item.price_fen for item in prices.items} if charge.items else {}
    if any(code not in menu for code, _ in charge.items):
        return Reason.NO_SUCH_ITEM
    return fen + sum(menu[code] * count for code, count in charge.items)


def percent_of(discounts: tuple[int, ...], groups: int) -> int:
    """What a card pays by its groups (bit n for group n): the lowest percent of them, 100 in none."""
    return min((percent for n, percent in enumerate(discounts) if groups >> n & 1), default=100)


def discounted(amount_fen: int, percent: int) -> int:
    """``percent`` of an amount, half a fen rounded up."""
    return (amount_fen * percent + 50) // 100
