"""OSDP's secure channel: AES-128, keys of a session, cryptograms, MACs chained both ways. Used by panel and device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hmac import compare_digest

from cardlib.crypto.aes import BLOCK, AesKey
from cardlib.crypto.keys import pad80
from cardlib.errors import ConfigError, FormatError, MacMismatch
from cardlib.wire.osdp import ANY_ADDRESS, Packet, Scs

SCBK_D = bytes(range(0x30, 0x40))
"""The public default key: good for a bench only, nothing secret may travel under it."""

_ALL = (1 << 128) - 1
_SESSION_KEYS = (b"\x01\x82", b"\x01\x01", b"\x01\x02")


def read_keys(lines: Iterable[str]) -> dict[int, bytes]:
    """SCBKs by address from lines ``address hex``; empty ones and ``#`` are skipped. Raises ConfigError with the line.

    The message never shows what stands there.
    """
    keys: dict[int, bytes] = {}
    for number, line in enumerate(lines, 1):
        address, _, digits = line.partition("#")[0].strip().partition(" ")
        if not address:
            continue
        try:
            key = bytes.fromhex(digits)
        except ValueError:
            key = b""
        good = address.isascii() and address.isdigit() and len(address) <= 3 and int(address) < ANY_ADDRESS
        if not good or len(key) != 16:
            raise ConfigError(f"SCBK line {number}: an address (0 to 126) and 32 hexadecimal digits belong there")
        if int(address) in keys or key == SCBK_D:
            raise ConfigError(f"SCBK line {number}: an address given twice, or the public default key")
        keys[int(address)] = key
    return keys


@dataclass(slots=True, repr=False)
class SecureChannel:
    """State of one session. The panel seals commands and opens replies, the device the other way round.

    Nothing changes unless a MAC is right: after a MacMismatch the undamaged packet can still be opened.
    """

    client_cryptogram: bytes
    server_cryptogram: bytes
    rmac_i: bytes
    _enc: AesKey
    _mac1: AesKey
    _mac2: AesKey
    _last: list[int]  # whole MAC of the last command, of the last reply

    def __init__(self, scbk: bytes, rnd_a: bytes, rnd_b: bytes) -> None:
        """Derive the session from a 16-byte key and two 8-byte random numbers. Raises FormatError for other lengths."""
        if len(rnd_a) != 8 or len(rnd_b) != 8:
            raise FormatError(f"OSDP random numbers have 8 bytes, not {len(rnd_a)} and {len(rnd_b)}")
        base = AesKey(scbk)
        self._enc, self._mac1, self._mac2 = (
            AesKey(base.encrypt_block(constant + rnd_a[:6] + bytes(8))) for constant in _SESSION_KEYS
        )
        self.client_cryptogram = self._enc.encrypt_block(rnd_a + rnd_b)
        self.server_cryptogram = self._enc.encrypt_block(rnd_b + rnd_a)
        self.rmac_i = self._mac2.encrypt_block(self._mac1.encrypt_block(self.server_cryptogram))
        self._last = [0, int.from_bytes(self.rmac_i, "big")]

    def seal(self, packet: Packet) -> bytes:
        """Encipher a packet's data when it has any, add the MAC, and code it. The packet comes plain, without SCB."""
        other = self._last[not packet.reply]
        data = packet.data
        if data:
            data = self._enc.cbc_encrypt(pad80(data, BLOCK), other ^ _ALL)
        kind = (Scs.REPLY if packet.reply else Scs.COMMAND) + (2 if data else 0)
        packet = packet._replace(data=data, scb=bytes([kind]))
        mac = self._mac(packet.body(), other)
        wire = packet._replace(mac=mac[:4]).encode()
        self._last[packet.reply] = int.from_bytes(mac, "big")
        return wire

    def open(self, packet: Packet, raw: bytes) -> Packet:
        """Check the MAC of a received packet (parsed, and as it came), decipher it, return it without SCB.

        Raises MacMismatch when the MAC is wrong, FormatError when the packet has none or its padding is wrong.
        """
        if len(packet.mac) != 4:
            raise FormatError("an OSDP packet without a MAC inside a secure channel")
        other = self._last[not packet.reply]
        mac = self._mac(raw[: -6 if packet.crc else -5], other)
        if not compare_digest(mac[:4], packet.mac):
            raise MacMismatch(f"the MAC of an OSDP packet of address {packet.address:02X} is wrong")
        data = packet.data
        if data and packet.scb[0] >= Scs.COMMAND_DATA:
            data = _unpad(self._enc.cbc_decrypt(data, other ^ _ALL))
        self._last[packet.reply] = int.from_bytes(mac, "big")
        return packet._replace(data=data, scb=b"", mac=b"")

    def _mac(self, message: bytes, iv: int) -> bytes:
        if len(message) % BLOCK:
            message = pad80(message, BLOCK)
        if len(message) > BLOCK:
            iv = int.from_bytes(self._mac1.chain(message[:-BLOCK], iv), "big")
        return self._mac2.encrypt_block((int.from_bytes(message[-BLOCK:], "big") ^ iv).to_bytes(BLOCK, "big"))

    def __repr__(self) -> str:
        return "<SecureChannel>"


def _unpad(data: bytes) -> bytes:
    stripped = data.rstrip(b"\x00")
    if not stripped.endswith(b"\x80") or len(data) - len(stripped) >= BLOCK:
        raise FormatError("the padding of enciphered OSDP data is wrong")
    return stripped[:-1]


def require_equal(value: bytes, expected: bytes, what: str) -> None:
    """Compare a cryptogram in constant time. Raises MacMismatch."""
    if not compare_digest(value, expected):
        raise MacMismatch(f"OSDP: {what} is wrong: the two ends hold different keys")
