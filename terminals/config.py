"""A terminal's configuration: TOML in, frozen values out, each mistake named with its line.

Every kind starts with the same settings; `onecard terminal schema KIND` prints all settings of a kind as JSON schema.

version = 3
kind = "pos"                    # pos | access | attendance | recharge | issuing
enterprise_id = 1001
journal = "/var/lib/onecard/journal.db"
lists = "/var/lib/onecard/lists.db"
list_root_key = "…64 hex digits…"

[rules]                         # pos and recharge
payment_limit_fen = 5000
purse_order = "subsidy_first"

[prices]                        # pos, as are discounts, period and menu
unit_fen = 50                   # a charge by count
timed_fen = 7                   # water: each timed_step_s begun

[discounts]
3 = 80                          # cards of group 3 (0 to 15) pay 80 %

[[period]]                      # up to 8, numbered from 1 as they stand here
name = "lunch"
from = "11:00"
until = "13:00"
price_fen = 1200
times = 1

[[menu]]                        # up to 2 000
code = "101"
name = "rice"
price_fen = 150

[till]                          # pos: printer and cash register
printer = "/dev/usb/lp0"
register_port = 4567

[[operator]]                    # pos: who opens and closes shifts, with his card and its PIN
name = "zhang"
card = "0202000000000107"

holidays = [2026-10-01]         # access, above all sections: these days have the hours named holiday
holidays_file = "holidays.ics"  # access: an iCalendar file of such days

[weeks.1]                       # access and attendance: hours; the number is the schedule that cards name
daily = ["07:00-12:00", "13:00-19:30"]
sunday = []
holiday = []

[doors.1]                       # access: one section a door
zone_inside = 10
groups = [1, 2]                 # all 64 when not said
pin_hours = 1
anti_passback = "hard"
interlock = [2]
reader_in = 5                   # with [osdp]: addresses of its readers
reader_out = 6
door_device = 6                 # the device with lock and contact

[osdp]                          # access: the line of the doors' hardware
port = "/dev/ttyUSB0"
baud = 9600
heads = [7]                     # readers with a SAM of their own

[punches]                       # attendance
mode = "hours"                  # key | hours | pair
coming = 1

[desk]                          # issuing
readers = ["pcsc:ACS 1"]        # beside --reader
labels = "labels.txt"
pin_sheet = "pins.csv"
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from datetime import UTC, date, datetime, timedelta
from enum import Enum, unique
from pathlib import Path
from typing import Any

from cardlib.errors import ConfigError
from cardlib.wire.osdp import BAUDS
from terminals.attendance import Mode, PunchRules
from terminals.doors import AntiPassback, DoorRules, Hardware, Hours, OsdpLine, Week
from terminals.issuing import DeskRules
from terminals.policy import DAY_MS, MAX_AMOUNT_FEN, PurseOrder, Rules
from terminals.prices import GROUPS, MAX_ITEMS, MAX_PERCENT, MAX_PERIODS, Item, Period, Prices

MAX_CONFIG_BYTES = 1 << 20


@unique
class Kind(Enum):
    """What a terminal is for."""

    POS = "pos"
    ACCESS = "access"
    ATTENDANCE = "attendance"
    RECHARGE = "recharge"
    ISSUING = "issuing"


@dataclass(frozen=True, slots=True)
class TillRules:
    """What stands around a POS. With ``operators`` (card serial → name) only they open and close shifts.

    A cash register is listened to on ``register_port`` of this machine and on the serial port ``register_serial``.
    """

    printer: str = ""
    register_port: int | None = None
    register_serial: str = ""
    register_baud: int = 9_600
    register_wait_s: int = 120
    operators: Mapping[bytes, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TerminalConfig:
    """Everything a terminal is told. ``list_root_key`` is the Ed25519 key that vouches for the blacklist's keys.

    ``office_url`` is where the back office is asked, ``office_ca`` the file of who vouches for its certificate.
    ``doors`` by number are an access terminal's, with ``hardware`` where they hang on the line ``osdp``; ``punches``
    are an attendance terminal's, ``desk`` is an issuing terminal's.
    """

    version: int
    kind: Kind
    enterprise_id: int
    journal: Path
    lists: Path
    list_root_key: bytes
    merchant: str = ""
    utc_offset_min: int = 480
    journal_limit_bytes: int = 1 << 30
    keep_ms: int = 90 * DAY_MS
    office_url: str = ""
    office_ca: Path | None = None
    holidays: frozenset[date] = frozenset()
    holidays_file: Path | None = None
    rules: Rules = field(default_factory=lambda: Rules(0))
    doors: Mapping[int, DoorRules] = field(default_factory=dict)
    hardware: Mapping[int, Hardware] = field(default_factory=dict)
    osdp: OsdpLine | None = None
    punches: PunchRules = field(default_factory=PunchRules)
    till: TillRules = field(default_factory=TillRules)
    desk: DeskRules = field(default_factory=DeskRules)


_RANGES: dict[str, tuple[int, int]] = {
    "version": (1, 2**31),
    "enterprise_id": (1, 2**32 - 1),
    "utc_offset_min": (-720, 840),
    "journal_limit_bytes": (1 << 16, 1 << 40),
    "keep_ms": (0, 3650 * DAY_MS),
    "day_count": (0, 255),
    "repeat_window_ms": (0, DAY_MS),
    "undo_window_ms": (0, DAY_MS),
    "list_normal_ms": (0, 365 * DAY_MS),
    "list_reduced_ms": (0, 365 * DAY_MS),
    "collect_within_ms": (0, 365 * DAY_MS),
    "zone_inside": (0, 0xFFFF),
    "zone_outside": (0, 0xFFFF),
    "groups": (0, 63),
    "interlock": (1, 0xFFFF),
    "anti_passback_ms": (0, DAY_MS),
    "partner_within_ms": (0, 600_000),
    "release_ms": (100, 600_000),
    "held_ms": (0, DAY_MS),
    "repeat_ms": (0, DAY_MS),
    "pair_within_ms": (1, DAY_MS),
    "timed_step_s": (1, 86_400),
    "times": (1, 255),
    "discount": (0, MAX_PERCENT),
    "register_port": (1, 65_535),
    "register_baud": (1_200, 921_600),
    "register_wait_s": (1, 3_600),
    "baud": (BAUDS[0], BAUDS[-1]),
    **dict.fromkeys(("reader_in", "reader_out", "door_device", "heads"), (0, 126)),
    **dict.fromkeys(("lock_output", "contact_input"), (0, 255)),
}
_FEN = (0, MAX_AMOUNT_FEN)
_INHERITED = {"enterprise_id", "utc_offset_min", "prices"}  # a rule's copy of what stands elsewhere
_ENUMS: dict[str, type[Enum]] = {"PurseOrder": PurseOrder, "Kind": Kind, "AntiPassback": AntiPassback, "Mode": Mode}
_SECTIONS: dict[Kind, tuple[str, ...]] = {
    Kind.POS: ("rules", "prices", "discounts", "period", "menu", "till", "operator"),
    Kind.ACCESS: ("weeks", "doors", "osdp"),
    Kind.ATTENDANCE: ("weeks", "punches"),
    Kind.RECHARGE: ("rules",),
    Kind.ISSUING: ("desk",),
}
_OWN_SECTIONS = {"rules", "doors", "hardware", "osdp", "punches", "till", "desk"}
_HOLIDAYS = {"holidays", "holidays_file"}
_NUMBERED = {"weeks": 0xFF, "doors": 0xFFFF}
"""Sections with numbers, and their highest: a card names its schedule in one byte, a report its door in two."""
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday", "holiday")
_HOURS = r"([01]\d|2[0-3]):[0-5]\d-(([01]\d|2[0-3]):[0-5]\d|24:00)"
_PRICES = ("refuse_outside", "unit_fen", "timed_fen", "timed_step_s")
_PERIOD = {"name": "str", "from": "clock", "until": "clock", "price_fen": "int", "times": "int", "limit_fen": "int"}
_ITEM = {"code": "code", "name": "str", "price_fen": "int"}
_OPERATOR = {"name": "str", "card": "serial"}
_OPTIONAL = {"period": {"price_fen", "times", "limit_fen"}, "menu": set[str](), "operator": set[str]()}
_GROUP_KEYS = {str(group): group for group in range(GROUPS)}
MAX_NAME = 32
MAX_OPERATORS = 200


def _settings(section: str) -> dict[str, Field[Any]]:
    """What may stand in a section; the empty one is the top."""
    if section == "":
        return {one.name: one for one in fields(TerminalConfig) if one.name not in _OWN_SECTIONS}
    if section == "prices":
        return {one.name: one for one in fields(Prices) if one.name in _PRICES}
    owners: dict[str, tuple[type[Any], ...]] = {
        "rules": (Rules,), "doors": (DoorRules, Hardware), "osdp": (OsdpLine,), "punches": (PunchRules,),
        "till": (TillRules,),
        "desk": (DeskRules,),
    }  # fmt: skip
    others = _INHERITED | {"door", "schedules", "holidays", "operators"}  # the section's number, what others say
    return {one.name: one for owner in owners[section] for one in fields(owner) if one.name not in others}


def _line_of(text: str, section: str, key: str) -> int:
    """The line where a key of a section stands; the section's own line, or 1, when it is missing."""
    here, found = "", 1
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\[?\s*([\w.]+)\s*\]", line):
            here = header[1]
            found = number if here == section else found
        elif here == section and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
            return number
    return found


