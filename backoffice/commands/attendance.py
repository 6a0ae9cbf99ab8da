"""``onecard report``, what statements follow from: shifts, who works them, holidays and leave, corrections by two."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from backoffice import attendance
from backoffice.commands.base import act, permitted
from backoffice.database import Tx
from backoffice.installation import Installation
from backoffice.operators import Permission
from backoffice.shifts import DAY_MIN, Shift
from cardlib import holidays
from cardlib.records import PunchDirection
from console import Hex, Noun, Session

DAY = click.DateTime(["%Y-%m-%d"])
DIRECTIONS = [one.name.lower().replace("_", "-") for one in PunchDirection]
for_member = click.option("--member", default="", help="For this member alone.")
for_department = click.option("--department", default="", help="For this department; without both, for all.")


class Clock(click.ParamType[int]):
    """A time of day as HH:MM, given as minutes."""

    name = "clock"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ANN401
        """Refuse anything but HH:MM."""
        if isinstance(value, int):
            return value
        hour, colon, minute = str(value).partition(":")
        if not (colon and value.isascii() and hour.isdigit() and minute.isdigit() and len(minute) == 2):
            self.fail("write a time as HH:MM", param, ctx)
        if int(hour) > 23 or int(minute) > 59:
            self.fail("a time is 00:00 to 23:59", param, ctx)
        return int(hour) * 60 + int(minute)


class Span(click.ParamType[tuple[int, int]]):
    """A time from and to as HH:MM-HH:MM."""

    name = "span"

    def convert(
        self,
        value: Any,  # noqa: ANN401
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[int, int]:
        """Refuse anything else."""
        if isinstance(value, tuple):
            return value
        begin, _, end = str(value).partition("-")
        return Clock().convert(begin, param, ctx), Clock().convert(end, param, ctx)


MINUTES = click.IntRange(0, DAY_MIN)


@click.group(cls=Noun)
def command() -> None:
    """Statements; merged into the noun of the same name."""


@command.command()
@click.argument("name")
@click.argument("start", type=Clock())
@click.argument("end", type=Clock())
@click.option("--break", "breaks", type=Span(), multiple=True, help="A break as HH:MM-HH:MM; may be given again.")
@click.option("--flex", type=MINUTES, default=0, help="Minutes: who comes that much later stays that much longer.")
@click.option("--late-grace", type=MINUTES, default=0, help="Minutes late that are none.")
@click.option("--early-grace", type=MINUTES, default=0, help="Minutes early that are none.")
@click.option("--absent-after", type=MINUTES, default=240, help="Who comes more minutes late is absent.")
@click.option("--overtime-from", type=MINUTES, default=30, help="Minutes from which overtime counts.")
@click.option("--overtime-step", type=click.IntRange(1, DAY_MIN), default=1, help="In whole steps of these minutes.")
@permitted(Permission.ATTENDANCE_CHANGE)
def shift(
    session: Session, office: Installation, name: str, start: int, end: int, breaks: tuple[tuple[int, int], ...],
    flex: int, late_grace: int, early_grace: int, absent_after: int, overtime_from: int, overtime_step: int,
) -> None:  # fmt: skip
    """Define shift NAME from START to END (HH:MM; an END at or before START is on the next day)."""

    def after(minute: int) -> int:
        return minute if minute >= start else minute + DAY_MIN

    made = Shift(
        name, start, end if end > start else end + DAY_MIN, tuple((after(b), after(e)) for b, e in breaks), flex,
        late_grace, early_grace, absent_after, overtime_from_min=overtime_from, overtime_step_min=overtime_step,
    )  # fmt: skip
    number = office.enterprise_id

    def action(tx: Tx) -> dict[str, Any]:
        attendance.define_shift(tx, office.operator, number, made)
        return {"shift": name, "planned_min": made.planned_min}

    session.emit(act(session, office.database, number, "report shift", {"rule": repr(made)}, action))


@command.command()
@permitted(Permission.REPORT_SHOW)
def shifts(session: Session, office: Installation) -> None:
    """List shifts; minutes from midnight, above 1440 on the next day."""
    with office.database.read() as tx:
        found = attendance.shifts_of(tx, office.enterprise_id)
    rows = [
        {
            "shift": one.name,
            "start_min": one.start_min,
            "end_min": one.end_min,
            "planned_min": one.planned_min,
            "breaks": [f"{begin}-{end}" for begin, end in one.breaks],
            "flex_min": one.flex_min,
        }
        for one in found.values()
    ]
    session.emit(rows)


@command.command()
@click.argument("from_day", type=DAY)
@click.argument("week")
@for_member
@for_department
@permitted(Permission.ATTENDANCE_CHANGE)
def plan(session: Session, office: Installation, from_day: datetime, week: str, member: str, department: str) -> None:
    """From FROM_DAY on work WEEK: seven shifts from Monday on, such as day,day,day,day,day,off,off."""
    names = week.split(",")
    if len(names) != 7:
        raise click.BadParameter("seven shifts, from Monday to Sunday, off for a day off", param_hint="WEEK")
    number, day = office.enterprise_id, from_day.date()

    def action(tx: Tx) -> dict[str, Any]:
        subject = attendance.subject_of(tx, number, member, department)
        wanted = {n: None if name == "off" else name for n, name in enumerate(names)}
        attendance.plan(tx, office.operator, number, subject, day, wanted)
        return {"for": subject, "from": day.isoformat(), "week": names}

    arguments = {"from": str(day), "week": week, "member": member, "department": department}
    session.emit(act(session, office.database, number, "report plan", arguments, action))


@command.command()
@click.argument("what")
@click.argument("first", type=DAY, required=False)
@click.argument("last", type=DAY, required=False)
@click.option(
    "--calendar",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The all-day events of this iCalendar file between FIRST (today) and LAST (a year on).",
)
@for_member
@for_department
@permitted(Permission.ATTENDANCE_CHANGE)
def day(
    session: Session, office: Installation, what: str, first: datetime | None, last: datetime | None,
    calendar: Path | None, member: str, department: str,
) -> None:  # fmt: skip
    """Make the days FIRST to LAST be WHAT: off, leave, a shift's name, or plan for as planned again."""
    if first is None and calendar is None:
        raise click.UsageError("which days? Give FIRST, or --calendar FILE")
    number = office.enterprise_id

    def action(tx: Tx) -> dict[str, Any]:
        subject = attendance.subject_of(tx, number, member, department)
        begin = first.date() if first else datetime.fromtimestamp(tx.now_ms // 1000, UTC).date()
        end = last.date() if last else begin + timedelta(365) if calendar else begin
        spans = [(begin, end)] if calendar is None else attendance.spans(holidays.read(calendar, begin, end))
        count = sum(attendance.set_days(tx, office.operator, number, subject, *span, what) for span in spans)
        return {"for": subject, "what": what, "days": count}

    arguments = {
        "what": what, "first": str(first), "last": str(last), "calendar": str(calendar or ""), "member": member,
        "department": department,
    }  # fmt: skip
    session.emit(act(session, office.database, number, "report day", arguments, action))


@command.command()
@click.argument("uid", type=Hex(attendance.TAG_BYTES))
@click.argument("from_day", type=DAY)
@click.option("--member", default="", help="Whose it is; without, nobody's: it was lost or given back.")
@permitted(Permission.ATTENDANCE_CHANGE)
def tag(session: Session, office: Installation, uid: bytes, from_day: datetime, member: str) -> None:
    """From FROM_DAY on, punches of the tag that tells UID (10 hexadecimal digits) are a member's."""
    number, day = office.enterprise_id, from_day.date()

    def action(tx: Tx) -> dict[str, Any]:
        attendance.give_tag(tx, office.operator, number, uid, member, day)
        return {"tag": uid.hex().upper(), "from": str(day), "member": member}

    arguments = {"tag": uid.hex(), "from": str(day), "member": member}
    session.emit(act(session, office.database, number, "report tag", arguments, action))


@command.command()
@permitted(Permission.REPORT_SHOW)
def tags(session: Session, office: Installation) -> None:
    """List tags that only tell a number, and whose each was from when."""
    with office.database.read() as tx:
        found = attendance.tags(tx, office.enterprise_id)
    session.emit([{"tag": uid.hex().upper(), "from": day, "member": member} for uid, day, member in found])


@command.command()
@click.argument("member_number")
@click.argument("day", type=DAY)
@click.argument("at", type=Clock())
@click.argument("direction", type=click.Choice([*DIRECTIONS, "void"]))
@click.option("--second", type=click.IntRange(0, 59), default=0, help="Second of the minute, to void a punch.")
@click.option("--reason", required=True, help="Why.")
@permitted(Permission.ATTENDANCE_CHANGE)
def correct(
    session: Session, office: Installation, member_number: str, day: datetime, at: int, direction: str, second: int,
    reason: str,
) -> None:  # fmt: skip
    """Propose a punch of MEMBER_NUMBER on DAY AT a time (HH:MM), or that one is void; another operator approves it."""
    number, when = office.enterprise_id, f"{day.date()} {at // 60:02}:{at % 60:02}:{second:02}"
    meant = None if direction == "void" else PunchDirection[direction.upper().replace("-", "_")]

    def action(tx: Tx) -> dict[str, Any]:
        made = attendance.propose(tx, office.operator, number, member_number, when, meant, reason)
        return {"correction": made, "state": "proposed"}

    arguments = {"member": member_number, "at": when, "direction": direction, "reason": reason}
    session.emit(act(session, office.database, number, "report correct", arguments, action))


@command.command()
@click.argument("correction")
@click.option("--refuse", is_flag=True, help="Refuse it; its proposer may do so too.")
@permitted(Permission.ATTENDANCE_CHANGE)
def approve(session: Session, office: Installation, correction: str, refuse: bool) -> None:
    """Approve CORRECTION that another operator proposed, or refuse it."""
    number = office.enterprise_id

    def action(tx: Tx) -> dict[str, Any]:
        attendance.decide(tx, office.operator, number, correction, approve=not refuse)
        return {"correction": correction, "state": "refused" if refuse else "approved"}

    arguments = {"correction": correction, "refuse": refuse}
    session.emit(act(session, office.database, number, "report approve", arguments, action))


@command.command()
@click.option("--month", required=True, help="Which month, as YYYY-MM.")
@permitted(Permission.REPORT_SHOW)
def corrections(session: Session, office: Installation, month: str) -> None:
    """List corrections of a month with who proposed and who decided."""
    first, last = attendance.month_days(month)
    with office.database.read() as tx:
        rows = attendance.corrections(tx, office.enterprise_id, first, last)
    session.emit([dict(zip(row.keys(), row, strict=True)) for row in rows])
