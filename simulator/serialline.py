"""A serial line in simulated time: half duplex, timed by its baud rate, with faults by seed. Bytes in, bytes out.

    line = SerialLine(9_600, Faults(damage=0.05), seed=1)
    panel, reader = line.port(), line.port()
    line.run([(panel, on_panel), (reader, on_reader)], until_us)

Each port hears what all others say. Two that speak at once spoil each other's bytes.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

NEVER = 1 << 62
LOOK_US = 10_000
BITS_PER_BYTE = 10  # start, 8 data, stop


class Faults(NamedTuple):
    """What goes wrong: the first four are probabilities for each write, all by the line's seed.

    ``damage``: a bit of it flips, a byte is lost or one is added. ``cut``: it ends early. ``delay``: it starts up to
    ``delay_us`` late. ``gap``: it pauses once for up to ``gap_us``. ``noise``: stray bytes come before it.
    """

    damage: float = 0.0
    cut: float = 0.0
    delay: float = 0.0
    gap: float = 0.0
    noise: float = 0.0
    delay_us: int = 50_000
    gap_us: int = 60_000


def _never() -> bool:
    return False


class _Byte(NamedTuple):
    at_us: int
    order: int
    port: Port
    value: int


@dataclass(eq=False)
class Port:
    """One end of the line."""

    line: SerialLine
    free_us: int = 0
    arrived: bytearray = field(default_factory=bytearray)

    def write(self, data: bytes, after_us: int = 0) -> None:
        """Send, ``after_us`` from now or when what was written before has left."""
        self.line.transmit(self, data, after_us)

    def read(self) -> bytes:
        """All that has arrived by now."""
        data = bytes(self.arrived)
        self.arrived.clear()
        return data

    def set_baud(self, baud: int) -> None:
        """Speed of the line, for all on it."""
        self.line.baud = baud


Step = Callable[[], int]
"""Look at one's port and act; returns when to be called next, in µs of the line (NEVER: when bytes arrive)."""


class SerialLine:
    """The wire, and the clock of all who hang on it."""

    def __init__(self, baud: int, faults: Faults | None = None, *, seed: int = 0) -> None:
        self.baud = baud
        self.faults = faults or Faults()
        self.now_us = 0
        self.is_cut = False
        self.writes = self.damaged = 0
        self._random = Random(seed)
        self._ports: list[Port] = []
        self._flight: list[_Byte] = []
        self._order = 0
        self._busy: tuple[int, Port | None] = (0, None)

    @property
    def now_ms(self) -> int:
        """The clock in milliseconds."""
        return self.now_us // 1000

    def port(self) -> Port:
        """One more end."""
        port = Port(self)
        self._ports.append(port)
        return port

    def transmit(self, sender: Port, data: bytes, after_us: int) -> None:
        """Put bytes on the wire, with whatever faults the seed has for them."""
        self.writes += 1
        pieces = self.spoil(data)
        at = max(self.now_us + after_us, sender.free_us)
        if self._random.random() < self.faults.delay:
            at += self._random.randrange(self.faults.delay_us + 1)
        until, speaker = self._busy
        clash_us = until if speaker is not sender else 0
        step = BITS_PER_BYTE * 1_000_000 // self.baud
        for piece in pieces:
            for value in piece:
                at += step
                heard = value
                if at - step < clash_us:  # two speak at once: neither is heard
                    heard = value & self._random.randrange(256)
                    self._garble(at - step)
                self._fly(at, sender, heard)
            if piece is not pieces[-1]:
                at += self._random.randrange(self.faults.gap_us + 1)
        sender.free_us = at
        self._busy = (max(at, until), sender)

    def advance(self, until_us: int) -> None:
        """Let time pass; bytes that arrive by then can be read."""
        self.now_us = max(self.now_us, until_us)
        heard: dict[int, bytearray] = {}
        done = 0
        for byte in self._flight:
            if byte.at_us > self.now_us:
                break
            done += 1
            heard.setdefault(id(byte.port), bytearray()).append(byte.value)
        del self._flight[:done]
        for speaker, values in heard.items():
            for port in self._ports if not self.is_cut else ():
                if id(port) != speaker:
                    port.arrived += values

    def run(self, parties: Sequence[tuple[Port, Step]], until: int | Callable[[], bool], limit_us: int = NEVER) -> None:
        """Step all parties whenever bytes arrive or their time comes, until a moment (µs) or a condition."""
        end = until if isinstance(until, int) else limit_us
        done = _never if isinstance(until, int) else until
        wakes = [step() for _, step in parties]
        while not done():
            arrival = self._arrival_us()
            moment = min(arrival, *wakes)
            if moment > end:
                self.advance(end)
                return
            self.advance(moment)
            for place, (port, step) in enumerate(parties):
                if port.arrived or wakes[place] <= self.now_us:
                    wakes[place] = max(step(), self.now_us + 1)

    def _arrival_us(self) -> int:
        """When the run of bytes under way ends, or 10 ms of it are over: as often as a real port would be looked at."""
        flight = self._flight
        if not flight:
            return NEVER
        step = BITS_PER_BYTE * 1_000_000 // self.baud
        last = flight[0].at_us
        for byte in flight:
            if byte.at_us - last > step or byte.at_us - flight[0].at_us > LOOK_US:
                break
            last = byte.at_us
        return last

    def _fly(self, at: int, sender: Port, value: int) -> None:
        self._order += 1
        insort(self._flight, _Byte(at, self._order, sender, value), key=lambda byte: byte.at_us)

    def _garble(self, from_us: int) -> None:
        self._flight = [
            byte._replace(value=byte.value & self._random.randrange(256)) if byte.at_us > from_us else byte
            for byte in self._flight
        ]

    def spoil(self, data: bytes) -> list[bytes]:
        """What of a write goes onto the wire, in pieces between which the line pauses."""
        chance, faults, raw = self._random.random, self.faults, bytearray(data)
        if raw and chance() < faults.damage:
            self.damaged += 1
            at = self._random.randrange(len(raw))
            match self._random.randrange(3):
                case 0:
                    raw[at] ^= 1 << self._random.randrange(8)
                case 1:
                    del raw[at]
                case _:
                    raw.insert(at, self._random.randrange(256))
        if raw and chance() < faults.cut:
            self.damaged += 1
            del raw[self._random.randrange(len(raw)) :]
        if chance() < faults.noise:
            raw[:0] = self._random.randbytes(self._random.randrange(1, 9))
        if len(raw) > 1 and chance() < faults.gap:
            at = self._random.randrange(1, len(raw))
            return [bytes(raw[:at]), bytes(raw[at:])]
        return [bytes(raw)]
