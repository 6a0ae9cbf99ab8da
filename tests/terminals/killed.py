"""The command line, which dies by SIGKILL at one exchange with the card: ``killed.py STEP IMAGE ARGUMENTS...``.

Odd steps die before the card gets a command, even ones after its answer.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import cli


class Deadly:
    """A card behind which the power goes."""

    def __init__(self, card: Any, step: int) -> None:
        self.card, self.left = card, step

    @property
    def atr(self) -> bytes:
        return bytes(self.card.atr)

    def transceive(self, command: bytes) -> bytes:
        self._count()
        answer = bytes(self.card.transceive(command))
        self._count()
        return answer

    def close(self) -> None:
        self.card.close()

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    deadly, image = int(sys.argv[1]), sys.argv[2]
    plain = cli._open_simulated
    cli._open_simulated = lambda rest: Deadly(plain(rest), deadly) if rest == image else plain(rest)
    sys.argv[1:] = sys.argv[3:]
    cli.main()
