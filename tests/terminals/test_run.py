"""Terminals as processes: lines typed, cards presented, killed in the middle and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from cardlib.blacklist import Blacklist, ListReason, ListStore, snapshot
from cardlib.crypto.signing import SigningKey
from cardlib.iso7816 import read_record, update_binary
from cardlib.profile import AccessRights, LastPassage, Punch, Purpose, load_profile
from cardlib.purse import open_application
from cardlib.records import Note, PassageReport, PunchReport, Transaction
from cardlib.sam import CardSam
from keymgmt.personalise import protector
from keymgmt.samload import SamKind
from simulator import image
from simulator.card import Card
from simulator.rig import PIN, Enterprise
from terminals.config import Kind
from terminals.journal import Journal
from tests.onecard import onecard
from tests.pcsc_world import PcscWorld, end, wait_present
from tests.secretwatch import WATCH

ROOT = Path(__file__).parent.parent.parent
CLI, KILLED = ROOT / "cli.py", ROOT / "tests" / "terminals" / "killed.py"
TERMINAL = bytes.fromhex("310000000777")
SIGNER = SigningKey(bytes(range(32)))
PATIENCE_S = 60
FIRST_PORT = 35963
DOORS = "[weeks.1]\ndaily = ['00:00-24:00']\n[doors.1]\nzone_inside = 10\ngroups = [1]\n"


@dataclass
class Site:
    """A terminal on files: configuration, list, images of its SAM and of a card."""

    enterprise: Enterprise
    folder: Path
    kind: Kind
    running: list[Running] = field(default_factory=list)

    def __post_init__(self) -> None:
        sam = self.enterprise.new_sam(SamKind(self.kind.value), TERMINAL)
        self.serial = CardSam(sam).info().serial
        sam.reset()
        image.save(sam, self.path("sam.img"))
        self.list_cards()

    def path(self, name: str) -> Path:
        return self.folder / name

    def configure(self, more: str = "") -> None:
        self.path("t.toml").write_text(
            f'version = 1\nkind = "{self.kind.value}"\nenterprise_id = {self.enterprise.enterprise_id}\n'
            f'journal = "{self.path("journal.db")}"\nlists = "{self.path("lists.db")}"\n'
            f'list_root_key = "{SIGNER.public.hex()}"\n{more}'
        )

    def list_cards(self, *lost: bytes) -> None:
        now_ms, path = time.time_ns() // 1_000_000, self.path("lists.db")
        path.unlink(missing_ok=True)
        listed = Blacklist.of(self.enterprise.enterprise_id, 1, now_ms, [(one, ListReason.LOST) for one in lost])
        ListStore(path, self.enterprise.enterprise_id, SIGNER.public).take(snapshot(SIGNER, listed))

    def new_card(self, name: str = "card.img", fen: int = 0, groups: int = 0b10) -> bytes:
        """A card's image, with this much in its main purse; returns its serial."""
        enterprise, card = self.enterprise, self.enterprise.new_card()
        session = open_application(card, enterprise.host, enterprise.enterprise_id, enterprise.random_bytes)
        protect = protector(enterprise.host, session.factor, session.version, Purpose.MAINTENANCE)
        rights = AccessRights(None, date(2099, 1, 1), groups.to_bytes(8, "big"))
        update_binary(card, 0x0019, rights.encode(), protect=protect)
        if fen:
            enterprise.recharge(card, fen)
        card.reset()
        image.save(card, self.path(name))
        return session.factor

    def card(self, name: str = "card.img") -> Card:
        """The card as its image is now, authenticated."""
        card = image.load(self.path(name))
        open_application(card, self.enterprise.host, self.enterprise.enterprise_id, self.enterprise.random_bytes)
        return card

    def balance(self) -> int:
        return self.enterprise.balance(image.load(self.path("card.img")))

    def start(self, *args: str, die_at: int = 0, json_too: bool = True) -> Running:
        made = Running(self, args, die_at, json_too)
        self.running.append(made)
        return made

    def records(self, kind: type[Any]) -> list[Any]:
        """What the journal holds, after its full check."""
        enterprise_id = self.enterprise.enterprise_id
        with Journal(self.path("journal.db"), enterprise_id, TERMINAL, self.serial, lambda: 0) as journal:
            journal.verify()
            self.waiting = len(journal.open_jobs())
            return [entry for entry in journal.collect(1).entries if isinstance(entry.record, kind)]

    def notes(self) -> list[str]:
        return [entry.record.code for entry in self.records(Note)]