def _integer(name: str, value: object) -> int:
    low, high = _RANGES.get(name, _FEN)
    if type(value) is not int:
        raise ValueError(f"a whole number belongs here, not {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{value} is not between {low} and {high}")
    return value


def _list(value: object, what: str) -> list[Any]:
    if type(value) is not list:
        raise ValueError(f"a list of {what} belongs here, not {value!r}")
    return value


def _hours(value: object) -> Hours:
    """Hours of one day, like ["08:00-12:00", "13:00-24:00"]."""
    found = []
    for text in _list(value, "hours"):
        if type(text) is not str or not re.fullmatch(_HOURS, text):
            raise ValueError(f"hours look like 08:00-17:30, not {text!r}")
        begin, end = (int(at[:2]) * 60 + int(at[3:]) for at in text.split("-"))
        if begin >= end:
            raise ValueError(f"{text} ends before it begins: write two, until 24:00 and from 00:00")
        found.append((begin, end))
    return tuple(found)


def _convert_list(name: str, kind: str, value: object) -> object:
    if kind == "frozenset[date]":
        return frozenset(_convert(name, "date", day) for day in _list(value, "dates"))
    numbers = [_integer(name, number) for number in _list(value, "numbers")]
    return sum(1 << number for number in set(numbers)) if name == "groups" else frozenset(numbers)


