"""An enterprise lives by commands alone: made, staffed, charged, paid with, settled, lost, replaced, ended."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import cli
from backoffice import members
from backoffice.operators import Credential
from backoffice.station import OFFICE_TERMINAL
from cardlib.crypto.sealing import Argon2Params
from cardlib.errors import ReaderLost
from cardlib.transport import Transport
from console import Session
from simulator import image
from simulator.card import Card
from simulator.rig import TRANSPORT_KEY
from simulator.sam import SamCard
from simulator.world import QUICK
from tests.commands.test_permissions import ENTERPRISE, dump
from tests.secretwatch import WATCH, register

SECRETS = {
    "OPERATOR_SECRET": "one secret for all of them",
    "PLATFORM_OPERATOR_SECRET": "one secret for all of them",
    "ADMINISTRATOR_SECRET": "one secret for all of them",
    "NEW_OPERATOR_SECRET": "one secret for all of them",
    "SECOND_OPERATOR_SECRET": "one secret for all of them",
    "KEY_PASSPHRASE": "what opens the key store",
    "TRANSPORT_KEY": TRANSPORT_KEY.hex(),
    "SAM_PIN": "99887766",
    "HOLDER_PIN": "271828",
}
TILL = "310000000505"
HOLDER, OTHER = "E001", "E002"
SMALL, SMALL_SIZE = "财务部", 4
"""A department of the sample, and how many are in it."""


@dataclass
class Office:
    """The command line with its secrets in files, and image files as cards."""

    folder: Path
    serials: dict[str, str] = field(default_factory=dict)
    cut_at: int = 0

    @property
    def db(self) -> Path:
        return self.folder / "office"

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def open_simulated(self, rest: str) -> Transport:
        """Open an image as the product does; with ``cut_at`` its power goes away at that step."""
        card = cli._open_simulated(rest)
        assert isinstance(card, Card)
        card.power.cut_at(self.cut_at)
        return card

    def run(self, *args: str, **options: Any) -> tuple[int, str, str]:
        """Run a command; returns exit code, stdout, stderr."""
        given = {"enterprise": ENTERPRISE, "json": True, "no_input": True, "quiet": True} | options
        openers = {"sim": self.open_simulated, "lone": cli._open_simulated, "lost": _no_reader}
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = cli.run(list(args), Session(openers, self.db, **given))
        WATCH.saw("a command's output", out.getvalue() + err.getvalue())
        return code, out.getvalue(), err.getvalue()

    def __call__(self, *args: str, code: int = 0, **options: Any) -> Any:
        """Run a command that must end with ``code``; returns its JSON, or the error's."""
        ended, out, err = self.run(*args, **options)
        assert ended == code, f"{args}: {ended} {err}"
        return json.loads(out) if code == 0 else json.loads(err.splitlines()[-1])

    def at(self, name: str, *args: str, code: int = 0, **options: Any) -> Any:
        """A command with the card of image ``name`` in the reader."""
        return self(*args, code=code, reader=f"sim:{self.path(name)}.img", **options)

    def vendor(self, name: str, kind: type[Card] = Card) -> None:
        """A chip as the vendor delivers it, as image ``name``."""
        image.save(kind.vendor_fresh(TRANSPORT_KEY), Path(f"{self.path(name)}.img"))

    def till(self, *args: str, card: str = HOLDER, code: int = 0, **options: Any) -> Any:
        """A command of the till, with a card in its reader."""
        more = ["--terminal", self.path("till.toml"), "--sam-reader", f"sim:{self.path('sam')}.img"]
        return self.at(card, "terminal", *args, *more, code=code, **options)

    def send_list(self) -> int:
        """Publish what is staged and bring it to the till; returns the version."""
        version: int = self("blacklist", "build")["version"]
        file = self.path(f"list-{version}")
        assert self("blacklist", "export", file)["version"] == version
        assert self.till("take-list", file)["version"] == version
        return version

    def collect(self, name: str) -> Any:
        """Bring the till's journal to the back office."""
        last = self.till("export", self.path(name))["last_seq"]
        [row] = self("settle", "collect", self.path(name))
        assert (row["terminal"], row["last_seq"], row["conflicts"]) == (TILL, last, 0)
        assert self.till("acknowledge", str(last)) == {"acknowledged": last}
        return row

    def state(self, serial: str) -> str:
        state: str = self("card", "show", serial)["state"]
        return state

    def everything(self) -> list[str]:
        """Databases by content, all other files by digest."""
        files = [p for p in self.folder.rglob("*") if p.is_file() and ".sqlite" not in p.name]
        return dump(self.db) + [f"{p} {sha256(p.read_bytes()).hexdigest()}" for p in sorted(files)]


def _no_reader(name: str) -> Transport:
    raise ReaderLost(f"no reader {name}")


