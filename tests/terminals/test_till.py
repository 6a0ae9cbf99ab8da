"""What stands around a till: sales as typed, operators, reports, a printer that fails, a register on a bad line."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cardlib.errors import Conflict, NotFound, Refused
from cardlib.serialport import PtyPort
from cardlib.transport import Transport
from simulator.card import Card
from terminals import printer
from terminals.config import Kind, TillRules
from terminals.posts.pos import PosPost, charge_of
from terminals.prices import Charge, Item, Prices
from terminals.reasons import Reason
from terminals.receipts import CHINESE_MODE, FEED_AND_CUT
from terminals.register import InTurn, SerialLine
from terminals.screen import Notice, Say
from tests.terminals.shop import Shop, card_serial, with_rules
from tests.terminals.test_run import Site, pos, site  # noqa: F401  # a fixture

CODES = frozenset({"101", "102"})
PRICES = Prices(items=(Item("101", "rice", 150), Item("102", "soup", 333)), unit_fen=50, timed_fen=7, timed_step_s=10)
PIN = "123456"


class Till:
    """A POS with its post, one card of 50 yuan, and what it told."""

    def __init__(self, folder: Path, till: TillRules | None = None) -> None:
        self.shop = Shop(folder, with_rules(prices=PRICES))
        self.card: Card = self.shop.new_card(1, 0, 5_000)
        self.shop.terminal.config = replace(self.shop.terminal.config, till=till or TillRules())
        self.told: list[str] = []
        self.pin: str | None = PIN
        self.post = PosPost(self.shop.pos, None, lambda: self.pin, self.told.append, "en")

    def type(self, line: str) -> bool:
        return self.post.order(line.split())

    def tap(self, card: Transport | None = None) -> dict[str, Any]:
        self.card.reset()
        return self.post.serve(card or self.card)

    def shift(self) -> int | None:
        return self.shop.journal.shift

    @property
    def shown(self) -> Notice:
        return self.shop.screen.notices[-1]


@pytest.fixture
def till(tmp_path: Path) -> Till:
    return Till(tmp_path)


@pytest.mark.parametrize(
    ("line", "charge", "sale"),
    [
        ("12.50", Charge((1_250,)), ""),
        ("12.50 s7", Charge((1_250,)), "s7"),
        ("12.50 #17", Charge((1_250,)), "17"),
        ("12.50 17", Charge((1_250, 1_700)), ""),
        ("101*2 102", Charge(items=(("101", 2), ("102", 1))), ""),
        ("103", Charge((10_300,)), ""),
        ("meal unit*3 0.50*2 101 #A1", Charge((100,), 1, (("101", 1),), 3), "A1"),
    ],
)
def test_a_sale_as_it_is_typed(line: str, charge: Charge, sale: str) -> None:
    """Amounts, menu codes, meals and counts add up in any order; a number may follow."""
    assert charge_of(line.split(), CODES) == (charge, sale)


@pytest.mark.parametrize("line", ["#1", "s7", "s7 12", "101*0", "101*x", "101*-1", "12 #", "1 2 x y", "9*1000", "1*٣"])
def test_what_is_no_sale(line: str) -> None:
    """What is not understood charges nothing."""
    assert charge_of(line.split(), CODES) is None


def test_menu_counts_and_sums_are_priced_before_the_card(till: Till) -> None:
    """The price stands on the screen before the card comes, and is what the card pays."""
    assert till.type("101*2 102 unit*3 1.00")
    assert till.shown == Notice(Say.PRESENT, 883)
    assert till.tap()["amount_fen"] == 883
    for line, reason in (("meal", "no_price"), ("1 meal", "no_price")):
        with pytest.raises(Refused) as refused:
            till.type(line)
        assert refused.value.reason == reason
    with pytest.raises(Refused, match="key the amount"):
        till.tap()
    assert till.type("1")
    assert till.type("cancel")
    with pytest.raises(Refused, match="key the amount"):
        till.tap()
    assert till.shop.agree(till.card, 0, 5_000).balances_fen == (0, 4_117)


def test_water_is_paid_by_the_time_it_ran(till: Till) -> None:
    """Each step begun is paid; while it runs nothing else can be keyed."""
    assert till.type("start")
    assert not till.type("start")
    assert not till.type("5")
    till.shop.now_ms += 20_001
    assert till.type("stop")
    assert till.tap()["amount_fen"] == 21
    assert not till.type("stop")


def test_reports_and_the_last_receipt(till: Till) -> None:
    """X leaves the shift open, Z closes it; the last receipt comes again; without a shift or a sale there is none."""
    with pytest.raises(NotFound):
        till.type("receipt")
    till.type("1")
    till.tap()
    assert till.type("x")
    assert till.shift() == 1
    assert till.type("receipt")
    assert till.type("z")
    assert till.shift() is None
    assert [next(word for word in ("X REPORT", "REPRINT", "Z REPORT") if word in text) for text in till.told] == [
        "X REPORT", "REPRINT", "Z REPORT",
    ]  # fmt: skip
    for line, reason in (("x", "shift_closed"), ("shift close", "shift_closed"), ("shift open", "no_operator")):
        with pytest.raises(Refused) as refused:
            till.type(line)
        assert refused.value.reason == reason
    assert till.type("shift open li")
    assert till.shift() == 2
    with pytest.raises(Conflict):
        till.type("shift open li")


def test_operators_open_and_close_with_card_and_pin(tmp_path: Path) -> None:
    """With operators named, only their own cards with the right PIN open and close a shift; a lost one does not."""
    till = Till(tmp_path)
    other = till.shop.new_card(2, 0, 500)
    rules = TillRules(operators={card_serial(till.card): "zhang"})
    till.shop.terminal.config = replace(till.shop.terminal.config, till=rules)

    def refused(card: Card, pin: str | None, line: str) -> str:
        till.pin = pin
        card.reset()
        assert till.type(line)
        with pytest.raises(Refused) as caught:
            till.post.serve(card)
        return caught.value.reason

    assert refused(other, PIN, "z") == "no_operator"
    assert refused(till.card, "000000", "shift close") == "pin_wrong"
    assert refused(till.card, None, "shift close") == "pin_required"
    till.shop.lists.listed[card_serial(till.card)] = Reason.LOST
    assert refused(till.card, PIN, "z") == "lost"
    till.shop.lists.listed.clear()
    assert till.shift() == 1
    till.pin = PIN
    till.type("z")
    assert till.tap() == {"event": "shift_close", "shift": 1}
    assert refused(other, PIN, "shift open mallory") == "no_operator"
    till.type("shift open")
    assert till.tap() == {"event": "shift_open", "shift": 2, "operator": "zhang"}


def test_a_receipt_goes_to_the_printer(tmp_path: Path) -> None:
    """Each payment prints its slip, cut at the end, in the printer's Chinese mode."""
    paper = tmp_path / "lp0"
    till = Till(tmp_path, TillRules(printer=str(paper)))
    till.type("1")
    till.tap()
    assert paper.read_bytes().count(FEED_AND_CUT) == 1
    assert CHINESE_MODE in paper.read_bytes()
    till.type("receipt")
    till.type("z")
    assert paper.read_bytes().count(FEED_AND_CUT) == 3


