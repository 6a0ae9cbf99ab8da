"""Attendance: punches of all sources, who works when, corrections by two, the monthly statement (requirement C5).

A punch is kept as reported and never changed. Whose it is, is asked when it is read: by the card's holder, by a PIN
that is a member number, or by who had a tag that day. What a day comes to is worked out by :mod:`backoffice.shifts`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

from backoffice import audit, members
from backoffice.audit import Event
from backoffice.database import Row, Tx
from backoffice.members import Member
from backoffice.operators import Operator, Permission, require
from backoffice.shifts import Calendar, DayResult, Presence, Punch, Shift, month
from cardlib.errors import ConfigError, Conflict, FormatError, NotFound, Refused
from cardlib.records import PunchDirection, PunchReport

MAX_DAYS = 366
TAG_BYTES = 5
MAX_REASON = 200
DIRECTIONS = PunchDirection._value2member_map_
_COLUMNS = "enterprise_id, person, local_time, source, status, verify, journal_seq, workcode, verified, received_ms"
_KEEP = f"INSERT INTO punch ({_COLUMNS}) VALUES ({', '.join('?' * 10)}) ON CONFLICT DO NOTHING"
_TIME = re.compile(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")


class Reported(NamedTuple):
    """A punch as its source says it. ``local_time`` is ``YYYY-MM-DD HH:MM:SS`` of the enterprise."""

    person: str
    local_time: str
    source: str
    status: int
    verify: int = 0
    journal_seq: int = 0
    workcode: str = ""
    verified: bool = False


def local_time(text: str) -> datetime:
    """Parse ``YYYY-MM-DD HH:MM:SS`` of the years 2000 to 2099. Raises FormatError."""
    try:
        if _TIME.fullmatch(text):
            return datetime.fromisoformat(text)
    except ValueError:
        pass
    raise FormatError("a time like 2026-11-02 08:59:00, from 2000 to 2099")


def reported(punch: PunchReport, journal_seq: int) -> Reported | None:
    """A terminal's punch from its journal; None when its time or direction can't be."""
    digits = punch.when.hex()
    text = f"{digits[:4]}-{digits[4:6]}-{digits[6:8]} {digits[8:10]}:{digits[10:12]}:{digits[12:]}"
    try:
        local_time(text)
    except FormatError:
        return None
    if punch.direction not in DIRECTIONS:
        return None
    serial = punch.card_serial
    is_tag = not any(serial[:-TAG_BYTES])  # a card's serial begins with its kind, which is never 0
    person = f"uid:{serial[-TAG_BYTES:].hex()}" if is_tag else f"card:{serial.hex()}"
    source = f"terminal:{punch.terminal.hex()}"
    return Reported(person, text, source, punch.direction, 0, journal_seq, "", punch.verified)


def keep(tx: Tx, enterprise_id: int, punches: Iterable[Reported]) -> int:
    """Store punches, each once whatever comes again; returns how many were new."""
    return tx.executemany(_KEEP, ((enterprise_id, *punch, tx.now_ms) for punch in punches))


class Line(NamedTuple):
    """One punch as listed; ``member_number`` is empty when nobody has that card or PIN."""

    local_time: str
    member_number: str
    person: str
    direction: str
    source: str
    verified: bool


def punches(tx: Tx, enterprise_id: int, first: date, last: date, member_number: str = "") -> Iterator[Line]:
    """Punches of some days as reported, by time; of all people, or of one member. Corrections are not in them."""
    for row, holder in _rows(tx, enterprise_id, first, last):
        if member_number in ("", holder):
            person, at, source, status, verified = row
            direction = PunchDirection(status).name.lower() if status in DIRECTIONS else "unknown"
            yield Line(at, holder, person, direction, source, bool(verified))


def _rows(tx: Tx, enterprise_id: int, first: date, last: date) -> Iterator[tuple[Row, str]]:
    """Punches of some days by time, with the member whose card, tag or number it is, or an empty text."""
    rows = tx.all("SELECT card_serial, member_number FROM card_application WHERE enterprise_id = ?", (enterprise_id,))
    holders = {f"card:{row[0].hex()}": row[1] for row in rows}
    rows = tx.all("SELECT member_number FROM member WHERE enterprise_id = ?", (enterprise_id,))
    holders |= {f"pin:{row[0]}": row[0] for row in rows}
    had: dict[str, list[tuple[str, str]]] = {}
    for uid, day, holder in tags(tx, enterprise_id):
        had.setdefault(f"uid:{uid.hex()}", []).append((day, holder))
    for row in tx.execute(
        "SELECT person, local_time, source, status, verified FROM punch"
        " WHERE enterprise_id = ? AND local_time >= ? AND local_time < ? ORDER BY local_time, person, source",
        (enterprise_id, str(first), str(last + timedelta(1))),
    ):
        whose = [holder for day, holder in had.get(row[0], []) if day <= row[1][:10]]
        yield row, whose[-1] if whose else holders.get(row[0], "")


def _rows_of(tx: Tx, enterprise_id: int, numbers: Iterable[str], first: date, last: date) -> dict[str, list[Row]]:
    """Punches of some days by member."""
    found: dict[str, list[Row]] = {number: [] for number in numbers}
    for row, holder in _rows(tx, enterprise_id, first, last):
        if holder in found:
            found[holder].append(row)
    return found


# Whose a tag is


def give_tag(tx: Tx, actor: Operator, enterprise_id: int, uid: bytes, member_number: str, from_day: date) -> None:
    """From a day on a tag is a member's, or with an empty number nobody's; days before keep who had it then.

    Raises Refused, NotFound, FormatError.
    """
    require(actor, Permission.ATTENDANCE_CHANGE, enterprise_id)
    if len(uid) != TAG_BYTES:
        raise FormatError(f"a tag's number has {2 * TAG_BYTES} hexadecimal digits")
    if member_number:
        members.get(tx, enterprise_id, member_number)
    tx.execute(
        "INSERT INTO punch_tag (enterprise_id, uid, from_day, member_number, changed_ms) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (enterprise_id, uid, from_day)"
        " DO UPDATE SET member_number = excluded.member_number, changed_ms = excluded.changed_ms",
        (enterprise_id, uid, str(from_day), member_number, tx.now_ms),
    )
    _planned(tx, actor, enterprise_id, f"tag:{uid.hex()}", "tag", from_day, number=member_number)


def tags(tx: Tx, enterprise_id: int) -> list[tuple[bytes, str, str]]:
    """Tags with the day from which each was whose, by time."""
    sql = "SELECT uid, from_day, member_number FROM punch_tag WHERE enterprise_id = ? ORDER BY uid, from_day"
    return [(row[0], row[1], row[2]) for row in tx.all(sql, (enterprise_id,))]


# Who works when


def define_shift(tx: Tx, actor: Operator, enterprise_id: int, shift: Shift) -> None:
    """Store a shift; the same again changes nothing. Raises Refused, FormatError, Conflict: a rule never changes."""
    require(actor, Permission.ATTENDANCE_CHANGE, enterprise_id)
    if not _NAME.fullmatch(shift.name) or shift.name in ("off", "leave"):
        raise FormatError("a shift's name has 1 to 32 of A-Z a-z 0-9 . _ - and is neither off nor leave")
    rule = json.dumps(asdict(shift), sort_keys=True)
    known = tx.value("SELECT rule FROM shift_rule WHERE enterprise_id = ? AND name = ?", (enterprise_id, shift.name))
    if known == rule:
        return
    if known is not None:
        raise Conflict(f"shift {shift.name} has another rule: give the changed one a new name, and plan that")
    sql = "INSERT INTO shift_rule (enterprise_id, name, rule, created_ms) VALUES (?, ?, ?, ?)"
    tx.execute(sql, (enterprise_id, shift.name, rule, tx.now_ms))
    audit.record(tx, enterprise_id, Event.ATTENDANCE_PLANNED, actor.name, f"shift:{shift.name}", kind="rule")


def shifts_of(tx: Tx, enterprise_id: int) -> dict[str, Shift]:
    """All shifts by name."""
    found = {}
    for row in tx.all("SELECT name, rule FROM shift_rule WHERE enterprise_id = ? ORDER BY name", (enterprise_id,)):
        rule: dict[str, Any] = json.loads(row["rule"])
        found[row["name"]] = Shift(**rule | {"breaks": tuple((begin, end) for begin, end in rule["breaks"])})
    return found


def subject_of(tx: Tx, enterprise_id: int, member_number: str = "", department: str = "") -> str:
    """Whom a plan is for: a member, a department, or all. Raises ConfigError for both, NotFound."""
    if member_number and department:
        raise ConfigError("a plan is for a member or a department, not for both")
    if member_number:
        members.get(tx, enterprise_id, member_number)
        return f"member:{member_number}"
    if len(department) > 64 or not department.isprintable():
        raise FormatError("a department has at most 64 printable characters")
    return f"department:{department}" if department else "all"


def plan(
    tx: Tx, actor: Operator, enterprise_id: int, subject: str, from_day: date, week: Mapping[int, str | None]
) -> None:
    """From a day on, whoever ``subject`` is works these shifts (Monday 0); days left out are off.

    Days before keep the plan of before. Raises Refused, NotFound for an unknown shift, FormatError.
    """
    require(actor, Permission.ATTENDANCE_CHANGE, enterprise_id)
    if not set(week) <= set(range(7)):
        raise FormatError("weekdays are 0 (Monday) to 6")
    names = [week.get(n) or "" for n in range(7)]
    _known_shifts(tx, enterprise_id, filter(None, names))
    tx.execute(
        "INSERT INTO shift_plan (enterprise_id, subject, from_day, week, changed_ms) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (enterprise_id, subject, from_day)"
        " DO UPDATE SET week = excluded.week, changed_ms = excluded.changed_ms",
        (enterprise_id, subject, str(from_day), json.dumps(names), tx.now_ms),
    )
    _planned(tx, actor, enterprise_id, subject, "week", from_day)


def set_days(tx: Tx, actor: Operator, enterprise_id: int, subject: str, first: date, last: date, what: str) -> int:
    """Make days special: ``off``, ``leave``, a shift's name, or ``plan`` for as planned; returns how many days.

    Raises Refused, NotFound for an unknown shift, FormatError when there are none or more than a year of them.
    """
    require(actor, Permission.ATTENDANCE_CHANGE, enterprise_id)
    days = [first + timedelta(n) for n in range((last - first).days + 1)]
    if not 1 <= len(days) <= MAX_DAYS:
        raise FormatError(f"from the first to the last are 1 to {MAX_DAYS} days")
    if what not in ("off", "leave", "plan"):
        _known_shifts(tx, enterprise_id, [what])
        what = f"shift:{what}"
    sql = "DELETE FROM shift_day WHERE enterprise_id = ? AND subject = ? AND day BETWEEN ? AND ?"
    tx.execute(sql, (enterprise_id, subject, str(first), str(last)))
    if what != "plan":
        tx.executemany(
            "INSERT INTO shift_day (enterprise_id, subject, day, what, changed_ms) VALUES (?, ?, ?, ?, ?)",
            ((enterprise_id, subject, str(day), what, tx.now_ms) for day in days),
        )
    _planned(tx, actor, enterprise_id, subject, what, first, count=len(days))
    return len(days)


def spans(days: Iterable[date]) -> list[tuple[date, date]]:
    """Days as first and last of each unbroken row, in order."""
    found: list[tuple[date, date]] = []
    for day in sorted(days):
        begins = not found or day - found[-1][1] > timedelta(1)
        found[-1:] = [*found[-1:], (day, day)] if begins else [(found[-1][0], day)]
    return found


def _known_shifts(tx: Tx, enterprise_id: int, names: Iterable[str]) -> None:
    unknown = sorted(set(names) - shifts_of(tx, enterprise_id).keys())
    if unknown:
        raise NotFound(f"no shift {', '.join(unknown)}: define it first (onecard report shift)")


def _planned(
    tx: Tx, actor: Operator, enterprise_id: int, subject: str, kind: str, day: date, **more: int | str
) -> None:
    audit.record(
        tx, enterprise_id, Event.ATTENDANCE_PLANNED, actor.name, "attendance:plan", name=subject[:64], kind=kind,
        day=str(day), **more,
    )  # fmt: skip


def calendar(tx: Tx, enterprise_id: int, member: Member, first: date, last: date) -> Calendar:
    """A member's shifts from ``first`` to ``last``: his own plan before his department's, before everybody's."""
    rules = shifts_of(tx, enterprise_id)
    subjects = [f"member:{member.member_number}", *([f"department:{member.department}"] if member.department else [])]
    plans: list[list[tuple[str, list[str]]]] = []
    marks: dict[str, str] = {}
    for subject in (*subjects, "all"):
        rows = tx.all(
            "SELECT from_day, week FROM shift_plan WHERE enterprise_id = ? AND subject = ? ORDER BY from_day DESC",
            (enterprise_id, subject),
        )
        plans.append([(row[0], json.loads(row[1])) for row in rows])
        sql = "SELECT day, what FROM shift_day WHERE enterprise_id = ? AND subject = ? AND day BETWEEN ? AND ?"
        for day, what in tx.all(sql, (enterprise_id, subject, str(first), str(last))):
            marks.setdefault(day, what)
    special: dict[date, Shift | None] = {}
    leave = set()
    for day in (first + timedelta(n) for n in range((last - first).days + 1)):
        what = marks.get(str(day), "")
        week = next((w for one in plans for start, w in one if start <= str(day)), [""] * 7)
        name = what.removeprefix("shift:") if what.startswith("shift:") else week[day.weekday()]
        special[day] = None if what == "off" or not name else rules[name]
        if what == "leave" and special[day] is not None:
            leave.add(day)
    return Calendar({}, special, frozenset(leave))


