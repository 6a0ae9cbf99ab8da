"""A host without any key: it loads a SAM and personalises a card with the mother card alone, then waits.

Runs in a process of its own, whose memory another one searches: nothing here may import what knows a key.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from datetime import date
from itertools import count
from pathlib import Path
from random import Random

from cardlib import pcsc
from cardlib.iso7816 import pin_bytes
from cardlib.profile import AccessRights, CardKind, Holder, make_serial
from cardlib.records import Transaction
from cardlib.sam import IssuingSam
from cardlib.trace import TraceWriter
from cardlib.transport import GetResponse, Recorder, Transport
from keymgmt.mothercard import MotherCard, Pins
from keymgmt.personalise import PersonalPlan, Station, personalise
from keymgmt.samload import SamKind, SamPlan, load_sam
from keymgmt.steps import MemorySteps

SERIAL, SAM_SERIAL = make_serial(CardKind.CPU_CARD, 1, 7), make_serial(CardKind.SAM, 1, 1)
ENTERPRISE, TERMINAL = 1001, bytes.fromhex("310000000101")
START, EXPIRY = date(2025, 3, 1), date(2030, 2, 28)
READY = "ready to be searched"


class Moves:
    """A money journal in memory."""

    def __init__(self) -> None:
        self.open: set[int] = set()

    def intent(self, move: Transaction) -> int:  # a journal's signature
        self.open.add(number := len(self.open) + 1)
        return number

    def committed(self, ref: int, move: Transaction) -> None:
        self.open.remove(ref)

    def not_done(self, ref: int, reason: str) -> None:
        self.open.remove(ref)


def work(readers: Sequence[str], pins: Sequence[str], folder: str, canary: str) -> int:
    """Do it with the chips in the readers (card, SAM, mother, authentication); returns how many keys the SAM lists.

    Waits for a line on standard input with all its objects alive, and ``canary`` among them.
    """
    logging.basicConfig(filename=Path(folder) / "host.log", level=logging.DEBUG)
    held = bytes.fromhex(canary)
    writer = TraceWriter(Path(folder) / "host.trace")
    chips: list[Transport] = [Recorder(GetResponse(pcsc.connect(name)), writer) for name in readers]
    card, sam, mother, authentication = chips
    mother_pin, authentication_pin, sam_pin, holder_pin = map(pin_bytes, pins)
    keys = MotherCard(mother, authentication, Pins(mother_pin, authentication_pin))
    plan = SamPlan("sam", SAM_SERIAL, TERMINAL, ENTERPRISE, SamKind.ISSUING, (1,), START, EXPIRY, pin=sam_pin)
    steps, moves, ticks = MemorySteps(), Moves(), count(1_735_700_000_000, 1000)
    listed = load_sam(sam, plan, keys, steps)
    host = IssuingSam(sam, lambda: sam_pin)
    station = Station(host, keys, steps, moves, lambda: next(ticks), Random(5).randbytes)
    person = Holder(1, 1, "Reader", "0001"), AccessRights(START, EXPIRY, b"\x81" * 8)
    personalise(card, PersonalPlan("issue", SERIAL, ENTERPRISE, 1, *person, START, EXPIRY, holder_pin), station)
    logging.getLogger(__name__).info("done with %s", keys)
    sys.stderr.write(READY + "\n")
    sys.stderr.flush()
    sys.stdin.readline()
    for chip in chips:
        chip.close()
    assert held
    return len(listed)
