"""The terminal link on the wire (link.md): COBS frames, their fragments, and what a HELLO says. No I/O, no policy.

A frame is ``COBS(addr 1 | ctl 1 | seq 1 | body 0..1100 | crc32 4) 00``.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, unique

from cardlib.errors import FormatError
from cardlib.wire import cbor

MAX_BODY = 1100
BROADCAST = 127
VERSION = 1
BAUDS = (115_200, 9_600)
"""Where a HELLO is tried, in this order."""
GAP_UART_S = 0.020
GAP_BUFFERED_S = 0.500
"""Longest silence within a frame: on a UART, and where bytes pass through buffers (TCP, USB, pseudo-terminals)."""
MAX_BUSY_MS = 60_000
SLOT_BYTES = 120
SLOT_EXTRA_S = 0.020
FINGERPRINT = 16
_FRAME_MAX = 3 + MAX_BODY + 4
_CODED_MAX = _FRAME_MAX + _FRAME_MAX // 254 + 1
_MORE, _ENCRYPTED = 4, 8
_TEXT = re.compile(rb"(?:\x06\x09|\x04\x14)[A-Za-z0-9+/]+={0,2}\r?\Z")


@unique
class Kind(IntEnum):
    """What a frame is."""

    DATA = 0
    ACK = 1
    BUSY = 2
    HELLO = 3


def cobs(data: bytes) -> bytes:
    """Encode so that no byte is 00 (Cheshire and Baker, 1999)."""
    out = bytearray()
    *parts, last = data.split(b"\0")
    for part in parts:
        out += _block(part)
    out += _block(last)
    if len(last) >= 254 and len(last) % 254 == 0:
        del out[-1]  # a full block at the very end stands for itself
    return bytes(out)


def _block(part: bytes) -> bytes:
    """Bytes without 00 and the 00 behind them, as blocks."""
    full = len(part) // 254 * 254
    blocks = [b"\xff" + part[at : at + 254] for at in range(0, full, 254)]
    return b"".join([*blocks, bytes([len(part) - full + 1]), part[full:]])


def uncobs(coded: bytes) -> bytes:
    """Inverse of :func:`cobs`. Raises FormatError."""
    out, at, size = bytearray(), 0, len(coded)
    if not size or 0 in coded:
        raise FormatError("frame: no COBS")
    while True:
        code = coded[at]
        end = at + code
        if end > size:
            raise FormatError("frame: a COBS block is cut off")
        out += coded[at + 1 : end]
        if end == size:
            return bytes(out)
        if code != 255:
            out.append(0)
        at = end


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame. ``address`` 0..127 is always the slave's; ``more``: fragments follow."""

    address: int
    kind: Kind
    seq: int
    body: bytes = b""
    from_slave: bool = False
    more: bool = False
    encrypted: bool = False

    def encode(self) -> bytes:
        """Bytes for the line, delimiter included. Raises FormatError when a field is out of range."""
        self._check()
        ctl = self.kind | _MORE * self.more | _ENCRYPTED * self.encrypted
        raw = bytes([self.address | 0x80 * self.from_slave, ctl, self.seq]) + self.body
        return cobs(raw + zlib.crc32(raw).to_bytes(4, "big")) + b"\0"

    @classmethod
    def decode(cls, coded: bytes) -> Frame:
        """Parse what stood before a delimiter. Raises FormatError."""
        if len(coded) > _CODED_MAX:
            raise FormatError(f"frame: {len(coded)} bytes are too many")
        raw = uncobs(coded)
        if len(raw) < 7:
            raise FormatError("frame: too short")
        if zlib.crc32(raw[:-4]) != int.from_bytes(raw[-4:], "big"):
            raise FormatError("frame: CRC is wrong")
        addr, ctl, seq = raw[:3]
        if ctl & 0xF0:
            raise FormatError(f"frame: control byte {ctl:02X} does not exist")
        frame = cls(
            addr & 0x7F, Kind(ctl & 3), seq, raw[3:-4],
            from_slave=addr > 0x7F, more=bool(ctl & _MORE), encrypted=bool(ctl & _ENCRYPTED),
        )  # fmt: skip
        frame._check()
        return frame

    def _check(self) -> None:
        if not 0 <= self.address <= BROADCAST or not 0 <= self.seq <= 255 or len(self.body) > MAX_BODY:
            raise FormatError("frame: address, sequence or body is out of range")
        if self.seq == 0 and self.kind is not Kind.HELLO:
            raise FormatError("frame: sequence 0 is a HELLO's")
        if self.kind is not Kind.DATA and (self.more or self.encrypted):
            raise FormatError(f"frame: {self.kind.name} is neither encrypted nor a fragment")
        if (self.kind is Kind.ACK and self.body) or (self.kind is Kind.BUSY and len(self.body) != 2):
            raise FormatError(f"frame: {self.kind.name} has a body of {len(self.body)} bytes")


