"""A chip vendor in software: vendor-fresh cards with chip numbers, and the batch file that goes with them.

It writes the format that ``keymgmt/batchfile.py`` documents, and shares no line with its reader.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cardlib.crypto import Algorithm
from cardlib.crypto.sealing import aes_check_value, hkdf, hmac_sha256, seal
from cardlib.profile import CardKind
from simulator.card import Card
from simulator.sam import SamCard
from simulator.sim import Sim

CHIP_BYTES = 9
KEY_BYTES = 32
"""Of a batch key."""
ALGORITHM_NAMES = {"3des": Algorithm.TDES, "sm4": Algorithm.SM4}
KIND_NAMES = {"cpu-card": CardKind.CPU_CARD, "rfid-sim": CardKind.RFID_SIM, "sam": CardKind.SAM}


@dataclass(frozen=True, slots=True)
class Vendor:
    """Who delivers which batch, wrapped under which batch key (32 bytes)."""

    name: str
    batch: str
    batch_key: bytes
    random_bytes: Callable[[int], bytes]
    kind: CardKind = CardKind.CPU_CARD
    algorithm: Algorithm = Algorithm.TDES

    def __repr__(self) -> str:
        return f"<Vendor {self.name}, batch {self.batch}>"

    def deliver(self, count: int, *, one_key: bool = False) -> tuple[list[Card], bytes]:
        """Vendor-fresh chips and their batch file; ``one_key``: all have the same transport key."""
        made: type[Card] = {CardKind.SAM: SamCard, CardKind.RFID_SIM: Sim}.get(self.kind, Card)
        shared = self.random_bytes(16)
        keys = [shared if one_key else self.random_bytes(16) for _ in range(count)]
        cards: list[Card] = []
        for key in keys:
            card = made.vendor_fresh(key, algorithm=self.algorithm)
            card.chip = self.random_bytes(CHIP_BYTES)
            if isinstance(card, Sim):
                digits = f"{int.from_bytes(card.chip, 'big') % 10**10:010}"
                card.phone.memory.number(f"898589010{digits}", f"00101{digits}")
            cards.append(card)
        rows = [(card.chip, [card.atr]) for card in cards]
        return cards, self.file(rows, [shared] if one_key else keys)

    def file(self, chips: Sequence[tuple[bytes, Sequence[bytes]]], keys: Sequence[bytes]) -> bytes:
        """The batch file of chips (number, ATRs) and their transport keys, or the one key of all of them."""
        kind = next(name for name, kind in KIND_NAMES.items() if kind is self.kind)
        algorithm = next(name for name, one in ALGORITHM_NAMES.items() if one is self.algorithm)
        names = ["onecard batch 1", self.name, self.batch, kind, algorithm]
        rows = [[chip.hex().upper(), " ".join(atr.hex().upper() for atr in atrs)] for chip, atrs in chips]
        lines = [
            names[0], f"vendor: {self.name}", f"batch: {self.batch}", f"kind: {kind}", f"algorithm: {names[4]}",
            "wrapping: aes-256-gcm", f"check: {aes_check_value(self.batch_key).hex().upper()}", f"chips: {len(rows)}",
        ]  # fmt: skip
        if len(keys) == 1 and len(rows) > 1:
            lines += [f"key: {self._wrapped(keys[0], [*names, '', ''])}", "chip,atr", *map(",".join, rows)]
        else:
            lines.append("chip,atr,key")
            lines += [",".join([*row, self._wrapped(key, names + row)]) for row, key in zip(rows, keys, strict=True)]
        return self.tagged("".join(f"{line}\n" for line in lines))

    def tagged(self, body: str) -> bytes:
        """A body with the tag that makes it whole."""
        tag = hmac_sha256(hkdf(self.batch_key, b"onecard batch file"), body.encode())
        return f"{body}tag: {tag.hex().upper()}\n".encode()

    def _wrapped(self, key: bytes, bound_to: list[str]) -> str:
        return seal(self.batch_key, key, "\n".join(bound_to).encode(), self.random_bytes).hex().upper()
