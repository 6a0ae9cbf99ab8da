"""Ceremonies and key blocks by command: each custodian in a process of his own; killed, repeated, mixed up; logged."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cli
from backoffice import audit, operators
from backoffice.database import PLATFORM, Database
from backoffice.installation import Installation
from backoffice.operators import Credential, Role
from cardlib.crypto import make_key
from cardlib.crypto.sealing import Argon2Params
from cardlib.profile import Purpose
from console import Session
from keymgmt import ceremony as steps
from keymgmt.keys import KeyRef
from simulator.world import QUICK
from tests.keymgmt.test_ceremony import VALUE, part, parts, shares
from tests.secretwatch import WATCH, register

ROOT = Path(__file__).parents[2]
SECRETS = {
    "OPERATOR_SECRET": "one secret for all operators",
    "SECOND_OPERATOR_SECRET": "one secret for all operators",
    "KEY_PASSPHRASE": "what opens the key store",
    "CEREMONY_SECRET": "the leader's own words",
    "KEY_BLOCK_PROTECTION_KEY": "7D1B0A6E5C3F2948A1B2C3D4E5F60718293A4B5C6D7E8F901122334455667788",
}
CUSTODIANS = ("li", "wang", "zhao")
CARD = ("card", "2")
REF = KeyRef(Purpose.CARD, 2)
KCV = make_key(VALUE).kcv.hex().upper()


class Room:
    """The command line with its secrets in files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def db(self) -> Path:
        return self.folder / "office"

    def secret(self, name: str, value: str) -> Path:
        path = self.folder / name
        path.write_text(value + "\n")
        return path

    def __call__(self, who: str, *args: str, code: int = 0, **options: Any) -> Any:
        """A command of an operator that must end with ``code``; returns its JSON, or the error's."""
        session = Session(db=self.db, operator=who, json=True, quiet=True, no_input=True, **options)
        with pytest.MonkeyPatch.context() as patch:
            out = self.folder / "out"
            with out.open("w") as file:
                patch.setattr(sys, "stdout", file)
                patch.setattr(sys, "stderr", file)
                ended = cli.run(list(args), session)
        said = out.read_text()
        out.unlink()
        WATCH.saw("a command's output", said)
        assert ended == code, f"{args}: {ended} {said}"
        return json.loads(said.splitlines()[-1])

    def ceremony(self, who: str, verb: str, *args: str, code: int = 0, **options: Any) -> Any:
        return self(who, "key", "ceremony", verb, *CARD, *args, code=code, **options)

    def enter(self, who: str, text: str, code: int = 0, **options: Any) -> Any:
        self.secret("KEY_COMPONENT", text)
        return self.ceremony(who, "add-component", code=code, **options)

    def log(self, event: str = "key.ceremony") -> list[tuple[str, Any]]:
        with Database(self.db / "platform.sqlite", "platform") as db, db.read() as tx:
            found = audit.entries(tx, PLATFORM, subject="key:card.2", limit=999)
        return [(one.actor, one.details["kind"]) for one in found if one.event == event]


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation whose platform has four more operators."""
    folder: Path = tmp_path_factory.mktemp("ceremony")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operators, "COST", QUICK)
        credential = Credential.make(SECRETS["OPERATOR_SECRET"], bytes, QUICK)
        patch.setattr(Credential, "make", lambda *_: credential)
        with Installation(folder / "office", lambda _: "", operator="boss") as made:
            made.create(SECRETS["OPERATOR_SECRET"], SECRETS["KEY_PASSPHRASE"], QUICK)
        with Database(folder / "office/platform.sqlite", "platform") as db, db.write() as tx:
            boss = operators.get(tx, PLATFORM, "boss")
            for name in (*CUSTODIANS, "qian"):
                operators.add(tx, boss, PLATFORM, name, Role.PLATFORM, credential)
    return folder


@pytest.fixture
def room(tmp_path: Path, _made: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    """A copy of it, with secrets."""
    shutil.copytree(_made, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(Argon2Params.__init__, "__defaults__", (QUICK.memory_kib, QUICK.iterations, QUICK.lanes))
    made = Room(tmp_path)
    for name, value in SECRETS.items():
        register(value, name)
        made.secret(name, value)
    for name in (*SECRETS, "KEY_COMPONENT"):
        monkeypatch.setenv(f"ONECARD_{name}_FILE", str(tmp_path / name))
    return made


def key(room: Room) -> Any:
    [found] = [row for row in room("boss", "key", "list") if (row["purpose"], row["version"]) == ("card", 2)]
    return found


def test_components_brought_along(room: Room) -> None:
    """Three custodians type components of another system; the announced check value lets the leader finish alone."""
    started = room.ceremony("boss", "start", "--components", "3", "--kcv", KCV)
    assert (started["state"], started["of"], started["entered"]) == ("started", 3, 0)
    for at, (who, value) in enumerate(zip(CUSTODIANS, parts(VALUE, 3), strict=True), 1):
        said = room.enter(who, part(value))
        assert (said["entered"], said["check_value"]) == (at, make_key(value).kcv.hex().upper())
    done = room.ceremony("boss", "finish")
    assert (done["kcv"], done["state"]) == (KCV, "pending")
    assert (key(room)["kcv"], key(room)["made_by"]) == (KCV, "boss")
    assert room.log() == [("boss", "started"), *((who, "entered") for who in CUSTODIANS), ("boss", "combined"),
                          ("boss", "finished")]  # fmt: skip
    assert not list(room.db.glob("ceremony-*"))
    room.ceremony("boss", "finish", code=3)
    room.ceremony("boss", "start", "--components", "3", code=4)
    assert room("boss", "key", "state", *CARD, "active")["state"] == "active"


@pytest.mark.parametrize("form", ["txt", "svg", "pdf"])
def test_generated_shares_on_sheets(room: Room, form: str) -> None:
    """Shares drawn onto sheets, entered from them; each custodian confirms; a sheet is its owner's alone."""
    room.ceremony("boss", "start", "--shares", "3", "--needed", "2", "--generate", "--algorithm", "sm4")
    for who in CUSTODIANS:
        sheet = room.folder / f"{who}.{form}"
        drawn = room.ceremony(who, "draw", "--sheet", str(sheet))
        assert sheet.stat().st_mode & 0o077 == 0
        room.ceremony(who, "draw", "--sheet", str(sheet), code=4)
        text = room.folder / f"{who}.again"
        assert room.ceremony(who, "draw", "--sheet", str(text))["check_value"] == drawn["check_value"]
        if form == "svg":
            assert text.read_text().splitlines()[0].split()[5] in sheet.read_text()
    for who in CUSTODIANS:
        room.enter(who, (room.folder / f"{who}.again").read_text())
    found = room.ceremony("boss", "finish")
    assert found["unconfirmed"] == list(CUSTODIANS)
    room.ceremony("li", "confirm", "010203", code=7)
    for who in CUSTODIANS:
        room.ceremony(who, "confirm", found["kcv"])
    assert [one["state"] for one in room.ceremony("qian", "status")["custodians"]] == ["confirmed"] * 3
    done = room.ceremony("boss", "finish")
    assert (done["kcv"], key(room)["algorithm"]) == (found["kcv"], "SM4")


