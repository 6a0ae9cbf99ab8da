"""SELECT, reading and writing of elementary files (card.md §3)."""

# ruff: noqa: ARG001  # all handlers have one signature
from __future__ import annotations

from typing import TYPE_CHECKING

from cardlib.apdu import SW
from cardlib.tlv import Tlv
from simulator.files import CYCLIC, FIXED, UNBLOCKED, VARIABLE, BinaryFile, Df, Ef, RecordFile
from simulator.handlers import OK, Refusal, expect_p1p2, sm

if TYPE_CHECKING:
    from simulator.card import Card

MF_FID = 0x3F00
BLOCKED_ANSWER = b"\x6a\x81"


def fci(df: Df) -> bytes:
    """File control information: 88 for a directory of applications, 9F0C = 0015 for an application (card.md §3)."""
    sfi = df.fci_sfi & 0x1F
    public = df.ef(sfi) if df.fci_sfi & 0xE0 == 0x80 else None
    content = public.data.value if isinstance(public, BinaryFile) else None
    kept = df.kept_fci
    if kept is not None and kept[0] is content:
        return kept[1]
    inner = b""
    if content is not None:
        inner = Tlv(0x9F0C, content)
    elif df.fci_sfi & 0xE0 == 0 and sfi:
        inner = Tlv(0x88, bytes((sfi,)))
    made = bytes(Tlv(0x6F, Tlv(0x84, df.name) + Tlv(0xA5, inner)))
    df.kept_fci = (content, made)
    return made