@pytest.fixture(scope="module", autouse=True)
def _secrets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Secrets in files, and a cost of deriving keys that suits tests."""
    folder = tmp_path_factory.mktemp("secrets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Argon2Params.__init__, "__defaults__", (QUICK.memory_kib, QUICK.iterations, QUICK.lanes))
        patch.setattr(Credential.make.__func__, "__defaults__", (QUICK,))  # type: ignore[attr-defined]  # a classmethod
        for name, value in SECRETS.items():
            register(value, name)
            (folder / name).write_text(value + "\n")
            patch.setenv(f"ONECARD_{name}_FILE", str(folder / name))
        yield folder


@pytest.fixture
def empty(tmp_path: Path) -> Office:
    """An office with nothing in it."""
    return Office(tmp_path)


def found(office: Office) -> None:
    """An installation with an enterprise, its operators and members."""
    office("init", enterprise=None)
    office("enterprise", "register", "示范企业", operator="admin")
    for application in ("payment", "access"):
        office("enterprise", "subscribe", application)
    for name, role in (("fin", "finance"), ("fen", "finance"), ("aud", "auditor"), ("iss", "issuer")):
        assert office("operator", "add", name, "--role", role)["role"] == role
    office("member", "import", str(members.sample()))


def equip(office: Office) -> None:
    """A till with its SAM and list, its shift open, and a card with 50 yuan and a subsidy of 8 for E001."""
    office.vendor("sam", SamCard)
    sam = office.at("sam", "sam", "personalize", TILL, "--kind", "pos")["sam"]
    office("terminal", "register", TILL, "canteen", "--kind", "pos", "--sam", sam)
    office.vendor(HOLDER)
    office.serials[HOLDER] = office.at(HOLDER, "card", "issue", HOLDER, "--platform-operator", "admin")["card"]
    office.at(HOLDER, "wallet", "recharge", "50")
    office.at(HOLDER, "wallet", "subsidy", "8")
    key = office("blacklist", "key")["list_root_key"]
    (office.folder / "till.key").write_text(key)
    move_till(office)
    office.send_list()
    office.till("shift", "open", "--cashier", "kim")


def move_till(office: Office) -> None:
    """Write the till's configuration: it names files of this folder."""
    key = (office.folder / "till.key").read_text()
    (office.folder / "till.toml").write_text(
        f'version = 1\nkind = "pos"\nenterprise_id = {ENTERPRISE}\njournal = "{office.path("till.db")}"\n'
        f'lists = "{office.path("till.list")}"\nlist_root_key = "{key}"\n'
    )


@pytest.fixture(scope="module")
def _founded(tmp_path_factory: pytest.TempPathFactory, _secrets: Path) -> Office:
    """An office at work, to be copied."""
    office = Office(tmp_path_factory.mktemp("founded"))
    found(office)
    equip(office)
    return office


@pytest.fixture
def office(tmp_path: Path, _founded: Office) -> Office:
    """A copy of the office at work."""
    shutil.copytree(_founded.folder, tmp_path, dirs_exist_ok=True)
    made = Office(tmp_path, dict(_founded.serials))
    move_till(made)
    return made


def yesterday() -> str:
    """Yesterday at +08:00."""
    return f"{datetime.now(UTC) + timedelta(hours=8 - 24):%Y-%m-%d}"


def test_founding(office: Office) -> None:
    """After init, register, add, import and personalize everything is listed; making it again is a conflict."""
    [enterprise] = office("enterprise", "list", enterprise=None)
    assert (enterprise["enterprise"], enterprise["name"], enterprise["state"]) == (ENTERPRISE, "示范企业", "active")
    assert office("enterprise", "show")["subscriptions"] == ["access", "payment"]
    operators = {row["operator"]: row["role"] for row in office("operator", "list")}
    expected = {"admin": "administrator", "fin": "finance", "fen": "finance", "aud": "auditor", "iss": "issuer"}
    assert operators == expected
    assert len(office("member", "list")) == 50
    assert len(office("member", "list", "--department", SMALL)) == SMALL_SIZE
    sams = {row["terminal"]: row for row in office("sam", "list")}
    terminals = {row["terminal"]: row for row in office("terminal", "list")}
    assert (sams[TILL]["sam"], sams[TILL]["state"]) == (terminals[TILL]["sam"], "active")
    assert terminals.keys() == sams.keys() == {TILL, OFFICE_TERMINAL.hex().upper()}
    keys = office("key", "list", enterprise=None)
    assert {row["state"] for row in keys} == {"active"}
    office("init", enterprise=None, code=4)
    office("enterprise", "register", "Again", code=4)
    office("operator", "add", "fin", "--role", "auditor", code=4)


def test_members(office: Office) -> None:
    """Importing again changes nothing; a member is added, changed, exported and leaves; bad rows are all named."""
    again = office("member", "import", str(members.sample()))
    assert (again["added"], again["changed"], again["unchanged"]) == (0, 0, 50)
    assert office("member", "add", "X1", "Guest", "--department", "visitors")["department"] == "visitors"
    office("member", "add", "X1", "Guest", code=4)
    assert office("member", "change", "X1", "--name", "Guest of honour")["name"] == "Guest of honour"
    office("member", "export", office.path("all.csv"))
    assert "Guest of honour" in Path(office.path("all.csv")).read_text(encoding="utf-8-sig")
    office("member", "export", office.path("all.csv"), code=4)
    assert office("member", "leave", "X1")["state"] == "left"
    assert len(office("member", "list")) == 50
    Path(office.path("bad.csv")).write_text("member_number,name\n,Nobody\nX2,\n", encoding="utf-8")
    code, out, _ = office.run("member", "import", office.path("bad.csv"))
    assert code != 0
    assert len(json.loads(out)["faults"]) == 2


def test_wash_then_issue(office: Office) -> None:
    """The platform washes a card, the enterprise issues it; washed twice it keeps its serial; a second is refused."""
    office.vendor(OTHER)
    washed = office.at(OTHER, "card", "wash")["card"]
    assert office.at(OTHER, "card", "wash")["card"] == washed
    issued = office.at(OTHER, "card", "issue", OTHER, "--platform-operator", "admin", "--request-id", "i1")
    assert (issued["card"], issued["state"]) == (washed, "active")
    again = office.at(OTHER, "card", "issue", OTHER, "--platform-operator", "admin", "--request-id", "i1")
    assert again == issued
    office.vendor("spare")
    refused = office.at("spare", "card", "issue", OTHER, "--platform-operator", "admin", code=1)
    assert refused["reason"] == "has_card"


