"""A serial module that reads numbers of tags (``uid:PORT``), for attendance of low security only.

A tag is a card that answers one command, GET DATA of its UID as contactless readers do, and refuses all others: so it
opens no door and pays nothing, wherever such a reader is named.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from cardlib.apdu import SW
from cardlib.errors import CardRemoved, ConfigError
from cardlib.pn532 import GET_UID, Line
from cardlib.readers import Presence
from cardlib.serialport import SerialPort
from cardlib.wire.uid import Deframer

BAUD = 9_600
HOLD_S = 0.5
"""A module repeats a number every 50 to 100 ms: a tag that is silent for so long has been taken away."""
LOOK_MS = 1_000


class UidTag:
    """A tag's number, as a card that can do nothing else."""

    atr = b""

    def __init__(self, uid: bytes, done: Callable[[], None] = lambda: None) -> None:
        self._uid, self._done = uid, done

    def transceive(self, command: bytes) -> bytes:
        """Tell the number; every other command has a class that a tag does not know."""
        if command[:4] == GET_UID:
            return self._uid + SW.OK.to_bytes(2, "big")
        return SW.CLA.to_bytes(2, "big")

    def close(self) -> None:
        """Let the reader go if this was its only tag."""
        self._done()


class UidReader:
    """A module; a tag that lies there is one presentation, however often the module says its number."""

    def __init__(
        self,
        port: str,
        open_line: Callable[[str, int], Line] = SerialPort,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        if not port:
            raise ConfigError("which port? Give uid:PORT, like uid:/dev/ttyUSB0")
        self.name = f"uid:{port}"
        self._port, self._open_line, self._clock_s = port, open_line, clock_s
        self._line: Line | None = None
        self._deframer = Deframer()
        self._uid: bytes | None = None
        self._seen_s = 0.0
        self._changes = 0

    def wait(self, known: Presence, timeout_ms: int) -> Presence:
        """Return when a tag comes or goes, or after the timeout. Raises ReaderLost; then look again later."""
        until_s = self._clock_s() + timeout_ms / 1000
        while True:
            self._hear()
            now = Presence(self._uid is not None, self._changes)
            if now[:2] != known[:2] or self._clock_s() >= until_s:
                return now

    def _hear(self) -> None:
        if self._line is None:
            self._line = self._open_line(self._port, BAUD)
        try:
            heard = list(self._deframer.feed(self._line.read()))
        except BaseException:
            self.close()
            raise
        now_s = self._clock_s()
        uid = heard[-1] if heard else None if now_s - self._seen_s > HOLD_S else self._uid
        if heard:
            self._seen_s = now_s
        if uid != self._uid:
            self._uid = uid
            self._changes += 1

    def connect(self, done: Callable[[], None] = lambda: None) -> UidTag:
        """The tag that lies there. Raises CardRemoved."""
        if self._uid is None:
            raise CardRemoved(f"{self.name}: no tag there")
        return UidTag(self._uid, done)

    def close(self) -> None:
        """Let the port go; ``wait`` comes back to it."""
        line, self._line, self._uid = self._line, None, None
        self._deframer = Deframer()
        if line is not None:
            line.close()


def connect(port: str) -> UidTag:
    """The tag on the module at a port, after a second's patience. Raises CardRemoved, ReaderLost."""
    reader = UidReader(port)
    try:
        reader.wait(Presence(present=False, changes=0), LOOK_MS)
        return reader.connect(reader.close)
    except BaseException:
        reader.close()
        raise


watch = UidReader
