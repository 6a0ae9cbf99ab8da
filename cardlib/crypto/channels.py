"""What secure channels of GlobalPlatform cards need beside card keys: CBC of both ciphers, AES-CMAC, derivations.

A channel lives for some commands, so nothing here keeps a context.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.cmac import CMAC

from cardlib.crypto.des import three_part
from cardlib.errors import FormatError


def cbc_encrypt(key: bytes, blocks: bytes, iv: bytes, *, aes: bool) -> bytes:
    """CBC over whole blocks under AES, else 3DES (one to three parts). Raises FormatError when not aligned."""
    return _cipher(key, blocks, iv, aes=aes).encryptor().update(blocks)


def cbc_decrypt(key: bytes, blocks: bytes, iv: bytes, *, aes: bool) -> bytes:
    """Inverse of :func:`cbc_encrypt`."""
    return _cipher(key, blocks, iv, aes=aes).decryptor().update(blocks)


def _cipher(key: bytes, blocks: bytes, iv: bytes, *, aes: bool) -> Cipher[modes.CBC]:
    if len(blocks) % len(iv):
        raise FormatError(f"{len(blocks)} bytes are not whole blocks of {len(iv)}")
    return Cipher(algorithms.AES(key) if aes else three_part(key), modes.CBC(iv))


def aes_cmac(key: bytes, data: bytes) -> bytes:
    """CMAC of SP 800-38B, 16 bytes."""
    mac = CMAC(algorithms.AES(key))
    mac.update(data)
    return mac.finalize()


def kdf(key: bytes, constant: int, context: bytes, size: int) -> bytes:
    """Key derivation in counter mode with CMAC (SP 800-108; GlobalPlatform Amendment D 4.1.5): ``size`` bytes."""
    label = bytes(11) + bytes((constant, 0)) + (size * 8).to_bytes(2, "big")
    blocks = (aes_cmac(key, label + bytes((counter,)) + context) for counter in range(1, -(-size // 16) + 1))
    return b"".join(blocks)[:size]
