"""Simulated card and SAM in this process, and what our own protocol code adds to them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes

from cardlib.iso7816 import select
from cardlib.profile import Purse, aid
from cardlib.purse import MoneyRequest, debit, open_application
from cardlib.records import local_when
from cardlib.sam import SAM_DF, CardSam
from cardlib.transport import Decorator, Transport
from simulator.card import Card
from simulator.rig import TILL, Enterprise, MemoryJournal
from simulator.sam import SamCard
from tests.bench.figures import Figure, best_seconds

COUNT = 10_000
PURCHASES = 2_000
WHEN = bytes.fromhex("20260922120000")


@contextmanager
def rig() -> Iterator[Enterprise]:
    """An enterprise in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        made = Enterprise(Path(folder))
        yield made
        made.close()


def commands() -> list[Figure]:
    """SELECT and READ BINARY per second."""
    with rig() as enterprise:
        card = enterprise.new_card()
        chosen = bytes.fromhex("00A404000D") + aid(1) + b"\0"
        read = bytes.fromhex("00B095001E")
        found = []
        for name, command in (("SELECT", chosen), ("READ BINARY", read)):
            card.transceive(chosen)
            assert card.transceive(command).endswith(b"\x90\x00")

            def run(command: bytes = command) -> None:
                transceive = card.transceive
                for _ in range(COUNT):
                    transceive(command)

            found.append(Figure(f"simulated card: {name}", COUNT / best_seconds(run), "commands/s", 100_000))
        return found


def _purchase(card: Card, sam: SamCard, serial: bytes) -> None:
    """INITIALIZE, 8070, 8054, 8072, as bytes."""
    init = card.transceive(b"\x80\x50\x01\x02\x0b\x01\x00\x00\x00\x01" + TILL + b"\x0f")
    data = init[11:15] + init[4:6] + b"\x00\x00\x00\x01\x06" + WHEN + init[9:11] + serial
    answer = sam.transceive(b"\x80\x70\x00\x00" + bytes([len(data)]) + data + b"\x08")
    proof = card.transceive(b"\x80\x54\x01\x00\x0f" + answer[:4] + WHEN + answer[4:8] + b"\x08")
    if sam.transceive(b"\x80\x72\x00\x00\x04" + proof[4:8]) != b"\x90\x00":
        raise AssertionError("the purchase did not go through")


def _raw_purchase() -> None:
    """The block-cipher calls of a purchase and nothing else: what card and SAM can't do without.

    Long-lived keys (3E, 34, the SAM's master) have contexts already; the child key in the SAM and both session
    keys are new each time. MACs: MAC1 and MAC2 on both sides, the TAC.
    """
    for _ in range(PURCHASES):
        _KEPT.update(b"\0" * 16)  # SAM: diversify
        child = Cipher(TripleDES(_KEY), modes.ECB()).encryptor()
        for update in (child.update, _KEPT.update):  # session keys in SAM and card
            update(b"\0" * 8)
            chain = Cipher(TripleDES(_SESSION), modes.CBC(bytes(8))).encryptor().update
            chain(b"\0" * 24)  # MAC1
            chain(b"\0" * 8)  # MAC2
        _CHAIN.update(b"\0" * 24)  # TAC


_KEY, _SESSION = bytes(range(24)), bytes(range(8)) * 3
_KEPT = Cipher(TripleDES(_KEY), modes.ECB()).encryptor()
_CHAIN = Cipher(TripleDES(_SESSION), modes.CBC(bytes(8))).encryptor()


def purchases() -> list[Figure]:
    """Complete purchases per second with card and SAM both simulated, journal off."""
    with rig() as enterprise:
        card, sam = enterprise.new_card(), enterprise.new_sam()
        enterprise.recharge(card, 1_000_000)
        session = open_application(card, enterprise.host, 1, enterprise.random_bytes)
        select(sam, SAM_DF)

        def run() -> None:
            for _ in range(PURCHASES):
                _purchase(card, sam, session.factor)

        seconds = best_seconds(run)
        raw = best_seconds(_raw_purchase)
    return [
        Figure("complete purchases, card and SAM simulated", PURCHASES / seconds, "purchases/s", 3_000),
        Figure("  share of it that the bare cipher calls take", raw / seconds, "of 1"),
    ]


class Timed(Decorator):
    """Sums the time that passes inside a transport."""

    def __init__(self, inner: Transport) -> None:
        super().__init__(inner)
        self.seconds = 0.0

    def transceive(self, command: bytes) -> bytes:
        """Pass on, on the clock."""
        began = time.perf_counter()
        try:
            return self.inner.transceive(command)
        finally:
            self.seconds += time.perf_counter() - began


def own_time() -> list[Figure]:
    """What our protocol code adds to card and SAM in one purchase."""
    with rig() as enterprise:
        card, chip = Timed(enterprise.new_card()), Timed(enterprise.new_sam())
        inner = card.inner
        assert isinstance(inner, Card)
        enterprise.recharge(inner, 1_000_000)
        sam = CardSam(chip)
        session = open_application(card, sam, 1, enterprise.random_bytes)
        journal = MemoryJournal()
        request = MoneyRequest(Purse.MAIN, 1, local_when(enterprise.clock_ms), enterprise.clock_ms)
        shortest = float("inf")
        for _ in range(500):
            card.seconds = chip.seconds = 0.0
            began = time.perf_counter()
            debit(card, sam, journal, session, request)
            shortest = min(shortest, time.perf_counter() - began - card.seconds - chip.seconds)
    return [Figure("own time of a purchase beside card, SAM and journal", shortest * 1000, "ms", 1.0, least=False)]
