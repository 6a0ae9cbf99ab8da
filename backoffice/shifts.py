"""Shifts against punches: a day's late, early, absent, worked and overtime minutes (requirement C5). Pure.

All times are minutes of the enterprise's local time, counted from midnight of the working day: a night shift ends
behind 1440, and a punch before its day's midnight is negative. What a punch says of its direction is believed;
one that says nothing takes turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from enum import IntEnum, StrEnum, unique
from typing import NamedTuple

from cardlib.errors import ConfigError

DAY_MIN = 1440


@unique
class Direction(IntEnum):
    """What a key at the terminal said (terminals.md, ADMS in brief)."""

    IN = 0
    OUT = 1
    BREAK_OUT = 2
    BREAK_IN = 3
    OVERTIME_IN = 4
    OVERTIME_OUT = 5


ENTERING = (Direction.IN, Direction.BREAK_IN, Direction.OVERTIME_IN)


class Punch(NamedTuple):
    """One punch: local time, and its direction where it is known."""

    at: datetime
    direction: Direction | None = None


@dataclass(frozen=True, slots=True)
class Shift:
    """One working day's rule. Raises ConfigError for one that no day can have.

    ``end_min`` above 1440 is the next day. ``flex_min``: who comes that much later stays that much longer and is
    neither late nor early. Punches count from ``before_min`` ahead of it to ``after_min`` behind it. Overtime counts
    once it is ``overtime_from_min``, in whole steps of ``overtime_step_min``.
    """

    name: str
    start_min: int
    end_min: int
    breaks: tuple[tuple[int, int], ...] = ()
    flex_min: int = 0
    late_grace_min: int = 0
    early_grace_min: int = 0
    absent_after_min: int = 240
    before_min: int = 120
    after_min: int = 360
    overtime_from_min: int = 30
    overtime_step_min: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.start_min < DAY_MIN or not self.start_min < self.end_min <= self.start_min + DAY_MIN:
            raise ConfigError(f"shift {self.name}: it starts within a day and lasts at most one")
        at = self.start_min
        for begin, end in self.breaks:
            if not at <= begin < end <= self.end_min:
                raise ConfigError(f"shift {self.name}: breaks lie inside it, one after another")
            at = end
        limits = (self.flex_min, self.late_grace_min, self.early_grace_min, self.before_min, self.after_min)
        if any(not 0 <= value <= DAY_MIN for value in (*limits, self.absent_after_min, self.overtime_from_min)):
            raise ConfigError(f"shift {self.name}: minutes are 0 to {DAY_MIN}")
        if not 1 <= self.overtime_step_min <= DAY_MIN:
            raise ConfigError(f"shift {self.name}: overtime counts in steps of 1 to {DAY_MIN} minutes")

    @property
    def planned_min(self) -> int:
        """Minutes of work, breaks apart."""
        return self.end_min - self.start_min - sum(end - begin for begin, end in self.breaks)

    def distance(self, at: int) -> int:
        """How far a minute is from the shift; 0 inside it."""
        return max(self.start_min - at, at - self.end_min, 0)

    def takes(self, at: int) -> bool:
        """Whether a punch at this minute can belong to the shift."""
        return self.start_min - self.before_min <= at <= self.end_min + self.after_min


@unique
class Presence(StrEnum):
    """What became of a planned day."""

    PRESENT = "present"
    ABSENT = "absent"
    NO_IN = "no in"
    NO_OUT = "no out"
    REST = "rest"
    LEAVE = "leave"


@dataclass(frozen=True, slots=True)
class DayResult:
    """One member's day; minutes. ``worked_min`` is inside the shift, breaks apart, ``overtime_min`` outside it."""

    day: date
    shift: str
    presence: Presence
    first_in: int | None = None
    last_out: int | None = None
    worked_min: int = 0
    late_min: int = 0
    early_min: int = 0
    overtime_min: int = 0


@dataclass(frozen=True, slots=True)
class Calendar:
    """Which shift a day has: by date first, else by weekday (Monday 0); days of leave are excused."""

    weekly: Mapping[int, Shift]
    special: Mapping[date, Shift | None] = field(default_factory=dict)
    leave: frozenset[date] = frozenset()

    def shift(self, day: date) -> Shift | None:
        """The day's shift, None on a day off."""
        return self.special[day] if day in self.special else self.weekly.get(day.weekday())


