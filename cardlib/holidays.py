"""Holidays from an iCalendar file (RFC 5545): all-day events, also recurring, moved and cancelled ones, as days.

Such a file comes from outside, so everything in it has a limit: bytes, events, rules, and how far they are counted.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardlib.errors import ConfigError

if TYPE_CHECKING:
    from icalendar import Component

MAX_BYTES = 1 << 20
MAX_EVENTS = 2_000
MAX_RULES = 64
MAX_DAYS = 3_660
YEARS = 5
"""How far ahead terminals count."""
_OLDEST = date(1970, 1, 1)
_EVERY = ("DAILY", "WEEKLY", "MONTHLY", "YEARLY")
_PARTS = frozenset({"FREQ", "UNTIL", "COUNT", "INTERVAL", "BYDAY", "BYMONTHDAY", "BYYEARDAY", "BYWEEKNO", "BYMONTH",
                    "BYSETPOS", "WKST"})  # fmt: skip


def read(path: Path, first: date, last: date) -> frozenset[date]:
    """The holidays from ``first`` to ``last`` in a file. Raises ConfigError with the file and what is wrong in it."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as e:
        raise ConfigError(f"calendar {path} can't be read: {e.strerror}") from e
    try:
        return days(raw, first, last)
    except ConfigError as e:
        raise ConfigError(f"calendar {path}: {e}") from e


def days(raw: bytes, first: date, last: date) -> frozenset[date]:
    """The same of a calendar's text, at most ten years. Raises ConfigError."""
    import icalendar  # noqa: PLC0415  # heavy: only for who has a calendar
    import recurring_ical_events  # type: ignore[import-untyped]  # noqa: PLC0415  # no types; heavy too

    if len(raw) > MAX_BYTES:
        raise ConfigError(f"at most {MAX_BYTES} bytes: take a calendar of holidays alone")
    if not 0 <= (last - first).days <= MAX_DAYS:
        raise ConfigError(f"{first} to {last} are not 1 to {MAX_DAYS} days")
    try:
        calendar = icalendar.Calendar.from_ical(raw)
        _check(calendar)
        events = recurring_ical_events.of(calendar).between(first, last + timedelta(1))
    except ConfigError:
        raise
    except Exception as e:  # a library's errors over a stranger's file are of any kind
        raise ConfigError(f"it is no iCalendar file that can be understood ({type(e).__name__})") from e
    found: set[date] = set()
    for event in events:
        if str(event.get("STATUS", "")).upper() != "CANCELLED":
            begin, end = max(event.start, first), min(event.end, last + timedelta(1))
            found.update(begin + timedelta(n) for n in range((end - begin).days))
    return frozenset(found)


def _check(calendar: Component) -> None:
    """Refuse what is not days, and what would be counted for ever."""
    events = calendar.walk("VEVENT")
    if calendar.name != "VCALENDAR":
        raise ConfigError("it is no calendar")
    if len(events) > MAX_EVENTS:
        raise ConfigError(f"at most {MAX_EVENTS} events, not {len(events)}")
    if sum(len(_listed(event.get("RRULE"))) for event in events) > MAX_RULES:
        raise ConfigError(f"at most {MAX_RULES} recurring events")
    for event in events:
        name = f"event {str(event.get('SUMMARY', ''))[:40]!r}"
        begin = _date(name, event, "DTSTART")
        end, length = _date(name, event, "DTEND"), getattr(event.get("DURATION"), "dt", timedelta(1))
        _date(name, event, "RECURRENCE-ID")
        if begin is None:
            raise ConfigError(f"{name}: DTSTART is missing")
        if (end is not None and end < begin) or not isinstance(length, timedelta) or length < timedelta(0):
            raise ConfigError(f"{name}: it ends before it begins")
        if length % timedelta(1):
            raise ConfigError(f"{name}: DURATION is not in days: only all-day events make holidays")
        for rule in _listed(event.get("RRULE")):
            _check_rule(name, rule)
        if "EXRULE" in event:
            raise ConfigError(f"{name}: EXRULE is no longer part of iCalendar: name the days by EXDATE")
        for key in ("RDATE", "EXDATE"):
            for several in _listed(event.get(key)):
                if any(isinstance(one.dt, datetime | tuple) for one in several.dts):
                    raise ConfigError(f"{name}: {key} holds times: only days make holidays")


def _date(name: str, event: Component, key: str) -> date | None:
    found = getattr(event.get(key), "dt", None)
    if found is not None and (isinstance(found, datetime) or not isinstance(found, date) or found < _OLDEST):
        raise ConfigError(f"{name}: {key} is no plain date from {_OLDEST} on: only all-day events make holidays")
    return found


def _check_rule(name: str, rule: Any) -> None:  # noqa: ANN401  # the library's own mapping
    unknown = sorted(set(map(str.upper, rule)) - _PARTS)
    if unknown or rule.get("FREQ", [""])[0] not in _EVERY:
        raise ConfigError(f"{name}: holidays come back by {', '.join(_EVERY).lower()}, on days")
    if any(not 1 <= int(step) <= 1_000 for step in rule.get("INTERVAL", [1])):
        raise ConfigError(f"{name}: INTERVAL is 1 to 1000")


def _listed(value: Any) -> list[Any]:  # noqa: ANN401  # one of a thing or several, as the library has it
    return value if isinstance(value, list) else [] if value is None else [value]
