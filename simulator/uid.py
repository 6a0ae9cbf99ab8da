"""A simulated serial module that says a tag's number again and again while the tag lies there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from cardlib.wire.uid import encode

REPEAT_S = 0.065


class SimulatedUidModule:
    """The module; ``damage`` is how often one of its bytes is wrong, by the seed."""

    def __init__(self, clock_s: Callable[[], float], damage: float = 0.0, seed: int = 0) -> None:
        self.tag: bytes | None = None
        self._clock_s, self._damage = clock_s, damage
        self._dice = Random(seed)
        self._next_s = 0.0

    def turn(self, data: bytes) -> Iterator[tuple[float, bytes]]:  # noqa: ARG002  # it hears nothing
        """What the module says now, if anything."""
        if self.tag is None or self._clock_s() < self._next_s:
            return
        self._next_s = self._clock_s() + REPEAT_S
        raw = bytearray(encode(self.tag))
        if self._dice.random() < self._damage:
            raw[self._dice.randrange(len(raw))] ^= 1 << self._dice.randrange(8)
        yield 0.0, bytes(raw)
