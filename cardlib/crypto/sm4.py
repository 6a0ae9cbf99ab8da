"""SM4 keys (card.md §8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from cryptography.hazmat.primitives.ciphers import Cipher, modes
from cryptography.hazmat.primitives.ciphers.algorithms import SM4

from cardlib.crypto.chain import CbcMac
from cardlib.crypto.keys import Algorithm, Key, SessionSeed, invert, xor
from cardlib.errors import FormatError

_ECB = modes.ECB()


class Sm4Key(Key):
    """A 16-byte key of the SM4 profile: 16-byte blocks, CBC-MAC, full-length session and TAC keys."""

    block: ClassVar[int] = 16
    __slots__ = ("_chain", "_update")

    def __init__(self, value: bytes) -> None:
        super().__init__(value)
        self._update: Callable[[bytes], bytes] | None = None
        self._chain: CbcMac | None = None

    @property
    def algorithm(self) -> Algorithm:
        return Algorithm.SM4

    def encrypt(self, data: bytes) -> bytes:
        if len(data) % 16:
            raise FormatError(f"{len(data)} bytes are not whole SM4 blocks")
        if self._update is None:
            self._update = Cipher(SM4(self._value), _ECB).encryptor().update
        return self._update(data)

    def decrypt(self, data: bytes) -> bytes:
        if len(data) % 16:
            raise FormatError(f"{len(data)} bytes are not whole SM4 blocks")
        return Cipher(SM4(self._value), _ECB).decryptor().update(data)

    def mac_padded(self, padded: bytes, iv: bytes) -> bytes:
        if self._chain is None:
            self._chain = CbcMac(SM4(self._value))
        return self._chain(padded, int.from_bytes(iv, "big"))

    def diversify(self, factor: bytes) -> Key:
        return Sm4Key(self.encrypt(factor + invert(factor)))

    def session(self, seed: SessionSeed) -> Key:
        return Sm4Key(self.encrypt(seed + invert(seed)))

    def folded(self) -> Key:
        return self

    def cryptogram(self, challenge: bytes) -> bytes:
        e = self.encrypt(challenge.ljust(16, b"\0"))
        return xor(e[:8], e[8:])