def test_posted_card_is_confirmed(office: Office) -> None:
    """A card sent by post is of no use until its receipt is confirmed; a lost one can't be confirmed."""
    office.vendor(OTHER)
    serial = office.at(OTHER, "card", "issue", OTHER, "--posted", "--platform-operator", "admin")["card"]
    assert office.state(serial) == "posted"
    assert office.at(OTHER, "wallet", "recharge", "1", code=1)["reason"] == "card_state"
    office("card", "confirm", serial)
    assert office.state(serial) == "active"
    assert office.at(OTHER, "wallet", "recharge", "1")["balance_fen"] == 1_00
    office("card", "lose", serial)
    office("card", "confirm", serial, code=4)


def test_issue_batch_goes_on(office: Office) -> None:
    """A batch with a card missing issues the others and ends with 8; run again it finishes, then changes nothing."""
    people = [row["member_number"] for row in office("member", "list", "--department", SMALL)]
    cards = office.folder / "cards"
    cards.mkdir()
    for member in people[1:]:
        office.vendor(f"cards/{member}")
    args = ["card", "issue-batch", "b1", "--pin-sheet", office.path("pins"), "--department", SMALL]
    args += ["--platform-operator", "admin", "--reader", f"sim:{cards}"]
    code, out, err = office.run(*args)
    rows = {row["member"]: row for row in json.loads(out)}
    assert (code, len(rows)) == (8, SMALL_SIZE)
    assert [member for member in people if rows[member]["error"]] == people[:1]
    assert json.loads(err.splitlines()[-1])["exit"] == 8
    office.vendor(f"cards/{people[0]}")
    finished = office(*args)
    serials = {row["member"]: row["card"] for row in finished}
    assert {member: serials[member] for member in people[1:]} == {member: rows[member]["card"] for member in people[1:]}
    assert len(set(serials.values())) == SMALL_SIZE
    assert office(*args) == finished
    assert Path(office.path("pins")).stat().st_mode & 0o777 == 0o600
    assert {line.split(",")[0] for line in Path(office.path("pins")).read_text().split()} == set(people)


def test_wallet(office: Office) -> None:
    """Money goes in and out; the books and the statement say what the card says."""
    serial = office.serials[HOLDER]
    assert office.at(HOLDER, "wallet", "recharge", "12.34", "--account", "cash/1")["balance_fen"] == 62_34
    assert office.at(HOLDER, "wallet", "refund", "2.34")["balance_fen"] == 60_00
    assert office.at(HOLDER, "wallet", "subsidy", "5", operator="fin")["balance_fen"] == 13_00
    assert office.at(HOLDER, "wallet", "refund", "60.01", code=1)["reason"] == "balance"
    assert office("wallet", "balance", serial) == {"card": serial, "subsidy_fen": 13_00, "main_fen": 60_00}
    assert [row["amount_fen"] for row in office("wallet", "statement", serial)] == [50_00, 12_34, -2_34]


def test_balances_expire_and_one_is_given_back(office: Office) -> None:
    """What expired is void at once, taken off at the desk or given back by two operators, each exactly once."""
    serial = office.serials[HOLDER]
    assert office("settle", "expire", code=1)["reason"] == "not_expired"
    office("enterprise", "set", f"balance_expires={yesterday()}")
    office.collect("journal-1")
    office("settle", "run")
    before = office.everything()
    assert office("settle", "expire", dry_run=True) | {"dry_run": 0} == {
        "date": yesterday(), "purses": 2, "expired_fen": 58_00, "left": [], "dry_run": 0,
    }  # fmt: skip
    assert office.everything() == before
    expired = office("settle", "expire", "--request-id", "x1")
    assert (expired["purses"], expired["expired_fen"]) == (2, 58_00)
    assert office("settle", "expire", "--request-id", "x1") == expired
    assert office("settle", "expire")["purses"] == 0
    assert office("wallet", "balance", serial) == {"card": serial, "subsidy_fen": 0, "main_fen": 0}
    proposed = office("settle", "unexpire", serial, "main", "--reason", "a mistake", operator="fin")
    office("settle", "unexpire", serial, "main", "--reason", "again", operator="fen", code=4)
    assert office("settle", "approve", proposed["entry"], operator="fin", code=1)["reason"] == "two_operators"
    for _ in range(2):
        assert office("settle", "approve", proposed["entry"], operator="fen")["postings"] == proposed["postings"]
    assert office("wallet", "balance", serial)["main_fen"] == 50_00
    assert office.at(HOLDER, "wallet", "expire")["amount_fen"] == 8_00
    assert office.at(HOLDER, "wallet", "recharge", "1")["balance_fen"] == 51_00
    office("settle", "run")
    assert office("settle", "reconcile") == []
    assert office("settle", "verify")["unsealed"] >= 0


