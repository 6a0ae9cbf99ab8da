"""Doors: every reason a passage is refused for, companions, duress, and alarms of the door itself."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cardlib.errors import ConfigError
from terminals.doors import (
    CHECKS,
    AntiPassback,
    CardFlag,
    Direction,
    DoorEvent,
    DoorRules,
    DoorState,
    LastSeen,
    Partner,
    Passage,
    PassFacts,
    Pin,
    Week,
    may_pass,
    stands_free,
    watch,
)
from terminals.policy import CLOCK_SLACK_MS, local_time
from terminals.reasons import Reason

NOW = 1_790_000_000_000
LOCAL = local_time(NOW, 480)
"""Monday 2026-09-21, 22:13."""
CARD, OTHER = bytes.fromhex("0101000000000123"), bytes.fromhex("0101000000000124")
RULES = DoorRules(1, zone_inside=10, zone_outside=1, groups=0b110)
FACTS = PassFacts(CARD, Direction.IN, 0b010, 0, CardFlag.ANTI_PASSBACK, list_created_ms=NOW - 1000)
OFFICE_HOURS = Week((((480, 1080),),) * 5 + ((), (), ()))
NIGHT = Week.daily((1320, 1440))
INSIDE = LastSeen(10, LOCAL - timedelta(minutes=5))

CASES: list[tuple[Reason, PassFacts, DoorRules]] = [
    (Reason.STORAGE_FULL, replace(FACTS, storage_full=True), RULES),
    (Reason.CLOCK_DOUBTFUL, replace(FACTS, clock_floor_ms=NOW + CLOCK_SLACK_MS + 1), RULES),
    (Reason.LIST_TOO_OLD, replace(FACTS, list_created_ms=None), RULES),
    (Reason.LIST_TOO_OLD, replace(FACTS, list_created_ms=NOW - RULES.list_reduced_ms - 1), RULES),
    (Reason.LOST, replace(FACTS, listed=Reason.LOST), RULES),
    (Reason.NOT_YET_VALID, replace(FACTS, valid_from=date(2026, 9, 22)), RULES),
    (Reason.EXPIRED, replace(FACTS, valid_until=date(2026, 9, 20)), RULES),
    (Reason.NOT_THIS_DOOR, replace(FACTS, groups=0b001), RULES),
    (Reason.NOT_THIS_DOOR, replace(FACTS, groups=0), RULES),
    (Reason.OUTSIDE_SCHEDULE, replace(FACTS, schedule=1), replace(RULES, schedules={1: OFFICE_HOURS})),
    (Reason.OUTSIDE_SCHEDULE, replace(FACTS, schedule=9), RULES),
    (Reason.INTERLOCK, replace(FACTS, open_doors=frozenset({2})), replace(RULES, interlock=frozenset({2, 3}))),
    (Reason.FIRST_CARD, FACTS, replace(RULES, first_card=True)),
    (Reason.ANTI_PASSBACK, replace(FACTS, last_seen=INSIDE), replace(RULES, anti_passback=AntiPassback.HARD)),
    (Reason.ANTI_PASSBACK, replace(FACTS, last_seen=INSIDE), replace(RULES, anti_passback=AntiPassback.TIMED)),
    (
        Reason.ANTI_PASSBACK,
        replace(FACTS, direction=Direction.OUT, last_seen=replace(INSIDE, zone=1)),
        replace(RULES, anti_passback=AntiPassback.HARD),
    ),
    (Reason.PIN_REQUIRED, FACTS, replace(RULES, pin_hours=NIGHT)),
]


@pytest.mark.parametrize(("reason", "facts", "rules"), CASES, ids=lambda value: getattr(value, "code", ""))
def test_each_reason_is_given_for_its_cause(reason: Reason, facts: PassFacts, rules: DoorRules) -> None:
    """A fact beyond a rule gives exactly that rule's reason, and the door stays shut."""
    found = may_pass(facts, rules, NOW)
    assert found == Passage(reason)
    assert not found.granted


@pytest.mark.parametrize(
    ("facts", "rules"),
    [
        (FACTS, RULES),
        (replace(FACTS, clock_floor_ms=NOW + CLOCK_SLACK_MS), RULES),
        (replace(FACTS, list_created_ms=NOW - RULES.list_reduced_ms), RULES),
        (replace(FACTS, valid_from=date(2026, 9, 21), valid_until=date(2026, 9, 21)), RULES),
        (replace(FACTS, schedule=1), replace(RULES, schedules={1: NIGHT})),
        (replace(FACTS, open_doors=frozenset({4})), replace(RULES, interlock=frozenset({2, 3}))),
        (replace(FACTS, flags=CardFlag.FIRST), replace(RULES, first_card=True)),
        (replace(FACTS, first_seen=True), replace(RULES, first_card=True)),
        (replace(FACTS, direction=Direction.OUT), replace(RULES, first_card=True)),
        (replace(FACTS, last_seen=INSIDE), RULES),
        (replace(FACTS, last_seen=INSIDE, flags=CardFlag(0)), replace(RULES, anti_passback=AntiPassback.HARD)),
        (replace(FACTS, last_seen=replace(INSIDE, zone=1)), replace(RULES, anti_passback=AntiPassback.HARD)),
        (
            replace(FACTS, last_seen=replace(INSIDE, when=LOCAL - timedelta(minutes=10))),
            replace(RULES, anti_passback=AntiPassback.TIMED),
        ),
        (replace(FACTS, pin=Pin.VERIFIED), replace(RULES, pin_hours=NIGHT)),
        (FACTS, replace(RULES, pin_hours=OFFICE_HOURS)),
    ],
)
def test_each_limit_itself_is_still_allowed(facts: PassFacts, rules: DoorRules) -> None:
    """What meets a limit exactly passes."""
    assert may_pass(facts, rules, NOW) == Passage()
    assert may_pass(facts, rules, NOW).granted


