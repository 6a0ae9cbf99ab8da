"""Payloads by reference: what is refused before a key is touched, and that each use is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cardlib.errors import FormatError, Refused
from cardlib.profile import Purpose, load_profile
from keymgmt.delivery import LOAD, AuditedKeys, Delivery, KeySource, StoreKeys
from keymgmt.handle import UseLog
from keymgmt.keys import KeyRef
from tests.keymgmt.rig import ENTERPRISE, SAM_SERIAL, SERIAL, Rig

WRITE_KEY = b"\x84\xd4"
ADD = 0x01
PIN = bytes.fromhex("246810")


def wanted(purpose: Purpose, p1: int = ADD, kid: int | None = None, pin: bytes = b"") -> Delivery:
    """A key of a card, to be added under its slot key."""
    place = load_profile().key(purpose).kid(1) if kid is None else kid
    header = WRITE_KEY + bytes([p1, place])
    return Delivery(purpose, 1, header, Purpose.SLOT, 1, SERIAL, bytes(range(4)), pin)


def test_type_and_kid_are_the_purposes(tmp_path: Path) -> None:
    """A key goes to its own type and identifier only: a load key as type 30 would be an oracle."""
    keys = Rig(tmp_path).source
    for purpose in (Purpose.LOAD, Purpose.TAC, Purpose.PURCHASE, Purpose.CONTROL, Purpose.CARD):
        spec = load_profile().key(purpose)
        good = {(ADD, spec.kid(1)), (spec.key_type, spec.kid(1))}
        for place in good:
            assert len(keys.deliver(wanted(purpose, *place))) == 28
        for p1 in (0x00, 0x30, 0x31, 0x32, 0x34, 0x39, 0x3E, 0x3F, 0xF9):
            for kid in range(4):
                if (p1, kid) not in good:
                    with pytest.raises(Refused, match="kid"):
                        keys.deliver(wanted(purpose, p1, kid))


def test_masters_go_into_sams_only(tmp_path: Path) -> None:
    """An enterprise's key itself is given out under a SAM's control key only, and never one that no SAM holds."""
    keys = Rig(tmp_path).source
    header = WRITE_KEY + bytes([LOAD, 0])
    for purpose in Purpose:
        sam = Delivery(purpose, 1, header, Purpose.SAM_CONTROL, 1, SAM_SERIAL, bytes(4))
        if purpose in (Purpose.LOAD, Purpose.UNLOAD, Purpose.TAC, Purpose.SLOT, Purpose.SAM_CONTROL):
            with pytest.raises(Refused):
                keys.deliver(sam)
        for under in (Purpose.SLOT, Purpose.CONTROL):
            with pytest.raises((Refused, FormatError)):
                keys.deliver(replace(sam, under=under))


def test_impossible_wishes(tmp_path: Path) -> None:
    """Wishes that no card could have are refused, and no key but the three writes others."""
    keys = Rig(tmp_path).source
    good = wanted(Purpose.PIN, pin=PIN)
    assert keys.deliver(good)
    for bad in (replace(good, pin=b""), replace(good, pin=b"1"), replace(good, serial=b""), replace(good, header=b""),
                replace(good, challenge=b"1"), replace(wanted(Purpose.CARD), pin=PIN)):  # fmt: skip
        with pytest.raises(FormatError):
            keys.deliver(bad)
    with pytest.raises(Refused):
        keys.deliver(replace(good, under=Purpose.CARD))
    with pytest.raises(Refused):
        keys.cryptogram(Purpose.CARD, 1, SERIAL, bytes(8))
    assert PIN.hex() not in repr(good)


def test_each_use_is_told(tmp_path: Path) -> None:
    """Who delivers through a mother card leaves the same trail as a key store: key and wrapping key, each time."""
    told: dict[KeyRef, int] = {}

    def on_use(ref: KeyRef, purpose: str, count: int) -> None:
        assert purpose == "issue"
        told[ref] = told.get(ref, 0) + count

    uses = UseLog(on_use)
    keys: KeySource = AuditedKeys(StoreKeys(Rig(tmp_path).store, ENTERPRISE), uses)
    with uses.using("issue"):
        keys.cryptogram(Purpose.SLOT, 1, SERIAL, bytes(8))
        keys.deliver(wanted(Purpose.CARD))
        keys.deliver(wanted(Purpose.PIN, pin=PIN))
    slot, card = (KeyRef(purpose, 1, ENTERPRISE) for purpose in (Purpose.SLOT, Purpose.CARD))
    assert told == {slot: 3, card: 1}
    assert keys.lines()
    assert keys.enterprise_id == ENTERPRISE


def test_batch_of_cards(tmp_path: Path) -> None:
    """Keys of many cards in one call are those of one call each; only the last level comes in batches."""
    rig = Rig(tmp_path)
    master = rig.store.handle(KeyRef(Purpose.PURCHASE, 1, ENTERPRISE))
    serials = [rig.random.randbytes(8) for _ in range(20)]
    batch = master.derive_many(serials)
    assert len(batch) == 20
    for serial, key in zip(serials, batch, strict=True):
        assert (key.kcv, key.name) == (master.derive(serial).kcv, master.derive(serial).name)
    assert [key.kcv for key in batch[-2:]] == [batch[18].kcv, batch[19].kcv]
    with pytest.raises(IndexError):
        batch[20]
    with pytest.raises(FormatError):
        master.derive_many([b"short", bytes(8)])
    with pytest.raises(FormatError):
        master.derive_many(bytes(12))
    assert "20 keys" in repr(batch)
