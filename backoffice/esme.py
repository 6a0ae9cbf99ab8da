"""The sender of short messages: an SMPP 3.4 client of a message centre (ota.md §7).

Logic only, as at the terminal's link: clock and line come in, there is no thread, :meth:`Esme.poll` does what is due.
A line that broke is opened again, sooner at first and later each minute. What was sent and not answered then is told
as lost: nobody knows whether the centre has it, and its owner may send it again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from cardlib.errors import FormatError, TransportError
from cardlib.wire.smpp import (
    BINDS,
    MAX_SEQUENCE,
    Bind,
    Command,
    Deframer,
    Message,
    Pdu,
    Status,
    UnknownPdu,
    message_id,
    named,
)

WINDOW = 10
"""Messages on their way to the centre without an answer."""
ANSWER_S = 20.0
"""A centre that does not answer for so long is gone: the line is opened anew."""
QUIET_S = 30.0
"""After this silence the centre is asked whether it is there."""
FIRST_RETRY_S, LAST_RETRY_S = 1.0, 60.0
THROTTLED_S = 1.0
"""How long nothing is sent after the centre asked for a pause."""


class Port(Protocol):
    """An open line to the centre: ``cardlib.netport.NetPort``, or a simulated one."""

    def write(self, data: bytes) -> None:
        """Send all. Raises TransportError when the line is gone."""

    def read(self) -> bytes:
        """What has come, empty for nothing; does not wait. Raises TransportError when the line is gone."""

    def close(self) -> None:
        """Let it go; calling it twice is allowed."""


class Owner(Protocol):
    """Whose messages they are: told once how each ended. ``key`` is what it gave to :meth:`Esme.submit`."""

    def accepted(self, key: str, message_id: str) -> None:
        """The centre has it. The id may be empty."""

    def rejected(self, key: str, status: int) -> None:
        """The centre will not take it (``cardlib.wire.smpp.Status``)."""

    def lost(self, key: str) -> None:
        """The line broke before the answer: the centre may have it."""

    def delivered(self, message: Message) -> None:
        """A message from a subscriber; when this raises, the centre is told to bring it again, and it comes out."""


class _Sent(NamedTuple):
    command: Command
    key: str
    message: Message | None
    """None for what is no message: a bind, a question whether the centre is there."""
    at_s: float


class Esme:
    """One connection to a message centre, kept up for as long as it is polled.

    ``kind``: who only sends binds as transmitter, else the centre may bring him what is meant for another.
    """

    def __init__(
        self, connect: Callable[[], Port], bind: Bind, owner: Owner, clock: Callable[[], float], window: int = WINDOW,
        kind: Command = Command.BIND_TRANSCEIVER,
    ) -> None:  # fmt: skip
        self._kind = kind
        self._connect, self._bind, self._owner, self._clock, self._window = connect, bind, owner, clock, window
        self.bound = False
        self.trouble = ""
        """Why there is no line, for people; empty while there is one."""
        self._port: Port | None = None
        self._queue: deque[tuple[str, Message]] = deque()
        self._out: dict[int, _Sent] = {}
        self._sequence = 0
        self._resume_s = self._try_s = self._heard_s = 0.0
        self._wait_s = FIRST_RETRY_S

    @property
    def waiting(self) -> int:
        """Messages that have not left yet, or are not answered."""
        return len(self._queue) + sum(one.message is not None for one in self._out.values())

    def submit(self, key: str, message: Message) -> None:
        """Send a message as soon as line and window allow. Raises FormatError at once for one that can't be sent."""
        message.encode()
        self._queue.append((key, message))

    def poll(self) -> None:
        """Do what is due: open the line, take what came, send what may leave. Raises what ``owner`` raises."""
        now = self._clock()
        try:
            if self._port is None:
                if now < self._try_s:
                    return
                self._open(now)
            self._take(now)
            self._timers(now)
            self._send(now)
        except (TransportError, FormatError) as e:
            self._drop(str(e))

    def close(self) -> None:
        """Take leave of the centre; what was not sent yet stays with its owner."""
        if self._port is not None and self.bound:
            try:
                self._request(Command.UNBIND)
            except TransportError as e:
                self.trouble = str(e)
        self._drop("closed")

    def _open(self, now: float) -> None:
        self._port = self._connect()
        self._deframer = Deframer()
        self._heard_s = now
        self._request(self._kind, self._bind.encode())

    def _drop(self, why: str) -> None:
        """The line is gone: say what is lost, try again later."""
        if self._port is not None:
            self._port.close()
        self._port, self.bound, self.trouble = None, False, why
        self._try_s = self._clock() + self._wait_s
        self._wait_s = min(2 * self._wait_s, LAST_RETRY_S)
        while self._out:  # one by one: an owner that raises hears of those behind at the next try
            _, sent = self._out.popitem()
            if sent.message is not None:
                self._owner.lost(sent.key)

    def _write(self, pdu: Pdu) -> None:
        if self._port is not None:
            self._port.write(pdu.encode())

    def _request(self, command: Command, body: bytes = b"", key: str = "", message: Message | None = None) -> None:
        self._sequence = self._sequence % MAX_SEQUENCE + 1
        # Before it is written: a write that fails may have left.
        self._out[self._sequence] = _Sent(command, key, message, self._clock())
        self._write(Pdu(command, Status.OK, self._sequence, body))

    def _timers(self, now: float) -> None:
        if any(now - sent.at_s > ANSWER_S for sent in self._out.values()):
            raise TransportError("the message centre does not answer")
        if self.bound and now - self._heard_s > QUIET_S and not self._out:
            self._request(Command.ENQUIRE_LINK)

    def _send(self, now: float) -> None:
        while self.bound and self._queue and len(self._out) < self._window and now >= self._resume_s:
            key, message = self._queue.popleft()
            self._request(Command.SUBMIT_SM, message.encode(), key, message)

    def _take(self, now: float) -> None:
        if self._port is None or not (piece := self._port.read()):
            return
        self._heard_s = now
        for pdu in self._deframer.feed(piece):
            if isinstance(pdu, UnknownPdu):
                self._write(Pdu(Command.GENERIC_NACK, Status.INVALID_COMMAND, pdu.sequence))
            elif pdu.command.is_answer:
                self._answered(pdu, now)
            else:
                self._asked(pdu)

    def _answered(self, pdu: Pdu, now: float) -> None:
        sent = self._out.get(pdu.sequence)
        if sent is None:
            return  # of a request that was given up
        if pdu.command not in (sent.command.answer, Command.GENERIC_NACK):
            raise FormatError("the message centre answers something that was not asked")
        del self._out[pdu.sequence]
        if sent.message is not None:
            self._submitted(sent.key, sent.message, pdu, now)
        elif sent.command in BINDS:
            if pdu.command is Command.GENERIC_NACK:
                raise TransportError(f"the message centre does not know {self._kind.name.lower()}")
            if pdu.status:
                raise TransportError(
                    f"the message centre refuses us: status {pdu.status:02X}, look at name and password"
                )
            self.bound, self.trouble, self._wait_s = True, "", FIRST_RETRY_S

    def _submitted(self, key: str, message: Message, pdu: Pdu, now: float) -> None:
        if Status.passes(pdu.status):
            self._resume_s = now + THROTTLED_S
            self._queue.appendleft((key, message))
        elif pdu.status:
            self._owner.rejected(key, pdu.status)
        else:
            self._owner.accepted(key, _id_in(pdu.body))

    def _asked(self, pdu: Pdu) -> None:
        if pdu.command is Command.DELIVER_SM:
            self._deliver(pdu)
        elif pdu.command is Command.ENQUIRE_LINK:
            self._write(Pdu(Command.ENQUIRE_LINK_RESP, Status.OK, pdu.sequence))
        elif pdu.command is Command.UNBIND:
            self._write(Pdu(Command.UNBIND_RESP, Status.OK, pdu.sequence))
            raise TransportError("the message centre took leave")
        else:
            self._write(Pdu(Command.GENERIC_NACK, Status.BAD_BIND_STATE, pdu.sequence))

    def _deliver(self, pdu: Pdu) -> None:
        """Answered only once its owner has it: the centre brings again what was not."""
        try:
            message = Message.decode(pdu.body)
        except FormatError:
            self._write(Pdu(Command.DELIVER_SM_RESP, Status.INVALID_LENGTH, pdu.sequence, named("")))
            return
        try:
            self._owner.delivered(message)
        except BaseException:
            self._write(Pdu(Command.DELIVER_SM_RESP, Status.SYSTEM_ERROR, pdu.sequence, named("")))
            raise
        self._write(Pdu(Command.DELIVER_SM_RESP, Status.OK, pdu.sequence, named("")))


def _id_in(body: bytes) -> str:
    """The message id, or an empty one when it is malformed: the centre has the message all the same."""
    try:
        return message_id(body)
    except FormatError:
        return ""
