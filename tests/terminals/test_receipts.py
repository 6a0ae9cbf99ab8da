"""Receipts and shift reports: what stands on the paper, and the bytes that a printer gets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cardlib.errors import NotFound
from terminals.receipts import Paper, last_receipt, receipt_paper, shift_report, x_report, z_report
from tests.terminals.shop import NOW, Shop, card_serial, refused


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    made = Shop(tmp_path)
    made.terminal.config = replace(made.terminal.config, merchant="第一食堂")
    return made


def test_a_receipt_says_what_each_purse_gave(shop: Shop) -> None:
    """Both purses with balance and TAC, card, shift, number, local time and total stand on it."""
    card = shop.new_card(1, 600, 5_000)
    receipt = shop.pos.pay(card, 1_000, "R-17")
    text = receipt_paper(shop.pos, receipt).text()
    rows = [tuple(line.split()) for line in text.splitlines()]
    subsidy, main = receipt.moves
    assert rows[:2] == [("第一食堂",), ("消费凭证",)]
    assert ("时间", "2026-09-21", "22:13:20") in rows
    assert ("卡号", card_serial(card).hex().upper()) in rows
    assert ("流水号", "R-17") in rows
    assert rows[-7:] == [
        ("补助钱包", "6.00"), ("余额", "0.00"), ("TAC", subsidy.tac.hex().upper()),
        ("主钱包", "4.00"), ("余额", "46.00"), ("TAC", main.tac.hex().upper()),
        ("合计", "10.00"),
    ]  # fmt: skip
    assert "PAYMENT" in receipt_paper(shop.pos, receipt, language="en").text()


def test_lines_are_as_wide_as_the_paper(shop: Shop) -> None:
    """Right sides end in the last column, Chinese characters counted as two; what is too long gets its own line."""
    paper = receipt_paper(shop.pos, shop.pos.pay(shop.new_card(1, 0, 500), 100, "9" * 40))
    lines = paper.text().splitlines()
    assert {len(line.encode("gb18030")) for line in lines[2:] if "9999" not in line} == {32, len("流水号") * 2}
    assert "9" * 40 in lines
    assert {len(line.encode("gb18030")) for line in paper.text(48).splitlines()[2:]} == {48}


def test_the_printer_gets_chinese_mode_and_gb18030() -> None:
    """Initialise, FS &, the head large and centred, the rows, the cut: byte for byte; nothing else is obeyed."""
    paper = Paper(("食堂",), (("a\x1b@\n", "余"),))
    assert paper.escpos(8) == (
        b"\x1b@\x1c&\x1ba\x01\x1d!\x11\xca\xb3\xcc\xc3\n\x1d!\x00\x1ba\x00a?@?  \xd3\xe0\n\x1dVB\x18"
    )


def test_the_last_receipt_is_printed_again_marked(shop: Shop) -> None:
    """The copy has the same rows and says that it is one; after an undo it says that too; before any sale, nothing."""
    with pytest.raises(NotFound, match="sold nothing"):
        last_receipt(shop.pos)
    card = shop.new_card(1, 600, 5_000)
    first = receipt_paper(shop.pos, shop.pos.pay(card, 1_000, "R-18"))
    shop.restart()
    again = last_receipt(shop.pos)
    assert again.rows == first.rows
    assert again.head == ("消费凭证", "** 重印 **")
    card.reset()
    undone = receipt_paper(shop.pos, shop.pos.undo_last(card))
    assert undone.head == ("撤销凭证",)
    assert undone.rows[-1] == ("合计", "10.00")
    assert last_receipt(shop.pos, "en").head == ("PAYMENT", "** REPRINT **", "** UNDONE **")


def test_x_leaves_the_shift_open_and_z_closes_it(shop: Shop) -> None:
    """Both give counts and sums per purse and the net; Z is printed again by number, and sums start anew after it."""
    card = shop.new_card(1, 600, 5_000)
    shop.pos.pay(card, 1_000)
    for amount in (300, 250):
        card.reset()
        shop.pos.pay(card, amount)
    card.reset()
    shop.pos.undo_last(card)
    shop.now_ms = NOW + 3_600_000
    rows = (
        ("终端", shop.journal.terminal.hex().upper()), ("班次", "1"), ("时间", "2026-09-21 23:13:20"),
        ("消费 补助钱包 x1", "6.00"), ("消费 主钱包 x3", "9.50"), ("脱机撤销 主钱包 x1", "2.50"),
        ("净额", "13.00"), ("待核笔数", "0"),
    )  # fmt: skip
    assert x_report(shop.pos) == Paper(("第一食堂", "交班前报表 X"), rows)
    z = z_report(shop.pos)
    assert z == Paper(("第一食堂", "交班报表 Z"), rows)
    assert shift_report(shop.pos, "z", 1) == z
    assert refused(lambda: x_report(shop.pos)) == refused(lambda: z_report(shop.pos)) == "shift_closed"
    shop.pos.open_shift("li")
    assert x_report(shop.pos).rows[3:] == (("净额", "0.00"), ("待核笔数", "0"))
