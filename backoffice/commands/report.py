"""``onecard report``: what payroll and HR take from the books."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path
from typing import Any

import click

from backoffice import attendance, sheets
from backoffice.commands.base import permitted
from backoffice.installation import Installation
from backoffice.operators import Permission
from backoffice.shifts import DayResult
from cardlib.errors import ConfigError
from console import Noun, Session, require_new, write_new

NEW_FILE = click.Path(path_type=Path, dir_okay=False)
DAY = click.DateTime(["%Y-%m-%d"])
LOG_TYPES = {"in": "IN", "break_in": "IN", "overtime_in": "IN", "out": "OUT", "break_out": "OUT", "overtime_out": "OUT"}
month_option = click.option("--month", required=True, help="Which month, as YYYY-MM.")


@click.group(cls=Noun)
def command() -> None:
    """Attendance: punches, shifts, plans, leave, corrections by two, the statement of a month."""


@command.command("attendance")
@month_option
@click.option("--member", default="", help="Only this member.")
@click.option("--days", is_flag=True, help="A line for each day instead of one for each member.")
@click.option("--csv", "csv_file", type=NEW_FILE, help="Write it to this new CSV file too.")
@click.option("--xlsx", "xlsx_file", type=NEW_FILE, help="Write it to this new XLSX file too.")
@permitted(Permission.REPORT_SHOW)
def attendance_command(
    session: Session, office: Installation, month: str, member: str, days: bool,
    csv_file: Path | None, xlsx_file: Path | None,
) -> None:  # fmt: skip
    """Late, early, absent, worked and overtime of a month; minutes. Days that are not over are left out."""
    for file in filter(None, (csv_file, xlsx_file)):
        require_new(file)
    rows: list[dict[str, Any]] = []
    with office.database.read() as tx:
        offset_min = office.enterprise.utc_offset_minutes
        for total, found in attendance.statement(tx, office.operator, office.enterprise_id, month, offset_min, member):
            rows += [_day(total, one) for one in found] if days else [total._asdict()]
    heading = list(rows[0]) if rows else ["member_number"]
    cells = [list(row.values()) for row in rows]
    if csv_file is not None and not session.dry_run:
        write_new(csv_file, sheets.write_csv(heading, cells))
    if xlsx_file is not None and not session.dry_run:
        write_new(xlsx_file, sheets.write_xlsx(f"attendance {month}", heading, cells))
    session.emit(rows)


def _day(total: attendance.Statement, one: DayResult) -> dict[str, Any]:
    return {
        "member_number": total.member_number,
        "name": total.name,
        "day": one.day.isoformat(),
        "shift": one.shift,
        "presence": one.presence.value,
        "first_in": _clock(one.first_in),
        "last_out": _clock(one.last_out),
        "late_min": one.late_min,
        "early_min": one.early_min,
        "worked_min": one.worked_min,
        "overtime_min": one.overtime_min,
    }


def _clock(minute: int | None) -> str:
    """``08:59``; ``30:05`` is five past six of the next morning, ``-00:10`` ten to midnight of the evening before."""
    if minute is None:
        return ""
    return f"{'-' if minute < 0 else ''}{abs(minute) // 60:02}:{abs(minute) % 60:02}"


@command.command()
@click.option("--from", "first", type=DAY, required=True, help="First day, as YYYY-MM-DD.")
@click.option("--to", "last", type=DAY, help="Last day. [default: the first]")
@click.option("--member", default="", help="Only this member.")
@click.option("--check-ins", is_flag=True, help="In the fields of ERPNext's check-in call; unknown people left out.")
@permitted(Permission.REPORT_SHOW)
def punches(
    session: Session, office: Installation, first: datetime, last: datetime | None, member: str, check_ins: bool
) -> None:
    """Punches as they were reported, of terminals and devices; corrections are not in them."""
    begin, end = _span(first, last)
    with office.database.read() as tx:
        found = list(attendance.punches(tx, office.enterprise_id, begin, end, member))
    if not check_ins:
        session.emit([one._asdict() for one in found])
        return
    session.emit(
        [
            {
                "employee_field_value": one.member_number,
                "timestamp": one.local_time,
                "device_id": one.source,
                "log_type": LOG_TYPES.get(one.direction),
            }
            for one in found
            if one.member_number
        ]
    )


def _span(first: datetime, last: datetime | None) -> tuple[date, date]:
    begin, end = first.date(), (last or first).date()
    if end < begin:
        raise ConfigError(f"{end} is before {begin}")
    return begin, end
