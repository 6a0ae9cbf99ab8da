"""Configuration: good files are read, each mistake is named with its line."""

from __future__ import annotations

import contextlib
import re
import tomllib
from dataclasses import fields
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cardlib.errors import ConfigError
from terminals.attendance import Mode
from terminals.config import Kind, load, parse, schema
from terminals.doors import AntiPassback, Hardware, OsdpLine, Week
from terminals.policy import PurseOrder, Rules
from terminals.prices import Item, Period, Prices

GOOD = f"""version = 3
kind = "pos"
enterprise_id = 1001
journal = "/var/lib/onecard/journal.db"
lists = "/var/lib/onecard/lists.db"
list_root_key = "{"ab" * 32}"
utc_offset_min = 330

[rules]
payment_limit_fen = 5000
purse_order = "main_first"
balance_expires = 2026-12-31
serve_others_while_pending = false
"""


def test_a_good_file_is_read(tmp_path: Path) -> None:
    """Each setting lands in its field; the rules know enterprise and local time."""
    path = tmp_path / "pos.toml"
    path.write_text(GOOD)
    config = load(path)
    assert (config.version, config.kind, config.list_root_key) == (3, Kind.POS, b"\xab" * 32)
    assert config.rules == Rules(
        1001,
        330,
        PurseOrder.MAIN_FIRST,
        payment_limit_fen=5000,
        balance_expires=date(2026, 12, 31),
        serve_others_while_pending=False,
    )


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("version = 3", "version = 0", 1, "between 1"),
        ("version = 3", "version = 3.5", 1, "whole number"),
        ("version = 3", "version = true", 1, "whole number"),
        ('kind = "pos"', 'kind = "tram"', 2, "pos, access, attendance, recharge, issuing"),
        ("enterprise_id = 1001", "enterprise_id = 4294967296", 3, "between"),
        ("journal =", "jurnal =", 4, "did you mean journal"),
        ('lists = "/var/lib/onecard/lists.db"', 'lists = ""', 5, "file name"),
        ("abab", "xxab", 6, "64 hexadecimal"),
        ("= 5000", '= "5000"', 10, "whole number"),
        ("= 5000", "= -1", 10, "between"),
        ("= 5000", "= 100000000", 10, "between"),
        ('"main_first"', '"both"', 11, "subsidy_first"),
        ('"main_first"', "7", 11, "text"),
        ("2026-12-31", '"soon"', 12, "date"),
        ("2026-12-31", "2026-12-31T00:00:00Z", 12, "date"),
        ("= false", "= 0", 13, "true or false"),
        ("payment_limit_fen", "enterprise_id", 10, "no such setting"),
        ("payment_limit_fen = 5000", "list_normal_ms = 9\nlist_reduced_ms = 8", 11, "below list_normal_ms"),
        ("version = 3\n", "", 1, "version is missing"),
        ("[rules]", "[rules", 9, "line 9"),
    ],
)
def test_each_mistake_is_named_with_its_line(old: str, new: str, line: int, says: str) -> None:
    """A wrong value, name or type stops with the line and what belongs there."""
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        parse(GOOD.replace(old, new, 1), "pos.toml")
    assert f"line {line}" in str(caught.value)
    assert says in str(caught.value)


SELLING = (
    GOOD
    + """[prices]
unit_fen = 50
timed_fen = 7
timed_step_s = 30
refuse_outside = false

[discounts]
0 = 80
15 = 200

[[period]]
name = "lunch"
from = "11:00"
until = "13:00"
price_fen = 1200
times = 1
limit_fen = 2000

[[period]]
name = "night"
from = "22:00"
until = "02:00"

[[menu]]
code = "101"
name = "米饭"
price_fen = 150

[[menu]]
code = "A2"
name = "soup"
price_fen = 333
"""
)


