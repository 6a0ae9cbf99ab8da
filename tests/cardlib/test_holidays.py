"""Holidays from iCalendar files: which days they make, and which files are refused."""

from __future__ import annotations

import contextlib
import time
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cardlib.errors import ConfigError
from cardlib.holidays import MAX_BYTES, MAX_EVENTS, MAX_RULES, days, read

FIRST, LAST = date(2026, 1, 1), date(2028, 12, 31)


def calendar(*events: str) -> bytes:
    """A calendar of events, each given as its lines with blanks between."""
    body = "".join("BEGIN:VEVENT\r\nUID:u\r\n" + "\r\n".join(one.split()) + "\r\nEND:VEVENT\r\n" for one in events)
    return f"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-\r\n{body}END:VCALENDAR\r\n".encode()


def found(*events: str) -> list[str]:
    """The days of a calendar, as text."""
    return [str(day) for day in sorted(days(calendar(*events), FIRST, LAST))]


YEARLY = "DTSTART;VALUE=DATE:20201001 DTEND;VALUE=DATE:20201003 RRULE:FREQ=YEARLY"


@pytest.mark.parametrize(
    ("events", "wanted"),
    [
        (["DTSTART;VALUE=DATE:20260501"], ["2026-05-01"]),
        (["DTSTART;VALUE=DATE:20260501 DURATION:P2D"], ["2026-05-01", "2026-05-02"]),
        (["DTSTART;VALUE=DATE:20251231 DTEND;VALUE=DATE:20260102"], ["2026-01-01"]),
        (["DTSTART;VALUE=DATE:20281231 DTEND;VALUE=DATE:20290105"], ["2028-12-31"]),
        (["DTSTART;VALUE=DATE:20290101", "DTSTART;VALUE=DATE:20251231"], []),
        (
            [YEARLY + " EXDATE;VALUE=DATE:20271001"],
            ["2026-10-01", "2026-10-02", "2028-10-01", "2028-10-02"],
        ),
        (
            [YEARLY, "RECURRENCE-ID;VALUE=DATE:20271001 DTSTART;VALUE=DATE:20271008"],
            ["2026-10-01", "2026-10-02", "2027-10-08", "2028-10-01", "2028-10-02"],
        ),
        (
            [YEARLY, "RECURRENCE-ID;VALUE=DATE:20261001 DTSTART;VALUE=DATE:20261001 STATUS:CANCELLED"],
            ["2027-10-01", "2027-10-02", "2028-10-01", "2028-10-02"],
        ),
        (
            ["DTSTART;VALUE=DATE:20261126 RRULE:FREQ=YEARLY;BYMONTH=11;BYDAY=4TH"],
            ["2026-11-26", "2027-11-25", "2028-11-23"],
        ),
        (["DTSTART;VALUE=DATE:20260105 RRULE:FREQ=WEEKLY;COUNT=2"], ["2026-01-05", "2026-01-12"]),
        (["DTSTART;VALUE=DATE:20260501 RDATE;VALUE=DATE:20260601"], ["2026-05-01", "2026-06-01"]),
        ([], []),
    ],
)  # fmt: skip
def test_which_days(events: list[str], wanted: list[str]) -> None:
    """Single, long, recurring, moved, cancelled and excepted events make the days that calendars show."""
    assert found(*events) == wanted


