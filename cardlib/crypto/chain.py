"""CBC and CBC-MAC on kept contexts."""

from __future__ import annotations

from collections.abc import Callable

from cryptography.hazmat.primitives.ciphers import BlockCipherAlgorithm, Cipher, modes

_FROM_ZERO = {block: modes.CBC(bytes(block)) for block in (8, 16)}


class CbcMac:
    """CBC chaining over one kept encryptor.

    A context can't be given a new IV, so the first block carries the XOR of the old chaining value and
    the new IV: the cipher sees the same input as a fresh context would, and the key schedule is saved.
    """

    __slots__ = ("_block", "_last", "_update")

    def __init__(self, algorithm: BlockCipherAlgorithm) -> None:
        self._block = algorithm.block_size // 8
        self._update = Cipher(algorithm, _FROM_ZERO[self._block]).encryptor().update
        self._last = 0

    def __call__(self, padded: bytes, iv: int) -> bytes:
        """Return the last ciphertext block of ``padded`` (at least one block) chained from ``iv``."""
        block = self._block
        first = int.from_bytes(padded[:block], "big") ^ iv ^ self._last
        out = self._update(first.to_bytes(block, "big") + padded[block:])[-block:]
        self._last = int.from_bytes(out, "big")
        return out


class Cbc:
    """CBC from IV zero on kept contexts, made at first use; the first block carries what was chained before."""

    __slots__ = ("_algorithm", "_block", "_decrypt", "_encrypt", "_read", "_sent")

    def __init__(self, algorithm: BlockCipherAlgorithm) -> None:
        self._algorithm = algorithm
        self._block = algorithm.block_size // 8
        self._encrypt: Callable[[bytes], bytes] | None = None
        self._decrypt: Callable[[bytes], bytes] | None = None
        self._sent = self._read = 0

    def encrypt(self, blocks: bytes) -> bytes:
        """Encipher whole blocks, at least one."""
        update, block = self._encrypt, self._block
        if update is None:
            update = self._encrypt = Cipher(self._algorithm, _FROM_ZERO[block]).encryptor().update
        elif self._sent:
            first = int.from_bytes(blocks[:block], "big") ^ self._sent
            blocks = first.to_bytes(block, "big") + blocks[block:]
        out = update(blocks)
        self._sent = int.from_bytes(out[-block:], "big")
        return out

    def decrypt(self, blocks: bytes) -> bytes:
        """Decipher whole blocks, at least one."""
        update, block = self._decrypt, self._block
        if update is None:
            update = self._decrypt = Cipher(self._algorithm, _FROM_ZERO[block]).decryptor().update
        out = update(blocks)
        if self._read:
            first = int.from_bytes(out[:block], "big") ^ self._read
            out = first.to_bytes(block, "big") + out[block:]
        self._read = int.from_bytes(blocks[-block:], "big")
        return out
