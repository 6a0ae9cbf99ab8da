"""AES as OSDP's secure channel and other serial protocols use it (AES-128), and as secured packets do."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.cmac import CMAC

from cardlib.crypto.chain import Cbc, CbcMac
from cardlib.crypto.packets import PacketAlgorithm, PacketKey
from cardlib.errors import FormatError

BLOCK = 16
_PADDING = b"\x80" + bytes(BLOCK - 1)


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


class AesPacketKey(PacketKey):
    """AES of 16, 24 or 32 bytes: CBC, and CMAC (SP 800-38B)."""

    algorithm: ClassVar[PacketAlgorithm] = PacketAlgorithm.AES
    block: ClassVar[int] = BLOCK
    __slots__ = ("_cbc", "_fresh", "_last", "_subkeys", "_update")

    def __init__(self, value: bytes) -> None:
        super().__init__(value)
        self._cbc: Cbc | None = None
        self._update: Callable[[bytes], bytes] | None = None
        self._last, self._subkeys, self._fresh = 0, (0, 0), True

    def _cipher(self) -> Cbc:
        cbc = self._cbc
        if cbc is None:
            cbc = self._cbc = Cbc(algorithms.AES(self._value))
        return cbc

    def encrypt(self, blocks: bytes) -> bytes:
        return (self._cbc or self._cipher()).encrypt(blocks)

    def decrypt(self, blocks: bytes) -> bytes:
        return self._cipher().decrypt(blocks)

    def checksum(self, data: bytes) -> bytes:
        update = self._update
        if update is None:
            if self._fresh:  # in a batch a key is used once: for that a context to keep costs more than it brings
                self._fresh = False
                mac = CMAC(algorithms.AES(self._value))
                mac.update(data)
                return mac.finalize()
            update = self._update = Cipher(algorithms.AES(self._value), modes.CBC(bytes(BLOCK))).encryptor().update
            self._last = int.from_bytes(update(bytes(BLOCK)), "big")
            whole = _doubled(self._last)
            self._subkeys = (whole, _doubled(whole))
        size = len(data)
        spare = -size % BLOCK if size else BLOCK
        if spare:
            data += _PADDING[:spare]
            size += spare
        # The subkey goes into the last block, and what the kept context chained before into the first (chain.py).
        mixed = int.from_bytes(data, "big") ^ self._subkeys[spare > 0] ^ self._last << 8 * (size - BLOCK)
        out = update(mixed.to_bytes(size, "big"))[-BLOCK:]
        self._last = int.from_bytes(out, "big")
        return out

    @property
    def kcv(self) -> bytes:
        return self.checksum(bytes(BLOCK))[:3]


def _doubled(value: int) -> int:
    """Twice in GF(2^128), as SP 800-38B makes its subkeys."""
    return (value << 1 ^ 0x87) & (1 << 128) - 1 if value >> 127 else value << 1
