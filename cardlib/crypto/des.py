"""Legacy DES: single and two-key triple DES. The only module that knows either (house rule).

Single DES is made from EDE with three equal keys, since no kept library offers it alone; equal halves
of a two-key key therefore work too (card.md §1.1).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import ClassVar

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes

from cardlib.crypto.chain import CbcMac
from cardlib.crypto.keys import Algorithm, Key, SessionSeed, invert, xor
from cardlib.errors import FormatError


class _DesFamily(Key):
    block: ClassVar[int] = 8

    @cached_property
    def _ede(self) -> TripleDES:
        left, right = self._value[:8], self._value[-8:]
        return TripleDES(left + right + left)

    @cached_property
    def _ecb(self) -> Cipher[modes.ECB]:
        return Cipher(self._ede, modes.ECB())

    @cached_property
    def _update(self) -> Callable[[bytes], bytes]:
        return self._ecb.encryptor().update

    @cached_property
    def _left_chain(self) -> CbcMac:
        return CbcMac(TripleDES(self._value[:8] * 3))

    def encrypt(self, data: bytes) -> bytes:
        if len(data) % 8:
            raise FormatError(f"{len(data)} bytes are not whole DES blocks")
        return self._update(data)

    def decrypt(self, data: bytes) -> bytes:
        if len(data) % 8:
            raise FormatError(f"{len(data)} bytes are not whole DES blocks")
        return self._ecb.decryptor().update(data)

    def cryptogram(self, challenge: bytes) -> bytes:
        return self.encrypt(challenge.ljust(8, b"\0"))


class DesKey(_DesFamily):
    """An 8-byte key: session keys, old cards. Transaction and secure-messaging MACs are plain CBC."""

    @property
    def algorithm(self) -> Algorithm:
        return Algorithm.DES

    def mac_padded(self, padded: bytes, iv: bytes) -> bytes:
        return self._left_chain(padded, int.from_bytes(iv, "big"))

    def diversify(self, factor: bytes) -> Key:
        return TdesKey(self.encrypt(factor + invert(factor)))

    def session(self, seed: SessionSeed) -> Key:
        return DesKey(self.encrypt(seed))

    def folded(self) -> Key:
        return self


class TdesKey(_DesFamily):
    """A 16-byte key, two-key EDE. Its own MAC is ISO 9797-1 algorithm 3 (card.md §1.3)."""

    @property
    def algorithm(self) -> Algorithm:
        return Algorithm.TDES

    def mac_padded(self, padded: bytes, iv: bytes) -> bytes:
        # Algorithm 3: single DES with K_L but for the last block, which goes through the whole EDE.
        if len(padded) > 8:
            iv = self._left_chain(padded[:-8], int.from_bytes(iv, "big"))
        return self.encrypt(xor(padded[-8:], iv))

    def diversify(self, factor: bytes) -> Key:
        return TdesKey(self.encrypt(factor + invert(factor)))

    def session(self, seed: SessionSeed) -> Key:
        return DesKey(self.encrypt(seed))

    def folded(self) -> Key:
        return self._fold

    @cached_property
    def _fold(self) -> DesKey:
        return DesKey(xor(self._value[:8], self._value[8:]))