def test_prices_are_read() -> None:
    """Periods are numbered as they stand; groups that are not named pay in full."""
    assert parse(SELLING).rules.prices == Prices(
        (Period(1, "lunch", 660, 780, 1_200, 1, 2_000), Period(2, "night", 1_320, 120)),
        False,
        (Item("101", "米饭", 150), Item("A2", "soup", 333)),
        50,
        7,
        30,
        (80, *(100,) * 14, 200),
    )


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("unit_fen = 50", "unit_fen = -1", 15, "between"),
        ("unit_fen = 50", "unit_fee = 50", 15, "did you mean unit_fen"),
        ("timed_step_s = 30", "timed_step_s = 0", 17, "between 1"),
        ("0 = 80", "16 = 80", 21, "0 to 15"),
        ("15 = 200", "15 = 201", 22, "between 0 and 200"),
        ("15 = 200", "15 = 20.5", 22, "whole number"),
        ('name = "lunch"', 'name = ""', 25, "printable"),
        ('name = "lunch"', 'name = "a\\u001b@"', 25, "printable"),
        ('name = "lunch"', "name = 7", 25, "text in quotes"),
        ('"11:00"', '"24:00"', 26, "06:30"),
        ('"13:00"', '"9:00"', 27, "06:30"),
        ('"13:00"', '"23:00"', 34, "overlap"),
        ("times = 1", "times = 256", 29, "between"),
        ("times = 1", "tines = 1", 29, "did you mean times"),
        ('name = "night"', 'name = "lunch"', 33, "twice"),
        ('from = "22:00"\n', "", 32, "missing"),
        ('until = "02:00"', 'until = "11:01"', 34, "overlap"),
        ('code = "A2"', 'code = "101"', 43, "twice"),
        ('code = "A2"', 'code = "a b"', 43, "letters"),
        ("price_fen = 333", "price_fen = true", 45, "whole number"),
        ("price_fen = 333\n", "", 42, "missing"),
        ("purse_order", "day_count = 3\npurse_order", 11, "cards count meals"),
    ],
)
def test_each_mistake_in_prices_is_named_with_its_line(old: str, new: str, line: int, says: str) -> None:
    """Also in lists, the line is that of the entry that is wrong."""
    assert old in SELLING
    with pytest.raises(ConfigError) as caught:
        parse(SELLING.replace(old, new, 1), "pos.toml")
    assert f"line {line}:" in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize(("section", "limit"), [("period", 8), ("menu", 2_000)])
def test_lists_end_at_their_limits(section: str, limit: int) -> None:
    """8 periods and 2 000 items are read, one more is named with its line."""
    entries = {
        "period": lambda n: f'name = "p{n}"\nfrom = "{n:02}:00"\nuntil = "{n + 1:02}:00"\n',
        "menu": lambda n: f'code = "{n}"\nname = "dish"\nprice_fen = {n}\n',
    }
    whole = GOOD + "".join(f"[[{section}]]\n{entries[section](n)}" for n in range(limit))
    prices = parse(whole).rules.prices
    assert len(prices.periods if section == "period" else prices.items) == limit
    last = len(whole.splitlines())
    with pytest.raises(ConfigError, match=f"line {last + 1}: .* at most {limit}"):
        parse(whole + f"[[{section}]]\n{entries[section](limit)}")


@pytest.mark.parametrize("text", ["prices = 3", "discounts = []", "period = 3", "menu = [1]"])
def test_sections_of_another_kind(text: str) -> None:
    """A value where a section or list belongs is a ConfigError too."""
    with pytest.raises(ConfigError, match=r"line 1: .* is a "):
        parse(text + "\n" + GOOD)


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    """A missing file, one that is no text and a huge one are ConfigErrors too."""
    for name, raw in (("a", b"\xff\xfe"), ("b", b"#" * (1 << 20) + b"#")):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(ConfigError):
            load(tmp_path / name)
    with pytest.raises(ConfigError, match="can't be read"):
        load(tmp_path / "missing")
    with pytest.raises(ConfigError, match="section"):
        parse(GOOD.partition("[rules]")[0] + "rules = 3")