def test_a_day_at_the_till(office: Office) -> None:
    """Pay, undo, export, collect, settle: the books hold what the card holds, and the day closes when it is over."""
    serial = office.serials[HOLDER]
    paid = office.till("pay", "10", "--request-id", "s1")
    assert (paid["amount_fen"], paid["card"]) == (10_00, serial)
    assert office.till("pay", "10", "--request-id", "s1")["balance_fen"] == paid["balance_fen"]
    assert office.till("pay", "99", code=1)["reason"] == "balance"
    office.till("pay", "7.50", "--request-id", "s2")
    assert office.till("undo")["amount_fen"] == 7_50
    status = office.till("status")
    assert (status["terminal"], status["waiting"], status["list_version"] > 0) == (TILL, [], True)
    assert office.till("shift", "totals") == office.till("shift", "close")
    assert office.till("pay", "1", code=1)["reason"] == "shift_closed"
    first = office.collect("journal-1")
    assert first["records"] > 0
    [again] = office("settle", "collect", office.path("journal-1"))
    assert (again["records"], again["duplicates"] >= first["records"]) == (0, True)
    assert office("settle", "close-day", yesterday(), code=1)["reason"] == "unsettled"
    assert office("settle", "run", operator="fin")["posted"] > 0
    assert office("settle", "run")["entries"] == 0
    assert [office("settle", verb) for verb in ("findings", "gaps", "reconcile")] == [[], [], []]
    held = office("wallet", "balance", serial)
    assert held["main_fen"] + held["subsidy_fen"] == 48_00
    office("settle", "verify")
    today = f"{datetime.now(UTC) + timedelta(hours=8):%Y-%m-%d}"
    assert office("settle", "close-day", today, code=1)["reason"] == "day_not_over"
    assert office("settle", "close-day", yesterday()) == {"day": yesterday(), "state": "closed", "changed": True}
    assert office("settle", "close-day", yesterday())["changed"] is False


def test_a_silent_till_is_accepted_by_name(office: Office) -> None:
    """A day does not close while a journal is missing, unless its absence is accepted by name."""
    office("settle", "run")
    refused = office("settle", "close-day", yesterday(), code=1)
    assert (refused["reason"], TILL in refused["message"]) == ("incomplete", True)
    office("settle", "close-day", yesterday(), "--accept", "no terminal", code=2)
    assert office("settle", "close-day", yesterday(), "--accept", f"{TILL}=burnt")["changed"] is True


def test_office_gives_a_payment_back(office: Office) -> None:
    """A settled payment goes back to its card once, by its id in the statement."""
    office.till("pay", "20", "--request-id", "s1")
    office.collect("journal")
    office("settle", "run")
    serial = office.serials[HOLDER]
    payment = office("wallet", "statement", serial)[-1]["entry_id"]
    before = office("wallet", "balance", serial)["main_fen"]
    fen = -office("wallet", "statement", serial)[-1]["amount_fen"]
    assert office.at(HOLDER, "wallet", "undo", payment)["amount_fen"] == fen
    assert office("wallet", "balance", serial)["main_fen"] == before + fen
    assert office.at(HOLDER, "wallet", "undo", payment, code=1)["reason"] == "undo"
    office.at(HOLDER, "wallet", "undo", "nothing", code=3)


def test_correction_by_two(office: Office) -> None:
    """A correction is posted when another operator approves it, once, and never by who proposed it."""
    args = ["--from", "bank", "--to", "refunds", "--amount-fen", "150", "--note", "counted wrong"]
    assert office("settle", "propose", "fix-1", *args, operator="fin")["state"] == "proposed"
    refused = office("settle", "approve", "fix-1", operator="fin", code=1)
    assert refused["reason"]
    assert office("settle", "approve", "fix-1", operator="fen")["postings"] == {"bank": -150, "refunds": 150}
    office("settle", "approve", "fix-2", operator="fen", code=3)
    office("settle", "verify")


def test_gap_is_accepted_by_two(office: Office) -> None:
    """A till's journal that never comes leaves a gap by name; two operators close it, one alone may not."""
    serial = office.serials[HOLDER]
    office.till("pay", "3")
    assert office.at(HOLDER, "wallet", "subsidy", "1")["balance_fen"] == 6_00
    [gap] = office("settle", "gaps")
    assert (gap["card"], gap["purse"], gap["outstanding_fen"]) == (serial, "subsidy", -3_00), gap
    args = ["settle", "accept-gap", serial, "subsidy", "--reason", "the till burnt", "--second-operator"]
    assert office(*args, "fin", operator="fin", code=1)["reason"] == "two_operators"
    assert office(*args, "aud", operator="fin", code=1)["reason"] == "permission"
    assert office(*args, "fen", operator="fin")["outstanding_fen"] == -3_00
    assert office("settle", "gaps") == []
    assert office("wallet", "balance", serial)["subsidy_fen"] == 6_00
    office(*args, "fen", operator="fin", code=3)
    office("settle", "verify")


def test_lost_sam(office: Office) -> None:
    """What a lost SAM reports afterwards is refused and named; its serial goes onto the list."""
    [sam] = [row["sam"] for row in office("sam", "list") if row["terminal"] == TILL]
    assert office("sam", "report-lost", sam, "--since", "2026-01-01")["state"] == "lost"
    assert [(row["card"], row["reason"]) for row in office("blacklist", "list")] == [(sam, "sam_lost")]
    office.till("pay", "3")
    office.collect("journal")
    office("settle", "run")
    code, out, err = office.run("settle", "findings")
    [found] = json.loads(out)
    assert (code, found["verdict"], json.loads(err)["exit"]) == (8, "sam_lost", 8)


def test_enterprise_and_its_settings(office: Office) -> None:
    """A setting counts from now on; a suspended enterprise is refused, and closing it for good takes a word."""
    assert office("enterprise", "set", "purse_limit_fen=6000")["value"] == 6000
    assert office.at(HOLDER, "wallet", "recharge", "10.01", code=1)["reason"] == "purse_limit"
    for wrong, code in (("colour=1", 3), ("purse_limit_fen=much", 2), ("purse_limit_fen", 2)):
        office("enterprise", "set", wrong, code=code)
    assert office("enterprise", "state", "suspended")["state"] == "suspended"
    assert office("member", "list", code=1)["reason"] == "enterprise_state"
    office("enterprise", "state", "active")
    assert office("enterprise", "state", "closed", code=1)["reason"] == "not_confirmed"
    assert len(office("member", "list")) == 50
    office("enterprise", "state", "closed", "--confirm", "CLOSE")
    office("enterprise", "state", "active", code=4)


