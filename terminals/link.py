"""The terminal link's two ends on a line (link.md "Frame and messages"): half duplex, retries, fragments, discovery.

Logic only: clock, randomness and port come in, and there is no thread. A :class:`Slave` is polled; a :class:`Master`
asks and returns the answer or raises LineTimeout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from cardlib.errors import FormatError, LineTimeout
from cardlib.wire.link import (
    BROADCAST,
    MAX_BODY,
    MAX_BUSY_MS,
    Deframer,
    Frame,
    HelloAnswer,
    HelloRequest,
    Kind,
    fragments,
    next_seq,
    slot_of,
    slot_seconds,
)

TIMEOUTS_S = (0.150, 0.300, 0.600, 1.200, 1.200)
"""Five tries; each time-out runs from the last byte sent to the first byte received."""
CONFIRM_S = 0.500
"""A new speed that no good frame confirms within this time is given up by both ends."""
IDLE_S = 30.0
"""After this silence a slave is back at its first speed, where the next master looks for it."""
STALE_S = 0.050
"""After this silence what lies in a master's port is no answer to it."""
MAX_MESSAGE = 0xFFFF
QUIET_ROUNDS = 3
PARTS_S = 10.0
"""Fragments whose message is not complete by then are forgotten."""


class Port(Protocol):
    """A line: ``cardlib.serialport.SerialPort``, or a simulated one."""

    baud: int
    """Bits per second; 0 where bytes take no time of their own (pseudo-terminal, TCP)."""

    def write(self, data: bytes) -> None:
        """Send all. Raises TransportError when the line is gone."""

    def read(self) -> bytes:
        """What has come; waits a few milliseconds when there is nothing. Raises TransportError when it is gone."""

    def set_baud(self, baud: int) -> None:
        """Change the speed once all that was written has left."""


class Busy(Exception):
    """What a desk raises when it has not begun a request yet; the master asks again in ``ms``."""

    def __init__(self, ms: int) -> None:
        self.ms = ms
        super().__init__(ms)


class Desk(Protocol):
    """Who answers messages at a slave: ``terminals.guard.Guard`` or ``BenchDesk``."""

    speed_wanted: int
    """Not 0: change the line to this speed after the answer under way."""
    text: bool
    """Whether text framing is answered (``--bench``)."""

    def hello(self, nonce: bytes) -> HelloAnswer:
        """What a HELLO is answered with."""

    def answer(self, message: bytes, *, encrypted: bool) -> tuple[bytes, bool] | None:
        """The answer and whether it is encrypted; None for no answer. Raises Busy."""

    def answer_line(self, line: bytes) -> bytes:
        """The bytes that answer a line of text framing, if any."""


class Reply(NamedTuple):
    """A whole message from a slave."""

    message: bytes
    encrypted: bool


