"""A key as an oracle, and the account of what master keys are used for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from cardlib.crypto import Algorithm, Key
from cardlib.errors import CryptoError, FormatError
from keymgmt.keys import KeyRef

FLUSH_USES = 1000

OnUse = Callable[[KeyRef, str, int], None]
"""Told of each use of a root or enterprise key: which, what for, how many times."""


class KeyHandle:
    """One key as an oracle. A master key (``levels`` above 0) can only be diversified, checked and wrapped.

    So nobody can have a master key encipher a diversification factor and get a card's key in clear.
    A handle belongs to one thread at a time.
    """

    __slots__ = ("_key", "_used", "levels", "name")

    def __init__(self, key: Key, name: str, levels: int = 0, used: Callable[[int], None] | None = None) -> None:
        self._key = key
        self._used = used
        self.name = name
        self.levels = levels

    def __repr__(self) -> str:
        return f"<KeyHandle {self.name}>"

    def __reduce__(self) -> str:
        raise TypeError("a key is not pickled")

    @property
    def algorithm(self) -> Algorithm:
        """Algorithm of the key."""
        return self._key.algorithm

    @property
    def kcv(self) -> bytes:
        """Check value of 3 bytes."""
        return self._key.kcv

    def derive(self, *factors: bytes) -> KeyHandle:
        """Descend one level for each 8-byte factor (card.md §1.4). Raises CryptoError when there are too many."""
        if len(factors) > self.levels:
            raise CryptoError(f"key {self.name} can't be diversified {len(factors)} times more")
        key, levels = self._key, self.levels
        for factor in factors:
            if len(factor) != 8:
                raise FormatError(f"a diversification factor has 8 bytes, not {len(factor)}")
            key, levels = key.diversify(factor), levels - 1
        self._count()
        name = "/".join((self.name, *(factor.hex().upper() for factor in factors)))
        return KeyHandle(key, name, levels, self._used if levels else None)

    def encrypt(self, data: bytes) -> bytes:
        """ECB over whole blocks."""
        return self._final().encrypt(data)

    def answer(self, challenge: bytes) -> bytes:
        """What INTERNAL AUTHENTICATE answers: ECB, zero-padded to a block (card.md §12)."""
        key = self._final()
        return key.encrypt(challenge + bytes(-len(challenge) % key.block))

    def cryptogram(self, challenge: bytes) -> bytes:
        """8 bytes for EXTERNAL AUTHENTICATE."""
        return self._final().cryptogram(challenge)

    def session(self, seed: bytes) -> KeyHandle:
        """Session key of one transaction over 8 bytes (card.md §1.5)."""
        return KeyHandle(self._final().session(seed), f"session of {self.name}")

    def mac(self, data: bytes, challenge: bytes = b"") -> bytes:
        """4-byte MAC (card.md §1.3, §1.6)."""
        return self._final().mac(data, challenge)

    def verify(self, data: bytes, mac: bytes, what: str, challenge: bytes = b"") -> None:
        """Compare a MAC. Raises MacMismatch naming ``what``."""
        self._final().verify(data, mac, what, challenge)

    def tac(self, data: bytes) -> bytes:
        """Transaction proof of 4 bytes."""
        return self._final().tac(data)

    def verify_tac(self, data: bytes, tac: bytes, what: str = "TAC") -> None:
        """Compare a TAC. Raises MacMismatch naming ``what``."""
        self._final().folded().verify(data, tac, what)

    def seal(self, data: bytes) -> bytes:
        """Encipher ``LD || data`` for secure messaging (card.md §1.2)."""
        return self._final().seal(data)

    def wrap(self, child: KeyHandle, header: bytes) -> bytes:
        """Encipher ``LD || header || value of child``: the E of WRITE KEY (card.md §6.4, §7.7)."""
        child._count()
        return self._final().seal_key(header, child._key)

    def _count(self) -> None:
        if self._used:
            self._used(1)

    def _final(self) -> Key:
        if self.levels:
            raise CryptoError(f"key {self.name} is a master key: only its children are used")
        return self._key


class UseLog:
    """Counts uses of master keys under a text, so that a batch of cards makes a few audit events, not thousands."""

    def __init__(self, on_use: OnUse | None) -> None:
        self._on_use = on_use
        self._job: ContextVar[tuple[str, dict[KeyRef, int]] | None] = ContextVar("job", default=None)

    @contextmanager
    def using(self, text: str) -> Iterator[None]:
        """Say what the keys used inside are used for. The first use of each is told at once, the rest at the end."""
        seen: dict[KeyRef, int] = {}
        token = self._job.set((text, seen))
        try:
            yield
        finally:
            self._job.reset(token)
            for ref, count in seen.items():
                self._tell(ref, text, count)

    def count(self, ref: KeyRef, uses: int = 1) -> None:
        """Take note of uses of a key."""
        job = self._job.get()
        if job is None:
            self._tell(ref, "single use", uses)
            return
        text, seen = job
        if ref not in seen or seen[ref] + uses >= FLUSH_USES:
            self._tell(ref, text, seen.get(ref, 0) + uses)
            seen[ref] = 0
        else:
            seen[ref] += uses

    def _tell(self, ref: KeyRef, text: str, count: int) -> None:
        if self._on_use and count:
            self._on_use(ref, text, count)