def test_refusals(room: Room) -> None:
    """What a person can get wrong has its exit code, is named, and changes nothing."""
    room.ceremony("boss", "start", code=2)
    room.ceremony("boss", "start", "--components", "3", "--shares", "3", "--needed", "2", code=2)
    room.ceremony("boss", "start", "--components", "1", code=2)
    room.ceremony("boss", "status", code=3)
    room.enter("li", part(VALUE), code=3)
    room.ceremony("boss", "abort", "--confirm", "ABORT", code=3)
    room.ceremony("boss", "start", "--components", "2")
    room.ceremony("qian", "start", "--components", "2", code=4)
    one, two = parts(VALUE, 2)
    assert room.enter("boss", part(one), code=1)["reason"] == "custodian"
    room.enter("li", part(one)[:-1], code=2)
    room.enter("li", part(one)[:-6] + "000000", code=7)
    room.enter("li", part(one))
    assert room.enter("li", part(two), code=1)["reason"] == "custodian"
    room.enter("wang", part(one), code=4)
    assert room.ceremony("boss", "finish", code=1)["reason"] == "parts"
    room.enter("wang", part(two))
    room.ceremony("li", "finish", code=1)
    room.secret("CEREMONY_SECRET", "not the leader's words")
    room.ceremony("boss", "finish", code=7)
    assert len(room("boss", "key", "list")) == len(Purpose) - 1
    room.ceremony("boss", "abort", code=1)
    assert room.ceremony("boss", "status")["entered"] == 2
    assert room.ceremony("qian", "abort", "--confirm", "ABORT")["state"] == "aborted"
    assert not list(room.db.glob("ceremony-*"))
    assert room.log()[-1] == ("qian", "aborted")
    room.ceremony("boss", "start", "--components", "2")


def test_damaged_file_is_aborted(room: Room) -> None:
    """A ceremony whose file was edited is refused at each step, and can be given up."""
    room.ceremony("boss", "start", "--components", "2")
    path = steps.path_of(room.db, REF)
    path.write_bytes(path.read_bytes()[:-1])
    room.enter("li", part(VALUE), code=2)
    room.ceremony("boss", "status", code=2)
    room.ceremony("boss", "abort", "--confirm", "ABORT")


