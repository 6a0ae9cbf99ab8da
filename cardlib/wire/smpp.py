"""SMPP 3.4, as much as a sender of short messages and a message centre need of it (ota.md §7): PDUs, no I/O.

A PDU is `length 4 | command 4 | status 4 | sequence 4 | body`. Texts end with 00; optional parameters follow the
body as `tag 2 | length 2 | value`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, unique

from cardlib.errors import FormatError

HEADER = 16
MAX_PDU = 1 << 16
"""Longest PDU that is taken: a message of 64 KiB in message_payload is beyond any use here."""
RESPONSE = 0x8000_0000
VERSION = 0x34
MAX_SHORT = 254
MAX_SEQUENCE = 0x7FFF_FFFF


@unique
class Command(IntEnum):
    """PDUs by their command id; an answer has bit 31 set."""

    BIND_RECEIVER = 0x01
    BIND_TRANSMITTER = 0x02
    SUBMIT_SM = 0x04
    DELIVER_SM = 0x05
    UNBIND = 0x06
    BIND_TRANSCEIVER = 0x09
    ENQUIRE_LINK = 0x15
    BIND_RECEIVER_RESP = RESPONSE | 0x01
    BIND_TRANSMITTER_RESP = RESPONSE | 0x02
    SUBMIT_SM_RESP = RESPONSE | 0x04
    DELIVER_SM_RESP = RESPONSE | 0x05
    UNBIND_RESP = RESPONSE | 0x06
    BIND_TRANSCEIVER_RESP = RESPONSE | 0x09
    ENQUIRE_LINK_RESP = RESPONSE | 0x15
    GENERIC_NACK = RESPONSE

    @property
    def is_answer(self) -> bool:
        """Whether it answers a request."""
        return bool(self & RESPONSE)

    @property
    def answer(self) -> Command:
        """The answer that belongs to a request."""
        return Command(self | RESPONSE)


BINDS = (Command.BIND_RECEIVER, Command.BIND_TRANSMITTER, Command.BIND_TRANSCEIVER)
MESSAGES = (Command.SUBMIT_SM, Command.DELIVER_SM)


@unique
class Status(IntEnum):
    """Command status, as far as we tell them apart; others are plain numbers."""

    OK = 0x00
    INVALID_TEXT_LENGTH = 0x01
    INVALID_LENGTH = 0x02
    INVALID_COMMAND = 0x03
    BAD_BIND_STATE = 0x04
    ALREADY_BOUND = 0x05
    SYSTEM_ERROR = 0x08
    INVALID_SOURCE = 0x0A
    INVALID_DESTINATION = 0x0B
    BIND_FAILED = 0x0D
    INVALID_PASSWORD = 0x0E
    INVALID_SYSTEM_ID = 0x0F
    QUEUE_FULL = 0x14
    SUBMIT_FAILED = 0x45
    THROTTLED = 0x58

    @classmethod
    def passes(cls, status: int) -> bool:
        """Whether the same message may be tried again after a while."""
        return status in (cls.THROTTLED, cls.QUEUE_FULL)


@unique
class Tag(IntEnum):
    """Optional parameters that we read or write."""

    USER_MESSAGE_REFERENCE = 0x0204
    SC_INTERFACE_VERSION = 0x0210
    MESSAGE_PAYLOAD = 0x0424


@dataclass(frozen=True, slots=True)
class Pdu:
    """One PDU: ``body`` are the bytes after the header."""

    command: Command
    status: int
    sequence: int
    body: bytes = field(default=b"", repr=False)  # a bind has a password in it

    def encode(self) -> bytes:
        """The bytes on the line. Raises FormatError. An answer repeats any sequence, also one that should not be."""
        if not 0 <= self.sequence < 1 << 32 or len(self.body) > MAX_PDU - HEADER:
            raise FormatError("SMPP: this PDU can't be sent")
        words = (HEADER + len(self.body), self.command, self.status, self.sequence)
        return b"".join(word.to_bytes(4, "big") for word in words) + self.body


@dataclass(frozen=True, slots=True)
class UnknownPdu:
    """A PDU with a command that we don't know, to be answered with GENERIC_NACK."""

    command: int
    sequence: int


class Deframer:
    """Cuts a byte stream, fed in pieces of any size, into PDUs."""

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, piece: bytes) -> Iterator[Pdu | UnknownPdu]:
        """Yield each PDU that is complete by now. Raises FormatError for a length that can't be: the line is lost."""
        self._pending += piece
        while len(self._pending) >= HEADER:
            size, command, status, sequence = (
                int.from_bytes(self._pending[at : at + 4], "big") for at in range(0, HEADER, 4)
            )
            if not HEADER <= size <= MAX_PDU:
                raise FormatError(f"SMPP: a PDU of {size} bytes")
            if len(self._pending) < size:
                return
            body, self._pending = self._pending[HEADER:size], self._pending[size:]
            try:
                yield Pdu(Command(command), status, sequence, body)
            except ValueError:
                yield UnknownPdu(command, sequence)