def test_every_rule_can_be_set() -> None:
    """Each field of the rules is a setting; none is forgotten by the reader."""
    for one in fields(Rules):
        if one.name not in {"enterprise_id", "utc_offset_min", "purse_order", "balance_expires", "prices"}:
            value = "false" if one.type == "bool" else "7"
            extra = "list_normal_ms = 0\n" if one.name == "list_reduced_ms" else ""
            text = f"{GOOD.partition('[rules]')[0]}[rules]\n{extra}{one.name} = {value}\n"
            assert getattr(parse(text).rules, one.name) == (False if value == "false" else 7)


@given(st.text(max_size=200))
def test_no_text_raises_anything_else(text: str) -> None:
    """Whatever stands in a file, the only error is ConfigError."""
    for whole in (text, GOOD + text, "version = " + text):
        with contextlib.suppress(ConfigError):
            parse(whole)


# --- every kind --------------------------------------------------------------------------------------------------

PAGES = Path(__file__).parent.parent.parent / "docs" / "terminals"
EXAMPLES = {kind: (PAGES / f"{kind.value}.toml").read_text() for kind in Kind}


def objections(value: Any, wanted: dict[str, Any], at: str = "") -> list[str]:
    """What a JSON schema has against a value: the words of 2020-12 that our schemas use, and no others."""
    found = []
    match wanted.get("type"):
        case "integer":
            if type(value) is not int or not wanted["minimum"] <= value <= wanted["maximum"]:
                found.append(f"{at}: {value!r}")
        case "boolean":
            found += [] if type(value) is bool else [f"{at}: {value!r}"]
        case "array":
            assert isinstance(value, list), at
            found += [one for item in value for one in objections(item, wanted["items"], at)]
        case "object":
            assert isinstance(value, dict), at
            numbered = wanted.get("patternProperties", {})
            assert wanted["additionalProperties"] is False
            found += [f"{at}: {key} is missing" for key in wanted.get("required", []) if key not in value]
            found += [f"{at}: too few"] if len(value) < wanted.get("minProperties", 0) else []
            for key, item in value.items():
                rules = [wanted["properties"][key]] if key in wanted.get("properties", {}) else []
                rules += [rule for pattern, rule in numbered.items() if re.search(pattern, key)]
                found += [] if rules else [f"{at}.{key} is unknown"]
                found += [one for rule in rules for one in objections(item, rule, f"{at}.{key}")]
        case "string":
            text = value.isoformat() if wanted.get("format") == "date" and type(value) is date else value
            good = isinstance(text, str) and re.search(wanted.get("pattern", ""), text)
            good = good and text in wanted.get("enum", [text]) and len(text) >= wanted.get("minLength", 0)
            found += [] if good else [f"{at}: {value!r}"]
        case other:
            assert other is None
            found += [] if value == wanted["const"] else [f"{at}: {value!r}"]
    return found


def agree(text: str) -> None:
    """What is accepted is accepted by its schema too; a file of a known kind the schema refuses is refused."""
    try:
        kind = parse(text).kind
    except ConfigError:
        return
    assert not objections(tomllib.loads(text), schema(kind))


UNSHOWN = {Kind.ATTENDANCE: {"holiday"}, Kind.POS: {"day_count"}}
"""Settings that an example can't show beside the others: a POS with periods counts by period."""


@pytest.mark.parametrize("kind", Kind)
def test_the_documented_example_is_whole_and_accepted(kind: Kind) -> None:
    """Each kind's example is read, its schema agrees, and it shows every setting that the schema has."""
    table, wanted = tomllib.loads(EXAMPLES[kind]), schema(kind)
    assert parse(EXAMPLES[kind]).kind is kind
    assert not objections(table, wanted)
    for key, one in wanted["properties"].items():
        assert key in table
        if key == "discounts":  # one setting a group
            continue
        numbered = one.get("patternProperties", {"": one})
        first = table[key].get("1", table[key]) if isinstance(table[key], dict) else {}
        settings = next(iter(numbered.values())).get("properties", {}).keys()
        assert first.keys() == settings - UNSHOWN.get(kind, set())