def next_seq(seq: int) -> int:
    """The sequence number after one: 1..255, then 1."""
    return seq % 255 + 1


def fragments(address: int, seq: int, message: bytes, *, from_slave: bool, encrypted: bool) -> list[Frame]:
    """Cut a message into frames with consecutive sequence numbers; all but the last say that more follow."""
    parts = [message[at : at + MAX_BODY] for at in range(0, len(message), MAX_BODY)] or [b""]
    frames = []
    for number, part in enumerate(parts, 1):
        more = number < len(parts)
        frames.append(Frame(address, Kind.DATA, seq, part, from_slave, more, encrypted))
        seq = next_seq(seq)
    return frames


class Deframer:
    """Cuts a byte stream into frames, whatever stands between them.

    Bytes that are no frame are dropped and counted in ``bad``. A silence longer than ``gap_s`` seconds empties the
    buffer. With ``text``, lines of SMP's own framing (LF before 00, all between is Base64) come out as bytes.
    """

    def __init__(self, gap_s: float, *, text: bool = False) -> None:
        self.gap_s = gap_s
        self.bad = 0
        self._text = text
        self._pending = bytearray()
        self._skipping = False
        self._last_s = 0.0

    def feed(self, piece: bytes, now_s: float) -> Iterator[Frame | bytes]:
        """Yield each frame (or line of text, as bytes) that is complete by now; ``now_s`` on any steady clock."""
        if not piece:
            return
        if now_s - self._last_s > self.gap_s and (self._pending or self._skipping):
            self.bad += 1
            self._pending.clear()
            self._skipping = False
        self._last_s = now_s
        while piece:
            end = piece.find(b"\0") + 1 or len(piece)
            end = (piece.find(b"\n", 0, end) + 1 if self._text else 0) or end
            self._pending += piece[:end]
            piece = piece[end:]
            found = self._found()
            if found is not None:
                yield found

    def _found(self) -> Frame | bytes | None:
        """The frame or line that ends the buffer, if one does."""
        last = self._pending[-1]
        if last == 0x00:
            coded, skipped = bytes(self._pending[:-1]), self._skipping
            self._pending.clear()
            self._skipping = False
            return self._frame(coded, skipped=skipped) if coded or skipped else None
        if self._text and last == 0x0A and not self._skipping:
            line = bytes(self._pending[:-1])
            if _TEXT.match(line):  # else LF is one byte among others of a frame
                self._pending.clear()
                return line.rstrip(b"\r")
        if len(self._pending) > _CODED_MAX:
            self._pending.clear()
            self._skipping = True
        return None

    def _frame(self, coded: bytes, *, skipped: bool) -> Frame | None:
        if not skipped:
            try:
                return Frame.decode(coded)
            except FormatError:
                pass  # counted below, as link.md has it: the master asks again
        self.bad += 1
        return None


