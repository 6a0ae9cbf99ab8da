"""Commands of the card by theme. A handler returns data and status word; what it refuses it raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from cardlib.apdu import SW
from cardlib.errors import OneCardError

if TYPE_CHECKING:
    from simulator.card import Card

OK = b"\x90\x00"

Handler: TypeAlias = "Callable[[Card, int, int, int, bytes, int | None], bytes]"
"""``(card, cla, p1, p2, data, le)``: Le None when absent, 0 for all there is."""


class Refusal(OneCardError):
    """Ends a command with a status word; its writes are dropped. Never leaves the card."""

    def __init__(self, sw: int) -> None:
        self.sw = sw


class Counted(Refusal):
    """A refusal that was counted: the writes made so far (error counters, blocks) are kept."""


def expect_le(le: int | None, size: int) -> None:
    """Refuse 6Cxx when fewer bytes are wanted than the answer always has."""
    if le and le < size:
        raise Refusal(0x6C00 | size)


def expect_p1p2(p1: int, p2: int) -> None:
    """Refuse 6A86 unless both are zero."""
    if p1 or p2:
        raise Refusal(SW.P1P2)


def expect_length(data: bytes, *sizes: int) -> None:
    """Refuse 6700 unless the data field has one of these sizes."""
    if len(data) not in sizes:
        raise Refusal(SW.LENGTH)
