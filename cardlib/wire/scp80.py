"""Secured packets (SCP80): command packet, response packet, remote scripts (ota.md §1, §2, §5).

Bytes only. Counters, security levels and what an error is answered with are the business of the two ends.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum, unique
from functools import cache
from hmac import compare_digest
from typing import NamedTuple, Self

from cardlib.apdu import Command
from cardlib.crypto.packets import PacketAlgorithm, PacketKey
from cardlib.errors import FormatError, MacMismatch
from cardlib.tlv import Tlv

COMMAND_UDH = b"\x02\x70\x00"
RESPONSE_UDH = b"\x02\x71\x00"
"""What stands before a packet in the user data of its first short message."""
COUNTER_MAX = (1 << 40) - 1
CC_BYTES = 8


@unique
class Integrity(IntEnum):
    """SPI1 b2b1 and SPI2 b4b3. A digital signature (DS) is known by name only."""

    NONE = 0
    RC = 1
    CC = 2
    DS = 3


@unique
class CounterMode(IntEnum):
    """SPI1 b5b4."""

    IGNORED = 0
    UNCHECKED = 1
    HIGHER = 2
    NEXT = 3


@unique
class Proof(IntEnum):
    """SPI2 b2b1: when a proof of receipt (PoR) is wanted."""

    NEVER = 0
    ALWAYS = 1
    ON_ERROR = 2


@unique
class PorStatus(IntEnum):
    """Status byte of a response packet."""

    OK = 0x00
    CHECKSUM = 0x01
    COUNTER_LOW = 0x02
    COUNTER_HIGH = 0x03
    COUNTER_BLOCKED = 0x04
    CIPHERING = 0x05
    SECURITY = 0x06
    MEMORY = 0x07
    MORE_TIME = 0x08
    TAR_UNKNOWN = 0x09
    LEVEL = 0x0A
    BY_SUBMIT = 0x0B
    BY_USSD = 0x0C


UNSIGNED = frozenset((0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x09, 0x0A))
"""Status bytes that go out without checksum, ciphering, counter and data: else they would be an oracle for the key."""


_CLEAR = struct.Struct(">H5B")
_INTEGRITY, _COUNTER_MODE = tuple(Integrity), tuple(CounterMode)


class Spi(NamedTuple):
    """Security parameters: what a command is protected by (``one``), and how it is answered (``two``)."""

    one: int
    two: int

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """Raises FormatError when bits are set that mean nothing."""
        spi = cls(*raw)
        if spi.one & 0xE0 or spi.two & 0xC0 or spi.two & 3 == 3:
            raise FormatError(f"SPI {raw.hex().upper()}: reserved bits are set")
        return spi

    @property
    def integrity(self) -> Integrity:
        """Redundancy check, cryptographic checksum or neither."""
        return _INTEGRITY[self.one & 3]

    @property
    def ciphered(self) -> bool:
        """Whether the command is enciphered from its counter on."""
        return self.one & 4 != 0

    @property
    def counter(self) -> CounterMode:
        """How the card takes the counter."""
        return _COUNTER_MODE[self.one >> 3 & 3]

    @property
    def por(self) -> Proof:
        """When an answer is wanted."""
        return Proof(self.two & 3)

    @property
    def por_integrity(self) -> Integrity:
        """What protects the answer."""
        return _INTEGRITY[self.two >> 2 & 3]

    @property
    def por_ciphered(self) -> bool:
        """Whether the answer is enciphered from its counter on."""
        return self.two & 0x10 != 0

    @property
    def por_by_submit(self) -> bool:
        """The answer comes in a short message of its own, not in the delivery report."""
        return self.two & 0x20 != 0


class Keys(NamedTuple):
    """What one keyset gives to a packet; None where the packet does not need it."""

    kic: PacketKey | None = None
    kid: PacketKey | None = None


class Head(NamedTuple):
    """The part of a command that is never enciphered. KIc and KID: keyset number, then algorithm."""

    spi: Spi
    kic: int
    kid: int
    tar: bytes

    @property
    def keyset(self) -> int:
        """Number of the keyset (KVN). Raises FormatError when KIc and KID name two."""
        if (self.kic ^ self.kid) & 0xF0:
            raise FormatError(f"KIc {self.kic:02X} and KID {self.kid:02X} name two keysets")
        return self.kic >> 4

    @property
    def needs_keys(self) -> bool:
        """Whether it can't be read without a key."""
        return self.spi.ciphered or self.spi.integrity is Integrity.CC


