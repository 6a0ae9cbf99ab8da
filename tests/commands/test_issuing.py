"""The whole way by the command line: an office that serves, an issuing terminal as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from backoffice import members, registry, tokens
from backoffice.members import Member
from backoffice.registry import TerminalKind
from keymgmt.samload import SamKind, SamPlan, make_sam
from keymgmt.steps import MemorySteps
from simulator import image
from simulator.rig import EXPIRY, START, TRANSPORT_KEY
from simulator.sam import SamCard
from simulator.world import ENTERPRISE, SECRETS, Company
from tests.backoffice.kit import sam_serial, terminal_number
from tests.onecard import onecard
from tests.secretwatch import WATCH, register

ROOT = Path(__file__).parent.parent.parent
TERMINAL, SAM = terminal_number(777), sam_serial(777)
PATIENCE_S = 60


@dataclass
class Town:
    """A company on real files, and everything that its office and its issuing terminal are told in files."""

    folder: Path
    people: list[str]
    port: int
    env: dict[str, str]
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *args: str) -> subprocess.Popen[str]:
        """The command line in a process of its own."""
        made = subprocess.Popen(
            [onecard(), *args], env=self.env, cwd=self.folder, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.running.append(made)
        return made

    def serve(self) -> subprocess.Popen[str]:
        """The office, once it answers."""
        args = ("web", "serve", "--db", "data", "--enterprise", str(ENTERPRISE), "--port", str(self.port))
        office = self.start(*args, "--platform-operator", "admin")
        end = time.monotonic() + PATIENCE_S
        while True:
            with socket.socket() as line:
                if line.connect_ex(("127.0.0.1", self.port)) == 0:
                    return office
            assert office.poll() is None, office.communicate()
            assert time.monotonic() < end
            time.sleep(0.05)

    def type(self, *lines: str, json_too: bool = True) -> tuple[list[dict[str, object]], str, int]:
        """Run the terminal until it has read all lines: its events, what it said, its exit code."""
        args = ["terminal", "run", "--terminal", "t.toml", "--sam-reader", "sim:sam.img", "--reader", "sim:one.img"]
        args += ["--language", "en", "--trace-file", "trace.txt"]
        done = self.start(*args, *(["--json"] if json_too else []))
        out, err = done.communicate("\n".join(lines) + "\n", PATIENCE_S)
        WATCH.saw("the terminal's output", out + err)
        return [json.loads(line) for line in out.splitlines()] if json_too else [], out + err, done.returncode


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    """Three members without cards, a SAM, blank cards: one for the reader, two in a stack."""
    company = Company(tmp_path / "data", people=0)
    people = ["E001", "E002", "E003"]
    with company.system.database.write() as tx:
        for one in people:
            members.add(tx, company.admin, ENTERPRISE, Member(one, f"Person {one}"))
        registry.register(tx, company.admin, ENTERPRISE, TERMINAL, TerminalKind.ISSUING, "issuing desk")
        registry.fit_sam(tx, company.admin, ENTERPRISE, TERMINAL, SAM)
        token = tokens.add(tx, company.admin, ENTERPRISE, TERMINAL, 3650, os.urandom)[1]
    register(token, "a web token")
    sam = SamCard.vendor_fresh(TRANSPORT_KEY)
    plan = SamPlan("sam", SAM, TERMINAL, ENTERPRISE, SamKind.ISSUING, (1,), START, EXPIRY)
    initial = company.office().initial
    assert initial is not None
    make_sam(sam, plan, initial, company.system.keys, MemorySteps())
    sam.reset()
    image.save(sam, tmp_path / "sam.img")
    (tmp_path / "stack").mkdir()
    for name in ("one.img", "stack/a.img", "stack/b.img"):
        image.save(company.fresh_card(), tmp_path / name)
    company.close()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "t.toml").write_text(
        f'version = 1\nkind = "issuing"\nenterprise_id = {ENTERPRISE}\njournal = "journal.db"\nlists = "lists.db"\n'
        f'list_root_key = "{"ab" * 32}"\noffice_url = "http://127.0.0.1:{port}"\n'
        '[desk]\nreaders = ["sim:stack"]\nlabels = "labels.txt"\npin_sheet = "pins.csv"\n'
    )
    secrets = SECRETS | {"office token": token, "transport key": TRANSPORT_KEY.hex(), "holder pin": "246824"}
    env = {key: value for key, value in os.environ.items() if not key.startswith("ONECARD_")}
    env |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    for name, secret in secrets.items():
        path = tmp_path / f"{name.replace(' ', '-')}.secret"
        path.write_text(secret)
        env[f"ONECARD_{name.upper().replace(' ', '_')}_FILE"] = str(path)
    made = Town(tmp_path, people, port, env)
    yield made
    for process in made.running:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_a_terminal_issues_one_card_and_a_batch(town: Town) -> None:
    """Lines typed make cards of the members; the stack beside the reader feeds the batch; all of it stands on paper."""
    office = town.serve()
    events, said, code = town.type("issue E002", "", "read", "", "batch")
    assert code == 0, said
    assert [one["event"] for one in events] == ["issue", "read", "issued", "issued", "batch_ended"], said
    assert [one.get("member") for one in events[:4]] == ["E002", "E002", "E001", "E003"]
    labels = [line.split("\t")[0] for line in (town.folder / "labels.txt").read_text().splitlines()]
    assert labels == ["E002", "E002", "E001", "E003"]
    assert [line[:5] for line in (town.folder / "pins.csv").read_text().splitlines()] == ["E001,", "E003,"]
    trace = (town.folder / "trace.txt").read_text()
    assert len(trace) > 10_000
    assert "246824" not in trace
    _, said, code = town.type("return", "RETURN", "", "read", "", "dance", "quit", json_too=False)
    assert code == 0
    assert "type RETURN to go on" in said
    assert "state cancelled" in said
    assert "'dance' is not understood here" in said
    office.send_signal(signal.SIGINT)
    WATCH.saw("the office's output", "".join(office.communicate(timeout=PATIENCE_S)))


def test_without_office_nothing_is_made(town: Town) -> None:
    """An office that does not answer, or is beyond this machine without TLS, is told in words; the card stays blank."""
    before = (town.folder / "one.img").read_bytes()
    config = town.folder / "t.toml"
    config.write_text(config.read_text().replace("http://127.0.0.1", "http://192.0.2.1"))
    _, said, code = town.type("quit")
    assert code == 2
    assert "https" in said
    assert (town.folder / "one.img").read_bytes() == before