def test_request_ids_and_dry_runs(room: Room) -> None:
    """A repeated request id gives the first outcome of each step, a dry run checks and changes nothing."""
    room.ceremony("boss", "start", "--components", "2", dry_run=True)
    started = room.ceremony("boss", "start", "--components", "2", request_id="s1")
    assert room.ceremony("boss", "start", "--components", "2", request_id="s1") == started
    one, two = parts(VALUE, 2)
    assert room.enter("li", part(one), dry_run=True)["entered"] == 1
    room.enter("li", part(one)[1:], dry_run=True, code=2)
    assert room.ceremony("boss", "status")["entered"] == 0
    first = room.enter("li", part(one), request_id="e1")
    assert room.enter("li", part(one), request_id="e1") == first
    room.enter("wang", part(two))
    assert room.ceremony("boss", "finish", dry_run=True)["kcv"] == KCV
    assert room.ceremony("boss", "status")["state"] == "started"
    room.ceremony("boss", "abort", dry_run=True)
    assert room.ceremony("boss", "status")["entered"] == 2


STEPS: dict[str, Callable[[Room], Any]] = {
    "start": lambda room: room.ceremony("boss", "start", "--shares", "3", "--needed", "2"),
    "li": lambda room: room.enter("li", shares(VALUE, 2, 3)[2]),
    "wang": lambda room: room.enter("wang", shares(VALUE, 2, 3)[0]),
    "combine": lambda room: room.ceremony("boss", "finish"),
    "confirm": lambda room: room.ceremony("li", "confirm", KCV),
    "confirm too": lambda room: room.ceremony("wang", "confirm", KCV),
    "finish": lambda room: room.ceremony("boss", "finish"),
}


class Killed(BaseException):
    """The process is gone."""


def killing(call: str, at: int) -> Callable[..., Any]:
    """Stands for a call of the system: the process ends at its ``at // 2``-th, before it or (odd) behind it."""
    original, count = getattr(os, call), iter(range(99))

    def kill(*args: Any, **kwargs: Any) -> Any:
        number = next(count)
        if number < at // 2 or (number == at // 2 and at % 2):
            original(*args, **kwargs)
        if number >= at // 2:
            raise Killed

    return kill


@pytest.mark.parametrize("at", STEPS)
@pytest.mark.parametrize("call", ["replace", "fsync", "unlink"])
def test_killed_at_any_step(room: Room, at: str, call: str) -> None:
    """Each step, killed before and behind each of its writes, is run again, and the ceremony ends with its key."""
    for name, step in STEPS.items():
        tries = 0
        while name == at and tries < 40:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, call, killing(call, tries))
                try:
                    step(room)
                    break
                except Killed:
                    tries += 1
                except AssertionError:  # a conflict or no ceremony: the killed one had done its work
                    break
        assert tries < 40
        done = steps.path_of(room.db, REF).exists() if name == "start" else not steps.path_of(room.db, REF).exists()
        if name != at or not (name in ("start", "finish") and done):
            step(room)
    room.ceremony("boss", "status", code=3)
    assert (key(room)["kcv"], key(room)["made_by"]) == (KCV, "boss")
    assert not list(room.db.glob("ceremony-*"))
    assert {("boss", "started"), ("li", "entered"), ("wang", "entered"), ("boss", "finished")} <= set(room.log())


def _program(room: Room, who: str, *args: str) -> list[str]:
    return [
        sys.executable,
        str(ROOT / "cli.py"),
        "--db",
        str(room.db),
        "--operator",
        who,
        "key",
        "ceremony",
        *args,
        *CARD,
    ]


def test_shown_on_the_custodians_terminal_only(room: Room) -> None:
    """Without a sheet the part is on the terminal, not on stdout, and is cleared; without a terminal it is refused."""
    room.ceremony("boss", "start", "--components", "2", "--generate")
    bare = subprocess.run(
        _program(room, "li", "draw"), capture_output=True, text=True, start_new_session=True, check=False
    )
    assert bare.returncode == 2
    assert "--sheet" in bare.stderr
    out = room.folder / "stdout"
    child, terminal = pty.fork()
    if child == 0:
        with out.open("w") as file:
            os.dup2(file.fileno(), 1)
        os.execv(sys.executable, _program(room, "li", "draw"))
    shown = b""
    while b"written down: " not in shown:
        shown += os.read(terminal, 4096)
    os.write(terminal, b"\n")
    try:
        while more := os.read(terminal, 4096):
            shown += more
    except OSError:  # the other end is closed
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(terminal)
    text = shown.decode().replace("\r", "").strip().splitlines()[0]
    assert text.split()[1] not in out.read_text()
    assert b"\033[2J" in shown
    assert room.enter("li", text)["entered"] == 1


