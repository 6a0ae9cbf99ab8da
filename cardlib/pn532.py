"""A PN532 on a serial port as a reader of contactless cards (``pn532:PORT``; codec: cardlib.wire.pn532).

An answer counts only after the chip has acknowledged its command, and an APDU is never sent twice: what the line lost
is said, and the card shown again settles it. After any trouble the chip is woken anew, so that no late answer is taken
for another's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from cardlib.apdu import SW
from cardlib.errors import CardRemoved, ConfigError, FormatError, LineTimeout, ReaderLost, TransportError
from cardlib.readers import Presence
from cardlib.serialport import SerialPort
from cardlib.wire.pn532 import (
    ACK,
    CHIP,
    HOST,
    MAX_EXCHANGE,
    MORE,
    NACK,
    WAKE_UP,
    Code,
    Deframer,
    Frame,
    Kind,
    Target,
    atr_of,
    encode,
    targets,
)

BAUD = 115_200
ACK_S = 0.25
"""The chip acknowledges within 15 ms (manual §6.2.2); adapters and busy computers take longer."""
CONTROL_S = 1.0
EXCHANGE_S = 6.0
"""A card may take 5 s for one block (ISO 14443-4 §7.2); what it asks for beyond that the chip grants by itself."""
TRIES = 3
POLL_S = 0.05
"""How long the field rests between two looks for a card."""
RESET_S = 0.006
"""A card forgets all after 5 ms without field (ISO 14443-3 §5.2)."""
EMPTY_LOOKS = 2
"""A card that so many looks in a row do not find is gone; one at the edge of the field would else be served twice."""
MAX_ANSWER = 65_538
PN532_IC = 0x32
NORMAL_MODE = bytes((0x01, 0x00, 0x00))
PARAMETERS = bytes((0x14,))  # answers ATR_REQ and sends RATS by itself (manual §7.2.9)
RETRIES = bytes((0x05, 0xFF, 0x01, 0x02))  # a look for a card ends after three tries, else only when one comes (§7.3.1)
FIELD_OFF = bytes((0x01, 0x00))
ONE_TYPE_A = bytes((0x01, 0x00))
GET_UID = bytes.fromhex("FFCA0000")
"""PC/SC part 3 §3.2.2.1.3: what contactless readers answer themselves."""
RANDOM_UID = 0x08
_TROUBLE = {
    0x07: "its buffer is too small",
    0x09: "its buffer overflowed",
    0x0D: "it is too hot: let it cool down",
    0x0E: "its buffer overflowed",
    0x10: "it does not know a parameter",
    0x2D: "its antenna draws too much current: take metal away from it",
}
"""Error codes that are not the card's (manual §7.1); all others mean that it does not answer as it should."""


class Line(Protocol):
    """A serial port: see cardlib.serialport."""

    def write(self, data: bytes) -> None:
        """Send all. Raises ReaderLost."""

    def read(self) -> bytes:
        """What has come, after a short wait. Raises ReaderLost."""

    def close(self) -> None:
        """Let it go."""


class _Unheard(Exception):
    """The chip did not acknowledge a command: it or its acknowledgement was lost."""


