"""Notices at the command line: from a lost card to the text in the member's phone, over TCP."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

import cli
from backoffice import members, operators
from backoffice.database import Database
from backoffice.enterprises import change_setting
from backoffice.installation import Installation
from backoffice.members import Member
from backoffice.operators import Credential
from cardlib.netport import Listener, wait
from console import Session
from simulator.smsc import Centre
from simulator.world import QUICK
from tests.secretwatch import register
from tests.simulator.smscrig import BIND, PASSWORD, Handset

SECRET = "a secret of the notices"
ENTERPRISE = 6
PHONE = "13800000001"
CARD = bytes.fromhex("0201000000000197")


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An enterprise with a member whose card was just lost; never quiet."""
    folder = tmp_path / "office"
    register(SECRET, "operator")
    credential = Credential.make(SECRET, bytes, QUICK)
    made = Installation(folder, lambda _: SECRET, operator="platform")
    monkeypatch.setattr(Credential, "make", lambda *_: credential)
    made.create(SECRET, SECRET, QUICK, roots=False)
    made.close()
    with Installation(folder, lambda _: SECRET, operator="platform", enterprise_id=ENTERPRISE, platform=True) as one:
        one.open_enterprise(ENTERPRISE, "Example", 480, credential)
    with Database(folder / f"enterprise-{ENTERPRISE}.sqlite", "enterprise") as db, db.write() as tx:
        admin = operators.get(tx, ENTERPRISE, "admin")
        members.add(tx, admin, ENTERPRISE, Member("1", "王伟", PHONE))
        change_setting(tx, admin, ENTERPRISE, "notice_quiet_until_min", "1320")
        tx.execute(
            "INSERT INTO card_application (enterprise_id, card_serial, member_number, kind, state, slot, key_version,"
            " starts, expires, created_ms, changed_ms) VALUES (?, ?, '1', 2, 'lost', 1, 1, '2026-01-01', '2031-01-01',"
            " 0, 0)",
            (ENTERPRISE, CARD),
        )
        lose(tx, "active", "lost")
    for name, secret in (("OPERATOR_SECRET", SECRET), ("SMPP_PASSWORD", PASSWORD)):
        (tmp_path / name).write_text(secret + "\n")
        monkeypatch.setenv(f"ONECARD_{name}_FILE", str(tmp_path / name))
    return folder


def lose(tx: Any, old: str, new: str) -> None:
    tx.execute(
        "INSERT INTO card_transition (enterprise_id, transition_id, card_serial, state_from, state_to, actor, reason,"
        " at_ms) VALUES (?, ?, ?, ?, ?, 'test', 'test', ?)",
        (ENTERPRISE, tx.new_id(), CARD, old, new, tx.now_ms),
    )


@contextmanager
def centre() -> Iterator[tuple[int, Handset]]:
    """A message centre on a free port, with the member's phone."""
    made, phone, listener, stop = (
        Centre({BIND.system_id: PASSWORD}, time.time),
        Handset(),
        Listener("127.0.0.1", 0),
        Event(),
    )
    made.register(PHONE, phone)

    def serve() -> None:
        while not stop.is_set():
            wait([listener], 0.01)
            if line := listener.accept():
                made.attach(line)
            made.poll()

    thread = Thread(target=serve)
    thread.start()
    try:
        yield listener.port, phone
    finally:
        stop.set()
        thread.join()
        made.close()
        listener.close()


def test_from_a_lost_card_to_a_text(office: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Language, opt-out, a dry run, sending once and only once, the list without number or name."""

    def onecard(*words: str, code: int = 0, dry_run: bool = False) -> Any:
        session = Session(db=office, enterprise=ENTERPRISE, json=True, quiet=True, no_input=True, dry_run=dry_run)
        assert cli.run(["notice", *words], session) == code, capsys.readouterr().err
        said = capsys.readouterr()
        assert PHONE not in said.out + said.err
        return json.loads(said.out or said.err)

    assert onecard("language", "1", "en") == {"member_number": "1", "language": "en"}
    assert onecard("opt-out", "1", "unlock", "payment")["refused"] == ["payment", "unlock"]
    with centre() as (port, phone):
        send = ("send", "--smpp", f"127.0.0.1:{port}", "--system-id", BIND.system_id, "--source", "Canteen")
        assert onecard(*send, dry_run=True) == {"waiting": 0, "dry_run": True}
        assert onecard(*send) == {"sent": 1}
        assert onecard(*send) == {}
        assert len(phone.inbox) == 1
        assert phone.inbox[0].startswith("Card ending 0197 was reported lost on ")
        (told,) = onecard("list")
        assert (told["kind"], told["state"], told["member_number"]) == ("loss", "sent", "1")
        assert onecard("again", told["origin"], code=4)["error"] == "Conflict"
    assert onecard("quiet", "22:00-07:00") == {"notice_quiet_from_min": 1320, "notice_quiet_until_min": 420}
    assert onecard("statements", "2020-01") == {"month": "2020-01", "queued": 0}
    assert onecard("statements", "2099-01", code=4)["error"] == "Conflict"


def test_no_centre(office: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A centre that can't be reached: exit 5, and the notice waits."""
    monkeypatch.setattr("backoffice.commands.notice.PATIENCE_S", 0.1)
    listener = Listener("127.0.0.1", 0)
    listener.close()
    session = Session(db=office, enterprise=ENTERPRISE, json=True, quiet=True, no_input=True)
    code = cli.run(["notice", "send", "--smpp", f"127.0.0.1:{listener.port}", "--system-id", "office"], session)
    assert (code, "check address and port" in capsys.readouterr().err) == (5, True)
    with Database(office / f"enterprise-{ENTERPRISE}.sqlite", "enterprise") as db, db.read() as tx:
        assert [row[0] for row in tx.all("SELECT state FROM notice")] == ["waiting"]
