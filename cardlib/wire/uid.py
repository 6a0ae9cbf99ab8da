"""Serial modules that read a tag's number and nothing else (RDM6300, EM4100): ``02``, hexadecimal text, ``03``.

The text is 5 bytes and their XOR, 12 digits. The module says it again and again while the tag lies there. A number
proves nothing: anybody can copy it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from operator import xor

from cardlib.errors import FormatError

BEGIN, END = 0x02, 0x03
UID_BYTES = 5
FRAME_BYTES = 2 + 2 * (UID_BYTES + 1)


def encode(uid: bytes) -> bytes:
    """What a module says of a tag. Raises FormatError unless the number has 5 bytes."""
    if len(uid) != UID_BYTES:
        raise FormatError(f"a tag's number has {UID_BYTES} bytes, not {len(uid)}")
    text = (uid + bytes((reduce(xor, uid),))).hex().upper()
    return bytes((BEGIN,)) + text.encode() + bytes((END,))


def decode(raw: bytes) -> bytes:
    """The tag's number in a frame. Raises FormatError."""
    if len(raw) != FRAME_BYTES or raw[0] != BEGIN or raw[-1] != END:
        raise FormatError("a tag's frame has 14 bytes from 02 to 03")
    try:
        whole = bytes.fromhex(raw[1:-1].decode("ascii"))
    except ValueError as e:
        raise FormatError("a tag's number has hexadecimal digits only") from e
    if len(whole) != UID_BYTES + 1 or reduce(xor, whole):
        raise FormatError("the check digits of a tag's number are wrong: hold it there again")
    return whole[:UID_BYTES]


class Deframer:
    """Cuts a byte stream, fed in pieces of any size, into tags' numbers; what is none is skipped."""

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Yield each number that is complete and right by now."""
        self._pending += piece
        while (at := self._pending.find(BEGIN)) >= 0:
            self._pending = self._pending[at:]
            if len(self._pending) < FRAME_BYTES:
                return
            try:
                uid = decode(self._pending[:FRAME_BYTES])
            except FormatError:
                self._pending = self._pending[1:]
                continue
            self._pending = self._pending[FRAME_BYTES:]
            yield uid
        self._pending = b""