class SealedCommand(NamedTuple):
    """A command packet as it came: nothing of it is proven yet."""

    head: Head
    clear: bytes
    body: bytes
    checksum_bytes: int

    @classmethod
    def decode(cls, packet: bytes) -> Self:
        """Cut a packet at its lengths. Raises FormatError when they do not fit each other or the SPI."""
        size = len(packet)
        if size < 16 or int.from_bytes(packet[:2], "big") != size - 2:
            raise FormatError(f"command packet of {size} bytes: its length field says otherwise, or it is too short")
        chl = packet[2]
        if not 13 <= chl <= size - 3:
            raise FormatError(f"command packet: header length {chl} does not fit")
        head = Head(Spi.decode(packet[3:5]), packet[5], packet[6], packet[7:10])
        _expect_size(head.spi.integrity, head.kid, chl - 13)
        return cls(head, packet[:10], packet[10:], chl - 13)

    def open(self, keys: Keys) -> tuple[int, bytes]:
        """Counter and secured data. Raises MacMismatch, whatever part of it is wrong (a wrong PCNTR too: ota.md §1).

        Raises FormatError when a key is missing or its algorithm is another than the packet's.
        """
        spi = self.head.spi
        fixed, data = _unseal(
            self.clear, self.body, 6, self.checksum_bytes, (spi.integrity, spi.ciphered), self.head, keys
        )
        return int.from_bytes(fixed[:5], "big"), data


def encode_command(head: Head, counter: int, data: bytes, keys: Keys, checksum_bytes: int | None = None) -> bytes:
    """The command packet from its length on; ``checksum_bytes`` 4 shortens an AES checksum.

    Raises FormatError when something does not fit or a key is missing.
    """
    (one, two), kic, kid, tar = head
    size = _size(one & 3, kid & 15, checksum_bytes)
    pad = _padding(6 + size + len(data), one & 4, keys)
    _check(14 + size + len(data) + pad, tar, counter)
    clear = _CLEAR.pack(14 + size + len(data) + pad, 13 + size, one, two, kic, kid) + tar
    return _seal(clear, clear, (counter << 8 | pad).to_bytes(6, "big"), data + bytes(pad), size, one, head, keys)


class Response(NamedTuple):
    """A response packet (PoR), opened. ``proven`` says that its checksum was checked and is right."""

    tar: bytes
    counter: int
    status: int
    data: bytes
    proven: bool


def encode_response(
    head: Head, counter: int, status: int, data: bytes, keys: Keys, checksum_bytes: int | None = None
) -> bytes:
    """The PoR to the command with ``head``, protected as its SPI2 asks. Raises FormatError."""
    spi = head.spi
    size = _size(spi.two >> 2 & 3, head.kid & 15, checksum_bytes)
    pad = _padding(7 + size + len(data), spi.two & 0x10, keys)
    total = 11 + size + len(data) + pad
    _check(total, head.tar, counter)
    clear = total.to_bytes(2, "big") + bytes((10 + size,)) + head.tar
    fixed = counter.to_bytes(5, "big") + bytes((pad, status))
    over = RESPONSE_UDH + clear
    return _seal(over, clear, fixed, data + bytes(pad), size, spi.two >> 2, head, keys)


def encode_refusal(tar: bytes, status: int) -> bytes:
    """The PoR to a command that was not accepted: no checksum, no counter, no data (ota.md §2). Raises FormatError."""
    _check(0, tar, 0)
    return b"\x00\x0b\x0a" + tar + bytes((0, 0, 0, 0, 0, 0, status))


