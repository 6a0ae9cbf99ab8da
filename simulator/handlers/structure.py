"""Making and unmaking files: CREATE FILE, ERASE DF, DELETE DF (card.md §6.2, §6.3, §3.2)."""

# ruff: noqa: ARG001  # all handlers have one signature
from __future__ import annotations

from typing import TYPE_CHECKING

from cardlib.apdu import SW
from cardlib.errors import FormatError, NotFound
from cardlib.tlv import find
from simulator.files import (
    BINARY,
    CYCLIC,
    DF_TYPE,
    FIXED,
    KEY_FILE,
    PURSE,
    VARIABLE,
    BinaryFile,
    Df,
    Ef,
    KeyFile,
    PurseFile,
    RecordFile,
)
from simulator.handlers import OK, Refusal, expect_length, expect_p1p2, sm
from simulator.handlers.files import MF_FID

if TYPE_CHECKING:
    from simulator.card import Card

MF_NAME = b"1PAY.SYS.DDF01"
DIR_FID = 0x0001
MAX_LEVEL = 3
LOWEST_DF_BYTES = 11


def create_file(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:
    """CREATE FILE: MF of a blank card, DF, key file or elementary file."""
    fid = p1 << 8 | p2
    if len(data) < 7:
        raise Refusal(SW.LENGTH)
    if card.mf_cell.value is None:
        return _create_mf(card, fid, data)
    if not card.allowed(card.df.create_right):
        raise Refusal(SW.SECURITY)
    if data[0] == DF_TYPE:
        return _create_df(card, fid, data)
    if data[0] == KEY_FILE:
        return _create_key_file(card, data)
    _add(card, make_ef(fid, data))
    return OK


def _create_mf(card: Card, fid: int, data: bytes) -> bytes:
    if fid != MF_FID:
        raise Refusal(SW.NOT_SUPPORTED)  # no MF yet (card.md §2)
    mf = make_mf(data, card.nvm.size_bytes)
    card.nvm.write(card.mf_cell, mf)
    card.adopt_mf(mf)
    return OK


def make_mf(data: bytes, memory_bytes: int) -> Df:
    """The MF from its creation data; a transport code of FFs leaves the usual name."""
    _check_df(data)
    name = data[8:] if data[8:].strip(b"\xff") else MF_NAME
    return Df(MF_FID, data, None, min(int.from_bytes(data[1:3], "big"), memory_bytes), name)


def _check_df(data: bytes) -> None:
    if data[0] != DF_TYPE:
        raise Refusal(SW.DATA)
    if not 8 + 5 <= len(data) <= 8 + 16:
        raise Refusal(SW.LENGTH)


def _create_df(card: Card, fid: int, data: bytes) -> bytes:
    df = make_df(fid, data, card.df)
    if any(isinstance(node, Df) and node.name == df.name for node in card.df.files.value.values()):
        raise Refusal(SW.P1P2)
    _add(card, df)
    card.fresh |= {df}
    return OK


def make_df(fid: int, data: bytes, parent: Df) -> Df:
    """A directory from its creation data (6700, 6A80 when they are not one)."""
    _check_df(data)
    size = int.from_bytes(data[1:3], "big")
    if parent.level >= MAX_LEVEL or size < LOWEST_DF_BYTES:
        raise Refusal(SW.DATA)
    return Df(fid, data, parent, size, data[8:])


def _create_key_file(card: Card, data: bytes) -> bytes:
    """``3F size2 DFSFI1 add_right1 FF FF``: first file of its DF, one per DF."""
    expect_length(data, 7)
    df = card.df
    size = int.from_bytes(data[1:3], "big")
    if df.key_file.value is not None:
        raise Refusal(SW.P1P2)
    if data[3] & 0xE0 not in (0x00, 0x80) or df.files.value:
        raise Refusal(SW.DATA)
    if 11 + size > df.free_bytes:
        raise Refusal(SW.NO_SPACE)
    card.nvm.write(df.key_file, KeyFile(size, data[3], data[4]))
    return OK


def make_ef(fid: int, data: bytes) -> Ef:
    """An elementary file from its creation data (6700, 6A80 when they are not one)."""
    expect_length(data, 7)
    kind = data[0] & 0x3F
    if kind == BINARY and data[1:3] != b"\0\0":
        return BinaryFile(fid, data)
    if kind in (FIXED, CYCLIC) and data[1] >= 2 and data[2]:
        return RecordFile(fid, data)
    if kind == VARIABLE and data[1:3] != b"\0\0":
        return RecordFile(fid, data)
    if data[0] == PURSE and data[1:3] == b"\x02\x08" and fid in (1, 2):
        return PurseFile(fid, data)
    raise Refusal(SW.DATA)


def _add(card: Card, node: Ef | Df) -> None:
    df = card.df
    files = df.files.value
    if node.fid in files or node.fid == MF_FID:
        raise Refusal(SW.P1P2)
    if node.cost > df.free_bytes:
        raise Refusal(SW.NO_SPACE)
    card.nvm.write(df.files, {**files, node.fid: node})


def erase_df(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:
    """ERASE DF: everything inside the current DF, of the MF everything but itself."""
    expect_p1p2(p1, p2)
    expect_length(data, 0)
    df = card.df
    if not card.allowed(df.erase_right):
        raise Refusal(SW.SECURITY)
    card.nvm.write(df.files, {})
    card.nvm.write(df.keys, {})
    card.nvm.write(df.key_file, None)
    card.nvm.write(card.epoch, card.epoch.value + 1)
    return OK


def delete_df(card: Card, cla: int, p1: int, p2: int, data: bytes, le: int | None) -> bytes:
    """DELETE DF: an application, its space and its DIR record, in one step (OC-1)."""
    if cla != 0x84:
        raise Refusal(SW.CLASS_MISMATCH)
    expect_p1p2(p1, p2)
    mf = card.mf
    if card.df is not mf:
        raise Refusal(SW.CONDITIONS)
    if len(data) < 4:
        raise Refusal(SW.SM_MISSING)
    expect_length(data, 6)
    record = sm.usable(card, mf.key(0x36, 0))
    fid = int.from_bytes(sm.unwrap(card, data, record, SW.SM_WRONG), "big")
    df = mf.files.value.get(fid)
    if not isinstance(df, Df):
        raise Refusal(SW.FILE_NOT_FOUND)
    card.nvm.write(mf.files, {key: node for key, node in mf.files.value.items() if node is not df})
    directory = mf.files.value.get(DIR_FID)
    if isinstance(directory, RecordFile):
        card.nvm.write(directory.records, tuple(r for r in directory.records.value if not _names(r, df.name)))
    card.nvm.write(card.epoch, card.epoch.value + 1)
    if phone := card.nvm.roots.get("phone"):
        phone.value.close_slot(card.nvm, fid - mf.fid)
    return OK


def _names(record: bytes, name: bytes) -> bool:
    """Whether a DIR record (61 {4F name, 50 label}) is that application's."""
    try:
        return find(record, 0x61, 0x4F) == name
    except (FormatError, NotFound):
        return False
