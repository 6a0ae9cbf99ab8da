"""The installer's tool as its user has it: processes on both ends of a pseudo-terminal, cut and refused."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cardlib.blacklist import Blacklist, Certificate, ListReason, snapshot
from cardlib.profile import CardKind, make_serial
from cardlib.records import JournalFile
from tests.onecard import onecard
from tests.secretwatch import register
from tests.terminals.linkrig import ROOT

CLI = Path(__file__).parent.parent.parent / "cli.py"
PASSPHRASES = {"IDENTITY_PASSPHRASE": "the installer sings", "AUTHORITY_PASSPHRASE": "the authority hums"}
YEARS_S = 5 * 365 * 86_400
CONFIG = f"""version = VERSION
kind = "pos"
enterprise_id = 1001
journal = "j.db"
lists = "l.db"
list_root_key = "{ROOT.public.hex()}"
"""
SECOND = "the second one drums"
register(SECOND, "SECOND_IDENTITY_PASSPHRASE")
for _name, _value in PASSPHRASES.items():
    register(_value, _name)


class Place:
    """An installer's folder: keys, a terminal's process, and the command on both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.terminal: subprocess.Popen[str] | None = None
        self.label: dict[str, str] = {}
        clean = {name: value for name, value in os.environ.items() if not name.startswith("ONECARD_")}
        self.env = {**clean, "ONECARD_NO_INPUT": "1"}
        for name, value in PASSPHRASES.items():
            (folder / name).write_text(value + "\n")
            self.env[f"ONECARD_{name}_FILE"] = name
        self.run("terminal", "authority", "make", "site.key")
        self.run("terminal", "identity", "make", "an.key", "--name", "An")
        self.env |= {"ONECARD_AUTHORITY": "site.key", "ONECARD_IDENTITY": "an.key"}
        self.token_id = self.run("terminal", "authority", "token", "an.key.request", "--site", "east")["token_id"]
        self.env |= {"ONECARD_PAIRING_CODE_FILE": "till/code"}

    def spawn(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [onecard(), "--json", *args],
            cwd=self.folder, env=self.env, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    def run(self, *args: str) -> Any:
        ran = self.spawn(*args)
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    def fails(self, code: int, *args: str) -> tuple[str, str]:
        """Reason and message of a command that must end with an exit code."""
        ran = self.spawn(*args)
        assert ran.returncode == code, (ran.returncode, ran.stdout, ran.stderr)
        said = json.loads(ran.stderr.splitlines()[-1])
        return said.get("reason", ""), said["message"]

    def on(self, verb: str, *args: str) -> list[str]:
        return ["terminal", verb, *args, "--port", "till/port", "--address", "1"]

    def pair(self) -> None:
        self.run(*self.on("pair", "--fingerprint", self.label["fingerprint"]))

    def start(self, *args: str) -> None:
        """Power on."""
        self.stop()
        self.terminal = subprocess.Popen(
            [onecard(), "--json", "sim", "terminal", "till", "--pty", *args],
            cwd=self.folder, env=self.env, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.terminal.stdout
        self.label = json.loads(self.terminal.stdout.readline())

    def stop(self) -> None:
        """Pull the plug."""
        if self.terminal and self.terminal.stdout:
            self.terminal.send_signal(signal.SIGKILL)
            self.terminal.wait()
            self.terminal.stdout.close()
            self.terminal = None

    def config(self, version: int = 1, serial: str = "SIM-0001", *more: str, extra: str = "") -> str:
        (self.folder / "till.toml").write_text(CONFIG.replace("VERSION", str(version)) + extra)
        target = f"{serial}-{version}.config"
        self.run("terminal", "authority", "config", "till.toml", target, "--serial", serial, *more)
        return target

    def list_file(self, cards: int) -> str:
        numbers = random.Random(1).sample(range(1, 2**40), cards)  # far apart, else the file is a small one
        entries = [(make_serial(CardKind.CPU_CARD, 1, n), ListReason.LOST) for n in numbers]
        listed = Blacklist.of(1001, 7, time.time_ns() // 1_000_000 - 1000, entries)
        (self.folder / "list").write_bytes(snapshot(ROOT, listed))
        return "list"

    def plan(self, config: str, extra: str = "") -> str:
        (self.folder / "site.toml").write_text(
            f'site = "east"\nauthority = "site.key.pub"\nport = "till/port"\n[[terminal]]\nserial = "SIM-0001"\n'
            f'address = 1\nfingerprint = "{self.label["fingerprint"]}"\ncode_file = "till/code"\nconfig = "{config}"\n'
            f'tests = ["screen"]\n{extra}'
        )
        return "site.toml"

    def pairing(self) -> dict[str, Any]:
        stored: dict[str, Any] = json.loads((self.folder / "till" / "pairing.json").read_text())
        return stored


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.stop()


def pin_authority(place: Place) -> None:
    """Provision with the first configuration."""
    place.run("terminal", "provision", "--plan", place.plan(place.config()))


def test_each_verb_on_a_terminal(place: Place) -> None:
    """Scan, info, clock, param, push, collect and diagnose do what they say, over a pseudo-terminal."""
    place.start("--clock-off", "-3600")
    (found,) = place.run("terminal", "scan", "--port", "till/port")
    assert (found["address"], found["serial"], found["paired"]) == (1, "SIM-0001", False)
    assert found["fingerprint"] == place.label["fingerprint"]
    pin_authority(place)
    info = place.run(*place.on("info"))
    assert (info["paired"], info["config_version"], info["list_version"]) == (True, 1, 0)
    assert abs(info["drift_ms"]) < 2000
    place.start("--clock-off", "-40", "--entries", "0")
    assert -42_000 < place.run(*place.on("clock"), "--dry-run")["now_drift_ms"] < -38_000
    assert abs(place.run(*place.on("clock"))["now_drift_ms"]) < 2000
    second = place.config(2, extra="[rules]\npayment_limit_fen = 700\n")
    shown = place.run(*place.on("param", second), "--dry-run")
    assert (shown["version"], sorted(shown["changes"])) == (1, ["rules.payment_limit_fen", "version"])
    assert place.run(*place.on("param", second))["version"] == 2
    assert place.run(*place.on("push", second))["version"] == 2, "a repeat changes nothing"
    assert place.run(*place.on("push", place.list_file(3)))["version"] == 7
    got = place.run(*place.on("collect", "journals"))
    file = JournalFile.decode((place.folder / got["file"]).read_bytes())
    assert (file.first_seq, len(file.entries)) == (1, got["last_seq"])
    assert place.run(*place.on("diagnose", "--test", "line", "--test", "screen"))[0]["passed"]
    assert "card not passed" in place.fails(8, *place.on("diagnose"))[1]


def test_a_cut_push_goes_on(place: Place) -> None:
    """A terminal that loses power again and again gets a file that no single power-up has time for."""
    place.start()
    pin_authority(place)
    name = place.list_file(40_000)
    cuts = 0
    place.start("--cut-after", "3000")
    while (ran := place.spawn(*place.on("push", name))).returncode:
        assert ran.returncode == 5, ran.stderr
        assert list((place.folder / "till" / "files").glob("list.*.part"))
        cuts += 1
        assert cuts < 10
        place.start("--cut-after", "3000")
    assert cuts >= 2
    assert json.loads(ran.stdout)["version"] == 7
    assert place.run(*place.on("info"))["list_version"] == 7


def test_a_cut_collection_goes_on(place: Place) -> None:
    """What was on this disk is not asked for again, and nothing is acknowledged before it is."""
    place.start("--entries", "600")
    place.pair()
    cuts = 0
    place.start("--cut-after", "15000")
    while (ran := place.spawn(*place.on("collect", "journals"))).returncode:
        assert ran.returncode == 5, ran.stderr
        cuts += 1
        assert cuts < 10
        place.start("--cut-after", "15000")
    assert cuts >= 2
    got = json.loads(ran.stdout)
    assert (got["first_seq"], got["last_seq"]) == (1, 600)


def test_a_site_by_its_plan_cut_at_many_places(place: Place) -> None:
    """The difference comes first; after cuts the same command ends what is left; the record can be checked."""
    place.start("--clock-off", str(-YEARS_S))
    (place.folder / "root.cert").write_bytes(Certificate(1001, ROOT.public, 1, 1).encode(ROOT))
    plan = [
        "terminal",
        "provision",
        "--plan",
        place.plan(place.config(), f'lists = ["root.cert", "{place.list_file(400)}"]\n'),
    ]
    steps = [row["step"].split()[0] for row in place.run(*plan, "--dry-run")]
    assert steps == ["pair", "authority", "config", "list", "list", "test"]
    assert not place.pairing()["pinned"]
    cuts, budget = 0, 100
    place.start("--cut-after", str(budget))
    while (ran := place.spawn(*plan)).returncode:
        assert ran.returncode == 5, ran.stderr
        cuts, budget = cuts + 1, budget + 130
        assert cuts < 40
        place.start("--cut-after", str(budget))
    assert cuts > 5
    place.start()
    assert place.run(*plan) == []
    done = json.loads((place.folder / "site.manifest.json").read_text())["SIM-0001"]["steps"]
    assert {"pair", "authority", "config", "test screen", "read back"} <= set(done)
    place.run("terminal", "report", "papers", "--plan", "site.toml")
    paper = place.folder / "papers" / "SIM-0001.json"
    check = ["terminal", "check-report", str(paper), "--authority-public", "site.key.pub"]
    record = place.run(*check)
    assert (record["serial"], record["config_version"], record["list_version"]) == ("SIM-0001", 1, 7)
    assert (record["installer"], list(record["tests_passed"])) == ("An", ["screen"])
    assert "HAND-OVER OF TERMINAL SIM-0001" in (place.folder / "papers" / "SIM-0001.txt").read_text()
    paper.write_text(paper.read_text().replace('"list_version": 7', '"list_version": 8'))
    assert "signature" in place.fails(7, *check)[1]


def test_no_report_before_the_end(place: Place) -> None:
    """A terminal that was not provisioned to its end is not handed over."""
    place.start()
    plan = place.plan(place.config())
    place.pair()
    assert "not finished" in place.fails(8, "terminal", "report", "papers", "--plan", plan)[1]


def test_what_is_refused_at_first_contact(place: Place) -> None:
    """Wrong label, wrong code, no port, no key: each with its exit code, and a wrong label costs no try."""
    place.start()
    right = place.label["fingerprint"]
    wrong = ("A" if right[0] != "A" else "B") + right[1:]
    reason, words = place.fails(1, *place.on("pair", "--fingerprint", wrong))
    assert (reason, "not the one of this label" in words) == ("fingerprint", True)
    assert place.pairing()["failures"] == 0
    (place.folder / "guess").write_text("00000000\n")
    place.env["ONECARD_PAIRING_CODE_FILE"] = "guess"
    for _ in range(5):
        assert place.fails(1, *place.on("pair", "--fingerprint", right))[0] == "wrong_code"
    place.env["ONECARD_PAIRING_CODE_FILE"] = "till/code"
    assert place.fails(1, *place.on("pair", "--fingerprint", right))[0] == "pairing_locked"
    place.start("--reset")
    assert place.fails(1, *place.on("clock"))[0] == "not_paired"
    place.pair()
    assert "no such port" in place.fails(5, "terminal", "clock", "--port", "nowhere")[1]
    assert "nobody answers" in place.fails(5, "terminal", "clock", "--port", "till/port", "--address", "9")[1]
    place.env["ONECARD_IDENTITY_PASSPHRASE_FILE"] = "guess"
    assert "passphrase" in place.fails(7, *place.on("clock"))[1]


def test_revoked_and_foreign(place: Place) -> None:
    """Another terminal's configuration is refused; a revoked installer is told so by terminal and exit code."""
    place.start()
    pin_authority(place)
    foreign = place.config(2, "SIM-0002")
    assert place.fails(1, *place.on("push", foreign))[0] == "foreign"
    assert place.fails(1, "terminal", "provision", "--plan", place.plan(foreign))[0] == "foreign"
    place.run(*place.on("push", place.config(3, "SIM-0001", "--revoke", place.token_id)))
    reason, words = place.fails(1, *place.on("clock"))
    assert (reason, words) == ("revoked", "the token of An was revoked")


def test_clocks_years_off(place: Place) -> None:
    """A terminal years ahead is told apart from an expired token; time does not go back behind its records."""
    place.start("--clock-off", str(YEARS_S))
    reason, words = place.fails(1, *place.on("pair", "--fingerprint", place.label["fingerprint"]))
    assert (reason, "one of the two clocks is wrong" in words) == ("expired", True)
    place.start("--clock-off", "600", "--entries", "1", "--reset")
    place.pair()
    reason, words = place.fails(1, *place.on("clock"))
    assert (reason, "before the newest journal record" in words) == ("clock_back", True)


def test_firmware_keys_and_a_clock_set_back(place: Place) -> None:
    """Firmware goes forward and one step back; keys and an earlier time take a second operator at the command."""
    place.start("--kind", "access")
    pin_authority(place)
    (place.folder / "code").write_bytes(bytes(5000))
    for version in (1, 2):
        args = ["code", f"v{version}", "--for", "OC-ACCESS", "--version", str(version)]
        place.run("terminal", "authority", "firmware", *args)
        assert place.run(*place.on("push", f"v{version}"))["version"] == version
    back = place.run(*place.on("rollback"))
    assert (back["version"], back["former"]) == (1, 2)
    info = place.run(*place.on("info"))
    assert info["software"].endswith("firmware 1")

    key = "8C" * 15 + "21"
    register(bytes.fromhex(key), "a reader's key")
    (place.folder / "readers").write_text(f"5 {key}\n")
    seal = ["readers", "sealed", "--serial", "SIM-0001", "--version", "1", "--x25519", info["x25519"]]
    place.run("terminal", "authority", "keys", *seal)
    (place.folder / "SECOND").write_text(SECOND + "\n")
    place.env |= {"ONECARD_SECOND_IDENTITY_PASSPHRASE_FILE": "SECOND"}
    first = dict(place.env)
    place.env["ONECARD_IDENTITY_PASSPHRASE_FILE"] = "SECOND"
    place.run("terminal", "identity", "make", "bo.key", "--name", "Bo")
    place.env = first
    both = ["--verb", "keys", "--verb", "clock", "--verb", "push"]
    for name in ("bo.key", "an.key"):
        place.run("terminal", "authority", "token", f"{name}.request", "--site", "east", *both)
    assert "--second" in place.fails(2, *place.on("load-keys", "sealed"))[1]
    assert place.run(*place.on("load-keys", "sealed", "--second", "bo.key"))["readers"] == 1
    assert (place.folder / "till" / "scbk").read_text() == f"5 {key.lower()}\n"

    place.start("--clock-off", "3600", "--entries", "1")
    assert place.fails(1, *place.on("clock"))[0] == "clock_back"
    assert abs(place.run(*place.on("clock", "--second", "bo.key"))["now_drift_ms"]) < 2000


def test_a_restart_keeps_what_matters(place: Place) -> None:
    """Pairing, configuration and label outlive a kill; the port's name may be another, its link is not."""
    place.start()
    pin_authority(place)
    before = place.label
    place.start()
    assert {**place.label, "port": ""} == {**before, "port": ""}
    assert place.run(*place.on("param"))["version"] == 1
