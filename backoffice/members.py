"""Members: who they are, import from a spreadsheet, export; one phone number for one person (requirement D2)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from backoffice import audit, sheets
from backoffice.audit import Event
from backoffice.chips import mask, phone_number
from backoffice.database import Row as DbRow
from backoffice.database import Tx
from backoffice.operators import Operator, Permission, require
from cardlib.errors import Conflict, FormatError, NotFound, Refused

MAX_FAULTS = 1000
GROUPS = 63
NAME_ON_CARD = 20
"""Bytes of UTF-8 that 0016 holds (profile.md)."""
_NUMBER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,15}")
LIVE = "('slot', 'issued', 'posted', 'active', 'lost')"
"""States in which a card ties its member to name and number."""


class Member(NamedTuple):
    """A member. ``phone_number`` may be empty; ``groups`` is a bitmap, bit 0 is group 1; dates are ISO or empty."""

    member_number: str
    name: str
    phone_number: str = ""
    department: str = ""
    groups: int = 0
    valid_from: str = ""
    valid_until: str = ""
    state: str = "active"


class Fault(NamedTuple):
    """What is wrong with a row, for the person who filled it in; ``reason`` is a stable code."""

    row: int
    column: str
    reason: str
    message: str


class Report(NamedTuple):
    """What an import did, or would do. With faults nothing is imported."""

    rows: int
    added: int
    changed: int
    unchanged: int
    faults: tuple[Fault, ...]
    dry_run: bool

    def check(self) -> None:
        """Raise FormatError when there are faults."""
        if self.faults:
            first = self.faults[0]
            raise FormatError(
                f"{len(self.faults)} faults, nothing was imported; the first: row {first.row}, {first.column}:"
                f" {first.message}"
            )


def _text(limit: int) -> Callable[[str], str]:
    def read(text: str) -> str:
        text = unicodedata.normalize("NFC", text)
        if len(text) > limit or not text.isprintable() or text.startswith(("=", "+", "-", "@", "#")):
            raise FormatError(f"at most {limit} printable characters, not beginning with = + - @ #")
        return text

    return read


def _member_number(text: str) -> str:
    if not _NUMBER.fullmatch(text):
        raise FormatError("1 to 16 of A-Z a-z 0-9 . _ -, beginning with a letter or digit")
    return text


def _groups(text: str) -> int:
    bitmap = 0
    for part in re.split(r"[\s,;，；、]+", text):
        if not (part.isascii() and part.isdecimal() and 1 <= int(part[:9]) <= GROUPS):
            raise FormatError(f"groups are numbers from 1 to {GROUPS}, such as 1;4")
        bitmap |= 1 << int(part) - 1
    return bitmap


def _date(text: str) -> str:
    match = re.fullmatch(r"(\d{4})[-/.年](\d{1,2})[-/.月](\d{1,2})日?", text, re.ASCII)
    try:
        found = date(*map(int, match.groups())) if match else None
    except ValueError:
        found = None
    if found is None or not 2000 <= found.year <= 2099:
        raise FormatError("a date like 2027-12-31, from 2000 to 2099")
    return found.isoformat()


class Column(NamedTuple):
    """A column of the spreadsheet: the names it may have in the heading, and how its text is read."""

    names: tuple[str, ...]
    read: Callable[[str], str | int]
    needed: bool = False


COLUMNS: dict[str, Column] = {
    "member_number": Column(("member number", "工号", "员工编号", "成员编号"), _member_number, needed=True),
    "name": Column(("姓名",), _text(64), needed=True),
    "phone_number": Column(("phone number", "phone", "手机号", "手机号码", "电话"), phone_number),
    "department": Column(("部门",), _text(64)),
    "groups": Column(("门禁组", "组"), _groups),
    "valid_from": Column(("valid from", "有效期自", "生效日期"), _date),
    "valid_until": Column(("valid until", "有效期至", "失效日期"), _date),
}


def sample() -> Path:
    """The spreadsheet of 50 members that ships with the project."""
    return Path(str(resources.files("backoffice").joinpath("samples", "members.csv")))


def import_file(tx: Tx, actor: Operator, enterprise_id: int, path: Path, *, dry_run: bool = False) -> Report:
    """Add and update members from a CSV or XLSX file, all rows or none; the report names every bad row.

    A repeat changes nothing. Members not in the file stay as they are. Raises Refused, ConfigError, FormatError.
    """
    require(actor, Permission.MEMBER_CHANGE, enterprise_id)
    rows = sheets.read(path)
    faults: list[Fault] = []
    known = {member.member_number: member for member in _select(tx, enterprise_id, "")}
    wanted = _parse(rows, known, faults)
    _check_rules(tx, enterprise_id, wanted, known, faults)
    fresh = {member.member_number: member for member in wanted.values()}
    added = [member for number, member in fresh.items() if number not in known]
    changed = [member for number, member in fresh.items() if number in known and known[number] != member]
    faults.sort()
    unchanged = len(fresh) - len(added) - len(changed)
    report = Report(len(rows) - 1, len(added), len(changed), unchanged, tuple(faults[:MAX_FAULTS]), dry_run)
    if faults or dry_run:
        return report
    _write(tx, enterprise_id, added, changed)
    count = len(added) + len(changed)
    audit.record(tx, enterprise_id, Event.MEMBERS_IMPORTED, actor.name, f"enterprise:{enterprise_id}", count=count)
    return report


def _parse(rows: Sequence[sheets.Row], known: dict[str, Member], faults: list[Fault]) -> dict[int, Member]:
    """Read the rows by their heading; returns the members by row number, faulty rows left out.

    What the file has no column for stays as it is.
    """
    heading = _heading(rows[0], faults)
    members: dict[int, Member] = {}
    if faults:
        return members
    blank = Member("", "")._asdict()
    for number, cells in rows[1:]:
        texts = dict(zip(heading, (*cells, *[""] * len(heading)), strict=False))
        values: dict[str, Any] = {}
        before = len(faults)
        for column, text in texts.items():
            try:
                values[column] = COLUMNS[column].read(text) if text else blank[column]
            except FormatError as error:
                faults.append(Fault(number, column, "format", str(error)))
            if COLUMNS[column].needed and not text:
                faults.append(Fault(number, column, "missing", "needed"))
        if len(cells) > len(heading):
            faults.append(Fault(number, f"column {len(heading) + 1}", "format", "a cell beyond the heading"))
        if len(faults) == before:
            member = known.get(values["member_number"], Member("", ""))._replace(**values, state="active")
            members[number] = member
            if member.valid_from > (member.valid_until or "9999"):
                faults.append(Fault(number, "valid_until", "format", "before valid_from"))
    return members


def _heading(row: sheets.Row, faults: list[Fault]) -> list[str]:
    names = {name: column for column, rule in COLUMNS.items() for name in (column, *rule.names)}
    heading = []
    for text in row.cells:
        column = names.get(unicodedata.normalize("NFKC", text).strip().lower(), "")
        if not column or column in heading:
            what = "appears twice" if column else f"unknown: there are {', '.join(COLUMNS)}"
            faults.append(Fault(row.number, text[:32] or "(empty)", "heading", what))
        heading.append(column)
    for column, rule in COLUMNS.items():
        if rule.needed and column not in heading:
            faults.append(Fault(row.number, column, "heading", "this column is needed"))
    return heading


def _check_rules(
    tx: Tx, enterprise_id: int, wanted: dict[int, Member], known: dict[str, Member], faults: list[Fault]
) -> None:
    """Rules over rows and members: nobody twice, no number for two, nothing that changes hands under a card."""
    holders = _live_holders(tx, enterprise_id)
    row_of: dict[str, int] = {}
    for number, member in wanted.items():
        first = row_of.setdefault(member.member_number, number)
        if first != number:
            faults.append(Fault(number, "member_number", "repeated", f"the same as in row {first}"))
    in_file = {member.member_number for member in wanted.values()}
    owners = {m.phone_number: (m.member_number, 0) for m in known.values() if m.member_number not in in_file}
    for number, member in wanted.items():
        if number != row_of[member.member_number]:
            continue
        fault = _changes_hands(member, known.get(member.member_number), holders)
        if fault:
            faults.append(Fault(number, *fault))
        if not member.phone_number:
            continue
        owner, row = owners.setdefault(member.phone_number, (member.member_number, number))
        if owner != member.member_number:
            faults.append(Fault(number, "phone_number", *_taken(member.phone_number, owner, row, owner in holders)))


def _taken(number: str, owner: str, row: int, has_card: bool) -> tuple[str, str]:
    where = f"row {row}" if row else f"member {owner}"
    if has_card:
        return "transfer", f"{mask(number)} is {where}'s: its card can't be transferred to another person"
    return "taken", f"{mask(number)} is {where}'s"


def _changes_hands(new: Member, old: Member | None, holders: set[str]) -> tuple[str, str, str] | None:
    if old is None or new.member_number not in holders:
        return None
    if new.phone_number != old.phone_number:
        message = "a changed number means cancel the card and issue again"
        return "phone_number", "number_changed", message
    if new.name != old.name:
        return "name", "transfer", "a member's card can't be transferred to another person: cancel it first"
    return None


def _live_holders(tx: Tx, enterprise_id: int) -> set[str]:
    sql = f"SELECT DISTINCT member_number FROM card_application WHERE enterprise_id = ? AND state IN {LIVE}"
    return {row[0] for row in tx.all(sql, (enterprise_id,))}


def _write(tx: Tx, enterprise_id: int, added: Sequence[Member], changed: Sequence[Member]) -> None:
    # Numbers may be exchanged between members: all are freed before any is given.
    free = "UPDATE member SET phone_number = NULL WHERE enterprise_id = ? AND member_number = ?"
    tx.executemany(free, [(enterprise_id, member.member_number) for member in changed])
    tx.executemany(
        "UPDATE member SET name = ?, phone_number = ?, department = ?, groups = ?, valid_from = ?, valid_until = ?,"
        " state = ?, changed_ms = ? WHERE enterprise_id = ? AND member_number = ?",
        [(m.name, m.phone_number or None, *m[3:], tx.now_ms, enterprise_id, m.member_number) for m in changed],
    )
    tx.executemany(
        "INSERT INTO member VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [(enterprise_id, *m[:2], m.phone_number or None, *m[3:], tx.now_ms, tx.now_ms) for m in added],
    )


def add(tx: Tx, actor: Operator, enterprise_id: int, member: Member) -> None:
    """Add one member. Raises Refused, Conflict when member or phone number are there, FormatError."""
    require(actor, Permission.MEMBER_CHANGE, enterprise_id)
    member = _checked(member)
    if tx.one(_WHERE.format("member_number"), (enterprise_id, member.member_number)):
        raise Conflict(f"member {member.member_number} exists")
    _check_number(tx, enterprise_id, member)
    _write(tx, enterprise_id, [member], [])
    audit.record(tx, enterprise_id, Event.MEMBER_CHANGED, actor.name, f"member:{member.member_number}", outcome="added")


def change(tx: Tx, actor: Operator, enterprise_id: int, member: Member) -> None:
    """Write a member anew; the same again changes nothing.

    Raises Refused("transfer" or "number_changed") when a card of the member forbids it, NotFound, Conflict.
    """
    require(actor, Permission.MEMBER_CHANGE, enterprise_id)
    member = _checked(member)
    old = get(tx, enterprise_id, member.member_number)
    if old == member:
        return
    fault = _changes_hands(member, old, _live_holders(tx, enterprise_id))
    if fault:
        raise Refused(fault[1], f"member {member.member_number}: {fault[2]}")
    _check_number(tx, enterprise_id, member)
    _write(tx, enterprise_id, [], [member])
    audit.record(
        tx, enterprise_id, Event.MEMBER_CHANGED, actor.name, f"member:{member.member_number}", outcome="changed"
    )


_WHERE = "SELECT member_number FROM member WHERE enterprise_id = ? AND {} = ?"


def _checked(member: Member) -> Member:
    """A member as its columns' rules read it. Raises FormatError naming the column."""
    groups = member.groups
    if not 0 <= groups < 1 << GROUPS or member.state not in ("active", "left"):
        raise FormatError("member: groups or state are out of range")
    texts = member._asdict()
    for column, rule in COLUMNS.items():
        if column == "groups":
            continue
        text = texts[column].strip()
        if rule.needed and not text:
            raise FormatError(f"{column} is needed")
        try:
            texts[column] = rule.read(text) if text else ""
        except FormatError as error:
            raise FormatError(f"{column}: {error}") from error
    if texts["valid_from"] > (texts["valid_until"] or "9999"):
        raise FormatError("valid_until: before valid_from")
    return Member(**texts)


