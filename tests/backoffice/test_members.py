"""Members: all rows of a spreadsheet or none, every bad row named; nobody inherits another's number or card."""

from __future__ import annotations

import codecs
import csv
import io
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime
from pathlib import Path

import openpyxl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backoffice import members, sheets
from backoffice.database import Database, Tx
from backoffice.members import Member, Report
from backoffice.operators import Operator, Role
from cardlib.errors import ConfigError, Conflict, FormatError, NotFound, Refused
from tests.backoffice.conftest import ENTERPRISE

LI = Operator(ENTERPRISE, "li", Role.ISSUER)
HEADING = "member_number,name,phone_number,department,groups,valid_from,valid_until"
Import = Callable[..., Report]


@pytest.fixture
def load(db: Database, tmp_path: Path) -> Import:
    """Import what a file of these rows (or these bytes) holds."""

    def run(*rows: str, raw: bytes = b"", heading: str = HEADING, dry_run: bool = False) -> Report:
        path = tmp_path / "members.csv"
        path.write_bytes(raw or "\n".join([heading, *rows]).encode())
        with db.write() as tx:
            return members.import_file(tx, LI, ENTERPRISE, path, dry_run=dry_run)

    return run


def everybody(db: Database) -> list[Member]:
    with db.read() as tx:
        return members.listing(tx, ENTERPRISE)


def faults(report: Report) -> list[tuple[int, str, str]]:
    return [fault[:3] for fault in report.faults]


def give_card(db: Database, member_number: str, state: str = "active") -> None:
    with db.write() as tx:
        tx.execute(
            "INSERT INTO card_application (enterprise_id, card_serial, member_number, kind, state, slot, key_version,"
            " starts, expires, created_ms, changed_ms) VALUES (?, ?, ?, 1, ?, 1, 1, '2026-01-01', '2031-01-01', 0, 0)",
            (ENTERPRISE, member_number.encode().rjust(8), member_number, state),
        )


def test_sample(db: Database) -> None:
    """The sample that ships with the project imports without a fault: 50 members."""
    with db.write() as tx:
        report = members.import_file(tx, LI, ENTERPRISE, members.sample())
    report.check()
    assert report[:4] == (50, 50, 0, 0)
    first, *_, last = everybody(db)
    assert first == ("E001", "陈建国", "19900000001", "行政部", 0b11, "", "", "active")
    assert last == ("E050", "欧阳若兰", "", "物流部", 0b100001, "", "2027-06-30", "active")


def test_import_twice(load: Import, db: Database) -> None:
    """The same file again changes nothing; a changed row changes its member, the others stay."""
    rows = ("1,Li Wei,13800138000,Canteen,1;3,,", "2,Wang Fang,13900139000,,,2026-01-01,2027-12-31")
    assert load(*rows)[:4] == (2, 2, 0, 0)
    assert load(*rows)[:4] == (2, 0, 0, 2)
    assert load("1,Li Wei,13800138000,Kitchen,2,,")[:4] == (1, 0, 1, 0)
    assert everybody(db) == [
        Member("1", "Li Wei", "13800138000", "Kitchen", 2),
        Member("2", "Wang Fang", "13900139000", "", 0, "2026-01-01", "2027-12-31"),
    ]


def test_two_administrators_import_at_once(db: Database) -> None:
    """Of two who import the same file at once, one adds everybody and the other finds everybody there."""

    def run(_: int) -> Report:
        with db.write() as tx:
            return members.import_file(tx, LI, ENTERPRISE, members.sample())

    with ThreadPoolExecutor(2) as pool:
        reports = sorted(pool.map(run, range(2)))
    assert [report[:4] for report in reports] == [(50, 0, 0, 50), (50, 50, 0, 0)]


def test_every_bad_row_is_named_and_nothing_imported(load: Import, db: Database) -> None:
    """Each fault has its row as the spreadsheet shows it, column and reason; one bad row stops all."""
    load("9,Zhao,13700137000,,,,")
    report = load(
        "1,Li Wei,13800138000,,,,",
        ",Nobody,,,,,",
        "3,,,,,,",
        "",
        "a b,Space,,,,,",
        "6,=cmd(),,,,,",
        "7,Ok,12ab,,0;64,2026-13-01,tomorrow",
        "8,Ok,,,,2027-01-01,2026-01-01",
        "1,Twice,,,,,",
        "10,Ok,13700137000,,,,",
        "11,Ok,13800138000,,,,",
        "12,Ok,,,,,,surplus",
        "13," + "x" * 65 + ",,,,,",
    )
    assert faults(report) == [
        (3, "member_number", "missing"),
        (4, "name", "missing"),
        (6, "member_number", "format"),
        (7, "name", "format"),
        (8, "groups", "format"),
        (8, "phone_number", "format"),
        (8, "valid_from", "format"),
        (8, "valid_until", "format"),
        (9, "valid_until", "format"),
        (10, "member_number", "repeated"),
        (11, "phone_number", "taken"),
        (12, "phone_number", "taken"),
        (13, "column 8", "format"),
        (14, "name", "format"),
    ]
    assert [member.member_number for member in everybody(db)] == ["9"]
    with pytest.raises(FormatError, match="14 faults, nothing was imported; the first: row 3"):
        report.check()


