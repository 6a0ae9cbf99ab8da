"""Keys of secured packets (ota.md §1): CBC from IV zero, and a cryptographic checksum, on kept contexts.

A key of another cipher than card keys', with other rules: no diversification, no session keys, and its 3DES MAC is
plain CBC. It belongs to one thread at a time; its value is never shown.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import IntEnum, unique
from functools import cache
from hmac import compare_digest
from typing import ClassVar

from cardlib.crypto.keys import HiddenValue
from cardlib.errors import BadKcv, ConfigError, FormatError


@unique
class PacketAlgorithm(IntEnum):
    """Low nibble of KIc and KID."""

    DES = 0x1
    AES = 0x2
    TDES2 = 0x5
    TDES3 = 0x9
    DES_ECB = 0xD


class PacketKey(HiddenValue, ABC):
    """One of the keys KIc, KID, KIK of a keyset."""

    algorithm: ClassVar[PacketAlgorithm]
    block: ClassVar[int]
    __slots__ = ()

    @abstractmethod
    def encrypt(self, blocks: bytes) -> bytes:
        """CBC from IV zero over whole blocks, at least one."""

    @abstractmethod
    def decrypt(self, blocks: bytes) -> bytes:
        """Inverse of :meth:`encrypt`."""

    @abstractmethod
    def checksum(self, data: bytes) -> bytes:
        """A CC in full: 8 bytes of 3DES-CBC-MAC, 16 of AES-CMAC, of which a packet carries the first ones."""

    @property
    @abstractmethod
    def kcv(self) -> bytes:
        """Check value of 3 bytes (keys.md): of the encryption of zeros, with AES of the CMAC of 16 zero bytes."""

    @property
    def put_key_kcv(self) -> bytes:
        """The check value that goes with PUT KEY: GlobalPlatform's, which differs from ours for AES."""
        return self.encrypt(b"\x01" * self.block)[:3] if self.algorithm is PacketAlgorithm.AES else self.kcv

    def wrap(self, key: PacketKey) -> bytes:
        """Another key's value as PUT KEY carries it under this KIK: its size first with AES (TS 102 226 §8.2.1.5)."""
        value = key._value
        if self.algorithm is PacketAlgorithm.AES:
            return bytes((len(value),)) + self.encrypt(value + bytes(-len(value) % self.block))
        return b"".join(self.encrypt(value[at : at + 8]) for at in range(0, len(value), 8))  # ECB: each from IV zero

    def unwrap(self, sealed: bytes) -> bytes:
        """Inverse of :meth:`wrap`. Raises FormatError when it is no whole key."""
        size, body = (
            (sealed[0], sealed[1:]) if sealed and self.algorithm is PacketAlgorithm.AES else (len(sealed), sealed)
        )
        if not body or len(body) % self.block or not 0 <= len(body) - size < self.block:
            raise FormatError("PUT KEY: the enciphered key has a wrong length")
        if self.algorithm is PacketAlgorithm.AES:
            return self.decrypt(body)[:size]
        return b"".join(self.decrypt(body[at : at + 8]) for at in range(0, len(body), 8))

    def check(self, kcv: bytes, what: str) -> None:
        """Raise BadKcv unless the check value is the expected one."""
        if not compare_digest(self.kcv, kcv):
            raise BadKcv(f"{what}: check value {self.kcv.hex().upper()} instead of {kcv.hex().upper()}")


@cache
def _kinds() -> dict[tuple[int, int], Callable[[bytes], PacketKey]]:
    from cardlib.crypto.aes import AesPacketKey  # noqa: PLC0415  # they subclass PacketKey
    from cardlib.crypto.des import DesEcbPacketKey, DesPacketKey, Tdes3PacketKey, TdesPacketKey  # noqa: PLC0415  # same

    return {
        (PacketAlgorithm.DES, 8): DesPacketKey,
        (PacketAlgorithm.DES_ECB, 8): DesEcbPacketKey,
        (PacketAlgorithm.TDES2, 16): TdesPacketKey,
        (PacketAlgorithm.TDES3, 24): Tdes3PacketKey,
        (PacketAlgorithm.AES, 16): AesPacketKey,
        (PacketAlgorithm.AES, 24): AesPacketKey,
        (PacketAlgorithm.AES, 32): AesPacketKey,
    }


def key_class(algorithm: int, size: int) -> Callable[[bytes], PacketKey]:
    """What makes keys of that nibble and length. Raises ConfigError when there are none."""
    kind = _kinds().get((algorithm, size))
    if kind is None:
        raise ConfigError(f"no key of secured packets has {size} bytes under algorithm {algorithm:X}")
    return kind


def packet_key(algorithm: int, value: bytes) -> PacketKey:
    """The key of that nibble. Raises ConfigError for a nibble that is not supported or a length that doesn't fit."""
    return key_class(algorithm, len(value))(value)
