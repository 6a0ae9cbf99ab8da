"""Attendance in the back office: punches once, plans, corrections by two, the month that comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime

import pytest

from backoffice import attendance, audit, journals, members
from backoffice.attendance import Reported
from backoffice.database import Database
from backoffice.members import Member
from backoffice.operators import Operator, Role
from backoffice.shifts import Presence, Shift
from cardlib.errors import ConfigError, Conflict, FormatError, NotFound, OneCardError, Refused
from cardlib.records import Event, PunchDirection, PunchReport
from tests.backoffice.conftest import ENTERPRISE, Clock
from tests.backoffice.kit import ADMIN, Till

HR = Operator(ENTERPRISE, "hu", Role.ISSUER)
SERIAL = bytes.fromhex("0201000000000785")
FIRST, LAST = date(2026, 11, 1), date(2026, 11, 30)
OFFICE = Shift("office", 9 * 60, 18 * 60, ((12 * 60, 13 * 60),))
NIGHT = Shift("night", 22 * 60, 30 * 60)
DECEMBER = int(datetime(2026, 12, 1, 12, tzinfo=UTC).timestamp() * 1000)
IN, OUT = PunchDirection.IN, PunchDirection.OUT


@pytest.fixture
def office(db: Database, clock: Clock) -> Database:
    """A member with a card who works office hours, in December 2026."""
    clock.now_ms = DECEMBER
    with db.write() as tx:
        members.add(tx, ADMIN, ENTERPRISE, Member("1", "王伟", department="canteen"))
        card = "INSERT INTO card_application VALUES (?, ?, '1', 1, 'active', 1, 1, ?, ?, NULL, NULL, 0, 0)"
        tx.execute(card, (ENTERPRISE, SERIAL, "2026-01-01", "2030-01-01"))
        attendance.define_shift(tx, HR, ENTERPRISE, OFFICE)
        attendance.define_shift(tx, HR, ENTERPRISE, NIGHT)
        attendance.plan(tx, HR, ENTERPRISE, "all", date(2026, 1, 1), dict.fromkeys(range(5), "office"))
    return db


def punch(till: Till, when: str, direction: int = 0, serial: bytes = SERIAL) -> PunchReport:
    return PunchReport(ENTERPRISE, till.terminal, serial, bytes.fromhex(when), DECEMBER, direction, 1)


def keep(db: Database, *lines: tuple[str, int], person: str = "pin:1", verified: bool = False) -> int:
    with db.write() as tx:
        return attendance.keep(
            tx, ENTERPRISE, [Reported(person, at, "adms:X", way, verified=verified) for at, way in lines]
        )


def month(db: Database, text: str = "2026-11") -> tuple[attendance.Statement, dict[date, Presence]]:
    return month_of(db, "", text)


def month_of(db: Database, number: str, text: str = "2026-11") -> tuple[attendance.Statement, dict[date, Presence]]:
    with db.read() as tx:
        ((total, days),) = attendance.statement(tx, HR, ENTERPRISE, text, 480, number)
    return total, {one.day: one.presence for one in days}


def test_punches_of_a_journal_are_kept_once(office: Database) -> None:
    """A collected journal's punches are its card's holder's; the same file again adds none."""
    till = Till(7)
    till.append(Event.RECORD, None, punch(till, "20261102085900"))
    till.append(Event.RECORD, None, punch(till, "20261102180100", 1))
    till.append(Event.RECORD, None, replace(punch(till, "20261102190100", 1), verified=False))
    for _ in range(2):
        assert journals.collect(office, ENTERPRISE, till.file()).conflicts == ()
    with office.read() as tx:
        found = list(attendance.punches(tx, ENTERPRISE, FIRST, LAST))
        assert found == list(attendance.punches(tx, ENTERPRISE, FIRST, LAST, "1"))
    assert [(p.local_time[11:16], p.member_number, p.direction, p.verified) for p in found] == [
        ("08:59", "1", "in", True), ("18:01", "1", "out", True), ("19:01", "1", "out", False),
    ]  # fmt: skip


