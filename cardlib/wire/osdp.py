"""OSDP (IEC 60839-11-5) on the wire: packets, their framing, commands and replies. The secure channel is osdp_secure.

[FF] 53 ADDR LEN(le16) CTRL [SCB] CODE DATA [MAC4] CRC16(le) | checksum
"""

from __future__ import annotations

from binascii import crc_hqx
from dataclasses import dataclass, field
from enum import IntEnum, unique
from typing import Annotated, ClassVar, NamedTuple, TypeAlias, cast

from cardlib.errors import FormatError
from cardlib.fields import Le, Raw, Record, U

MARK = b"\xff"
"""Sent before a packet so that drivers of the line settle; no part of it."""
SOM = 0x53
ANY_ADDRESS = 0x7F
MAX_PDS = 126
MAX_PACKET = 1440
"""Longest packet we send or take; a longer length field is noise."""
BYTE_GAP_MS = 20
"""Silence inside a packet that ends it."""
BAUDS = (9_600, 19_200, 38_400, 57_600, 115_200, 230_400)

_HEAD, _MAC = 5, 4
_REPLY, _CRC, _SCB = 0x80, 0x04, 0x08


@unique
class Scs(IntEnum):
    """Types of security block: four steps of the handshake, then MAC only (15, 16) or also enciphered (17, 18)."""

    CHALLENGE = 0x11
    CRYPTOGRAM = 0x12
    SERVER = 0x13
    RMAC = 0x14
    COMMAND = 0x15
    REPLY = 0x16
    COMMAND_DATA = 0x17
    REPLY_DATA = 0x18

    @property
    def has_mac(self) -> bool:
        """Whether the packet ends with a MAC: all inside an established channel do."""
        return self >= Scs.COMMAND


@unique
class KeyKind(IntEnum):
    """Third byte of a handshake's security block: which key."""

    DEFAULT = 0
    OWN = 1


@unique
class NakCode(IntEnum):
    """Why a PD refuses."""

    CHECK = 1
    LENGTH = 2
    UNKNOWN = 3
    SEQUENCE = 4
    NO_SECURITY = 5
    SECURITY_NEEDED = 6
    BIO_TYPE = 7
    BIO_FORMAT = 8
    RECORD = 9


class Packet(NamedTuple):
    """One packet. ``scb`` is the security block without its length byte, ``mac`` its 4 bytes where there is one."""

    address: int
    sequence: int
    code: int
    data: bytes = b""
    reply: bool = False
    scb: bytes = b""
    mac: bytes = b""
    crc: bool = True

    @property
    def scs(self) -> Scs | None:
        """Type of the security block; None for a plain packet."""
        return Scs(self.scb[0]) if self.scb else None

    def body(self) -> bytes:
        """SOM to data, with the final LEN: what the MAC is over."""
        length = (
            _HEAD
            + (len(self.scb) + 1 if self.scb else 0)
            + 1
            + len(self.data)
            + (_MAC if self.scb and self.scb[0] >= Scs.COMMAND else 0)
            + (2 if self.crc else 1)
        )
        if length > MAX_PACKET:
            raise FormatError(
                f"an OSDP packet of {length} bytes where at most {MAX_PACKET} are allowed: send less data"
            )
        if not (0 <= self.address <= ANY_ADDRESS and 0 <= self.sequence <= 3):
            raise FormatError(f"no OSDP address {self.address} with sequence {self.sequence}")
        control = self.sequence | (_CRC if self.crc else 0) | (_SCB if self.scb else 0)
        head = bytes(
            (SOM, self.address | (_REPLY if self.reply else 0), length & 0xFF, length >> 8, control),
        )
        block = bytes([len(self.scb) + 1]) + self.scb if self.scb else b""
        return head + block + bytes([self.code]) + self.data

    def encode(self) -> bytes:
        """The packet as sent, without the mark. Raises FormatError when something does not fit."""
        return finish(self.body() + self.mac, crc=self.crc)


def finish(packet: bytes, *, crc: bool) -> bytes:
    """Append CRC-16 (poly 1021, init 1D0F, little-endian) or checksum (sum of all bytes is 0)."""
    if crc:
        return packet + crc_hqx(packet, 0x1D0F).to_bytes(2, "little")
    return packet + bytes([-sum(packet) & 0xFF])


def _is_whole(raw: bytes) -> bool:
    if raw[4] & _CRC:
        return crc_hqx(raw[:-2], 0x1D0F) == int.from_bytes(raw[-2:], "little")
    return not sum(raw) & 0xFF


