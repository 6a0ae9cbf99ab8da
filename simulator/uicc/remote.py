"""The one-card applet behind TAR BFFF4F: commands over the air on the card's own COS (ota.md)."""

from __future__ import annotations

import os
from collections.abc import Callable

from cardlib.apdu import SW
from simulator.card import GET_CHALLENGE, SELECT, Card
from simulator.files import Df
from simulator.handlers import Refusal
from simulator.handlers.files import MF_FID
from simulator.nvm import Nvm, Power
from simulator.uicc.packets import GOES_ON, ONE_CARD_TAR, Target

ONE_CARD_MSL = 0x16
PLATFORM = 1
"""KVN of the platform; KVN n + 1 belongs to slot n."""
SLOTS = 8
KEY_SETS = range(PLATFORM, PLATFORM + SLOTS + 1)
SECURED = 0x04
NO_DATA = frozenset((0x00B0, 0x00B2, 0x0084, 0x00C0, 0x805C, 0x80CA))
"""``CLA << 8 | INS`` of ISO case 2: five bytes, the last being Le. A protected read carries its MAC as data."""


class Context(Card):
    """One keyset's context: the card as that sender sees it, apart from the contactless face and from other keysets.

    ``slot`` 0 is the platform, which may go everywhere its keys open; else only that slot's application exists.
    """

    def __init__(self, nvm: Nvm, random_bytes: Callable[[int], bytes], power: Power, slot: int) -> None:
        self.slot = slot
        self.chain = b""
        self.starts = True
        self.seen: tuple[Df | None, int] = (None, 0)
        super().__init__(nvm, random_bytes, t0=True)
        self.power = power

    def _mark_use(self) -> None:
        """Other contexts are not ended by this one."""

    def _forget(self) -> None:
        super()._forget()
        self.chain = b""

    def enter(self, df: Df) -> None:
        if self.slot and not self._is_own(df):
            raise Refusal(SW.SECURITY)
        self.chain = b""
        super().enter(df)

    def _is_own(self, df: Df) -> bool:
        return df.level == 2 and df.fid == MF_FID + self.slot

    # A script's side of it ------------------------------------------------------------------------------------------

    def has_data(self, header: bytes) -> bool:
        """The case of a command, by class and instruction."""
        return header[0] << 8 | header[1] not in NO_DATA

    def execute(self, command: bytes) -> bytes:
        """Run one command of a script. Raises CardRemoved when power goes."""
        selects = command[:2] == bytes((0, SELECT))
        if (self.starts and selects) or not self._untouched():
            self._forget()
        self.starts = False
        if self.slot and not selects and (self.no_mf or not self._is_own(self.df)):
            return SW.SECURITY.to_bytes(2, "big")
        secured = command[0] & SECURED != 0
        if secured and not self.challenge:
            self.challenge = self.chain
        answer = self.transceive(command)
        self._renew_chain(command, secured, answer)
        if self.slot and selects and answer[-2] not in GOES_ON and not self._chose_inside(command):
            answer = SW.SECURITY.to_bytes(2, "big")  # what else there is on the card is not told
        self.seen = (None, 0) if self.no_mf else (self.df, self.df.uses)
        return answer

    def _untouched(self) -> bool:
        """Whether the contactless face left the application alone since this context's last command."""
        df, uses = self.seen
        return df is None or df.uses == uses

    def _renew_chain(self, command: bytes, secured: bool, answer: bytes) -> None:
        """One GET CHALLENGE serves a script: the MAC of a protected command is the challenge of the next one."""
        if secured:
            self.chain = command[5 : 5 + command[4]][-4:] if answer[-2] in GOES_ON else b""
        elif command[1] == GET_CHALLENGE:
            self.chain = b""

    def _chose_inside(self, command: bytes) -> bool:
        """SELECT of a file by identifier within the slot's own application."""
        return command[2] == 0 and command[5:7] != MF_FID.to_bytes(2, "big") and self._is_own(self.df)


class Applet:
    """All contexts of one SIM, made when they are first used."""

    def __init__(self, nvm: Nvm, power: Power, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self.nvm, self.power, self.random_bytes = nvm, power, random_bytes
        self._contexts: dict[int, Context] = {}

    def reset(self) -> None:
        """A reset ends every context."""
        self._contexts.clear()

    def begin(self, key_set: int) -> Context:
        """The context in which a script under that keyset runs."""
        context = self._contexts.get(key_set)
        if context is None:
            slot = key_set - PLATFORM
            context = self._contexts[key_set] = Context(self.nvm, self.random_bytes, self.power, slot)
        context.starts = True
        return context

    def target(self, msl: int = ONE_CARD_MSL) -> dict[bytes, Target]:
        """What goes into the table of TARs."""
        return {ONE_CARD_TAR: Target(msl, KEY_SETS, self.begin)}