class Master:
    """The installer's end of a line, talking to one address at a time.

    ``retries`` counts frames sent again: callers take smaller chunks when it grows.
    """

    def __init__(
        self, port: Port, clock: Callable[[], float], random_bytes: Callable[[int], bytes], gap_s: float
    ) -> None:
        self.port = port
        self.retries = 0
        self._clock = clock
        self._random = random_bytes
        self._deframer = Deframer(gap_s)
        self._quiet_since_s = float("-inf")
        self._seq = random_bytes(1)[0] % 255 + 1  # else a slave might take us for the master before us

    def exchange(self, address: int, message: bytes, *, encrypted: bool = False) -> Reply:
        """Send a message and return the answer. Raises LineTimeout when there is none, TransportError."""
        self._forget_others()
        *first, last = fragments(address, self._seq, message, from_slave=False, encrypted=encrypted)
        for frame in first:
            self._ask(frame, frame.seq, Kind.ACK)
        reply = self._ask(last, last.seq, Kind.DATA)
        parts = [reply.body]
        while reply.more:
            reply = self._ask(Frame(address, Kind.ACK, reply.seq), next_seq(reply.seq), Kind.DATA)
            parts.append(reply.body)
            if len(parts) * MAX_BODY > MAX_MESSAGE + MAX_BODY:
                raise LineTimeout(f"terminal at address {address} sends without end")
        self._seq, self._quiet_since_s = next_seq(reply.seq), self._clock()
        return Reply(b"".join(parts), reply.encrypted)

    def _forget_others(self) -> None:
        """Drop what came while we were silent: it answers another master, perhaps under our next number."""
        now = self._clock()
        until_s = now + TIMEOUTS_S[0]
        while now - self._quiet_since_s > STALE_S and now < until_s and (piece := self.port.read()):
            now = self._clock()
            list(self._deframer.feed(piece, now))

    def _ask(self, frame: Frame, seq: int, kind: Kind) -> Frame:
        """Send a frame until its answer comes: five tries, and again after each BUSY for at most 60 s."""
        coded = frame.encode()
        busy_ms = tries = 0
        while tries < len(TIMEOUTS_S):
            self.port.write(coded)
            answer = self._answer(frame.address, seq, kind, self._line_time(len(coded)) + TIMEOUTS_S[tries])
            if answer is None:
                tries += 1
                self.retries += 1
            elif answer.kind is Kind.BUSY:
                wait_ms = max(int.from_bytes(answer.body, "big"), 1)
                busy_ms += wait_ms
                if busy_ms > MAX_BUSY_MS:
                    raise LineTimeout(f"terminal at address {frame.address} was busy for {MAX_BUSY_MS // 1000} s")
                self.pause(wait_ms / 1000)
                tries = 0
            else:
                return answer
        self._seq = next_seq(next_seq(frame.seq))  # else the next message would go on with this one's fragments
        raise LineTimeout(f"terminal at address {frame.address} does not answer: check cable, address and power")

    def _line_time(self, size: int) -> float:
        return size * 10 / self.port.baud if self.port.baud else 0.0

    def _answer(self, address: int, seq: int, kind: Kind, timeout_s: float) -> Frame | None:
        for frame in self._frames(timeout_s):
            # A BUSY answers the frame that was sent, whose number is that of the ACK or DATA awaited or one before.
            busy = frame.kind is Kind.BUSY and next_seq(frame.seq) in (next_seq(seq), seq)
            if frame.address == address and (busy or (frame.kind is kind and frame.seq == seq)):
                return frame
        return None

    def _frames(self, timeout_s: float) -> Iterator[Frame]:
        """Good frames of slaves, until nothing has begun to come within the time-out."""
        now = self._clock()
        deadline, last_s = now + timeout_s, float("-inf")
        latest = deadline + self._line_time(2 * MAX_BODY) + 2 * self._deframer.gap_s
        while now <= deadline or (now - last_s <= self._deframer.gap_s and now <= latest):
            piece = self.port.read()
            now = self._clock()
            if piece:
                last_s = now
            for one in self._deframer.feed(piece, now):
                if isinstance(one, Frame) and one.from_slave:
                    yield one

    def pause(self, seconds: float) -> None:
        """Let time pass; what comes meanwhile is dropped."""
        until = self._clock() + seconds
        while self._clock() < until:
            self.port.read()

    def hello(self, address: int) -> HelloAnswer:
        """Ask one address who it is. Raises LineTimeout."""
        nonce = self._random(8)
        coded = Frame(address, Kind.HELLO, 0, HelloRequest(nonce).encode()).encode()
        for timeout_s in TIMEOUTS_S:
            self.port.write(coded)
            for frame in self._frames(self._line_time(len(coded)) + timeout_s):
                if (answer := _hello_of(frame, nonce)) and frame.address == address:
                    return answer
        raise LineTimeout(f"nobody answers at address {address}: check cable, address, speed and power")

    def discover(self, slots: int = 16) -> dict[str, tuple[int, HelloAnswer]]:
        """All terminals on the line: serial to address and answer. Rounds go on until three bring nothing new."""
        found: dict[str, tuple[int, HelloAnswer]] = {}
        quiet = 0
        slot_s = slot_seconds(self.port.baud or 115_200)
        while quiet < QUIET_ROUNDS:
            nonce, before, bad = self._random(8), len(found), self._deframer.bad
            coded = Frame(BROADCAST, Kind.HELLO, 0, HelloRequest(nonce, slots).encode()).encode()
            self.port.write(coded)
            until = self._clock() + self._line_time(len(coded)) + (slots + 1) * slot_s
            for frame in self._frames(until - self._clock()):
                if answer := _hello_of(frame, nonce):
                    found[answer.serial] = frame.address, answer
            quiet = 0 if len(found) > before else quiet + 1
            if self._deframer.bad > bad and slots < 128:
                slots *= 2  # some spoke at once
        return found

    def confirm_baud(self, address: int, baud: int) -> int:
        """After a slave agreed to a new speed: take it up if it works within 500 ms; returns the speed in force."""
        before = self.port.baud
        self.port.set_baud(baud)
        until = self._clock() + CONFIRM_S
        nonce = self._random(8)
        coded = Frame(address, Kind.HELLO, 0, HelloRequest(nonce).encode()).encode()
        while self._clock() < until - TIMEOUTS_S[0]:
            self.port.write(coded)
            if any(_hello_of(frame, nonce) for frame in self._frames(TIMEOUTS_S[0] + self._line_time(len(coded)))):
                return baud
        self.pause(until + 0.1 - self._clock())  # the slave falls back by then as well
        self.port.set_baud(before)
        return before