def decode(raw: bytes) -> Packet:
    """Parse exactly one packet, without its mark. Raises FormatError; the MAC is not checked here."""
    size = len(raw)
    if not 7 <= size <= MAX_PACKET or raw[0] != SOM or int.from_bytes(raw[2:4], "little") != size:
        raise FormatError(f"{size} bytes are no OSDP packet")
    control = raw[4]
    if control & 0xF0:
        raise FormatError(f"OSDP control byte {control:02X}: multi-part packets are not supported")
    if not _is_whole(raw):
        raise FormatError("an OSDP packet was damaged on the line")
    end = size - (2 if control & _CRC else 1)
    start, scb = _HEAD, b""
    reply = raw[1] >= _REPLY
    if control & _SCB:
        start += raw[_HEAD]
        scb = raw[_HEAD + 1 : start]
        _check_scb(scb, raw[_HEAD], reply)
        if scb[0] >= Scs.COMMAND and end - start > _MAC:
            end -= _MAC  # else it has none: some panels begin so, and are told that no channel is open
    if start >= end:
        raise FormatError(f"an OSDP packet of {size} bytes has no room for its code")
    mac = raw[end : end + _MAC] if end + _MAC < size else b""
    return Packet(
        raw[1] & ANY_ADDRESS, control & 3, raw[start], raw[start + 1 : end], reply, scb, mac, bool(control & _CRC)
    )


_SCB_SIZES = {kind: 2 if kind.has_mac else 3 for kind in Scs}


def _check_scb(scb: bytes, length: int, reply: bool) -> None:
    kind = scb[0] if scb else 0
    wanted = _SCB_SIZES.get(cast("Scs", kind))
    # Odd types are the panel's, even ones the device's; a handshake names one of two keys.
    if (
        wanted is None
        or length != wanted
        or len(scb) != wanted - 1
        or reply is bool(kind & 1)
        or (kind < Scs.RMAC and scb[1] > KeyKind.OWN)
    ):
        raise FormatError(f"OSDP security block {scb[:3].hex().upper()} of {length} bytes")


