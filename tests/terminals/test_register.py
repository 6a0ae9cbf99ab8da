"""The cash register's line: sale, undo, status and close over a socket, each at most once; hostile lines."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cardlib.transport import Transport
from simulator.card import Card
from terminals.prices import Item, Prices
from terminals.reasons import Reason
from terminals.register import MAX_LINE, Register, RegisterServer
from tests.terminals.shop import Shop, card_serial, with_rules

PRICES = Prices(items=(Item("101", "rice", 150), Item("102", "soup", 333)), unit_fen=50)


class Presented:
    """Cards as a holder presents them; nobody comes when none is left."""

    def __init__(self) -> None:
        self.cards: list[Card] = []
        self.cut = 0

    def wait(self) -> Transport | None:
        if not self.cards:
            return None
        card = self.cards.pop(0)
        card.power.cut_at(0)
        card.reset()
        card.power.cut_at(self.cut)
        return card


class Counter:
    """A till with a register on a socket."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.holder = Presented()
        self.card = shop.new_card(1, 600, 5_000)
        self.start()

    def start(self) -> None:
        self.server = RegisterServer(Register(self.shop.pos, self.holder), ("127.0.0.1", 0))
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.line = socket.create_connection(("127.0.0.1", self.server.server_address[1]), 10)
        self.stream = self.line.makefile("rwb")

    def stop(self) -> None:
        self.stream.close()
        self.line.close()
        self.server.shutdown()
        self.server.server_close()

    def ask(self, **request: object) -> dict[str, Any]:
        return self.say(json.dumps(request).encode() + b"\n")

    def say(self, line: bytes) -> dict[str, Any]:
        self.stream.write(line)
        self.stream.flush()
        answer = json.loads(self.stream.readline())
        assert isinstance(answer, dict)
        return answer

    def tap(self, *cards: Card) -> None:
        self.holder.cards = list(cards or (self.card,))


@pytest.fixture
def counter(tmp_path: Path) -> Iterator[Counter]:
    made = Counter(Shop(tmp_path, with_rules(prices=PRICES)))
    yield made
    made.stop()


def test_a_sale_is_paid_once_per_number(counter: Counter) -> None:
    """The answer has amount, balance, card and proofs; again, also after a restart, it is the same without card."""
    counter.tap()
    first = counter.ask(do="sale", number="A1", amount_fen=1_000)
    assert first["ok"]
    assert (first["code"], first["number"], first["amount_fen"], first["balance_fen"]) == ("paid", "A1", 1_000, 4_600)
    assert first["card"] == card_serial(counter.card).hex().upper()
    assert [len(tac) for tac in first["tac"]] == [8, 8]
    assert counter.ask(do="sale", number="A1", amount_fen=1_000) == first
    counter.stop()
    counter.shop.restart()
    counter.start()
    assert counter.ask(do="sale", number="A1", amount_fen=1_000) == first
    assert counter.ask(do="sale", number="A1", amount_fen=999)["code"] == "conflict"
    assert counter.shop.agree(counter.card, 600, 5_000).balances_fen == (0, 4_600)


def test_a_sale_of_items_and_units_is_added_up(counter: Counter) -> None:
    """Menu codes, units and an amount make one payment; an unknown code is refused in both languages."""
    counter.tap()
    sold = counter.ask(do="sale", number="A2", items=[["101", 2], ["102", 1]], units=3, amount_fen=17)
    assert sold["amount_fen"] == 800
    counter.tap()
    refused = counter.ask(do="sale", number="A3", items=[["9", 1]])
    assert not refused["ok"]
    assert (refused["code"], refused["zh"]) == ("no_such_item", Reason.NO_SUCH_ITEM.zh)
    assert counter.shop.agree(counter.card, 600, 5_000).balances_fen == (0, 4_800)


def test_an_undo_is_given_once(counter: Counter) -> None:
    """The last sale is given back once however often it is asked; an earlier or unknown one is not."""
    for number in ("A1", "A2"):
        counter.tap()
        counter.ask(do="sale", number=number, amount_fen=100)
    assert counter.ask(do="undo", number="A1")["code"] == "nothing_to_undo"
    assert counter.ask(do="undo", number="A9")["code"] == "not_found"
    assert counter.ask(do="undo", number="A2")["code"] == "no_card"
    counter.tap()
    undone = counter.ask(do="undo", number="A2")
    assert (undone["ok"], undone["code"], undone["amount_fen"]) == (True, "undone", 100)
    assert counter.ask(do="undo", number="A2") == undone
    assert counter.shop.agree(counter.card, 600, 5_000).balances_fen == (500, 5_000)