def test_an_access_terminal_has_doors_with_hours() -> None:
    """Weeks, holidays, groups and all else land in the rules of each door."""
    config = parse(EXAMPLES[Kind.ACCESS])
    one, two = config.doors[1], config.doors[2]
    assert (one.door, one.zone_inside, one.groups, one.interlock) == (1, 10, 0b110, frozenset({2}))
    assert (one.anti_passback, one.first_card, one.utc_offset_min) == (AntiPassback.HARD, True, 480)
    assert one.holidays == {date(2026, 10, 1), date(2026, 10, 2)}
    assert one.pin_hours == Week.daily((0, 360), (1320, 1440))
    assert one.schedules[1].days[0] == ((390, 1170),)
    assert one.schedules[1].days[4:] == (((420, 1440),), (), (), ((540, 720),))
    assert (two.groups, two.pin_hours, two.schedules) == (2**64 - 1, None, one.schedules)


def test_doors_hang_on_a_line() -> None:
    """Port and addresses land in line and hardware; a door has its lock at a reader unless another device is named."""
    config = parse(EXAMPLES[Kind.ACCESS])
    assert config.osdp == OsdpLine("/dev/ttyUSB0", 9_600, frozenset({7}))
    assert config.hardware == {1: Hardware(5, 6, 6), 2: Hardware(7)}
    assert (config.hardware[1].device, config.hardware[2].device) == (6, 7)
    with pytest.raises(ConfigError, match=r"\[osdp\]"):
        parse(EXAMPLES[Kind.ACCESS].partition("\n[osdp]")[0])


def test_holidays_of_a_file(tmp_path: Path) -> None:
    """The days of a calendar file are holidays of each door, beside those in the settings; a missing one is named."""
    path, calendar, day = tmp_path / "door.toml", tmp_path / "a.ics", datetime.now(UTC).date() + timedelta(30)
    path.write_text(EXAMPLES[Kind.ACCESS].replace("holidays.ics", str(calendar)))
    with pytest.raises(ConfigError, match=r"a\.ics"):
        load(path)
    event = f"BEGIN:VEVENT\r\nUID:1\r\nDTSTART;VALUE=DATE:{day:%Y%m%d}\r\nEND:VEVENT\r\n"
    calendar.write_text(f"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-\r\n{event}END:VCALENDAR\r\n")
    config = load(path)
    assert config.holidays == {date(2026, 10, 1), date(2026, 10, 2), day}
    assert all(rules.holidays == config.holidays for rules in config.doors.values())


def test_an_attendance_terminal_has_punch_rules() -> None:
    """Mode and hours land in the rules of punches."""
    rules = parse(EXAMPLES[Kind.ATTENDANCE]).punches
    assert (rules.mode, rules.repeat_ms, rules.utc_offset_min) == (Mode.HOURS, 60_000, 480)
    assert rules.coming is not None
    assert rules.coming.days[0] == ((390, 1170),)


