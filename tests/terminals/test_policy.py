"""Policy: every reason it can give, the order of purses, and hostile clocks by seed."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import date

import pytest

from cardlib.profile import DayCounters, Purse
from terminals.policy import (
    CHECKS,
    CLOCK_SLACK_MS,
    DAY_MS,
    NEVER_SET_MS,
    Decision,
    Facts,
    LastPayment,
    Leg,
    Operation,
    PurseOrder,
    Rules,
    counted,
    decide,
    local_time,
    split,
    uncounted,
)
from terminals.prices import Period, Prices
from terminals.reasons import BY_CODE, Reason
from tests.terminals.test_doors import CASES as DOOR_CASES

NOW = 1_790_000_000_000  # 2026-09-21 in UTC and at +08:00
CARD = bytes.fromhex("0101000000000123")
RULES = Rules(1001)
ALONE = replace(RULES, serve_others_while_pending=False)
SUPPER = Period(4, "night", 22 * 60, 2 * 60, 800, times=2, limit_fen=1_500)  # NOW is 22:13
MEALS = replace(RULES, prices=Prices((SUPPER,)))
LUNCH_ONLY = replace(RULES, prices=Prices((Period(2, "lunch", 660, 780),)))
LAST = LastPayment(CARD, NOW - 60_000, 7, proven=True)
PAY = Facts(
    Operation.PAY, CARD, 1001, 1_000, list_created_ms=NOW - 3_600_000, shift=7, balances_fen=(600, 5_000), last=LAST
)
UNDO = replace(PAY, operation=Operation.UNDO_OFFLINE)
ONLINE = replace(PAY, operation=Operation.UNDO_ONLINE)
LOAD = replace(PAY, operation=Operation.LOAD)

CASES: list[tuple[Reason, Facts, Rules]] = [
    (Reason.CLOCK_DOUBTFUL, replace(PAY, clock_floor_ms=NOW + CLOCK_SLACK_MS + 1), RULES),
    (Reason.CLOCK_DOUBTFUL, replace(LOAD, clock_floor_ms=NOW + DAY_MS), RULES),
    (Reason.LIST_TOO_OLD, replace(PAY, list_created_ms=None), RULES),
    (Reason.LIST_TOO_OLD, replace(PAY, list_created_ms=NOW - RULES.list_reduced_ms - 1), RULES),
    (Reason.LIST_TOO_OLD, replace(UNDO, list_created_ms=NOW - RULES.list_normal_ms - 1), RULES),
    (Reason.SHIFT_CLOSED, replace(PAY, shift=None), RULES),
    (Reason.COLLECTION_OVERDUE, replace(PAY, oldest_uncollected_ms=NOW - 11), replace(RULES, collect_within_ms=10)),
    (Reason.FOREIGN_ENTERPRISE, replace(PAY, card_enterprise_id=1002), RULES),
    (Reason.LOST, replace(PAY, listed=Reason.LOST), RULES),
    (Reason.CANCELLED, replace(LOAD, listed=Reason.CANCELLED), RULES),
    (Reason.REPLACED, replace(UNDO, listed=Reason.REPLACED), RULES),
    (Reason.FRAUD, replace(ONLINE, listed=Reason.FRAUD), RULES),
    (Reason.NOT_YET_VALID, replace(PAY, valid_from=date(2026, 9, 22)), RULES),
    (Reason.EXPIRED, replace(PAY, valid_until=date(2026, 9, 20)), RULES),
    (Reason.PENDING_OTHER_CARD, replace(PAY, pending_other_card=True), ALONE),
    (Reason.OUTSIDE_PERIOD, PAY, LUNCH_ONLY),
    (Reason.OUTSIDE_PERIOD, replace(PAY, unpriced=Reason.OUTSIDE_PERIOD), RULES),
    (Reason.NO_SUCH_ITEM, replace(PAY, unpriced=Reason.NO_SUCH_ITEM), RULES),
    (Reason.NO_PRICE, replace(PAY, unpriced=Reason.NO_PRICE), MEALS),
    (Reason.COUNT_LIMIT, replace(PAY, times=2), MEALS),
    (Reason.PERIOD_LIMIT, replace(PAY, period_spent_fen=501), MEALS),
    (Reason.AMOUNT_INVALID, replace(PAY, amount_fen=0), RULES),
    (Reason.AMOUNT_INVALID, replace(PAY, amount_fen=-1), RULES),
    (Reason.AMOUNT_INVALID, replace(LOAD, amount_fen=100_000_000), RULES),
    (Reason.REPEAT_TAP, replace(PAY, last_paid_ms=NOW - 4_999), replace(RULES, repeat_window_ms=5_000)),
    (Reason.PAYMENT_LIMIT, PAY, replace(RULES, payment_limit_fen=999)),
    (Reason.PAYMENT_LIMIT, replace(PAY, list_created_ms=NOW - 2 * DAY_MS), replace(RULES, reduced_limit_fen=999)),
    (Reason.COUNT_LIMIT, replace(PAY, times=3), replace(RULES, day_count=3)),
    (Reason.DAY_LIMIT, replace(PAY, day_spent_fen=4_001), replace(RULES, day_limit_fen=5_000)),
    (Reason.BALANCE_EXPIRED, PAY, replace(RULES, balance_expires=date(2026, 9, 20))),
    (Reason.BALANCE, replace(PAY, amount_fen=5_601), RULES),
    (Reason.BALANCE, PAY, replace(RULES, purse_order=PurseOrder.SUBSIDY_ONLY)),
    (Reason.MINIMUM_BALANCE, PAY, replace(RULES, minimum_balance_fen=4_601)),
    (Reason.PIN_REQUIRED, PAY, replace(RULES, pin_above_fen=999)),
    (Reason.LOAD_LIMIT, LOAD, replace(RULES, load_limit_fen=999)),
    (Reason.MAXIMUM_BALANCE, LOAD, replace(RULES, maximum_balance_fen=5_999)),
    (Reason.NOTHING_TO_UNDO, replace(UNDO, last=None), RULES),
    (Reason.NOTHING_TO_UNDO, replace(UNDO, last=replace(LAST, undone=True)), RULES),
    (Reason.UNDO_OTHER_CARD, replace(UNDO, last=replace(LAST, card_serial=bytes(8))), RULES),
    (Reason.UNDO_OTHER_SHIFT, replace(ONLINE, last=replace(LAST, shift=6)), RULES),
    (Reason.UNDO_TOO_LATE, replace(UNDO, last=replace(LAST, utc_ms=NOW - 600_001)), RULES),
    (Reason.UNDO_UNPROVEN, replace(UNDO, last=replace(LAST, proven=False)), RULES),
]

OUTSIDE_POLICY = {
    Reason.NO_APPLICATION, Reason.ILLEGAL_CARD, Reason.CARD_REFUSED, Reason.CARD_BLOCKED,
    Reason.APPLICATION_BLOCKED, Reason.SAM_FAULT, Reason.KEY_VERSION, Reason.KEYS_CHANGING,
    Reason.STORAGE_FULL, Reason.NO_OPERATOR, Reason.HOST_UNREACHABLE, Reason.HOST_REFUSED, Reason.COUNTER_FULL,
    Reason.PIN_WRONG, Reason.PIN_LOCKED, Reason.DOOR_AWAY, Reason.VOID_BALANCE,
}  # fmt: skip
"""Reasons that come from the card, the disk or the host; the terminals' tests meet each of them."""