def select(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:
    """SELECT by identifier (P1 00, MF without data) or by name (P1 04)."""
    if p2 or p1 not in (0, 4):
        raise Refusal(SW.P1P2)
    if p1 == 4:
        return _enter(card, _by_name(card, data))
    if not data:
        return _enter(card, card.mf)
    if len(data) != 2:
        raise Refusal(SW.LENGTH)
    fid = data[0] << 8 | data[1]
    if fid == MF_FID:
        return _enter(card, card.mf)
    node = card.df.files.value.get(fid)
    if node is None:
        raise Refusal(SW.FILE_NOT_FOUND)
    if isinstance(node, Df):
        return _enter(card, node)
    if card.df.blocked.value != UNBLOCKED:
        raise Refusal(SW.NOT_SUPPORTED)
    card.set_ef(node)
    return OK


def _by_name(card: Card, name: bytes) -> Df:
    """MF, current, child or sibling of that name."""
    if not 1 <= len(name) <= 16:
        raise Refusal(SW.LENGTH)
    df = card.df
    if df.name == name:
        return df
    near = df if df.parent is None else df.parent
    for where in (df, near):
        for node in where.files.value.values():
            if isinstance(node, Df) and node.name == name:
                return node
    if card.mf.name == name:
        return card.mf
    raise Refusal(SW.FILE_NOT_FOUND)


def _enter(card: Card, df: Df) -> bytes:
    card.enter(df)
    # A blocked application is selected all the same, else it could not be unblocked (card.md §12).
    return fci(df) + (OK if df.blocked.value == UNBLOCKED else BLOCKED_ANSWER)


def _addressed(card: Card, sfi: int) -> Ef:
    if not sfi:
        if card.ef is None:
            raise Refusal(SW.FILE_NOT_FOUND)
        return card.ef
    ef = card.df.ef(sfi)
    if ef is None:
        raise Refusal(SW.FILE_NOT_FOUND)
    if ef is not card.ef:
        card.set_ef(ef)
    return ef


def _binary(card: Card, p1: int, p2: int) -> tuple[BinaryFile, int]:
    """File and offset of P1 P2: ``100sssss`` names a short identifier."""
    if p1 & 0x80:
        if p1 & 0x60:
            raise Refusal(SW.P1P2)
        ef, offset = _addressed(card, p1 & 0x1F), p2
    else:
        ef, offset = _addressed(card, 0), p1 << 8 | p2
    if not isinstance(ef, BinaryFile):
        raise Refusal(SW.FILE_TYPE)
    return ef, offset


def _check_read(card: Card, ef: Ef, cla: int, data: bytes) -> bool:
    """Class and right; tells whether secure messaging goes on top."""
    protected = ef.protected_reading
    if (cla == 4) is not protected:
        raise Refusal(SW.CLASS_MISMATCH)
    if data and not protected:
        raise Refusal(SW.LENGTH)
    if not card.allowed(ef.read):
        raise Refusal(SW.SECURITY)
    return protected


def read_binary(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:
    """READ BINARY; Le 00 or absent: to the end."""
    ef, offset = _binary(card, p1, p2)
    if _check_read(card, ef, cla, data):
        le, record = sm.open_read(card, ef, data, le)
        body = _slice(ef.data.value, offset, min(le or 256, sm.longest_answer(record, ef)))
        return sm.close_read(card, ef, record, body) + OK
    return _slice(ef.data.value, offset, le or 256) + OK


def _slice(content: bytes, offset: int, size: int) -> bytes:
    if offset >= len(content):
        raise Refusal(SW.OFFSET)
    return content[offset : offset + size]


def _check_write(card: Card, ef: Ef, cla: int, data: bytes) -> bytes:
    """Class, right and secure messaging of a write; returns the clear data."""
    if (cla == 4) is not ef.protected:
        raise Refusal(SW.CLASS_MISMATCH)
    if not card.allowed(ef.write):
        raise Refusal(SW.SECURITY)
    clear = sm.open_write(card, ef, data)
    if not clear:
        raise Refusal(SW.LENGTH)
    return clear


def update_binary(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:
    """UPDATE BINARY (also INS D0)."""
    ef, offset = _binary(card, p1, p2)
    clear = _check_write(card, ef, cla, data)
    old = ef.data.value
    if offset >= len(old):
        raise Refusal(SW.OFFSET)
    if offset + len(clear) > len(old):
        raise Refusal(SW.NO_SPACE)
    card.nvm.write(ef.data, old[:offset] + clear + old[offset + len(clear) :])
    return OK


def record_file(card: Card, p2: int) -> RecordFile:
    """The record file that bits 8 to 4 of P2 name, the current one for 0."""
    ef = _addressed(card, p2 >> 3)
    if not isinstance(ef, RecordFile):
        raise Refusal(SW.FILE_TYPE)
    return ef


def find_record(card: Card, ef: RecordFile, p1: int, mode: int) -> int:
    """Index of a record: mode 4 by number, 0 to 3 first, last, next, previous with tag P1 (variable files only)."""
    records = ef.records.value
    if mode == 4:
        if not 1 <= p1 <= len(records):
            raise Refusal(SW.RECORD_NOT_FOUND)
        return p1 - 1
    if mode > 4 or ef.kind != VARIABLE:
        raise Refusal(SW.P1P2)
    tagged = [i for i, record in enumerate(records) if record[0] == p1]
    at = card.record_index
    if mode == 2 and at is not None:
        tagged = [i for i in tagged if i > at]
    elif mode == 3 and at is not None:
        tagged = [i for i in tagged if i < at]
    if not tagged:
        raise Refusal(SW.RECORD_NOT_FOUND)
    return tagged[-1 if mode & 1 else 0]


def read_record(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:
    """READ RECORD by number or, in variable files, by tag."""
    ef = record_file(card, p2)
    mode = p2 & 7
    if mode not in (0, 4):
        raise Refusal(SW.P1P2)
    protected = _check_read(card, ef, cla, data)
    if protected:
        le, key = sm.open_read(card, ef, data, le)
    else:
        key = None
    index = find_record(card, ef, p1, mode)
    record = ef.records.value[index]
    if le and le < len(record):
        raise Refusal(0x6C00 | len(record))
    card.record_index = index
    if key is None:
        return record + OK
    if len(record) > sm.longest_answer(key, ef):
        raise Refusal(SW.LENGTH)
    return sm.close_read(card, ef, key, record) + OK


def check_record(ef: RecordFile, record: bytes) -> None:
    """Refuse a record that the file can't hold: length (6700), or ``tag1 len1 value`` (6A80)."""
    if ef.kind == VARIABLE:
        if len(record) < 2 or record[1] != len(record) - 2:
            raise Refusal(SW.DATA)
    elif len(record) != ef.length:
        raise Refusal(SW.LENGTH)


def _push(card: Card, ef: RecordFile, record: bytes) -> None:
    """Make ``record`` the newest of a cyclic file; the oldest gives way."""
    card.nvm.write(ef.records, (record, *ef.records.value)[: ef.count])


def update_record(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:
    """UPDATE RECORD; in a cyclic file only P1 00 with low bits 011, which adds the newest record."""
    ef = record_file(card, p2)
    mode = p2 & 7
    record = _check_write(card, ef, cla, data)
    if ef.kind == CYCLIC:
        if p1 or mode != 3:
            raise Refusal(SW.P1P2)
        check_record(ef, record)
        _push(card, ef, record)
        return OK
    index = find_record(card, ef, p1, mode)
    check_record(ef, record)
    records = ef.records.value
    if len(records[index]) != len(record):
        raise Refusal(SW.LENGTH)
    if mode != 4 and record[0] != p1:
        raise Refusal(SW.DATA)
    card.nvm.write(ef.records, (*records[:index], record, *records[index + 1 :]))
    card.record_index = index
    return OK


def append_record(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:
    """APPEND RECORD; P2 low bits 0 and 4 are the same (card.md §3)."""
    if p1 or p2 & 3:
        raise Refusal(SW.P1P2)
    ef = record_file(card, p2)
    record = _check_write(card, ef, cla, data)
    check_record(ef, record)
    records = ef.records.value
    if ef.kind == CYCLIC:
        _push(card, ef, record)
        return OK
    full = len(records) >= ef.count if ef.kind == FIXED else sum(map(len, records)) + len(record) > ef.space
    if full:
        raise Refusal(SW.NO_SPACE)
    card.nvm.write(ef.records, (*records, record))
    return OK


def get_response(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:
    """GET RESPONSE: what 61xx announced (T=0 only)."""
    expect_p1p2(p1, p2)
    waiting = card.waiting
    if not waiting:
        raise Refusal(SW.CONDITIONS)
    if (le or 0) > len(waiting):
        raise Refusal(0x6C00 | len(waiting) & 0xFF)
    size = le or min(len(waiting), 256)
    part, card.waiting = waiting[:size], waiting[size:]
    return part + (bytes((0x61, len(card.waiting) & 0xFF)) if card.waiting else OK)