def _hello_of(frame: Frame, nonce: bytes) -> HelloAnswer | None:
    """The answer in a frame, if it is one to this nonce."""
    if frame.kind is not Kind.HELLO:
        return None
    try:
        answer = HelloAnswer.decode(frame.body)
    except FormatError:
        return None
    return answer if answer.nonce == nonce else None


class Slave:
    """A terminal's end of a line. Call :meth:`poll` again and again; it answers whatever has come by then."""

    def __init__(self, port: Port, clock: Callable[[], float], address: int, desk: Desk, gap_s: float) -> None:
        self.address = address
        self._port, self._clock, self._desk = port, clock, desk
        self._deframer = Deframer(gap_s, text=desk.text)
        self._asked = b""
        self._stored = b""
        self._parts: list[Frame] = []
        self._out: list[Frame] = []
        self._due: tuple[float, bytes] | None = None
        self._first_baud = port.baud
        self._fallback: tuple[float, int] | None = None
        self._heard_s = clock()

    @property
    def waiting(self) -> bool:
        """Whether an answer or a change of speed waits for its moment, so that :meth:`poll` must come soon."""
        return self._due is not None or self._fallback is not None

    def poll(self) -> None:
        """Read what has come and answer it. Raises TransportError when the line is gone."""
        piece = self._port.read()
        now = self._clock()
        for one in self._deframer.feed(piece, now):
            if isinstance(one, bytes):
                self._port.write(self._desk.answer_line(one))
            elif not one.from_slave and one.address in (self.address, BROADCAST):
                if now - self._heard_s > PARTS_S:
                    self._parts = []
                self._heard_s, self._fallback = now, None
                self._take(one, now)
        self._timers(now)

    def _timers(self, now: float) -> None:
        if self._due and now >= self._due[0]:
            coded, self._due = self._due[1], None
            self._port.write(coded)
        if self._fallback and now > self._fallback[0]:
            self._port.set_baud(self._fallback[1])
            self._fallback = None
        if self._port.baud != self._first_baud and now - self._heard_s > IDLE_S:
            self._port.set_baud(self._first_baud)

    def _take(self, frame: Frame, now: float) -> None:
        if frame.kind is Kind.HELLO:
            self._hello(frame, now)
            return
        if frame.address != self.address or frame.kind is Kind.BUSY:
            return
        coded = frame.encode()
        if coded == self._asked:  # our answer was lost: the command does not run again
            self._port.write(self._stored)
            return
        reply = self._reply(frame)
        if reply is None:
            return
        answer = reply.encode()
        if reply.kind is not Kind.BUSY:
            self._asked, self._stored = coded, answer
        self._port.write(answer)
        self._change_speed()

    def _hello(self, frame: Frame, now: float) -> None:
        try:
            request = HelloRequest.decode(frame.body)
        except FormatError:
            return
        answer = self._desk.hello(request.nonce)
        coded = Frame(self.address, Kind.HELLO, frame.seq, answer.encode(), from_slave=True).encode()
        wait_s = 0.0
        if frame.address == BROADCAST:
            slot = slot_of(answer.serial, request.nonce, request.slots)
            wait_s = slot * slot_seconds(self._port.baud or 115_200)
        self._due = now + wait_s, coded

    def _reply(self, frame: Frame) -> Frame | None:
        """The one frame that answers a new one; None for silence."""
        if frame.kind is Kind.ACK:
            if not self._out or next_seq(frame.seq) != self._out[0].seq:
                return None
            return self._out.pop(0)
        follows = self._parts and self._parts[-1].encrypted is frame.encrypted
        if not follows or frame.seq != next_seq(self._parts[-1].seq):
            self._parts = []
        if len(self._parts) * MAX_BODY > MAX_MESSAGE:
            self._parts = []
            return None
        if frame.more:
            self._parts.append(frame)
            return Frame(self.address, Kind.ACK, frame.seq, from_slave=True)
        message = b"".join(part.body for part in [*self._parts, frame])
        try:
            answer = self._desk.answer(message, encrypted=frame.encrypted)
        except Busy as busy:
            body = min(busy.ms, MAX_BUSY_MS).to_bytes(2, "big")
            return Frame(self.address, Kind.BUSY, frame.seq, body, from_slave=True)
        self._parts = []
        if answer is None:
            return None
        first, *self._out = fragments(self.address, frame.seq, answer[0], from_slave=True, encrypted=answer[1])
        return first

    def _change_speed(self) -> None:
        wanted, self._desk.speed_wanted = self._desk.speed_wanted, 0
        if wanted and wanted != self._port.baud:
            self._fallback = self._clock() + CONFIRM_S, self._port.baud
            self._port.set_baud(wanted)
