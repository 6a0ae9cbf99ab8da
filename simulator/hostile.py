"""Cards that lie: each wraps a real (simulated) one as a transport and changes answers by seed, repeatably."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from enum import StrEnum, unique
from random import Random
from types import MappingProxyType
from typing import Protocol

OK = b"\x90\x00"
LOAD_P1, DEBIT_P1 = 0x00, 0x01
INITIALIZE, CREDIT, DEBIT, OVERDRAFT, PROVE, BALANCE = 0x50, 0x52, 0x54, 0x58, 0x5A, 0x5C
SEQ = slice(4, 6)


class Chip(Protocol):
    """What is wrapped: any transport."""

    @property
    def atr(self) -> bytes: ...

    def transceive(self, command: bytes) -> bytes: ...

    def close(self) -> None: ...


class Hostile(ABC):
    """Base of the liars: passes everything on, :meth:`lie` may change a successful answer.

    ``rate`` is the share of occasions on which it lies; which ones, ``seed`` decides.
    """

    def __init__(self, inner: Chip, seed: int = 0, rate: float = 1.0) -> None:
        self.inner = inner
        self.random = Random(seed)
        self.rate = rate
        self.lies = 0

    @property
    def atr(self) -> bytes:
        """The wrapped card's."""
        return self.inner.atr

    def close(self) -> None:
        """Close the wrapped card."""
        self.inner.close()

    def transceive(self, command: bytes) -> bytes:
        """Pass the command on and perhaps lie about the answer."""
        answer = self.inner.transceive(command)
        if answer[-2:] != OK or len(command) < 4:
            return answer
        told = self.lie(command, answer[:-2]) + OK
        self.lies += told != answer
        return told

    @abstractmethod
    def lie(self, command: bytes, data: bytes) -> bytes:
        """The data to answer instead of ``data``."""

    def tempted(self) -> bool:
        """Whether to lie this time."""
        return self.random.random() < self.rate

    def flip(self, data: bytes, part: slice) -> bytes:
        """One bit of ``part`` changed."""
        at = self.random.randrange(8 * len(data[part]))
        changed = bytearray(data)
        changed[range(len(data))[part][at // 8]] ^= 0x80 >> at % 8
        return bytes(changed)


class Replayed(Hostile):
    """Gives again an answer it gave before to the same kind of command (CLA INS P1 P2)."""

    def __init__(self, inner: Chip, seed: int = 0, rate: float = 1.0) -> None:
        super().__init__(inner, seed, rate)
        self._heard: dict[bytes, list[bytes]] = {}

    def lie(self, command: bytes, data: bytes) -> bytes:
        """An earlier answer, when there is one."""
        heard = self._heard.setdefault(bytes(command[:4]), [])
        told = self.random.choice(heard) if heard and self.tempted() else data
        heard.append(data)
        return told


class _WrongProof(Hostile):
    """One bit wrong in one proof; ``WHERE`` finds it by INS and P1."""

    WHERE: Mapping[tuple[int, int], slice]

    def lie(self, command: bytes, data: bytes) -> bytes:
        part = self.WHERE.get((command[1], command[2]))
        if part is None or command[0] != 0x80 or not data[part] or not self.tempted():
            return data
        return self.flip(data, part)


class WrongMac1(_WrongProof):
    """MAC1 of INITIALIZE FOR LOAD, UNLOAD and overdraft update is wrong."""

    WHERE = MappingProxyType({(INITIALIZE, p1): slice(-4, None) for p1 in (LOAD_P1, 0x04, 0x05)})


class WrongMac2(_WrongProof):
    """MAC2 of a debit is wrong, also in its later proof."""

    WHERE = MappingProxyType({(DEBIT, DEBIT_P1): slice(4, 8), (PROVE, 0): slice(0, 4)})


class WrongTac(_WrongProof):
    """The TAC is wrong, also in its later proof."""

    WHERE = MappingProxyType({
        (DEBIT, DEBIT_P1): slice(0, 4), (CREDIT, 0): slice(0, 4), (OVERDRAFT, 0): slice(0, 4), (PROVE, 0): slice(4, 8),
    })  # fmt: skip


class StuckCounter(Hostile):
    """INITIALIZE always tells the counter it told first for that purse and kind of transaction."""

    def __init__(self, inner: Chip, seed: int = 0, rate: float = 1.0) -> None:
        super().__init__(inner, seed, rate)
        self._first: dict[bytes, bytes] = {}

    def lie(self, command: bytes, data: bytes) -> bytes:
        """The first counter instead of the present one."""
        if command[:2] != bytes((0x80, INITIALIZE)):
            return data
        seq = self._first.setdefault(bytes(command[2:4]), data[SEQ])
        return data[:4] + seq + data[6:] if self.tempted() else data


class FalseBalance(Hostile):
    """GET BALANCE and INITIALIZE tell ``balance_fen`` instead of the balance."""

    def __init__(self, inner: Chip, seed: int = 0, rate: float = 1.0, balance_fen: int = 1_000_000) -> None:
        super().__init__(inner, seed, rate)
        self.balance_fen = balance_fen

    def lie(self, command: bytes, data: bytes) -> bytes:
        """The false balance in the first four bytes."""
        if command[0] != 0x80 or command[1] not in (INITIALIZE, BALANCE) or not self.tempted():
            return data
        return self.balance_fen.to_bytes(4, "big") + data[4:]


class Swapped:
    """Another card takes the first one's place without the reader noticing, before command number ``at`` (from 0)."""

    def __init__(self, first: Chip, second: Chip, at: int) -> None:
        self.first, self.second = first, second
        self._left = at

    @property
    def atr(self) -> bytes:
        """The ATR of the card that was put on first."""
        return self.first.atr

    def transceive(self, command: bytes) -> bytes:
        """Ask whichever card is there now."""
        self._left -= 1
        return (self.first if self._left >= 0 else self.second).transceive(command)

    def close(self) -> None:
        """Close both."""
        self.first.close()
        self.second.close()


@unique
class Lie(StrEnum):
    """The ways of lying that :func:`hostile` knows."""

    REPLAY = "replay"
    MAC1 = "mac1"
    MAC2 = "mac2"
    TAC = "tac"
    COUNTER = "counter"
    BALANCE = "balance"


LIARS: Mapping[Lie, Callable[[Chip, int, float], Hostile]] = MappingProxyType({
    Lie.REPLAY: Replayed, Lie.MAC1: WrongMac1, Lie.MAC2: WrongMac2,
    Lie.TAC: WrongTac, Lie.COUNTER: StuckCounter, Lie.BALANCE: FalseBalance,
})  # fmt: skip


def hostile(inner: Chip, lie: Lie, seed: int = 0, rate: float = 1.0) -> Hostile:
    """Wrap a card in one way of lying. Another card put on mid-way is :class:`Swapped`."""
    return LIARS[lie](inner, seed, rate)
