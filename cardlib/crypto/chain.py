"""CBC-MAC on a kept context."""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import BlockCipherAlgorithm, Cipher, modes


class CbcMac:
    """CBC chaining over one kept encryptor.

    A context can't be given a new IV, so the first block carries the XOR of the old chaining value and
    the new IV: the cipher sees the same input as a fresh context would, and the key schedule is saved.
    """

    __slots__ = ("_block", "_last", "_update")

    def __init__(self, algorithm: BlockCipherAlgorithm) -> None:
        self._block = algorithm.block_size // 8
        self._update = Cipher(algorithm, modes.CBC(bytes(self._block))).encryptor().update
        self._last = 0

    def __call__(self, padded: bytes, iv: int) -> bytes:
        """Return the last ciphertext block of ``padded`` (at least one block) chained from ``iv``."""
        block = self._block
        first = int.from_bytes(padded[:block], "big") ^ iv ^ self._last
        out = self._update(first.to_bytes(block, "big") + padded[block:])[-block:]
        self._last = int.from_bytes(out, "big")
        return out