def decode_response(packet: bytes, head: Head, keys: Keys) -> Response:
    """Open the PoR to the command with ``head``.

    A refusal is taken without checksum although one was asked for: not ``proven``. Raises FormatError when the
    lengths are wrong or it is no answer to that command, MacMismatch when it can't be believed.
    """
    size = len(packet)
    if size < 13 or int.from_bytes(packet[:2], "big") != size - 2:
        raise FormatError(f"response packet of {size} bytes: its length field says otherwise, or it is too short")
    rhl, spi = packet[2], head.spi
    if not 10 <= rhl <= size - 3:
        raise FormatError(f"response packet: header length {rhl} does not fit")
    if packet[3:6] != head.tar:
        raise FormatError(f"response packet of TAR {packet[3:6].hex().upper()}, not of {head.tar.hex().upper()}")
    asked = spi.por_integrity, spi.por_ciphered
    if size == 13 and any(asked) and packet[6:12] == bytes(6) and packet[12] in UNSIGNED:
        return Response(head.tar, 0, packet[12], b"", proven=False)
    _expect_size(spi.por_integrity, head.kid, rhl - 10)
    clear = packet[:6]
    fixed, data = _unseal(RESPONSE_UDH + clear, packet[6:], 7, rhl - 10, asked, head, keys)
    proven = spi.por_integrity is Integrity.CC
    return Response(head.tar, int.from_bytes(fixed[:5], "big"), fixed[6], data, proven)


def _seal(over: bytes, clear: bytes, fixed: bytes, data: bytes, size: int, asked: int, head: Head, keys: Keys) -> bytes:
    """Checksum first, over everything but itself, then ciphering of what follows the clear part.

    ``asked``: integrity in the low two bits, ciphering above them.
    """
    kid, integrity = keys.kid, asked & 3
    if integrity == Integrity.CC and kid is not None and kid.algorithm == head.kid & 15:  # as nearly always
        body = fixed + kid.checksum(over + fixed + data)[:size] + data
    else:
        body = fixed + _checksum(over + fixed + data, _INTEGRITY[integrity], size, head.kid, kid) + data
    return clear + (_key(keys.kic, head.kic, "KIc").encrypt(body) if asked & 4 else body)


def _unseal(
    over: bytes, body: bytes, fixed: int, size: int, security: tuple[Integrity, bool], head: Head, keys: Keys
) -> tuple[bytes, bytes]:
    """The fixed fields and the data. The padding's value counts for nothing: some cards pad with 80 00."""
    integrity, ciphered = security
    block = 1
    if ciphered:
        kic = _key(keys.kic, head.kic, "KIc")
        block = kic.block
        if len(body) % block:
            raise MacMismatch("the packet can't be deciphered to something that makes sense")
        body = kic.decrypt(body)
    start = fixed + size
    fields, rest, pad = body[:fixed], body[start:], body[5]
    expected = _checksum(over + fields + rest, integrity, size, head.kid, keys.kid)
    if not compare_digest(expected, body[fixed:start]) or pad >= block or pad > len(rest):
        raise MacMismatch("the packet's checksum or padding is wrong")
    return fields, rest[: len(rest) - pad]


def crc16(data: bytes) -> bytes:
    """CRC-16 of X.25: polynomial 1021 reflected, start and end XOR FFFF."""
    crc = 0xFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x8408 if crc & 1 else crc >> 1
    return (crc ^ 0xFFFF).to_bytes(2, "big")


def crc32(data: bytes) -> bytes:
    """CRC-32 as zlib has it."""
    return zlib.crc32(data).to_bytes(4, "big")


_RC: dict[int, tuple[int, Callable[[bytes], bytes]]] = {0x1: (2, crc16), 0x5: (4, crc32)}
"""By the low nibble of KID when it names a redundancy check."""


def _sizes(integrity: int, nibble: int) -> tuple[int, ...]:
    """Checksum lengths that a KID allows, the usual one first; none when nothing is known under its low nibble."""
    if integrity == Integrity.NONE:
        return (0,)
    if integrity == Integrity.RC:
        return (_RC[nibble][0],) if nibble in _RC else ()
    if integrity == Integrity.CC:
        return (CC_BYTES, 4) if nibble in (0, PacketAlgorithm.AES) else (CC_BYTES,)
    return ()


@cache
def _size(integrity: int, nibble: int, wanted: int | None) -> int:
    sizes = _sizes(integrity, nibble)
    if not sizes or (wanted is not None and wanted not in sizes):
        raise FormatError(f"KID {nibble:X} has no {_INTEGRITY[integrity].name} of {wanted or 'any'} bytes")
    return sizes[0] if wanted is None else wanted