def suppress_repeats(punches: Iterable[Punch], within_min: int = 3) -> list[Punch]:
    """In order of time, without those that repeat the one before within some minutes: the first counts."""
    kept: list[Punch] = []
    for punch in sorted(punches, key=lambda one: one.at):
        near = kept and punch.at - kept[-1].at < timedelta(minutes=within_min)
        if not (near and punch.direction in (None, kept[-1].direction)):
            kept.append(punch)
    return kept


def month(
    calendar: Calendar, first: date, last: date, punches: Iterable[Punch], within_min: int = 3
) -> list[DayResult]:
    """The results of the days ``first`` to ``last``; each punch belongs to the one nearest shift that takes it."""
    days = [first + timedelta(days=n) for n in range((last - first).days + 1)]
    around = [days[0] - timedelta(days=1), *days, days[-1] + timedelta(days=1)] if days else []
    of_day: dict[date, list[tuple[int, Direction | None]]] = {day: [] for day in around}
    for punch in suppress_repeats(punches, within_min):
        candidates = []
        for offset in (-1, 0, 1):
            day = punch.at.date() + timedelta(days=offset)
            shift = calendar.shift(day)
            at = minute(punch.at, day)
            if day in of_day and shift is not None and shift.takes(at):
                candidates.append((shift.distance(at), -offset, day, at))
        if candidates:
            _, _, day, at = min(candidates)
            of_day[day].append((at, punch.direction))
        elif punch.at.date() in of_day:
            of_day[punch.at.date()].append((minute(punch.at, punch.at.date()), punch.direction))
    return [evaluate(day, calendar.shift(day), of_day[day], leave=day in calendar.leave) for day in days]


def minute(at: datetime, day: date) -> int:
    """Whole minutes from midnight of ``day``."""
    return int((at - datetime.combine(day, time())).total_seconds() // 60)


def evaluate(
    day: date, shift: Shift | None, punches: Sequence[tuple[int, Direction | None]], *, leave: bool = False
) -> DayResult:
    """One day from its punches (minute and direction, in order)."""
    spans, first_in, last_out = _presence(punches)
    present = sum(end - begin for begin, end in spans)
    if shift is None or leave:  # whoever comes on a day off works overtime
        presence = Presence.LEAVE if leave else Presence.REST
        return DayResult(day, shift.name if shift else "", presence, first_in, last_out, overtime_min=present)
    if first_in is None and last_out is None:
        return DayResult(day, shift.name, Presence.ABSENT)
    if first_in is None or last_out is None:
        missing = Presence.NO_IN if first_in is None else Presence.NO_OUT
        late = _late(shift, first_in) if first_in is not None else 0
        early = _early(shift, last_out, 0) if last_out is not None else 0
        return DayResult(day, shift.name, missing, first_in, last_out, 0, late, early)
    late = _late(shift, first_in)
    if late > shift.absent_after_min:
        return DayResult(day, shift.name, Presence.ABSENT, first_in, last_out, 0, late)
    moved = min(max(first_in - shift.start_min, 0), shift.flex_min)
    inside = (shift.start_min, shift.end_min + moved)
    worked = _overlap(spans, [inside]) - _overlap(spans, shift.breaks)
    beyond = present - _overlap(spans, [inside])
    overtime = beyond // shift.overtime_step_min * shift.overtime_step_min if beyond >= shift.overtime_from_min else 0
    early = _early(shift, last_out, moved)
    return DayResult(day, shift.name, Presence.PRESENT, first_in, last_out, worked, late, early, overtime)


def _presence(punches: Sequence[tuple[int, Direction | None]]) -> tuple[list[tuple[int, int]], int | None, int | None]:
    """Spans of presence, the first coming, the last going."""
    spans: list[tuple[int, int]] = []
    since: int | None = None
    first_in: int | None = None
    last_out: int | None = None
    for at, direction in punches:
        entering = since is None if direction is None else direction in ENTERING
        if entering:
            since = at if since is None else since  # a second coming without a going: the first holds
            first_in = at if first_in is None else first_in
        else:
            if since is not None:
                spans.append((since, at))
            since, last_out = None, at
    return spans, first_in, last_out if since is None else None


def _late(shift: Shift, first_in: int) -> int:
    late = first_in - shift.start_min - shift.flex_min
    return late if late > shift.late_grace_min else 0


def _early(shift: Shift, last_out: int, moved: int) -> int:
    early = shift.end_min + moved - last_out
    return early if early > shift.early_grace_min else 0


def _overlap(spans: Iterable[tuple[int, int]], others: Iterable[tuple[int, int]]) -> int:
    others = tuple(others)
    return sum(max(0, min(e, f) - max(b, c)) for b, e in spans for c, f in others)
