"""A simulated reader: cards are put on it and taken off, also in the middle of a command."""

from __future__ import annotations

from collections.abc import Callable
from threading import Condition
from typing import Protocol

from cardlib.errors import CardRemoved, Conflict, LineTimeout


class Chip(Protocol):
    """What can lie on a reader."""

    @property
    def atr(self) -> bytes:
        """Answer to reset."""

    def reset(self) -> object:
        """Power on."""

    def power_off(self) -> None:
        """Power off."""

    def transceive(self, command: bytes) -> bytes:
        """Answer one command."""


class Reader:
    """A reader for one card at a time; itself the transport to whatever card lies on it."""

    def __init__(self) -> None:
        self._chip: Chip | None = None
        self._changed = Condition()
        self.before_command: Callable[[bytes], object] | None = None

    def put(self, chip: Chip) -> None:
        """Put a card on, powered. Raises Conflict when one lies there."""
        with self._changed:
            if self._chip is not None:
                raise Conflict("a card is on the reader already: take it off first")
            chip.reset()
            self._chip = chip
            self._changed.notify_all()

    def take(self) -> Chip | None:
        """Take the card off; its volatile state is gone. None when there was none."""
        with self._changed:
            chip, self._chip = self._chip, None
            if chip is not None:
                chip.power_off()
            self._changed.notify_all()
        return chip

    def wait_card(self, timeout_ms: int) -> None:
        """Return when a card lies on the reader. Raises LineTimeout."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._chip is not None, timeout_ms / 1000):
                raise LineTimeout("no card was put on the reader")

    @property
    def atr(self) -> bytes:
        """ATR of the card on the reader."""
        return self._present().atr

    def transceive(self, command: bytes) -> bytes:
        """Pass a command to the card; ``before_command`` may take the card off first. Raises CardRemoved."""
        if self.before_command is not None:
            self.before_command(command)
        return self._present().transceive(command)

    def close(self) -> None:
        """End a tap: the card loses power, but stays where it is."""
        if self._chip is not None:
            self._chip.power_off()
            self._chip.reset()

    def _present(self) -> Chip:
        chip = self._chip
        if chip is None:
            raise CardRemoved("there is no card on the reader")
        return chip