# Corrections


def propose(
    tx: Tx, actor: Operator, enterprise_id: int, member_number: str, at: str, direction: PunchDirection | None,
    reason: str,
) -> str:  # fmt: skip
    """Propose a punch that is missing, or (``direction`` None) that what was punched at a time is void.

    Returns the correction's id; it counts once another operator approves. Raises Refused, NotFound, FormatError.
    """
    require(actor, Permission.ATTENDANCE_CHANGE, enterprise_id)
    members.get(tx, enterprise_id, member_number)
    when = local_time(at)
    if not 1 <= len(reason) <= MAX_REASON or not reason.isprintable():
        raise FormatError(f"a reason has 1 to {MAX_REASON} printable characters")
    rows = _rows_of(tx, enterprise_id, [member_number], when.date(), when.date())[member_number]
    if direction is None and when not in {one.at for one in _effective(tx, enterprise_id, member_number, rows)}:
        raise NotFound(f"member {member_number} has no punch at {at}")
    correction_id = tx.new_id()
    tx.execute(
        "INSERT INTO punch_correction (enterprise_id, correction_id, member_number, kind, local_time, status, reason,"
        " proposed_by, proposed_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (enterprise_id, correction_id, member_number, "void" if direction is None else "add", at, direction or 0,
         reason, actor.name, tx.now_ms),
    )  # fmt: skip
    _corrected(tx, actor, enterprise_id, correction_id, member_number, "proposed")
    return correction_id