@pytest.mark.parametrize(
    ("event", "says"),
    [
        ("DTSTART:20260501T080000Z", "all-day"),
        ("DTSTART;VALUE=DATE:20260501 DTEND:20260501T080000Z", "all-day"),
        ("DTSTART;VALUE=DATE:20260501 DURATION:PT3H", "in days"),
        ("DTSTART;VALUE=DATE:20260501 DTEND;VALUE=DATE:20260401", "ends before"),
        ("DTSTART;VALUE=DATE:20260501 DURATION:-P2D", "ends before"),
        ("DTSTART;VALUE=DATE:20260501 EXDATE:20260501T080000Z", "only days"),
        ("DTSTART;VALUE=DATE:20260501 RDATE;VALUE=PERIOD:20260501T080000Z/PT1H", "only days"),
        ("DTSTART;VALUE=DATE:20260501 RRULE:FREQ=SECONDLY", "on days"),
        ("DTSTART;VALUE=DATE:20260501 RRULE:FREQ=DAILY;BYSECOND=1", "on days"),
        ("DTSTART;VALUE=DATE:20260501 RRULE:FREQ=DAILY;INTERVAL=0", "INTERVAL"),
        ("DTSTART;VALUE=DATE:20260501 EXRULE:FREQ=DAILY", "EXRULE"),
        ("DTSTART;VALUE=DATE:19000501", "1970"),
        ("DTSTART;VALUE=DATE:20261399", "can be understood"),
        ("SUMMARY:nothing", "DTSTART is missing"),
    ],
)
def test_what_is_refused(event: str, says: str) -> None:
    """Times of day, endless and meaningless rules are refused with the reason."""
    with pytest.raises(ConfigError, match=says):
        found(event)


def test_limits() -> None:
    """Bytes, events, rules and years have an end."""
    with pytest.raises(ConfigError, match="bytes"):
        days(b" " * (MAX_BYTES + 1), FIRST, LAST)
    with pytest.raises(ConfigError, match="events"):
        found(*["DTSTART;VALUE=DATE:20260501"] * (MAX_EVENTS + 1))
    with pytest.raises(ConfigError, match="recurring"):
        found(*[YEARLY] * (MAX_RULES + 1))
    for last in (date(2025, 12, 31), date(2037, 1, 1)):
        with pytest.raises(ConfigError, match="days"):
            days(calendar(), FIRST, last)


def test_the_worst_calendar_ends_soon() -> None:
    """Four rules, each of every day for half a century, take seconds, not hours."""
    began = time.monotonic()
    body = calendar(*(f"DTSTART;VALUE=DATE:19700101 RRULE:FREQ=DAILY UID:{n}" for n in range(4)))
    assert len(days(body.replace(b"UID:u\r\n", b""), FIRST, LAST)) == 1096
    assert time.monotonic() - began < 20


def test_files(tmp_path: Path) -> None:
    """A file is named when it is missing, no calendar, or wrong."""
    path = tmp_path / "a.ics"
    with pytest.raises(ConfigError, match=r"a\.ics can't be read"):
        read(path, FIRST, LAST)
    for raw in (b"", b"\xff\xfe\x00", b"BEGIN:VEVENT\r\nEND:VEVENT\r\n", b"%PDF-1.7"):
        path.write_bytes(raw)
        with pytest.raises(ConfigError, match=r"a\.ics"):
            read(path, FIRST, LAST)
    path.write_bytes(calendar("DTSTART;VALUE=DATE:20260501"))
    assert read(path, FIRST, LAST) == {date(2026, 5, 1)}


LINES = st.one_of(
    st.sampled_from(["DTSTART;VALUE=DATE:20260501", "DTSTART:2026", "DTSTART;TZID=Nowhere:20260501T080000"]),
    st.sampled_from(["RRULE:FREQ=YEARLY;BYMONTHDAY=31", "RRULE:FREQ=MONTHLY;BYDAY=9MO", "RRULE:UNTIL=20270101"]),
    st.sampled_from(["RRULE:", "EXDATE:", "RDATE;VALUE=DATE:20260101,x", "DTEND;VALUE=DATE:20270101", "DURATION:P"]),
    st.sampled_from(["RECURRENCE-ID;VALUE=DATE:20260501", "RECURRENCE-ID;RANGE=THISANDFUTURE:20260501", "UID:v"]),
    st.sampled_from(["STATUS:CANCELLED", "BEGIN:VALARM", "END:VEVENT"]),
)


@given(st.lists(st.lists(LINES, max_size=5).map(" ".join), max_size=4))
def test_no_file_raises_anything_else(events: list[str]) -> None:
    """Whatever stands in a calendar, the only error is ConfigError."""
    with contextlib.suppress(ConfigError):
        days(calendar(*events), FIRST, LAST)
