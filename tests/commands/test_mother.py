"""Mother cards by commands: made once per enterprise, resumed, listed, limited, made again with a typed word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backoffice.audit import Event
from backoffice.database import Database
from backoffice.operators import Credential
from cardlib.crypto.sealing import Argon2Params
from simulator import image
from simulator.card import Card
from simulator.mothercard import MotherCard
from simulator.sam import SamCard
from simulator.world import QUICK
from tests.commands import test_life
from tests.commands.test_life import HOLDER, Office
from tests.commands.test_permissions import ENTERPRISE
from tests.secretwatch import register

PINS = {"MOTHER_PIN": "806421", "AUTHENTICATION_PIN": "975302"}
OTHER = ENTERPRISE + 1


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Office:
    """An installation with two enterprises, and vendor-fresh chips for a mother and an authentication card."""
    monkeypatch.setattr(Argon2Params.__init__, "__defaults__", (QUICK.memory_kib, QUICK.iterations, QUICK.lanes))
    monkeypatch.setattr(Credential.make.__func__, "__defaults__", (QUICK,))  # type: ignore[attr-defined]  # a classmethod
    for name, value in (test_life.SECRETS | PINS).items():
        register(value, name)
        (tmp_path / name).write_text(value + "\n")
        monkeypatch.setenv(f"ONECARD_{name}_FILE", str(tmp_path / name))
    office = Office(tmp_path)
    office("init", enterprise=None)
    for number in (ENTERPRISE, OTHER):
        office("enterprise", "register", f"E{number}", enterprise=number)
    office.vendor("mother", MotherCard)
    office.vendor("authentication", Card)
    return office


def run(office: Office, *args: str, mother: str = "mother", other: str = "authentication", **options: Any) -> Any:
    """A verb of ``key mother`` with both cards in readers."""
    more = [] if args[0] == "limit" else ["--authentication-reader", f"sim:{office.path(other)}.img"]
    return office.at(mother, "key", "mother", *args, *more, **options)


def left(office: Office, **options: Any) -> dict[str, int | None]:
    return {row["purpose"]: row["left"] for row in run(office, "list", **options)}


def test_make_list_limit(office: Office) -> None:
    """A pair is made, lists every key with its check value, and takes a limit; each is in the audit log."""
    plan = run(office, "make", "--limit", "load=5", dry_run=True)
    assert (plan["dry_run"], any("load 5" in line for line in plan["plan"])) == (True, True)
    made = run(office, "make", "--limit", "load=5", "--limit", "tac=0")
    assert (made["mother"][:2], made["authentication"][:2], made["enterprise"]) == ("04", "05", ENTERPRISE)
    assert len(made["keys"]) == 14
    counts = left(office)
    assert (counts["load"], counts["tac"], counts["card"], counts["slot"]) == (5, 0, 1000, None)
    assert run(office, "limit", "tac", "7") == {"mother": made["mother"], "purpose": "tac", "left": 7}
    assert run(office, "limit", "tac", "8", dry_run=True)["dry_run"]
    assert left(office)["tac"] == 7
    with Database(office.db / "platform.sqlite", "platform") as db, db.read() as tx:
        noted = tx.all("SELECT subject, details FROM audit_event WHERE event = ?", (Event.MOTHER_CARD.value,))
    assert {row["subject"] for row in noted} == {f"card:{made['mother']}"}
    assert [json.loads(row["details"])["outcome"] for row in noted] == ["made", "listed", "limit", "listed"]


def test_made_again_by_the_same_command(office: Office) -> None:
    """The same cards once more: proven, limits set anew, no other serial; a request id gives the first outcome."""
    made = run(office, "make", request_id="m1")
    assert run(office, "make", request_id="m1") == made
    assert run(office, "make", "--limit", "card=3")["mother"] == made["mother"]
    assert left(office)["card"] == 3


@pytest.mark.parametrize("step", [10, 100, 250, 380])
def test_torn(office: Office, step: int) -> None:
    """Torn at any place, the same command with the same cards ends it; a chip without serial needs --again."""
    office.cut_at = step
    torn = run(office, "make", code=5)
    assert torn["exit"] == 5
    office.cut_at = 0
    more = []
    if step == 10:
        assert "--again" in run(office, "make", code=4)["message"]
        more = ["--again", "--confirm", "AGAIN"]
    assert len(run(office, "make", *more)["keys"]) == 14
    assert left(office)["card"] == 1000


def test_one_per_enterprise(office: Office) -> None:
    """A second mother card needs --again and the typed word; another enterprise gets its own."""
    made = run(office, "make")
    office.vendor("m2", MotherCard)
    office.vendor("a2", Card)
    fresh = {"mother": "m2", "other": "a2"}
    assert made["mother"] in run(office, "make", code=4, **fresh)["message"]
    assert run(office, "make", "--again", code=1, **fresh)["reason"] == "not_confirmed"
    assert run(office, "make", enterprise=OTHER, **fresh)["enterprise"] == OTHER
    run(office, "make", enterprise=OTHER, code=4)
    run(office, "make", other="a2", code=4)
    office.vendor("m3", MotherCard)
    office.vendor("a3", Card)
    second = run(office, "make", "--again", "--confirm", "AGAIN", mother="m3", other="a3")
    assert second["mother"] != made["mother"]
    assert "not the one" in run(office, "make", code=4)["message"]


def test_wrong_cards_and_pins(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cards mixed up, another's authentication card, a wrong PIN, an impossible limit: each has its error."""
    run(office, "make")
    office.vendor("m2", MotherCard)
    office.vendor("a2", Card)
    run(office, "make", enterprise=OTHER, mother="m2", other="a2")
    assert "no mother card" in run(office, "list", mother="authentication", other="mother", code=4)["message"]
    assert "not that of" in run(office, "list", other="a2", code=7)["message"]
    assert "mother card" in run(office, "list", mother="m2", other="a2", code=4)["message"]
    run(office, "list", other="mother", code=2)
    run(office, "make", "--limit", "slot=5", code=2)
    run(office, "make", "--limit", "card=65536", code=2)
    run(office, "make", "--versions", "0", code=2)
    office.vendor("m4", MotherCard)
    run(office, "limit", "card", "5", mother="m4", code=4)
    wrong = Path(office.path("wrong"))
    wrong.write_text("000000\n")
    monkeypatch.setenv("ONECARD_MOTHER_PIN_FILE", str(wrong))
    assert "2 tries left" in run(office, "list", code=1)["message"]


