"""The RFID-SIM: one chip, two faces over one memory (profile.md "RFID-SIM")."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from simulator.card import Card, Quirks
from simulator.nvm import Nvm
from simulator.uicc.face import Uicc
from simulator.uicc.memory import ROOT, Memory, memory_of


class Sim(Card):
    """The contactless face; :attr:`phone` is the other one."""

    KIND = "sim"

    def __init__(
        self,
        nvm: Nvm | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
        *,
        quirks: Quirks | None = None,
        t0: bool = False,
    ) -> None:
        super().__init__(nvm, random_bytes, quirks=quirks, t0=t0)
        self.phone = Uicc(self.nvm, random_bytes)

    def equip(self, memory: Memory) -> None:
        """Give the phone face another memory, as a factory does."""
        self.nvm.root(ROOT, memory).value = memory
        self.phone = Uicc(self.nvm, self.random_bytes)

    def _extra(self) -> dict[str, Any]:
        return memory_of(self.nvm).dump()

    def _restore_extra(self, extra: dict[str, Any]) -> None:
        self.equip(Memory.load(extra))
