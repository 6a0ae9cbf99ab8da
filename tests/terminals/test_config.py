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
