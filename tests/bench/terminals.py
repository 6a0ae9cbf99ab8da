"""Terminals: what our own code takes of a tap, and what a full journal and a long blacklist cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from random import Random

from cardlib.blacklist import Blacklist, snapshot
from cardlib.crypto.signing import SigningKey
from cardlib.profile import CardKind, make_serial
from cardlib.records import Event, JournalEntry, Outcome, Transaction
from cardlib.sam import CardSam
from cardlib.transport import Transport
from keymgmt.samload import SamKind
from simulator.door import SimulatedDoor
from simulator.rig import NOON_MS, Enterprise, OneSam
from simulator.sam import SamCard
from terminals.access import Access
from terminals.attendance import Attendance, PunchRules
from terminals.config import Kind, TerminalConfig
from terminals.doors import Direction, DoorRules
from terminals.journal import Journal
from terminals.lists import TerminalLists
from terminals.policy import Rules
from terminals.pos import Pos
from terminals.runtime import Terminal
from terminals.screen import MemoryScreen
from tests.bench.cards import Timed
from tests.bench.figures import Figure

RECORDS = LISTED = int(os.environ.get("ONECARD_BENCH_RECORDS", "1000000"))
TAPS = 300
QUICK_DISK = Path("/dev/shm")  # memory: the time that a disk takes to sync is not ours
LIST_KEY = SigningKey(bytes(range(32)))
SERIALS = {SamKind.POS: b"BENCH1", SamKind.ACCESS: b"BENCH2", SamKind.ATTENDANCE: b"BENCH3"}
ENTERPRISE = 1


class Bench:
    """One terminal over simulated card and SAM whose time is taken apart."""

    def __init__(self, enterprise: Enterprise, folder: Path, kind: SamKind, make: type[Terminal]) -> None:
        self.enterprise = enterprise
        self.chip: SamCard = enterprise.new_sam(kind, SERIALS[kind])
        self.sam = Timed(self.chip)
        sam = CardSam(self.sam)
        info = sam.info()
        self.now_ms = enterprise.clock_ms
        self.journal = Journal(folder / f"{kind.name}.db", ENTERPRISE, info.terminal, info.serial, self._clock)
        self.lists = TerminalLists(folder / f"{kind.name}.list", ENTERPRISE, LIST_KEY.public, self.journal)
        if not self.lists.version:
            self.lists.take(snapshot(LIST_KEY, Blacklist.of(ENTERPRISE, 1, self.now_ms, [])))
        config = TerminalConfig(
            1, Kind.POS, ENTERPRISE, self.journal.path, folder, LIST_KEY.public, rules=Rules(ENTERPRISE)
        )
        self.terminal = make(
            config, self.journal, self.lists, OneSam(sam), self._clock, enterprise.random_bytes, MemoryScreen()
        )
        self.card = enterprise.new_card()

    def _clock(self) -> int:
        self.now_ms += 1
        return self.now_ms

    def own_ms(self, act: Callable[[Transport], object]) -> float:
        """The shortest of many taps, without what card and SAM took."""
        shortest = float("inf")
        for _ in range(TAPS):
            self.card.reset()
            self.now_ms += 3_600_000 // 10
            card = Timed(self.card)
            self.sam.seconds = 0.0
            began = time.perf_counter()
            act(card)
            shortest = min(shortest, time.perf_counter() - began - card.seconds - self.sam.seconds)
        return shortest * 1000


def own_time() -> list[Figure]:
    """Tap to decision and its record at the three terminals that people tap at, our own part of it."""
    with tempfile.TemporaryDirectory(dir=QUICK_DISK) as name:
        folder = Path(name)
        enterprise = Enterprise(folder)
        enterprise.access = replace(enterprise.access, groups=b"\xff" * 8)
        found = [_door(enterprise, folder), _clock(enterprise, folder), _till(enterprise, folder)]
        enterprise.close()
    return [
        Figure(f"own time of a tap: {what}, beside card, SAM and disk", ms, "ms", limit, least=False)
        for what, ms, limit in found
    ]


def _door(enterprise: Enterprise, folder: Path) -> tuple[str, float, float]:
    bench = Bench(enterprise, folder, SamKind.ACCESS, Access)
    door = bench.terminal
    assert isinstance(door, Access)
    rules = DoorRules(1, zone_inside=10, zone_outside=1)
    door.fit_doors({1: (rules, SimulatedDoor(lambda: bench.now_ms))})
    ways = [Direction.IN, Direction.OUT]

    def act(card: Transport) -> None:
        ways.reverse()
        door.present(card, 1, ways[0])

    return "door", bench.own_ms(act), 2.0


def _clock(enterprise: Enterprise, folder: Path) -> tuple[str, float, float]:
    bench = Bench(enterprise, folder, SamKind.ATTENDANCE, Attendance)
    clock = bench.terminal
    assert isinstance(clock, Attendance)
    clock.set_punch_rules(PunchRules())
    return "time clock", bench.own_ms(clock.punch), 2.0


def _till(enterprise: Enterprise, folder: Path) -> tuple[str, float, float]:
    bench = Bench(enterprise, folder, SamKind.POS, Pos)
    till = bench.terminal
    assert isinstance(till, Pos)
    till.rules = replace(till.rules, payment_limit_fen=10_000, day_limit_fen=1_000_000, day_count=200)
    enterprise.recharge(bench.card, 1_000_000)
    till.open_shift("bench")
    return "till with its whole policy", bench.own_ms(lambda card: till.pay(card, 1)), 3.0


# --- a terminal that was forgotten ---------------------------------------------------------------------------


def _fill(journal: Journal, paid: Transaction, jobs: int) -> None:
    """Payments by as many cards, as the terminal writes them (intent, proof, job, leg), but in one transaction."""
    proven = replace(paid, tac=bytes(4), mac2_verified=True, outcome=Outcome.COMMITTED)
    entries, made, legs = [], [], []
    seq, digest = journal.last_seq, journal.last_hash
    first = journal.last_payment()
    assert first is not None
    for number in range(1, jobs + 1):
        serial = make_serial(CardKind.CPU_CARD, 2, number)
        for event, ref, move in ((Event.INTENT, None, paid), (Event.COMMITTED, seq + 1, proven)):
            seq += 1
            body = JournalEntry(
                seq, event, ref, replace(move, card_serial=serial, terminal_seq=number), "", NOON_MS, digest
            ).encode()
            digest = sha256(digest + body).digest()
            entries.append((seq, NOON_MS, body, digest))
        job = first[0].id + number
        made.append((job, "pay", f"S{number}", 1, serial, 1, NOON_MS, None, None, "done", 0))
        legs.append((job, 0, 2, 1, "committed", seq - 1, seq, 1))
    with journal._write() as db:
        db.executemany("INSERT INTO entry VALUES (?, ?, ?, ?)", entries)
        db.executemany("INSERT INTO job VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", made)
        db.executemany("INSERT INTO leg VALUES (?, ?, ?, ?, ?, ?, ?, ?)", legs)
        db.execute("UPDATE head SET last_seq = ?, last_hash = ?", (seq, digest))
    journal._load_head()


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1000


def start(folder: Path) -> dict[str, float]:
    """What a till's start does with its files: seconds, and the most memory that the process ever took."""
    began = time.perf_counter()
    identity = json.loads((folder / "identity").read_text())
    terminal, sam = bytes.fromhex(identity["terminal"]), bytes.fromhex(identity["sam"])
    with Journal(folder / "POS.db", ENTERPRISE, terminal, sam, lambda: NOON_MS) as journal:
        lists = TerminalLists(folder / "POS.list", ENTERPRISE, LIST_KEY.public, journal)
        assert len(lists.current) == LISTED
        assert journal.last_seq > RECORDS
    return {"seconds": time.perf_counter() - began, "memory_mb": _peak_mb()}