class Framer:
    """Finds packets in whatever a line delivers: garbage, split and joined reads, lost and added bytes.

    A packet whose bytes pause for more than 20 ms is over; what came after its first byte is looked at again.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._last_ms = 0

    def feed(self, data: bytes, now_ms: int) -> list[bytes]:
        """Take bytes that arrived by ``now_ms`` and return the whole undamaged packets among them, as raw bytes."""
        found = self._scan(final=True) if self._buffer and now_ms - self._last_ms > BYTE_GAP_MS else []
        if data:
            self._buffer += data
            self._last_ms = now_ms
            found += self._scan(final=False)
        return found

    def is_receiving(self, now_ms: int) -> bool:
        """Whether a packet has begun and may still go on."""
        return bool(self._buffer) and now_ms - self._last_ms <= BYTE_GAP_MS

    @property
    def deadline_ms(self) -> int | None:
        """When an unfinished packet is over; None when there is none."""
        return self._last_ms + BYTE_GAP_MS + 1 if self._buffer else None

    def _scan(self, *, final: bool) -> list[bytes]:
        """Cut packets off the buffer; with ``final`` an incomplete one is noise, else more may come."""
        found: list[bytes] = []
        buffer = self._buffer
        while True:
            start = buffer.find(SOM)
            if start < 0:
                buffer.clear()
                return found
            del buffer[:start]
            if len(buffer) < _HEAD:
                if not final:
                    return found
                del buffer[:1]
                continue
            length = int.from_bytes(buffer[2:4], "little")
            plausible = 7 <= length <= MAX_PACKET and not buffer[4] & 0xF0
            if plausible and len(buffer) < length and not final:
                return found
            if plausible and len(buffer) >= length and _is_whole(raw := bytes(buffer[:length])):
                found.append(raw)
                del buffer[:length]
            else:
                del buffer[:1]


@dataclass(frozen=True)
class Rest:
    """All bytes that are left, ``least`` to ``most`` of them."""

    least: int = 0
    most: int = MAX_PACKET
    size: int = 0

    def encode(self, value: bytes) -> bytes:
        """Raises FormatError when there are too few or too many."""
        if not self.least <= len(value) <= self.most:
            raise FormatError(f"{len(value)} bytes where {self.least} to {self.most} belong")
        return value

    def decode(self, raw: bytes) -> bytes:
        """Inverse of encode, with the same check."""
        return self.encode(raw)


@dataclass(frozen=True)
class Counted:
    """A length of ``width`` bytes, then as many bytes, which end the message."""

    width: int = 1
    least: int = 0
    most: int = MAX_PACKET
    size: int = 0

    def encode(self, value: bytes) -> bytes:
        """Raises FormatError when there are too few or too many."""
        return Le(self.width).encode(len(value)) + Rest(self.least, self.most).encode(value)

    def decode(self, raw: bytes) -> bytes:
        """Raises FormatError when length and bytes differ."""
        value = raw[self.width :]
        if len(raw) < self.width or int.from_bytes(raw[: self.width], "little") != len(value):
            raise FormatError(f"a length that is not that of the {len(value)} bytes after it")
        return Rest(self.least, self.most).encode(value)


@dataclass(frozen=True)
class Each:
    """Records of one class up to the end, at least ``least``."""

    record: type[Record]
    least: int = 1
    size: int = 0

    def encode(self, value: tuple[Record, ...]) -> bytes:
        """Raises FormatError when there are too few."""
        if len(value) < self.least:
            raise FormatError(f"{len(value)} records where at least {self.least} belong")
        return b"".join(record.encode() for record in value)

    def decode(self, raw: bytes) -> tuple[Record, ...]:
        """Raises FormatError when they are not whole or too few."""
        size = self.record.size()
        if len(raw) % size or len(raw) < self.least * size:
            raise FormatError(f"{len(raw)} bytes are no row of records of {size}")
        return tuple(self.record.decode(raw[at : at + size]) for at in range(0, len(raw), size))


@dataclass(frozen=True, slots=True)
class BitString:
    """``count`` bits in as many bytes as they need, left-aligned."""

    count: int
    data: bytes


@dataclass(frozen=True)
class Bits:
    """A bit string: count (le16), then its bytes."""

    size: int = 0

    def encode(self, value: BitString) -> bytes:
        """Raises FormatError when count and bytes differ."""
        if len(value.data) != -(-value.count // 8):
            raise FormatError(f"{len(value.data)} bytes for {value.count} bits")
        return Le(2).encode(value.count) + value.data

    def decode(self, raw: bytes) -> BitString:
        """Raises FormatError when count and bytes differ."""
        if len(raw) < 2:
            raise FormatError("a bit string without its length")
        value = BitString(int.from_bytes(raw[:2], "little"), raw[2:])
        self.encode(value)
        return value


@dataclass(frozen=True)
class Signed:
    """Two bytes, little-endian, two's complement."""

    size: int = 2

    def encode(self, value: int) -> bytes:
        """Raises FormatError when the value does not fit."""
        if not -0x8000 <= value < 0x8000:
            raise FormatError(f"{value} does not fit 2 bytes")
        return (value & 0xFFFF).to_bytes(2, "little")

    def decode(self, raw: bytes) -> int:
        """Inverse of encode."""
        return int.from_bytes(raw, "little", signed=True)


class Message(Record):
    """Base of commands and replies: a record with a code."""

    code: ClassVar[int]
    __slots__ = ()


U1: TypeAlias = Annotated[int, U(1)]
L2: TypeAlias = Annotated[int, Le(2)]
L4: TypeAlias = Annotated[int, Le(4)]
Eight: TypeAlias = Annotated[bytes, Raw(8)]
Sixteen: TypeAlias = Annotated[bytes, Raw(16)]
Vendor: TypeAlias = Annotated[bytes, Raw(3)]


@dataclass(frozen=True, slots=True)
class Poll(Message):
    """Ask for an event."""

    code: ClassVar[int] = 0x60


@dataclass(frozen=True, slots=True)
class IdRequest(Message):
    """Ask for PDID."""

    code: ClassVar[int] = 0x61
    kind: U1 = 0


@dataclass(frozen=True, slots=True)
class CapRequest(Message):
    """Ask for PDCAP."""

    code: ClassVar[int] = 0x62
    kind: U1 = 0


@dataclass(frozen=True, slots=True)
class LocalStatusRequest(Message):
    """Ask for tamper and power."""

    code: ClassVar[int] = 0x64


@dataclass(frozen=True, slots=True)
class InputStatusRequest(Message):
    """Ask for the inputs."""

    code: ClassVar[int] = 0x65


@dataclass(frozen=True, slots=True)
class OutputStatusRequest(Message):
    """Ask for the outputs."""

    code: ClassVar[int] = 0x66


@dataclass(frozen=True, slots=True)
class ReaderStatusRequest(Message):
    """Ask for tamper of the reader heads."""

    code: ClassVar[int] = 0x67


@dataclass(frozen=True, slots=True)
class OutputControl(Record):
    """One output: ``action`` 0 none, 1 off, 2 on, 3 and 4 the same after the timer, 5 on, 6 off for timer × 100 ms."""

    output: U1
    action: U1
    timer: L2 = 0