def test_a_tag_is_whose_it_was_that_day(office: Database) -> None:
    """A tag's punches are marked; they are the member's who had it that day, nobody's before and after."""
    till, uid = Till(7), bytes.fromhex("010063E9AE")
    for day in ("01", "02", "03", "04"):
        made = punch(till, f"202611{day}085900", serial=uid.rjust(8, b"\0"))
        till.append(Event.RECORD, None, replace(made, verified=False))
    journals.collect(office, ENTERPRISE, till.file())
    with office.write() as tx:
        members.add(tx, ADMIN, ENTERPRISE, Member("2", "李娜"))
        for member, first in (("2", 2), ("1", 3), ("", 4)):
            attendance.give_tag(tx, HR, ENTERPRISE, uid, member, date(2026, 11, first))
        with pytest.raises(NotFound):
            attendance.give_tag(tx, HR, ENTERPRISE, uid, "9", FIRST)
        with pytest.raises(FormatError):
            attendance.give_tag(tx, HR, ENTERPRISE, uid[1:], "1", FIRST)
        with pytest.raises(Refused):
            attendance.give_tag(tx, Operator(ENTERPRISE, "eve", Role.AUDITOR), ENTERPRISE, uid, "1", FIRST)
    with office.read() as tx:
        found = list(attendance.punches(tx, ENTERPRISE, FIRST, LAST))
    assert [(one.member_number, one.person, one.verified) for one in found] == [
        (holder, "uid:010063e9ae", False) for holder in ("", "2", "1", "")
    ]
    total, _ = month_of(office, "1")
    assert total.unverified == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"when": bytes.fromhex("20261302085900")}, {"when": bytes(7)}, {"when": b"\xff" * 7}, {"direction": 9},
        {"enterprise_id": 5}, {"terminal": bytes(6)},
    ],
)  # fmt: skip
def test_impossible_punch_is_a_contradiction(office: Database, wrong: dict[str, bytes]) -> None:
    """A punch without a time that there is, or another terminal's, is kept aside by name."""
    till = Till(7)
    till.append(Event.RECORD, None, replace(punch(till, "20261102085900"), **wrong))  # type: ignore[arg-type]  # on purpose
    assert len(journals.collect(office, ENTERPRISE, till.file()).conflicts) == 1
    with office.read() as tx:
        assert tx.value("SELECT COUNT(*) FROM punch") == 0


def test_another_journal_at_the_same_place_adds_no_punch(office: Database) -> None:
    """An entry that contradicts the one collected before gives no punch."""
    for when in ("20261102085900", "20261102070000"):
        till = Till(7)
        till.append(Event.RECORD, None, punch(till, when))
        journals.collect(office, ENTERPRISE, till.file())
    with office.read() as tx:
        assert [p.local_time for p in attendance.punches(tx, ENTERPRISE, FIRST, LAST)] == ["2026-11-02 08:59:00"]


def test_month(office: Database) -> None:
    """November of one member: sums, days, punches of an unverified source counted."""
    keep(office, ("2026-11-02 08:55:00", 0), ("2026-11-02 18:00:00", 1), ("2026-11-03 09:20:00", 0),
         ("2026-11-03 17:00:00", 1), ("2026-11-04 09:00:00", 0))  # fmt: skip
    keep(office, ("2026-11-05 08:55:00", 255), ("2026-11-05 19:00:00", 255), person=f"card:{SERIAL.hex()}",
         verified=True)  # fmt: skip
    total, days = month(office)
    assert len(days) == 30
    assert total._asdict() == {
        "member_number": "1", "name": "王伟", "department": "canteen", "planned": 21, "present": 3, "absent": 17,
        "incomplete": 1, "leave": 0, "late": 1, "late_min": 20, "early": 1, "early_min": 60,
        "worked_min": 480 + 400 + 480, "overtime_min": 65, "unverified": 5,
    }  # fmt: skip