def _expect_size(integrity: Integrity, kid: int, size: int) -> None:
    """An unknown algorithm is left to who opens the packet: there it is another error."""
    sizes = _sizes(integrity, kid & 15)
    if sizes and size not in sizes:
        raise FormatError(f"a checksum of {size} bytes does not fit {integrity.name} under KID {kid:02X}")


def _checksum(over: bytes, integrity: Integrity, size: int, kid: int, key: PacketKey | None) -> bytes:
    if integrity is Integrity.NONE:
        return b""
    if integrity is Integrity.CC:
        return _key(key, kid, "KID").checksum(over)[:size]
    if integrity is Integrity.RC and kid & 15 in _RC:
        return _RC[kid & 15][1](over)
    raise FormatError(f"{integrity.name} under KID {kid:02X} is not supported")


def _key(key: PacketKey | None, code: int, name: str) -> PacketKey:
    """Nibble 0 leaves the algorithm to the key."""
    if key is None or code & 15 not in (0, key.algorithm):
        there = "none" if key is None else f"one of algorithm {key.algorithm:X}"
        raise FormatError(f"{name} {code:02X} needs a key of its algorithm, there is {there}")
    return key


def _padding(size: int, ciphered: int, keys: Keys) -> int:
    return -size % keys.kic.block if ciphered and keys.kic is not None else 0


def _check(size: int, tar: bytes, counter: int) -> None:
    if size > 0xFFFF or len(tar) != 3 or not 0 <= counter <= COUNTER_MAX:
        raise FormatError(
            f"packet of {size} bytes, TAR of {len(tar)}, counter {counter}: at most 65535 bytes, TAR has 3, counter 5"
        )


# Remote scripts (ota.md §5) -------------------------------------------------------------------------------------------

TAG_SCRIPT, TAG_SCRIPT_OPEN = 0xAA, 0xAE
TAG_ANSWER, TAG_ANSWER_OPEN = 0xAB, 0xAF
TAG_COMMAND, TAG_RESPONSE, TAG_COUNT, TAG_BAD = 0x22, 0x23, 0x80, 0x90
ACTIONS = frozenset((0x81, 0x82, 0x83))
"""Immediate action, error action, script chaining: known, and refused until something needs them."""


@unique
class BadScript(IntEnum):
    """Value of tag 90 in the answer to an expanded script that can't be read."""

    UNKNOWN_TAG = 1
    WRONG_LENGTH = 2
    NO_LENGTH = 3


class ScriptError(FormatError):
    """A script can't be cut into commands; ``fault`` is what an expanded answer says."""

    def __init__(self, fault: BadScript, message: str) -> None:
        self.fault = fault
        super().__init__(message)


def compact(commands: Iterable[bytes]) -> bytes:
    """A compact script of C-APDUs as T=0 carries them: Le of a command with data is left out. Raises FormatError."""
    script = []
    for raw in commands:
        command = Command.decode(raw)
        if len(raw) > 5 + 255 + 1 or (len(raw) > 5 and not raw[4]):
            raise FormatError(f"command {command.header.hex().upper()}: an extended length has no place in a script")
        p3 = len(command.data) or (command.le or 0) & 0xFF
        script.append(command.header + bytes((p3,)) + command.data)
    return b"".join(script)


def cut_compact(script: bytes, has_data: Callable[[bytes], bool]) -> Iterator[bytes]:
    """C-APDUs of a compact script one by one, so that those before a broken one are run.

    ``has_data`` tells by a header of 5 bytes whether data follow. Raises ScriptError.
    """
    while script:
        end = 5 + script[4] if len(script) >= 5 and has_data(script[:5]) else 5
        if len(script) < end:
            raise ScriptError(BadScript.WRONG_LENGTH, f"script: {len(script)} bytes are less than a command")
        yield script[:end]
        script = script[end:]


def compact_answer(executed: int, sw: int, data: bytes) -> bytes:
    """Number of executed commands (the last 255 are all that fit), status word and data of the last."""
    return bytes((min(executed, 255),)) + sw.to_bytes(2, "big") + data