def test_simulated_chips(office: Office) -> None:
    """``sim make`` makes both kinds, one at a time; an authentication card is a card whose serial says so."""
    for flag, kind in (("--mother", "mother"), ("--authentication", "card")):
        made = office("sim", "make", office.path(f"x{flag}.img"), flag, "--transport-key", "11" * 16)
        assert made["kind"] == image.load(Path(office.path(f"x{flag}.img"))).KIND == kind
    office("sim", "make", office.path("y.img"), "--mother", "--sam", code=2)


STATION = "340000000001"


def test_issue_without_key_store(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the platform washed and opened, the enterprise issues by mother card and issuing SAM, no passphrase near."""
    run(office, "make", enterprise=ENTERPRISE)
    office.vendor("sam", SamCard)
    office.vendor("card")
    office.at("sam", "sam", "wash")
    card = office.at("card", "card", "wash")["card"]
    assert office.at("card", "card", "open-slot")["slot"] == 1
    office("member", "add", HOLDER, "王小明")
    for name in ("KEY_PASSPHRASE", "TRANSPORT_KEY"):
        monkeypatch.delenv(f"ONECARD_{name}_FILE")
    pair = [f"--{option}=sim:{office.path(name)}.img" for option, name in
            (("mother", "mother"), ("authentication", "authentication"))]  # fmt: skip
    office.at("sam", "sam", "personalize", STATION, "--kind", "issuing", "--register", "issuing desk", *pair)
    issue = ["card", "issue", HOLDER, *pair]
    assert "--issuing-sam" in office.at("card", *issue, code=2)["message"]
    issue.append(f"--issuing-sam=sim:{office.path('sam')}.img")
    assert "--mother" in office.at("card", *issue[:3], issue[-1], code=2)["message"]
    office.cut_at = 150
    office.at("card", *issue, code=5)
    office.cut_at = 0
    made = office.at("card", *issue)
    assert (made["card"], made["state"]) == (card, "active")
    used = [row for row in office("audit", "list", enterprise=None) if row["event"] == "key.used"]
    assert any((row["subject"], "card issue" in row["details"]) == (f"key:slot.1.{ENTERPRISE}", True) for row in used)
    monkeypatch.setenv("ONECARD_KEY_PASSPHRASE_FILE", str(office.folder / "KEY_PASSPHRASE"))
    office.at("card", "wallet", "recharge", "50")
    office("settle", "run")
    assert office("settle", "findings") == []