def test_days_that_are_not_over_are_left_out(office: Database, clock: Clock) -> None:
    """In the middle of a month nobody is absent on a day to come, nor today."""
    clock.now_ms = int(datetime(2026, 11, 2, 16, 30, tzinfo=UTC).timestamp() * 1000)  # 00:30 of the 3rd, local
    assert list(month(office)[1]) == [date(2026, 11, 1), date(2026, 11, 2)]


def test_plans(office: Database) -> None:
    """A member's plan stands before his department's, that before everybody's; each from its day on."""
    with office.write() as tx:
        attendance.plan(tx, HR, ENTERPRISE, "department:canteen", date(2026, 11, 10), {6: "night"})
        attendance.plan(tx, HR, ENTERPRISE, "member:1", date(2026, 11, 20), {5: "office"})
        calendar = attendance.calendar(tx, ENTERPRISE, members.get(tx, ENTERPRISE, "1"), FIRST, LAST)
    working = {day.day: shift.name for day in calendar.special if (shift := calendar.shift(day))}
    before = dict.fromkeys((2, 3, 4, 5, 6, 9), "office")
    assert working == before | {15: "night", 21: "office", 28: "office"}


def test_special_days_and_leave(office: Database) -> None:
    """A holiday is nobody's working day, leave excuses on working days only, and both can be taken back."""
    with office.write() as tx:
        attendance.set_days(tx, HR, ENTERPRISE, "all", date(2026, 11, 2), date(2026, 11, 3), "off")
        attendance.set_days(tx, HR, ENTERPRISE, "member:1", date(2026, 11, 4), date(2026, 11, 8), "leave")
        attendance.set_days(tx, HR, ENTERPRISE, "all", date(2026, 11, 14), date(2026, 11, 14), "office")
        assert attendance.set_days(tx, HR, ENTERPRISE, "all", date(2026, 11, 3), date(2026, 11, 3), "plan") == 1
    total, days = month(office)
    shown = [days[date(2026, 11, n)] for n in (2, 3, 4, 7, 14)]
    assert shown == [Presence.REST, Presence.ABSENT, Presence.LEAVE, Presence.REST, Presence.ABSENT]
    assert (total.planned, total.leave) == (21, 3)


def test_night_shift_over_the_end_of_the_month(office: Database) -> None:
    """Who goes home on the first of the next month was there on the last day of this one."""
    keep(office, ("2026-11-30 21:58:00", 0), ("2026-12-01 06:02:00", 1))
    with office.write() as tx:
        attendance.plan(tx, HR, ENTERPRISE, "member:1", date(2026, 11, 30), dict.fromkeys(range(7), "night"))
    assert month(office)[1][date(2026, 11, 30)] is Presence.PRESENT


def test_correction_needs_two(office: Database) -> None:
    """A forgotten punch counts once another operator approved it, never its proposer; both are in the audit log."""
    keep(office, ("2026-11-02 09:00:00", 0))
    with office.write() as tx:
        one = attendance.propose(tx, HR, ENTERPRISE, "1", "2026-11-02 18:00:00", OUT, "forgot")
    assert month(office)[1][date(2026, 11, 2)] is Presence.NO_OUT
    with pytest.raises(Refused) as alone, office.write() as tx:
        attendance.decide(tx, HR, ENTERPRISE, one, approve=True)
    assert alone.value.reason == "two_operators"
    for _ in range(2):
        with office.write() as tx:
            attendance.decide(tx, ADMIN, ENTERPRISE, one, approve=True)
    assert month(office)[1][date(2026, 11, 2)] is Presence.PRESENT
    with pytest.raises(Conflict), office.write() as tx:
        attendance.decide(tx, ADMIN, ENTERPRISE, one, approve=False)
    with office.read() as tx:
        (row,) = attendance.corrections(tx, ENTERPRISE, FIRST, LAST)
        events = [e["event"] for e in tx.all("SELECT event FROM audit_event")]
    assert (row["decision"], row["decided_by"]) == ("approved", ADMIN.name)
    assert events.count(audit.Event.ATTENDANCE_CORRECTED) == 2


