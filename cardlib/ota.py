"""The sender's end of secured packets: scripts out, proofs of receipt in (ota.md).

Counters belong to the caller, who stores one before the packet that uses it is sent. Only a reply that is ``proven``
says anything for sure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum, unique
from typing import NamedTuple, Self

from cardlib.apdu import SW, Command
from cardlib.crypto.keys import Key
from cardlib.crypto.packets import PacketAlgorithm, PacketKey, key_class, packet_key
from cardlib.errors import FormatError, LineTimeout, MacMismatch, Refused
from cardlib.wire import scp80, sms
from cardlib.wire.scp80 import Head, Keys, PorStatus, SealedCommand, Spi

ISSUER_TAR = bytes(3)
DES_KEY, AES_KEY = 0x80, 0x88
ONE_CARD_TAR = b"\xbf\xff\x4f"
ONE_CARD_SPI = Spi(0x16, 0x19)
"""Checksum, ciphering, counter higher; a PoR always, signed and ciphered, in the delivery report."""
ONE_CARD_SPI_SUBMIT = Spi(0x16, 0x39)
"""The same with the PoR in a short message of its own."""
REQUEST_SPI = Spi(0x16, 0x00)
PLATFORM_KEY_SET = 1
GET_RESPONSE = bytes.fromhex("00C0000000")
GET_CHALLENGE = bytes.fromhex("0084000004")
SELECT = b"\x00\xa4"
NO_MORE = "the counter of this keyset is at its end: give the card a new keyset"


def slot_key_set(slot: int) -> int:
    """Number (KVN) of the keyset that belongs to a slot, 1 to 8."""
    return slot + 1


def _refuse_single_des(algorithm: int) -> None:
    if algorithm in (PacketAlgorithm.DES, PacketAlgorithm.DES_ECB):
        raise Refused("single_des", "single DES protects nothing: use a keyset of AES or 3DES")


class KeySet(NamedTuple):
    """A keyset of one card: its number and what it enciphers and proves with."""

    number: int
    keys: Keys

    @classmethod
    def of(cls, number: int, algorithm: int, kic: bytes, kid: bytes) -> Self:
        """Raises Refused for single DES, ConfigError for values that fit no algorithm."""
        _refuse_single_des(algorithm)
        return cls(number, Keys(packet_key(algorithm, kic), packet_key(algorithm, kid)))

    def head(self, spi: Spi, tar: bytes) -> Head:
        """What a packet under this keyset says in clear. Raises FormatError when a key is missing."""
        kic, kid = self.keys
        if kic is None or kid is None:
            raise FormatError("a keyset has both KIc and KID")
        return Head(spi, self.number << 4 | kic.algorithm, self.number << 4 | kid.algorithm, tar)


def derive_key_sets(
    number: int, kic_master: Key, kid_master: Key, factors: bytes, algorithm: int = PacketAlgorithm.AES
) -> Iterator[KeySet]:
    """Keysets of many cards for their 8-byte factors (serials), each master asked once (card.md §1.4).

    Children have 16 bytes: AES-128, or 3DES of two keys. Raises FormatError when the factors are not whole.
    """
    kics, kids = kic_master.diversify_many(factors), kid_master.diversify_many(factors)
    _refuse_single_des(algorithm)
    make = key_class(algorithm, 16)
    for at in range(0, len(kics), 16):
        yield KeySet(number, Keys(make(kics[at : at + 16]), make(kids[at : at + 16])))


def put_key_set(number: int, keys: Iterable[PacketKey], kik: PacketKey, *, replaces: bool = False) -> bytes:
    """PUT KEY of a slot's keyset (KIc, KID, KIK) under the platform's KIK; sent under keyset 1 to TAR 000000."""
    body = bytes((number,))
    for key in keys:
        sealed = kik.wrap(key)
        kind = AES_KEY if key.algorithm is PacketAlgorithm.AES else DES_KEY
        body += bytes((kind, len(sealed))) + sealed + b"\x03" + key.put_key_kcv
    return bytes((0x80, 0xD8, number if replaces else 0, 0x81, len(body))) + body


class Reply(NamedTuple):
    """What came back. Not ``proven``: a hint that may come from anyone. ``answer``: None without a script's answer."""

    status: int
    proven: bool
    data: bytes

    @property
    def answer(self) -> scp80.Answer | None:
        """The compact script's answer. Raises FormatError when the card sent something else."""
        return scp80.Answer.decode(self.data) if self.status == PorStatus.OK and self.proven else None

    @property
    def is_final(self) -> bool:
        """Whether nothing more comes: 0B and 08 announce a short message with the real answer."""
        return self.proven and self.status not in (PorStatus.BY_SUBMIT, PorStatus.BY_USSD, PorStatus.MORE_TIME)


