"""The line between a virtual reader (vsmartcard's vpcd) and a card: a 2-byte big-endian length, then the body.

A body of one byte is a control message; a longer one is a command for the card, answered with data and status word.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum, unique

from cardlib.errors import FormatError

MAX_BODY = 65535


@unique
class Control(IntEnum):
    """What a reader asks of a card besides commands (uicc.md "Virtual reader"). Only ATR is answered."""

    POWER_OFF = 0
    POWER_ON = 1
    RESET = 2
    ATR = 4


def frame(body: bytes) -> bytes:
    """Put the length before a body of 1..65535 bytes. Raises FormatError."""
    if not 0 < len(body) <= MAX_BODY:
        raise FormatError(f"virtual reader: a body of {len(body)} bytes does not fit a frame")
    return len(body).to_bytes(2, "big") + body


class Deframer:
    """Cuts a byte stream, fed in pieces of any size, into bodies."""

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Yield each body that is complete by now. Raises FormatError on an empty frame."""
        self._pending += piece
        while len(self._pending) >= 2:
            end = 2 + int.from_bytes(self._pending[:2], "big")
            if end == 2:
                raise FormatError("virtual reader: empty frame")
            if len(self._pending) < end:
                return
            body, self._pending = self._pending[2:end], self._pending[end:]
            yield body


def control(body: bytes) -> Control | None:
    """Tell a control message from a command (None). Raises FormatError on a control byte that does not exist."""
    if len(body) != 1:
        return None
    try:
        return Control(body[0])
    except ValueError as e:
        raise FormatError(f"virtual reader: control byte {body[0]:02X} does not exist") from e