@dataclass(frozen=True, slots=True)
class HelloRequest:
    """Who is there? ``nonce`` 8 bytes; each answers in one of ``slots`` slots."""

    nonce: bytes
    slots: int = 1

    def encode(self) -> bytes:
        """Body of a HELLO from the master. Raises FormatError."""
        self._check()
        return cbor.encode({0: VERSION, 1: self.nonce, 2: self.slots})

    @classmethod
    def decode(cls, raw: bytes) -> HelloRequest:
        """Parse. Raises FormatError."""
        version, nonce, slots = cbor.decode_map(raw, "HELLO", {0: int, 1: bytes, 2: int})
        if version != VERSION:
            raise FormatError(f"HELLO: version {version} is not {VERSION}")
        request = cls(nonce, slots)
        request._check()
        return request

    def _check(self) -> None:
        if len(self.nonce) != 8 or not 1 <= self.slots <= 255:
            raise FormatError("HELLO: nonce or slots are out of range")


@dataclass(frozen=True, slots=True)
class HelloAnswer:
    """A terminal's answer. ``fingerprint``: first 16 bytes of SHA-256 of its X25519 public key."""

    nonce: bytes
    serial: str
    model: str
    largest_body: int
    bauds: tuple[int, ...]
    paired: bool
    fingerprint: bytes

    def encode(self) -> bytes:
        """Body of a HELLO from a slave. Raises FormatError."""
        self._check()
        values = (self.nonce, self.serial, self.model, self.largest_body, list(self.bauds), int(self.paired))
        return cbor.encode({0: VERSION, **dict(enumerate(values, 1)), 7: self.fingerprint})

    @classmethod
    def decode(cls, raw: bytes) -> HelloAnswer:
        """Parse. Raises FormatError."""
        types = {0: int, 1: bytes, 2: str, 3: str, 4: int, 5: list, 6: int, 7: bytes}
        version, nonce, serial, model, largest, bauds, paired, fingerprint = cbor.decode_map(raw, "HELLO", types)
        if version != VERSION or paired not in (0, 1) or any(type(baud) is not int for baud in bauds):
            raise FormatError("HELLO: version, speeds or pairing are out of range")
        answer = cls(nonce, serial, model, largest, tuple(bauds), bool(paired), fingerprint)
        answer._check()
        return answer

    def _check(self) -> None:
        if len(self.nonce) != 8 or len(self.fingerprint) != FINGERPRINT or not 64 <= self.largest_body <= MAX_BODY:
            raise FormatError("HELLO: nonce, fingerprint or largest body is out of range")
        if not good_serial(self.serial) or len(self.model) > 16 or not self.model.isprintable():
            raise FormatError("HELLO: serial or model is none")
        if not 1 <= len(self.bauds) <= 4 or any(not 300 <= baud <= 4_000_000 for baud in self.bauds):
            raise FormatError("HELLO: speeds are out of range")


def good_serial(serial: str) -> bool:
    """Whether a text can be a terminal's serial: 1 to 24 ASCII letters, digits, points or hyphens."""
    return re.fullmatch(r"[A-Za-z0-9.-]{1,24}", serial) is not None


def slot_of(serial: str, nonce: bytes, slots: int) -> int:
    """In which slot a terminal answers a HELLO to all."""
    return zlib.crc32(serial.encode("ascii") + nonce) % slots


def slot_seconds(baud: int) -> float:
    """How long a slot lasts at a speed."""
    return SLOT_BYTES * 10 / baud + SLOT_EXTRA_S


def prologue(address: int, serial: str) -> bytes:
    """What both ends put into their handshake: version, address and serial of the terminal that is meant."""
    raw = serial.encode("ascii")
    return b"OCL1" + bytes([VERSION, address, len(raw)]) + raw


def label_text(fingerprint: bytes) -> str:
    """A fingerprint as the label has it: 26 Base32 characters."""
    return base64.b32encode(fingerprint).decode().rstrip("=")


def parse_label(text: str) -> bytes:
    """Inverse of :func:`label_text`; hyphens, spaces and small letters do no harm. Raises FormatError."""
    plain = re.sub(r"[\s-]", "", text).upper()
    try:
        raw = base64.b32decode(plain + "=" * (-len(plain) % 8))
    except ValueError as e:
        raise FormatError("the label's fingerprint is not Base32: read it again") from e
    if len(plain) != 26 or label_text(raw) != plain:
        raise FormatError("the label's fingerprint has 26 characters: read it again")
    return raw
