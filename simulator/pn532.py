"""A simulated PN532: frames of its serial line in, frames out, with whatever card lies on its reader (UM0701-02).

It activates cards by itself for DATA_EXCHANGE, or leaves ISO 14443-4 to a host that uses COMMUNICATE_THRU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple

from cardlib.errors import CardRemoved
from cardlib.wire.pn532 import (
    ACK,
    CHIP,
    HOST,
    MAX_EXCHANGE,
    MORE,
    SYNTAX_ERROR,
    Code,
    Deframer,
    Frame,
    Kind,
    Target,
    encode,
)
from simulator.reader import Chip, Reader

FIRMWARE = bytes.fromhex("32010607")
ASLEEP_BYTES = 8
"""What a sleeping chip misses before its UART hears."""
AUTOMATIC_RATS = 0x10
FOR_EVER = 0xFF
"""So often a chip looks for a card unless told otherwise: an empty field gets no answer."""
SAK_14443_4, SAK_OTHER = 0x20, 0x08
LONG_UID, SHORT_UID = bytes.fromhex("0344"), bytes.fromhex("0004")
NO_ANSWER, NOT_NOW = 0x01, 0x27
FRAME_SIZES = (16, 24, 32, 40, 48, 64, 96, 128, 256)
INTERFACE = bytes.fromhex("78807002")  # ATS: T0 with frames of 256 bytes, TA, TB, TC
Says = Iterator[tuple[float, bytes]]
"""Bytes for the line, each after a pause in seconds."""


class Faults(NamedTuple):
    """What goes wrong, as probabilities for each command: see the fields' names. ``late``: an answer in two parts."""

    garbage: float = 0.0
    lost_command: float = 0.0
    lost_ack: float = 0.0
    damaged_answer: float = 0.0
    lost_answer: float = 0.0
    late: float = 0.0
    pulled_card: float = 0.0
    late_s: float = 0.02


NO_FAULTS = Faults()


def ats_of(atr: bytes) -> bytes:
    """The answer to select of a card whose reader would make up this answer to reset (``3B 8n 80 01 ...``)."""
    historical = atr[4 : 4 + (atr[1] & 0x0F)]
    return bytes((1 + len(INTERFACE) + len(historical),)) + INTERFACE + historical


class Blocks:
    """The card's side of ISO 14443-4: blocks in, blocks out; no answer to what is none (§7.5)."""

    def __init__(self, transceive: Callable[[bytes], bytes], ats: bytes) -> None:
        self._transceive, self._ats = transceive, ats
        self._size, self._number = 16, 1
        self._command = self._left = self._said = b""
        self._selected = False

    def frame(self, raw: bytes) -> bytes:
        """Answer one frame, empty when the card keeps silent. Raises CardRemoved."""
        if len(raw) == 2 and raw[0] == 0xE0 and not self._selected:
            self._size = FRAME_SIZES[min(raw[1] >> 4, 8)]
            self._selected = True
            return self._ats
        if not raw or not self._selected:
            return b""
        block = raw[0]
        if block == 0xC2:
            self._selected = False
            return raw
        if block & 0xEE == 0x02:
            self._number ^= 1  # rule D
            self._command += raw[1:]
            if block & 0x10:
                self._said = bytes((0xA2 | self._number,))
            else:
                command, self._command = self._command, b""
                self._left = self._transceive(command)
                self._said = self._next()
        elif block & 0xEE == 0xA2:
            if block & 1 == self._number:
                return self._said  # rule 11
            if block & 0x10:
                return bytes((0xA2 | self._number,))  # rule 12
            self._number ^= 1  # rules 13, E
            self._said = self._next()
        else:
            return b""
        return self._said

    def _next(self) -> bytes:
        room = self._size - 3
        piece, self._left = self._left[:room], self._left[room:]
        return bytes((0x02 | (0x10 if self._left else 0) | self._number,)) + piece