def test_sheet_on_stdout_and_part_from_stdin(room: Room) -> None:
    """``--sheet -`` goes to a printer's pipe, and what is read from stdin is a part."""
    room.ceremony("boss", "start", "--components", "2", "--generate")
    sheet = room.folder / "printer"
    with sheet.open("w") as file:
        subprocess.run([*_program(room, "li", "draw"), "--sheet", "-"], stdout=file, check=True, stderr=subprocess.PIPE)
    with sheet.open() as file:
        env = os.environ | {"ONECARD_KEY_COMPONENT_FILE": "-"}
        subprocess.run(_program(room, "li", "add-component"), stdin=file, env=env, check=True, capture_output=True)
    assert room.ceremony("boss", "status")["entered"] == 1


def test_two_custodians_at_once(room: Room) -> None:
    """Two custodians who enter at the same instant are both kept."""
    room.ceremony("boss", "start", "--components", "2")
    running = []
    for who, value in zip(CUSTODIANS, parts(VALUE, 2), strict=False):
        env = os.environ | {"ONECARD_KEY_COMPONENT_FILE": str(room.secret(f"part-{who}", part(value)))}
        running.append(subprocess.Popen(_program(room, who, "add-component"), env=env, stdout=subprocess.PIPE))
    for one in running:
        one.communicate(timeout=60)
        assert one.returncode == 0
    assert room.ceremony("boss", "finish")["kcv"] == KCV


def test_killed_process(room: Room) -> None:
    """A process killed with -9 in the middle leaves a ceremony that goes on."""
    room.ceremony("boss", "start", "--components", "2")
    one, two = parts(VALUE, 2)
    room.secret("KEY_COMPONENT", part(one))
    for wait_s in (0.3, 0.6, 0.9):
        child = subprocess.Popen(
            _program(room, "li", "add-component"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(wait_s)
        child.send_signal(signal.SIGKILL)
        child.wait()
    room.enter("li", part(one))
    room.enter("wang", part(two))
    assert room.ceremony("boss", "finish")["kcv"] == KCV


def test_key_blocks_between_two_installations(room: Room, tmp_path: Path) -> None:
    """A key exported by two operators is imported elsewhere as the same key; both logs say so; the file is private."""
    block = room.folder / "block"
    agree = ("--second-operator", "li")
    made = room("boss", "key", "make", *CARD)
    assert (
        room("boss", "key", "export", *CARD, str(block), "--second-operator", "boss", code=1)["reason"]
        == "two_operators"
    )
    room("boss", "key", "export", "card", "9", str(block), *agree, code=3)
    room("boss", "key", "export", *CARD, str(block), *agree, dry_run=True)
    assert not block.exists()
    done = room("boss", "key", "export", *CARD, str(block), *agree, request_id="x1")
    assert done["kcv"] == made["kcv"]
    assert room("boss", "key", "export", *CARD, str(block), *agree, request_id="x1") == done
    room("boss", "key", "export", *CARD, str(block), *agree, code=4)
    assert block.stat().st_mode & 0o077 == 0
    assert room.log("key.moved") == [("boss", "exported")]
    room("boss", "key", "import", str(block), code=4)
    room("boss", "key", "state", *CARD, "destroyed", "--confirm", "DESTROY")
    other = Room(tmp_path / "other")
    with Installation(other.db, lambda _: "", operator="chief") as there:
        there.create(SECRETS["OPERATOR_SECRET"], SECRETS["KEY_PASSPHRASE"])
    other.secret("unused", "")
    for bad, code in ((("--kcv", "010203"), 7), (("--purpose", "tac", "--version", "2"), 1), (("--purpose", "tac"), 2)):
        other("chief", "key", "import", str(block), *bad, code=code)
    assert other("chief", "key", "import", str(block), "--kcv", made["kcv"], dry_run=True)["dry_run"]
    came = other("chief", "key", "import", str(block), "--kcv", made["kcv"])
    assert (came["kcv"], came["state"]) == (made["kcv"], "pending")
    assert other.log("key.moved") == [("chief", "imported")]
    text = block.read_text()
    block.write_text(text.replace("E4TX", "E2TX"))
    other("chief", "key", "import", str(block), code=7)
    block.write_text("no block\n")
    other("chief", "key", "import", str(block), code=2)
    for wrong in ("00" * 32, "7D1B", "XY"):
        room.secret("KEY_BLOCK_PROTECTION_KEY", wrong)
        block.write_text(text)
        other("chief", "key", "import", str(block), code=2)


def test_sm4_key_block_is_refused(room: Room) -> None:
    """An SM4 key has no key block: the command says so, and what to do."""
    room("boss", "key", "make", *CARD, "--algorithm", "sm4")
    said = room("boss", "key", "export", *CARD, str(room.folder / "b"), "--second-operator", "li", code=1)
    assert said["reason"] == "algorithm"
    assert "components" in said["message"]
    assert not (room.folder / "b").exists()