class Answer(NamedTuple):
    """What a compact script brought: commands executed, status word and data of the last of them."""

    executed: int
    sw: int
    data: bytes

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """Raises FormatError."""
        if len(raw) < 3:
            raise FormatError(f"answer of {len(raw)} bytes: count and status word are missing")
        return cls(raw[0], int.from_bytes(raw[1:3], "big"), raw[3:])


def expanded(commands: list[bytes], *, indefinite: bool = False) -> bytes:
    """An expanded script of C-APDUs. Raises FormatError."""
    body = b"".join(Tlv(TAG_COMMAND, raw) for raw in commands)
    return bytes((TAG_SCRIPT_OPEN, 0x80)) + body + b"\0\0" if indefinite else Tlv(TAG_SCRIPT, body)


def cut_expanded(script: bytes) -> list[bytes]:
    """C-APDUs of an expanded script, all or none. Raises ScriptError."""
    if not script or script[0] not in (TAG_SCRIPT, TAG_SCRIPT_OPEN):
        raise ScriptError(BadScript.UNKNOWN_TAG, "script: it begins with neither AA nor AE")
    if script[0] == TAG_SCRIPT_OPEN:
        if script[1:2] != b"\x80":
            raise ScriptError(BadScript.NO_LENGTH, "script: AE is followed by 80")
        if script[-2:] != b"\0\0" or len(script) < 4:
            raise ScriptError(BadScript.WRONG_LENGTH, "script: AE has no end")
        body = script[2:-2]
    else:
        body, rest = _object(script)
        if rest:
            raise ScriptError(BadScript.WRONG_LENGTH, "script: something follows AA")
    commands = []
    while body:
        if body[0] != TAG_COMMAND:
            raise ScriptError(BadScript.UNKNOWN_TAG, f"script: tag {body[0]:02X} is not supported")
        command, body = _object(body)
        commands.append(command)
    return commands


def _object(raw: bytes) -> tuple[bytes, bytes]:
    try:
        item, rest = Tlv.parse(raw)
    except FormatError as e:
        fault = BadScript.NO_LENGTH if len(raw) < 2 else BadScript.WRONG_LENGTH
        raise ScriptError(fault, f"script: {e}") from e
    return item.value, rest


def expanded_answer(answers: list[bytes], *, indefinite: bool) -> bytes:
    """R-APDUs of the executed commands, in order; their number goes with the definite form only."""
    body = b"".join(Tlv(TAG_RESPONSE, raw) for raw in answers)
    if indefinite:
        return bytes((TAG_ANSWER_OPEN, 0x80)) + body + b"\0\0"
    count = len(answers).to_bytes(max(1, (len(answers).bit_length() + 7) // 8), "big")
    return Tlv(TAG_ANSWER, Tlv(TAG_COUNT, count) + body)


def bad_script_answer(fault: BadScript, *, indefinite: bool) -> bytes:
    """The answer to an expanded script that can't be read: nothing of it was executed."""
    bad = Tlv(TAG_BAD, bytes((fault,)))
    return (
        bytes((TAG_ANSWER_OPEN, 0x80)) + bad + b"\0\0" if indefinite else Tlv(TAG_ANSWER, Tlv(TAG_COUNT, b"\0") + bad)
    )


def decode_expanded_answer(raw: bytes) -> list[bytes]:
    """R-APDUs of an expanded answer. Raises FormatError, ScriptError when the card could not read the script."""
    if raw[:2] == bytes((TAG_ANSWER_OPEN, 0x80)) and raw[-2:] == b"\0\0" and len(raw) >= 4:
        body = raw[2:-2]
    else:
        item, rest = Tlv.parse(raw)
        if item.tag != TAG_ANSWER or rest:
            raise FormatError("answer: neither AB nor AF")
        body = item.value
    items = Tlv.parse_list(body)
    for item in items:
        if item.tag == TAG_BAD:
            fault = BadScript(item.value[0]) if item.value in (b"\1", b"\2", b"\3") else BadScript.UNKNOWN_TAG
            raise ScriptError(fault, f"the card could not read the script: {fault.name}")
    return [item.value for item in items if item.tag == TAG_RESPONSE]
