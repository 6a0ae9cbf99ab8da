"""A simulated short message centre: an SMPP 3.4 server in front of simulated phones (ota.md §7).

Logic only: lines and clock come in, there is no thread, :meth:`Centre.poll` does what is due. What goes wrong on the
way is drawn from a seed. A phone costs one entry of a dictionary until somebody writes to it.
"""

from __future__ import annotations

import heapq
import re
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import NamedTuple, Protocol

from cardlib.errors import FormatError, StatusError, TransportError
from cardlib.wire import sms
from cardlib.wire.smpp import (
    BINDS,
    MAX_SEQUENCE,
    MESSAGES,
    Address,
    Bind,
    Command,
    Deframer,
    Message,
    Pdu,
    Status,
    UnknownPdu,
    named,
)

WINDOW = 10
"""Messages to one receiver without its answer."""
RETRY_S = 30.0
"""When a phone that was busy or away, or a receiver that refused, is tried again."""
VALID_S = 86_400.0
"""How long a message is kept that does not say it."""
MOST_VALID_S = 7 * 86_400.0
QUEUE = 100_000
"""Messages that the centre keeps."""
TEXTS = 10_000
"""Texts of which phones have a part and wait for others; the oldest are forgotten."""
SYSTEM = "onecard-smsc"
UDHI = 0x40
_BUSY = 0x9300
_TIME = re.compile(r"(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(\d)(\d\d)([R+-])", re.ASCII)


class Port(Protocol):
    """A line from a client, as ``cardlib.netport.NetPort`` is."""

    def write(self, data: bytes) -> None:
        """Send all. Raises TransportError."""

    def read(self) -> bytes:
        """What has come; does not wait. Raises TransportError."""

    def close(self) -> None:
        """Hang up."""


class Subscriber(Protocol):
    """A phone: ``simulator.phone.Phone``."""

    send: Callable[[bytes], bool] | None

    def deliver(self, tpdu: bytes) -> bytes:
        """An SMS-DELIVER for the SIM; what the delivery report holds. Raises StatusError, TransportError: not there."""

    def receive(self, text: str) -> None:
        """A text for the holder."""


class Faults(NamedTuple):
    """Odds from 0 to 1 of what goes wrong; ``slowest_s``: a message takes up to so long, so that they overtake.

    ``loss`` and ``twice`` are of the way between centre and phone, in both directions; ``throttled`` asks the client
    for a pause; ``cut`` hangs up instead of answering, half of the times having taken the message. ``late`` answers
    up to ``slowest_s`` later, so perhaps after the SIM; ``nameless`` answers with an empty message id.
    """

    loss: float = 0.0
    twice: float = 0.0
    slowest_s: float = 0.0
    throttled: float = 0.0
    cut: float = 0.0
    late: float = 0.0
    nameless: float = 0.0


NO_FAULTS = Faults()


class _Kept(NamedTuple):
    """A message on its way to a phone: an SMS-DELIVER, and whom an answer is for."""

    number: str
    tpdu: bytes
    message: Message
    until_s: float


@dataclass(eq=False)
class _Line:
    port: Port
    deframer: Deframer = field(default_factory=Deframer)
    bound: Command | None = None
    sequence: int = 0
    out: dict[int, tuple[Message, float]] = field(default_factory=dict)

    def write(self, command: Command, status: int, sequence: int, body: bytes = b"") -> None:
        self.port.write(Pdu(command, status, sequence, body).encode())


