"""Attendance at the command line: from shifts and plans to the statement of a month."""

from __future__ import annotations

import csv
import io
import json
from datetime import date
from pathlib import Path
from typing import Any

import openpyxl
import pytest

import cli
from backoffice import attendance, members, operators
from backoffice.attendance import Reported
from backoffice.database import Database
from backoffice.installation import Installation
from backoffice.members import Member
from backoffice.operators import Credential, Role
from console import Session
from simulator.world import QUICK
from tests.secretwatch import register

SECRET = "a secret of hr and admin"
ENTERPRISE = 5


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An enterprise with an administrator, an issuer called hu, and a member."""
    folder = tmp_path / "office"
    register(SECRET, "operator")
    credential = Credential.make(SECRET, bytes, QUICK)
    made = Installation(folder, lambda _: SECRET, operator="platform")
    monkeypatch.setattr(Credential, "make", lambda *_: credential)
    made.create(SECRET, SECRET, QUICK)
    made.close()
    with Installation(folder, lambda _: SECRET, operator="platform", enterprise_id=ENTERPRISE, platform=True) as one:
        one.open_enterprise(ENTERPRISE, "Example", 480, credential)
    with Database(folder / f"enterprise-{ENTERPRISE}.sqlite", "enterprise") as db, db.write() as tx:
        admin = operators.get(tx, ENTERPRISE, "admin")
        operators.add(tx, admin, ENTERPRISE, "hu", Role.ISSUER, credential)
        members.add(tx, admin, ENTERPRISE, Member("1", "王伟", department="canteen"))
        days = [(f"2026-01-{n:02} {at}", way) for n in (5, 6) for at, way in (("08:50:00", 0), ("18:00:00", 1))]
        attendance.keep(tx, ENTERPRISE, [Reported("pin:1", at, "adms:A1", way) for at, way in days[:3]])
    (tmp_path / "secret").write_text(SECRET + "\n")
    monkeypatch.setenv("ONECARD_OPERATOR_SECRET_FILE", str(tmp_path / "secret"))
    return folder


def run(office: Path, capsys: pytest.CaptureFixture[str], *words: str, operator: str = "hu", code: int = 0) -> Any:
    session = Session(db=office, enterprise=ENTERPRISE, operator=operator, json=True, quiet=True, no_input=True)
    assert cli.run(list(words), session) == code, capsys.readouterr().err
    said = capsys.readouterr()
    return json.loads(said.out or said.err)


def test_a_month(office: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shift, plan, holiday, a forgotten punch approved by another; the month as JSON, CSV and XLSX."""

    def onecard(*words: str, operator: str = "hu", code: int = 0) -> Any:
        return run(office, capsys, "report", *words, operator=operator, code=code)

    assert onecard("shift", "day", "09:00", "18:00", "--break", "12:00-13:00")["planned_min"] == 480
    assert onecard("shift", "night", "22:00", "06:00", "--break", "02:00-02:30")["planned_min"] == 450
    assert [one["end_min"] for one in onecard("shifts")] == [1080, 1800]
    onecard("plan", "2026-01-05", "day,day,day,day,day,off,off", "--department", "canteen")
    onecard("day", "off", "2026-01-07", "2026-01-30")
    onecard("day", "leave", "2026-01-30", "--member", "1")
    made = onecard("correct", "1", "2026-01-06", "18:00", "out", "--reason", "forgot")["correction"]
    assert onecard("approve", made, code=1)["reason"] == "two_operators"
    assert onecard("attendance", "--month", "2026-01")[0]["incomplete"] == 1
    assert onecard("approve", made, operator="admin")["state"] == "approved"
    assert onecard("corrections", "--month", "2026-01")[0]["decided_by"] == "admin"

    files = tmp_path / "m.csv", tmp_path / "m.xlsx"
    (row,) = onecard("attendance", "--month", "2026-01", "--csv", str(files[0]), "--xlsx", str(files[1]))
    assert (row["planned"], row["present"], row["worked_min"], row["unverified"]) == (3, 2, 960, 3)
    assert (row["absent"], row["leave"]) == (0, 1)
    heading, cells = csv.reader(io.StringIO(files[0].read_text("utf-8-sig")))
    sheet = openpyxl.load_workbook(files[1]).active
    assert sheet is not None
    assert dict(zip(heading, cells, strict=True)) == {name: str(value) for name, value in row.items()}
    assert [list(line) for line in sheet.values] == [list(row), list(row.values())]
    assert onecard("attendance", "--month", "2026-01", "--csv", str(files[0]), code=4)["exit"] == 4

    days = {one["day"]: one for one in onecard("attendance", "--month", "2026-01", "--member", "1", "--days")}
    assert len(days) == 31
    shown = [days["2026-01-05"][name] for name in ("presence", "first_in", "last_out", "worked_min")]
    assert shown == ["present", "08:50", "18:00", 480]


