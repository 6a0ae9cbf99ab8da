"""SMP, the management protocol of MCUmgr, as the terminal link speaks it (link.md): messages and text framing.

Groups 0 and 8 are MCUmgr's own with its text keys; 64 to 69 are ours with integer keys 0..23. No I/O, no policy.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from enum import IntEnum, unique
from typing import Any

from cardlib.errors import FormatError
from cardlib.wire import cbor

HEADER = 8
MAX_MESSAGE = 0xFFFF - 16
"""A Noise message has at most 65535 bytes, its tag of 16 among them."""
REASON, WORDS = 22, 23
"""Keys of a refusal in answers of our groups: its stable code, and words for people."""
LINE_BYTES = 124
"""Most Base64 characters in a line of text framing: with its two marks and LF, MCUmgr's 127."""
FIRST, NEXT = b"\x06\x09", b"\x04\x14"


@unique
class Op(IntEnum):
    """What a message is."""

    READ = 0
    READ_ANSWER = 1
    WRITE = 2
    WRITE_ANSWER = 3

    @property
    def answer(self) -> Op:
        """The kind of answer that belongs to a request."""
        return Op(self | 1)


@unique
class Group(IntEnum):
    """Groups of commands."""

    OS = 0
    FILES = 8
    IDENTITY = 64
    CONFIGURATION = 65
    KEYS = 66
    JOURNAL = 67
    BLACKLIST = 68
    DIAGNOSIS = 69


class Rc(IntEnum):
    """MCUmgr's result codes (MGMT_ERR_*), as far as we give them."""

    UNKNOWN = 1
    NO_MEMORY = 2
    INVALID = 3
    NOT_FOUND = 5
    BAD_STATE = 6
    TOO_LARGE = 7
    NOT_SUPPORTED = 8
    CORRUPT = 9
    BUSY = 10
    DENIED = 11


Command = tuple[int, int, Op]
"""Group, command and READ or WRITE. The numbers of our groups, and what their maps hold:

identity 64: 0 READ info {} -> {0 serial, 1 model, 2 software, 3 X25519 public, 4 Ed25519 public, 5 paired,
6 enterprise, 7 terminal number, 8 SAM serial, 9 configuration version, 10 configuration hash, 11 list version,
12 site}; 1 WRITE handshake {0 pattern (0 XXpsk3, 1 KK), 1 message, 2 initiator's X25519 public (KK's first)} ->
{0 message}; 2 WRITE new pairing code {0 code} -> {}; 3 WRITE authority {0 Ed25519 public} -> {}; 4 WRITE speed
{0 baud} -> {}; 5 WRITE second operator {0 token, 1 verb, 2 signature over second_message} -> {}.
configuration 65: 0 READ get {} -> {0 version, 1 ETag}; 1 WRITE plan {0 ETag in force, 1 SHA-256 of the file}
-> {0 version, 1 changed settings}; 2 WRITE apply (the same) -> {0 version, 1 ETag}; 3 READ firmware {} -> {0 version,
1 former version}; 4 WRITE take firmware {0 SHA-256 of the file}, 5 WRITE go back to the former {} -> the same.
keys 66: 0 READ SAM {} -> {0 serial, 1 terminal number, 2 {key name: check value}}; 1 WRITE load {0 SHA-256 of the
file} -> {0 version, 1 how many keys}, two operators only.
journal 67: 0 READ read {0 from sequence, 1 most entries, 2 most bytes} -> {0 hash before, 1 entries, 2 hash after,
3 newest sequence}; 1 WRITE ack {0 sequence} -> {0 acknowledged}; 2 READ head {} -> {0 newest sequence, 1 hash,
2 signature, 3 acknowledged, 4 first sequence}.
blacklist 68: 0 READ status {} -> {0 version, 1 created at}; 1 WRITE take {0 SHA-256 of the file} -> {0 version}.
diagnosis 69: 0 WRITE card test {}, 1 WRITE display and buzzer {} -> {0 passed, 1 words}; 2 WRITE line {0 bytes,
1 how many to send back} -> {0 bytes}.
"""

ECHO: Command = (Group.OS, 0, Op.WRITE)
DATETIME_GET: Command = (Group.OS, 4, Op.READ)
DATETIME_SET: Command = (Group.OS, 4, Op.WRITE)
RESET: Command = (Group.OS, 5, Op.WRITE)
PARAMS: Command = (Group.OS, 6, Op.READ)
OS_INFO: Command = (Group.OS, 7, Op.READ)
DOWNLOAD: Command = (Group.FILES, 0, Op.READ)
UPLOAD: Command = (Group.FILES, 0, Op.WRITE)
FILE_STATUS: Command = (Group.FILES, 1, Op.READ)
FILE_HASH: Command = (Group.FILES, 2, Op.READ)
INFO: Command = (Group.IDENTITY, 0, Op.READ)
HANDSHAKE: Command = (Group.IDENTITY, 1, Op.WRITE)
PAIRING_CODE: Command = (Group.IDENTITY, 2, Op.WRITE)
AUTHORITY: Command = (Group.IDENTITY, 3, Op.WRITE)
SPEED: Command = (Group.IDENTITY, 4, Op.WRITE)
SECOND: Command = (Group.IDENTITY, 5, Op.WRITE)
CONFIG_GET: Command = (Group.CONFIGURATION, 0, Op.READ)
CONFIG_PLAN: Command = (Group.CONFIGURATION, 1, Op.WRITE)
CONFIG_APPLY: Command = (Group.CONFIGURATION, 2, Op.WRITE)
FIRMWARE_GET: Command = (Group.CONFIGURATION, 3, Op.READ)
FIRMWARE_TAKE: Command = (Group.CONFIGURATION, 4, Op.WRITE)
FIRMWARE_BACK: Command = (Group.CONFIGURATION, 5, Op.WRITE)
SAM_INFO: Command = (Group.KEYS, 0, Op.READ)
KEYS_LOAD: Command = (Group.KEYS, 1, Op.WRITE)
JOURNAL_READ: Command = (Group.JOURNAL, 0, Op.READ)
JOURNAL_ACK: Command = (Group.JOURNAL, 1, Op.WRITE)
JOURNAL_HEAD: Command = (Group.JOURNAL, 2, Op.READ)
LIST_STATUS: Command = (Group.BLACKLIST, 0, Op.READ)
LIST_TAKE: Command = (Group.BLACKLIST, 1, Op.WRITE)
CARD_TEST: Command = (Group.DIAGNOSIS, 0, Op.WRITE)
SCREEN_TEST: Command = (Group.DIAGNOSIS, 1, Op.WRITE)
LINE_TEST: Command = (Group.DIAGNOSIS, 2, Op.WRITE)


