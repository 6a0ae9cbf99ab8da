"""Ed25519 signatures (RFC 8032): lists, exports, releases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cardlib.errors import FormatError, MacMismatch


class SigningKey:
    """A private signing key; ``public`` is the 32 bytes that verifiers hold."""

    __slots__ = ("_key",)

    def __init__(self, seed: bytes) -> None:
        """``seed`` is the 32-byte private value. Raises FormatError for another length."""
        if len(seed) != 32:
            raise FormatError(f"an Ed25519 private key has 32 bytes, not {len(seed)}")
        self._key = Ed25519PrivateKey.from_private_bytes(seed)

    @classmethod
    def generate(cls, random_bytes: Callable[[int], bytes]) -> Self:
        """Make a new key."""
        return cls(random_bytes(32))

    @property
    def seed(self) -> bytes:
        """The 32-byte private value: only to be sealed and stored."""
        return self._key.private_bytes_raw()

    @property
    def public(self) -> bytes:
        """32 bytes."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """64-byte signature."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"<SigningKey, public {self.public.hex().upper()}>"

    def __reduce__(self) -> str:
        raise TypeError("a key is not pickled")


def verify(public: bytes, message: bytes, signature: bytes) -> None:
    """Check a signature. Raises MacMismatch when it is wrong, FormatError when ``public`` is no key."""
    try:
        key = Ed25519PublicKey.from_public_bytes(public)
    except ValueError as e:
        raise FormatError(f"{len(public)} bytes are no Ed25519 public key") from e
    try:
        key.verify(signature, message)
    except InvalidSignature as e:
        raise MacMismatch(f"the signature is not one of key {public.hex().upper()}") from e