class Chip:
    """The PN532: one command at a time. Raises ReaderLost, LineTimeout, TransportError."""

    def __init__(self, line: Line, name: str, clock_s: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self.name = name
        self._line, self._clock_s, self._sleep = line, clock_s, sleep
        self._deframer = Deframer()
        self._awake = False

    def command(self, code: Code, data: bytes = b"", timeout_s: float = CONTROL_S, tries: int = TRIES) -> bytes:
        """Send a command, again when it was not acknowledged and ``tries`` allow that; returns its answer's data."""
        if not self._awake:
            self._wake()
        try:
            return self._command(code, data, timeout_s, tries)
        except TransportError:
            self._awake = False
            raise

    def _wake(self) -> None:
        self._deframer = Deframer()
        self._line.write(WAKE_UP + ACK)  # ends what was under way (manual §6.2.1.3)
        version = self._command(Code.FIRMWARE)
        if version[:1] != bytes((PN532_IC,)):
            raise ReaderLost(f"{self.name}: the chip there is no PN532 but {version.hex().upper()}")
        self._command(Code.SAM_CONFIGURATION, NORMAL_MODE)
        self._command(Code.PARAMETERS, PARAMETERS)
        self._command(Code.RF_CONFIGURATION, RETRIES)
        self._awake = True

    def _command(self, code: Code, data: bytes = b"", timeout_s: float = CONTROL_S, tries: int = TRIES) -> bytes:
        frame = encode(bytes((HOST, code)) + data)
        for _ in range(tries):
            self._line.write(frame)
            with suppress(_Unheard):
                return self._answer(code, timeout_s)
        if tries == 1:
            raise LineTimeout(f"{self.name}: a command may be lost on the line: present the card again")
        raise ReaderLost(f"{self.name}: no PN532 answers there: check its power, its wires and that it is set to HSU")

    def _answer(self, code: Code, timeout_s: float) -> bytes:
        wanted = bytes((CHIP, code + 1))
        began, heard, repeats = self._clock_s(), False, TRIES
        while True:
            for frame in self._deframer.feed(self._line.read()):
                if frame.kind is Kind.ACK:
                    heard = True
                elif heard and (answer := self._taken(frame, wanted)) is not None:
                    return answer
                elif heard and frame.kind is Kind.DAMAGED and repeats:
                    repeats -= 1
                    self._line.write(NACK)
            waited_s = self._clock_s() - began
            if not heard and waited_s > ACK_S:
                raise _Unheard
            if waited_s > timeout_s:
                self._line.write(ACK)
                raise LineTimeout(f"{self.name}: no answer in time: present the card again")

    def _taken(self, frame: Frame, wanted: bytes) -> bytes | None:
        if frame.kind is Kind.SYNTAX_ERROR:
            raise TransportError(f"{self.name}: the PN532 does not know this command")
        return frame.body[2:] if frame.body[:2] == wanted else None

    def find(self) -> Target | None:
        """Look for a card with a fresh field, and activate it; None when there is none."""
        self.field_off()
        self._sleep(RESET_S)
        try:
            found = targets(self.command(Code.LIST_TARGETS, ONE_TYPE_A))
        except FormatError as e:
            raise TransportError(f"{self.name}: {e}") from e
        return found[0] if found else None

    def field_off(self) -> None:
        """Take the card's power, and all it remembers of its session."""
        self.command(Code.RF_CONFIGURATION, FIELD_OFF)

    def exchange(self, target: int, data: bytes) -> tuple[bytes, bool]:
        """Pass bytes to the card, once; returns what it says and whether there is more. Raises CardRemoved too."""
        answer = self.command(Code.DATA_EXCHANGE, bytes((target,)) + data, EXCHANGE_S, tries=1)
        if not answer:
            raise TransportError(f"{self.name}: an answer without its status")
        error = answer[0] & 0x3F
        if error in _TROUBLE:
            raise TransportError(f"{self.name}: {_TROUBLE[error]} (PN532 error {error:02X})")
        if error:
            raise CardRemoved(f"{self.name}: the card was pulled away: present it again (PN532 error {error:02X})")
        return answer[1:], bool(answer[0] & MORE)


class Pn532Card:
    """A card that the chip has activated. Once an exchange failed it is gone: find it again."""

    def __init__(self, chip: Chip, target: Target, done: Callable[[], None]) -> None:
        if not target.speaks_apdus:
            raise TransportError(f"{chip.name}: the card there does not speak ISO 14443-4: none of this system")
        try:
            self.atr = atr_of(target.ats)
        except FormatError as e:
            raise TransportError(f"{chip.name}: {e}") from e
        self._chip, self._target, self._done = chip, target, done
        self._gone = self._closed = False

    def transceive(self, command: bytes) -> bytes:
        """Send one command APDU, in pieces when it is long. Raises CardRemoved, ReaderLost, TransportError."""
        if command[:4] == GET_UID:
            return self._target.uid + SW.OK.to_bytes(2, "big")
        if self._gone or self._closed:
            raise CardRemoved(f"{self._chip.name}: the card is no longer held: present it again")
        try:
            return self._exchange(command)
        except TransportError:
            self._gone = True
            raise

    def _exchange(self, command: bytes) -> bytes:
        number, last = self._target.number, (len(command) - 1) // MAX_EXCHANGE * MAX_EXCHANGE
        for at in range(0, last, MAX_EXCHANGE):
            self._chip.exchange(number | MORE, command[at : at + MAX_EXCHANGE])
        answer, more = self._chip.exchange(number, command[last:])
        while more:
            piece, more = self._chip.exchange(number, b"")
            answer += piece
            if len(answer) > MAX_ANSWER:
                raise TransportError(f"{self._chip.name}: the card's answer never ends")
        if len(answer) < 2:
            raise TransportError(f"{self._chip.name}: the card's answer has no status word")
        return answer

    def close(self) -> None:
        """Let the card go without power, so that nobody inherits its security state."""
        if not self._closed:
            self._closed = True
            with suppress(TransportError):
                self._chip.field_off()
            self._done()


class Pn532Reader:
    """A place where cards come and go; for one thread at a time (see cardlib.readers)."""

    def __init__(
        self,
        port: str,
        open_line: Callable[[str, int], Line] = SerialPort,
        clock_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not port:
            raise ConfigError("which port? Give pn532:PORT, like pn532:/dev/ttyUSB0")
        self.name = f"pn532:{port}"
        self._port, self._open_line, self._clock_s, self._sleep = port, open_line, clock_s, sleep
        self._line: Line | None = None
        self._chip: Chip | None = None
        self._lying: Target | None = None
        self._active: Target | None = None
        self._changes = self._empty = 0

    def wait(self, known: Presence, timeout_ms: int) -> Presence:
        """Return when a card comes or goes, or after the timeout. Raises ReaderLost; then look again later."""
        until_s = self._clock_s() + timeout_ms / 1000
        while True:
            try:
                self._look()
            except TransportError as e:
                self.close()
                raise e if isinstance(e, ReaderLost) else ReaderLost(str(e)) from e
            now = Presence(self._lying is not None, self._changes)
            if now[:2] != known[:2] or self._clock_s() >= until_s:
                return now
            self._sleep(POLL_S)

    def _look(self) -> None:
        found = self._active = self._open().find()
        if found is None:
            self._empty += 1
            if self._empty >= EMPTY_LOOKS:
                self._changes += self._lying is not None
                self._lying = None
            return
        self._empty = 0
        if self._lying is None or not _same(self._lying, found):
            self._changes += 1
        self._lying = found

    def _open(self) -> Chip:
        if self._chip is None:
            self._line = self._open_line(self._port, BAUD)
            self._chip = Chip(self._line, self.name, self._clock_s, self._sleep)
        return self._chip

    def connect(self, done: Callable[[], None] = lambda: None) -> Pn532Card:
        """The card that was found, activated. Raises CardRemoved when there is none, TransportError for a tag."""
        chip = self._open()
        target, self._active = self._active or chip.find(), None
        if target is None:
            raise CardRemoved(f"{self.name}: no card on the reader")
        return Pn532Card(chip, target, done)

    def close(self) -> None:
        """Let the port go; ``wait`` comes back to it."""
        line, self._line, self._chip = self._line, None, None
        self._lying = self._active = None
        if line is not None:
            line.close()


def _same(one: Target, other: Target) -> bool:
    """Whether it is the card that lay there before: one that makes up its UID anew each time has to leave first."""
    made_up = [len(card.uid) == 4 and card.uid[0] == RANDOM_UID for card in (one, other)]
    return all(made_up) or one.uid == other.uid


def connect(port: str) -> Pn532Card:
    """Activate the card on the reader at a port. Raises CardRemoved, ReaderLost, LineTimeout, TransportError."""
    reader = Pn532Reader(port)
    try:
        return reader.connect(reader.close)
    except BaseException:
        reader.close()
        raise


watch = Pn532Reader