@dataclass(frozen=True, slots=True)
class Message:
    """One request or answer. ``group`` and ``command`` are plain numbers: a peer may ask for what is not here."""

    op: Op
    group: int
    command: int
    seq: int
    payload: dict[Any, Any] = field(default_factory=dict)
    version: int = 1

    @classmethod
    def request(cls, command: Command, seq: int, payload: dict[Any, Any] | None = None) -> Message:
        """A request."""
        group, number, op = command
        return cls(op, group, number, seq, payload or {})

    @property
    def key(self) -> Command:
        """What is asked for, as the table of commands has it."""
        return self.group, self.command, self.op

    def answer(self, payload: dict[Any, Any]) -> Message:
        """The answer to this request."""
        return Message(self.op.answer, self.group, self.command, self.seq, payload, self.version)

    def encode(self) -> bytes:
        """Header and CBOR. Raises FormatError when it is too long or a value is out of range."""
        body = cbor.encode(self.payload)
        if len(body) + HEADER > MAX_MESSAGE:
            raise FormatError(f"SMP message of {len(body) + HEADER} bytes, more than {MAX_MESSAGE}")
        try:
            return (
                bytes([self.op | self.version << 3, 0])
                + len(body).to_bytes(2, "big")
                + self.group.to_bytes(2, "big")
                + bytes([self.seq, self.command])
                + body
            )
        except (OverflowError, ValueError) as e:
            raise FormatError("SMP message: group, command or sequence is out of range") from e

    @classmethod
    def decode(cls, raw: bytes) -> Message:
        """Parse. Raises FormatError."""
        if not HEADER <= len(raw) <= MAX_MESSAGE or int.from_bytes(raw[2:4], "big") != len(raw) - HEADER:
            raise FormatError("SMP message: its length is wrong")
        op, version = raw[0] & 7, raw[0] >> 3 & 3
        if raw[0] >> 5 or raw[1] or op > Op.WRITE_ANSWER or version > 1:
            raise FormatError("SMP message: its first bytes are none of version 1 or 2")
        payload = cbor.decode(raw[HEADER:], "SMP message")
        if type(payload) is not dict:
            raise FormatError("SMP message: the payload is no map")
        group = int.from_bytes(raw[4:6], "big")
        if group >= Group.IDENTITY and any(type(key) is not int or not 0 <= key <= WORDS for key in payload):
            raise FormatError("SMP message: a key is no number from 0 to 23")
        return cls(Op(op), group, raw[7], raw[6], payload, version)


def encode_lines(message: bytes) -> bytes:
    """SMP's text framing: Base64 of length, message and CRC-16 in lines of at most 127 bytes. Raises FormatError."""
    if len(message) + 2 > 0xFFFF:
        raise FormatError(f"SMP message of {len(message)} bytes is too long for text framing")
    packet = (len(message) + 2).to_bytes(2, "big") + message + binascii.crc_hqx(message, 0).to_bytes(2, "big")
    text = base64.b64encode(packet)
    lines = [text[at : at + LINE_BYTES] for at in range(0, len(text), LINE_BYTES)]
    return b"".join((NEXT if number else FIRST) + line + b"\n" for number, line in enumerate(lines))


class LineReader:
    """Puts lines of text framing together. Raises FormatError once per packet that is none, then goes on."""

    def __init__(self) -> None:
        self._packet: bytearray | None = None

    def take(self, line: bytes) -> bytes | None:
        """Take one line without its LF; the message when this line completes it. Raises FormatError."""
        packet, self._packet = self._packet, None
        if line[:2] == FIRST:
            packet = bytearray()
        elif line[:2] != NEXT or packet is None:
            raise FormatError("text framing: this line continues nothing")
        try:
            packet += base64.b64decode(line[2:], validate=True)
        except ValueError as e:
            raise FormatError("text framing: no Base64") from e
        size = int.from_bytes(packet[:2], "big") if len(packet) >= 2 else 0xFFFF
        if len(packet) < size + 2:
            self._packet = packet
            return None
        message, crc = bytes(packet[2:size]), packet[size : size + 2]
        if size < 2 or len(packet) != size + 2 or binascii.crc_hqx(message, 0) != int.from_bytes(crc, "big"):
            raise FormatError("text framing: length or CRC-16 is wrong")
        return message