class Centre:
    """``accounts``: passwords by system id. ``clock``: seconds since 1970, of any world."""

    def __init__(
        self, accounts: Mapping[str, str], clock: Callable[[], float], faults: Faults = NO_FAULTS, seed: int = 0,
        queue: int = QUEUE,
    ) -> None:  # fmt: skip
        self._accounts, self._clock, self.faults, self._queue = accounts, clock, faults, queue
        self._random = Random(seed)
        self._phones: dict[str, Subscriber] = {}
        self._lines: list[_Line] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._upward: deque[tuple[Message, float]] = deque()
        self._texts: dict[tuple[str, sms.Address, int, int], dict[int, str]] = {}
        self._count = 0

    # Phones -----------------------------------------------------------------------------------------------------------

    def register(self, number: str, phone: Subscriber) -> None:
        """Give a phone its number (digits, without +). Raises FormatError for none."""
        self._phones[sms.Address.of(number).digits] = phone
        phone.send = lambda tpdu: self._from_phone(number, tpdu)

    def _from_phone(self, number: str, tpdu: bytes) -> bool:
        """Take an SMS-SUBMIT. False: the phone is told that it failed."""
        try:
            submit = sms.Submit.decode(tpdu)
            part = sms.TextPart(submit.dcs, submit.length or 0, submit.user_data, bool(submit.first & UDHI))
            text = sms.to_centre(part)
        except FormatError:
            return False
        to = submit.receiver
        message = Message(
            Address(number, 1, 1), Address(to.digits, to.toa >> 4 & 7, to.toa & 15), text,
            UDHI if part.has_header else 0, submit.pid, submit.dcs,
        )  # fmt: skip
        if to.digits in self._phones:
            return self._keep(message, self._clock()) is Status.OK
        self._on_the_way(lambda: self._to_client(message))
        return True

    def _on_the_way(self, arrive: Callable[[], None]) -> None:
        """What goes over the air arrives later, twice or never."""
        for _ in range(2 if self._drawn(self.faults.twice) else 1):
            if not self._drawn(self.faults.loss):
                self._at(self._clock() + self._random.uniform(0, self.faults.slowest_s), arrive)

    def _drawn(self, odds: float) -> bool:
        return self._random.random() < odds

    def _at(self, when_s: float, act: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (when_s, self._count, act))

    @property
    def next_s(self) -> float | None:
        """When something is due without anybody saying a word; None for nothing."""
        return self._events[0][0] if self._events else None

    def _keep(self, message: Message, now: float) -> Status:
        """Take a message for a phone."""
        number = message.destination.digits
        if number not in self._phones:
            return Status.INVALID_DESTINATION
        if len(self._events) >= self._queue:
            return Status.QUEUE_FULL
        header = bool(message.esm_class & UDHI)
        source = message.source
        try:
            begin_s = lasting_s(message.schedule, now, 0.0)
            until_s = lasting_s(message.validity, now, VALID_S)
            part = sms.from_centre(message.data_coding, message.text, has_header=header)
            if len(part.user_data) > sms.MAX_USER_DATA:
                return Status.INVALID_TEXT_LENGTH
            sender = sms.Address(0x80 | source.ton << 4 | source.npi, source.digits)
            if not sender.digits:
                return Status.INVALID_SOURCE
            tpdu = sms.Deliver(
                sender, part.user_data, message.protocol_id, message.data_coding, _stamp(now),
                sms.MORE | (UDHI if header else 0), part.length,
            ).encode()  # fmt: skip
        except (FormatError, ValueError):
            return Status.SUBMIT_FAILED
        kept = _Kept(number, tpdu, message, until_s)
        self._at(begin_s, lambda: self._on_the_way(lambda: self._to_phone(kept)))
        return Status.OK

    def _to_phone(self, kept: _Kept) -> None:
        """Bring a message; what the SIM answers in the delivery report goes back to the client."""
        now = self._clock()
        if now > kept.until_s:
            return
        phone, message = self._phones[kept.number], kept.message
        try:
            if message.protocol_id != sms.PID_DOWNLOAD:
                self._text(kept.number, phone, kept.tpdu)
                return
            report = phone.deliver(kept.tpdu)
        except (StatusError, TransportError) as e:
            if not isinstance(e, StatusError) or e.sw == _BUSY:
                self._at(now + RETRY_S, lambda: self._to_phone(kept))
            return
        except FormatError:
            return  # no text at all: a phone shows nothing
        if report:
            answer = Message(
                message.destination, message.source, report, UDHI, message.protocol_id, message.data_coding
            )
            self._on_the_way(lambda: self._to_client(answer))

    def _text(self, number: str, phone: Subscriber, tpdu: bytes) -> None:
        """Show a text once all of its parts are there."""
        deliver = sms.Deliver.decode(tpdu)
        concat, text = sms.decode_text(
            deliver.dcs, deliver.length or 0, deliver.user_data, has_header=bool(deliver.first & UDHI)
        )
        if concat is None:
            phone.receive(text)
            return
        key = (number, deliver.sender, concat.reference, concat.total)
        parts = self._texts.setdefault(key, {})
        parts[concat.number] = text
        if len(parts) == concat.total:
            del self._texts[key]
            phone.receive("".join(parts[n] for n in sorted(parts)))
        elif len(self._texts) > TEXTS:
            del self._texts[next(iter(self._texts))]

    # Clients ----------------------------------------------------------------------------------------------------------

    def attach(self, port: Port) -> None:
        """A client has called."""
        self._lines.append(_Line(port))

    def _to_client(self, message: Message) -> None:
        self._upward.append((message, self._clock() + VALID_S))

    def poll(self) -> None:
        """Do what is due: hear the clients, bring what is to be brought."""
        now = self._clock()
        for line in list(self._lines):
            self._guarded(line, self._hear)
        while self._events and self._events[0][0] <= now:
            heapq.heappop(self._events)[2]()
        for line in list(self._lines):
            if line.bound in (Command.BIND_RECEIVER, Command.BIND_TRANSCEIVER):
                self._guarded(line, self._bring)

    def _guarded(self, line: _Line, act: Callable[[_Line], None]) -> None:
        try:
            act(line)
        except (TransportError, FormatError):
            self._hang_up(line)

    def _hang_up(self, line: _Line) -> None:
        """What was not answered on this line is brought again on the next."""
        line.port.close()
        if line in self._lines:
            self._lines.remove(line)
        self._upward.extendleft(reversed(line.out.values()))
        line.out = {}

    def close(self) -> None:
        """Hang up on all clients."""
        for line in list(self._lines):
            self._hang_up(line)

    def _bring(self, line: _Line) -> None:
        now = self._clock()
        while self._upward and len(line.out) < WINDOW:
            message, until_s = self._upward.popleft()
            if now > until_s:
                continue
            line.sequence = line.sequence % MAX_SEQUENCE + 1
            line.out[line.sequence] = message, until_s
            line.write(Command.DELIVER_SM, Status.OK, line.sequence, message.encode())

    def _hear(self, line: _Line) -> None:
        piece = line.port.read()
        try:
            for pdu in line.deframer.feed(piece):
                if isinstance(pdu, UnknownPdu):
                    line.write(Command.GENERIC_NACK, Status.INVALID_COMMAND, pdu.sequence)
                elif pdu.command.is_answer:
                    self._answered(line, pdu)
                else:
                    self._asked(line, pdu)
        except FormatError:
            line.write(Command.GENERIC_NACK, Status.INVALID_LENGTH, 0)
            raise

    def _answered(self, line: _Line, pdu: Pdu) -> None:
        brought = line.out.pop(pdu.sequence, None)
        if brought is not None and pdu.status:
            self._at(self._clock() + RETRY_S, lambda: self._upward.append(brought))

    def _asked(self, line: _Line, pdu: Pdu) -> None:
        if pdu.command in BINDS:
            status = self._bind(line, pdu)
            body = b"" if status else named(SYSTEM) + bytes.fromhex("0210000134")
        elif pdu.command is Command.SUBMIT_SM and line.bound not in (None, Command.BIND_RECEIVER):
            status, body = self._submitted(pdu)
            if self._drawn(self.faults.late):
                after_s = self._random.uniform(0, self.faults.slowest_s)
                self._at(self._clock() + after_s, lambda: self._answer_late(line, pdu, status, body))
                return
        elif pdu.command is Command.ENQUIRE_LINK:
            status, body = Status.OK, b""
        elif pdu.command is Command.UNBIND and line.bound:
            line.write(Command.UNBIND_RESP, Status.OK, pdu.sequence)
            raise TransportError("the client took leave")
        else:
            status, body = Status.BAD_BIND_STATE, b"\0" if pdu.command in MESSAGES else b""
        line.write(pdu.command.answer, status, pdu.sequence, body)

    def _answer_late(self, line: _Line, pdu: Pdu, status: Status, body: bytes) -> None:
        if line in self._lines:
            self._guarded(line, lambda line: line.write(pdu.command.answer, status, pdu.sequence, body))

    def _bind(self, line: _Line, pdu: Pdu) -> Status:
        if line.bound:
            return Status.ALREADY_BOUND
        try:
            bind = Bind.decode(pdu.body)
        except FormatError:
            return Status.INVALID_LENGTH
        if bind.system_id not in self._accounts:
            return Status.INVALID_SYSTEM_ID
        if self._accounts[bind.system_id] != bind.password:
            return Status.INVALID_PASSWORD
        line.bound = pdu.command
        return Status.OK

    def _submitted(self, pdu: Pdu) -> tuple[Status, bytes]:
        """Status and body of the answer. Raises TransportError when the line is cut instead."""
        if self._drawn(self.faults.throttled):
            return Status.THROTTLED, b"\0"
        cut = self._drawn(self.faults.cut)
        if cut and self._drawn(0.5):
            raise TransportError("cut before the message was taken")
        try:
            message = Message.decode(pdu.body)
        except FormatError:
            return Status.INVALID_LENGTH, b"\0"
        status = self._keep(message, self._clock())
        message_id = "" if status or self._drawn(self.faults.nameless) else f"{self._count:08X}"
        if cut:
            raise TransportError("cut before the answer")
        return status, named(message_id)


def _stamp(now: float) -> bytes:
    """TP-SCTS in UTC: swapped digits of year to second, and the zone."""
    digits = datetime.fromtimestamp(now, UTC).strftime("%y%m%d%H%M%S") + "00"
    return bytes.fromhex("".join(digits[at + 1] + digits[at] for at in range(0, len(digits), 2)))


def lasting_s(text: str, now: float, default_s: float) -> float:
    """The moment that a time of SMPP means (§7.1.1): empty for a default after now. Raises FormatError."""
    if not text:
        return now + default_s
    found = _TIME.fullmatch(text)
    if found is None:
        raise FormatError("SMPP: a time has 16 characters, YYMMDDhhmmsstnnp")
    year, month, day, hour, minute, second, _, quarters = (int(one) for one in found.groups()[:8])
    if found[9] == "R":
        after = timedelta(365 * year + 30 * month + day, second, 0, 0, minute, hour)
        return now + min(after.total_seconds(), MOST_VALID_S)
    try:
        at = datetime(2000 + year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError as e:
        raise FormatError("SMPP: a time that does not exist") from e
    return (at - timedelta(minutes=15 * quarters) * (-1 if found[9] == "-" else 1)).timestamp()
