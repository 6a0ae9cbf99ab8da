"""Pure decisions: facts, rules and a time in, a decision with its reason as data out.

Each rule is one small function that names the Reason it finds or None; an operation is a tuple of
them, asked in order: first what is wrong with the terminal, then with the card, then with the amount.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from enum import Enum, unique

from cardlib.profile import DayCounters, Purse
from terminals.prices import NO_PRICES, Period, Prices, period_at
from terminals.reasons import Reason

NEVER_SET_MS = 1_735_689_600_000
"""2025-01-01 UTC: a clock that shows an earlier time was never set."""
CLOCK_SLACK_MS = 2_000
"""How far a clock may step back behind the newest record when it is adjusted, without being doubted."""
MAX_AMOUNT_FEN = 99_999_999
"""No single payment or load is above 999 999.99 yuan, whatever the rules say."""
DAY_MS = 86_400_000


@unique
class Operation(Enum):
    """What is to be decided about."""

    PAY = "pay"
    FINISH = "finish"  # the rest of a payment whose first purse has paid
    UNDO_OFFLINE = "undo_offline"
    UNDO_ONLINE = "undo_online"
    LOAD = "load"
    SIGN_ON = "sign_on"  # an operator opens or closes a shift


@unique
class PurseOrder(Enum):
    """Which purses a payment takes, and which first."""

    SUBSIDY_FIRST = "subsidy_first"
    MAIN_FIRST = "main_first"
    SUBSIDY_ONLY = "subsidy_only"
    MAIN_ONLY = "main_only"

    @property
    def purses(self) -> tuple[Purse, ...]:
        """The purses in the order in which they are emptied."""
        return _PURSES[self]


_PURSES = {
    PurseOrder.SUBSIDY_FIRST: (Purse.SUBSIDY, Purse.MAIN),
    PurseOrder.MAIN_FIRST: (Purse.MAIN, Purse.SUBSIDY),
    PurseOrder.SUBSIDY_ONLY: (Purse.SUBSIDY,),
    PurseOrder.MAIN_ONLY: (Purse.MAIN,),
}


@dataclass(frozen=True, slots=True)
class Rules:
    """What the enterprise set for this terminal; a limit of None is no limit. Part of the configuration."""

    enterprise_id: int
    utc_offset_min: int = 480
    purse_order: PurseOrder = PurseOrder.SUBSIDY_FIRST
    payment_limit_fen: int | None = None
    day_limit_fen: int | None = None
    day_count: int | None = None
    minimum_balance_fen: int = 0
    maximum_balance_fen: int | None = None
    load_limit_fen: int | None = None
    pin_above_fen: int | None = None
    repeat_window_ms: int = 0
    undo_window_ms: int = 600_000
    list_normal_ms: int = DAY_MS
    list_reduced_ms: int = 3 * DAY_MS
    reduced_limit_fen: int = 2_000
    collect_within_ms: int | None = None
    balance_expires: date | None = None
    serve_others_while_pending: bool = True
    prices: Prices = NO_PRICES


@dataclass(frozen=True, slots=True)
class LastPayment:
    """The newest payment of this terminal, as its journal knows it."""

    card_serial: bytes
    utc_ms: int
    shift: int
    proven: bool
    undone: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """All that a decision depends on: read from card, lists, journal and shift before it is asked for.

    ``listed`` is the reason class of the blacklist (None: not listed); ``list_created_ms`` the list's age;
    ``clock_floor_ms`` the newest of journal record and signed file; ``last_paid_ms`` when this card paid here last;
    ``oldest_uncollected_ms`` the time of the oldest record nobody fetched; ``times`` and
    ``period_spent_fen`` are the card's counters of the meal period (without periods, of the day) and
    ``day_spent_fen`` that of the day, already zero when they are of another. ``unpriced``: why nothing can be
    asked for; ``free``: a discount left nothing to pay.
    """

    operation: Operation
    card_serial: bytes
    card_enterprise_id: int
    amount_fen: int
    valid_from: date | None = None
    valid_until: date | None = None
    listed: Reason | None = None
    list_created_ms: int | None = None
    clock_floor_ms: int = 0
    oldest_uncollected_ms: int | None = None
    pending_other_card: bool = False
    shift: int | None = None
    balances_fen: tuple[int, int] = (0, 0)  # subsidy, main
    load_purse: Purse = Purse.MAIN
    times: int = 0
    period_spent_fen: int = 0
    day_spent_fen: int = 0
    last_paid_ms: int | None = None
    pin_verified: bool = False
    unpriced: Reason | None = None
    free: bool = False
    last: LastPayment | None = None


@dataclass(frozen=True, slots=True)
class Leg:
    """One purse transaction of a payment."""

    purse: Purse
    amount_fen: int


@dataclass(frozen=True, slots=True)
class Decision:
    """Yes with the purses to take from (payments), or no with the reason."""

    reason: Reason | None = None
    legs: tuple[Leg, ...] = ()


def local_time(utc_ms: int, utc_offset_min: int) -> datetime:
    """The enterprise's local time, without a zone: what cards, MACs and counters use (profile.md)."""
    zoned = datetime.fromtimestamp(utc_ms // 1000, UTC) + timedelta(minutes=utc_offset_min)
    return zoned.replace(tzinfo=None)


def split(
    amount_fen: int, order: PurseOrder, balances_fen: tuple[int, int], minimum_main_fen: int = 0
) -> tuple[Leg, ...]:
    """Share an amount among purses in order; fewer fen than asked for when they do not hold enough.

    ``minimum_main_fen`` stays in the main purse.
    """
    legs, left = [], amount_fen
    for purse in order.purses:
        free = balances_fen[0] if purse is Purse.SUBSIDY else balances_fen[1] - minimum_main_fen
        if (part := min(left, free)) > 0:
            legs.append(Leg(purse, part))
            left -= part
    return tuple(legs)


def counted(counters: DayCounters, day: date, amount_fen: int, times: int = 1, meal: int = 0) -> DayCounters:
    """The card's counters after a payment on ``day``; those of another day start anew, full ones stay full.

    Times and spent are the meal's and start anew with the next one; a payment outside every meal (0) leaves them,
    else a coffee between two lunches would free the second.
    """
    if counters.day != day:
        counters = DayCounters.of(day, meal)
    elif meal and counters.meal != meal:
        counters = replace(counters, meal=meal, times=0, spent_fen=0)
    same = counters.meal == meal
    return replace(
        counters,
        times=min(0xFF, counters.times + times * same),
        spent_fen=min(0xFFFFFFFF, counters.spent_fen + amount_fen * same),
        day_spent_fen=min(0xFFFFFFFF, counters.day_spent_fen + amount_fen),
    )


def uncounted(counters: DayCounters, day: date, amount_fen: int, times: int = 1, meal: int = 0) -> DayCounters:
    """The counters after a payment of ``day`` was undone; those of another day or meal stay."""
    if counters.day != day:
        return counters
    same = counters.meal == meal
    return replace(
        counters,
        times=max(0, counters.times - times * same),
        spent_fen=max(0, counters.spent_fen - amount_fen * same),
        day_spent_fen=max(0, counters.day_spent_fen - amount_fen),
    )


# --- rules: the terminal -----------------------------------------------------------------------------------------

Rule = Callable[[Facts, Rules, int], Reason | None]


def _clock(facts: Facts, _: Rules, now_ms: int) -> Reason | None:
    doubtful = now_ms < NEVER_SET_MS or now_ms < facts.clock_floor_ms - CLOCK_SLACK_MS
    return Reason.CLOCK_DOUBTFUL if doubtful else None


def _age_ms(facts: Facts, now_ms: int) -> int:
    return 1 << 62 if facts.list_created_ms is None else now_ms - facts.list_created_ms


def _list_usable(facts: Facts, rules: Rules, now_ms: int) -> Reason | None:
    return Reason.LIST_TOO_OLD if _age_ms(facts, now_ms) > rules.list_reduced_ms else None


def _list_fresh(facts: Facts, rules: Rules, now_ms: int) -> Reason | None:
    return Reason.LIST_TOO_OLD if _age_ms(facts, now_ms) > rules.list_normal_ms else None


def _collected(facts: Facts, rules: Rules, now_ms: int) -> Reason | None:
    if rules.collect_within_ms is None or facts.oldest_uncollected_ms is None:
        return None
    return Reason.COLLECTION_OVERDUE if now_ms - facts.oldest_uncollected_ms > rules.collect_within_ms else None


def _shift_open(facts: Facts, _: Rules, __: int) -> Reason | None:
    return Reason.SHIFT_CLOSED if facts.shift is None else None


def _nobody_waits(facts: Facts, rules: Rules, _: int) -> Reason | None:
    waits = facts.pending_other_card and not rules.serve_others_while_pending
    return Reason.PENDING_OTHER_CARD if waits else None


# --- rules: the card ---------------------------------------------------------------------------------------------


def _own_card(facts: Facts, rules: Rules, _: int) -> Reason | None:
    return Reason.FOREIGN_ENTERPRISE if facts.card_enterprise_id != rules.enterprise_id else None


def _not_listed(facts: Facts, _: Rules, __: int) -> Reason | None:
    return facts.listed


def _valid(facts: Facts, rules: Rules, now_ms: int) -> Reason | None:
    today = local_time(now_ms, rules.utc_offset_min).date()
    if facts.valid_from is not None and today < facts.valid_from:
        return Reason.NOT_YET_VALID
    return Reason.EXPIRED if facts.valid_until is not None and today > facts.valid_until else None


# --- rules: the amount -------------------------------------------------------------------------------------------


def _period_now(rules: Rules, now_ms: int) -> Period | None:
    return period_at(rules.prices.periods, local_time(now_ms, rules.utc_offset_min)) if rules.prices.periods else None


def _in_period(_: Facts, rules: Rules, now_ms: int) -> Reason | None:
    closed = rules.prices.periods and rules.prices.refuse_outside and _period_now(rules, now_ms) is None
    return Reason.OUTSIDE_PERIOD if closed else None


def _priced(facts: Facts, _: Rules, __: int) -> Reason | None:
    return facts.unpriced


def _amount(facts: Facts, _: Rules, __: int) -> Reason | None:
    lowest = 0 if facts.free else 1
    return None if lowest <= facts.amount_fen <= MAX_AMOUNT_FEN else Reason.AMOUNT_INVALID


def _not_repeated(facts: Facts, rules: Rules, now_ms: int) -> Reason | None:
    if facts.last_paid_ms is None:
        return None
    return Reason.REPEAT_TAP if now_ms - facts.last_paid_ms < rules.repeat_window_ms else None


def _payment_limit(facts: Facts, rules: Rules, now_ms: int) -> Reason | None:
    limit = rules.payment_limit_fen
    if _age_ms(facts, now_ms) > rules.list_normal_ms:
        limit = rules.reduced_limit_fen if limit is None else min(limit, rules.reduced_limit_fen)
    return Reason.PAYMENT_LIMIT if limit is not None and facts.amount_fen > limit else None


def _count(facts: Facts, rules: Rules, now_ms: int) -> Reason | None:
    period = _period_now(rules, now_ms)
    limit = period.times if period else rules.day_count
    return Reason.COUNT_LIMIT if limit is not None and facts.times >= limit else None


def _period_limit(facts: Facts, rules: Rules, now_ms: int) -> Reason | None:
    period = _period_now(rules, now_ms)
    if period is None or period.limit_fen is None:
        return None
    return Reason.PERIOD_LIMIT if facts.period_spent_fen + facts.amount_fen > period.limit_fen else None


def _day_limit(facts: Facts, rules: Rules, _: int) -> Reason | None:
    limit = rules.day_limit_fen
    return Reason.DAY_LIMIT if limit is not None and facts.day_spent_fen + facts.amount_fen > limit else None


def _balance_valid(_: Facts, rules: Rules, now_ms: int) -> Reason | None:
    expired = rules.balance_expires is not None and (
        local_time(now_ms, rules.utc_offset_min).date() > rules.balance_expires
    )
    return Reason.BALANCE_EXPIRED if expired else None


def _balance(facts: Facts, rules: Rules, _: int) -> Reason | None:
    def payable(minimum_fen: int) -> int:
        legs = split(facts.amount_fen, rules.purse_order, facts.balances_fen, minimum_fen)
        return sum(leg.amount_fen for leg in legs)

    if payable(0) < facts.amount_fen:
        return Reason.BALANCE
    return Reason.MINIMUM_BALANCE if payable(rules.minimum_balance_fen) < facts.amount_fen else None


def _pin(facts: Facts, rules: Rules, _: int) -> Reason | None:
    needed = rules.pin_above_fen is not None and facts.amount_fen > rules.pin_above_fen
    return Reason.PIN_REQUIRED if needed and not facts.pin_verified else None


def _load_limit(facts: Facts, rules: Rules, _: int) -> Reason | None:
    limit = rules.load_limit_fen
    return Reason.LOAD_LIMIT if limit is not None and facts.amount_fen > limit else None


def _room(facts: Facts, rules: Rules, _: int) -> Reason | None:
    limit = rules.maximum_balance_fen
    after = facts.balances_fen[facts.load_purse - 1] + facts.amount_fen
    return Reason.MAXIMUM_BALANCE if limit is not None and after > limit else None


# --- rules: the undo ---------------------------------------------------------------------------------------------


def _undoable(facts: Facts, rules: Rules, now_ms: int) -> Reason | None:
    last = facts.last
    if last is None or last.undone:
        return Reason.NOTHING_TO_UNDO
    if last.card_serial != facts.card_serial:
        return Reason.UNDO_OTHER_CARD
    if last.shift != facts.shift:
        return Reason.UNDO_OTHER_SHIFT
    return Reason.UNDO_TOO_LATE if now_ms - last.utc_ms > rules.undo_window_ms else None


def _proven(facts: Facts, _: Rules, __: int) -> Reason | None:
    return None if facts.last is not None and facts.last.proven else Reason.UNDO_UNPROVEN


_TERMINAL: tuple[Rule, ...] = (_clock, _list_usable, _shift_open)
_CARD: tuple[Rule, ...] = (_own_card, _not_listed, _valid)
CHECKS: dict[Operation, tuple[Rule, ...]] = {
    Operation.PAY: (*_TERMINAL, _collected, *_CARD, _nobody_waits, _in_period, _priced, _amount, _not_repeated,
                    _payment_limit, _count, _period_limit, _day_limit, _balance_valid, _balance, _pin),
    Operation.FINISH: (*_TERMINAL, *_CARD),
    Operation.UNDO_OFFLINE: (*_TERMINAL, _list_fresh, *_CARD, _undoable, _proven),
    Operation.UNDO_ONLINE: (*_TERMINAL, *_CARD, _undoable),
    Operation.LOAD: (*_TERMINAL, _collected, *_CARD, _nobody_waits, _amount, _load_limit, _room),
    Operation.SIGN_ON: (_clock, _list_usable, *_CARD),
}  # fmt: skip


def decide(facts: Facts, rules: Rules, now_ms: int) -> Decision:
    """Decide one operation at ``now_ms`` UTC; the first rule that objects gives the reason."""
    for rule in CHECKS[facts.operation]:
        if (reason := rule(facts, rules, now_ms)) is not None:
            return Decision(reason)
    if facts.operation is Operation.PAY:
        if not facts.amount_fen:  # free, and yet counted and recorded: a purchase of nothing
            return Decision(legs=(Leg(max(rules.purse_order.purses, key=int), 0),))
        return Decision(legs=split(facts.amount_fen, rules.purse_order, facts.balances_fen, rules.minimum_balance_fen))
    return Decision()
