"""Configuration: good files are read, each mistake is named with its line."""

from __future__ import annotations

import contextlib
from dataclasses import fields
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cardlib.errors import ConfigError
from terminals.config import Kind, load, parse
from terminals.policy import PurseOrder, Rules

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
        ('kind = "pos"', 'kind = "tram"', 2, "pos, recharge"),
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
        if one.name not in {"enterprise_id", "utc_offset_min", "purse_order", "balance_expires"}:
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
