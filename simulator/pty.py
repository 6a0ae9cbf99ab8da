"""A simulated serial device behind a pseudo-terminal, told by lines what is presented to it."""

from __future__ import annotations

import os
import select
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

WAIT_S = 0.005


class Device(Protocol):
    """What is at the other end of the line."""

    def turn(self, data: bytes) -> Iterator[tuple[float, bytes]]:
        """Hear bytes, perhaps none; yields what to say, each after a pause in seconds."""


class Pty:
    """The device's end; ``name`` is what programs open."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._ours, self._theirs = os.openpty()  # theirs stays open, so that a program may come and go
        tty.setraw(self._theirs)
        self.name = os.ttyname(self._theirs)

    def turn(self) -> None:
        """Hear and answer once, after waiting at most 5 ms for something to hear."""
        heard = os.read(self._ours, 1 << 12) if select.select([self._ours], [], [], WAIT_S)[0] else b""
        for pause_s, said in self._device.turn(heard):
            time.sleep(pause_s)
            os.write(self._ours, said)

    def serve(self, goes_on: Callable[[], bool]) -> None:
        """Turn after turn."""
        while goes_on():
            self.turn()

    def link(self, path: Path) -> Path:
        """Let ``path`` lead to the pseudo-terminal, in place of one of before."""
        beside = path.with_name(path.name + ".new")
        beside.unlink(missing_ok=True)
        beside.symlink_to(self.name)
        return beside.replace(path)

    def close(self) -> None:
        """Take the pseudo-terminal away."""
        os.close(self._theirs)
        os.close(self._ours)