def _check_number(tx: Tx, enterprise_id: int, member: Member) -> None:
    owner = tx.value(_WHERE.format("phone_number"), (enterprise_id, member.phone_number or None))
    if owner not in (None, member.member_number):
        reason, message = _taken(member.phone_number, owner, 0, owner in _live_holders(tx, enterprise_id))
        raise Refused(reason, message) if reason == "transfer" else Conflict(message)


def leave(tx: Tx, actor: Operator, enterprise_id: int, member_number: str) -> None:
    """A member leaves: personal data go, the number is free (requirement D8); a repeat changes nothing.

    Raises Refused("has_card") while a card is not cancelled, NotFound.
    """
    require(actor, Permission.MEMBER_CHANGE, enterprise_id)
    get(tx, enterprise_id, member_number)
    if member_number in _live_holders(tx, enterprise_id):
        raise Refused("has_card", f"member {member_number} has a card: cancel it first")
    tx.execute(
        "UPDATE member SET name = '', phone_number = NULL, department = '', groups = 0, state = 'left', changed_ms = ?"
        " WHERE enterprise_id = ? AND member_number = ?",
        (tx.now_ms, enterprise_id, member_number),
    )
    audit.record(tx, enterprise_id, Event.MEMBER_CHANGED, actor.name, f"member:{member_number}", outcome="left")