@pytest.mark.parametrize(("reason", "facts", "rules"), CASES, ids=lambda value: getattr(value, "code", ""))
def test_each_reason_is_given_for_its_cause(reason: Reason, facts: Facts, rules: Rules) -> None:
    """A fact beyond a rule gives exactly that rule's reason and no purse to take from."""
    assert decide(facts, rules, NOW) == Decision(reason)


@pytest.mark.parametrize("facts", [PAY, UNDO, ONLINE, LOAD], ids=lambda facts: facts.operation.value)
def test_nothing_objects_to_an_ordinary_card(facts: Facts) -> None:
    """The facts that the cases start from are all allowed."""
    assert decide(facts, RULES, NOW).reason is None


@pytest.mark.parametrize(
    ("facts", "rules"),
    [
        (replace(PAY, clock_floor_ms=NOW + CLOCK_SLACK_MS), RULES),
        (replace(PAY, list_created_ms=NOW - RULES.list_reduced_ms), RULES),
        (replace(UNDO, list_created_ms=NOW - RULES.list_normal_ms), RULES),
        (replace(PAY, list_created_ms=NOW - 2 * DAY_MS), replace(RULES, reduced_limit_fen=1_000)),
        (replace(PAY, oldest_uncollected_ms=NOW - 10), replace(RULES, collect_within_ms=10)),
        (replace(PAY, valid_from=date(2026, 9, 21), valid_until=date(2026, 9, 21)), RULES),
        (replace(PAY, pending_other_card=True), RULES),
        (replace(PAY, last_paid_ms=NOW - 5_000), replace(RULES, repeat_window_ms=5_000)),
        (PAY, replace(RULES, payment_limit_fen=1_000)),
        (replace(PAY, times=2), replace(RULES, day_count=3)),
        (replace(PAY, times=1, period_spent_fen=500), MEALS),
        (PAY, replace(LUNCH_ONLY, prices=replace(LUNCH_ONLY.prices, refuse_outside=False))),
        (replace(PAY, amount_fen=0, free=True), RULES),
        (replace(PAY, day_spent_fen=4_000), replace(RULES, day_limit_fen=5_000)),
        (PAY, replace(RULES, balance_expires=date(2026, 9, 21))),
        (replace(PAY, amount_fen=5_600), RULES),
        (PAY, replace(RULES, minimum_balance_fen=4_600)),
        (PAY, replace(RULES, pin_above_fen=1_000)),
        (replace(PAY, pin_verified=True), replace(RULES, pin_above_fen=999)),
        (LOAD, replace(RULES, load_limit_fen=1_000, maximum_balance_fen=6_000)),
        (replace(UNDO, last=replace(LAST, utc_ms=NOW - 600_000)), RULES),
        (replace(ONLINE, last=replace(LAST, proven=False), list_created_ms=NOW - 2 * DAY_MS), RULES),
    ],
)
def test_each_limit_itself_is_still_allowed(facts: Facts, rules: Rules) -> None:
    """A value that meets a limit exactly is not refused."""
    assert decide(facts, rules, NOW).reason is None