def test_roles_change(office: Office) -> None:
    """An operator may what his role may, from the moment that it is his; the last administrator stays one."""
    office("member", "add", "X1", "Guest", operator="fin", code=1)
    assert office("operator", "role", "fin", "issuer")["role"] == "issuer"
    office("member", "add", "X1", "Guest", operator="fin")
    assert office("operator", "role", "admin", "auditor", code=1)["reason"] == "last_administrator"


def test_listed_by_hand(office: Office) -> None:
    """A card put on the list is refused, and taken off it pays again."""
    serial = office.serials[HOLDER]
    assert office("blacklist", "add", serial)["changed"]
    office.send_list()
    assert office.till("pay", "1", code=1)["reason"] == "fraud"
    assert office("blacklist", "remove", serial)["changed"]
    office.send_list()
    assert office.till("pay", "1")["amount_fen"] == 1_00


def test_single_commands_and_their_trace(office: Office) -> None:
    """One who looks for a fault sends commands himself; the trace has them, and no PIN."""
    trace = Path(office.path("card.trace"))
    assert office.at(HOLDER, "apdu", "atr")["atr"]
    said = office.at(HOLDER, "apdu", "send", "00 A4 00 00 02 0BAD", trace_file=trace, code=6)
    assert (said["sw"], "6A82" in said["message"].upper()) == (0x6A82, True)
    code, out, _ = office.run(
        "apdu", "send", "00A40000020BAD", "00A40000023F00", "0084000008", "--any-status", trace_file=trace,
        reader=f"sim:{office.path(HOLDER)}.img",
    )  # fmt: skip
    assert (code, [json.loads(line)["answer"][-4:] for line in out.splitlines()]) == (0, ["6A82", "9000", "9000"])
    office.at(HOLDER, "apdu", "send", "00", code=2)
    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    assert sum("command" in line for line in lines) == 4


def test_doctor(office: Office) -> None:
    """The doctor finds the house in order, and says what an empty folder lacks without calling it wrong."""
    assert all(check["good"] for check in office("doctor") if check["fatal"])
    shutil.rmtree(office.db)
    [check] = [check for check in office("doctor") if check["what"] == "installation"]
    assert (check["good"], "init" in check["advice"]) == (False, True)


def test_simulated_chip_is_made_once(office: Office) -> None:
    """``sim make`` writes a vendor-fresh card or SAM, and never over a file."""
    key = TRANSPORT_KEY.hex()
    assert office("sim", "make", office.path("a.img"), "--transport-key", key)["kind"] == Card.KIND
    assert office("sim", "make", office.path("b.img"), "--sam", "--transport-key", key)["kind"] == SamCard.KIND
    office("sim", "make", office.path("a.img"), code=4)
    office("sim", "make", office.path("none/c.img"), code=2)
    office("sim", "card", "--vpcd-port", "9", "--image", office.path("b.img"), code=2)


def test_lost_and_found(office: Office) -> None:
    """A lost card is refused at the till once the list is there, and pays again when it was found."""
    serial = office.serials[HOLDER]
    version = office.till("status")["list_version"]
    assert office("card", "lose", serial, "--reason", "bus")["state"] == "lost"
    assert office("card", "lose", serial)["state"] == "lost"
    assert office.state(serial) == "lost"
    [listed] = office("blacklist", "list")
    assert (listed["card"], listed["reason"], listed["published"]) == (serial, "lost", False)
    assert office.send_list() == version + 1
    assert office.till("pay", "1", code=1)["reason"] == "lost"
    assert office.at(HOLDER, "wallet", "recharge", "1", code=1)["reason"] == "card_state"
    assert office("card", "unlock", serial)["state"] == "active"
    office("card", "unlock", serial, code=4)
    assert office.send_list() == version + 2
    assert office.till("pay", "1")["amount_fen"] == 1_00
    office.till("take-list", office.path(f"list-{version + 1}"), code=1)


def test_reissue_and_cancel(office: Office) -> None:
    """A card is replaced with its money, the new one ended with its money owed; neither end can be had twice."""
    serial = office.serials[HOLDER]
    office.vendor("new")
    args = ["card", "reissue", serial, "--old-reader", f"sim:{office.path(HOLDER)}.img", "--platform-operator", "admin"]
    assert office.at("new", *args, code=1)["reason"] == "not_confirmed"
    made = office.at("new", *args, "--confirm", "REISSUE")
    new = made["card"]
    assert office("wallet", "balance", new) == {"card": new, "subsidy_fen": 8_00, "main_fen": 50_00}
    assert (office.state(serial), office.state(new)) == ("replaced", "active")
    assert office("card", "show", serial)["replaced_by"] == new
    assert office.at(HOLDER, "wallet", "recharge", "1", code=1)["reason"]
    assert office.till("pay", "1", code=1)["reason"] == "application_blocked"
    office.send_list()
    assert office.till("pay", "1", card="new")["card"] == new
    assert office.at("new", "card", "cancel", new, "--present", code=1)["reason"] == "not_confirmed"
    ended = office.at("new", "card", "cancel", new, "--present", "--confirm", "CANCEL")
    assert (ended["state"], ended["account"]) == ("cancelled", "refunds")
    office("card", "cancel", new, "--confirm", "CANCEL", code=4)
    assert office("card", "list", "--state", "active") == []
    office("member", "leave", HOLDER)