def decide(tx: Tx, actor: Operator, enterprise_id: int, correction_id: str, *, approve: bool) -> None:
    """Approve or refuse a correction; the same again changes nothing.

    Raises Refused (``two_operators``: nobody approves his own; its proposer may withdraw it), NotFound, Conflict
    when it was decided otherwise.
    """
    require(actor, Permission.ATTENDANCE_CHANGE, enterprise_id)
    sql = "SELECT * FROM punch_correction WHERE enterprise_id = ? AND correction_id = ?"
    row = tx.one(sql, (enterprise_id, correction_id))
    if row is None:
        raise NotFound(f"no correction {correction_id} is proposed")
    decision = "approved" if approve else "refused"
    if row["decision"] is not None:
        if row["decision"] != decision:
            raise Conflict(f"correction {correction_id} was {row['decision']} by {row['decided_by']}: propose another")
        return
    if approve and row["proposed_by"] == actor.name:
        raise Refused("two_operators", f"{actor.name} proposed this correction: another operator approves it")
    tx.execute(
        "UPDATE punch_correction SET decision = ?, decided_by = ?, decided_ms = ?"
        " WHERE enterprise_id = ? AND correction_id = ?",
        (decision, actor.name, tx.now_ms, enterprise_id, correction_id),
    )
    _corrected(tx, actor, enterprise_id, correction_id, row["member_number"], decision)