class Outgoing(NamedTuple):
    """A packet under way, and how its replies are known. To send it again, send the same packet."""

    key_set: KeySet
    head: Head
    counter: int
    packet: bytes

    def user_data(self, reference: int = 0) -> list[bytes]:
        """What its short messages carry. Raises FormatError when it is longer than 255 of them."""
        return sms.split(self.packet, sms.IEI_COMMAND, reference)

    def read(self, packet: bytes) -> Reply | None:
        """A response packet as a reply to this one; None when it answers another.

        Raises MacMismatch when it can't be believed, FormatError when it is no response packet.
        """
        if len(packet) >= 6 and packet[3:6] != self.head.tar:
            return None
        response = scp80.decode_response(packet, self.head, self.key_set.keys)
        if response.proven and response.counter != self.counter:
            return None
        return Reply(response.status, response.proven, response.data)


def command(
    key_set: KeySet, counter: int, script: Iterable[bytes] | bytes, spi: Spi = ONE_CARD_SPI, tar: bytes = ONE_CARD_TAR
) -> Outgoing:
    """A packet with a compact script: its C-APDUs, or what ``scp80.compact`` made of them once for many cards.

    Raises Refused at the counter's end, FormatError.
    """
    if not 0 < counter < scp80.COUNTER_MAX:
        raise Refused("counter_end", NO_MORE)
    head = key_set.head(spi, tar)
    data = script if isinstance(script, bytes) else scp80.compact(script)
    return Outgoing(key_set, head, counter, scp80.encode_command(head, counter, data, key_set.keys))


class Inbox:
    """Puts response packets together from what a card sends, in any order."""

    def __init__(self) -> None:
        self._segments = sms.Segments()

    def add(self, sender: object, user_data: bytes) -> bytes | None:
        """A whole response packet, or None: not whole yet, or no response packet at all (ota.md §7)."""
        try:
            joined = self._segments.add(sender, user_data)
        except FormatError:
            return None
        whole = joined is not None and sms.Element(sms.IEI_RESPONSE, b"") in joined.elements
        return joined.payload if joined is not None and whole else None