@pytest.mark.parametrize(
    ("kind", "old", "new", "at", "says"),
    [
        (Kind.ACCESS, '"06:30-19:30"', '"6:30-19:30"', "monday =", "hours look like"),
        (Kind.ACCESS, '"06:30-19:30"', '"22:00-06:00"', "monday =", "ends before it begins"),
        (Kind.ACCESS, '"06:30-19:30"', "630", "monday =", "hours look like"),
        (Kind.ACCESS, '["06:30-19:30"]', '"06:30-19:30"', "monday =", "a list of hours"),
        (Kind.ACCESS, "monday", "mondays", "mondays =", "no such day"),
        (Kind.ACCESS, "pin_hours = 2", "pin_hours = 3", "pin_hours =", "[weeks.N]"),
        (Kind.ACCESS, "pin_hours = 2", "pin_hours = true", "pin_hours =", "[weeks.N]"),
        (Kind.ACCESS, "groups = [1, 2]", "groups = [64]", "groups =", "between 0 and 63"),
        (Kind.ACCESS, "groups = [1, 2]", "groups = 3", "groups =", "a list of numbers"),
        (Kind.ACCESS, "interlock = [2]", "interlock = [3]", "interlock =", "no other door"),
        (Kind.ACCESS, "interlock = [2]", "interlock = [1]", "interlock =", "no other door"),
        (Kind.ACCESS, '"hard"', '"strict"', "anti_passback =", "soft, hard"),
        (Kind.ACCESS, "[2026-10-01,", "[3,", "holidays =", "a date like"),
        (Kind.ACCESS, "zone_inside = 11", "", "[doors.2]", "zone_inside is missing"),
        (Kind.ACCESS, "zone_inside = 11", "zone_inside = 65536", "zone_inside = 65536", "between"),
        (Kind.ACCESS, "baud = 9600", "baud = 9601", "baud =", "take one of"),
        (Kind.ACCESS, "heads = [7]", "heads = [9]", "heads =", "no reader of a door"),
        (Kind.ACCESS, "reader_out = 6", "reader_out = 5", "reader_out =", "another reader than reader_in"),
        (Kind.ACCESS, "reader_out = 6", "reader_out = 127", "reader_out =", "between 0 and 126"),
        (Kind.ACCESS, "reader_in = 7", "reader_in= 5", "reader_in= 5", "another door's already"),
        (Kind.ACCESS, "reader_in = 7", "reader_in = 7\ndoor_device = 6", "[doors.2]", "this lock of address 6"),
        (Kind.ACCESS, "reader_in = 7", "", "[doors.2]", "a door on the line has a reader"),
        (Kind.ACCESS, "port = ", "#", "[osdp]", "port is missing"),
        (Kind.ACCESS, "holidays.ics", "", "holidays_file =", "a file name"),
        (Kind.ACCESS, "[doors.2]", "[doors.0]", "[doors.0]", "N from 1"),
        (Kind.ACCESS, "[doors.2]", "[doors.left]", "[doors.left]", "N from 1"),
        (Kind.ACCESS, "[doors.2]", "[rules]", "[rules]", "no setting of access"),
        (Kind.ATTENDANCE, "[punches]", "[punches]\nways = 3", "ways =", "no such setting"),
        (Kind.ATTENDANCE, '"hours"', '"pair"', "mode =", "go with mode hours"),
        (Kind.ATTENDANCE, "\ncoming = 1", "\ncoming = 9", "coming =", "[weeks.N]"),
        (
            Kind.ATTENDANCE,
            "[weeks.1]",
            "[doors.1]\nzone_inside = 1\n[weeks.1]",
            "[doors.1]",
            "no setting of attendance",
        ),
        (Kind.POS, "[rules]", "holidays = []\n[rules]", "holidays =", "no setting of pos"),
        (Kind.ISSUING, "merchant", "\nmerchants", "merchants =", "did you mean merchant"),
    ],
)
def test_each_mistake_of_each_kind_is_named_with_its_line(kind: Kind, old: str, new: str, at: str, says: str) -> None:
    """What is wrong in doors, weeks and punches is named with the line where it stands."""
    text = EXAMPLES[kind].replace(old, new, 1)
    assert text != EXAMPLES[kind]
    line = next(number for number, one in enumerate(text.splitlines(), 1) if one.startswith(at))
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert f"line {line}:" in str(caught.value)
    assert says in str(caught.value)


def test_an_access_terminal_without_doors_is_none() -> None:
    """A file that fits no door is refused, by its schema too."""
    text = EXAMPLES[Kind.ACCESS].partition("[doors.1]")[0]
    with pytest.raises(ConfigError, match=r"\[doors.1\]"):
        parse(text)
    assert objections(tomllib.loads(text), schema(Kind.ACCESS))


@given(st.data())
def test_whatever_is_accepted_fits_its_schema(data: st.DataObject) -> None:
    """Examples with lines lost, doubled, or with other values: accepted ones have no objection of the schema."""
    lines = EXAMPLES[data.draw(st.sampled_from(Kind))].splitlines()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(lines) - 1))
        name = lines[at].partition("=")[0]
        value = data.draw(
            st.sampled_from(["0", "1", "-1", "70", "70000", '"pair"', "[]", "[1]", "true", '["01:00-02:00"]'])
        )
        lines[at] = data.draw(st.sampled_from(["", f"{name}= {value}", lines[at]]))
    with contextlib.suppress(ConfigError):
        agree("\n".join(lines))