def test_punches_for_other_systems(office: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Punches are listed as reported, or in the fields of an HR system's check-in."""
    found = run(office, capsys, "report", "punches", "--from", "2026-01-05", "--to", "2026-01-06")
    assert [one["local_time"][8:16] for one in found] == ["05 08:50", "05 18:00", "06 08:50"]
    assert not any(one["verified"] for one in found)
    assert run(office, capsys, "report", "punches", "--from", "2026-01-06", "--check-ins") == [
        {"employee_field_value": "1", "timestamp": "2026-01-06 08:50:00", "device_id": "adms:A1", "log_type": "IN"}
    ]


def test_devices(office: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A device is approved, listed and retired; the server is not started where all can see it without a proxy."""
    run(
        office,
        capsys,
        "terminal",
        "adms",
        "approve",
        "A1",
        "--name",
        "gate",
        "--address",
        "192.0.2.7",
        operator="admin",
    )
    (one,) = run(office, capsys, "terminal", "adms", "list")
    assert (one["state"], one["network"]) == ("approved", "192.0.2.7/32")
    run(office, capsys, "terminal", "adms", "retire", "A1", operator="admin")
    assert run(office, capsys, "terminal", "adms", "list")[0]["state"] == "retired"
    serve = ["terminal", "adms", "serve", "--dry-run"]
    assert run(office, capsys, *serve, operator="admin")["state"] == "not started"
    run(office, capsys, *serve, "--host", "0.0.0.0", operator="admin", code=2)
    run(office, capsys, *serve, "--host", "0.0.0.0", "--behind-proxy", "192.0.2.1", operator="admin")


@pytest.mark.parametrize(
    "words",
    [
        ["shift", "day", "9", "18:00"], ["shift", "day", "09:00", "24:00"], ["shift", "day", "09:00", "18:60"],
        ["shift", "day", "09:00", "18:00", "--break", "12:00"], ["plan", "2026-01-01", "off"],
        ["shift", "day", "09:00", "18:00", "--break", "08:00-08:30"], ["attendance", "--month", "2026-1"],
        ["punches", "--from", "2026-01-02", "--to", "2026-01-01"], ["correct", "1", "2026-01-01", "09:00", "in"],
    ],
)  # fmt: skip
def test_misuse(office: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    """What can't be meant is refused as usage."""
    assert run(office, capsys, "report", *words, code=2)["exit"] == 2


def test_days_are_dates() -> None:
    """The month's last day is found in every month."""
    assert attendance.month_days("2028-02") == (date(2028, 2, 1), date(2028, 2, 29))
    assert attendance.month_days("2026-12") == (date(2026, 12, 1), date(2026, 12, 31))


def test_holidays_of_a_calendar(office: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The days of an iCalendar file are off, those between them as planned; a wrong file changes nothing."""
    days = "".join(
        f"BEGIN:VEVENT\r\nUID:{day}\r\nDTSTART;VALUE=DATE:202601{day}\r\nEND:VEVENT\r\n" for day in ("05", "06", "09")
    )
    path = tmp_path / "holidays.ics"
    path.write_text(f"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-\r\n{days}END:VCALENDAR\r\n")
    words = ["report", "day", "off", "2026-01-01", "2026-01-08", "--calendar", str(path)]
    assert run(office, capsys, *words, operator="admin")["days"] == 2
    assert run(office, capsys, *words, "2026-02-01", operator="admin", code=2)["exit"] == 2
    assert run(office, capsys, "report", "day", "off", "--calendar", str(path), operator="admin")["days"] == 0
    assert "which days" in run(office, capsys, "report", "day", "off", operator="admin", code=2)["message"]
    path.write_text("rubbish")
    assert "holidays.ics" in run(office, capsys, *words, operator="admin", code=2)["message"]
    assert attendance.spans([]) == []
    one, two, three, five = (date(2026, 1, n) for n in (1, 2, 3, 5))
    assert attendance.spans({five, two, one, three}) == [(one, three), (five, five)]