def test_lost_card_waits_for_the_journals(office: Office) -> None:
    """A lost card's money moves to the new card when the till's journal is here; until then the job waits, listed."""
    serial = office.serials[HOLDER]
    office.till("pay", "8", "--request-id", "s1")
    office("card", "lose", serial)
    office.vendor("new")
    args = ["card", "reissue", serial, "--platform-operator", "admin", "--confirm", "REISSUE"]
    waiting = office.at("new", *args)
    assert waiting["state"] == "waiting"
    [job] = office("card", "jobs")
    assert job["kind"] == "reissue"
    office.send_list()
    office.till("pay", "1", code=1)
    office.collect("journal")
    office("settle", "run")
    done = office.at("new", *args)
    assert (done["card"], done["state"]) == (waiting["card"], "active")
    held = office("wallet", "balance", done["card"])
    assert held["main_fen"] + held["subsidy_fen"] == 50_00
    assert office("card", "jobs") == []
    [known] = office("settle", "reconcile")
    assert (known["card"], known["unexplained_fen"], bool(known["causes"])) == (serial, 0, True)


def test_audit_log(office: Office) -> None:
    """Events are listed, sealed and verified against a kept head; an edited one ends verification with 8."""
    serial = office.serials[HOLDER]
    events = office("audit", "list", "--subject", f"card:{serial}")
    assert {row["actor"] for row in events} == {"admin"}
    assert "kind=recharge" in " ".join(row["details"] for row in events)
    head = office("audit", "seal")["head"]
    proof = office("audit", "verify", "--head", head, operator="aud")
    assert (proof["head"], proof["unsealed"]) == (head, 0)
    office("audit", "verify", "--head", "nonsense", code=2)
    with sqlite3.connect(office.db / f"enterprise-{ENTERPRISE}.sqlite") as raw:
        raw.execute("DROP TRIGGER audit_event_update")
        raw.execute("UPDATE audit_event SET actor = 'nobody' WHERE number = 3")
    raw.close()
    office("audit", "verify", code=8)
    office("db", "verify", code=8)


def test_databases(office: Office) -> None:
    """Status, verify and backup work for enterprise and platform; a copy is whole and never overwrites."""
    for number in (ENTERPRISE, None):
        status = office("db", "status", enterprise=number)
        assert status["role"] == ("enterprise" if number else "platform")
        assert office("db", "migrate", enterprise=number)["schema"] == status["schema"]
        assert office("db", "verify", enterprise=number)["audit_unsealed"] > 0
    copy = office.path("copy.sqlite")
    assert office("db", "backup", copy)["bytes"] == Path(copy).stat().st_size
    office("db", "backup", copy, code=4)
    shutil.copy(copy, office.db / f"enterprise-{ENTERPRISE}.sqlite")
    assert len(office("member", "list")) == 50


def test_no_database(office: Office) -> None:
    """A file that is no database is exit 10 without a word of Python; a missing installation is exit 3."""
    (office.db / f"enterprise-{ENTERPRISE}.sqlite").write_bytes(b"no database at all" * 1000)
    for args in (("member", "list"), ("db", "status"), ("settle", "run")):
        assert office(*args, code=10)["error"] == "DatabaseError"
    shutil.rmtree(office.db)
    office("member", "list", code=3)


@pytest.mark.parametrize(
    ("code", "args"),
    [
        (2, ["card", "show", "xyz"]),
        (2, ["card", "show"]),
        (2, ["wallet", "recharge", "0"]),
        (2, ["card", "issue", HOLDER, "--kind", "paper"]),
        (2, ["settle", "collect", "missing"]),
        (3, ["card", "show", "0201000000999999"]),
        (3, ["member", "leave", "X9"]),
        (3, ["terminal", "retire", "000000000000"]),
        (3, ["operator", "disable", "nobody"]),
        (4, ["member", "add", HOLDER, "Twice"]),
        (4, ["terminal", "register", TILL, "another name", "--kind", "pos"]),
        (5, ["card", "wash", "--reader", "lost:1"]),
        (5, ["wallet", "recharge", "1", "--reader", "lost:1"]),
        (5, ["apdu", "atr", "--reader", "lost:1"]),
    ],
)
def test_exit_codes(code: int, args: list[str], office: Office) -> None:
    """Wrong usage, what is not found, conflicts and missing readers each have their exit code, and change nothing."""
    before = office.everything()
    said = office(*args, code=code)
    assert (said["exit"], bool(said["message"])) == (code, True)
    assert office.everything() == before


