"""A key as an oracle, and the account of what master keys are used for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, overload

from cardlib.crypto import Algorithm, Key, SessionSeed, make_key
from cardlib.crypto.packets import PacketKey
from cardlib.errors import CryptoError, FormatError
from keymgmt.keys import KeyRef

FLUSH_USES = 1000
SHARE = 8 * 4096
"""Bytes of factors below which another thread costs more than it brings."""
CORES = os.cpu_count() or 1

OnUse = Callable[[KeyRef, str, int], None]
"""Told of each use of a root or enterprise key: which, what for, how many times."""


class Master(Protocol):
    """What a store keeps of a master key: it can be diversified and checked. A ``Key`` in memory is one."""

    @property
    def algorithm(self) -> Algorithm:
        """Algorithm of the key."""

    @property
    def kcv(self) -> bytes:
        """Check value of 3 bytes."""

    def diversify(self, factor: bytes) -> Master:
        """Child for an 8-byte factor (card.md §1.4): the next master, or at the last level a ``Key``."""

    def diversify_many(self, factors: bytes) -> bytes:
        """Values of the children for many 8-byte factors, one behind the other: 16 bytes each, in one call."""

    def for_writing(self) -> Key:
        """The key in this process's memory, for one payload. Raises CryptoError where its module keeps it."""


class KeyHandle:
    """One key as an oracle. A master key (``levels`` above 0) can only be diversified, checked and wrapped.

    So nobody can have a master key encipher a diversification factor and get a card's key in clear.
    A handle belongs to one thread at a time.
    """

    __slots__ = ("_key", "_used", "levels", "name")

    def __init__(self, key: Master, name: str, levels: int = 0, used: Callable[[int], None] | None = None) -> None:
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
        self.count()
        name = "/".join((self.name, *(factor.hex().upper() for factor in factors)))
        return KeyHandle(key, name, levels, self._used if levels else None)

    def derive_many(self, serials: Sequence[bytes] | bytes) -> KeyBatch:
        """The keys of many cards in one call to the store: serials of 8 bytes, listed or one behind the other.

        Raises CryptoError unless exactly one level is left, FormatError for a serial of another size.
        """
        if self.levels != 1:
            raise CryptoError(f"key {self.name}: a batch descends the last level only")
        factors = serials if isinstance(serials, bytes) else b"".join(serials)
        if len(factors) % 8 or (not isinstance(serials, bytes) and len(factors) != 8 * len(serials)):
            raise FormatError("a diversification factor has 8 bytes")
        self.count(len(factors) // 8)
        return KeyBatch(self.name, self.algorithm, factors, _diversify_many(self._key, factors))

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

    def session(self, seed: SessionSeed) -> KeyHandle:
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
        """Encipher ``LD || header || value of child``: the E of WRITE KEY (card.md §6.4, §7.7).

        Raises CryptoError when the child's value is in a module that does not let it out.
        """
        child.count()
        return self._final().seal_key(header, child._key.for_writing())

    def for_packets(self, algorithm: int) -> PacketKey:
        """The key of one card as secured packets use it (ota.md §1). Raises CryptoError for a master key."""
        return self._final().for_packets(algorithm)

    def count(self, uses: int = 1) -> None:
        """Tell the store of uses of a master key."""
        if self._used:
            self._used(uses)

    def _final(self) -> Key:
        if self.levels or not isinstance(self._key, Key):
            raise CryptoError(f"key {self.name} is a master key: only its children are used")
        return self._key


def _diversify_many(key: Master, factors: bytes) -> bytes:
    """Values of many children; a key in memory has every core encipher a share, as ciphers let other threads run."""
    size = max(SHARE, -(-len(factors) // (8 * CORES)) * 8)
    if len(factors) <= size or not isinstance(key, Key):
        return key.diversify_many(factors)
    shares = [factors[at : at + size] for at in range(0, len(factors), size)]
    with ThreadPoolExecutor(len(shares)) as pool:
        return b"".join(pool.map(lambda share: key.copy().diversify_many(share), shares))


class KeyBatch(Sequence[KeyHandle]):
    """The keys of many cards, derived in one go; each becomes a key when it is asked for, and is not kept."""

    __slots__ = ("_algorithm", "_factors", "_name", "_values")

    def __init__(self, name: str, algorithm: Algorithm, factors: bytes, values: bytes) -> None:
        self._name, self._algorithm, self._factors, self._values = name, algorithm, factors, values

    def __repr__(self) -> str:
        return f"<KeyBatch {self._name}, {len(self)} keys>"

    def __reduce__(self) -> str:
        raise TypeError("keys are not pickled")

    def __len__(self) -> int:
        return len(self._values) // 16

    @overload
    def __getitem__(self, index: int) -> KeyHandle: ...
    @overload
    def __getitem__(self, index: slice) -> list[KeyHandle]: ...
    def __getitem__(self, index: int | slice) -> KeyHandle | list[KeyHandle]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        at = index + len(self) if index < 0 else index
        if not 0 <= at < len(self):
            raise IndexError(index)
        key = make_key(self._values[16 * at : 16 * at + 16], self._algorithm)
        return KeyHandle(key, f"{self._name}/{self._factors[8 * at : 8 * at + 8].hex().upper()}")


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
