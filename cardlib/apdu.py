"""APDUs of ISO 7816-4: commands in short and extended coding, responses, status words."""

from __future__ import annotations

from enum import IntEnum, unique
from typing import NamedTuple, Self

from cardlib.errors import FormatError

MAX_SHORT = 255
MAX_EXTENDED = 65535


@unique
class SW(IntEnum):
    """Status words of card.md §2."""

    OK = 0x9000
    CORRUPT = 0x6281
    INVALIDATED = 0x6283
    UNKNOWN_STATE = 0x6400
    MEMORY = 0x6581
    LENGTH = 0x6700
    CLASS_MISMATCH = 0x6900
    INVALID_STATE = 0x6901
    FILE_TYPE = 0x6981
    SECURITY = 0x6982
    KEY_LOCKED = 0x6983
    NO_CHALLENGE = 0x6984
    CONDITIONS = 0x6985
    SM_MISSING = 0x6987
    SM_WRONG = 0x6988
    DATA = 0x6A80
    NOT_SUPPORTED = 0x6A81
    FILE_NOT_FOUND = 0x6A82
    RECORD_NOT_FOUND = 0x6A83
    NO_SPACE = 0x6A84
    P1P2 = 0x6A86
    KEY_NOT_FOUND = 0x6A88
    OFFSET = 0x6B00
    INS = 0x6D00
    CLA = 0x6E00
    UNKNOWN = 0x6F00
    MAC_WRONG = 0x9302
    PERMANENTLY_BLOCKED = 0x9303
    FUNDS = 0x9401
    COUNTER_FULL = 0x9402
    KEY_INDEX = 0x9403
    NO_PROOF = 0x9406


MEANINGS = {
    SW.CORRUPT: "data may be corrupt or never written",
    SW.INVALIDATED: "file or key checksum wrong",
    SW.UNKNOWN_STATE: "execution error",
    SW.MEMORY: "memory write failed",
    SW.LENGTH: "wrong length",
    SW.CLASS_MISMATCH: "class does not match the file's protection",
    SW.INVALID_STATE: "command not accepted in this state",
    SW.FILE_TYPE: "command does not fit the file's structure",
    SW.SECURITY: "security status not satisfied: authenticate first",
    SW.KEY_LOCKED: "key or PIN is locked",
    SW.NO_CHALLENGE: "no challenge outstanding",
    SW.CONDITIONS: "conditions of use not satisfied",
    SW.SM_MISSING: "secure messaging MAC missing",
    SW.SM_WRONG: "secure messaging MAC wrong",
    SW.DATA: "wrong data field",
    SW.NOT_SUPPORTED: "not supported, or card or application blocked",
    SW.FILE_NOT_FOUND: "file or application not found",
    SW.RECORD_NOT_FOUND: "record not found",
    SW.NO_SPACE: "not enough space",
    SW.P1P2: "wrong P1 P2, or the file exists",
    SW.KEY_NOT_FOUND: "key not found",
    SW.OFFSET: "offset outside the file",
    SW.INS: "instruction not supported",
    SW.CLA: "class not supported",
    SW.UNKNOWN: "unspecified error",
    SW.MAC_WRONG: "MAC wrong",
    SW.PERMANENTLY_BLOCKED: "application permanently blocked",
    SW.FUNDS: "insufficient funds",
    SW.COUNTER_FULL: "transaction counter at its maximum",
    SW.KEY_INDEX: "key index or version not supported",
    SW.NO_PROOF: "the requested proof is not available",
}


def meaning(sw: int) -> str:
    """Say in words what a status word means; empty when it is not of card.md §2."""
    if sw & 0xFFF0 == 0x63C0:
        return f"verification failed, {sw & 15} tries left"
    return MEANINGS.get(sw, "")  # type: ignore[call-overload, no-any-return]  # IntEnum keys equal plain ints


class Command(NamedTuple):
    """A command APDU. ``le`` is the number of bytes wanted, 0 for "all there is", None for none."""

    cla: int
    ins: int
    p1: int
    p2: int
    data: bytes = b""
    le: int | None = None

    @property
    def header(self) -> bytes:
        """CLA INS P1 P2, the only part that may be shown without masking."""
        return bytes(self[:4])

    def encode(self) -> bytes:
        """Code in short form when it fits, else extended. Raises FormatError when neither does."""
        size, le = len(self.data), self.le
        if size > MAX_EXTENDED or (le is not None and not 0 <= le <= MAX_EXTENDED + 1):
            raise FormatError(f"command {self.header.hex().upper()}: {size} data bytes or Le {le} is out of range")
        if size <= MAX_SHORT and (le is None or le <= MAX_SHORT + 1):
            lc = bytes([size]) + self.data if size else b""
            return self.header + lc + (b"" if le is None else bytes([le & 0xFF]))
        lc = b"\0" + size.to_bytes(2, "big") + self.data if size else b"\0"
        return self.header + lc + (b"" if le is None else (le & 0xFFFF).to_bytes(2, "big"))

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """Parse any of the seven ISO cases. Raises FormatError when the lengths do not add up."""
        size = len(raw)
        if size < 4:
            raise FormatError(f"command of {size} bytes: a header has 4")
        cla, ins, p1, p2 = raw[0], raw[1], raw[2], raw[3]
        if size == 4:
            return cls(cla, ins, p1, p2)
        if size == 5:
            return cls(cla, ins, p1, p2, b"", raw[4])
        if raw[4]:
            end = 5 + raw[4]
            if size == end:
                return cls(cla, ins, p1, p2, raw[5:])
            if size == end + 1:
                return cls(cla, ins, p1, p2, raw[5:end], raw[end])
        elif size == 7:
            return cls(cla, ins, p1, p2, b"", int.from_bytes(raw[5:], "big") or MAX_EXTENDED + 1)
        elif size > 7:
            end = 7 + int.from_bytes(raw[5:7], "big")
            if end > 7 and size == end:
                return cls(cla, ins, p1, p2, raw[7:])
            if end > 7 and size == end + 2:
                return cls(cla, ins, p1, p2, raw[7:end], int.from_bytes(raw[end:], "big") or MAX_EXTENDED + 1)
        raise FormatError(f"command {raw[:4].hex().upper()}: Lc and Le do not fit its {size} bytes")


class Response(NamedTuple):
    """A response APDU: data and status word."""

    data: bytes
    sw: int

    def encode(self) -> bytes:
        """Data followed by the two status bytes."""
        return self.data + self.sw.to_bytes(2, "big")

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """Split the status word off. Raises FormatError when it is missing."""
        if len(raw) < 2:
            raise FormatError(f"response of {len(raw)} bytes: the status word is missing")
        return cls(raw[:-2], int.from_bytes(raw[-2:], "big"))
