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
"""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import MISSING, Field, dataclass, field, fields
from datetime import date, datetime
from enum import Enum, unique
from pathlib import Path
from typing import Any

from cardlib.errors import ConfigError
from terminals.policy import DAY_MS, MAX_AMOUNT_FEN, PurseOrder, Rules

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
}
_FEN = (0, MAX_AMOUNT_FEN)
_INHERITED = {"enterprise_id", "utc_offset_min"}  # a rule's copy of what stands at the top


def _line_of(text: str, section: str, key: str) -> int:
    """The line where a key of a section stands; the section's own line, or 1, when it is missing."""
    here, found = "", 1
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([\w.]+)\s*\]", line):
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


def parse(text: str, name: str = "configuration") -> TerminalConfig:
    """Parse a configuration. Raises ConfigError with name, line and what belongs there."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as e:
        raise ConfigError(f"{name}: {e}") from e
    rules_table = table.pop("rules", {})
    if not isinstance(rules_table, dict):
        raise ConfigError(f"{name}, line {_line_of(text, '', 'rules')}: rules is a section: [rules]")
    tops = {one.name: one for one in fields(TerminalConfig) if one.name != "rules"}
    top = _read(name, text, "", table, tops)
    rule_fields = {one.name: one for one in fields(Rules) if one.name not in _INHERITED}
    values = _read(name, text, "rules", rules_table, rule_fields)
    rules = Rules(top["enterprise_id"], top.get("utc_offset_min", 480), **values)
    if rules.list_reduced_ms < rules.list_normal_ms:
        line = _line_of(text, "rules", "list_reduced_ms")
        raise ConfigError(f"{name}, line {line}: list_reduced_ms is below list_normal_ms ({rules.list_normal_ms})")
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