def _corrected(
    tx: Tx, actor: Operator, enterprise_id: int, correction_id: str, member_number: str, outcome: str
) -> None:
    audit.record(
        tx, enterprise_id, Event.ATTENDANCE_CORRECTED, actor.name, f"correction:{correction_id}",
        number=member_number, outcome=outcome,
    )  # fmt: skip


def corrections(tx: Tx, enterprise_id: int, first: date, last: date) -> list[Row]:
    """Corrections of the punches of some days, by time."""
    return tx.all(
        "SELECT correction_id, member_number, kind, local_time, status, reason, proposed_by, decision, decided_by"
        " FROM punch_correction WHERE enterprise_id = ? AND local_time >= ? AND local_time < ?"
        " ORDER BY local_time, correction_id",
        (enterprise_id, str(first), str(last + timedelta(1))),
    )


def _effective(tx: Tx, enterprise_id: int, member_number: str, rows: Iterable[Row]) -> list[Punch]:
    """A member's punches and what was approved of them, in the order in which it was."""
    found = [Punch(datetime.fromisoformat(row["local_time"]), _direction(row["status"])) for row in rows]
    for row in tx.all(
        "SELECT kind, local_time, status FROM punch_correction WHERE enterprise_id = ? AND member_number = ?"
        " AND decision = 'approved' ORDER BY decided_ms, correction_id",
        (enterprise_id, member_number),
    ):
        at = datetime.fromisoformat(row["local_time"])
        if row["kind"] == "void":
            found = [punch for punch in found if punch.at != at]
        else:
            found.append(Punch(at, PunchDirection(row["status"])))
    return sorted(found, key=lambda punch: punch.at)


