"""Issuing in batch: vendor-fresh to personalised and proven, journaled per card, books and databases real."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from backoffice import cards, members
from backoffice.cards import NewCard
from backoffice.members import Member
from cardlib.iso7816 import pin_bytes
from simulator.world import ENTERPRISE, PIN, Company
from tests.bench.figures import Figure

COUNT = int(os.environ.get("ONECARD_BENCH_CARDS", "10000"))
WARM = COUNT // 10
PAGE = os.sysconf("SC_PAGE_SIZE")


def _resident_mb() -> float:
    """Memory of this process as the kernel counts it."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 1e6


def batch_issue() -> list[Figure]:
    """Cards per second over the whole batch, and what memory grows from the first tenth to the end."""
    with tempfile.TemporaryDirectory() as folder:
        company = Company(Path(folder), people=0)
        people = [f"M{number:05d}" for number in range(COUNT)]
        with company.system.database.write() as tx:
            for number, member in enumerate(people):
                members.add(tx, company.admin, ENTERPRISE, Member(member, f"Member {number}"))

        def next_card(_: str) -> NewCard:
            return NewCard(company.fresh_card(), pin_bytes(PIN))

        warm = 0.0
        began = time.perf_counter()
        outcomes = cards.issue_batch(company.office(), company.admin, people, next_card, batch_id="bench")
        for done, one in enumerate(outcomes, 1):
            if one.error:
                raise one.error
            if done == WARM:
                warm = _resident_mb()
        seconds = time.perf_counter() - began
        grown = _resident_mb() - warm
        company.close()
    return [
        Figure(f"batch issue of {COUNT} simulated cards", COUNT / seconds, "cards/s", 100),
        Figure("  memory grown from its first tenth to its end", grown, "MB", 20, least=False),
    ]