def get(tx: Tx, enterprise_id: int, member_number: str) -> Member:
    """One member. Raises NotFound."""
    found = _select(tx, enterprise_id, "AND member_number = ?", member_number)
    if not found:
        raise NotFound(f"no member {member_number} in enterprise {enterprise_id}")
    return found[0]


def by_phone(tx: Tx, enterprise_id: int, number: str) -> Member:
    """The member who has a phone number. Raises NotFound, FormatError."""
    found = _select(tx, enterprise_id, "AND phone_number = ?", phone_number(number))
    if not found:
        raise NotFound(f"no member of enterprise {enterprise_id} has that phone number")
    return found[0]


def listing(tx: Tx, enterprise_id: int, *, after: str = "", limit: int = 1000) -> list[Member]:
    """Active members by number, page by page."""
    return _select(
        tx, enterprise_id, "AND state = 'active' AND member_number > ? ORDER BY member_number LIMIT ?", after, limit
    )


def export(tx: Tx, actor: Operator, enterprise_id: int, kind: str = "csv") -> bytes:
    """All active members as a CSV or XLSX file that :func:`import_file` reads. Raises Refused."""
    require(actor, Permission.MEMBER_SHOW, enterprise_id)
    members = _select(tx, enterprise_id, "AND state = 'active' ORDER BY member_number")
    rows = [(*m[:4], groups_text(m.groups), m.valid_from, m.valid_until) for m in members]
    if kind == "xlsx":
        return sheets.write_xlsx("members", list(COLUMNS), rows)
    return sheets.write_csv(list(COLUMNS), rows)


def groups_text(bitmap: int) -> str:
    """Groups as people write them: ``1;4``."""
    return ";".join(str(bit + 1) for bit in range(GROUPS) if bitmap >> bit & 1)


def name_on_card(name: str) -> str:
    """The part of a name that fits on the card, cut between characters."""
    return name.encode()[:NAME_ON_CARD].decode(errors="ignore")


def _select(tx: Tx, enterprise_id: int, more: str, *params: str | int) -> list[Member]:
    columns = ", ".join(Member._fields)
    rows = tx.all(f"SELECT {columns} FROM member WHERE enterprise_id = ? {more}", (enterprise_id, *params))
    return [_member(row) for row in rows]


def _member(row: DbRow) -> Member:
    number, name, phone, *rest = row
    return Member(number, name, phone or "", *rest)
