"""Legacy DES: single and two-key triple DES. The only module that knows either (house rule).

Single DES is made from EDE with three equal keys, since no kept library offers it alone; equal halves
of a two-key key therefore work too (card.md §1.1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes

from cardlib.crypto.chain import Cbc, CbcMac
from cardlib.crypto.keys import Algorithm, Key, SessionSeed, invert, xor
from cardlib.crypto.packets import PacketAlgorithm, PacketKey
from cardlib.errors import FormatError

_ECB = modes.ECB()


class _DesFamily(Key):
    block: ClassVar[int] = 8
    __slots__ = ("_chain", "_update")

    def __init__(self, value: bytes) -> None:
        super().__init__(value)
        self._update: Callable[[bytes], bytes] | None = None
        self._chain: CbcMac | None = None

    def _cipher(self) -> Cipher[modes.ECB]:
        value = self._value
        return Cipher(TripleDES(value * 3 if len(value) == 8 else value + value[:8]), _ECB)

    def _left_chain(self, padded: bytes, iv: bytes) -> bytes:
        """CBC under the left half, in single DES."""
        chain = self._chain
        if chain is None:
            chain = self._chain = CbcMac(TripleDES(self._value[:8] * 3))
        return chain(padded, int.from_bytes(iv, "big"))

    def encrypt(self, data: bytes) -> bytes:
        if len(data) % 8:
            raise FormatError(f"{len(data)} bytes are not whole DES blocks")
        update = self._update
        if update is None:
            update = self._update = self._cipher().encryptor().update
        return update(data)

    def decrypt(self, data: bytes) -> bytes:
        if len(data) % 8:
            raise FormatError(f"{len(data)} bytes are not whole DES blocks")
        return self._cipher().decryptor().update(data)

    def cryptogram(self, challenge: bytes) -> bytes:
        return self.encrypt(challenge.ljust(8, b"\0"))

    def diversify(self, factor: bytes) -> Key:
        return TdesKey(self.encrypt(factor + invert(factor)))

    def session(self, seed: SessionSeed) -> Key:
        return DesKey(self.encrypt(seed))


def three_part(key: bytes) -> TripleDES:
    """TDES with the parts of a key repeated to three: what a library needs that still gives one of one or two."""
    return TripleDES((key * 3)[:24] if len(key) < 24 else key)


class DesKey(_DesFamily):
    """An 8-byte key: session keys, old cards. Transaction and secure-messaging MACs are plain CBC."""

    __slots__ = ()

    @property
    def algorithm(self) -> Algorithm:
        return Algorithm.DES

    def mac_padded(self, padded: bytes, iv: bytes) -> bytes:
        return self._left_chain(padded, iv)

    def folded(self) -> Key:
        return self


class TdesKey(_DesFamily):
    """A 16-byte key, two-key EDE. Its own MAC is ISO 9797-1 algorithm 3 (card.md §1.3)."""

    __slots__ = ("_folded",)

    def __init__(self, value: bytes) -> None:
        super().__init__(value)
        self._folded: DesKey | None = None

    @property
    def algorithm(self) -> Algorithm:
        return Algorithm.TDES

    def mac_padded(self, padded: bytes, iv: bytes) -> bytes:
        # Algorithm 3: single DES with K_L but for the last block, which goes through the whole EDE.
        if len(padded) > 8:
            iv = self._left_chain(padded[:-8], iv)
        return self.encrypt(xor(padded[-8:], iv))

    def folded(self) -> Key:
        if self._folded is None:
            self._folded = DesKey(xor(self._value[:8], self._value[8:]))
        return self._folded


class _DesFamilyPacketKey(PacketKey):
    """Outer CBC, and as checksum plain CBC-MAC over every block, zero-padded (ota.md §1): not the "retail MAC"."""

    block: ClassVar[int] = 8
    __slots__ = ("_cbc", "_chain")

    def __init__(self, value: bytes) -> None:
        super().__init__(value)
        self._cbc: Cbc | None = None
        self._chain: CbcMac | None = None

    def _cipher(self) -> Cbc:
        cbc = self._cbc
        if cbc is None:
            cbc = self._cbc = Cbc(three_part(self._value))
        return cbc

    def encrypt(self, blocks: bytes) -> bytes:
        return self._cipher().encrypt(blocks)

    def decrypt(self, blocks: bytes) -> bytes:
        return self._cipher().decrypt(blocks)

    def checksum(self, data: bytes) -> bytes:
        chain = self._chain
        if chain is None:
            chain = self._chain = CbcMac(three_part(self._value))
        return chain(data + bytes(-len(data) % 8), 0)

    @property
    def kcv(self) -> bytes:
        return self.encrypt(bytes(8))[:3]


class DesPacketKey(_DesFamilyPacketKey):
    """Single DES, for old recordings and vectors: policy refuses it."""

    algorithm: ClassVar[PacketAlgorithm] = PacketAlgorithm.DES
    __slots__ = ()


class DesEcbPacketKey(DesPacketKey):
    """Single DES without chaining, for old recordings and vectors: policy refuses it."""

    algorithm: ClassVar[PacketAlgorithm] = PacketAlgorithm.DES_ECB
    __slots__ = ()

    def encrypt(self, blocks: bytes) -> bytes:
        return Cipher(three_part(self._value), _ECB).encryptor().update(blocks)

    def decrypt(self, blocks: bytes) -> bytes:
        return Cipher(three_part(self._value), _ECB).decryptor().update(blocks)


class TdesPacketKey(_DesFamilyPacketKey):
    """3DES of two keys."""

    algorithm: ClassVar[PacketAlgorithm] = PacketAlgorithm.TDES2
    __slots__ = ()


class Tdes3PacketKey(_DesFamilyPacketKey):
    """3DES of three keys."""

    algorithm: ClassVar[PacketAlgorithm] = PacketAlgorithm.TDES3
    __slots__ = ()
