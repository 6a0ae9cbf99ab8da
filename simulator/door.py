"""A door with its lock and contact, and the people at it: what a controller can see and do, with simulated time."""

from __future__ import annotations

from collections.abc import Callable


class SimulatedDoor:
    """A door that closes by itself. ``now_ms`` is the world's clock."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._free_until_ms = 0
        self._free = False
        self.is_open = False
        self.passed = 0
        """How many people went through."""

    @property
    def locked(self) -> bool:
        """Whether pushing it does nothing."""
        return not self._free and self._now_ms() > self._free_until_ms

    def release(self, duration_ms: int) -> None:
        """The controller unlocks for a while."""
        self._free_until_ms = self._now_ms() + duration_ms

    def stand_free(self, free: bool) -> None:
        """The controller unlocks until told otherwise."""
        self._free = free

    def push(self) -> bool:
        """Somebody goes through and leaves it open; False when it is locked."""
        if self.locked and not self.is_open:
            return False
        self.is_open = True
        self.passed += 1
        return True

    def force(self) -> None:
        """Somebody breaks it open."""
        self.is_open = True

    def fall_shut(self) -> None:
        """It closes and locks."""
        self.is_open = False
        self._free_until_ms = 0
