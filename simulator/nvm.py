"""Transactional memory: what one command writes becomes visible together or not at all (profile.md, Power).

A command's writes go to a redo log, then a commit mark, then to their home cells, then the mark is
cleared. Power may go between any two of these steps; the next power-on completes or discards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from threading import RLock
from typing import Any, Generic, TypeVar

from cardlib.errors import CardRemoved

T = TypeVar("T")

MEMORY_BYTES = 32 * 1024
"""Default size of a card's memory: eight applications of profile.md fit."""


class Cell(Generic[T]):
    """One home location. Its value is immutable and is replaced as a whole, only by :class:`Nvm`."""

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value


class Power:
    """The supply of one face of a card. Counts steps while a cut is armed and cuts at the chosen one.

    A step lies before and after each physical memory write and before the answer leaves.
    """

    __slots__ = ("_left", "armed", "on", "steps")

    def __init__(self) -> None:
        self.on = True
        self.armed = False
        self.steps = 0
        self._left = 0

    def cut_at(self, step: int) -> None:
        """Cut at the ``step``-th step from now, the first being 1; 0 disarms."""
        self._left, self.steps, self.armed = step, 0, step > 0

    def step(self) -> None:
        """Count one step. Raises CardRemoved when it is the one to cut at."""
        self.steps += 1
        self._left -= 1
        if self._left == 0:
            self.armed = self.on = False
            raise CardRemoved(f"power was cut at step {self.steps}")


class Nvm:
    """The memory of one card: named roots, a volatile list of pending writes, the redo log and its mark.

    ``on_commit`` is called after each committed transaction, before the answer leaves. ``lock`` is held by the face
    that runs a command: two faces of one chip never run at the same instant (profile.md, RFID-SIM).
    """

    __slots__ = ("_log", "_marked", "_pending", "lock", "on_commit", "roots", "size_bytes")

    def __init__(self, size_bytes: int = MEMORY_BYTES) -> None:
        self.size_bytes = size_bytes
        self.roots: dict[str, Cell[Any]] = {}
        self.lock = RLock()
        self.on_commit: Callable[[], None] | None = None
        self._pending: list[tuple[Cell[Any], Any]] = []
        self._log: list[tuple[Cell[Any], Any]] = []
        self._marked = False

    def root(self, name: str, initial: T) -> Cell[T]:
        """Return the cell of that name, made with ``initial`` when there is none."""
        return self.roots.setdefault(name, Cell(initial))

    def write(self, cell: Cell[T], value: T) -> None:
        """Add a write to the running transaction; readers see it after :meth:`commit`."""
        self._pending.append((cell, value))

    def abort(self) -> None:
        """Forget the running transaction."""
        self._pending.clear()

    def commit(self, power: Power) -> None:
        """Make the running transaction visible. Raises CardRemoved when power goes on the way."""
        pending = self._pending
        if not pending:
            return
        if power.armed:
            self._commit_in_steps(power)
        else:
            for cell, value in pending:
                cell.value = value
        pending.clear()
        if self.on_commit is not None:
            self.on_commit()

    def _commit_in_steps(self, power: Power) -> None:
        self._log = []
        for entry in self._pending:
            power.step()
            self._log.append(entry)
            power.step()
        power.step()
        self._marked = True
        power.step()
        self._write_home(power)

    def _write_home(self, power: Power) -> None:
        for cell, value in self._log:
            if power.armed:
                power.step()
            cell.value = value
            if power.armed:
                power.step()
        if power.armed:
            power.step()
        self._marked = False
        if power.armed:
            power.step()

    def recover(self, power: Power) -> None:
        """Complete or discard what a power cut interrupted. Raises CardRemoved when cut again."""
        self._pending.clear()
        if self._marked:
            self._write_home(power)
            if self.on_commit is not None:
                self.on_commit()

    @property
    def torn(self) -> bool:
        """Whether a committed transaction still waits for its home writes."""
        return self._marked


class Powered(ABC):
    """One face of a chip: what power does to it. Files survive, everything volatile is gone."""

    nvm: Nvm
    power: Power

    @property
    @abstractmethod
    def atr(self) -> bytes:
        """The answer to reset."""

    @abstractmethod
    def _forget(self) -> None:
        """Lose all that is volatile."""

    def reset(self) -> bytes:
        """Give power and reset: memory is completed or rolled back, volatile state is gone; returns the ATR."""
        self.power.on = True
        with self.nvm.lock:
            try:
                self.nvm.recover(self.power)
            finally:
                self._forget()
        return self.atr

    def power_off(self) -> None:
        """Take the card off the field, or out of the slot."""
        with self.nvm.lock:
            self.power.on = False
            self.nvm.abort()
            self._forget()

    def close(self) -> None:
        """End of use, as of any transport."""
        self.power_off()