def _convert(name: str, kind: str, value: object, weeks: Mapping[int, Week] | None = None) -> object:
    """One TOML value as its field wants it. Raises ValueError saying what belongs there."""
    if name == "groups" or kind.startswith("frozenset"):
        return _convert_list(name, kind, value)
    if kind == "tuple[str, ...]":
        return tuple(str(_convert(name, "str", one)) for one in _list(value, "texts"))
    if kind.startswith("Week"):
        if type(value) is not int or value not in (weeks or {}):
            raise ValueError(f"the number of a section [weeks.N] belongs here, not {value!r}")
        return (weeks or {})[value]
    if kind.startswith("int"):
        return _integer(name, value)
    if kind == "bool":
        if type(value) is not bool:
            raise ValueError(f"true or false belongs here, not {value!r}")
        return value
    if kind.startswith("date"):
        if not isinstance(value, date) or isinstance(value, datetime):
            raise ValueError(f"a date like 2026-12-31 belongs here, not {value!r}")
        return value
    if type(value) is not str:
        raise ValueError(f"a text in quotes belongs here, not {value!r}")
    if options := _ENUMS.get(kind):
        names = [str(option.value) for option in options]
        if value not in names:
            raise ValueError(f"{value!r} is none of {', '.join(names)}")
        return options(value)
    if kind.startswith("Path"):
        if not value or "\0" in value:
            raise ValueError("a file name belongs here")
        return Path(value)
    if kind == "bytes":
        if not re.fullmatch(r"[0-9a-fA-F]{64}", value):
            raise ValueError("64 hexadecimal digits belong here")
        return bytes.fromhex(value)
    return value