def _direction(status: int) -> PunchDirection | None:
    return PunchDirection(status) if status in DIRECTIONS else None


# The statement


class Statement(NamedTuple):
    """A member's month. Counts are days, ``*_min`` minutes; ``unverified`` counts punches of unverified sources."""

    member_number: str
    name: str
    department: str
    planned: int
    present: int
    absent: int
    incomplete: int
    leave: int
    late: int
    late_min: int
    early: int
    early_min: int
    worked_min: int
    overtime_min: int
    unverified: int


def month_days(text: str) -> tuple[date, date]:
    """First and last day of a month written YYYY-MM. Raises FormatError."""
    if not re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", text, re.ASCII):
        raise FormatError("a month like 2026-11, from 2000 to 2099")
    first = date.fromisoformat(f"{text}-01")
    return first, (first + timedelta(31)).replace(day=1) - timedelta(1)


def statement(
    tx: Tx, actor: Operator, enterprise_id: int, text: str, offset_min: int, member_number: str = ""
) -> Iterator[tuple[Statement, list[DayResult]]]:
    """The month ``text`` (YYYY-MM) of each member, or of one: his sums and his days, those that are over.

    Who left is in it when asked for by number. Raises Refused, NotFound, FormatError.
    """
    require(actor, Permission.REPORT_SHOW, enterprise_id)
    first, last = month_days(text)
    today = (datetime.fromtimestamp(tx.now_ms // 1000, UTC) + timedelta(minutes=offset_min)).date()
    last = min(last, today - timedelta(1))
    pages = [[members.get(tx, enterprise_id, member_number)]] if member_number else _pages(tx, enterprise_id)
    for page in pages:
        numbers = [member.member_number for member in page]
        rows = _rows_of(tx, enterprise_id, numbers, first - timedelta(1), last + timedelta(2))
        for member in page:
            yield _of_member(tx, enterprise_id, member, first, last, rows[member.member_number])


def _of_member(
    tx: Tx, enterprise_id: int, member: Member, first: date, last: date, rows: list[Row]
) -> tuple[Statement, list[DayResult]]:
    """A member's days as far as he was one, from his punches of these and the days around."""
    unverified = sum(not row["verified"] and str(first) <= row["local_time"][:10] <= str(last) for row in rows)
    first = max(first, date.fromisoformat(member.valid_from)) if member.valid_from else first
    last = min(last, date.fromisoformat(member.valid_until)) if member.valid_until else last
    found: list[DayResult] = []
    if first <= last:
        plan = calendar(tx, enterprise_id, member, first - timedelta(1), last + timedelta(1))
        found = month(plan, first, last, _effective(tx, enterprise_id, member.member_number, rows))
    return _sum(member, found, unverified), found


def _pages(tx: Tx, enterprise_id: int) -> Iterator[list[Member]]:
    page = members.listing(tx, enterprise_id)
    while page:
        yield page
        page = members.listing(tx, enterprise_id, after=page[-1].member_number)


def _sum(member: Member, found: list[DayResult], unverified: int) -> Statement:
    def count(*kinds: Presence) -> int:
        return sum(one.presence in kinds for one in found)

    return Statement(
        member.member_number,
        member.name,
        member.department,
        planned=sum(one.presence is not Presence.REST for one in found),
        present=count(Presence.PRESENT),
        absent=count(Presence.ABSENT),
        incomplete=count(Presence.NO_IN, Presence.NO_OUT),
        leave=count(Presence.LEAVE),
        late=sum(one.late_min > 0 for one in found),
        late_min=sum(one.late_min for one in found),
        early=sum(one.early_min > 0 for one in found),
        early_min=sum(one.early_min for one in found),
        worked_min=sum(one.worked_min for one in found),
        overtime_min=sum(one.overtime_min for one in found),
        unverified=unverified,
    )