class Running:
    """A process with its console in a file."""

    def __init__(self, site: Site, args: tuple[str, ...], die_at: int, json_too: bool) -> None:
        name = f"console-{len(site.running)}"
        self.console, self.data = site.path(f"{name}.log"), site.path(f"{name}.jsonl")
        reader = str(site.path("card.img"))
        program = [sys.executable, str(KILLED), str(die_at), reader] if die_at else [onecard()]
        command = ["terminal", "run", "--terminal", str(site.path("t.toml")), "--sam-reader"]
        command += [f"sim:{site.path('sam.img')}", "--reader", f"sim:{reader}", *args]
        command += ["--json"] if json_too else []
        known = {key: value for key, value in os.environ.items() if not key.startswith("ONECARD_")}
        extra = {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "ONECARD_HOLDER_PIN_FILE": str(site.path("pin"))}
        extra["ONECARD_SCBK_FILE"] = str(site.path("scbk"))
        with self.console.open("w") as console, self.data.open("w") as data:
            self.process = subprocess.Popen(
                [*program, *command], stdin=subprocess.PIPE, stdout=data if json_too else console,
                stderr=console, env=known | extra, cwd=site.folder, text=True,
            )  # fmt: skip

    def type(self, line: str = "") -> Running:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self

    def until(self, words: str, times: int = 1) -> str:
        """Wait until the console has said this, so many times; returns all it said."""
        end = time.monotonic() + PATIENCE_S
        while (text := self.console.read_text()).count(words) < times:
            assert time.monotonic() < end, text
            assert self.process.poll() is None or self.console.read_text().count(words) >= times, text
            time.sleep(0.02)
        return text

    def events(self, count: int) -> list[dict[str, Any]]:
        """The first events, once there are so many."""
        end = time.monotonic() + PATIENCE_S
        while len(lines := self.data.read_text().splitlines()) < count:
            assert time.monotonic() < end, self.console.read_text()
            assert self.process.poll() is None, self.console.read_text()
            time.sleep(0.02)
        return [json.loads(line) for line in lines]

    def end(self, number: int | None = None) -> int:
        """Type ``quit``, or send a signal; returns the exit code."""
        if number is None:
            self.type("quit")
        else:
            self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        self.close()
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE_S)
        assert self.process.stdin is not None
        if not self.process.stdin.closed:
            self.process.stdin.close()


@pytest.fixture
def site(request: pytest.FixtureRequest, enterprise: Enterprise, tmp_path: Path) -> Iterator[Site]:
    made = Site(enterprise, tmp_path, request.param)
    made.path("pin").write_text(PIN)
    yield made
    for one in made.running:
        one.close()


pos = pytest.mark.parametrize("site", [Kind.POS], indirect=True)
access = pytest.mark.parametrize("site", [Kind.ACCESS], indirect=True)
attendance = pytest.mark.parametrize("site", [Kind.ATTENDANCE], indirect=True)


@pos
def test_a_till_takes_keyed_amounts_one_after_another(site: Site) -> None:
    """Each amount keyed is paid once; a sale number typed again is not charged again; undo gives it back."""
    site.configure("[rules]\npin_above_fen = 3000\n")
    serial = site.new_card(fen=100_00)
    till = site.start("--cashier", "kim", "--language", "en")
    till.type("12.50").type().type("7 s7").type().type("7 s7").type().type("40").type().type("undo").type()
    events = till.events(5)
    assert [one["balance_fen"] for one in events] == [87_50, 80_50, 80_50, 40_50, 80_50]
    assert events[0]["card"] == serial.hex().upper()
    assert events[4]["event"].startswith("undo")
    till.type().type("0").type("1.2.3").type("99").type()
    assert [one["reason"] for one in till.events(7)[5:]] == ["amount_invalid", "balance"]
    assert till.end() == 0
    text = till.until("paid 12.50, balance 87.50")
    assert "refused: the balance is not enough (balance)" in text
    assert text.count("is not understood here") == 2
    assert site.balance() == 80_50
    assert site.notes()[-1] == "stopped"


@pos
def test_a_till_with_a_fixed_amount_serves_whoever_comes(site: Site) -> None:
    """Every card pays the fixed amount, in Chinese by default; one of another enterprise and no card are refused."""
    site.configure()
    site.new_card(fen=20_00)
    site.new_card("other.img", fen=5_00)
    stranger = site.enterprise.neighbour(site.folder, 2)
    image.save(stranger.new_card(), site.path("foreign.img"))
    till = site.start("--amount", "8", "--cashier", "kim")
    till.type().type("card other.img").type("card other.img").type("card foreign.img").type("card none.img").type()
    outcomes = [one.get("reason", one.get("balance_fen")) for one in till.events(5)]
    assert outcomes == [12_00, "balance", "balance", "no_application", 4_00]
    assert till.end(signal.SIGINT) == 130
    text = till.until("消费成功 8.00, 余额 12.00")
    assert "拒绝: 余额不足 (balance)" in text
    assert "none.img" in text
    assert site.notes()[-1] == "stopped"
    stranger.close()


