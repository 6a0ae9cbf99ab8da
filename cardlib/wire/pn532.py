"""Frames of a PN532 on a serial line, and what stands in its commands and answers (NXP UM0701-02, "the manual").

A frame is ``00 00 FF LEN LCS TFI DATA DCS 00``; a longer one has ``FF FF LENH LENL LCS`` instead (manual §6.2.1).
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, IntEnum, unique
from typing import NamedTuple, Self

from cardlib.errors import FormatError

START = b"\x00\xff"
ACK = bytes.fromhex("0000FF00FF00")
NACK = bytes.fromhex("0000FFFF0000")
SYNTAX_ERROR = bytes.fromhex("0000FF01FF7F8100")
WAKE_UP = b"\x55\x55" + bytes(14)
"""What wakes a chip that sleeps: its UART hears the first byte badly, then needs about 1 ms (manual §7.2.11)."""
MAX_BODY = 265
"""TFI and data of the longest frame, either way."""
MAX_EXCHANGE = MAX_BODY - 3
"""A card's bytes in one IN_DATA_EXCHANGE or its answer: TFI, code and target or status take the rest."""
MORE = 0x40
"""In a target's number, and in a status: more of the same APDU follows (manual §7.3.8)."""
HOST, CHIP = 0xD4, 0xD5
ISO_14443_4 = 0x20
MAX_HISTORICAL = 15


@unique
class Code(IntEnum):
    """Commands; the answer's code is one more (manual §7)."""

    DIAGNOSE = 0x00
    FIRMWARE = 0x02
    STATUS = 0x04
    READ_REGISTER = 0x06
    WRITE_REGISTER = 0x08
    BAUD = 0x10
    PARAMETERS = 0x12
    SAM_CONFIGURATION = 0x14
    POWER_DOWN = 0x16
    RF_CONFIGURATION = 0x32
    DATA_EXCHANGE = 0x40
    COMMUNICATE_THRU = 0x42
    DESELECT = 0x44
    LIST_TARGETS = 0x4A
    RELEASE = 0x52


@unique
class Kind(Enum):
    """What has come. DAMAGED: length right, content wrong, so it can be asked for again."""

    DATA = "data"
    ACK = "acknowledged"
    NACK = "not acknowledged"
    SYNTAX_ERROR = "syntax error"
    DAMAGED = "damaged"


class Frame(NamedTuple):
    """A frame; ``body`` is TFI, code and parameters, of DATA only."""

    kind: Kind
    body: bytes = b""


def encode(body: bytes) -> bytes:
    """Frame TFI, code and parameters, 1 to 265 bytes. Raises FormatError."""
    size = len(body)
    if not 1 <= size <= MAX_BODY:
        raise FormatError(f"PN532: {size} bytes do not fit a frame: 1 to {MAX_BODY} do")
    head = bytes((size, -size & 0xFF)) if size < 0xFF else b"\xff\xff" + _summed(size.to_bytes(2, "big"))
    return b"\x00" + START + head + _summed(body) + b"\x00"


def _summed(data: bytes) -> bytes:
    return data + bytes((-sum(data) & 0xFF,))


class Deframer:
    """Cuts a byte stream, fed in pieces of any size, into frames; what is none is skipped."""

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, piece: bytes) -> Iterator[Frame]:
        """Yield each frame that is complete by now."""
        self._pending += piece
        while True:
            at = self._pending.find(START)
            if at < 0:
                self._pending = self._pending[-1:]
                return
            self._pending = self._pending[at:]
            found = _cut(self._pending)
            if found is None:
                return
            frame, used = found
            self._pending = self._pending[used:]
            if frame is not None:
                yield frame


def _cut(raw: bytes) -> tuple[Frame | None, int] | None:
    """The frame at a start code and its size; (None, bytes to skip) when there is none, None while it is incomplete.

    The postamble is not waited for: it says nothing, and the search for the next start code skips it.
    """
    if len(raw) < 4:
        return None
    size, check = raw[2], raw[3]
    if (size, check) == (0x00, 0xFF):
        return Frame(Kind.ACK), 4
    if (size, check) == (0xFF, 0x00):
        return Frame(Kind.NACK), 4
    begin, good = 4, not (size + check) & 0xFF
    if (size, check) == (0xFF, 0xFF):
        if len(raw) < 7:
            return None
        begin, size, good = 7, int.from_bytes(raw[4:6], "big"), not sum(raw[4:7]) & 0xFF
    if not good or not 1 <= size <= MAX_BODY:
        return None, len(START)
    if len(raw) <= begin + size:
        return None
    body, used = raw[begin : begin + size], begin + size + 1
    if sum(raw[begin:used]) & 0xFF:
        return Frame(Kind.DAMAGED), used
    return Frame(Kind.SYNTAX_ERROR) if body == b"\x7f" else Frame(Kind.DATA, body), used


class Target(NamedTuple):
    """A card of ISO 14443 type A: ATQA (high byte first), SAK, UID, and ATS with its length byte, or nothing."""

    number: int
    sens_res: bytes
    sel_res: int
    uid: bytes
    ats: bytes

    @property
    def speaks_apdus(self) -> bool:
        """Whether it was activated for ISO 14443-4."""
        return bool(self.sel_res & ISO_14443_4 and self.ats)

    def encode(self) -> bytes:
        """As it stands in the answer to LIST_TARGETS."""
        return bytes((self.number,)) + self.sens_res + bytes((self.sel_res, len(self.uid))) + self.uid + self.ats

    @classmethod
    def decode(cls, raw: bytes) -> tuple[Self, bytes]:
        """The first target of a list, and what follows it. Raises FormatError."""
        ats_at = 5 + raw[4] if len(raw) > 4 else 0
        end = ats_at
        if ats_at and raw[3] & ISO_14443_4 and len(raw) > ats_at:
            end += raw[ats_at]
        if not ats_at or raw[4] not in (4, 7, 10) or len(raw) < end:
            raise FormatError("PN532: its list of targets is cut off")
        return cls(raw[0], raw[1:3], raw[3], raw[5:ats_at], raw[ats_at:end]), raw[end:]


def targets(data: bytes) -> list[Target]:
    """The cards in an answer to LIST_TARGETS at 106 kbit/s type A, at most two. Raises FormatError."""
    if not data or data[0] > 2:
        raise FormatError("PN532: an answer without its number of targets")
    found, rest = [], data[1:]
    for _ in range(data[0]):
        target, rest = Target.decode(rest)
        found.append(target)
    return found


def atr_of(ats: bytes) -> bytes:
    """The answer to reset that a PC/SC reader makes up for a card: ``3B 8n 80 01``, its historical bytes, their XOR.

    Raises FormatError for an ATS that is cut off (ISO 14443-4 §5.2; PC/SC part 3 §3.1.3.2.3.1).
    """
    if not ats or ats[0] != len(ats):
        raise FormatError("the card's answer to select has another length than it says")
    interface = (ats[1] >> 4 & 7).bit_count() if len(ats) > 1 else 0
    if len(ats) > 1 and len(ats) < 2 + interface:
        raise FormatError("the card's answer to select is cut off")
    historical = ats[2 + interface :][:MAX_HISTORICAL]
    body = bytes((0x80 | len(historical), 0x80, 0x01)) + historical
    check = 0
    for byte in body:
        check ^= byte
    return b"\x3b" + body + bytes((check,))
