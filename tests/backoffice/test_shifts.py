"""Shifts against punches: what a payslip may be made from."""

from __future__ import annotations

from datetime import date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backoffice.shifts import Calendar, Direction, Presence, Punch, Shift, evaluate, month, suppress_repeats
from cardlib.errors import ConfigError

DAY = date(2026, 11, 2)
"""A Monday."""
OFFICE = Shift("office", 9 * 60, 18 * 60, ((12 * 60, 13 * 60),), late_grace_min=5, early_grace_min=5)
FLEX = Shift("flex", 9 * 60, 18 * 60, flex_min=60)
NIGHT = Shift("night", 22 * 60, 30 * 60, ((26 * 60, 26 * 60 + 30),))
WEEK = Calendar(dict.fromkeys(range(5), OFFICE))
IN, OUT = Direction.IN, Direction.OUT


def at(clock: str, day: date = DAY) -> datetime:
    return datetime.combine(day, datetime.strptime(clock, "%H:%M").time())  # noqa: DTZ007  # local time of the enterprise


def minutes(clock: str) -> int:
    hours, rest = clock.split(":")
    return int(hours) * 60 + int(rest)


@pytest.mark.parametrize(
    ("shift", "came", "went", "worked", "late", "early", "overtime"),
    [
        (OFFICE, "08:58", "18:01", 480, 0, 0, 0),
        (OFFICE, "09:05", "17:55", 470, 0, 0, 0),  # within grace: less worked, nothing held against it
        (OFFICE, "09:06", "17:54", 468, 6, 6, 0),
        (OFFICE, "09:00", "18:29", 480, 0, 0, 0),
        (OFFICE, "09:00", "18:30", 480, 0, 0, 30),
        (OFFICE, "08:00", "19:00", 480, 0, 0, 120),
        (OFFICE, "09:00", "12:30", 180, 0, 330, 0),
        (FLEX, "09:45", "18:45", 540, 0, 0, 0),
        (FLEX, "09:45", "18:00", 495, 0, 45, 0),
        (FLEX, "10:10", "19:00", 530, 10, 0, 0),
        (NIGHT, "21:50", "30:05", 450, 0, 0, 0),
        (NIGHT, "22:20", "29:00", 370, 20, 60, 0),
    ],
)
def test_a_day(shift: Shift, came: str, went: str, worked: int, late: int, early: int, overtime: int) -> None:
    """Worked, late, early and overtime minutes follow from when somebody came and went."""
    found = evaluate(DAY, shift, [(minutes(came), IN), (minutes(went), OUT)])
    assert found.presence is Presence.PRESENT
    assert (found.worked_min, found.late_min, found.early_min, found.overtime_min) == (worked, late, early, overtime)


@pytest.mark.parametrize(
    ("punches", "presence"),
    [
        ([], Presence.ABSENT),
        ([(540, IN)], Presence.NO_OUT),
        ([(1080, OUT)], Presence.NO_IN),
        ([(540, IN), (720, OUT), (780, IN)], Presence.NO_OUT),
        ([(14 * 60, IN), (1080, OUT)], Presence.ABSENT),
        ([(540, None), (1080, None)], Presence.PRESENT),
        ([(540, IN), (541, IN), (1080, OUT)], Presence.PRESENT),
    ],
)
def test_incomplete_days(punches: list[tuple[int, Direction | None]], presence: Presence) -> None:
    """A missing punch is named, who comes hours late is absent, and no direction means taking turns."""
    assert evaluate(DAY, OFFICE, punches).presence is presence


def test_days_off() -> None:
    """Work on a day off or on leave is overtime; nobody is absent then."""
    calendar = Calendar({0: OFFICE}, {DAY + timedelta(1): OFFICE, DAY: None}, frozenset({DAY + timedelta(1)}))
    punches = [Punch(at("10:00"), IN), Punch(at("12:00"), OUT)]
    rest, leave, sunday = month(calendar, DAY, DAY + timedelta(2), punches)
    assert (rest.presence, rest.overtime_min) == (Presence.REST, 120)
    assert (leave.presence, sunday.presence) == (Presence.LEAVE, Presence.REST)


def test_night_shift_crosses_midnight() -> None:
    """The going after midnight belongs to the evening before; the next evening is a day of its own."""
    calendar = Calendar(dict.fromkeys(range(7), NIGHT))
    punches = []
    for n in range(3):
        day = DAY + timedelta(n)
        punches += [Punch(at("21:55", day)), Punch(at("06:10", day + timedelta(1)))]
    found = month(calendar, DAY, DAY + timedelta(2), punches)
    assert [(r.presence, r.worked_min, r.overtime_min) for r in found] == [(Presence.PRESENT, 450, 0)] * 3


def test_repeats() -> None:
    """A card held twice counts once; another key in the same minute is no repeat."""
    twice = [Punch(at("09:00"), IN), Punch(at("09:01"), IN), Punch(at("09:02")), Punch(at("09:02"), OUT)]
    assert suppress_repeats(twice) == [twice[0], twice[3]]
    assert len(suppress_repeats([Punch(at("09:00")), Punch(at("09:03"))])) == 2


@pytest.mark.parametrize(
    "bad",
    [
        {"start_min": -1}, {"start_min": 1440}, {"end_min": 540}, {"end_min": 540 + 1441},
        {"breaks": ((500, 600),)}, {"breaks": ((600, 600),)}, {"breaks": ((600, 700), (650, 750))},
        {"flex_min": -1}, {"after_min": 2000}, {"overtime_step_min": 0}, {"absent_after_min": -5},
    ],
)  # fmt: skip
def test_impossible_shifts(bad: dict[str, int]) -> None:
    """A shift that no day can have is refused where it enters."""
    with pytest.raises(ConfigError, match="shift x"):
        Shift(**{"name": "x", "start_min": 540, "end_min": 1080} | bad)  # type: ignore[arg-type]  # wrong on purpose


@given(st.lists(st.tuples(st.integers(-120, 2800), st.sampled_from([None, *Direction])), max_size=12))
def test_minutes_add_up(punches: list[tuple[int, Direction | None]]) -> None:
    """Whatever was punched: nothing is negative, worked is at most what was planned, presence is not counted twice."""
    punches.sort(key=lambda punch: punch[0])
    for shift in (OFFICE, FLEX, NIGHT):
        found = evaluate(DAY, shift, punches)
        numbers = (found.worked_min, found.late_min, found.early_min, found.overtime_min)
        assert min(numbers) >= 0
        assert found.worked_min <= shift.planned_min + shift.flex_min
        assert found.worked_min + found.overtime_min <= max(0, 2800 + 120)
        if found.presence is Presence.ABSENT and not punches:
            assert numbers == (0, 0, 0, 0)


@given(st.lists(st.integers(0, 7 * 1440), max_size=40))
def test_each_punch_counts_once(at_min: list[int]) -> None:
    """Over a week, presence on all days together is no more than the time between the first and the last punch."""
    start = datetime.combine(DAY, datetime.min.time())
    punches = [Punch(start + timedelta(minutes=m)) for m in at_min]
    found = month(WEEK, DAY, DAY + timedelta(6), punches)
    total = sum(result.worked_min + result.overtime_min for result in found)
    assert total <= (max(at_min) - min(at_min) if at_min else 0)
