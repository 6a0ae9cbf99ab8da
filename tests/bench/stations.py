"""Issuing in batch: vendor-fresh to personalised and proven, journaled per card and phase, on real databases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from backoffice import cards, members
from backoffice.cards import NewCard
from backoffice.installation import Installation
from backoffice.members import Member
from cardlib.crypto import make_key
from cardlib.iso7816 import pin_bytes
from keymgmt.handle import KeyHandle
from simulator.card import Card
from simulator.rig import TRANSPORT_KEY
from simulator.world import ENTERPRISE, PIN, SECRETS, Company
from tests.bench.figures import Figure

COUNT = int(os.environ.get("ONECARD_BENCH_CARDS", "10000"))
PAGE = os.sysconf("SC_PAGE_SIZE")
READERS = 2
"""Issuing readers that work side by side, each with a process of its own, as at an issuing terminal."""


def _resident_mb() -> float:
    """Memory of this process as the kernel counts it."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 1e6


def _member(number: int) -> str:
    return f"M{number:05d}"


def station(folder: Path, reader: int, readers: int, count: int) -> dict[str, float]:
    """Issue every ``readers``-th card; returns seconds from the first card to the last, and memory grown meanwhile."""
    people = [_member(number) for number in range(reader, count, readers)]
    with Installation(folder, SECRETS.__getitem__, enterprise_id=ENTERPRISE, purpose="bench") as system:
        office = system.office(system.platform_operator("admin"), KeyHandle(make_key(TRANSPORT_KEY), "vendor"))

        def next_card(_: str) -> NewCard:
            return NewCard(Card.vendor_fresh(TRANSPORT_KEY), pin_bytes(PIN))

        outcomes = cards.issue_batch(office, system.operator, people, next_card, batch_id="bench")
        warm, began = 0.0, time.perf_counter()
        for done, one in enumerate(outcomes, 1):
            if one.error:
                raise one.error
            if done == len(people) // 10:
                warm = _resident_mb()
        return {"seconds": time.perf_counter() - began, "grown_mb": _resident_mb() - warm}


def _issue(folder: Path, readers: int) -> tuple[float, float]:
    """Seconds and growth of the slowest of so many stations at work side by side."""
    company = Company(folder, people=0)
    with company.system.database.write() as tx:
        for number in range(COUNT):
            members.add(tx, company.admin, ENTERPRISE, Member(_member(number), f"Member {number}"))
    company.close()
    argv = [sys.executable, "-m", "tests.bench.stations", str(folder)]
    works = [
        subprocess.Popen([*argv, str(reader), str(readers), str(COUNT)], stdout=subprocess.PIPE, text=True)
        for reader in range(readers)
    ]
    answers = [json.loads(work.communicate()[0]) for work in works]
    return max(one["seconds"] for one in answers), max(one["grown_mb"] for one in answers)


def batch_issue() -> list[Figure]:
    """Cards per second over the whole batch, and what memory grows from the first tenth to the end."""
    with tempfile.TemporaryDirectory() as folder:
        seconds, grown = _issue(Path(folder), READERS)
    return [
        Figure(f"batch issue of {COUNT} simulated cards, {READERS} readers", COUNT / seconds, "cards/s", 100),
        Figure("  memory grown from its first tenth to its end", grown, "MB", 20, least=False),
    ]


if __name__ == "__main__":
    where, *numbers = sys.argv[1:]
    sys.stdout.write(json.dumps(station(Path(where), *map(int, numbers))))