def test_wrong_transport_key_is_tried_once(office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong key of the vendor ends with 7 and costs card or SAM one try; the right one then still works."""
    wrong = bytes(reversed(TRANSPORT_KEY))
    file = tmp_path / "wrong-key"
    file.write_text(wrong.hex())
    office.vendor(OTHER)
    fresh = tries(office, OTHER)
    with monkeypatch.context() as patch:
        patch.setenv("ONECARD_TRANSPORT_KEY_FILE", str(file))
        assert office.at(OTHER, "card", "wash", code=7)["error"] == "CryptoError"
        assert tries(office, OTHER) == fresh - 1
    office.at(OTHER, "card", "wash")
    office.vendor("sam-2", SamCard)
    fresh = tries(office, "sam-2")
    with monkeypatch.context() as patch:
        patch.setenv("ONECARD_TRANSPORT_KEY_FILE", str(file))
        office.at("sam-2", "sam", "personalize", "310000000506", "--kind", "pos", code=7)
        assert tries(office, "sam-2") == fresh - 1
    office.at("sam-2", "sam", "personalize", "310000000506", "--kind", "pos")


def tries(office: Office, name: str) -> int:
    """Tries left of the control key in a card's MF."""
    card = image.load(Path(f"{office.path(name)}.img"))
    control = card.mf.key(0x39, 0)
    assert control is not None
    return control.header.value[4] & 0x0F


def test_wrong_operator_secret(office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong secret and an unknown name are refused alike; five wrong ones lock, and an administrator opens again."""
    (tmp_path / "guess").write_text("not the secret at all")
    with monkeypatch.context() as patch:
        patch.setenv("ONECARD_OPERATOR_SECRET_FILE", str(tmp_path / "guess"))
        answers = [office("card", "list", operator=name, code=1) for name in ("fin", "nobody")]
        assert answers[0] == answers[1]
        assert answers[0]["reason"] == "operator"
        for _ in range(4):
            office("card", "list", operator="fin", code=1)
    assert office("card", "list", operator="fin", code=1)["reason"] == "operator_locked"
    office("operator", "secret", "fin")
    office("card", "list", operator="fin")
    office("operator", "disable", "fin")
    assert office("card", "list", operator="fin", code=1)["reason"] == "operator_disabled"


def test_dry_runs_change_nothing(office: Office) -> None:
    """Under --dry-run every command that has it says what it would do, and databases, keys and files stay."""
    serial = office.serials[HOLDER]
    office.vendor(OTHER)
    before = office.everything()
    for args in (
        ["enterprise", "register", "Another", "--enterprise", "6"],
        ["enterprise", "set", "service_fee_fen=1"],
        ["enterprise", "subscribe", "attendance"],
        ["enterprise", "state", "suspended"],
        ["operator", "add", "new", "--role", "auditor"],
        ["operator", "role", "fin", "auditor"],
        ["operator", "secret", "fin"],
        ["operator", "disable", "fin"],
        ["member", "import", str(members.sample())],
        ["member", "add", "X1", "Guest"],
        ["member", "change", "E002", "--department", "visitors"],
        ["member", "leave", "E002"],
        ["member", "export", office.path("members.csv")],
        ["sim", "make", office.path("chip.img")],
        ["card", "wash", "--reader", f"sim:{office.path(OTHER)}.img"],
        ["card", "issue-batch", "b", "--pin-sheet", office.path("pins")],
        ["card", "lose", serial],
        ["terminal", "register", "310000000506", "second", "--kind", "pos"],
        ["terminal", "retire", TILL],
        ["blacklist", "add", serial],
        ["blacklist", "remove", serial],
        ["blacklist", "build"],
        ["blacklist", "export", office.path("list")],
        ["key", "make", "card", "2"],
        ["key", "state", "card", "1", "retiring"],
        ["settle", "propose", "e", "--from", "bank", "--to", "refunds", "--amount-fen", "1", "--note", "n"],
        ["db", "backup", office.path("copy")],
    ):
        code, out, err = office.run(*args, dry_run=True)
        assert (code, bool(out)) == (0, True), f"{args}: {code} {err}"
        assert office.everything() == before, args
    for args in (["wallet", "recharge", "1"], ["card", "issue", OTHER], ["settle", "run"]):
        office.at(OTHER, *args, dry_run=True, code=2)
        assert office.everything() == before, args


def test_request_ids(office: Office) -> None:
    """A repeated request id gives the first outcome, refusals too; with other arguments it is a conflict."""
    serial = office.serials[HOLDER]
    for first, other in (
        (["member", "add", "X1", "Guest"], ["member", "add", "X1", "Ghost"]),
        (["operator", "add", "new", "--role", "auditor"], ["operator", "add", "new", "--role", "issuer"]),
        (["blacklist", "add", serial], ["blacklist", "add", serial, "--reason", "lost"]),
        (["terminal", "retire", TILL], ["terminal", "retire", "310000000506"]),
        (["card", "lose", serial], ["card", "lose", "0201000000000785"]),
    ):
        request = f"r-{first[1]}-{first[0]}"
        outcome = office(*first, request_id=request)
        after = office.everything()
        assert office(*first, request_id=request) == outcome
        office(*other, request_id=request, code=4)
        assert office.everything() == after
    refused = office("member", "leave", HOLDER, request_id="r-refused", code=1)
    assert office("member", "leave", HOLDER, request_id="r-refused", code=1) == refused
    once = office.at(HOLDER, "wallet", "recharge", "3", request_id="r-money", code=1)
    assert once["reason"] == "card_state"


def test_request_ids_outside_the_database(office: Office) -> None:
    """Files, keys and cards too: a repeated request id gives the first outcome, and nothing is made twice."""
    office.vendor(OTHER)
    office.vendor("sam-2", SamCard)
    export = office.till("export", office.path("journal"))["file"]
    washing = ["card", "wash", "--reader", f"sim:{office.path(OTHER)}.img"]
    making = ["sam", "personalize", "310000000506", "--kind", "pos", "--reader", f"sim:{office.path('sam-2')}.img"]
    for number, (first, other) in enumerate(
        (
            (["enterprise", "register", "Another", "--enterprise", "6"],) * 2,
            (["key", "make", "card", "2"], ["key", "make", "card", "3"]),
            (["key", "state", "card", "2", "active"], ["key", "state", "card", "1", "retiring"]),
            (["member", "import", str(members.sample())],) * 2,
            (["member", "export", office.path("all.csv")], ["member", "export", office.path("all.xlsx")]),
            (["blacklist", "export", office.path("list")], ["blacklist", "export", office.path("other")]),
            (["settle", "collect", export],) * 2,
            (["settle", "run"], ["settle", "collect", export]),
            (["db", "backup", office.path("copy")], ["db", "backup", office.path("other")]),
            (["audit", "seal"],) * 2,
            (washing, [*washing, "--kind", "rfid-sim"]),
            (making, [*making, "--key-set", "2"]),
        )
    ):
        outcome = office(*first, request_id=f"r{number}")
        after = office.everything()
        away = [*first, "--reader", "lost:1"] if "--reader" in first else first
        assert office(*away, request_id=f"r{number}") == outcome
        if other != first:
            office(*other, request_id=f"r{number}", code=4)
        assert office.everything() == after


def test_money_by_request_id_without_the_card(office: Office) -> None:
    """The outcome of a request that is finished needs no card in the reader; any other request does."""
    args = ["wallet", "recharge", "3"]
    done = office.at(HOLDER, *args, request_id="m1")
    assert done["balance_fen"] == 53_00
    assert office(*args, reader="lost:1", request_id="m1") == done
    office("wallet", "recharge", "4", reader="lost:1", request_id="m1", code=4)
    office("wallet", "subsidy", "3", reader="lost:1", request_id="m1", code=4)
    office(*args, reader="lost:1", request_id="m2", code=5)
    assert office.at(HOLDER, *args, request_id="m2")["balance_fen"] == 56_00


def test_torn_sam_goes_on(office: Office) -> None:
    """A SAM torn while it is made is finished under the same request id, with the serial that it had."""
    office.vendor("sam-2", SamCard)
    args = ["sam", "personalize", "310000000506", "--kind", "pos"]
    for step in (20, 60, 100):
        office.cut_at = step
        assert office.at("sam-2", *args, request_id="s1", code=5)["exit"] == 5
    office.cut_at = 0
    made = office.at("sam-2", *args, request_id="s1")
    office.vendor("sam-3", SamCard)
    after = office.at("sam-3", "sam", "personalize", "310000000507", "--kind", "pos")
    assert int(after["sam"][:14], 16) == int(made["sam"][:14], 16) + 1
    assert office.at("sam-2", *args)["sam"] == made["sam"]


def test_torn_payment(office: Office) -> None:
    """A card pulled away under a payment ends with 5 or 9; the same sale then is charged once, wherever it was cut."""
    taken, seen = 58_00, set()
    for step in range(1, 60, 3):
        office.cut_at = step
        code, _, err = office.run(
            "terminal", "pay", "0.50", "--terminal", office.path("till.toml"), "--sam-reader",
            f"lone:{office.path('sam')}.img", reader=f"sim:{office.path(HOLDER)}.img", request_id=f"s{step}",
        )  # fmt: skip
        office.cut_at = 0
        seen.add(code)
        assert code in (0, 5, 9), err
        office.till("pay", "0.50", request_id=f"s{step}")
        taken -= 50
    assert {5, 9} <= seen
    office.collect("journal")
    office("settle", "run")
    held = office("wallet", "balance", office.serials[HOLDER])
    assert held["main_fen"] + held["subsidy_fen"] == taken


def test_torn_issue(office: Office) -> None:
    """A card pulled away while it is issued, wherever, is issued by the same command; the member has that one card."""
    people = [row["member_number"] for row in office("member", "list", "--department", SMALL)]
    seen = set()
    for member, step in zip(people, (10, 60, 150, 300), strict=True):
        office.vendor(member)
        args = ["card", "issue", member, "--platform-operator", "admin"]
        office.cut_at = step
        code, _, err = office.run(*args, reader=f"sim:{office.path(member)}.img")
        office.cut_at = 0
        seen.add(code)
        assert code in (5, 9), f"{step}: {code} {err}"
        issued = office.at(member, *args)
        assert issued["state"] == "active"
        assert [row["card"] for row in office("card", "list") if row["member"] == member] == [issued["card"]]
    assert office("card", "jobs") == []


def test_trace_file(office: Office) -> None:
    """--trace-file keeps what was said to the card; that no secret is in it, the suite's own watch sees."""
    trace = Path(office.path("recharge.trace"))
    office.at(HOLDER, "wallet", "recharge", "1", trace_file=trace)
    assert len(trace.read_text(encoding="utf-8").splitlines()) > 10


LOOKS = [
    "enterprise list", "enterprise show", "operator list", "member list", "member sample", "card list", "card jobs",
    "card show {card}", "wallet balance {card}", "wallet statement {card}", "wallet statement {card} --purse subsidy",
    "terminal list", "sam list", "blacklist list", "blacklist key", "settle findings", "settle gaps",
    "settle reconcile", "settle verify", "audit list", "audit verify", "db status", "db verify",
]  # fmt: skip


@pytest.mark.parametrize("look", LOOKS)
def test_looking_changes_nothing(look: str, office: Office) -> None:
    """Whoever only looks gets JSON and words, and leaves databases and files as they were."""
    office("card", "lose", office.serials[HOLDER])
    before = office.everything()
    args = look.format(card=office.serials[HOLDER]).split()
    office(*args)
    code, out, err = office.run(*args, json=False)
    assert (code, bool(out), err) == (0, True, "")
    assert office.everything() == before


def test_words_for_people(office: Office) -> None:
    """Without --json the same commands print lines for people, and errors one line that begins with the name."""
    code, out, err = office.run("member", "list", json=False)
    assert (code, len(out.splitlines()), err) == (0, 51, "")
    code, out, err = office.run("card", "show", "0201000000999999", json=False)
    assert (code, out, len(err.splitlines())) == (3, "", 1)
    assert err.startswith("onecard: ")
