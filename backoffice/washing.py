"""Washing at the platform's reader: who the chip is, which key it has from its vendor, which serial it gets.

A chip that tells its number is known by it from the first try on: its serial, and which key it refused, are written
down under it before the chip is touched. A chip that tells none is proven first and gets its serial then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from backoffice import batches, chips
from backoffice.batches import WashSteps
from backoffice.installation import Installation
from cardlib.apdu import SW
from cardlib.errors import ConfigError, Conflict, CryptoError, NotFound, StatusError
from cardlib.iso7816 import MF, read_binary, select
from cardlib.profile import CardKind, Purpose, check_serial
from cardlib.sam import IDENTITY
from cardlib.transport import Transport
from keymgmt.batchfile import BATCH_KEY_BYTES, KINDS, BatchHead, ChipRow
from keymgmt.handle import KeyHandle
from keymgmt.keys import KeyRef
from keymgmt.samload import SamWash, sam_serial, wash_sam
from keymgmt.steps import (
    TRY_AGAIN,
    accepted,
    authenticates,
    chip_number,
    initial_holds,
    may_try,
    read_identity,
    was_refused,
)
from keymgmt.wash import FOREIGN, WashPlan, prove_washed, wash

WASH_VERSION = 1
NAMES = {kind: name for name, kind in KINDS.items()}


@dataclass(frozen=True, slots=True)
class Wish:
    """What the operator asked for; None where the chip and its batch decide.

    ``kind`` SAM washes SAMs of ``enterprise_id``. ``key_version`` is that of our keys.
    """

    kind: CardKind | None = None
    batch_id: str | None = None
    chip: str | None = None
    key_version: int = 1
    enterprise_id: int | None = None
    try_again: bool = False


class Found(NamedTuple):
    """What is in the reader: ``serial`` is empty before its washing began; ``batch`` None when nobody listed it."""

    chip: str | None
    serial: bytes
    washed: bool
    kind: CardKind
    batch: tuple[BatchHead, ChipRow] | None
    job: str


@dataclass(slots=True)
class Washing:
    """One card after another: batch keys and the vendor's key are asked for once, each row is unwrapped when needed."""

    office: Installation
    wish: Wish
    _batch_keys: dict[str, bytes] = field(default_factory=dict, repr=False)
    _typed: KeyHandle | None = field(default=None, repr=False)

    @property
    def _steps(self) -> WashSteps:
        return WashSteps(self.office.platform)

    def plan(self, card: Transport) -> list[str]:
        """What washing this very card would do; it is only read. Raises what :meth:`wash` does before its first try."""
        found = self._look(card)
        chip = [f"chip {found.chip}" if found.chip else "a chip that tells no number"]
        if found.batch:
            chip[0] += f" of batch {found.batch[0].batch} from {found.batch[0].vendor}"
        if found.washed:
            return [*chip, f"card {found.serial.hex().upper()} is washed already: prove that its key is ours"]
        initial = self._initial(found)
        self._check_tries(found, initial)
        if found.serial:
            chip.append("its washing has begun: go on with it")
        serial = found.serial or (self._reserved(found) or bytes(8))
        if found.kind is CardKind.SAM:
            return [*chip, *self._sam_plan(found, serial, initial).lines()]
        return [*chip, *self._card_plan(found, serial, initial).lines()]

    def wash(self, card: Transport) -> dict[str, Any]:
        """Wash what is in the reader, or go on, or prove one that is washed; returns what it is now.

        Raises Conflict for another kind of chip, one that the books know otherwise, one half washed by others;
        NotFound for a chip of an unknown batch; CryptoError when its key is wrong, locked or not ours.
        """
        found = self._look(card)
        if found.washed:
            self._prove(card, found)
            return self._done(found, found.serial, "washed already")
        initial = self._initial(found)
        if self.wish.try_again:
            self._steps.done(_card_job(found.serial) if found.serial else found.job, TRY_AGAIN)
        self._check_tries(found, initial)
        serial = found.serial or self._new_serial(card, found, initial)
        if found.kind is CardKind.SAM:
            wash_sam(card, self._sam_plan(found, serial, initial), self.office.keys, self._steps)
        else:
            wash(card, self._card_plan(found, serial, initial), self.office.keys, self._steps)
        return self._done(found, serial, "washed")

    # Who it is

    def _look(self, card: Transport) -> Found:
        chip = self._chip(card)
        sam = self.wish.kind is CardKind.SAM
        if _is_sam(card) != sam:
            raise Conflict("this is no SAM: onecard card wash" if sam else "this is a SAM: onecard sam wash")
        serial, washed = (sam_serial(card) or b"", False) if sam else _card_found(card)
        with self.office.platform.read() as tx:
            batch = batches.of_chip(tx, chip) if chip else None
            if self.wish.batch_id is not None:
                self._check_batch(chip, batch, batches.get(tx, self.wish.batch_id).head)
            if batch is not None and card.atr and card.atr not in batch[1].atrs:
                raise Conflict(
                    f"chip {chip} answers to reset with {card.atr.hex().upper()}, batch {batch[0].batch} says"
                    f" {batch[1].atr}: another chip tells its number; put it aside"
                )
            kind = self._kind(serial, batch)
            known = chips.find(tx, serial) if serial else None
            owner = chips.of_chip(tx, chip) if chip else None
            given = bool(serial) and (known is not None or chips.was_given(tx, serial))
        if sam:
            washed = known is not None and known.wash_version > 0
        if owner is not None and owner.serial != serial and (serial or owner.wash_version):
            now = f"says that it is card {serial.hex().upper()}" if serial else "does not know that any more"
            raise Conflict(f"chip {chip} is card {owner.serial.hex().upper()} in the books and {now}: put it aside")
        if known is not None and chip and known.chip not in (None, chip):
            raise Conflict(f"card {serial.hex().upper()} is chip {known.chip}, this is chip {chip}: one is a copy")
        if serial and not washed and not given:
            raise Conflict(
                f"another platform began to wash this chip, as {serial.hex().upper()}: we can't go on; return it there"
            )
        job = _card_job(serial) if serial else f"chips without number, ATR {card.atr.hex().upper()}"
        job = f"chip {chip}" if chip else job
        return Found(chip, serial, washed, kind, batch, job)

    def _chip(self, card: Transport) -> str | None:
        told, typed = chip_number(card), self.wish.chip
        if told and typed and told != typed:
            raise Conflict(f"this chip says that its number is {told}, not {typed}")
        return typed or told

    def _check_batch(self, chip: str | None, batch: tuple[BatchHead, ChipRow] | None, wanted: BatchHead) -> None:
        if chip is None:
            raise NotFound(
                f"this chip tells no number: give the one printed on it (--chip), or no batch {wanted.batch}"
            )
        if batch is None:
            raise NotFound(f"chip {chip} is of an unknown batch, not of {wanted.batch}: look up its delivery")
        if batch[0].batch != wanted.batch:
            raise Conflict(f"chip {chip} is of batch {batch[0].batch}, not of {wanted.batch}")

    def _kind(self, serial: bytes, batch: tuple[BatchHead, ChipRow] | None) -> CardKind:
        """What the chip is to be: as it says, else as its batch says, else as asked."""
        wanted = self.wish.kind
        kind = check_serial(serial) if serial else batch[0].kind if batch else wanted or CardKind.CPU_CARD
        if wanted is not None and kind is not wanted:
            whose = "its serial" if serial else f"batch {batch[0].batch}" if batch else ""
            raise Conflict(f"this is a {NAMES[kind]} ({whose} says so), not a {NAMES[wanted]}")
        if kind not in (CardKind.CPU_CARD, CardKind.RFID_SIM, CardKind.SAM):
            raise Conflict(f"this is a {NAMES[kind]}: it is made with onecard key mother")
        return kind

    # Its key

    def _initial(self, found: Found) -> KeyHandle:
        if found.batch is not None:
            head, row = found.batch
            return head.transport_key(row, self._batch_key(head))
        if self._typed is None:
            try:
                self._typed = self.office.initial_key()
            except ConfigError as e:
                if not found.chip:
                    raise
                raise NotFound(
                    f"chip {found.chip} is of an unknown batch: receive its file (onecard card batch receive), or"
                    f" give its key by hand: {e}"
                ) from e
        return self._typed

    def _batch_key(self, head: BatchHead) -> bytes:
        if head.batch not in self._batch_keys:
            self._batch_keys[head.batch] = batch_key(self.office.secret)
        return self._batch_keys[head.batch]

    def _check_tries(self, found: Found, initial: KeyHandle) -> None:
        """One try only with a wrong key, and never the last one, over all invocations (keys.md, Washing)."""
        known, kcv = list(self._steps.steps(found.job)), initial.kcv.hex().upper()
        if was_refused(known, kcv) and not found.chip and not found.serial:
            raise CryptoError(
                f"a chip without number refused the initial key with check value {kcv}; it is not tried again. Is this"
                " another chip, name it: --chip with the number printed on it, or one that you give it"
            )
        if found.serial and found.chip:
            known += self._steps.steps(_card_job(found.serial))
        if not may_try(known, kcv, trusted=bool(found.chip or found.serial)) and not was_refused(known, kcv):
            raise CryptoError(
                "this chip may have one try of its initial key left: keys were refused, or contact was lost while one"
                f" was tried. Make sure that the key with check value {kcv} is right, then give --try-again"
            )

    # Its serial

    def _reserved(self, found: Found) -> bytes | None:
        with self.office.platform.read() as tx:
            owner = chips.of_chip(tx, found.chip) if found.chip else None
        return owner.serial if owner else None

    def _new_serial(self, card: Transport, found: Found, initial: KeyHandle) -> bytes:
        """The serial that this chip keeps: written down before the chip has it."""
        serial = self._reserved(found)
        if serial is None:
            if not found.chip:  # nobody could find the serial again: so not before the key is known to be right
                initial_holds(card, found.job, initial, None, self._steps)
            with self.office.platform.write() as tx:
                serial = chips.next_serial(tx, found.kind)
                batch = found.batch[0].batch if found.batch else None
                chips.register(tx, self.office.operator, serial, found.chip, batch)
        if not found.chip:
            self._steps.done(_card_job(serial), accepted(initial.kcv.hex().upper()))
        return serial

    # Washing

    def _card_plan(self, found: Found, serial: bytes, initial: KeyHandle) -> WashPlan:
        today = datetime.fromtimestamp(self.office.clock() / 1000, UTC).date()
        job = found.job if found.chip else _card_job(serial)
        return WashPlan(job, serial, WASH_VERSION, today, self.wish.key_version, initial)

    def _sam_plan(self, found: Found, serial: bytes, initial: KeyHandle) -> SamWash:
        job, version = found.job if found.chip else _card_job(serial), self.wish.key_version
        return SamWash(job, serial, self._enterprise(), initial, version, version)

    def _enterprise(self) -> int:
        if self.wish.enterprise_id is None:
            raise NotFound("whose SAM is it to be? Give --enterprise NUMBER")
        return self.wish.enterprise_id

    def _prove(self, card: Transport, found: Found) -> None:
        if found.kind is not CardKind.SAM:
            identity = read_identity(card)
            assert identity is not None
            prove_washed(card, identity, self.wish.key_version, self.office.keys, self._steps)
            return
        ref = KeyRef(Purpose.SAM_CONTROL, self.wish.key_version, self._enterprise())
        select(card, MF)
        if not authenticates(card, 0, self.office.keys.handle(ref, found.serial).cryptogram):
            raise CryptoError(FOREIGN)

    def _done(self, found: Found, serial: bytes, state: str) -> dict[str, Any]:
        batch = found.batch[0].batch if found.batch else None
        with self.office.platform.write() as tx:
            known = chips.find(tx, serial)
            if known is None or not known.wash_version:
                chips.register(tx, self.office.operator, serial, found.chip, batch, WASH_VERSION)
        name = "sam" if found.kind is CardKind.SAM else "card"
        return {
            name: serial, "kind": NAMES[found.kind], "wash_version": WASH_VERSION, "state": state, "chip": found.chip,
            "batch": batch,
        }  # fmt: skip


def batch_key(secret: Callable[[str], str]) -> bytes:
    """The key that a vendor wraps a batch's keys under, asked for as hex. Raises ConfigError when it can't be one."""
    try:
        value = bytes.fromhex(secret("batch key"))
    except ValueError:
        raise ConfigError("the batch key is not hexadecimal") from None
    if len(value) != BATCH_KEY_BYTES:
        raise ConfigError(f"a batch key has {2 * BATCH_KEY_BYTES} hexadecimal digits")
    return value


def _card_job(serial: bytes) -> str:
    return f"card {serial.hex()}"


def _is_sam(card: Transport) -> bool:
    """Whether the MF has a SAM's file of who it is (card.md §7.1). Raises Conflict for a chip without usable MF."""
    try:
        select(card, MF)
        read_binary(card, IDENTITY)
    except StatusError as e:
        if e.sw == SW.NOT_SUPPORTED:
            raise Conflict("this chip has no MF, or it is blocked: its vendor must initialise it first") from e
        return False
    return True


def _card_found(card: Transport) -> tuple[bytes, bool]:
    identity = read_identity(card)
    if identity is None or not any(identity.serial):
        return b"", False
    return identity.serial, identity.wash_version > 0
