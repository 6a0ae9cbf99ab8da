"""WRITE KEY (card.md §6.4)."""

# ruff: noqa: ARG001  # all handlers have one signature
from __future__ import annotations

from typing import TYPE_CHECKING

from cardlib.apdu import SW
from cardlib.crypto import Algorithm
from simulator.files import ALGORITHM_TYPES, NOT_COUNTED, BinaryFile, Df, KeyFile, KeyRecord, key_id, record_cost
from simulator.handlers import OK, Refusal, sm

if TYPE_CHECKING:
    from simulator.card import Card

ADD = 0x01
HEADER = 5
PIN_TYPE = 0x3A
CONTROL = 0x39
STATE_TYPES = frozenset((0x36, 0x37, 0x38, 0x39, PIN_TYPE))
ONE_PER_DF = frozenset((0x37, 0x38))
LINE_KIDS = range(4)
IDENTITY_FID = 0x0005
WASH_VERSION_AT = 9
PIN_FIELD = 8


def washed(mf: Df) -> bool:
    """Whether the MF's 0005 holds a wash version of 1 or more (profile.md)."""
    identity = mf.files.value.get(IDENTITY_FID)
    return isinstance(identity, BinaryFile) and any(identity.data.value[WASH_VERSION_AT : WASH_VERSION_AT + 1])


def write_key(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:
    """WRITE KEY: P1 01 adds, any other P1 is the type to update; CLA 84 is enciphered and MACed."""
    df = card.df
    if cla == 0x80 and washed(card.mf):
        raise Refusal(SW.SECURITY)
    key_file = df.key_file.value
    if key_file is None:
        raise Refusal(SW.FILE_NOT_FOUND)
    old = _target(card, key_file, p1, p2)
    if cla == 0x80:
        if old is not None and old.header.value[0] & 0xC0:
            raise Refusal(SW.CLASS_MISMATCH)
        record = data
        check_size(record, SW.LENGTH)
    else:
        record = _open(card, data)
        check_size(record, SW.DATA)
        if not df.keys.value and (record[0] & 0x3F, p2) != (CONTROL, 0):
            raise Refusal(SW.SECURITY)  # the first key under the parent's can only be 39/00
    header, value = record[:HEADER], record[HEADER:]
    check_record(df, header, value)
    if header[0] & 0x3F == PIN_TYPE:
        value = value.ljust(PIN_FIELD, b"\xff")
    if old is None:
        _add(card, key_file, p2, header, value)
    else:
        if header[0] & 0x3F != p1 & 0x3F:
            raise Refusal(SW.DATA)
        if len(value) != len(old.value.value):
            raise Refusal(SW.LENGTH if cla == 0x80 else SW.DATA)
        card.nvm.write(old.header, header)
        card.nvm.write(old.value, value)
    return OK


def _target(card: Card, key_file: KeyFile, p1: int, kid: int) -> KeyRecord | None:
    """The key to update, None when adding; checks the right for either."""
    if p1 == ADD:
        if not card.allowed(key_file.add_right):
            raise Refusal(SW.SECURITY)
        return None
    old = card.df.key(p1 & 0x3F, kid)
    if old is None:
        raise Refusal(SW.KEY_NOT_FOUND)
    if not card.allowed(old.header.value[2]):
        raise Refusal(SW.SECURITY)
    return old


def _open(card: Card, data: bytes) -> bytes:
    """The clear record of an enciphered load, under 39/00 of the DF or, in an empty key file, of its parent."""
    df = card.df
    owner = df if df.keys.value else df.parent
    control = owner.key(CONTROL, 0) if owner is not None else None
    if control is None:
        raise Refusal(SW.KEY_NOT_FOUND)
    if control.locked:
        raise Refusal(SW.KEY_LOCKED)
    return sm.open_record(card, data, control)


def check_size(record: bytes, wrong: int) -> None:
    """Header and value: a key of 8 or 16 bytes, a PIN of 2 to 8."""
    sizes = range(HEADER + 2, HEADER + 9) if record and record[0] & 0x3F == PIN_TYPE else (HEADER + 8, HEADER + 16)
    if len(record) not in sizes:
        raise Refusal(wrong)


def check_record(df: Df, header: bytes, value: bytes) -> None:
    """Type, algorithm against length, error counter (6A80)."""
    key_type = header[0] & 0x3F
    if key_type in ALGORITHM_TYPES:
        fits = header[4] != Algorithm.SM4 or len(value) == 16
    elif key_type in STATE_TYPES:
        counter = header[4]
        fits = counter == NOT_COUNTED or counter & 15 <= counter >> 4
        if key_type != PIN_TYPE and df.algorithm == Algorithm.SM4:
            fits = fits and len(value) == 16
    else:
        fits = False
    if not fits:
        raise Refusal(SW.DATA)


def _add(card: Card, key_file: KeyFile, kid: int, header: bytes, value: bytes) -> None:
    df = card.df
    keys = df.keys.value
    key_type = header[0] & 0x3F
    index = key_id(key_type, kid)
    if index in keys or (key_type in ONE_PER_DF and any(i >> 8 == key_type for i in keys)):
        raise Refusal(SW.P1P2)
    if key_type == 0x36 and kid not in LINE_KIDS:
        raise Refusal(SW.KEY_INDEX)
    if df.key_bytes + record_cost(value) > key_file.size:
        raise Refusal(SW.NO_SPACE)
    card.nvm.write(df.keys, {**keys, index: KeyRecord(kid, header, value, df.algorithm)})
