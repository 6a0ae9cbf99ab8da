"""What a site's authority signs for the link: installers' tokens, and files meant for one terminal.

A token is ``CBOR {1 X25519 public, 2 Ed25519 public, 3 name, 4 sites, 5 verbs, 6 not before, 7 not after, 8 id} |
Ed25519 signature 64``. A signed file is ``"OCSF" 01 | head length 2 | head | body | signature 64`` over all before,
head a CBOR map {1 kind, 2 terminal's serial, 3 version, 4 created at, 5 revoked token ids}. Times are UTC ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from cardlib.crypto.signing import verify
from cardlib.errors import FormatError
from cardlib.wire import cbor
from cardlib.wire.link import good_serial

SIGNATURE = 64
SECOND_LABEL = b"OCSO1"
MAX_TOKEN = 1024
MAX_TOKEN_MS = 30 * 86_400_000
MAX_TIME_MS = 1 << 48
FILE_MAGIC = b"OCSF\x01"
MAX_FILE_HEAD = 8192


class Signer(Protocol):
    """What signs: ``cardlib.crypto.signing.SigningKey``, or a key that stays in its module."""

    def sign(self, message: bytes) -> bytes:
        """64-byte Ed25519 signature."""


@dataclass(frozen=True, slots=True)
class Token:
    """The authority's word that these keys are an installer's, for which sites and verbs, and until when."""

    x25519: bytes
    ed25519: bytes
    name: str
    sites: tuple[str, ...]
    verbs: tuple[str, ...]
    not_before_ms: int
    not_after_ms: int
    token_id: bytes

    def encode(self, authority: Signer) -> bytes:
        """Signed token. Raises FormatError when a field is out of range, say longer than 30 days."""
        self._check()
        values = (
            self.x25519, self.ed25519, self.name, list(self.sites), list(self.verbs),
            self.not_before_ms, self.not_after_ms, self.token_id,
        )  # fmt: skip
        message = cbor.encode(dict(enumerate(values, 1)))
        if len(message) + SIGNATURE > MAX_TOKEN:
            raise FormatError(f"token of {len(message) + SIGNATURE} bytes, more than {MAX_TOKEN}")
        return message + authority.sign(message)

    @classmethod
    def decode(cls, raw: bytes, authority: bytes | None) -> Token:
        """Check the signature of ``authority`` (None: not known yet, not checked), then parse.

        Raises MacMismatch, FormatError.
        """
        if not SIGNATURE < len(raw) <= MAX_TOKEN:
            raise FormatError(f"{len(raw)} bytes are no token")
        if authority is not None:
            verify(authority, raw[:-SIGNATURE], raw[-SIGNATURE:])
        types = {1: bytes, 2: bytes, 3: str, 4: list, 5: list, 6: int, 7: int, 8: bytes}
        x25519, ed25519, name, sites, verbs, start, end, token_id = cbor.decode_map(raw[:-SIGNATURE], "token", types)
        if any(type(one) is not str for one in [*sites, *verbs]):
            raise FormatError("token: a site or verb is no text")
        token = cls(x25519, ed25519, name, tuple(sites), tuple(verbs), start, end, token_id)
        token._check()
        return token

    def _check(self) -> None:
        if len(self.x25519) != 32 or len(self.ed25519) != 32 or not 1 <= len(self.token_id) <= 32:
            raise FormatError("token: a key or the id has a wrong length")
        if not self.name or any(len(one) > 64 for one in (self.name, *self.sites, *self.verbs)):
            raise FormatError("token: name, site or verb is empty or too long")
        if not 0 <= self.not_before_ms < self.not_after_ms < MAX_TIME_MS:
            raise FormatError("token: its times are out of order")
        if self.not_after_ms - self.not_before_ms > MAX_TOKEN_MS:
            raise FormatError("token: it lasts at most 30 days")


def second_message(session_hash: bytes, verb: str) -> bytes:
    """What a second operator signs, to allow one act of a verb in one session (the hash is that of its handshake)."""
    return SECOND_LABEL + session_hash + verb.encode()


def kind_of(raw: bytes) -> str:
    """What a signed file says it is, not checked; "" when it is none."""
    start = len(FILE_MAGIC) + 2
    if not raw.startswith(FILE_MAGIC):
        return ""
    head = cbor.decode(raw[start : start + int.from_bytes(raw[start - 2 : start], "big")], "signed file")
    return str(head.get(1, "")) if isinstance(head, dict) else ""


@dataclass(frozen=True, slots=True)
class SignedFile:
    """A file that only one terminal may take: its configuration (``config``), the keys of its readers (``keys``).

    Software (``firmware``) may name a model instead of a serial.
    """

    kind: str
    serial: str
    version: int
    created_ms: int
    body: bytes
    revoked: tuple[bytes, ...] = ()

    def encode(self, authority: Signer) -> bytes:
        """Signed file. Raises FormatError when a field is out of range."""
        self._check()
        values = (self.kind, self.serial, self.version, self.created_ms, list(self.revoked))
        head = cbor.encode(dict(enumerate(values, 1)))
        if len(head) > MAX_FILE_HEAD:
            raise FormatError("signed file: too many revoked tokens")
        message = FILE_MAGIC + len(head).to_bytes(2, "big") + head + self.body
        return message + authority.sign(message)

    @classmethod
    def decode(cls, raw: bytes, authority: bytes) -> SignedFile:
        """Check the signature, then parse. Raises MacMismatch, FormatError."""
        start = len(FILE_MAGIC) + 2
        if not raw.startswith(FILE_MAGIC) or len(raw) < start + SIGNATURE:
            raise FormatError("this is no signed file for a terminal")
        verify(authority, raw[:-SIGNATURE], raw[-SIGNATURE:])
        size = int.from_bytes(raw[start - 2 : start], "big")
        if size > min(MAX_FILE_HEAD, len(raw) - start - SIGNATURE):
            raise FormatError("signed file: the head is longer than the file")
        types = {1: str, 2: str, 3: int, 4: int, 5: list}
        kind, serial, version, created_ms, revoked = cbor.decode_map(raw[start : start + size], "signed file", types)
        if any(type(one) is not bytes or len(one) > 32 for one in revoked):
            raise FormatError("signed file: a revoked token is no id")
        file = cls(kind, serial, version, created_ms, raw[start + size : -SIGNATURE], tuple(revoked))
        file._check()
        return file

    def _check(self) -> None:
        if not 1 <= len(self.kind) <= 16 or not good_serial(self.serial):
            raise FormatError("signed file: kind or serial is none")
        if not 1 <= self.version < 1 << 31 or not 0 <= self.created_ms < MAX_TIME_MS:
            raise FormatError("signed file: version or time is out of range")
