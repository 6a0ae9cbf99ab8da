"""Keeping secrets at rest: AES-256-GCM, Argon2id, HKDF, HMAC; sealed to a public key with X25519."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hmac import compare_digest, digest

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cardlib.errors import ConfigError, FormatError, MacMismatch

NONCE_SIZE = 12
TAG_SIZE = 16
MAX_MEMORY_KIB = 1 << 20
MAX_ITERATIONS = 64


@dataclass(frozen=True, slots=True)
class Argon2Params:
    """Cost of turning a passphrase into a key; the defaults are RFC 9106's second recommendation."""

    memory_kib: int = 1 << 16
    iterations: int = 3
    lanes: int = 4

    def check(self) -> None:
        """Raises ConfigError: parameters come from files, and a hostile one must not eat all memory."""
        if not (1 <= self.lanes <= 64 and 1 <= self.iterations <= MAX_ITERATIONS):
            raise ConfigError("Argon2id: iterations or lanes are out of range")
        if not 8 * self.lanes <= self.memory_kib <= MAX_MEMORY_KIB:
            raise ConfigError(f"Argon2id: memory must be {8 * self.lanes} to {MAX_MEMORY_KIB} KiB")


def argon2id(passphrase: bytes, salt: bytes, params: Argon2Params) -> bytes:
    """Derive 32 bytes from a passphrase and a salt of at least 16 bytes. Raises ConfigError."""
    params.check()
    if len(salt) < 16:
        raise ConfigError("Argon2id: a salt has at least 16 bytes")
    kdf = Argon2id(
        salt=salt, length=32, iterations=params.iterations, lanes=params.lanes, memory_cost=params.memory_kib
    )
    return kdf.derive(passphrase)


def hkdf(key: bytes, info: bytes, length: int = 32, salt: bytes = b"") -> bytes:
    """HKDF-SHA256 (RFC 5869)."""
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(key)


def hmac_sha256(key: bytes, message: bytes) -> bytes:
    """32-byte HMAC."""
    return digest(key, message, "sha256")


def verify_hmac(key: bytes, message: bytes, tag: bytes, what: str) -> None:
    """Compare in constant time. Raises MacMismatch naming ``what``."""
    if not compare_digest(hmac_sha256(key, message), tag):
        raise MacMismatch(f"{what} is wrong")


def aes_check_value(key: bytes) -> bytes:
    """Check value of an AES key: first 3 bytes of AES-CMAC over 16 zero bytes (keys.md, Hierarchy)."""
    mac = CMAC(AES(key))
    mac.update(bytes(16))
    return mac.finalize()[:3]


def seal(key: bytes, plaintext: bytes, aad: bytes, random_bytes: Callable[[int], bytes]) -> bytes:
    """AES-256-GCM: random nonce 12 || ciphertext || tag 16, bound to ``aad``. Raises FormatError for a key not 32."""
    nonce = random_bytes(NONCE_SIZE)
    return nonce + _aead(key).encrypt(nonce, plaintext, aad)


def unseal(key: bytes, sealed: bytes, aad: bytes, what: str = "the sealed data") -> bytes:
    """Inverse of :func:`seal`. Raises MacMismatch when key, data or ``aad`` differ."""
    try:
        return _aead(key).decrypt(sealed[:NONCE_SIZE], sealed[NONCE_SIZE:], aad)
    except (InvalidTag, ValueError) as e:
        raise MacMismatch(f"{what} can't be opened: wrong key, or it was changed") from e


def public_of(private: bytes) -> bytes:
    """X25519 public key (RFC 7748) of a private one; both have 32 bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def seal_to(public: bytes, plaintext: bytes, aad: bytes, random_bytes: Callable[[int], bytes]) -> bytes:
    """Seal to who holds the private key: one-time public key 32 || what :func:`seal` gives, bound to ``aad``.

    The key comes from HKDF over the X25519 secret and both public keys. The one-time private key is forgotten, so
    not even the sender can open it. Raises MacMismatch for a public key that no private key has.
    """
    once = X25519PrivateKey.from_private_bytes(random_bytes(32))
    mine = once.public_key().public_bytes_raw()
    return mine + seal(_agreed(once, public, mine + public), plaintext, aad, random_bytes)


def unseal_from(private: bytes, sealed: bytes, aad: bytes, what: str = "the sealed data") -> bytes:
    """Inverse of :func:`seal_to`. Raises MacMismatch when key, data or ``aad`` differ."""
    own, theirs = X25519PrivateKey.from_private_bytes(private), sealed[:32]
    return unseal(_agreed(own, theirs, theirs + public_of(private)), sealed[32:], aad, what)


def _agreed(own: X25519PrivateKey, theirs: bytes, both: bytes) -> bytes:
    try:
        secret = own.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError as e:  # not 32 bytes, or of low order
        raise MacMismatch("the public key of what is sealed can't be right") from e
    return hkdf(secret, b"onecard sealed to a public key" + both)


def _aead(key: bytes) -> AESGCM:
    if len(key) != 32:
        raise FormatError(f"an AES-256 key has 32 bytes, not {len(key)}")
    return AESGCM(key)
