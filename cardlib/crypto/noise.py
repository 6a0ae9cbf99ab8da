"""Noise handshakes and sessions (Noise Protocol Framework, revision 34): XXpsk3 and KK over 25519, AESGCM, SHA256.

Clause numbers are those of the framework. A handshake ends with ``split``; a session re-keys (§11.3) before each
65 536th message of a direction. The first error of either ends it for good.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from hashlib import sha256
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cardlib.crypto.sealing import hmac_sha256
from cardlib.errors import Conflict, CryptoError, FormatError, MacMismatch

KEY_SIZE = 32
TAG_SIZE = 16
MAX_MESSAGE = 65_535
REKEY_MESSAGES = 65_536
_MAX_NONCE = (1 << 64) - 1


class _Rules(NamedTuple):
    name: bytes
    known: bool  # both static keys are pre-messages
    messages: tuple[str, ...]


class Pattern(Enum):
    """The handshakes of the link: XXpsk3 at first contact, KK once each end has pinned the other."""

    XX_PSK3 = _Rules(b"Noise_XXpsk3_25519_AESGCM_SHA256", False, ("e", "e ee s es", "s se psk"))
    KK = _Rules(b"Noise_KK_25519_AESGCM_SHA256", True, ("e es ss", "e ee se"))


class StaticKey:
    """An X25519 private key; ``public`` is the 32 bytes that the other end pins."""

    __slots__ = ("_key", "public")

    def __init__(self, private: bytes) -> None:
        """``private`` has 32 bytes. Raises FormatError for another length."""
        if len(private) != KEY_SIZE:
            raise FormatError(f"an X25519 private key has 32 bytes, not {len(private)}")
        self._key = X25519PrivateKey.from_private_bytes(private)
        self.public = self._key.public_key().public_bytes_raw()

    @property
    def private(self) -> bytes:
        """The 32 private bytes: only to be sealed and stored."""
        return self._key.private_bytes_raw()

    def shared(self, public: bytes) -> bytes:
        """The 32-byte shared secret. Raises CryptoError for a public key that gives none."""
        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as e:
            raise CryptoError(f"{public.hex().upper()} is no usable X25519 public key") from e

    def __repr__(self) -> str:
        return f"<StaticKey, public {self.public.hex().upper()}>"

    def __reduce__(self) -> str:
        raise TypeError("a key is not pickled")


def fingerprint(public: bytes) -> bytes:
    """What a label carries of a public key: the first 16 bytes of its SHA-256."""
    return sha256(public).digest()[:16]


def _hkdf(chaining: bytes, material: bytes, count: int) -> list[bytes]:
    """HKDF (§4.3): ``count`` outputs of 32 bytes."""
    key, outputs = hmac_sha256(chaining, material), [b""]
    for number in range(1, count + 1):
        outputs.append(hmac_sha256(key, outputs[-1] + bytes([number])))
    return outputs[1:]


class _Cipher:
    """A CipherState (§5.1) with a key."""

    __slots__ = ("_aead", "nonce")

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)
        self.nonce = 0

    def encrypt(self, aad: bytes, plaintext: bytes) -> bytes:
        sealed = self._aead.encrypt(_nonce(self.nonce), plaintext, aad)
        self.nonce += 1
        return sealed

    def decrypt(self, aad: bytes, sealed: bytes) -> bytes:
        try:
            plaintext = self._aead.decrypt(_nonce(self.nonce), sealed, aad)
        except (InvalidTag, ValueError) as e:
            raise MacMismatch("a Noise message can't be opened: wrong key, or it was changed, lost or replayed") from e
        self.nonce += 1
        return plaintext

    def rekey(self) -> None:
        """REKEY (§4.2): the nonce goes on."""
        self._aead = AESGCM(self._aead.encrypt(_nonce(_MAX_NONCE), bytes(KEY_SIZE), b"")[:KEY_SIZE])


def _nonce(number: int) -> bytes:
    return bytes(4) + number.to_bytes(8, "big")


class Session:
    """The two directions after a handshake. Implicit nonces: a message lost, repeated or changed ends the session."""

    __slots__ = ("_receive", "_send", "closed", "hash", "rekey_messages")

    def __init__(self, send: _Cipher, receive: _Cipher, handshake_hash: bytes, rekey_messages: int) -> None:
        self._send, self._receive = send, receive
        self.hash = handshake_hash
        self.rekey_messages = rekey_messages
        self.closed = False

    def encrypt(self, plaintext: bytes) -> bytes:
        """The next message: ciphertext and 16-byte tag. Raises Conflict after the end, FormatError when too long."""
        if len(plaintext) + TAG_SIZE > MAX_MESSAGE:
            raise FormatError(f"{len(plaintext)} bytes do not fit a Noise message")
        self._ready(self._send)
        return self._send.encrypt(b"", plaintext)

    def decrypt(self, message: bytes) -> bytes:
        """Open the next message. Raises MacMismatch, and the session is over; Conflict after that."""
        self._ready(self._receive)
        try:
            return self._receive.decrypt(b"", message)
        except MacMismatch:
            self.closed = True
            raise

    def _ready(self, cipher: _Cipher) -> None:
        if self.closed:
            raise Conflict("this session is over: start a new one")
        if cipher.nonce and cipher.nonce % self.rekey_messages == 0:
            cipher.rekey()


class Handshake:
    """One handshake, message by message: each end calls ``write`` and ``read`` in turn until ``finished``.

    ``psk`` (32 bytes) belongs to XXpsk3, ``remote`` (the other's static public key) to KK. ``ephemeral`` is drawn
    from ``random_bytes``. ``remote`` is known after message 2 (initiator) or 3 (responder) of XXpsk3.
    """

    def __init__(
        self,
        pattern: Pattern,
        static: StaticKey,
        random_bytes: Callable[[int], bytes],
        *,
        initiator: bool,
        prologue: bytes = b"",
        remote: bytes = b"",
        psk: bytes = b"",
        rekey_messages: int = REKEY_MESSAGES,
    ) -> None:
        rules = pattern.value
        if len(remote) != KEY_SIZE * rules.known or len(psk) != KEY_SIZE * (not rules.known):
            raise FormatError(f"{pattern.name}: a key or pre-shared key of 32 bytes is missing, or one too many")
        self.remote, self._psk, self._static = remote, psk, static
        self._initiator, self._rekey_messages = initiator, rekey_messages
        self._ephemeral = StaticKey(random_bytes(KEY_SIZE))
        self._remote_ephemeral = b""
        self._messages = [message.split() for message in rules.messages]
        self._sending = initiator
        self._cipher: _Cipher | None = None
        self._failed = False
        self._chaining = self.hash = rules.name.ljust(KEY_SIZE, b"\0")  # §5.2: names of at most 32 bytes as they are
        self._mix_hash(prologue)
        if rules.known:
            for public in (static.public, remote) if initiator else (remote, static.public):
                self._mix_hash(public)

    @property
    def finished(self) -> bool:
        """Whether all messages have passed."""
        return not self._messages

    def write(self, payload: bytes = b"") -> bytes:
        """The next message. Raises Conflict when it is not this end's turn."""
        out = b""
        for word in self._begin(sending=True):
            if word == "e":
                out += self._ephemeral.public
                self._mix_ephemeral(self._ephemeral.public)
            elif word == "s":
                out += self._seal(self._static.public)
            else:
                self._mix_token(word)
        return out + self._seal(payload)

    def read(self, message: bytes) -> bytes:
        """Take the other's next message and return its payload.

        Raises MacMismatch, CryptoError, FormatError, and the handshake is over; Conflict when it is not the other's
        turn.
        """
        tokens = self._begin(sending=False)
        self._failed = True  # until it has succeeded
        for word in tokens:
            if word == "e":
                self._remote_ephemeral, message = _cut(message, KEY_SIZE)
                self._mix_ephemeral(self._remote_ephemeral)
            elif word == "s":
                sealed, message = _cut(message, KEY_SIZE + TAG_SIZE * (self._cipher is not None))
                self.remote = self._open(sealed)
            else:
                self._mix_token(word)
        payload = self._open(message)
        self._failed = False
        return payload

    def split(self) -> Session:
        """The session (§5.2 Split). Raises Conflict before the handshake is finished."""
        if not self.finished or self._failed:
            raise Conflict("this handshake is not finished")
        first, second = (_Cipher(key) for key in _hkdf(self._chaining, b"", 2))
        send, receive = (first, second) if self._initiator else (second, first)
        return Session(send, receive, self.hash, self._rekey_messages)

    def _begin(self, *, sending: bool) -> list[str]:
        if self._failed or self.finished or self._sending is not sending:
            raise Conflict("this handshake has failed, is finished, or waits for the other end")
        self._sending = not sending
        return self._messages.pop(0)

    def _mix_hash(self, data: bytes) -> None:
        self.hash = sha256(self.hash + data).digest()

    def _mix_key(self, material: bytes) -> None:
        self._chaining, key = _hkdf(self._chaining, material, 2)
        self._cipher = _Cipher(key)

    def _mix_ephemeral(self, public: bytes) -> None:
        self._mix_hash(public)
        if self._psk:
            self._mix_key(public)  # §9.2

    def _mix_token(self, word: str) -> None:
        """``psk`` (§9.1), or a DH named by whose keys it takes: the initiator's first."""
        if word == "psk":
            self._chaining, middle, key = _hkdf(self._chaining, self._psk, 3)
            self._mix_hash(middle)
            self._cipher = _Cipher(key)
            return
        mine, theirs = tuple(word) if self._initiator else tuple(reversed(word))
        key_pair = self._ephemeral if mine == "e" else self._static
        self._mix_key(key_pair.shared(self._remote_ephemeral if theirs == "e" else self.remote))

    def _seal(self, plaintext: bytes) -> bytes:
        sealed = plaintext if self._cipher is None else self._cipher.encrypt(self.hash, plaintext)
        self._mix_hash(sealed)
        return sealed

    def _open(self, sealed: bytes) -> bytes:
        plaintext = sealed if self._cipher is None else self._cipher.decrypt(self.hash, sealed)
        self._mix_hash(sealed)
        return plaintext


def _cut(message: bytes, size: int) -> tuple[bytes, bytes]:
    if len(message) < size:
        raise FormatError("a handshake message is cut off")
    return message[:size], message[size:]
