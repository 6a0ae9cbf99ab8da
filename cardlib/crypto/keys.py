"""Keys of cards: what card.md §1 and §8 compute with one, whichever algorithm it has.

A key keeps its cipher contexts, so that a second use costs no key schedule. Those contexts hold
chaining state: a key belongs to one thread at a time. Its value is never shown by ``repr``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from enum import IntEnum, unique
from hmac import compare_digest
from typing import TYPE_CHECKING, ClassVar, NoReturn

from cardlib.errors import BadKcv, ConfigError, FormatError, MacMismatch

if TYPE_CHECKING:
    from cardlib.crypto.packets import PacketKey

SessionSeed = bytes
"""8 bytes that, enciphered under a transaction key, give a session key (card.md §1.5)."""


@unique
class Algorithm(IntEnum):
    """Algorithm identifier bytes (card.md §1.7, §8)."""

    TDES = 0x00
    DES = 0x01
    SM4 = 0x04


def pad80(data: bytes, block: int) -> bytes:
    """MAC padding: always 80, then 00 to a multiple of ``block`` (card.md §1.2)."""
    return data + b"\x80" + bytes(-(len(data) + 1) % block)


def invert(data: bytes) -> bytes:
    """Complement every bit."""
    return bytes(b ^ 0xFF for b in data)


def xor(a: bytes, b: bytes) -> bytes:
    """XOR two strings of the same length."""
    return (int.from_bytes(a, "big") ^ int.from_bytes(b, "big")).to_bytes(len(a), "big")


def diversification_input(factors: bytes) -> bytes:
    """``X || ~X`` for each 8-byte factor X of a row of them (card.md §1.4). Raises FormatError."""
    if len(factors) % 8:
        raise FormatError("a diversification factor has 8 bytes")
    row = array("Q", bytes(2 * len(factors)))
    row[0::2] = array("Q", factors)
    row[1::2] = array("Q", xor(factors, b"\xff" * len(factors)))
    return row.tobytes()


class HiddenValue:
    """A key's value, which no ``repr``, trace or pickle shows."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._value)} bytes>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key is not pickled")


class Key(HiddenValue, ABC):
    """A symmetric card key and everything card.md does with one."""

    block: ClassVar[int]
    __slots__ = ()

    def __len__(self) -> int:
        return len(self._value)

    @property
    @abstractmethod
    def algorithm(self) -> Algorithm:
        """The identifier that goes with this key."""

    @abstractmethod
    def encrypt(self, data: bytes) -> bytes:
        """ECB over whole blocks. Raises FormatError when ``data`` is not aligned."""

    @abstractmethod
    def decrypt(self, data: bytes) -> bytes:
        """Inverse of :meth:`encrypt`."""

    @abstractmethod
    def mac_padded(self, padded: bytes, iv: bytes) -> bytes:
        """MAC over whole blocks from ``iv`` of one block; returns the full last block."""

    @abstractmethod
    def diversify(self, factor: bytes) -> Key:
        """Child key for an 8-byte factor (card.md §1.4)."""

    def for_writing(self) -> Key:
        """The key itself, being in memory. Keys of a hardware module have the same method, and most refuse."""
        return self

    def copy(self) -> Key:
        """The same key with cipher contexts of its own, for another thread."""
        return type(self)(self._value)

    def diversify_many(self, factors: bytes) -> bytes:
        """Values of the children for many 8-byte factors, one behind the other: 16 bytes each, in one call.

        Raises FormatError when the factors are not whole.
        """
        return self.encrypt(diversification_input(factors))

    @abstractmethod
    def session(self, seed: SessionSeed) -> Key:
        """Session key of one transaction (card.md §1.5)."""

    @abstractmethod
    def folded(self) -> Key:
        """The key that TACs and RELOAD PIN use: halves XORed (3DES), itself otherwise (card.md §1.3)."""

    @abstractmethod
    def cryptogram(self, challenge: bytes) -> bytes:
        """8 bytes for EXTERNAL AUTHENTICATE over a challenge of 4, 8 or (SM4) 16 bytes."""

    def mac(self, data: bytes, challenge: bytes = b"") -> bytes:
        """Leftmost 4 bytes of the MAC: card.md §1.3, with the challenge right-padded as IV (§1.6)."""
        block = self.block
        return self.mac_padded(pad80(data, block), challenge.ljust(block, b"\0"))[:4]

    def tac(self, data: bytes) -> bytes:
        """Transaction proof under a TAC key."""
        return self.folded().mac(data)

    def verify(self, data: bytes, mac: bytes, what: str, challenge: bytes = b"") -> None:
        """Compare a MAC in constant time. Raises MacMismatch naming ``what``."""
        if not compare_digest(self.mac(data, challenge), mac):
            raise MacMismatch(f"{what} is wrong")

    def seal(self, data: bytes) -> bytes:
        """Encipher ``LD || data``, padded only when not aligned (card.md §1.2)."""
        clear = bytes([len(data)]) + data
        return self.encrypt(clear if len(clear) % self.block == 0 else pad80(clear, self.block))

    def seal_key(self, header: bytes, key: Key) -> bytes:
        """Seal a key record ``header || value`` without showing the value to the caller."""
        return self.seal(header + key._value)

    def for_packets(self, algorithm: int) -> PacketKey:
        """The same value as a key of secured packets (ota.md §1). Raises ConfigError where it does not fit."""
        from cardlib.crypto.packets import packet_key  # noqa: PLC0415  # its keys are made of ours

        return packet_key(algorithm, self._value)

    def unseal(self, sealed: bytes) -> bytes:
        """Inverse of :meth:`seal`. Raises FormatError when length byte or padding do not fit."""
        clear = self.decrypt(sealed)
        if not clear or clear[0] >= len(clear):
            raise FormatError("enciphered data: the length byte does not fit")
        data = clear[1 : 1 + clear[0]]
        whole = bytes([len(data)]) + data
        if clear != (whole if len(whole) % self.block == 0 else pad80(whole, self.block)):
            raise FormatError("enciphered data: the padding does not fit")
        return data

    @property
    def kcv(self) -> bytes:
        """Check value: first 3 bytes of the encryption of one block of zeros (keys.md)."""
        return self.encrypt(bytes(self.block))[:3]

    def check(self, kcv: bytes, what: str) -> None:
        """Raise BadKcv unless the check value is the expected one."""
        if not compare_digest(self.kcv, kcv):
            raise BadKcv(f"{what}: check value {self.kcv.hex().upper()} instead of {kcv.hex().upper()}")


def make_key(value: bytes, algorithm: int = Algorithm.TDES) -> Key:
    """Give a value its algorithm: SM4 by identifier, the DES family by length (card.md §1.7).

    Raises ConfigError for a length or identifier that no card key has.
    """
    from cardlib.crypto.des import DesKey, TdesKey  # noqa: PLC0415  # they subclass Key
    from cardlib.crypto.sm4 import Sm4Key  # noqa: PLC0415  # as above

    if algorithm == Algorithm.SM4 and len(value) == 16:
        return Sm4Key(value)
    if algorithm in (Algorithm.TDES, Algorithm.DES):
        if len(value) == 8:
            return DesKey(value)
        if len(value) == 16:
            return TdesKey(value)
    raise ConfigError(f"no card key has {len(value)} bytes under algorithm {algorithm:02X}")
