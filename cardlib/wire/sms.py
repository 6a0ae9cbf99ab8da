"""Short messages: SMS-DELIVER and SMS-SUBMIT, user data headers, concatenation, texts, ENVELOPE (ota.md §3).

User data are the octets with their header. Texts are GSM 7-bit when their characters allow, else UCS2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, unique
from typing import NamedTuple, Self

from cardlib.errors import FormatError
from cardlib.tlv import Tlv

MAX_USER_DATA = 140
MAX_SEPTETS = 160
PID_DOWNLOAD, DCS_CLASS_2 = 0x7F, 0xF6
"""(U)SIM data download; 8-bit data of class 2."""
IEI_CONCAT, IEI_CONCAT_16, IEI_COMMAND, IEI_RESPONSE = 0x00, 0x08, 0x70, 0x71
UDHI, MORE = 0x40, 0x04
"""First octet of SMS-DELIVER: a header is there; *no* more messages wait."""
_MTI, _DELIVER, _SUBMIT = 0x03, 0x00, 0x01
_NIBBLES = "0123456789*#abc"


# Addresses ------------------------------------------------------------------------------------------------------------


class Address(NamedTuple):
    """Type of number (91 international, 81 unknown, D0 a name) and digits, or the name."""

    toa: int
    digits: str

    @classmethod
    def of(cls, number: str) -> Self:
        """A number as people write it: ``+`` makes it international. Raises FormatError."""
        digits = number.removeprefix("+")
        if not 1 <= len(digits) <= 20 or not digits.isascii() or not digits.isdecimal():
            raise FormatError("a telephone number has 1 to 20 digits, with + in front or not")
        return cls(0x91 if number != digits else 0x81, digits)

    @property
    def number(self) -> str:
        """As people write it."""
        return ("+" if self.toa & 0x70 == 0x10 else "") + self.digits

    def encode(self) -> bytes:
        """With its length in semi-octets, as in a TPDU. Raises FormatError."""
        if self.toa & 0x70 == 0x50:
            septets = _septets(self.digits)
            if septets is None or len(septets) > 11:
                raise FormatError("a sender's name has at most 11 characters of the GSM alphabet")
            raw = pack(septets)
            return bytes((-(-len(septets) * 7 // 4), self.toa)) + raw
        return bytes((len(self.digits), self.toa)) + _semi_octets(self.digits)

    def encode_whole(self) -> bytes:
        """As an address TLV of the SIM toolkit has it: its octets are counted outside."""
        return bytes((self.toa,)) + _semi_octets(self.digits)

    @classmethod
    def decode(cls, raw: bytes) -> tuple[Self, bytes]:
        """Take an address off a TPDU and return it with the rest. Raises FormatError."""
        if len(raw) < 2 or raw[0] > 20 or len(raw) < 2 + (raw[0] + 1) // 2 or not raw[1] & 0x80:
            raise FormatError("short message: the address does not fit")
        end = 2 + (raw[0] + 1) // 2
        if raw[1] & 0x70 == 0x50:
            return cls(raw[1], _characters(unpack(raw[2:end], raw[0] * 4 // 7))), raw[end:]
        return cls(raw[1], _digits(raw[2:end], raw[0])), raw[end:]

    @classmethod
    def decode_whole(cls, raw: bytes) -> Self:
        """Inverse of encode_whole; a filling F ends it. Raises FormatError."""
        if len(raw) < 2:
            raise FormatError("the address is empty")
        size = 2 * (len(raw) - 1) - (raw[-1] >> 4 == 15)
        return cls(raw[0], _digits(raw[1:], size))


def _semi_octets(digits: str) -> bytes:
    try:
        nibbles = [_NIBBLES.index(digit) for digit in digits]
    except ValueError as e:
        raise FormatError("a telephone number has the digits 0-9 * # a b c") from e
    if len(nibbles) % 2:
        nibbles.append(15)
    return bytes(low | high << 4 for low, high in zip(nibbles[0::2], nibbles[1::2], strict=True))


def _digits(raw: bytes, count: int) -> str:
    nibbles = [nibble for octet in raw for nibble in (octet & 15, octet >> 4)]
    if 15 in nibbles[:count]:
        raise FormatError("a telephone number ends before its length")
    return "".join(_NIBBLES[nibble] for nibble in nibbles[:count])


# TPDUs ----------------------------------------------------------------------------------------------------------------


def is_seven_bit(dcs: int) -> bool:
    """Whether the user data's length counts septets."""
    if dcs & 0xF0 == 0xF0:
        return not dcs & 4
    return dcs & 0x2C == 0 if dcs < 0x80 else dcs & 0xF0 in (0xC0, 0xD0)


