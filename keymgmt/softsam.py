"""A SAM and host in software over a key store: the same to callers as a PSAM behind APDUs (keys.md, card.md §7)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import cbor2

from cardlib.errors import FormatError, Refused
from cardlib.iso7816 import Protect
from cardlib.profile import Purpose, Purse, TransactionType
from cardlib.sam import (
    AUTHENTICATING,
    LoadInit,
    PurchaseInit,
    SamInfo,
    load_mac1_input,
    load_mac2_input,
    load_seed,
    purchase_mac1_input,
    purchase_seed,
)
from keymgmt.delivery import protected
from keymgmt.handle import KeyHandle
from keymgmt.keys import PLATFORM_PURPOSES, KeyRef
from keymgmt.store import KeyStore, replace_file

LAST_SEQ = 0xFFFFFFFF
PURCHASES = (
    TransactionType.WITHDRAW,
    TransactionType.PURCHASE_ED,
    TransactionType.PURCHASE_EP,
    TransactionType.COMPOSITE,
)
"""Transaction types a purchase key serves (card.md §7.5)."""
UNDONE_BY = {
    TransactionType.PURCHASE_ED: TransactionType.LOAD_ED,
    TransactionType.PURCHASE_EP: TransactionType.LOAD_EP,
    TransactionType.COMPOSITE: TransactionType.LOAD_EP,
}


class SamMemory(Protocol):
    """What a SAM keeps when power fails. ``save`` returns only when the bytes are safe."""

    def load(self) -> bytes:
        """What was saved last, empty at first."""

    def save(self, state: bytes) -> None:
        """Replace it."""


class VolatileMemory:
    """For tests: a SAM whose counter lives as long as the process."""

    def __init__(self) -> None:
        self._state = b""

    def load(self) -> bytes:
        """See :class:`SamMemory`."""
        return self._state

    def save(self, state: bytes) -> None:
        """See :class:`SamMemory`."""
        self._state = state


class FileMemory:
    """A SAM's memory in a small file, replaced whole and synced."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> bytes:
        """See :class:`SamMemory`."""
        return self._path.read_bytes() if self._path.exists() else b""

    def save(self, state: bytes) -> None:
        """See :class:`SamMemory`."""
        replace_file(self._path, state)


@dataclass(frozen=True, slots=True)
class _Confirmed:
    """A purchase that MAC2 confirmed, and the undo bound to it."""

    factor: bytes
    kind: TransactionType
    amount_fen: int
    undo_seq: int | None = None

    @property
    def purse(self) -> Purse:
        return self.kind.purse


@dataclass(slots=True)
class _Open:
    """A purchase between MAC1 and MAC2."""

    seq: int
    session: KeyHandle
    purchase: _Confirmed