def test_a_torn_sale_is_in_doubt_until_its_card_comes_again(counter: Counter) -> None:
    """Wherever the card is pulled away, repeating the number ends the sale with one payment."""
    paid = 0
    for step in range(1, 60):
        number = f"T{step}"

        counter.tap()
        counter.holder.cut = step
        first = counter.ask(do="sale", number=number, amount_fen=10)
        counter.holder.cut = 0
        assert first["ok"] or first["code"] in {"in_doubt", "no_card"}
        counter.tap()
        assert counter.ask(do="sale", number=number, amount_fen=10)["ok"]
        paid += 10
        counter.shop.agree(counter.card, 600, 5_000)
    state = counter.shop.agree(counter.card, 600, 5_000)
    assert sum(state.balances_fen) == 5_600 - paid


def test_status_and_close(counter: Counter) -> None:
    """Status names the shift; closing it gives totals, again the same; then nothing is sold, and no other shift is."""
    counter.tap()
    counter.ask(do="sale", number="A1", amount_fen=1_000)
    status = counter.ask(do="status")
    assert (status["ok"], status["shift"], status["list_version"], status["waiting"]) == (True, 1, 3, [])
    assert counter.ask(do="close", shift=2)["code"] == "not_found"
    closed = counter.ask(do="close", shift=1)
    assert closed["totals"] == [
        {"what": "pay", "purse": "subsidy", "count": 1, "fen": 600},
        {"what": "pay", "purse": "main", "count": 1, "fen": 400},
    ]
    assert counter.ask(do="status")["shift"] is None
    assert counter.ask(do="close", shift=1) == closed
    counter.tap()
    assert counter.ask(do="sale", number="A2", amount_fen=1)["code"] == "shift_closed"
    counter.shop.terminal.open_shift("li")
    assert counter.ask(do="close", shift=1) == closed
    assert counter.ask(do="status")["shift"] == 2


BAD = [
    b"\n", b"{\n", b"[]\n", b"7\n", b"\xff\xfe\n", b"[" * 9_000 + b"\n", b'{"do": "rob"}\n', b'{"do": ["sale"]}\n',
    b'{"do": "sale", "amount_fen": 5}\n', b'{"do": "sale", "number": 7, "amount_fen": 5}\n',
    b'{"do": "sale", "number": "", "amount_fen": 5}\n', b'{"do": "sale", "number": "\\ud800", "amount_fen": 5}\n',
    b'{"do": "sale", "number": "a\\u001b", "amount_fen": 5}\n',
    b'{"do": "sale", "number": "' + b"9" * 65 + b'", "amount_fen": 5}\n',
    b'{"do": "sale", "number": "A", "amount_fen": 5.0}\n', b'{"do": "sale", "number": "A", "amount_fen": true}\n',
    b'{"do": "sale", "number": "A", "amount_fen": "5"}\n', b'{"do": "sale", "number": "A", "amount": 5}\n',
    b'{"do": "sale", "number": "A", "items": {"101": 2}}\n', b'{"do": "sale", "number": "A", "items": [["101"]]}\n',
    b'{"do": "sale", "number": "A", "items": [[101, 2]]}\n', b'{"do": "sale", "number": "A", "units": null}\n',
    b'{"do": "undo"}\n', b'{"do": "close"}\n', b'{"do": "close", "shift": "1"}\n', b'{"do": "status", "shift": 1}\n',
]  # fmt: skip


def test_bad_lines_are_answered_and_change_nothing(counter: Counter) -> None:
    """Each line that is no request is answered as such, and the same connection goes on."""
    counter.tap()
    for line in BAD:
        answer = counter.say(line)
        assert (answer["ok"], answer["code"]) == (False, "bad_request"), line
    for amount in (0, -5, 10**30):
        counter.tap()
        assert counter.ask(do="sale", number="A", amount_fen=amount)["code"] == "amount_invalid"
    assert counter.shop.moves() == []
    assert counter.ask(do="status")["ok"]


def test_an_endless_line_ends_the_connection(counter: Counter) -> None:
    """A line beyond 64 KiB is answered once and hung up on; another register is served."""
    answer = counter.say(b"9" * (MAX_LINE + 1))
    assert answer["code"] == "bad_request"
    assert counter.stream.readline() == b""
    counter.stop()
    counter.start()
    assert counter.ask(do="status")["ok"]


@given(st.binary(max_size=200))
def test_no_line_raises(line: bytes) -> None:
    """Whatever a register sends, it gets one line of JSON."""
    register = Register(object(), Presented())  # type: ignore[arg-type]
    answer = register.answer(b'{"do":' + line)
    assert answer.count(b"\n") == 1
    assert not json.loads(answer)["ok"]