class AirCard:
    """A card over the air as a transport: each command is a script, so that every protocol runs as through a reader.

    ``next_counter`` stores the counter that it returns before it returns. ``carry`` sends the user data of short
    messages and returns the user data that came back, in whatever order, until nothing more is expected. A packet
    without proof is sent again, the same one, ``tries`` times in all; then LineTimeout: whether it ran is not known.
    Whatever is sent and proven later ends that doubt, since the card then refuses the older counter.

    Its first SELECT begins the keyset's context anew. Later ones follow a command in their script, since a script that
    begins with SELECT ends the context with all security states (ota.md, Sessions).
    """

    atr = b""

    def __init__(
        self,
        key_set: KeySet,
        next_counter: Callable[[], int],
        carry: Callable[[list[bytes]], Iterable[bytes]],
        *,
        spi: Spi = ONE_CARD_SPI,
        tries: int = 3,
    ) -> None:
        self.key_set, self.next_counter, self.carry = key_set, next_counter, carry
        self.spi, self.tries = spi, tries
        self._ahead: list[bytes] = []
        self._begun = False

    def ahead(self, before: Command) -> None:
        """Let a command whose data nobody wants go ahead of the next one, in the same script.

        When the card refuses it, the next command is not executed and gets its status word.
        """
        self._ahead.append(before._replace(le=None).encode())

    def transceive(self, command_apdu: bytes) -> bytes:
        """Run one command; data and status word. Raises LineTimeout, Refused at the counter's end."""
        parsed = Command.decode(command_apdu)
        script = [*self._ahead, command_apdu]
        self._ahead.clear()
        if self._begun and script[0][:2] == SELECT:
            script.insert(0, GET_CHALLENGE)
        self._begun = True
        wanted = len(script)
        if parsed.data and parsed.le is not None:
            script.append(GET_RESPONSE)
        reply = self.prove(command(self.key_set, self.next_counter(), script, self.spi))
        answer = reply.answer
        if answer is None:
            raise LineTimeout(
                f"the card ran the command, but its answer did not get through (status {reply.status:02X})"
            )
        if answer.executed == wanted + 1 and answer.sw == SW.CONDITIONS:
            return SW.OK.to_bytes(2, "big")  # the command brought nothing to fetch
        sw = SW.OK if answer.sw >> 8 == 0x61 else answer.sw  # what nobody wanted stays there
        return answer.data + sw.to_bytes(2, "big")

    def prove(self, outgoing: Outgoing) -> Reply:
        """Send a packet until its proof is there. Raises LineTimeout."""
        inbox, hint = Inbox(), ""
        for _ in range(self.tries):
            for user_data in self.carry(outgoing.user_data(outgoing.counter & 0xFF)):
                packet = inbox.add("card", user_data)
                try:
                    reply = outgoing.read(packet) if packet else None
                except (FormatError, MacMismatch):
                    continue  # anyone may send anything
                if reply is not None and reply.is_final:
                    return reply
                if reply is not None and not reply.proven:
                    hint = f"; something said {PorStatus(reply.status).name}"
        raise LineTimeout(f"no proof of receipt of packet {outgoing.counter} after {self.tries} tries{hint}")

    def close(self) -> None:
        """Nothing is held."""


# What the card asks by itself (ota.md, From the SIM menu) -----------------------------------------------------------


@unique
class Wish(IntEnum):
    """What the holder chose in the menu."""

    DELETE = 0x01
    REPORT_LOSS = 0x02


class MenuRequest(NamedTuple):
    """A request from the menu: counter, wish, application, the digits of the service password."""

    counter: int
    wish: Wish
    aid: bytes
    password: str

    def __repr__(self) -> str:
        return f"<MenuRequest {self.wish.name} of {self.aid.hex().upper()}>"


def read_request(packet: bytes, key_set: KeySet) -> MenuRequest:
    """Open a packet of the menu: the caller accepts its counter only when it is higher than the last.

    Raises FormatError when it is none, MacMismatch when it can't be believed.
    """
    sealed = SealedCommand.decode(packet)
    if sealed.head != key_set.head(REQUEST_SPI, ONE_CARD_TAR) or sealed.checksum_bytes != scp80.CC_BYTES:
        raise FormatError("no request of the menu under this keyset")
    counter, body = sealed.open(key_set.keys)
    if len(body) < 15 or len(body) != 15 + body[14] or body[0] not in (Wish.DELETE, Wish.REPORT_LOSS):
        raise FormatError("request of the menu: its fields do not fit")
    digits = body[15:].hex()
    if digits[-1:] == "f":
        digits = digits[:-1]
    if not digits.isdecimal():
        raise FormatError("request of the menu: the password has no digits")
    return MenuRequest(counter, Wish(body[0]), body[1:14], digits)
