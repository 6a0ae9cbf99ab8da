"""Secured packets: kept cipher contexts against one cipher object a packet, and a batch for many cards."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, modes
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC

from cardlib import ota
from cardlib.crypto import make_key
from cardlib.crypto.keys import diversification_input
from cardlib.crypto.packets import PacketAlgorithm
from cardlib.profile import CardKind, make_serial
from cardlib.wire import scp80
from tests.bench.figures import ROUNDS, Figure, best_seconds

PACKETS = 2_000
CARDS = 10_000
SCRIPT = scp80.compact([bytes.fromhex("00A404000D") + b"\xf0ONECARD\1\0\0\3\xe9", bytes.fromhex("0084000008")])
"""SELECT and GET CHALLENGE: how a batch begins on every card."""
KIC, KID = bytes(range(16)), bytes(range(16, 32))
CLEAR = bytes(48)
"""As long as what a packet with SCRIPT checks and enciphers."""


def _kept(algorithm: int) -> None:
    keys = ota.KeySet.of(2, algorithm, KIC, KID)
    for counter in range(1, PACKETS + 1):
        ota.command(keys, counter, SCRIPT)


def _each(algorithm: int) -> None:
    """The same packets with cipher objects made for each, as a plain implementation does."""
    for counter in range(1, PACKETS + 1):
        ota.command(ota.KeySet.of(2, algorithm, KIC, KID), counter, SCRIPT)


SERIALS = b"".join(make_serial(CardKind.RFID_SIM, 1, number) for number in range(CARDS))


def _batch(algorithm: int) -> None:
    for keys in ota.derive_key_sets(2, make_key(KIC), make_key(KID), SERIALS, algorithm):
        ota.command(keys, 1, SCRIPT)


def _bare(algorithm: int) -> None:
    """The cipher calls of that batch and nothing else: two derivations, then a checksum and a ciphering a card."""
    zero = bytes(16 if algorithm == PacketAlgorithm.AES else 8)

    def encryptor(key: bytes) -> CipherContext:
        kind = AES(key) if algorithm == PacketAlgorithm.AES else TripleDES(key + key[:8])
        return Cipher(kind, modes.CBC(zero)).encryptor()

    row = diversification_input(SERIALS)
    kics, kids = (Cipher(TripleDES(key + key[:8]), modes.ECB()).encryptor().update(row) for key in (KIC, KID))
    for at in range(0, len(kics), 16):
        if algorithm == PacketAlgorithm.AES:
            mac = CMAC(AES(kids[at : at + 16]))
            mac.update(CLEAR)
            mac.finalize()
        else:
            encryptor(kids[at : at + 16]).update(CLEAR)
        encryptor(kics[at : at + 16]).update(CLEAR)


def _seconds(algorithm: int, *acts: Callable[[int], None]) -> list[float]:
    """The best of several runs of each, taken in turn: what else the machine does meets them all alike."""
    runs = [[best_seconds(partial(act, algorithm), 1) for act in acts] for _ in range(ROUNDS)]
    return [min(times) for times in zip(*runs, strict=True)]


def packets() -> list[Figure]:
    """Kept contexts, and 10 000 packets for 10 000 cards."""
    figures = []
    for name, algorithm, target in (("3DES", PacketAlgorithm.TDES2, 1.5), ("AES", PacketAlgorithm.AES, 2.5)):
        kept, each, batch, bare = _seconds(algorithm, _kept, _each, _batch, _bare)
        figures += [
            Figure(f"secured packets, {name}, kept contexts", PACKETS / kept, "packets/s"),
            Figure("  against one cipher object a packet", each / kept, "times", target),
            Figure(f"  {CARDS} packets for {CARDS} cards, keys derived", CARDS / batch, "packets/s"),
            Figure("  against the bare cipher calls", bare / batch, "of 1", 0.5),
        ]
    return figures