@pos
@pytest.mark.parametrize("fixed", [False, True])
def test_a_till_killed_anywhere_charges_once(site: Site, fixed: bool) -> None:
    """Killed before and after exchanges with the card, started again, the card shown again: paid once, no more."""
    site.configure()
    site.new_card(fen=100_00)
    fresh, sam = site.path("card.img").read_bytes(), site.path("sam.img").read_bytes()
    args = ("--cashier", "kim", *(("--amount", "12") if fixed else ()))
    survived = False
    step = 3
    while not survived:
        site.path("card.img").write_bytes(fresh)
        site.path("sam.img").write_bytes(sam)
        site.path("journal.db").unlink(missing_ok=True)
        till = site.start(*args, die_at=step)
        till.type("" if fixed else "12 s1")
        if not fixed:
            till.type()
        while till.process.poll() is None and not till.data.read_text():
            time.sleep(0.01)
        survived = till.process.poll() is None
        assert survived or till.process.returncode == -signal.SIGKILL
        till.process.kill()
        till.process.wait(PATIENCE_S)
        again = site.start(*args)
        again.type("" if fixed else "12 s1")
        if not fixed:
            again.type()
        [event] = again.events(1)
        assert (event["event"], event["amount_fen"], event["balance_fen"]) == ("pay", 12_00, 88_00), step
        assert again.end() == 0
        assert site.balance() == 88_00
        assert [one.event for one in site.records(Transaction)].count(2) == 1
        assert site.waiting == 0
        step += 5
    assert step > 20


@access
def test_a_door_opens_for_whom_it_may(site: Site) -> None:
    """A right card passes, one without the group does not; contact, emergency and the end work the lock."""
    site.configure(DOORS + "release_ms = 300\n")
    site.new_card()
    site.new_card("other.img", groups=0b100)
    door = site.start("--language", "en")
    door.until("door 1: locked")
    door.type()
    assert door.events(1)[0]["granted"] is True
    door.until("door 1: unlocked")
    door.until("door 1: locked", 2)
    door.type("card other.img")
    assert door.events(2)[1]["reason"] == "not_this_door"
    door.type("open 1")
    time.sleep(0.5)
    door.type("shut 1").type("door 1 out").type("door 9").type("emergency on").until("stands unlocked")
    assert door.end(signal.SIGTERM) == 0
    text = door.until("door 1: locked", 3)
    assert "refused: no right to pass this door (not_this_door)" in text
    assert "'door 9' is not understood here" in text
    assert site.notes() == ["started", "door_forced", "door_closed", "emergency", "stopped"]
    assert [entry.record.granted for entry in site.records(PassageReport)] == [True, False]


@access
def test_a_door_asks_for_the_pin_where_its_hours_want_it(site: Site) -> None:
    """The PIN comes from whoever is asked; without one the door stays shut, and says why."""
    site.configure(DOORS + "pin_hours = 1\n")
    site.new_card()
    door = site.start()
    assert door.type().events(1)[0]["granted"] is True
    site.path("pin").unlink()
    assert door.type().events(2)[1]["reason"] == "pin_required"
    assert door.end() == 0
    assert "请输入密码" in door.until("门 1: 已开锁")


@access
def test_a_door_killed_anywhere_is_locked_again(site: Site) -> None:
    """Killed in the middle of a tap, or with its lock released: the next start locks, the journal is whole."""
    site.configure(DOORS + "release_ms = 60000\n")
    site.new_card()
    for step in (0, 6, 13):
        door = site.start("--language", "en", die_at=step)
        door.until("door 1: locked")
        door.type()
        if step == 0:
            door.until("door 1: unlocked")
            door.process.kill()
        assert door.process.wait(PATIENCE_S) == -signal.SIGKILL
        again = site.start("--language", "en")
        assert "unlocked" not in again.until("door 1: locked")
        assert again.end() == 0
        assert [entry.record.granted for entry in site.records(PassageReport)] == [True]
    assert LastPassage.decode(read_record(site.card(), 0x17, 2, by_tag=True)).zone == 10


@attendance
def test_punches_go_by_the_key_pressed(site: Site) -> None:
    """A key is for one card; a second punch within a minute is none; a card that is none of ours is noted."""
    site.configure()
    site.new_card()
    site.new_card("other.img")
    image.save(Card.vendor_fresh(bytes(range(16)), site.enterprise.random_bytes), site.path("blank.img"))
    clock = site.start("--language", "en")
    clock.type("out").type().type("out").type().type("card other.img").type("card blank.img").type("sideways")
    events = clock.events(4)
    assert [(one.get("direction"), one.get("repeated")) for one in events] == [
        ("out", False), ("out", True), ("in", False), (None, None),
    ]  # fmt: skip
    assert clock.end() == 0
    assert "'sideways' is not understood here: in, out" in clock.until("punched", 3)
    assert [entry.record.direction for entry in site.records(PunchReport)] == [1, 0]
    assert site.notes() == ["started", "refused", "stopped"]