@dataclass(frozen=True, slots=True)
class Out(Message):
    """Switch outputs."""

    code: ClassVar[int] = 0x68
    controls: Annotated[tuple[OutputControl, ...], Each(OutputControl)]


@dataclass(frozen=True, slots=True)
class LedControl(Record):
    """One LED: a temporary setting (0 none, 1 end it, 2 set) and a permanent one (0 none, 1 set); times × 100 ms."""

    reader: U1 = 0
    led: U1 = 0
    temporary: U1 = 0
    temporary_on: U1 = 0
    temporary_off: U1 = 0
    temporary_on_color: U1 = 0
    temporary_off_color: U1 = 0
    timer: L2 = 0
    permanent: U1 = 0
    on: U1 = 0
    off: U1 = 0
    on_color: U1 = 0
    off_color: U1 = 0


@dataclass(frozen=True, slots=True)
class Led(Message):
    """Set LEDs."""

    code: ClassVar[int] = 0x69
    controls: Annotated[tuple[LedControl, ...], Each(LedControl)]


@dataclass(frozen=True, slots=True)
class Buz(Message):
    """Sound: ``tone`` 1 off, 2 default; times × 100 ms; ``count`` 0 for ever."""

    code: ClassVar[int] = 0x6A
    reader: U1
    tone: U1
    on: U1
    off: U1
    count: U1


@dataclass(frozen=True, slots=True)
class Text(Message):
    """Show a text: ``kind`` 1 stays, 2 stays and wraps, 3 and 4 for ``seconds``; row and column from 1."""

    code: ClassVar[int] = 0x6B
    reader: U1
    kind: U1
    seconds: U1
    row: U1
    column: U1
    text: Annotated[bytes, Counted(most=255)]


@dataclass(frozen=True, slots=True)
class Comset(Message):
    """Take another address and baud rate."""

    code: ClassVar[int] = 0x6E
    address: U1
    baud: L4


@dataclass(frozen=True, slots=True)
class Keyset(Message):
    """Take another SCBK; only inside a channel opened with the present one."""

    code: ClassVar[int] = 0x75
    kind: U1
    key: Annotated[bytes, Counted(least=16, most=16)] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Chlng(Message):
    """First step of the handshake."""

    code: ClassVar[int] = 0x76
    rnd_a: Eight


@dataclass(frozen=True, slots=True)
class Scrypt(Message):
    """Third step: the server cryptogram."""

    code: ClassVar[int] = 0x77
    cryptogram: Sixteen


@dataclass(frozen=True, slots=True)
class AcuRxSize(Message):
    """Longest packet that the panel takes."""

    code: ClassVar[int] = 0x7B
    size_bytes: L2


@dataclass(frozen=True, slots=True)
class FileTransfer(Message):
    """A piece of a file."""

    code: ClassVar[int] = 0x7C
    kind: U1
    total: L4
    offset: L4
    piece: Annotated[bytes, Counted(2)]


@dataclass(frozen=True, slots=True)
class Mfg(Message):
    """A manufacturer's own command."""

    code: ClassVar[int] = 0x80
    vendor: Vendor
    data: Annotated[bytes, Rest()] = b""


@dataclass(frozen=True, slots=True)
class Xwr(Message):
    """To the card or its reader: mode 1, code 1 is an APDU (its reader number first)."""

    code: ClassVar[int] = 0xA1
    mode: U1
    function: U1
    data: Annotated[bytes, Rest()] = b""


@dataclass(frozen=True, slots=True)
class Abort(Message):
    """Stop what you are doing."""

    code: ClassVar[int] = 0xA2


@dataclass(frozen=True, slots=True)
class KeepActive(Message):
    """Keep the card powered."""

    code: ClassVar[int] = 0xA7
    milliseconds: L2


# Replies.
@dataclass(frozen=True, slots=True)
class Ack(Message):
    """Done, or nothing new."""

    code: ClassVar[int] = 0x40


@dataclass(frozen=True, slots=True)
class Nak(Message):
    """Refused: ``error`` is a NakCode."""

    code: ClassVar[int] = 0x41
    error: U1
    detail: Annotated[bytes, Rest()] = b""


@dataclass(frozen=True, slots=True)
class PdId(Message):
    """Maker, model and version of a device."""

    code: ClassVar[int] = 0x45
    vendor: Vendor
    model: U1
    version: U1
    serial: L4
    firmware: Annotated[bytes, Raw(3)]


@dataclass(frozen=True, slots=True)
class Capability(Record):
    """One function, how well it is supported, and how many of them."""

    function: U1
    level: U1
    count: U1