def _user_data(raw: bytes, dcs: int) -> tuple[int, bytes]:
    """Length field and octets. Raises FormatError unless they fit exactly."""
    size = -(-raw[0] * 7 // 8) if raw and is_seven_bit(dcs) else (raw[0] if raw else 0)
    if not raw or size > MAX_USER_DATA or len(raw) != 1 + size:
        raise FormatError("short message: the user data's length does not fit")
    return raw[0], raw[1:]


def _length(length: int | None, user_data: bytes, dcs: int) -> bytes:
    if len(user_data) > MAX_USER_DATA:
        raise FormatError(f"user data of {len(user_data)} bytes: a short message holds {MAX_USER_DATA}")
    if length is None:
        length = len(user_data) * 8 // 7 if is_seven_bit(dcs) else len(user_data)
    return bytes((length,))


@dataclass(frozen=True)
class Deliver:
    """SMS-DELIVER: what a phone receives. ``length``: septets of a 7-bit text, None for as many as fit."""

    sender: Address
    user_data: bytes
    pid: int = PID_DOWNLOAD
    dcs: int = DCS_CLASS_2
    scts: bytes = bytes(7)
    first: int = UDHI | MORE
    length: int | None = None

    def encode(self) -> bytes:
        """Raises FormatError when something does not fit."""
        if len(self.scts) != 7:
            raise FormatError(f"time stamp of {len(self.scts)} bytes: it has 7")
        head = bytes((self.first,)) + self.sender.encode() + bytes((self.pid, self.dcs)) + self.scts
        return head + _length(self.length, self.user_data, self.dcs) + self.user_data

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """Raises FormatError."""
        if not raw or raw[0] & _MTI != _DELIVER:
            raise FormatError("no SMS-DELIVER")
        sender, rest = Address.decode(raw[1:])
        if len(rest) < 10:
            raise FormatError("SMS-DELIVER: it ends before its user data")
        length, user_data = _user_data(rest[9:], rest[1])
        return cls(sender, user_data, rest[0], rest[1], rest[2:9], raw[0], length)


@dataclass(frozen=True)
class Submit:
    """SMS-SUBMIT: what a phone sends. ``reference``: TP-MR. ``validity``: the octets that the first octet announces."""

    receiver: Address
    user_data: bytes
    reference: int = 0
    pid: int = PID_DOWNLOAD
    dcs: int = DCS_CLASS_2
    first: int = UDHI | _SUBMIT
    length: int | None = None
    validity: bytes = b""

    def encode(self) -> bytes:
        """Raises FormatError when something does not fit."""
        if len(self.validity) != _validity_size(self.first):
            raise FormatError("SMS-SUBMIT: the first octet announces another validity period")
        head = bytes((self.first, self.reference)) + self.receiver.encode() + bytes((self.pid, self.dcs))
        return head + self.validity + _length(self.length, self.user_data, self.dcs) + self.user_data

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """Raises FormatError."""
        if len(raw) < 2 or raw[0] & _MTI != _SUBMIT:
            raise FormatError("no SMS-SUBMIT")
        receiver, rest = Address.decode(raw[2:])
        end = 2 + _validity_size(raw[0])
        if len(rest) < end + 1:
            raise FormatError("SMS-SUBMIT: it ends before its user data")
        length, user_data = _user_data(rest[end:], rest[1])
        return cls(receiver, user_data, raw[1], rest[0], rest[1], raw[0], length, rest[2:end])


def _validity_size(first: int) -> int:
    return {0x00: 0, 0x10: 1}.get(first & 0x18, 7)


# User data header and concatenation -----------------------------------------------------------------------------------


class Element(NamedTuple):
    """An information element of a user data header."""

    iei: int
    data: bytes


class Concat(NamedTuple):
    """Which part of how many of which message; ``wide``: the reference has 16 bits."""

    reference: int
    total: int
    number: int
    wide: bool = False

    def element(self) -> Element:
        """Raises FormatError when a number does not fit."""
        size = 2 if self.wide else 1
        if not (0 <= self.reference < 1 << 8 * size and 1 <= self.number <= self.total <= 255):
            raise FormatError(f"segment {self.number} of {self.total}, reference {self.reference}: out of range")
        data = self.reference.to_bytes(size, "big") + bytes((self.total, self.number))
        return Element(IEI_CONCAT_16 if self.wide else IEI_CONCAT, data)


def header(*elements: Element) -> bytes:
    """A user data header with its length."""
    body = b"".join(bytes((iei, len(data))) + data for iei, data in elements)
    return bytes((len(body),)) + body


def parse_header(user_data: bytes) -> tuple[list[Element], bytes]:
    """Elements of the header, and what follows it. Raises FormatError."""
    if not user_data or len(user_data) < 1 + user_data[0]:
        raise FormatError("user data: the header does not fit")
    end = 1 + user_data[0]
    body, elements = user_data[1:end], []
    while body:
        if len(body) < 2 or len(body) < 2 + body[1]:
            raise FormatError("user data: an element of the header does not fit")
        elements.append(Element(body[0], body[2 : 2 + body[1]]))
        body = body[2 + body[1] :]
    return elements, user_data[end:]


def concat_of(elements: list[Element]) -> Concat | None:
    """The concatenation element, when there is one. Raises FormatError when its numbers make no sense."""
    for iei, data in elements:
        if iei in (IEI_CONCAT, IEI_CONCAT_16):
            size = 2 if iei == IEI_CONCAT_16 else 1
            if len(data) != size + 2 or not 1 <= data[-1] <= data[-2]:
                raise FormatError("user data: the concatenation element makes no sense")
            return Concat(int.from_bytes(data[:size], "big"), data[-2], data[-1], size == 2)
    return None


def split(packet: bytes, iei: int, reference: int, *, wide: bool = False) -> list[bytes]:
    """User data that carry a packet of IEI 70 or 71: one, or as many as needed; only the first has the IEI.

    Raises FormatError when 255 segments are not enough.
    """
    own = Element(iei, b"")
    alone = header(own) + packet
    if len(alone) <= MAX_USER_DATA:
        return [alone]
    room = MAX_USER_DATA - len(header(Concat(0, 1, 1, wide).element()))
    total = -(-(len(packet) + 2) // room)  # the first has two octets less, for the IEI
    segments, start = [], 0
    for number in range(1, total + 1):
        elements = [Concat(reference, total, number, wide).element(), *([own] if number == 1 else [])]
        end = start + room - (2 if number == 1 else 0)
        segments.append(header(*elements) + packet[start:end])
        start = end
    return segments


class Joined(NamedTuple):
    """A whole message: elements of the first segment's header, and the payload of all."""

    elements: list[Element]
    payload: bytes


class Segments:
    """Collects the segments of several messages, in any order; what does not fit is forgotten, the oldest first.

    ``most``: segments a message may have. ``messages``: incomplete ones that are kept.
    """

    def __init__(self, most: int = 255, messages: int = 16) -> None:
        self._most, self._messages = most, messages
        self._open: dict[tuple[object, int, int, bool], dict[int, Joined]] = {}

    def add(self, sender: object, user_data: bytes) -> Joined | None:
        """Take one segment; the whole message when it is complete, None as long as some are missing.

        A segment that differs from one of its number begins a new message of that reference. Raises FormatError.
        """
        elements, payload = parse_header(user_data)
        concat = concat_of(elements)
        if concat is None or concat.total == 1:
            return Joined(elements, payload)
        if concat.total > self._most:
            raise FormatError(f"a message of {concat.total} segments: at most {self._most} are taken")
        key = (sender, concat.reference, concat.total, concat.wide)
        parts = self._open.pop(key, {})
        segment = Joined(elements, payload)
        if parts.get(concat.number, segment) != segment:
            parts = {}
        parts[concat.number] = segment
        if len(parts) == concat.total:
            return Joined(parts[1].elements, b"".join(parts[n].payload for n in range(1, concat.total + 1)))
        self._open[key] = parts
        if len(self._open) > self._messages:
            del self._open[next(iter(self._open))]
        return None

    def __len__(self) -> int:
        return len(self._open)


# Texts ----------------------------------------------------------------------------------------------------------------

_BASIC = (
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞ\x1bÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§"
    "¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
_EXTENSION = {
    0x0A: "\f",
    0x14: "^",
    0x28: "{",
    0x29: "}",
    0x2F: "\\",
    0x3C: "[",
    0x3D: "~",
    0x3E: "]",
    0x40: "|",
    0x65: "€",
}
_ESCAPE = 0x1B
_CODES = {character: bytes((code,)) for code, character in enumerate(_BASIC) if code != _ESCAPE} | {
    character: bytes((_ESCAPE, code)) for code, character in _EXTENSION.items()
}


@unique
class Alphabet(IntEnum):
    """Coding of a text, as DCS without class has it."""

    GSM7 = 0x00
    DATA = 0x04
    UCS2 = 0x08


def _septets(text: str) -> bytes | None:
    """One byte each; None when a character is not in the alphabet."""
    codes = [_CODES.get(character) for character in text]
    return None if None in codes else b"".join(code for code in codes if code)


def _characters(septets: bytes) -> str:
    """An unknown extension shows its basic character, as TS 23.038 wants it."""
    text, escaped = [], False
    for septet in septets:
        if septet == _ESCAPE and not escaped:
            escaped = True
            continue
        text.append(_EXTENSION.get(septet, _BASIC[septet].replace("\x1b", " ")) if escaped else _BASIC[septet])
        escaped = False
    return "".join(text)


def pack(septets: bytes, fill: int = 0) -> bytes:
    """Seven bits each, the first in the lowest bits, behind ``fill`` bits. Values above 7F lose their highest bit."""
    whole = 0
    for place, septet in enumerate(septets):
        whole |= (septet & 0x7F) << 7 * place + fill
    return whole.to_bytes((7 * len(septets) + fill + 7) // 8, "little")


def unpack(octets: bytes, count: int, fill: int = 0) -> bytes:
    """Inverse of pack. Raises FormatError when ``count`` septets are not there."""
    if 7 * count + fill > 8 * len(octets):
        raise FormatError(f"7-bit text: {count} characters do not fit {len(octets)} octets")
    whole = int.from_bytes(octets, "little") >> fill
    return bytes(whole >> 7 * place & 0x7F for place in range(count))


class TextPart(NamedTuple):
    """One short message of a text: coding, length field, user data, and whether they begin with a header."""

    dcs: int
    length: int
    user_data: bytes
    has_header: bool


def encode_text(text: str, reference: int = 0) -> list[TextPart]:
    """A text as one or several short messages, without splitting a character.

    Raises FormatError when it is longer than 255 of them or holds half a character.
    """
    septets = [_CODES.get(character) for character in text]
    seven = None not in septets
    units = [code for code in septets if code] if seven else [_utf16(character) for character in text]
    single, several = (MAX_SEPTETS, 153) if seven else (MAX_USER_DATA, 134)
    if sum(map(len, units)) <= single:
        return [_text_part(b"".join(units), b"", seven)]
    chunks = list(_chunks(units, several))
    if len(chunks) > 255:
        raise FormatError(f"text of {len(chunks)} short messages: at most 255")
    return [
        _text_part(chunk, header(Concat(reference, len(chunks), number).element()), seven)
        for number, chunk in enumerate(chunks, 1)
    ]


def _utf16(character: str) -> bytes:
    try:
        return character.encode("utf-16-be")
    except UnicodeEncodeError as e:
        raise FormatError("text holds half a character") from e


def _chunks(units: list[bytes], room: int) -> Iterator[bytes]:
    chunk = b""
    for unit in units:
        if len(chunk) + len(unit) > room:
            yield chunk
            chunk = b""
        chunk += unit
    yield chunk


def _text_part(units: bytes, head: bytes, seven: bool) -> TextPart:
    if not seven:
        return TextPart(Alphabet.UCS2, len(head) + len(units), head + units, bool(head))
    whole, fill = _fill(head)
    return TextPart(Alphabet.GSM7, whole + len(units), head + pack(units, fill), bool(head))


def _fill(head: bytes) -> tuple[int, int]:
    """Septets that a header takes, and the filling bits behind it."""
    whole = -(-8 * len(head) // 7)
    return whole, 7 * whole - 8 * len(head)


def alphabet(dcs: int) -> Alphabet:
    """Coding that a DCS names; reserved ones count as data."""
    if is_seven_bit(dcs):
        return Alphabet.GSM7
    return Alphabet.UCS2 if (dcs < 0x80 and dcs & 0x2C == 0x08) or dcs & 0xF0 == 0xE0 else Alphabet.DATA


def decode_text(dcs: int, length: int, user_data: bytes, *, has_header: bool) -> tuple[Concat | None, str]:
    """The text of one short message, and which part of which message it is. Raises FormatError when it is none."""
    head, elements = b"", list[Element]()
    if has_header:
        elements, rest = parse_header(user_data)
        head = user_data[: len(user_data) - len(rest)]
    kind = alphabet(dcs)
    if kind is Alphabet.GSM7:
        whole, fill = _fill(head)
        if length < whole:
            raise FormatError("7-bit text: its header is longer than it")
        text = _characters(unpack(user_data[len(head) :], length - whole, fill))
    elif kind is Alphabet.UCS2:
        try:
            text = user_data[len(head) :].decode("utf-16-be")
        except UnicodeDecodeError as e:
            raise FormatError("UCS2 text is damaged") from e
    else:
        raise FormatError(f"DCS {dcs:02X} is data, not text")
    return concat_of(elements), text


def to_centre(part: TextPart) -> bytes:
    """A text's user data as a message centre takes them by SMPP: 7-bit characters an octet each behind the header."""
    if not is_seven_bit(part.dcs):
        return part.user_data
    head = header(*parse_header(part.user_data)[0]) if part.has_header else b""
    whole, fill = _fill(head)
    return head + unpack(part.user_data[len(head) :], part.length - whole, fill)


def from_centre(dcs: int, octets: bytes, *, has_header: bool) -> TextPart:
    """Inverse of to_centre: user data for a TPDU. Raises FormatError when its header does not fit."""
    if not is_seven_bit(dcs):
        return TextPart(dcs, len(octets), octets, has_header)
    head = header(*parse_header(octets)[0]) if has_header else b""
    septets = octets[len(head) :]
    whole, fill = _fill(head)
    return TextPart(dcs, whole + len(septets), head + pack(septets, fill), has_header)


# ENVELOPE -------------------------------------------------------------------------------------------------------------

TAG_DOWNLOAD, TAG_DEVICES, TAG_ADDRESS, TAG_TPDU = 0xD1, 0x82, 0x86, 0x8B
_NETWORK_TO_SIM = bytes.fromhex("8381")


def envelope(deliver: bytes, center: Address | None = None) -> bytes:
    """Data of the ENVELOPE that hands an SMS-DELIVER to the SIM; ``center``: the short message centre's number."""
    address = Tlv(TAG_ADDRESS, center.encode_whole()) if center else b""
    return Tlv(TAG_DOWNLOAD, Tlv(TAG_DEVICES, _NETWORK_TO_SIM) + address + Tlv(TAG_TPDU, deliver))


def parse_envelope(raw: bytes) -> tuple[Address | None, bytes]:
    """The centre's number, when it is there, and the SMS-DELIVER. Takes tags with either comprehension bit.

    Raises FormatError.
    """
    item, rest = Tlv.parse(raw)
    if item.tag != TAG_DOWNLOAD or rest:
        raise FormatError("ENVELOPE: no SMS-PP download")
    found = {part.tag | 0x80: part.value for part in Tlv.parse_list(item.value)}
    if TAG_TPDU not in found or found.get(TAG_DEVICES) != _NETWORK_TO_SIM:
        raise FormatError("ENVELOPE: short message or device identities are missing")
    address = found.get(TAG_ADDRESS)
    return (Address.decode_whole(address) if address else None), found[TAG_TPDU]
