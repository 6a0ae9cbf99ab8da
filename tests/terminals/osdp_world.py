"""A panel and simulated readers on a simulated line."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from random import Random

from cardlib.wire import osdp
from simulator.osdp import SimulatedReader
from simulator.serialline import Faults, SerialLine
from terminals.osdp import Bus, Event, Security, State


def key_of(address: int) -> bytes:
    """A key for each device."""
    return Random(1000 + address).randbytes(16)


class SocketPort:
    """The panel's port over a socket."""

    def __init__(self, line: socket.socket) -> None:
        line.setblocking(False)
        self.line = line

    def write(self, data: bytes) -> None:
        """Send."""
        self.line.sendall(data)

    def read(self) -> bytes:
        """What is there."""
        try:
            return self.line.recv(4096)
        except BlockingIOError:
            return b""

    def set_baud(self, baud: int) -> None:
        """A socket has none."""


def now_ms() -> int:
    """The clock of a real line."""
    return time.monotonic_ns() // 1_000_000


class World:
    """One bus, some readers, and all that the panel was told."""

    def __init__(
        self,
        count: int = 1,
        *,
        baud: int = 9_600,
        faults: Faults | None = None,
        seed: int = 1,
        security: Security = Security.SECURE,
        crc: bool = True,
        poll_ms: int = 20,
    ) -> None:
        self.random = Random(seed)
        self.line = SerialLine(baud, faults, seed=seed)
        port = self.line.port()
        self.bus = Bus(port, baud, self.random.randbytes, bench=security is not Security.SECURE, poll_ms=poll_ms)
        self.events: list[tuple[int, Event]] = []
        self.readers = []
        self.parties = [(port, self._panel)]
        for address in range(count):
            key = key_of(address) if security is Security.SECURE else None
            reader = SimulatedReader(address, key, self.random.randbytes, install=security is Security.INSTALL)
            self.bus.add(address, key, security=security, crc=crc)
            at = self.line.port()
            self.parties.append((at, reader.attach(at)))
            self.readers.append(reader)

    def _panel(self) -> int:
        now = self.line.now_ms
        self.events += [(self.line.now_us, event) for event in self.bus.step(now)]
        return self.bus.wake_ms(now) * 1000

    def run(self, ms: int) -> None:
        """Let so much time pass."""
        self.line.run(self.parties, self.line.now_us + ms * 1000)

    def until(self, done: Callable[[], bool], limit_ms: int = 60_000) -> int:
        """Run until something is so; returns how long it took in ms."""
        began = self.line.now_us
        self.line.run(self.parties, done, began + limit_ms * 1000)
        assert done(), "it never came to pass"
        return (self.line.now_us - began) // 1000

    def connect(self) -> int:
        """Run until all devices are online."""
        return self.until(lambda: all(pd.state is State.ONLINE for pd in self.bus.pds.values()))

    def messages(self) -> list[tuple[int, osdp.Message]]:
        """What devices reported."""
        return [(event.address, event.message) for _, event in self.events if event.message is not None]

    def lost(self) -> int:
        """How often a device went away."""
        return sum(event.message is None and not event.online for _, event in self.events)


def latencies(world: World, count: int, seed: int = 4) -> list[float]:
    """Milliseconds from a card at a random moment at a random reader to the panel's event."""
    random, waits = Random(seed), []
    for number in range(count):
        began, seen = world.line.now_us, len(world.messages())
        random.choice(world.readers).card(number.to_bytes(4, "big"))
        world.until(lambda seen=seen: len(world.messages()) > seen)  # type: ignore[misc]
        waits.append((world.events[-1][0] - began) / 1000)
        world.run(random.randrange(50, 900))
    return waits