def test_dry_run(load: Import, db: Database) -> None:
    """A dry run reports the same and imports nothing."""
    assert load("1,Li,,,,,", dry_run=True) == (1, 1, 0, 0, (), True)
    assert load("1,,,,,,", dry_run=True).faults
    assert everybody(db) == []


@pytest.mark.parametrize(
    ("heading", "expected"),
    [
        ("member_number,name,colour", [(1, "colour", "heading")]),
        ("member_number,name,name", [(1, "name", "heading")]),
        ("member_number,phone", [(1, "name", "heading")]),
        (
            "1,Li Wei",
            [(1, "1", "heading"), (1, "Li Wei", "heading"), (1, "member_number", "heading"), (1, "name", "heading")],
        ),
        ("member_number,,name", [(1, "(empty)", "heading")]),
    ],
)
def test_bad_heading(load: Import, heading: str, expected: list[tuple[int, str, str]]) -> None:
    """Unknown, repeated and missing columns are named; no column is silently ignored."""
    assert faults(load("1,x,y", heading=heading)) == expected


def test_columns_in_any_order_and_language(load: Import, db: Database) -> None:
    """Chinese and English headings in any order; what the file has no column for stays as it is."""
    load("1,Li Wei,13800138000,Canteen,1,2026-01-01,")
    load("李伟,1,2027年12月31日", heading="姓名,工号,有效期至")
    assert everybody(db) == [Member("1", "李伟", "13800138000", "Canteen", 1, "2026-01-01", "2027-12-31")]
    assert faults(load("李伟,1,2025/1/1", heading=" 姓名 ,员工编号,VALID UNTIL")) == [(2, "valid_until", "format")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_encodings_and_delimiters(load: Import, db: Database, encoding: str, delimiter: str) -> None:
    """CSV files as Excel writes them in China come in right."""
    text = f"{HEADING}\r\n1,欧阳若兰,１３８ 0013 8000,食堂,1,2026/1/2,".replace(",", delimiter)
    load(raw=text.encode(encoding)).check()
    assert everybody(db) == [Member("1", "欧阳若兰", "13800138000", "食堂", 1, "2026-01-02")]


def workbook(*rows: list[object]) -> bytes:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    for row in (HEADING.split(","), *rows):
        sheet.append(row)
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


MORNING = datetime(2027, 12, 31, 8, 0)  # noqa: DTZ001  # cells know no time zone


def test_xlsx(load: Import, db: Database) -> None:
    """Numbers, dates and times in cells of an XLSX file are read as what they look like; empty rows don't count."""
    raw = workbook(
        [1, "欧阳若兰", 13800138000, None, 3, date(2026, 1, 2), MORNING],
        [],
        ["E2", "Li Wei", "13900139000", "Canteen", "1;2"],
        ["E3", "Zhao", 12.5],
    )
    assert faults(load(raw=raw)) == [(5, "phone_number", "format")]
    load(raw=workbook([1.0, "欧阳若兰", 13800138000.0, None, 3, date(2026, 1, 2), MORNING])).check()
    assert everybody(db) == [Member("1", "欧阳若兰", "13800138000", "", 4, "2026-01-02", "2027-12-31")]


def test_formulas_in_xlsx_are_not_data(load: Import) -> None:
    """A formula in a cell gives its kept value or nothing, never its text."""
    assert faults(load(raw=workbook(["1", "=1+1"]))) == [(2, "name", "missing")]


@pytest.mark.parametrize(
    "raw",
    [
        b"\n\n\n",
        b"\xff\xfe\xfd",
        b"\x81",
        b"member_number,name\n1,a\0b",
        HEADING.encode() + b'\n1,"unclosed',
        HEADING.encode() + b'\n1,"a"b,',
        HEADING.encode() + b"\n1," + b"x" * 300,
        b"a," * 70,
        b"PK\3\4 no archive",
        workbook([1, "a"])[:-200],
        workbook([1, "a"]).replace(b"xl/workbook.xml", b"xl/wrokbook.xml"),
        bytes(sheets.MAX_FILE + 1),
    ],
)
def test_no_spreadsheet(load: Import, db: Database, raw: bytes) -> None:
    """A file that is no spreadsheet, damaged or too large, is refused as a whole."""
    with pytest.raises(FormatError):
        load(raw=raw)
    assert everybody(db) == []


def test_archive_that_unpacks_to_too_much(load: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file that would unpack to much more is refused before unpacking."""
    monkeypatch.setattr(sheets, "MAX_UNPACKED", 1 << 20)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/workbook.xml", bytes(2 << 20))
    with pytest.raises(FormatError, match="unpacks"):
        load(raw=file.getvalue())


def test_too_many_rows(load: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit of rows the file is refused."""
    monkeypatch.setattr(sheets, "MAX_ROWS", 3)
    load(*[f"{n},a,,,,," for n in range(3)]).check()
    with pytest.raises(FormatError, match="split"):
        load(*[f"{n},a,,,,," for n in range(4)])


def test_unreadable_file(db: Database, tmp_path: Path) -> None:
    """A missing file and a folder are errors of who named them."""
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(ConfigError), db.write() as tx:
            members.import_file(tx, LI, ENTERPRISE, path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_read_or_refused(tmp_path: Path, raw: bytes) -> None:
    """Whatever a file holds, reading it raises only the project's own error."""
    path = tmp_path / "x.csv"
    for content in (raw, b"PK\3\4" + raw):
        path.write_bytes(content)
        try:
            assert sheets.read(path)
        except FormatError as error:
            assert str(error)  # noqa: PT017  # any FormatError will do


def test_numbers_may_be_exchanged(load: Import, db: Database) -> None:
    """Two members without cards may exchange numbers in one file, or hand one on."""
    load("1,Li,13800138000,,,,", "2,Wang,13900139000,,,,")
    load("1,Li,13900139000,,,,", "2,Wang,13800138000,,,,").check()
    load("1,Li,,,,,", "3,Zhao,13900139000,,,,").check()
    assert [member.phone_number for member in everybody(db)] == ["", "13800138000", "13900139000"]


@pytest.mark.parametrize("state", ["slot", "issued", "posted", "active", "lost"])
def test_card_ties_name_and_number(load: Import, db: Database, state: str) -> None:
    """While a member has a card, neither name nor number changes hands; the reason says what to do."""
    load("1,Li,13800138000,,,,", "2,Wang,,,,,")
    give_card(db, "1", state)
    assert faults(load("1,Zhao,13800138000,,,,")) == [(2, "name", "transfer")]
    assert faults(load("1,Li,13700137000,,,,")) == [(2, "phone_number", "number_changed")]
    assert faults(load("2,Wang,13800138000,,,,")) == [(2, "phone_number", "transfer")]
    load("1,Li,13800138000,Canteen,5,,").check()
    for member, reason in (
        (Member("1", "Zhao", "13800138000"), "transfer"),
        (Member("1", "Li", "13700137000"), "number_changed"),
        (Member("2", "Wang", "13800138000"), "transfer"),
    ):
        with pytest.raises(Refused) as refused, db.write() as tx:
            members.change(tx, LI, ENTERPRISE, member)
        assert refused.value.reason == reason
        assert "13800138000" not in str(refused.value)


@pytest.mark.parametrize("state", ["replaced", "cancelled"])
def test_free_after_the_card_is_gone(load: Import, db: Database, state: str) -> None:
    """After cancelling, name and number may change."""
    load("1,Li,13800138000,,,,")
    give_card(db, "1", state)
    load("1,Zhao,13700137000,,,,").check()
    load("2,Wang,13800138000,,,,").check()


def test_one_by_one(db: Database) -> None:
    """A member added, changed and found by hand follows the same rules as an imported one."""
    with db.write() as tx:
        members.add(tx, LI, ENTERPRISE, Member("1", " Li ", "+86 138 0013 8000", groups=5))
        assert members.by_phone(tx, ENTERPRISE, "13800138000") == Member("1", "Li", "13800138000", groups=5)
        members.change(tx, LI, ENTERPRISE, Member("1", "Li", "", "Canteen"))
        assert members.get(tx, ENTERPRISE, "1").department == "Canteen"
        members.add(tx, LI, ENTERPRISE, Member("2", "Wang", "13800138000"))
    with pytest.raises(Conflict, match="exists"), db.write() as tx:
        members.add(tx, LI, ENTERPRISE, Member("2", "Zhao"))
    with pytest.raises(Conflict, match="is member 2's"), db.write() as tx:
        members.add(tx, LI, ENTERPRISE, Member("3", "Zhao", "13800138000"))
    with pytest.raises(NotFound), db.write() as tx:
        members.change(tx, LI, ENTERPRISE, Member("4", "Zhao"))
    with pytest.raises(NotFound), db.read() as tx:
        members.by_phone(tx, ENTERPRISE, "13700137000")
    with pytest.raises(NotFound), db.read() as tx:
        members.get(tx, 2002, "1")


@pytest.mark.parametrize(
    "member",
    [
        Member("", "Li"),
        Member("1", " "),
        Member("1", "Li", "12"),
        Member("1", "Li", groups=1 << 63),
        Member("1", "Li", groups=-1),
        Member("1", "Li", valid_until="never"),
        Member("1", "Li", valid_from="2027-01-02", valid_until="2027-01-01"),
        Member("1", "Li\u202e"),
        Member("1", "Li", state="dead"),
    ],
)
def test_bad_member(db: Database, member: Member) -> None:
    """A member with a malformed field is refused."""
    with pytest.raises(FormatError), db.write() as tx:
        members.add(tx, LI, ENTERPRISE, member)


def test_leaving(load: Import, db: Database) -> None:
    """Who leaves leaves no personal data and frees the number, but not with a card in hand; he may come back."""
    load("1,Li,13800138000,Canteen,1,,", "2,Wang,,,,,")
    give_card(db, "2")
    with db.write() as tx:
        for _ in range(2):
            members.leave(tx, LI, ENTERPRISE, "1")
        assert members.get(tx, ENTERPRISE, "1") == Member("1", "", state="left")
    with pytest.raises(Refused) as refused, db.write() as tx:
        members.leave(tx, LI, ENTERPRISE, "2")
    assert refused.value.reason == "has_card"
    assert [member.member_number for member in everybody(db)] == ["2"]
    load("3,Zhao,13800138000,,,,", "1,Li,13700137000,,,,").check()
    assert [member.member_number for member in everybody(db)] == ["1", "2", "3"]


@pytest.mark.parametrize("kind", ["csv", "xlsx"])
def test_export_and_import_again(load: Import, db: Database, tmp_path: Path, kind: str) -> None:
    """What is exported imports again without a change, formula characters and all."""
    load("1,欧阳若兰,13800138000,Canteen,1;63,2026-01-01,2027-12-31", "2,Wang,,,,,")
    with db.write() as tx:
        tx.execute("UPDATE member SET department = '=1+1' WHERE member_number = '2'")
        raw = members.export(tx, LI, ENTERPRISE, kind)
    (tmp_path / "x").write_bytes(raw)
    assert sheets.read(tmp_path / "x")[2].cells[:4] == ("2", "Wang", "", "=1+1")
    with db.write() as tx:
        tx.execute("UPDATE member SET department = 'x' WHERE member_number = '2'")
        raw = members.export(tx, LI, ENTERPRISE, kind)
    assert load(raw=raw)[:4] == (2, 0, 0, 2)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "\nx"])
def test_no_formula_leaves_the_house(text: str) -> None:
    """No exported cell is one that a spreadsheet program would run."""
    raw = sheets.write_csv(["a", "b"], [[text, 5]])
    assert raw.startswith(codecs.BOM_UTF8)
    assert list(csv.reader(io.StringIO(raw.decode("utf-8-sig"), newline="")))[1] == [f"'{text}", "5"]
    book = openpyxl.load_workbook(io.BytesIO(sheets.write_xlsx("s", ["a", "b"], [[text, 5]])))
    assert book.worksheets[0]["A2"].data_type in "sn"


def test_permissions(db: Database) -> None:
    """An auditor looks, a cashier doesn't change; neither imports."""
    acts: list[Callable[[Tx, Operator], object]] = [
        lambda tx, who: members.import_file(tx, who, ENTERPRISE, members.sample()),
        lambda tx, who: members.add(tx, who, ENTERPRISE, Member("1", "Li")),
        lambda tx, who: members.change(tx, who, ENTERPRISE, Member("1", "Li")),
        lambda tx, who: members.leave(tx, who, ENTERPRISE, "1"),
    ]
    for role in (Role.AUDITOR, Role.FINANCE):
        for act in acts:
            with pytest.raises(Refused, match="may not"), db.write() as tx:
                act(tx, Operator(ENTERPRISE, "x", role))
        with db.read() as tx:
            assert members.export(tx, Operator(ENTERPRISE, "x", role), ENTERPRISE)


def test_name_on_card() -> None:
    """A name too long for the card is cut between characters, never inside one."""
    assert members.name_on_card("欧阳若兰") == "欧阳若兰"
    assert members.name_on_card("阿不都热合曼买买提") == "阿不都热合曼"
    assert members.name_on_card("Christopher Alexander") == "Christopher Alexande"
