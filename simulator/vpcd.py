"""Puts a simulated card into a slot of vsmartcard's virtual reader, where any PC/SC program finds it.

The virtual reader (inside pcscd) listens, the card calls: port 35963 is its first slot, 35964 the second.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from threading import Event, Thread
from typing import Self

from cardlib.errors import CardRemoved, ReaderLost
from cardlib.wire.vpcd import Control, Deframer, control, frame
from simulator.reader import Chip

HOST = "127.0.0.1"
PORT = 35963
RETRY_S = 0.05
CHUNK = 65536


class Slot:
    """A card in a slot, served by its own thread from ``insert`` until ``remove``."""

    def __init__(self, card: Chip, port: int = PORT, host: str = HOST) -> None:
        self.card = card
        self.port = port
        self.host = host
        self._line: socket.socket | None = None
        self._thread: Thread | None = None

    def insert(self, wait_ms: int = 0) -> Self:
        """Call the reader, for at most ``wait_ms`` until it listens. Raises ReaderLost."""
        line = call(self.host, self.port, wait_ms)
        self._line = line
        self._thread = Thread(target=serve, args=(self.card, line), name=f"slot-{self.port}", daemon=True)
        self._thread.start()
        return self

    def remove(self) -> None:
        """Pull the card: an answer under way is lost. Calling it twice is allowed."""
        if self._line is not None:
            with suppress(OSError):
                self._line.shutdown(socket.SHUT_RDWR)
        self.wait()

    def wait(self) -> None:
        """Return when the card has left the slot, or the reader went away."""
        if self._thread is not None:
            self._thread.join()
        self._line = self._thread = None

    def __enter__(self) -> Self:
        """Insert the card unless it is in."""
        return self if self._line else self.insert()

    def __exit__(self, *_: object) -> None:
        """Remove the card."""
        self.remove()


def call(host: str, port: int, wait_ms: int = 0) -> socket.socket:
    """Connect to a slot of the virtual reader. Raises ReaderLost when nothing listens there in time."""
    deadline = time.monotonic() + wait_ms / 1000
    while True:
        try:
            line = socket.create_connection((host, port), timeout=5)
        except OSError as e:
            if time.monotonic() >= deadline:
                hint = "is pcscd running, with vsmartcard's virtual reader?"
                raise ReaderLost(f"virtual reader at {host}:{port}: {e.strerror or e}; {hint}") from e
            Event().wait(RETRY_S)
            continue
        line.settimeout(None)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # each answer is one small packet
        return line


def serve(card: Chip, line: socket.socket) -> None:
    """Answer the reader until it hangs up or the card's power is cut; then the line is closed."""
    deframer = Deframer()
    with line, suppress(ConnectionError, CardRemoved):
        while True:
            # vpcd sends length and body apart and Nagle holds the body back until the length is acknowledged: that
            # would cost 40 ms a command. The option wears off with each answer.
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            piece = line.recv(CHUNK)
            if not piece:
                return
            for body in deframer.feed(piece):
                answer = _answer(card, body)
                if answer:
                    line.sendall(frame(answer))


def _answer(card: Chip, body: bytes) -> bytes:
    kind = control(body)
    if kind is None:
        return card.transceive(body)
    if kind is Control.ATR:
        return card.atr
    if kind is Control.POWER_OFF:
        card.power_off()
    else:
        card.reset()
    return b""
