"""AES-128 as OSDP's secure channel and other serial protocols use it: blocks, CBC, and nothing else."""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from cardlib.crypto.chain import CbcMac
from cardlib.errors import FormatError

BLOCK = 16


class AesKey:
    """An AES-128 key with kept cipher contexts; it belongs to one thread at a time and is never shown."""

    __slots__ = ("_cbc", "_chain", "_decrypt", "_last", "encrypt_block")

    def __init__(self, value: bytes) -> None:
        """``value`` is 16 bytes. Raises FormatError for another length."""
        if len(value) != BLOCK:
            raise FormatError(f"an AES-128 key has {BLOCK} bytes, not {len(value)}")
        algorithm = algorithms.AES(value)
        ecb = Cipher(algorithm, modes.ECB())
        self.encrypt_block = ecb.encryptor().update
        self._decrypt = ecb.decryptor().update
        self._chain = CbcMac(algorithm)
        self._cbc = Cipher(algorithm, modes.CBC(bytes(BLOCK))).encryptor().update
        self._last = 0

    def chain(self, blocks: bytes, iv: int) -> bytes:
        """Last ciphertext block of ``blocks`` (at least one) in CBC from ``iv``: the inner part of a CBC-MAC."""
        return self._chain(blocks, iv)

    def cbc_encrypt(self, blocks: bytes, iv: int) -> bytes:
        """CBC over whole blocks, at least one, from ``iv``; the kept context gets it by the first block (chain.py)."""
        first = int.from_bytes(blocks[:BLOCK], "big") ^ iv ^ self._last
        out = self._cbc(first.to_bytes(BLOCK, "big") + blocks[BLOCK:])
        self._last = int.from_bytes(out[-BLOCK:], "big")
        return out

    def cbc_decrypt(self, blocks: bytes, iv: int) -> bytes:
        """Inverse of ``cbc_encrypt``. Raises FormatError when it is no row of whole blocks."""
        if not blocks or len(blocks) % BLOCK:
            raise FormatError(f"{len(blocks)} bytes of ciphertext are no row of {BLOCK}-byte blocks")
        before = iv.to_bytes(BLOCK, "big") + blocks[:-BLOCK]
        plain = int.from_bytes(self._decrypt(blocks), "big") ^ int.from_bytes(before, "big")
        return plain.to_bytes(len(blocks), "big")

    def __repr__(self) -> str:
        return "<AesKey>"

    def __reduce__(self) -> str:
        raise TypeError("a key is not pickled")
