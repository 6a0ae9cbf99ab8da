"""A terminal's configuration: TOML in, frozen values out, each mistake named with its line.

version = 3
kind = "pos"                    # pos | recharge
enterprise_id = 1001
journal = "/var/lib/onecard/journal.db"
lists = "/var/lib/onecard/lists.db"
list_root_key = "…64 hex digits…"

[rules]
payment_limit_fen = 5000
purse_order = "subsidy_first"

[prices]
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
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from datetime import date, datetime
from enum import Enum, unique
from pathlib import Path
from typing import Any

from cardlib.errors import ConfigError
from terminals.policy import DAY_MS, MAX_AMOUNT_FEN, PurseOrder, Rules
from terminals.prices import GROUPS, MAX_ITEMS, MAX_PERCENT, MAX_PERIODS, Item, Period, Prices

MAX_CONFIG_BYTES = 1 << 20


@unique
class Kind(Enum):
    """What a terminal is for."""

    POS = "pos"
    RECHARGE = "recharge"


@dataclass(frozen=True, slots=True)
class TerminalConfig:
    """Everything a terminal is told. ``list_root_key`` is the Ed25519 key that vouches for the blacklist's keys."""

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
    rules: Rules = field(default_factory=lambda: Rules(0))


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
    "timed_step_s": (1, 86_400),
    "times": (1, 255),
    "discount": (0, MAX_PERCENT),
}
_FEN = (0, MAX_AMOUNT_FEN)
_ELSEWHERE = {"enterprise_id", "utc_offset_min", "prices"}  # a rule's copy of what stands in another section
_PERIOD = {"name": "str", "from": "clock", "until": "clock", "price_fen": "int", "times": "int", "limit_fen": "int"}
_ITEM = {"code": "code", "name": "str", "price_fen": "int"}
_OPTIONAL = {"period": {"price_fen", "times", "limit_fen"}, "menu": set[str]()}
_GROUP_KEYS = {str(group): group for group in range(GROUPS)}
MAX_NAME = 32


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


def _convert(name: str, kind: str, value: object) -> object:
    """One TOML value as its field wants it. Raises ValueError saying what belongs there."""
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
    if kind in {"PurseOrder", "Kind"}:
        options: type[Enum] = PurseOrder if kind == "PurseOrder" else Kind
        names = [str(option.value) for option in options]
        if value not in names:
            raise ValueError(f"{value!r} is none of {', '.join(names)}")
        return options(value)
    if kind == "Path":
        if not value or "\0" in value:
            raise ValueError("a file name belongs here")
        return Path(value)
    if kind == "bytes":
        if not re.fullmatch(r"[0-9a-fA-F]{64}", value):
            raise ValueError("64 hexadecimal digits belong here")
        return bytes.fromhex(value)
    return value


def _read(name: str, text: str, section: str, table: dict[str, Any], wanted: dict[str, Field[Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in table.items():
        where = f"{name}, line {_line_of(text, section, key)}: {key}"
        if key not in wanted:
            close = difflib.get_close_matches(key, wanted, 1)
            raise ConfigError(f"{where}: no such setting" + (f", did you mean {close[0]}?" if close else ""))
        try:
            values[key] = _convert(key, str(wanted[key].type), value)
        except ValueError as e:
            raise ConfigError(f"{where}: {e}") from e
    for key, one in wanted.items():
        if key not in values and one.default is MISSING and one.default_factory is MISSING:
            raise ConfigError(f"{name}, line {_line_of(text, section, '')}: {key} is missing")
    return values


def _section(name: str, text: str, table: dict[str, Any], section: str) -> dict[str, Any]:
    found = table.pop(section, {})
    if not isinstance(found, dict):
        raise ConfigError(f"{name}, line {_line_of(text, '', section)}: {section} is a section: [{section}]")
    return found


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
    known = ("refuse_outside", "unit_fen", "timed_fen", "timed_step_s")
    wanted = {one.name: one for one in fields(Prices) if one.name in known}
    values = _read(name, text, "prices", _section(name, text, table, "prices"), wanted)
    menu = _entries(name, text, table, "menu", _ITEM, MAX_ITEMS)
    _unlike(name, text, "menu", "code", menu)
    return Prices(
        _periods(name, text, table), items=tuple(Item(**entry) for entry in menu),
        discounts=_discounts(name, text, table), **values,
    )  # fmt: skip


def parse(text: str, name: str = "configuration") -> TerminalConfig:
    """Parse a configuration. Raises ConfigError with name, line and what belongs there."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as e:
        raise ConfigError(f"{name}: {e}") from e
    rules_table = _section(name, text, table, "rules")
    prices = _prices(name, text, table)
    tops = {one.name: one for one in fields(TerminalConfig) if one.name != "rules"}
    top = _read(name, text, "", table, tops)
    rule_fields = {one.name: one for one in fields(Rules) if one.name not in _ELSEWHERE}
    values = _read(name, text, "rules", rules_table, rule_fields)
    rules = Rules(top["enterprise_id"], top.get("utc_offset_min", 480), prices=prices, **values)
    if rules.list_reduced_ms < rules.list_normal_ms:
        line = _line_of(text, "rules", "list_reduced_ms")
        raise ConfigError(f"{name}, line {line}: list_reduced_ms is below list_normal_ms ({rules.list_normal_ms})")
    if prices.periods and rules.day_count is not None:
        line = _line_of(text, "rules", "day_count")
        raise ConfigError(f"{name}, line {line}: day_count: cards count meals where there are periods: set their times")
    return TerminalConfig(**top, rules=rules)


def load(path: Path) -> TerminalConfig:
    """Read a configuration file. Raises ConfigError also when it can't be read."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
        if len(raw) > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path}: a configuration has at most {MAX_CONFIG_BYTES} bytes")
        return parse(raw.decode(), str(path))
    except OSError as e:
        raise ConfigError(f"{path} can't be read: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: byte {e.start} is no UTF-8") from e