def _worn(enterprise: Enterprise, folder: Path) -> tuple[float, float]:
    """A till's tap before and after it got its million records and its million listed cards; leaves its files."""
    bench = Bench(enterprise, folder, SamKind.POS, Pos)
    till = bench.terminal
    assert isinstance(till, Pos)
    enterprise.recharge(bench.card, 1_000_000)
    till.open_shift("bench")
    fresh_ms = bench.own_ms(lambda card: till.pay(card, 1))
    last = bench.journal.last_payment()
    assert last is not None
    _fill(bench.journal, bench.journal.transaction(last[0].legs[0]), RECORDS // 2)
    serials = sorted(Random(1).sample(range(1, 10 * LISTED), LISTED))
    entries = ((make_serial(CardKind.CPU_CARD, 3, one), 0) for one in serials)
    bench.lists.take(snapshot(LIST_KEY, Blacklist.of(ENTERPRISE, 2, bench.now_ms, entries)))
    worn_ms = bench.own_ms(lambda card: till.pay(card, 1))
    identity = {"terminal": bench.journal.terminal.hex(), "sam": bench.journal.sam_serial.hex()}
    (folder / "identity").write_text(json.dumps(identity))
    bench.journal.close()
    return fresh_ms, worn_ms


def worn() -> list[Figure]:
    """Start, memory and tap of a till with a million records and a million listed cards; its tap beside none."""
    with tempfile.TemporaryDirectory(dir=QUICK_DISK) as name:
        folder = Path(name)
        enterprise = Enterprise(folder)
        fresh_ms, worn_ms = _worn(enterprise, folder)
        enterprise.close()
        argv = [sys.executable, "-m", "tests.bench.terminals", name]
        runs = [json.loads(subprocess.run(argv, capture_output=True, check=True).stdout) for _ in range(3)]
    return [
        Figure(f"till with {RECORDS} records, {LISTED} listed cards: start", min(r["seconds"] for r in runs), "s", 2.0,
               least=False),
        Figure("  most memory of the process meanwhile", max(r["memory_mb"] for r in runs), "MB", 150, least=False),
        Figure("  own time of a tap, against a new till's", worn_ms / fresh_ms, "times", 1.2, least=False),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.stdout.write(json.dumps(start(Path(sys.argv[1]))))