def test_every_reason_has_a_case() -> None:
    """No reason exists that neither policy gives nor a test of the terminals meets."""
    cases = {case[0] for case in (*CASES, *DOOR_CASES)}
    assert cases | OUTSIDE_POLICY == set(Reason)
    assert not {case[0] for case in CASES} & OUTSIDE_POLICY


def test_reasons_are_one_table() -> None:
    """Codes and texts are unique, texts are there in both languages, and a code finds its reason."""
    for texts in ([r.code for r in Reason], [r.zh for r in Reason], [r.en for r in Reason]):
        assert all(texts)
        assert len(set(texts)) == len(Reason)
    assert BY_CODE["lost"] is Reason.LOST
    assert Reason.LOST.refusal("0101").reason == "lost"


@pytest.mark.parametrize("operation", Operation)
def test_terminal_faults_come_before_the_card(operation: Operation) -> None:
    """A terminal that may not decide says so, whatever card it is shown."""
    facts = replace(PAY, operation=operation, list_created_ms=None, listed=Reason.LOST, card_enterprise_id=5)
    assert decide(facts, RULES, NOW).reason is Reason.LIST_TOO_OLD
    assert decide(facts, RULES, NEVER_SET_MS - 1).reason is Reason.CLOCK_DOUBTFUL
    assert CHECKS[operation]


@pytest.mark.parametrize(
    ("order", "legs"),
    [
        (PurseOrder.SUBSIDY_FIRST, (Leg(Purse.SUBSIDY, 600), Leg(Purse.MAIN, 400))),
        (PurseOrder.MAIN_FIRST, (Leg(Purse.MAIN, 1_000),)),
        (PurseOrder.MAIN_ONLY, (Leg(Purse.MAIN, 1_000),)),
    ],
)
def test_purse_order(order: PurseOrder, legs: tuple[Leg, ...]) -> None:
    """Purses are emptied in the order that the enterprise set."""
    assert decide(PAY, replace(RULES, purse_order=order), NOW).legs == legs