class _Reader:
    """Takes fields from the front of a body."""

    def __init__(self, raw: bytes, what: str) -> None:
        self._raw, self._at, self._what = raw, 0, what

    def text(self, limit: int) -> str:
        """Text that ends with 00, of at most ``limit`` bytes with it."""
        end = self._raw.find(b"\0", self._at, self._at + limit)
        if end < 0:
            raise FormatError(f"SMPP {self._what}: a text does not end where it must")
        found, self._at = self._raw[self._at : end], end + 1
        try:
            return found.decode("ascii")
        except UnicodeDecodeError as e:
            raise FormatError(f"SMPP {self._what}: a text that is not ASCII") from e

    def take(self, count: int) -> bytes:
        """The next bytes."""
        found = self._raw[self._at : self._at + count]
        if len(found) != count:
            raise FormatError(f"SMPP {self._what}: cut off")
        self._at += count
        return found

    def number(self) -> int:
        """The next byte."""
        return self.take(1)[0]

    def optional(self) -> dict[int, bytes]:
        """All optional parameters to the end; of one that comes twice, the last counts."""
        found = {}
        while self._at < len(self._raw):
            tag, size = int.from_bytes(self.take(2), "big"), int.from_bytes(self.take(2), "big")
            found[tag] = self.take(size)
        return found


def _text(value: str, limit: int, what: str) -> bytes:
    try:
        raw = value.encode("ascii")
    except UnicodeEncodeError as e:
        raise FormatError(f"SMPP: {what} is not ASCII") from e
    if len(raw) >= limit or b"\0" in raw:
        raise FormatError(f"SMPP: {what} has more than {limit - 1} characters, or 00 in it")
    return raw + b"\0"


def _optional(values: Mapping[int, bytes]) -> bytes:
    return b"".join(
        tag.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value for tag, value in sorted(values.items())
    )


@dataclass(frozen=True, slots=True)
class Bind:
    """Body of a bind request."""

    system_id: str
    password: str = field(repr=False)
    system_type: str = ""
    version: int = VERSION
    ton: int = 0
    npi: int = 0
    addresses: str = ""

    def encode(self) -> bytes:
        """The body. Raises FormatError."""
        return (
            _text(self.system_id, 16, "system id")
            + _text(self.password, 9, "the password")
            + _text(self.system_type, 13, "system type")
            + bytes([self.version, self.ton, self.npi])
            + _text(self.addresses, 41, "address range")
        )

    @classmethod
    def decode(cls, raw: bytes) -> Bind:
        """Inverse of encode. Raises FormatError."""
        reader = _Reader(raw, "bind")
        system_id, password, system_type = reader.text(16), reader.text(9), reader.text(13)
        version, ton, npi = reader.take(3)
        return cls(system_id, password, system_type, version, ton, npi, reader.text(41))


@dataclass(frozen=True, slots=True)
class Address:
    """A number with its type and plan: 1, 1 international ISDN; 0, 0 unknown."""

    digits: str
    ton: int = 0
    npi: int = 0


@dataclass(frozen=True, slots=True)
class Message:
    """Body of SUBMIT_SM and DELIVER_SM. ``text`` is `short_message` or, where that is empty, message_payload.

    ``esm_class`` 40: the text begins with a user data header. ``protocol_id`` 7F and ``data_coding`` F6 or 04: data
    for the SIM (ota.md §3).
    """

    source: Address
    destination: Address
    text: bytes
    esm_class: int = 0
    protocol_id: int = 0
    data_coding: int = 0
    registered_delivery: int = 0
    priority: int = 0
    service_type: str = ""
    schedule: str = ""
    validity: str = ""
    replace_if_present: int = 0
    default_message_id: int = 0
    optional: Mapping[int, bytes] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The body; a text too long for `short_message` goes into message_payload. Raises FormatError."""
        short = self.text if len(self.text) <= MAX_SHORT else b""
        extra = dict(self.optional) | ({} if short or not self.text else {int(Tag.MESSAGE_PAYLOAD): self.text})
        numbers = (self.esm_class, self.protocol_id, self.priority)
        choices = (self.registered_delivery, self.replace_if_present, self.data_coding, self.default_message_id)
        try:
            return (
                _text(self.service_type, 6, "service type")
                + _address(self.source)
                + _address(self.destination)
                + bytes(numbers)
                + _text(self.schedule, 17, "the delivery time")
                + _text(self.validity, 17, "the validity")
                + bytes((*choices, len(short)))
                + short
                + _optional(extra)
            )
        except ValueError as e:
            raise FormatError("SMPP: a field of a message does not fit a byte") from e

    @classmethod
    def decode(cls, raw: bytes) -> Message:
        """Inverse of encode. Raises FormatError."""
        reader = _Reader(raw, "message")
        service_type = reader.text(6)
        source, destination = (Address(ton=reader.number(), npi=reader.number(), digits=reader.text(21)) for _ in "sd")
        esm_class, protocol_id, priority = reader.take(3)
        schedule, validity = reader.text(17), reader.text(17)
        registered, replaces, coding, default_id = reader.take(4)
        text, optional = reader.take(reader.number()), reader.optional()
        text = text or optional.pop(Tag.MESSAGE_PAYLOAD, b"")
        return cls(
            source, destination, text, esm_class, protocol_id, coding, registered, priority, service_type, schedule,
            validity, replaces, default_id, optional,
        )  # fmt: skip


def _address(address: Address) -> bytes:
    return bytes([address.ton, address.npi]) + _text(address.digits, 21, "an address")


def message_id(body: bytes) -> str:
    """The message id of an answer to SUBMIT_SM or DELIVER_SM; it may be empty or missing. Raises FormatError."""
    return _Reader(body, "answer").text(65) if body else ""


def named(message: str) -> bytes:
    """Body of an answer that names a message, or a system. Raises FormatError."""
    return _text(message, 65, "message id")