@pytest.mark.parametrize("broken", ["full", "folder", "nobody", "stuck"])
def test_a_printer_that_fails_costs_no_money(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Full, missing, unplugged or out of paper: the payment stands, is told, and prints when the printer is back."""
    monkeypatch.setattr(printer, "PATIENCE_S", 0.1)
    path, held = tmp_path / "lp0", -1
    if broken in ("nobody", "stuck"):
        os.mkfifo(path)
    if broken == "stuck":
        held = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        with suppress(BlockingIOError):
            while True:
                os.write(held, bytes(4096))
    name = {"full": "/dev/full", "folder": str(tmp_path)}.get(broken, str(path))
    till = Till(tmp_path, TillRules(printer=name))
    till.type("1 s1")
    assert till.tap()["balance_fen"] == 4_900
    assert till.shown.say is Say.PAID
    assert "print it again" in till.told[0]
    if held >= 0:
        os.close(held)
    till.shop.terminal.config = replace(till.shop.terminal.config, till=TillRules(printer=str(tmp_path / "new")))
    till.type("receipt")
    assert (tmp_path / "new").read_bytes().endswith(FEED_AND_CUT)
    assert till.shop.agree(till.card, 0, 5_000).balances_fen == (0, 4_900)


class Once:
    """A card source with one card at a time."""

    def __init__(self, card: Card) -> None:
        self.cards = [card]

    def wait(self) -> Transport | None:
        return self.cards.pop() if self.cards else None


def until(found: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not found():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_register_on_a_serial_line_waits_for_its_turn(till: Till) -> None:
    """Lines over a serial port are answered by the one loop, in its turn; garbage too; a sale is paid once."""
    port = PtyPort()
    cards = Once(till.card)
    register = InTurn(till.shop.pos, cards)
    line = SerialLine(register, port.name, 9_600)
    line.start()
    raw = b""

    def answered() -> bool:
        nonlocal raw
        register.turn()
        raw += port.read()
        return raw.endswith(b"\n")

    def say(words: bytes) -> dict[str, Any]:
        nonlocal raw
        raw = b""
        port.write(words)
        until(answered)
        found: dict[str, Any] = json.loads(raw)
        return found

    try:
        time.sleep(0.3)  # what came before the port was opened is thrown away
        assert say(b"garbage\n")["code"] == "bad_request"
        sale = b'{"do": "sale", "number": "A1", "amount_fen": 700}\n'
        assert say(sale)["code"] == "paid"
        assert say(sale)["balance_fen"] == 4_300
    finally:
        line.stop()
        port.close()
    assert till.shop.agree(till.card, 0, 5_000).balances_fen == (0, 4_300)


def ask(port: int, **request: object) -> socket.socket:
    line = socket.create_connection(("127.0.0.1", port), 10)
    line.sendall(json.dumps(request).encode() + b"\n")
    return line


@pytest.fixture
def port() -> int:
    """A port that is free now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        number: int = taken.getsockname()[1]
    return number


@pos
def test_register_and_console_share_one_loop(site: Site, port: int) -> None:  # noqa: F811  # the fixture
    """A register whose line breaks while the card is awaited asks again: paid once; console sales go on beside."""
    site.configure(f"[till]\nregister_port = {port}\nprinter = '{site.path('lp0')}'\n")
    site.new_card(fen=100_00)
    till = site.start("--cashier", "kim", "--language", "en")
    till.until("present the card")
    ask(port, do="sale", number="A1", amount_fen=1_000).close()
    till.until("present the card", 2)
    till.type()
    till.until("paid 10.00, balance 90.00")
    with ask(port, do="sale", number="A1", amount_fen=1_000) as line:
        answer = json.loads(line.makefile().readline())
    assert (answer["code"], answer["balance_fen"]) == ("paid", 90_00)
    till.type("5 s1").type()
    assert till.events(1)[0]["balance_fen"] == 85_00
    waiting = ask(port, do="sale", number="A2", amount_fen=1_000)
    till.until("present the card", 4)
    till.type("cancel")
    assert json.loads(waiting.makefile().readline())["code"] == "no_card"
    waiting.close()
    assert till.end() == 0
    assert site.balance() == 85_00
    assert site.kind is Kind.POS
    assert site.path("lp0").read_bytes().count(FEED_AND_CUT) == 1


def test_a_port_that_is_taken_is_named(tmp_path: Path, port: int) -> None:
    """Two tills can't listen on one port: the second says so and goes on selling; a free one is let go at the end."""
    till = Till(tmp_path, TillRules(register_port=port))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        till.post.listen(lambda *_: None)
    assert f"register_port {port}" in till.told[0]
    till.post.turn()
    till.type("1")
    assert till.tap()["amount_fen"] == 100
    for _ in range(2):
        till.post.listen(lambda *_: None)
        till.post.stop()
    assert len(till.told) == 1


def test_an_old_list_reduces_and_a_too_old_one_stops(till: Till) -> None:
    """Up to A all is as usual; up to B small payments and no undo; beyond B, or with a doubtful clock, nothing."""
    rules = with_rules(prices=PRICES, payment_limit_fen=3_000)
    till.shop.set_rules(rules)
    till.post = PosPost(till.shop.pos, None, lambda: PIN, till.told.append, "en")
    now_ms = till.shop.now_ms

    def tried(age_ms: int, line: str) -> str:
        till.shop.lists.created_ms = till.shop.now_ms - age_ms
        till.type(line)
        try:
            return str(till.tap()["event"])
        except Refused as e:
            return e.reason

    normal_ms, reduced_ms = rules.list_normal_ms, rules.list_reduced_ms
    assert [tried(normal_ms, line) for line in ("20.01", "undo")] == ["pay", "undo_offline"]
    assert tried(normal_ms + 1, "20.01") == "payment_limit"
    assert [tried(normal_ms + 1, line) for line in ("20", "undo")] == ["pay", "list_too_old"]
    assert tried(reduced_ms, "0.01") == "pay"
    assert tried(reduced_ms + 1, "0.01") == "list_too_old"
    till.shop.now_ms = now_ms - 60_000
    assert tried(0, "0.01") == "clock_doubtful"
