"""A phone face on the desk: commands in hexadecimal, answers fetched; a host's end of SCP02 and SCP03."""

from __future__ import annotations

from collections.abc import Callable

from cardlib.crypto.channels import aes_cmac, cbc_encrypt, kdf
from cardlib.crypto.keys import pad80
from simulator.uicc.face import Uicc

USIM_AID = "A0000000871002FFFFFFFF8907090000"
ISD = "A000000151000000"
DEFAULT_KEY = bytes.fromhex("404142434445464748494A4B4C4D4E4F")


def fixed(size: int) -> bytes:
    """Random numbers that are none."""
    return bytes(range(0x51, 0x51 + size))


class Phone:
    """Sends commands as a T=0 terminal does."""

    def __init__(self, face: Uicc | None = None) -> None:
        self.face = face or Uicc(random_bytes=fixed)
        self.transceive: Callable[[bytes], bytes] = self.face.transceive

    @classmethod
    def at(cls, transceive: Callable[[bytes], bytes]) -> Phone:
        """A desk on any line to a face."""
        phone = cls()
        phone.transceive = transceive
        return phone

    def raw(self, command: str) -> str:
        """One command, nothing fetched."""
        return self.transceive(bytes.fromhex(command)).hex().upper()

    def __call__(self, command: str, sw: int = 0x9000) -> bytes:
        """A command and its data; the status word must be ``sw``."""
        answer = self.transceive(bytes.fromhex(command))
        if answer[0] in (0x61, 0x9F) and len(answer) == 2:
            answer = self.transceive(bytes((int(command[:2], 16), 0xC0, 0, 0, answer[1])))
        assert answer[-2:] == sw.to_bytes(2, "big"), f"{command}: {answer[-2:].hex()} instead of {sw:04X}"
        return answer[:-2]

    def verify_adm(self) -> None:
        self("0020000A08" + b"12345678".hex())

    def usim(self) -> bytes:
        return self("00A4040410" + USIM_AID)


class Host:
    """The host of a secure channel, written from the standard beside the card's end, on the same primitives."""

    def __init__(self, phone: Phone, version: int, key: bytes = DEFAULT_KEY) -> None:
        self.phone, self.key = phone, key
        self.challenge = bytes(range(8))
        self.level = 0
        phone("00A4040008" + ISD)
        answer = phone(f"8050{version:02X}0008{self.challenge.hex()}")
        self.protocol = answer[11]
        assert answer[10] == (version or 1)
        self.aes = self.protocol == 3
        if self.aes:
            assert len(answer) == 29
            assert answer[12] == 0
            card, cryptogram = answer[13:21], answer[21:]
            context = self.challenge + card
            self.enc, self.mac = kdf(key, 4, context, len(key)), kdf(key, 6, context, len(key))
            self.dek = key
            assert cryptogram == kdf(self.mac, 0, context, 8)
            self.cryptogram, self.chain, self.counter = kdf(self.mac, 1, context, 8), bytes(16), 0
        else:
            assert len(answer) == 28
            sequence, card, cryptogram = answer[12:14], answer[14:20], answer[20:]
            self.enc, self.mac, self.dek = (
                cbc_encrypt(key, bytes.fromhex(name) + sequence + bytes(12), bytes(8), aes=False)
                for name in ("0182", "0101", "0181")
            )
            assert cryptogram == self._full(self.challenge + sequence + card)
            self.cryptogram, self.chain = self._full(sequence + card + self.challenge), bytes(8)

    def _full(self, message: bytes) -> bytes:
        return cbc_encrypt(self.enc, pad80(message, 8), bytes(8), aes=False)[-8:]

    def _mac(self, message: bytes) -> bytes:
        if self.aes:
            self.chain = aes_cmac(self.mac, self.chain + message)
            return self.chain[:8]
        left, iv = self.mac[:8], self.chain
        if any(iv):
            iv = cbc_encrypt(left, iv, bytes(8), aes=False)
        padded = pad80(message, 8)
        if len(padded) > 8:
            iv = cbc_encrypt(left, padded[:-8], iv, aes=False)[-8:]
        self.chain = cbc_encrypt(self.mac, padded[-8:], iv, aes=False)
        return self.chain

    def open(self, level: int, sw: int = 0x9000) -> Host:
        """EXTERNAL AUTHENTICATE."""
        head = bytes((0x84, 0x82, level, 0, 16)) + self.cryptogram
        self.phone((head + self._mac(head)).hex(), sw)
        self.level = level
        return self

    def wrapped(self, command: str) -> str:
        """A command (without Le) as the level wants it."""
        plain = bytes.fromhex(command)
        header, data = plain[:4], plain[5:]
        if not self.level:
            return command
        header = bytes((header[0] | 4,)) + header[1:]
        if self.aes and self.level & 2:
            self.counter += 1
            if data:
                iv = cbc_encrypt(self.enc, self.counter.to_bytes(16, "big"), bytes(16), aes=True)
                data = cbc_encrypt(self.enc, pad80(data, 16), iv, aes=True)
        mac = self._mac(header + bytes((len(data) + 8,)) + data)
        if not self.aes and self.level & 2 and data:
            data = cbc_encrypt(self.enc, pad80(data, 8), bytes(8), aes=False)
        return (header + bytes((len(data) + 8,)) + data + mac).hex()

    def __call__(self, command: str, sw: int = 0x9000) -> bytes:
        return self.phone(self.wrapped(command), sw)