class SimulatedPn532:
    """The chip. ``reader`` is its field: cards are put there with :meth:`put`."""

    def __init__(self, faults: Faults = NO_FAULTS, seed: int = 0) -> None:
        self.faults = faults
        self.reader = Reader()
        self.uid = b""
        self.apdus = True
        self._dice = Random(seed)
        self._deframer = Deframer()
        self._deaf = ASLEEP_BYTES
        self._said = b""
        self._parameters = AUTOMATIC_RATS
        self._patient = True
        self._registers: dict[bytes, int] = {}
        self._command = self._left = b""
        self._blocks: Blocks | None = None

    def put(self, card: Chip, uid: bytes, *, apdus: bool = True) -> None:
        """Put a card into the field, a plain memory tag without ``apdus``. Raises Conflict when one lies there."""
        self.reader.put(card)
        self.uid, self.apdus, self._blocks = uid, apdus, None

    def take(self) -> None:
        """Take the card away."""
        self.reader.take()
        self._blocks = None

    def turn(self, data: bytes) -> Says:
        """Hear bytes of the line; yields what the chip says."""
        missed = min(self._deaf, len(data))
        self._deaf -= missed
        for frame in self._deframer.feed(data[missed:]):
            if frame.kind is Kind.NACK and self._said:
                yield 0.0, self._said
            elif frame.kind is Kind.DATA and frame.body[0] == HOST and not self._happens(self.faults.lost_command):
                yield from self._obey(frame)

    def _happens(self, probability: float) -> bool:
        return self._dice.random() < probability

    def _obey(self, frame: Frame) -> Says:
        faults = self.faults
        if self._happens(faults.garbage):
            yield 0.0, self._dice.randbytes(self._dice.randrange(1, 12))
        if not self._happens(faults.lost_ack):
            yield 0.0, ACK
        try:
            code = Code(frame.body[1])
        except (ValueError, IndexError):
            yield 0.0, SYNTAX_ERROR
            return
        try:
            answer = self._do(code, frame.body[2:])
        except IndexError:
            yield 0.0, SYNTAX_ERROR
            return
        if answer is None:
            return
        self._said = encode(bytes((CHIP, code + 1)) + answer)
        raw = bytearray(self._said)
        if self._happens(faults.damaged_answer):
            raw[self._dice.randrange(5, len(raw) - 1)] ^= 1 << self._dice.randrange(8)
        if self._happens(faults.lost_answer):
            return
        cut = self._dice.randrange(len(raw)) if self._happens(faults.late) else 0
        yield 0.0, bytes(raw[:cut])
        yield faults.late_s if cut else 0.0, bytes(raw[cut:])

    def _do(self, code: Code, data: bytes) -> bytes | None:
        match code:
            case Code.FIRMWARE:
                return FIRMWARE
            case Code.DIAGNOSE:
                return data if data[:1] == b"\0" else b"\0"
            case Code.PARAMETERS:
                self._parameters = data[0]
            case Code.READ_REGISTER:
                return bytes(self._registers.get(data[at : at + 2], 0) for at in range(0, len(data) - 1, 2))
            case Code.WRITE_REGISTER:
                self._registers |= {data[at : at + 2]: data[at + 2] for at in range(0, len(data) - 2, 3)}
            case Code.RF_CONFIGURATION:
                if data[:1] == b"\x01" and not data[1] & 1:
                    self._release()
                elif data[:1] == b"\x05":
                    self._patient = data[3] == FOR_EVER
            case Code.POWER_DOWN:
                self._release()
                self._deaf = ASLEEP_BYTES
                return b"\0"
            case Code.RELEASE | Code.DESELECT:
                self._release()
                return b"\0"
            case Code.LIST_TARGETS:
                return self._list(data)
            case Code.DATA_EXCHANGE:
                return self._exchange(data)
            case Code.COMMUNICATE_THRU:
                return self._through(data)
        return b""

    def _release(self) -> None:
        self._blocks = None
        self._command = self._left = b""
        self.reader.close()

    def _list(self, data: bytes) -> bytes | None:
        self._release()
        try:
            ats = ats_of(self.reader.atr)
        except CardRemoved:
            return None if self._patient else b"\0"
        if data[1:2] != b"\0":  # a look for another kind of card
            return b"\0"
        self._blocks = Blocks(self._transceive, ats)
        automatic = self.apdus and self._parameters & AUTOMATIC_RATS
        sak = SAK_14443_4 if self.apdus else SAK_OTHER
        kind = SHORT_UID if len(self.uid) == 4 else LONG_UID
        return b"\x01" + Target(1, kind, sak, self.uid, ats if automatic else b"").encode()

    def _transceive(self, command: bytes) -> bytes:
        """Let the card answer, unless it is pulled away before it hears or before it is heard."""
        if not self._happens(self.faults.pulled_card):
            return self.reader.transceive(command)
        if self._happens(0.5):
            self.reader.transceive(command)
        self.take()
        raise CardRemoved("pulled away by the simulator")

    def _exchange(self, data: bytes) -> bytes:
        if self._blocks is None or not data or data[0] & 0x3F != 1:
            return bytes((NOT_NOW,))
        self._command += data[1:]
        if data[0] & MORE:
            return b"\0"
        command, self._command = self._command, b""
        try:
            answer = self._transceive(command) if command else self._left
        except CardRemoved:
            self._blocks = None
            return bytes((NO_ANSWER,))
        piece, self._left = answer[:MAX_EXCHANGE], answer[MAX_EXCHANGE:]
        return bytes((MORE if self._left else 0,)) + piece

    def _through(self, data: bytes) -> bytes:
        try:
            answer = self._blocks.frame(data) if self._blocks else b""
        except CardRemoved:
            answer = b""
        return b"\0" + answer if answer else bytes((NO_ANSWER,))