@attendance
def test_a_clock_killed_anywhere_keeps_what_it_said(site: Site) -> None:
    """Killed around the punch: the journal is whole, and a card shown again within the minute has one punch."""
    site.configure()
    site.new_card()
    fresh = site.path("card.img").read_bytes()
    for step in (3, 11, 12, 13, 14, 15, 16):
        site.path("card.img").write_bytes(fresh)
        site.path("journal.db").unlink(missing_ok=True)
        clock = site.start(die_at=step).type()
        while clock.process.poll() is None and not clock.data.read_text():
            time.sleep(0.01)
        clock.process.kill()
        clock.process.wait(PATIENCE_S)
        again = site.start()
        again.type().events(1)
        assert again.end() == 0
        assert len(site.records(PunchReport)) == 1, step
        punches = load_profile().file("punches").fid
        assert Punch.decode(read_record(site.card(), punches, 1)).sequence == 1


@pytest.mark.parametrize(
    ("site", "says"),
    [(Kind.RECHARGE, "onecard wallet recharge"), (Kind.ISSUING, "onecard card issue")],
    indirect=["site"],
)
def test_kinds_that_need_the_office_say_so(site: Site, says: str) -> None:
    """Recharge and issuing need the office's keys: they end at once, and say where to go."""
    site.configure()
    site.new_card()
    started = site.start()
    assert started.process.wait(PATIENCE_S) == 2
    assert says in started.console.read_text()


@access
def test_no_secret_is_on_the_console(site: Site) -> None:
    """Neither screen nor data nor refusals show the PIN."""
    site.configure(DOORS + "pin_hours = 1\n")
    site.new_card()
    site.path("pin").write_text("424242")
    door = site.start("--log-level", "debug")
    assert door.type().events(1)[0]["reason"] == "pin_wrong"
    assert door.end() == 0
    assert "424242" not in door.console.read_text() + door.data.read_text()
    WATCH.saw("the console", door.console.read_text())


@pos
def test_a_till_serves_the_cards_of_a_reader(site: Site, tmp_path: Path) -> None:
    """With PC/SC readers for card and SAM: a card pays as it comes, once, and again when it came back."""
    site.configure()
    site.new_card(fen=100_00)
    with PcscWorld(tmp_path) as world:

        def insert(kind: str, slot: int, name: str) -> subprocess.Popen[str]:
            port = str(FIRST_PORT + slot)
            argv = [sys.executable, "cli.py", "sim", kind, "--vpcd-port", port, "--image", str(site.path(name))]
            process = world.start(argv)
            world.call(wait_present, world.reader(slot), True)
            return process

        card = insert("card", 0, "card.img")
        sam = insert("sam", 1, "sam.img")
        till = world.start(
            [sys.executable, "cli.py", "terminal", "run", "--terminal", str(site.path("t.toml")), "--json",
             "--reader", f"pcsc:{world.reader(0)}", "--sam-reader", f"pcsc:{world.reader(1)}",
             "--amount", "8", "--cashier", "kim"]
        )  # fmt: skip
        assert till.stdin is not None
        assert till.stdout is not None
        assert json.loads(till.stdout.readline())["balance_fen"] == 92_00
        end(card)
        world.call(wait_present, world.reader(0), False)
        insert("card", 0, "card.img")
        assert json.loads(till.stdout.readline())["balance_fen"] == 84_00
        till.stdin.write("3.50 s1\n")  # the card lies there still
        till.stdin.flush()
        assert json.loads(till.stdout.readline())["balance_fen"] == 80_50
        end(sam)  # pulled out, and put back
        world.call(wait_present, world.reader(1), False)
        till.stdin.write("1 s2\n")
        till.stdin.flush()
        assert json.loads(till.stdout.readline())["reason"] == "sam_fault"
        insert("sam", 1, "sam.img")
        event: dict[str, Any] = {"reason": "sam_fault"}
        while event.get("reason") == "sam_fault":
            time.sleep(0.5)
            till.stdin.write("1 s2\n")
            till.stdin.flush()
            event = json.loads(till.stdout.readline())
        assert event.get("balance_fen") == 79_50, event
        till.stdin.write("quit\n")
        till.stdin.flush()
        assert till.wait(PATIENCE_S) == 0
    assert site.balance() == 79_50