def _read(
    name: str, text: str, section: str, table: dict[str, Any], weeks: Mapping[int, Week] | None = None
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    wanted = _settings(section.partition(".")[0])
    for key, value in table.items():
        where = f"{name}, line {_line_of(text, section, key)}: {key}"
        if key not in wanted:
            close = difflib.get_close_matches(key, wanted, 1)
            raise ConfigError(f"{where}: no such setting" + (f", did you mean {close[0]}?" if close else ""))
        try:
            values[key] = _convert(key, str(wanted[key].type), value, weeks)
        except ValueError as e:
            raise ConfigError(f"{where}: {e}") from e
    for key, one in wanted.items():
        if key not in values and one.default is MISSING and one.default_factory is MISSING:
            raise ConfigError(f"{name}, line {_line_of(text, section, '')}: {key} is missing")
    return values


def _section(name: str, text: str, table: dict[str, Any], section: str) -> dict[str, Any]:
    """Take a section out of the table; none is an empty one. Raises ConfigError when it is a value."""
    found = table.pop(section, {})
    if not isinstance(found, dict):
        what = f"[{section}.1]" if section in _NUMBERED else f"[{section}]"
        raise ConfigError(f"{name}, line {_line_of(text, '', section)}: {section} is a section: {what}")
    return found


def _numbered(name: str, text: str, table: dict[str, Any], section: str) -> dict[int, dict[str, Any]]:
    """Sections like [doors.1] by their number."""
    found: dict[int, dict[str, Any]] = {}
    for number, one in _section(name, text, table, section).items():
        where = f"{name}, line {_line_of(text, f'{section}.{number}', '')}"
        good = re.fullmatch(r"[1-9]\d{0,4}", number, re.ASCII) and int(number) <= _NUMBERED[section]
        if not good or not isinstance(one, dict):
            raise ConfigError(f"{where}: write [{section}.N] with N from 1 to {_NUMBERED[section]}")
        found[int(number)] = one
    return found


def _weeks(name: str, text: str, table: dict[str, Any]) -> dict[int, Week]:
    weeks = {}
    for number, one in _numbered(name, text, table, "weeks").items():
        days: dict[str, Hours] = {}
        for key, value in one.items():
            where = f"{name}, line {_line_of(text, f'weeks.{number}', key)}: {key}"
            if key not in {"daily", *_DAYS}:
                raise ConfigError(f"{where}: no such day: {', '.join(_DAYS)}, or daily for all not named")
            try:
                days[key] = _hours(value)
            except ValueError as e:
                raise ConfigError(f"{where}: {e}") from e
        weeks[number] = Week(tuple(days.get(day, days.get("daily", ())) for day in _DAYS))
    return weeks


def _doors(
    name: str, text: str, table: dict[str, Any], top: dict[str, Any], weeks: dict[int, Week]
) -> tuple[dict[int, DoorRules], dict[int, Hardware]]:
    tables = _numbered(name, text, table, "doors")
    if not tables:
        raise ConfigError(f"{name}, line 1: an access terminal has doors: write a section [doors.1]")
    doors, hardware = {}, {}
    for number, one in tables.items():
        section = f"doors.{number}"
        values = _read(name, text, section, one, weeks)
        if strangers := values.get("interlock", frozenset()) - (tables.keys() - {number}):
            line = _line_of(text, section, "interlock")
            raise ConfigError(f"{name}, line {line}: interlock: {min(strangers)} is no other door of this terminal")
        common = {"schedules": weeks, "holidays": top.get("holidays", frozenset())}
        devices = {one.name: values.pop(one.name) for one in fields(Hardware) if one.name in values}
        hardware[number] = Hardware(**devices)
        doors[number] = DoorRules(number, **values, **common, utc_offset_min=top.get("utc_offset_min", 480))
    return doors, hardware


def _check_hardware(name: str, text: str, hardware: dict[int, Hardware], osdp: OsdpLine | None) -> None:
    """Doors hang on a line altogether or not at all, and nothing of it belongs to two of them."""

    def wrong(section: str, key: str, what: str) -> ConfigError:
        return ConfigError(f"{name}, line {_line_of(text, section, key)}: {key}: {what}")

    if osdp is None:
        for number, one in hardware.items():
            if one != Hardware():
                raise wrong(f"doors.{number}", "reader_in", "hardware hangs on a line: write a section [osdp]")
        return
    if osdp.baud not in BAUDS:
        raise wrong("osdp", "baud", f"take one of {', '.join(map(str, BAUDS))}")
    taken: set[tuple[str, int, int]] = set()
    for number, one in hardware.items():
        section = f"doors.{number}"
        if not one.readers:
            raise wrong(section, "reader_in", "a door on the line has a reader: name reader_in, reader_out or both")
        uses = [("reader_out" if way.value else "reader_in", "reader", at, 0) for at, way in one.readers.items()]
        if one.reader_in == one.reader_out:
            raise wrong(section, "reader_out", "it is another reader than reader_in")
        uses.append(("lock_output", "lock", one.device, one.lock_output))
        uses.append(("contact_input", "contact", one.device, one.contact_input))
        for key, what, address, place in uses:
            if (what, address, place) in taken:
                raise wrong(section, key, f"this {what} of address {address} is another door's already")
        taken.update(use[1:] for use in uses)
    if strangers := osdp.heads - {address for one in hardware.values() for address in one.readers}:
        raise wrong("osdp", "heads", f"{min(strangers)} is no reader of a door")


def _rules(name: str, text: str, table: dict[str, Any], top: dict[str, Any]) -> Rules:
    values = _read(name, text, "rules", _section(name, text, table, "rules"))
    prices = _prices(name, text, table)
    rules = Rules(top["enterprise_id"], top.get("utc_offset_min", 480), prices=prices, **values)
    if rules.list_reduced_ms < rules.list_normal_ms:
        line = _line_of(text, "rules", "list_reduced_ms")
        raise ConfigError(f"{name}, line {line}: list_reduced_ms is below list_normal_ms ({rules.list_normal_ms})")
    if prices.periods and rules.day_count is not None:
        line = _line_of(text, "rules", "day_count")
        raise ConfigError(f"{name}, line {line}: day_count: cards count meals where there are periods: set their times")
    return rules


def _punches(name: str, text: str, table: dict[str, Any], top: dict[str, Any], weeks: dict[int, Week]) -> PunchRules:
    values = _read(name, text, "punches", _section(name, text, table, "punches"), weeks)
    try:
        return PunchRules(**values, utc_offset_min=top.get("utc_offset_min", 480))
    except ConfigError as e:
        raise ConfigError(f"{name}, line {_line_of(text, 'punches', 'mode')}: {e}") from e


def _entry_line(text: str, section: str, index: int, key: str) -> int:
    """The line of a key in the entry ``index`` of ``[[section]]``; the entry's own line when it is missing."""
    here, found = -1, _line_of(text, "", section)
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\[?\s*([\w.]+)\s*\]", line):
            if here == index:
                break
            here += header[1] == section
            found = number if here == index else found
        elif here == index and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
            return number
    return found


def _entry_value(key: str, wanted: Mapping[str, str], entry: Mapping[str, object]) -> Any:  # noqa: ANN401  # text or number
    if key not in wanted:
        close = difflib.get_close_matches(key, wanted, 1)
        raise ValueError("no such setting" + (f", did you mean {close[0]}?" if close else ""))
    if key not in entry:
        raise ValueError("it is missing")
    kind, value = wanted[key], entry[key]
    if kind == "int":
        return _integer(key, value)
    if type(value) is not str:
        raise ValueError(f"a text in quotes belongs here, not {value!r}")
    if kind == "clock":
        if not re.fullmatch(r"([01][0-9]|2[0-3]):[0-5][0-9]", value):
            raise ValueError(f"a time like 06:30 belongs here, not {value!r}")
        return int(value[:2]) * 60 + int(value[3:])
    if kind == "serial":
        if not re.fullmatch(r"[0-9a-fA-F]{16}", value):
            raise ValueError("a card's serial of 16 hexadecimal digits belongs here")
        return value.upper()
    if kind == "code" and not re.fullmatch(r"[0-9A-Za-z]{1,16}", value):
        raise ValueError("1 to 16 digits and letters belong here")
    if not value.strip() or len(value) > MAX_NAME or not value.isprintable():
        raise ValueError(f"1 to {MAX_NAME} printable characters belong here")
    return value


def _entries(
    name: str, text: str, table: dict[str, Any], section: str, wanted: Mapping[str, str], limit: int
) -> list[dict[str, Any]]:
    """The entries of ``[[section]]``. Raises ConfigError with the line of what is wrong."""
    entries, read = table.pop(section, []), []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{name}, line {_line_of(text, section, section)}: {section} is a list: [[{section}]]")
    if len(entries) > limit:
        raise ConfigError(f"{name}, line {_entry_line(text, section, limit, '')}: {section}: at most {limit} of them")
    for index, entry in enumerate(entries):
        values: dict[str, Any] = {}
        missing = [key for key in wanted if key not in entry and key not in _OPTIONAL[section]]
        for key in (*entry, *missing):
            try:
                values[key] = _entry_value(key, wanted, entry)
            except ValueError as e:
                raise ConfigError(f"{name}, line {_entry_line(text, section, index, key)}: {section} {key}: {e}") from e
        read.append(values)
    return read


def _unlike(name: str, text: str, section: str, key: str, entries: list[dict[str, Any]]) -> None:
    seen: set[str] = set()
    for index, entry in enumerate(entries):
        if entry[key] in seen:
            line = _entry_line(text, section, index, key)
            raise ConfigError(f"{name}, line {line}: {section} {key}: {entry[key]!r} stands there twice")
        seen.add(entry[key])


def _periods(name: str, text: str, table: dict[str, Any]) -> tuple[Period, ...]:
    entries = _entries(name, text, table, "period", _PERIOD, MAX_PERIODS)
    _unlike(name, text, "period", "name", entries)
    periods: list[Period] = []
    for index, entry in enumerate(entries):
        start_min, end_min = entry.pop("from"), entry.pop("until")
        period = Period(index + 1, start_min=start_min, end_min=end_min, **entry)
        for other in periods:
            if other.covers(start_min) or period.covers(other.start_min):
                line = _entry_line(text, "period", index, "from")
                raise ConfigError(f"{name}, line {line}: period from: {period.name} and {other.name} overlap")
        periods.append(period)
    return tuple(periods)


def _discounts(name: str, text: str, table: dict[str, Any]) -> tuple[int, ...]:
    percents = [100] * GROUPS
    for key, value in _section(name, text, table, "discounts").items():
        try:
            percents[_GROUP_KEYS[key]] = _integer("discount", value)
        except KeyError as e:
            line = _line_of(text, "discounts", key)
            raise ConfigError(f"{name}, line {line}: {key}: groups are 0 to {GROUPS - 1}") from e
        except ValueError as e:
            raise ConfigError(f"{name}, line {_line_of(text, 'discounts', key)}: {key}: {e}") from e
    return tuple(percents)


def _prices(name: str, text: str, table: dict[str, Any]) -> Prices:
    """What is sold: taken out of the table's sections prices, discounts, period and menu."""
    values = _read(name, text, "prices", _section(name, text, table, "prices"))
    menu = _entries(name, text, table, "menu", _ITEM, MAX_ITEMS)
    _unlike(name, text, "menu", "code", menu)
    return Prices(
        _periods(name, text, table), items=tuple(Item(**entry) for entry in menu),
        discounts=_discounts(name, text, table), **values,
    )  # fmt: skip


def _till(name: str, text: str, table: dict[str, Any]) -> TillRules:
    operators = _entries(name, text, table, "operator", _OPERATOR, MAX_OPERATORS)
    for key in _OPERATOR:
        _unlike(name, text, "operator", key, operators)
    values = _read(name, text, "till", _section(name, text, table, "till"))
    return TillRules(**values, operators={bytes.fromhex(one["card"]): one["name"] for one in operators})


def parse(text: str, name: str = "configuration") -> TerminalConfig:
    """Parse a configuration. Raises ConfigError with name, line and what belongs there."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as e:
        raise ConfigError(f"{name}: {e}") from e
    every = {section for sections in _SECTIONS.values() for section in sections}
    sections = {section: table.pop(section) for section in every & table.keys()}
    top = _read(name, text, "", table)
    kind: Kind = top["kind"]
    foreign = sections.keys() - set(_SECTIONS[kind])
    if kind is not Kind.ACCESS:
        foreign |= _HOLIDAYS & top.keys()
    if foreign:
        word = min(foreign)
        line = max(_line_of(text, "", word), *(_line_of(text, s, "") for s in (word, f"{word}.1")))
        raise ConfigError(f"{name}, line {line}: {word} is no setting of {kind.value} terminals")
    weeks = _weeks(name, text, sections)
    if kind is Kind.ACCESS:
        has_line = "osdp" in sections
        doors, hardware = _doors(name, text, sections, top, weeks)
        osdp_table = _section(name, text, sections, "osdp")
        osdp = OsdpLine(**_read(name, text, "osdp", osdp_table)) if has_line else None
        _check_hardware(name, text, hardware, osdp)
        return TerminalConfig(**top, rules=_top_rules(top), doors=doors, hardware=hardware, osdp=osdp)
    if kind is Kind.ATTENDANCE:
        return TerminalConfig(**top, rules=_top_rules(top), punches=_punches(name, text, sections, top, weeks))
    if kind is Kind.ISSUING:
        desk = DeskRules(**_read(name, text, "desk", _section(name, text, sections, "desk")))
        return TerminalConfig(**top, rules=_top_rules(top), desk=desk)
    return TerminalConfig(**top, rules=_rules(name, text, sections, top), till=_till(name, text, sections))


def _top_rules(top: dict[str, Any]) -> Rules:
    return Rules(top["enterprise_id"], top.get("utc_offset_min", 480))


# --- the schema --------------------------------------------------------------------------------------------------


def _schema_of(name: str, kind: str) -> dict[str, Any]:
    """What :func:`_convert` takes for a field, as JSON schema; dates are texts there."""
    low, high = _RANGES.get(name, _FEN)
    number = {"type": "integer", "minimum": low, "maximum": high}
    if name == "groups" or kind == "frozenset[int]":
        return {"type": "array", "items": number}
    if kind == "frozenset[date]":
        return {"type": "array", "items": _schema_of(name, "date")}
    if kind.startswith("Week"):
        return {"type": "integer", "minimum": 1, "maximum": _NUMBERED["weeks"], "description": "a section [weeks.N]"}
    if kind.startswith("int"):
        return number
    if kind.startswith("date"):
        return {"type": "string", "format": "date"}
    if options := _ENUMS.get(kind):
        return {"type": "string", "enum": [option.value for option in options]}
    if kind == "tuple[str, ...]":
        return {"type": "array", "items": {"type": "string"}}
    others: dict[str, dict[str, Any]] = {
        "bool": {"type": "boolean"},
        "Path": {"type": "string", "minLength": 1},
        "bytes": {"type": "string", "pattern": "^[0-9a-fA-F]{64}$"},
        "str": {"type": "string"},
    }
    return others[kind.removesuffix(" | None")]


def _schema_section(settings: Mapping[str, Field[Any]]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {key: _schema_of(key, str(one.type)) for key, one in settings.items()},
        "required": [key for key, one in settings.items() if one.default is MISSING and one.default_factory is MISSING],
        "additionalProperties": False,
    }


def _schema_list(section: str, wanted: Mapping[str, str], limit: int) -> dict[str, Any]:
    """What :func:`_entries` takes."""
    kinds: dict[str, dict[str, Any]] = {
        "str": {"type": "string", "minLength": 1, "maxLength": MAX_NAME},
        "clock": {"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"},
        "code": {"type": "string", "pattern": "^[0-9A-Za-z]{1,16}$"},
        "serial": {"type": "string", "pattern": "^[0-9a-fA-F]{16}$"},
    }
    entry = {
        "type": "object",
        "properties": {key: kinds[kind] if kind in kinds else _schema_of(key, kind) for key, kind in wanted.items()},
        "required": [key for key in wanted if key not in _OPTIONAL[section]],
        "additionalProperties": False,
    }
    return {"type": "array", "maxItems": limit, "items": entry}


_LISTED: dict[str, dict[str, Any]] = {
    "period": _schema_list("period", _PERIOD, MAX_PERIODS),
    "menu": _schema_list("menu", _ITEM, MAX_ITEMS),
    "operator": _schema_list("operator", _OPERATOR, MAX_OPERATORS),
    "discounts": {
        "type": "object",
        "properties": dict.fromkeys(_GROUP_KEYS, _schema_of("discount", "int")),
        "additionalProperties": False,
    },
}


def schema(kind: Kind) -> dict[str, Any]:
    """The JSON schema (2020-12) of a kind's file, made from the tables that read it."""
    hours = {"type": "array", "items": {"type": "string", "pattern": f"^{_HOURS}$"}}
    week = {
        "type": "object",
        "properties": dict.fromkeys(("daily", *_DAYS), hours),
        "additionalProperties": False,
    }
    hidden = set[str]() if kind is Kind.ACCESS else _HOLIDAYS
    top = _schema_section({key: one for key, one in _settings("").items() if key not in hidden})
    top["properties"]["kind"] = {"const": kind.value}
    for section in _SECTIONS[kind]:
        whole = {"weeks": week, **_LISTED}
        one = whole[section] if section in whole else _schema_section(_settings(section))
        if section in _NUMBERED:
            one = {"type": "object", "patternProperties": {"^[1-9][0-9]*$": one}, "additionalProperties": False}
        top["properties"][section] = one
    if kind is Kind.ACCESS:
        top["properties"]["doors"]["minProperties"] = 1
        top["required"].append("doors")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"onecard terminal: {kind.value}",
        **top,
    }


def load(path: Path) -> TerminalConfig:
    """Read a configuration file. Raises ConfigError also when it can't be read."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
        if len(raw) > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path}: a configuration has at most {MAX_CONFIG_BYTES} bytes")
        config = parse(raw.decode(), str(path))
    except OSError as e:
        raise ConfigError(f"{path} can't be read: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: byte {e.start} is no UTF-8") from e
    return with_holidays(config)


def with_holidays(config: TerminalConfig) -> TerminalConfig:
    """With the days of its holidays file, from yesterday on. Raises ConfigError when that can't be used."""
    from cardlib.holidays import YEARS, read  # noqa: PLC0415  # heavy, and few have such a file

    if config.holidays_file is None:
        return config
    today = datetime.now(UTC).date()
    last = today.replace(year=today.year + YEARS, day=1)
    found = config.holidays | read(config.holidays_file, today - timedelta(1), last)
    doors = {number: replace(rules, holidays=found) for number, rules in config.doors.items()}
    return replace(config, holidays=found, doors=doors)
