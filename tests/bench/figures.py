"""A figure, and timing that disregards what else the machine does."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import NamedTuple

ROUNDS = 5


class Figure(NamedTuple):
    """One measured value. ``target`` is what the project promises; ``least``: more is better."""

    name: str
    value: float
    unit: str
    target: float | None = None
    least: bool = True

    @property
    def reached(self) -> bool:
        """Whether the target holds, as it does when there is none."""
        if self.target is None:
            return True
        return self.value >= self.target if self.least else self.value <= self.target

    def line(self) -> str:
        """For people."""
        text = f"{self.name:<58} {self.value:>12,.2f} {self.unit}"
        if self.target is None:
            return text
        bound = "at least" if self.least else "at most"
        return f"{text}  ({bound} {self.target:,g}: {'ok' if self.reached else 'MISSED'})"


def best_seconds(act: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Shortest of several runs, without garbage collection: noise only ever adds time."""
    shortest = float("inf")
    for _ in range(rounds):
        gc.collect()
        gc.disable()
        began = time.perf_counter()
        act()
        shortest = min(shortest, time.perf_counter() - began)
        gc.enable()
    return shortest