def test_split_by_seed() -> None:
    """A split never takes more than asked, than a purse holds, or than leaves the minimum; no part is empty."""
    rng = random.Random(2)
    for _ in range(2_000):
        amount, low = rng.randint(1, 3_000), rng.choice((0, rng.randint(0, 2_000)))
        balances = rng.randint(0, 2_000), rng.randint(0, 2_000)
        order = rng.choice(list(PurseOrder))
        legs = split(amount, order, balances, low)
        taken = {leg.purse: leg.amount_fen for leg in legs}
        assert len(taken) == len(legs)
        assert all(part > 0 for part in taken.values())
        assert taken.get(Purse.SUBSIDY, 0) <= balances[0]
        assert taken.get(Purse.MAIN, 0) <= max(0, balances[1] - low)
        room = sum({Purse.SUBSIDY: balances[0], Purse.MAIN: max(0, balances[1] - low)}[p] for p in order.purses)
        assert sum(taken.values()) == min(amount, room)


@pytest.mark.parametrize("seed", range(20))
def test_hostile_clock_never_lets_a_payment_through(seed: int) -> None:
    """However the clock jumps, no payment is decided before the newest signed thing seen, or on a list beyond B."""
    rng = random.Random(seed)
    floor = NOW
    for _ in range(500):
        now = rng.choice((0, -DAY_MS, NOW, floor, floor + 1)) + rng.randint(-5, 5) * rng.choice((1, 1_000, DAY_MS))
        created = rng.choice((None, floor, floor - rng.randint(0, 5) * DAY_MS))
        facts = replace(PAY, clock_floor_ms=floor, list_created_ms=created)
        decision = decide(facts, RULES, now)
        if now < floor - CLOCK_SLACK_MS:
            assert decision.reason is Reason.CLOCK_DOUBTFUL
        elif created is None or now - created > RULES.list_reduced_ms:
            assert decision.reason is Reason.LIST_TOO_OLD
        else:
            assert decision.reason is None
            floor = max(floor, now)


def test_counters_of_a_day() -> None:
    """Counters add up within a day, start anew with the next, stop at their end, and an undo takes its part back."""
    today, base = date(2026, 9, 21), DayCounters.of(date(2026, 9, 20), 0, 9, 900, 900)
    once = counted(base, today, 300)
    assert once == DayCounters.of(today, 0, 1, 300, 300)
    assert counted(once, today, 50) == DayCounters.of(today, 0, 2, 350, 350)
    assert uncounted(counted(once, today, 50), today, 50) == once
    assert uncounted(base, today, 50) == base
    assert uncounted(once, today, 999, times=5) == DayCounters.of(today)
    full = DayCounters.of(today, 0, 255, 2**32 - 1, 2**32 - 1)
    assert counted(full, today, 1) == full


def test_counters_of_a_meal() -> None:
    """Times and spent are the meal's, the day's sum goes on; a payment outside meals does not free the next lunch."""
    day = date(2026, 9, 21)
    lunch = counted(counted(DayCounters.of(day, 1, 3, 900, 900), day, 500, meal=2), day, 100, meal=2)
    assert lunch == DayCounters.of(day, 2, 2, 600, 1_500)
    coffee = counted(lunch, day, 50)
    assert coffee == DayCounters.of(day, 2, 2, 600, 1_550)
    assert uncounted(coffee, day, 50) == lunch
    assert uncounted(lunch, day, 900, meal=1) == DayCounters.of(day, 2, 2, 600, 600)
    assert uncounted(lunch, day, 100, meal=2) == DayCounters.of(day, 2, 1, 500, 1_400)


@pytest.mark.parametrize(
    ("order", "purse"), [(PurseOrder.SUBSIDY_FIRST, Purse.MAIN), (PurseOrder.SUBSIDY_ONLY, Purse.SUBSIDY)]
)
def test_a_free_sale_is_a_purchase_of_nothing(order: PurseOrder, purse: Purse) -> None:
    """What a discount leaves nothing of is still recorded and counted by the card."""
    free = replace(PAY, amount_fen=0, free=True)
    assert decide(free, replace(RULES, purse_order=order), NOW).legs == (Leg(purse, 0),)


def test_local_day_is_the_enterprise_s() -> None:
    """A card that expires today is good until local midnight, not until midnight UTC."""
    last_ms = 1_790_006_399_999  # 2026-09-21 23:59:59.999 at +08:00
    facts = replace(PAY, valid_until=date(2026, 9, 21), list_created_ms=last_ms)
    assert local_time(last_ms, 480).isoformat() == "2026-09-21T23:59:59"
    assert decide(facts, RULES, last_ms).reason is None
    assert decide(facts, RULES, last_ms + 1).reason is Reason.EXPIRED
    assert decide(facts, replace(RULES, utc_offset_min=0), last_ms + 1).reason is None
