"""A card pulled away under a command: exit 9 that says what to do, and the same command finds out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cli
from cardlib.profile import Purse
from console import Session
from simulator.card import Card
from simulator.world import ENTERPRISE, SECRETS, Company
from tests.secretwatch import register


@pytest.fixture
def company(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Company]:
    """A company of one, its card issued; its secrets in files."""
    for name, value in SECRETS.items():
        register(value, name)
        file = tmp_path / name.replace(" ", "_")
        file.write_text(value + "\n")
        monkeypatch.setenv(f"ONECARD_{name.upper().replace(' ', '_')}_FILE", str(file))
    made = Company(tmp_path / "office", people=1)
    made.enrol()
    assert [one.error for one in made.issue_all()] == [None]
    yield made
    made.close()


def run(company: Company, card: Card, *args: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, Any]:
    """One command with this card in the reader; returns exit code and what it printed."""
    session = Session({"rig": lambda _: card}, company.folder, ENTERPRISE, "rig:", json=True, no_input=True)
    code = cli.run(list(args), session)
    out, err = capsys.readouterr()
    return code, json.loads(out or err.splitlines()[-1])


def test_torn_recharge(company: Company, capsys: pytest.CaptureFixture[str]) -> None:
    """Cut anywhere, a recharge ends with 5 or 9; the same command then succeeds, and money moved once."""
    member = company.staff()[0]
    seen, paid = set(), 0
    for step in range(1, 80, 6):
        card = company.card(member)
        card.power.cut_at(step)
        code, said = run(company, card, "wallet", "recharge", "1", capsys=capsys)
        card.power.cut_at(0)
        card.reset()
        seen.add(code)
        assert code in (0, 5, 9), said
        if code == 9:
            assert "same card" in said["message"]
        if code:
            assert run(company, card, "wallet", "recharge", "1", capsys=capsys)[0] == 0
        paid += 1_00
        assert company.on_chip(member)[Purse.MAIN] == paid
    assert seen == {0, 5, 9}


def test_request_id(company: Company, capsys: pytest.CaptureFixture[str]) -> None:
    """A repeated request id gives the first outcome and moves nothing; with another amount it is a conflict."""
    member = company.staff()[0]
    first = run(company, company.card(member), "wallet", "recharge", "7", "--request-id", "r1", capsys=capsys)
    again = run(company, company.card(member), "wallet", "recharge", "7", "--request-id", "r1", capsys=capsys)
    assert first == again
    assert company.on_chip(member)[Purse.MAIN] == 7_00
    code, _ = run(company, company.card(member), "wallet", "recharge", "8", "--request-id", "r1", capsys=capsys)
    assert code == 4


def test_foreign_card_and_empty_reader(company: Company, capsys: pytest.CaptureFixture[str]) -> None:
    """A vendor's card is refused without a try at its keys; a missing reader is exit 2 with the schemes there are."""
    card = company.fresh_card()
    before = card.snapshot()
    code, _ = run(company, card, "wallet", "recharge", "1", capsys=capsys)
    assert code in (1, 4, 6)
    assert card.snapshot() == before
    code, said = run(company, card, "wallet", "recharge", "1", "--reader", "usb:1", capsys=capsys)
    assert (code, "rig:" in said["message"]) == (2, True)


def test_completion(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The shell completes nouns and verbs."""
    for words, number, expected in (("onecard wal", "1", "wallet"), ("onecard card reis", "2", "reissue")):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", number)
        monkeypatch.setenv("_ONECARD_COMPLETE", "bash_complete")
        with pytest.raises(SystemExit) as ended:
            cli.run([], Session())
        assert ended.value.code == 0
        assert expected in capsys.readouterr().out