@dataclass(frozen=True, slots=True)
class PdCap(Message):
    """What a device can do."""

    code: ClassVar[int] = 0x46
    capabilities: Annotated[tuple[Capability, ...], Each(Capability, least=0)]


@dataclass(frozen=True, slots=True)
class LocalStatus(Message):
    """0 is normal."""

    code: ClassVar[int] = 0x48
    tamper: U1
    power: U1


@dataclass(frozen=True, slots=True)
class InputStatus(Message):
    """One byte an input, 0 inactive."""

    code: ClassVar[int] = 0x49
    inputs: Annotated[bytes, Rest()]


@dataclass(frozen=True, slots=True)
class OutputStatus(Message):
    """One byte an output, 0 off."""

    code: ClassVar[int] = 0x4A
    outputs: Annotated[bytes, Rest()]


@dataclass(frozen=True, slots=True)
class ReaderStatus(Message):
    """One byte a reader head, 0 normal, 1 not connected, 2 tamper."""

    code: ClassVar[int] = 0x4B
    readers: Annotated[bytes, Rest()]


@dataclass(frozen=True, slots=True)
class RawCard(Message):
    """A card was read: ``format`` 0 any bits, 1 Wiegand with parity."""

    code: ClassVar[int] = 0x50
    reader: U1
    format: U1
    card: Annotated[BitString, Bits()]


@dataclass(frozen=True, slots=True)
class Keypad(Message):
    """Keys were pressed: ASCII digits, 7F for *, 0D for #."""

    code: ClassVar[int] = 0x53
    reader: U1
    digits: Annotated[bytes, Counted(most=255)] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Com(Message):
    """The address and baud rate from the next command on."""

    code: ClassVar[int] = 0x54
    address: U1
    baud: L4


@dataclass(frozen=True, slots=True)
class Ccrypt(Message):
    """Second step of the handshake: client id, random number, client cryptogram."""

    code: ClassVar[int] = 0x76
    cuid: Eight
    rnd_b: Eight
    cryptogram: Sixteen


@dataclass(frozen=True, slots=True)
class RmacI(Message):
    """Last step: the first MAC of the chain."""

    code: ClassVar[int] = 0x78
    rmac: Sixteen


@dataclass(frozen=True, slots=True)
class FtStat(Message):
    """How a file comes along: ``status`` 0 go on, 1 done, 2 done and restarting, 3 finishing, negative refused."""

    code: ClassVar[int] = 0x7A
    action: U1
    delay_ms: L2
    status: Annotated[int, Signed()]
    most: L2


@dataclass(frozen=True, slots=True)
class Busy(Message):
    """Ask again."""

    code: ClassVar[int] = 0x79


@dataclass(frozen=True, slots=True)
class MfgRep(Message):
    """A manufacturer's own reply."""

    code: ClassVar[int] = 0x90
    vendor: Vendor
    data: Annotated[bytes, Rest()] = b""


@dataclass(frozen=True, slots=True)
class Xrd(Message):
    """From the card or its reader: mode 1, code 2 is an APDU's answer (reader, status, answer)."""

    code: ClassVar[int] = 0xB1
    mode: U1
    function: U1
    data: Annotated[bytes, Rest()] = b""


def _by_code(*classes: type[Message]) -> dict[int, type[Message]]:
    return {each.code: each for each in classes}


COMMANDS = _by_code(
    Poll, IdRequest, CapRequest, LocalStatusRequest, InputStatusRequest, OutputStatusRequest, ReaderStatusRequest,
    Out, Led, Buz, Text, Comset, Keyset, Chlng, Scrypt, AcuRxSize, FileTransfer, Mfg, Xwr, Abort, KeepActive,
)  # fmt: skip
REPLIES = _by_code(
    Ack, Nak, PdId, PdCap, LocalStatus, InputStatus, OutputStatus, ReaderStatus, RawCard, Keypad, Com, Ccrypt, RmacI,
    FtStat, Busy, MfgRep, Xrd,
)  # fmt: skip
EVENTS = frozenset(
    {each.code for each in (LocalStatus, InputStatus, OutputStatus, ReaderStatus, RawCard, Keypad, MfgRep, Xrd)}
)
"""Replies that a poll may bring."""


def parse(code: int, data: bytes, *, reply: bool) -> Message:
    """The command or reply of a packet. Raises FormatError when its code is unknown or its data wrong."""
    known = (REPLIES if reply else COMMANDS).get(code)
    if known is None:
        raise FormatError(f"no OSDP {'reply' if reply else 'command'} {code:02X}")
    return known.decode(data)