class SoftSam:
    """Implements ``cardlib.sam.Sam`` and ``Host`` for one enterprise.

    ``serial`` (8) and ``terminal`` (6) are its own numbers. It belongs to one thread at a time, and no two
    may use one memory: the terminal sequence is never given twice.
    """

    def __init__(
        self, store: KeyStore, enterprise_id: int, terminal: bytes, serial: bytes, memory: SamMemory | None = None
    ) -> None:
        """Raises FormatError when the numbers have other lengths or the memory is not a SAM's."""
        if len(terminal) != 6 or len(serial) != 8:
            raise FormatError("a SAM has a serial of 8 bytes and a terminal number of 6")
        self.store = store
        self._info = SamInfo(serial, terminal, enterprise_id)
        self._memory = memory or VolatileMemory()
        self._open: _Open | None = None
        self._next_seq, self._confirmed = _decode(self._memory.load())

    def __repr__(self) -> str:
        return f"<SoftSam {self._info.serial.hex().upper()} of enterprise {self._info.enterprise_id}>"

    @property
    def open_seq(self) -> int | None:
        """See ``Sam``."""
        return self._open.seq if self._open else None

    def info(self) -> SamInfo:
        """See ``Sam``."""
        return self._info

    def card_answer(self, factor: bytes, version: int, challenge: bytes) -> bytes:
        """See ``Sam``."""
        return self._key(Purpose.CARD, version, factor).answer(challenge)

    def authenticate(self, purpose: Purpose, factor: bytes, version: int, challenge: bytes) -> bytes:
        """See ``Sam``; an issuing SAM proves itself with CONTROL and SLOT too."""
        if purpose not in (*AUTHENTICATING, Purpose.CONTROL, Purpose.SLOT):
            raise Refused("key_usage", f"nobody authenticates to a card with the {purpose.name.lower()} key")
        return self._key(purpose, version, factor).cryptogram(challenge)

    def purchase_mac1(
        self, init: PurchaseInit, amount_fen: int, kind: TransactionType, when: bytes, factor: bytes
    ) -> tuple[int, bytes]:
        """See ``Sam``. The next sequence is stored before this one is given out (card.md §7.4)."""
        self._open = None
        if kind not in PURCHASES:
            raise Refused("key_usage", f"type {kind:02X} is no purchase")
        key = self._key(Purpose.PURCHASE, init.key_version, factor)
        seq = self._next_seq
        if seq > LAST_SEQ:
            raise Refused("counter_full", "the SAM's transaction counter is at its end: replace the SAM")
        self._save(seq + 1, self._confirmed)
        session = key.session(purchase_seed(init, seq))
        self._open = _Open(seq, session, _Confirmed(factor, kind, amount_fen))
        return seq, session.mac(purchase_mac1_input(amount_fen, kind, self._info.terminal, when))

    def verify_mac2(self, mac2: bytes) -> None:
        """See ``Sam``."""
        done, self._open = self._open, None
        if done is None:
            raise Refused("no_session", "the SAM has no open purchase to check this proof against")
        done.session.verify(done.purchase.amount_fen.to_bytes(4, "big"), mac2, "the card's payment proof (MAC2)")
        # Both legs can be undone when the last two confirmed purchases belong to one card (keys.md REFUND).
        last = self._confirmed[-1:]
        legs = bool(last) and last[0].factor == done.purchase.factor and last[0].purse != done.purchase.purse
        keep = last if legs else ()
        self._save(self._next_seq, (*keep, done.purchase))

    def refund_mac2(self, init: LoadInit, amount_fen: int, kind: TransactionType, when: bytes, factor: bytes) -> bytes:
        """See ``Sam``. Raises Refused ``no_undo`` unless it undoes the last confirmed purchase (keys.md REFUND)."""
        terminal = self._info.terminal
        session = self._load_session(Purpose.REFUND, init, amount_fen, kind, terminal, factor)
        for at in range(len(self._confirmed) - 1, -1, -1):
            leg = self._confirmed[at]
            same = (leg.factor, leg.amount_fen, UNDONE_BY.get(leg.kind)) == (factor, amount_fen, kind)
            if same and leg.undo_seq in (None, init.seq):
                legs = list(self._confirmed)
                legs[at] = replace(leg, undo_seq=init.seq)
                self._save(self._next_seq, tuple(legs))
                return session.mac(load_mac2_input(amount_fen, kind, terminal, when))
        raise Refused("no_undo", "only the last confirmed payment of this terminal can be undone here, and once")

    def load_mac2(
        self, init: LoadInit, amount_fen: int, kind: TransactionType, terminal: bytes, when: bytes, factor: bytes
    ) -> bytes:
        """See ``Host``."""
        session = self._load_session(Purpose.LOAD, init, amount_fen, kind, terminal, factor)
        return session.mac(load_mac2_input(amount_fen, kind, terminal, when))

    def unload_mac2(self, init: LoadInit, amount_fen: int, terminal: bytes, when: bytes, factor: bytes) -> bytes:
        """See ``Host``."""
        kind = TransactionType.UNLOAD
        session = self._load_session(Purpose.UNLOAD, init, amount_fen, kind, terminal, factor)
        return session.mac(load_mac2_input(amount_fen, kind, terminal, when))

    def verify_mac3(
        self, init: LoadInit, amount_fen: int, terminal: bytes, when: bytes, factor: bytes, mac3: bytes
    ) -> None:
        """See ``Host``. Raises FormatError when the card claimed to have had less than was taken."""
        if amount_fen > init.balance_fen:
            raise FormatError("an unload of more than the balance can't be proven")
        head = (init.balance_fen - amount_fen).to_bytes(4, "big") + init.seq.to_bytes(2, "big")
        data = head + load_mac2_input(amount_fen, TransactionType.UNLOAD, terminal, when)
        session = self._key(Purpose.UNLOAD, init.key_version, factor).session(load_seed(init))
        session.verify(data, mac3, "the card's proof of the unload (MAC3)")

    def verify_tac(self, factor: bytes, version: int, algorithm: int, data: bytes, tac: bytes) -> None:
        """See ``Host``. Raises FormatError when the record names another algorithm than the key has."""
        key = self._key(Purpose.TAC, version, factor)
        if (algorithm == 4) != (key.algorithm == 4):
            raise FormatError(f"TAC: the record names algorithm {algorithm:02X}, the key has {key.algorithm:02X}")
        key.verify_tac(data, tac)

    def protect(
        self,
        purpose: Purpose,
        factor: bytes,
        version: int,
        header: bytes,
        data: bytes,
        challenge: bytes,
        encrypt: bool = False,
    ) -> bytes:
        """See ``Host``. Raises Refused for purposes whose keys protect no commands."""
        if purpose not in (Purpose.MAINTENANCE, Purpose.PIN_UNBLOCK):
            raise Refused("key_usage", f"the {purpose.name.lower()} key protects no commands")
        return protected(self._key(purpose, version, factor), header, data, challenge, encrypt=encrypt)

    def holds(self, purpose: Purpose) -> bool:  # noqa: ARG002  # a store has them all
        """See ``Host``."""
        return True

    def _ref(self, purpose: Purpose, version: int) -> KeyRef:
        return KeyRef(purpose, version, None if purpose in PLATFORM_PURPOSES else self._info.enterprise_id)

    def _key(self, purpose: Purpose, version: int, factor: bytes) -> KeyHandle:
        return self.store.handle(self._ref(purpose, version), factor)

    def _load_session(
        self, purpose: Purpose, init: LoadInit, amount_fen: int, kind: TransactionType, terminal: bytes, factor: bytes
    ) -> KeyHandle:
        """Session of a load or unload, once the card's MAC1 was right. Raises MacMismatch."""
        session = self._key(purpose, init.key_version, factor).session(load_seed(init))
        session.verify(load_mac1_input(init, amount_fen, kind, terminal), init.mac1, "the card's proof (MAC1)")
        return session

    def _save(self, next_seq: int, confirmed: tuple[_Confirmed, ...]) -> None:
        legs = [[leg.factor, int(leg.kind), leg.amount_fen, leg.undo_seq] for leg in confirmed]
        self._memory.save(cbor2.dumps([next_seq, legs]))
        self._next_seq, self._confirmed = next_seq, confirmed


def _decode(state: bytes) -> tuple[int, tuple[_Confirmed, ...]]:
    if not state:
        return 1, ()
    try:
        next_seq, legs = cbor2.loads(state)
        if not 0 <= next_seq <= LAST_SEQ + 1:
            raise FormatError("the SAM's memory is damaged: its counter is out of range, make a new SAM")
        return next_seq, tuple(_Confirmed(leg[0], TransactionType(leg[1]), leg[2], leg[3]) for leg in legs)
    except (cbor2.CBORError, ValueError, TypeError, IndexError) as e:
        raise FormatError("the SAM's memory is damaged: its counter is lost, make a new SAM") from e


def protector(key: KeyHandle, *, encrypt: bool = False) -> Protect:
    """Secure messaging under a key, as ``cardlib.iso7816`` takes it."""
    return lambda header, data, challenge: protected(key, header, data, challenge, encrypt=encrypt)