def test_void_and_withdrawn(office: Database) -> None:
    """A void takes back what was punched at that time, the evidence stays; a proposer may withdraw his own."""
    keep(office, ("2026-11-02 09:00:00", 0), ("2026-11-02 18:00:00", 1))
    with office.write() as tx:
        gone = attendance.propose(tx, HR, ENTERPRISE, "1", "2026-11-02 18:00:00", None, "another's card")
        kept = attendance.propose(tx, HR, ENTERPRISE, "1", "2026-11-02 09:00:00", None, "mistake")
        attendance.decide(tx, ADMIN, ENTERPRISE, gone, approve=True)
        attendance.decide(tx, HR, ENTERPRISE, kept, approve=False)
    assert month(office)[1][date(2026, 11, 2)] is Presence.NO_OUT
    with office.read() as tx:
        assert len(list(attendance.punches(tx, ENTERPRISE, FIRST, LAST, "1"))) == 2
    with pytest.raises(NotFound), office.write() as tx:
        attendance.propose(tx, HR, ENTERPRISE, "1", "2026-11-02 18:00:00", None, "again")


def test_refusals(office: Database) -> None:
    """Who may not, does not; unknown shifts and members, changed rules and impossible days are refused."""
    auditor = Operator(ENTERPRISE, "au", Role.AUDITOR)
    day = date(2026, 11, 2)
    with office.write() as tx:
        attendance.define_shift(tx, HR, ENTERPRISE, OFFICE)
        cases: list[tuple[Callable[[], object], type[OneCardError]]] = [
            (lambda: attendance.define_shift(tx, auditor, ENTERPRISE, OFFICE), Refused),
            (lambda: attendance.plan(tx, auditor, ENTERPRISE, "all", day, {}), Refused),
            (lambda: attendance.set_days(tx, auditor, ENTERPRISE, "all", day, day, "off"), Refused),
            (lambda: attendance.propose(tx, auditor, ENTERPRISE, "1", "2026-11-02 09:00:00", IN, "x"), Refused),
            (lambda: attendance.decide(tx, auditor, ENTERPRISE, "x", approve=True), Refused),
            (lambda: attendance.define_shift(tx, HR, ENTERPRISE, replace(OFFICE, flex_min=5)), Conflict),
            (lambda: attendance.define_shift(tx, HR, ENTERPRISE, replace(OFFICE, name="off")), FormatError),
            (lambda: attendance.plan(tx, HR, ENTERPRISE, "all", day, {0: "none"}), NotFound),
            (lambda: attendance.plan(tx, HR, ENTERPRISE, "all", day, {7: "office"}), FormatError),
            (lambda: attendance.set_days(tx, HR, ENTERPRISE, "all", day, FIRST, "off"), FormatError),
            (lambda: attendance.set_days(tx, HR, ENTERPRISE, "all", day, day, "none"), NotFound),
            (lambda: attendance.subject_of(tx, ENTERPRISE, "2"), NotFound),
            (lambda: attendance.subject_of(tx, ENTERPRISE, "1", "canteen"), ConfigError),
            (lambda: attendance.propose(tx, HR, ENTERPRISE, "1", "2026-11-02", IN, "x"), FormatError),
            (lambda: attendance.propose(tx, HR, ENTERPRISE, "1", "2026-11-02 25:00:00", IN, "x"), FormatError),
            (lambda: attendance.propose(tx, HR, ENTERPRISE, "1", "2026-11-02 09:00:00", IN, ""), FormatError),
            (lambda: attendance.decide(tx, HR, ENTERPRISE, "x", approve=True), NotFound),
            (lambda: attendance.month_days("2026-13"), FormatError),
        ]
        for act, error in cases:
            with pytest.raises(error):
                act()