def test_every_rule_has_a_case() -> None:
    """Taking any one rule away lets a case through: none is covered by another."""
    for left_out in CHECKS:
        rest = [rule for rule in CHECKS if rule is not left_out]
        assert any(all(rule(facts, rules, NOW) is None for rule in rest) for _, facts, rules in CASES), left_out


def test_soft_anti_passback_and_duress_open_and_say_so() -> None:
    """Soft anti-passback and a PIN under duress open the door as if nothing were; the event tells."""
    soft = may_pass(replace(FACTS, last_seen=INSIDE), replace(RULES, anti_passback=AntiPassback.SOFT), NOW)
    assert (soft.granted, soft.violation) == (True, True)
    duress = may_pass(replace(FACTS, pin=Pin.DURESS), replace(RULES, pin_hours=NIGHT), NOW)
    assert (duress.granted, duress.duress) == (True, True)


@pytest.mark.parametrize(
    ("partner", "granted"),
    [
        (None, False),
        (Partner(OTHER, False, NOW - 15_000), True),
        (Partner(OTHER, False, NOW - 15_001), False),
        (Partner(OTHER, False, NOW + 1), False),
        (Partner(CARD, False, NOW - 1), False),
    ],
)
def test_two_cards(partner: Partner | None, granted: bool) -> None:
    """Two different cards within the time open together; the same card twice does not; going out is free."""
    rules, facts = replace(RULES, two_cards=True), replace(FACTS, partner=partner)
    assert may_pass(facts, rules, NOW) == Passage(waits=not granted)
    assert may_pass(replace(facts, direction=Direction.OUT), rules, NOW).granted


def test_escort() -> None:
    """A visitor comes only with somebody who needs no escort himself."""
    visitor = replace(FACTS, flags=CardFlag.ESCORTED)
    assert may_pass(visitor, RULES, NOW).waits
    assert may_pass(replace(visitor, partner=Partner(OTHER, True, NOW)), RULES, NOW).waits
    assert may_pass(replace(visitor, partner=Partner(OTHER, False, NOW)), RULES, NOW).granted


def test_hours() -> None:
    """Hours end before their last minute, and holidays have their own; impossible ones are refused."""
    monday = datetime(2026, 9, 21, 7, 59)  # noqa: DTZ001  # local time
    for minutes, open_ in ((0, False), (1, True), (600, True), (601, False)):
        assert OFFICE_HOURS.open_at(monday + timedelta(minutes=minutes), frozenset()) is open_
    assert not OFFICE_HOURS.open_at(monday + timedelta(hours=1), frozenset({monday.date()}))
    for bad in ((), (((5, 5),),) * 8, (((0, 1441),),) * 8, (((-1, 5),),) * 8):
        with pytest.raises(ConfigError):
            Week(bad)


def test_alarms() -> None:
    """Opened after a release is quiet, without one it is forced, too long it is held; closing ends it."""
    state = DoorState().released(NOW, RULES.release_ms)
    state, events = watch(state, True, RULES, NOW + 5_000)
    assert events == [DoorEvent.OPENED]
    state, events = watch(state, True, RULES, NOW + 35_000)
    assert events == []
    state, events = watch(state, True, RULES, NOW + 35_001)
    assert events == [DoorEvent.HELD]
    assert watch(state, True, RULES, NOW + 90_000) == (state, [])
    state, events = watch(state, False, RULES, NOW + 90_001)
    assert events == [DoorEvent.HELD_END, DoorEvent.CLOSED]
    state, events = watch(state, True, RULES, NOW + 90_002)
    assert events == [DoorEvent.FORCED]
    late = DoorState().released(NOW, RULES.release_ms)
    assert watch(late, True, RULES, NOW + 5_001)[1] == [DoorEvent.FORCED]


def test_passage_hours() -> None:
    """In passage hours the door stands free and raises no alarm; with a first card only after it came."""
    rules = replace(RULES, passage_hours=NIGHT, first_card=True)
    assert not stands_free(rules, NOW, first_seen=False)
    assert stands_free(rules, NOW, first_seen=True)
    assert stands_free(RULES, NOW, first_seen=False, emergency=True)
    assert not stands_free(RULES, NOW, first_seen=True)
    state, events = watch(DoorState(), True, rules, NOW)
    assert events == [DoorEvent.OPENED]
    assert watch(state, True, rules, NOW + 60_000) == (state, [])


@given(st.lists(st.tuples(st.integers(0, 60_000), st.booleans(), st.booleans()), max_size=40))
def test_door_events_pair(steps: list[tuple[int, bool, bool]]) -> None:
    """Whatever the contact does, openings and closings alternate, and an alarm comes only while the door is open."""
    state, now, is_open, held = DoorState(), NOW, False, False
    for wait, contact, release in steps:
        now += wait
        if release:
            state = state.released(now, RULES.release_ms)
        state, events = watch(state, contact, RULES, now)
        for event in events:
            if event in (DoorEvent.OPENED, DoorEvent.FORCED):
                assert not is_open
                is_open = True
            elif event is DoorEvent.HELD:
                assert is_open
                assert not held
                held = True
            elif event is DoorEvent.HELD_END:
                assert held
                held = False
            else:
                assert is_open
                assert not held
                is_open = False
        assert is_open == contact
