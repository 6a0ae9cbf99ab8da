"""OSDP's control panel: a bus of up to 126 devices (readers, doors) on one serial line.

    bus = Bus(port, 9_600, secrets.token_bytes)
    bus.add(0x01, scbk)
    for event in bus.step(now_ms): ...          # as often as bus.wake_ms(now_ms) says, and when bytes arrive

No thread and no clock of its own: it runs on a serial port (``serve``) and on a simulated line alike.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, unique
from typing import NamedTuple, Protocol

from cardlib.errors import (
    CardRemoved,
    ConfigError,
    Conflict,
    FormatError,
    LineTimeout,
    MacMismatch,
    NotFound,
    ReaderLost,
    Refused,
)
from cardlib.wire import osdp
from cardlib.wire.osdp import MARK, MAX_PDS, Framer, KeyKind, Message, NakCode, Packet, Scs
from cardlib.wire.osdp_secure import SCBK_D, SecureChannel, require_equal

REPLY_MS = 200
OFFLINE_MS = 8_000
PROBE_MS = 500
"""How often a device that is away is asked whether it is back."""
PROBE_SHARE = 3
"""Of the line's time, one part in so many may go to devices that are away."""
BUSY_LIMIT_MS = 30_000
MAX_QUEUED = 32
_COMMAND_ROOM = 64
"""Bytes of a packet that are not a file's: head, security block, MAC, padding, file header."""


class SerialPort(Protocol):
    """What the bus needs of a line."""

    def write(self, data: bytes) -> None:
        """Send."""

    def read(self) -> bytes:
        """What has arrived, without waiting."""

    def set_baud(self, baud: int) -> None:
        """Change the speed."""


class Lasting:
    """A serial port that is opened anew after it was lost: reading tells of the loss, writing into it is silence."""

    def __init__(self, make: Callable[[], SerialPort]) -> None:
        self._make = make
        self._port: SerialPort | None = make()

    def write(self, data: bytes) -> None:
        """Send, or lose it."""
        if self._port is not None:
            try:
                self._port.write(data)
            except ReaderLost:
                self._drop()

    def read(self) -> bytes:
        """What has come. Raises ReaderLost; the next read looks for the port again."""
        try:
            if self._port is None:
                self._port = self._make()
            return self._port.read()
        except ReaderLost:
            self._drop()
            raise

    def set_baud(self, baud: int) -> None:
        """Change the speed."""
        if self._port is not None:
            self._port.set_baud(baud)

    def close(self) -> None:
        """Let the port go."""
        self._drop()

    def _drop(self) -> None:
        port, self._port = self._port, None
        if close := getattr(port, "close", None):
            close()


@unique
class Security(Enum):
    """How a device is talked to. Only SECURE is for use; the others need a bus that says it is a bench."""

    SECURE = "secure"
    INSTALL = "install"
    PLAIN = "plain"


@unique
class State(Enum):
    """How far a device is; in the order of connecting."""

    AWAY = "away"
    CAPABILITIES = "capabilities"
    CHALLENGE = "challenge"
    CRYPTOGRAM = "cryptogram"
    ONLINE = "online"


class Event(NamedTuple):
    """Something a device reports, or that it came online or went away (``message`` None)."""

    address: int
    message: Message | None
    online: bool = True


@dataclass(eq=False)
class Ticket:
    """A command on its way; ``reply`` or ``error`` is there when ``is_done``."""

    command: Message
    reply: Message | None = None
    error: Exception | None = None

    @property
    def is_done(self) -> bool:
        """Whether the outcome is known."""
        return self.reply is not None or self.error is not None

    def result(self) -> Message:
        """The reply. Raises what went wrong, Conflict when it is still under way."""
        if self.error is not None:
            raise self.error
        if self.reply is None:
            raise Conflict("this OSDP command is still under way: step the bus until it is done")
        return self.reply


@dataclass(eq=False, repr=False)
class Pd:
    """What the panel knows of one device."""

    address: int
    security: Security
    keys: list[bytes]  # the one in use first; a second one while a change is not confirmed
    crc: bool = True
    state: State = State.AWAY
    ident: osdp.PdId | None = None
    capabilities: tuple[osdp.Capability, ...] = ()
    sequence: int = 0
    channel: SecureChannel | None = None
    rnd_a: bytes = b""
    queue: deque[Ticket] = field(default_factory=deque)
    due_ms: int = 0
    heard_ms: int = 0
    sent: bytes = b""
    sent_code: int = 0
    ticket: Ticket | None = None
    busy_since_ms: int | None = None
    unconfirmed: bytes | None = None  # an event handed on whose acknowledgement may not have arrived
    places: list[tuple[int, int]] = field(default_factory=list)  # address and speed where it may be, when unknown
    is_fresh: bool = True  # no poll was answered since it last connected

    @property
    def room(self) -> int:
        """Bytes of a file that fit one packet (capability 10: receive buffer, le16)."""
        size = next((c.level | c.count << 8 for c in self.capabilities if c.function == 10), 128)
        return max(16, min(size or 128, osdp.MAX_PACKET) - _COMMAND_ROOM)


class Bus:
    """The line and all devices on it. Belongs to one thread.

    ``poll_ms``: how often a device is asked at most. ``bench``: INSTALL and PLAIN are allowed.
    ``on_key(address, key)`` is told when a device has proved that it holds a changed key.
    """

    def __init__(
        self,
        port: SerialPort,
        baud: int,
        random_bytes: Callable[[int], bytes],
        *,
        poll_ms: int = 20,
        bench: bool = False,
    ) -> None:
        if baud not in osdp.BAUDS:
            raise ConfigError(f"{baud} baud is no OSDP speed: take one of {', '.join(map(str, osdp.BAUDS))}")
        self.baud = baud
        self.pds: dict[int, Pd] = {}
        self.on_key: Callable[[int, bytes], object] = lambda _address, _key: None
        self._port = port
        self._random_bytes = random_bytes
        self._poll_ms = poll_ms
        self._bench = bench
        self._framer = Framer()
        self._turn: deque[Pd] = deque()
        self._current: Pd | None = None
        self._deadline_ms = 0
        self._probe_from_ms = 0
        self._began_ms = 0

    def add(
        self, address: int, scbk: bytes | None = None, *, security: Security = Security.SECURE, crc: bool = True
    ) -> Pd:
        """Put a device on the bus. Raises ConfigError, Conflict, Refused."""
        if not 0 <= address < osdp.ANY_ADDRESS:
            raise ConfigError(f"OSDP address {address} is not one of 0 to {osdp.ANY_ADDRESS - 1}")
        if address in self.pds or len(self.pds) >= MAX_PDS:
            raise Conflict(f"OSDP address {address:02X} is taken, or {MAX_PDS} devices are on this bus already")
        if security is not Security.SECURE and not self._bench:
            raise Refused("bench", f"{security.value} mode is for a bench: open the bus as one, away from real doors")
        if security is Security.SECURE and (scbk is None or len(scbk) != 16 or scbk == SCBK_D):
            raise ConfigError(f"OSDP device {address:02X} needs its own 16-byte SCBK, not none and not the default key")
        keys = {Security.SECURE: [scbk or b""], Security.INSTALL: [SCBK_D], Security.PLAIN: []}[security]
        pd = Pd(address, security, keys, crc)
        self.pds[address] = pd
        self._turn.append(pd)
        return pd

    def remove(self, address: int) -> None:
        """Take a device off; its commands end with LineTimeout. Raises NotFound."""
        pd = self.pd(address)
        del self.pds[address]
        self._turn.remove(pd)
        if self._current is pd:
            self._current = None
        self._fail_all(pd, LineTimeout(f"OSDP device {address:02X} was taken off the bus"))

    def pd(self, address: int) -> Pd:
        """A device. Raises NotFound."""
        if address not in self.pds:
            raise NotFound(f"no OSDP device {address:02X} on this bus")
        return self.pds[address]

    def send(self, address: int, command: Message) -> Ticket:
        """Queue a command for a device that is online. Raises NotFound, Conflict, LineTimeout, Refused, FormatError."""
        pd = self.pd(address)
        if pd.state is not State.ONLINE:
            raise LineTimeout(f"OSDP device {address:02X} is {pd.state.value}: look at its line and its key")
        if len(pd.queue) >= MAX_QUEUED:
            raise Conflict(f"{MAX_QUEUED} commands wait for OSDP device {address:02X} already: let it catch up")
        if isinstance(command, osdp.Keyset):
            if pd.security is not Security.SECURE:
                raise Refused(
                    "bench", "a real key never travels in clear or under the default key: inject it by the link"
                )
            if command.key == SCBK_D:
                raise Refused("default_key", "the public default key is nobody's own key: make another")
        if isinstance(command, osdp.Comset) and command.baud != self.baud and len(self.pds) > 1:
            raise Refused("comset", "other devices share this line: change the speed with one device at a time on it")
        command.encode()
        ticket = Ticket(command)
        pd.queue.append(ticket)
        return ticket

    def set_key(self, address: int, key: bytes) -> Ticket:
        """Give a device another SCBK under its present one; ``on_key`` tells when it has proved to hold it."""
        return self.send(address, osdp.Keyset(1, key))

    def set_com(self, address: int, new_address: int, baud: int) -> Ticket:
        """Give a device another address and speed. Raises also Conflict when the address is taken, ConfigError."""
        if new_address != address and (new_address in self.pds or not 0 <= new_address < osdp.ANY_ADDRESS):
            raise Conflict(f"OSDP address {new_address:02X} is taken or none")
        if baud not in osdp.BAUDS:
            raise ConfigError(f"{baud} baud is no OSDP speed: take one of {', '.join(map(str, osdp.BAUDS))}")
        return self.send(address, osdp.Comset(new_address, baud))

    def wake_ms(self, now_ms: int) -> int:
        """When ``step`` wants to be called if no bytes arrive before."""
        if self._current is not None:
            ends = self._framer.deadline_ms
            return max(self._deadline_ms, ends) if ends is not None else self._deadline_ms
        return min((self._due(pd) for pd in self._turn), default=now_ms + self._poll_ms)

    def step(self, now_ms: int) -> list[Event]:
        """Take what arrived, repeat or give up what was not answered, ask the next device; returns what happened."""
        events: list[Event] = []
        for raw in self._framer.feed(self._port.read(), now_ms):
            if self._current is not None:
                events += self._on_packet(self._current, raw, now_ms)
        if self._current is not None and now_ms >= self._deadline_ms and not self._framer.is_receiving(now_ms):
            pd, self._current = self._current, None
            events += self._on_silence(pd, now_ms)
        if self._current is None:
            self._next(now_ms)
        return events

    # Sending.

    def _due(self, pd: Pd) -> int:
        return max(pd.due_ms, self._probe_from_ms) if pd.state is State.AWAY else pd.due_ms

    def _next(self, now_ms: int) -> None:
        """Serve the device whose turn it is: the first in the row that is due."""
        for _ in range(len(self._turn)):
            pd = self._turn[0]
            self._turn.rotate(-1)
            if self._due(pd) <= now_ms:
                self._transmit(pd, now_ms)
                return

    def _transmit(self, pd: Pd, now_ms: int) -> None:
        if not pd.sent:
            pd.sent = self._build(pd)
        wire = MARK + pd.sent
        self._current, self._began_ms = pd, now_ms
        self._deadline_ms = now_ms + len(wire) * 10_000 // self.baud + REPLY_MS
        self._port.write(wire)

    def _build(self, pd: Pd) -> bytes:
        """The next packet for a device: the step of connecting it is at, a waiting command, or a poll."""
        if pd.state is State.AWAY:
            pd.channel, pd.sequence = None, 0
            command: Message = osdp.IdRequest()
        elif pd.state is State.CAPABILITIES:
            command = osdp.CapRequest()
        elif pd.state is State.CHALLENGE:
            pd.rnd_a = self._random_bytes(8)
            command = osdp.Chlng(pd.rnd_a)
        elif pd.state is State.CRYPTOGRAM and pd.channel is not None:
            command = osdp.Scrypt(pd.channel.server_cryptogram)
        else:
            command = self._take_command(pd)
        pd.sent_code = command.code
        packet = Packet(pd.address, pd.sequence, command.code, command.encode(), crc=pd.crc)
        if pd.state is State.ONLINE and pd.channel is not None:
            return pd.channel.seal(packet)
        kind = KeyKind.DEFAULT if pd.security is Security.INSTALL else KeyKind.OWN
        step = {State.CHALLENGE: Scs.CHALLENGE, State.CRYPTOGRAM: Scs.SERVER}.get(pd.state)
        return packet._replace(scb=bytes([step, kind]) if step else b"").encode()

    def _take_command(self, pd: Pd) -> Message:
        if not pd.queue:
            return osdp.Poll()
        pd.ticket = pd.queue.popleft()
        if isinstance(pd.ticket.command, osdp.Keyset):
            pd.keys = [pd.ticket.command.key, pd.keys[0]]  # which one it holds is known when it proves it
        return pd.ticket.command

    # Receiving.

    def _on_packet(self, pd: Pd, raw: bytes, now_ms: int) -> list[Event]:
        """Judge a packet against what was asked; whatever does not fit counts as silence."""
        try:
            packet = osdp.decode(raw)
            if not packet.reply or packet.address != pd.address:
                return []
            if packet.code == osdp.Busy.code and not packet.scb:
                return self._on_busy(pd, now_ms)
            if packet.sequence != pd.sequence:
                return []
            if packet.code == osdp.Nak.code and not packet.scb and pd.state is State.ONLINE and pd.channel is not None:
                return self._on_plain_nak(pd, packet, now_ms)
            if pd.state is State.ONLINE and pd.channel is not None:
                packet = pd.channel.open(packet, raw)
            elif packet.mac:
                return []
            reply = osdp.parse(packet.code, packet.data, reply=True)
        except (FormatError, MacMismatch):
            return []
        self._current = None
        pd.heard_ms, pd.busy_since_ms, pd.sent = now_ms, None, b""
        pd.sequence = pd.sequence % 3 + 1
        pd.due_ms = max(now_ms, self._began_ms + self._poll_ms)
        if pd.state is State.ONLINE:
            return self._on_reply(pd, reply, now_ms)
        pd.due_ms = now_ms
        return self._on_connecting(pd, packet, reply, now_ms)

    def _on_busy(self, pd: Pd, now_ms: int) -> list[Event]:
        """The device is there and wants to be asked the same again later."""
        self._current = None
        pd.heard_ms, pd.due_ms = now_ms, now_ms + REPLY_MS
        pd.busy_since_ms = now_ms if pd.busy_since_ms is None else pd.busy_since_ms
        if now_ms - pd.busy_since_ms >= BUSY_LIMIT_MS:
            return self._restart(pd, now_ms, "was busy for too long")
        return []

    def _on_plain_nak(self, pd: Pd, packet: Packet, now_ms: int) -> list[Event]:
        """Only 05 and 06 say that the channel is gone; all others may be noise and are not even authenticated."""
        if packet.data[:1] not in {bytes([NakCode.NO_SECURITY]), bytes([NakCode.SECURITY_NEEDED])}:
            return []
        self._current = None
        pd.unconfirmed = None  # it has lost its memory: what comes next is new
        events = self._restart(pd, now_ms, "has lost its secure channel")
        pd.due_ms = self._probe_from_ms = now_ms
        return events

    def _on_reply(self, pd: Pd, reply: Message, now_ms: int) -> list[Event]:
        ticket, pd.ticket = pd.ticket, None
        if ticket is not None:
            pd.unconfirmed = pd.unconfirmed if pd.is_fresh else None
            return self._on_answer(pd, ticket, reply, now_ms)
        before, pd.unconfirmed = pd.unconfirmed if pd.is_fresh else None, None
        pd.is_fresh = False
        if reply.code in osdp.EVENTS:
            pd.unconfirmed = bytes([reply.code]) + reply.encode()
            return [] if pd.unconfirmed == before else [Event(pd.address, reply)]
        if isinstance(reply, osdp.Nak) and pd.channel is None and reply.error == NakCode.SEQUENCE:
            return self._restart(pd, now_ms, "lost count")
        return []

    def _on_answer(self, pd: Pd, ticket: Ticket, reply: Message, now_ms: int) -> list[Event]:
        pd.due_ms = now_ms  # a command comes on top of the polls
        if isinstance(reply, osdp.Nak):
            name = NakCode(reply.error).name.lower() if reply.error in list(NakCode) else f"{reply.error:02X}"
            ticket.error = Refused(
                f"osdp_{name}", f"OSDP device {pd.address:02X} refuses {ticket.command.code:02X}: {name}"
            )
            if isinstance(ticket.command, osdp.Keyset):
                pd.keys = pd.keys[1:]
            return []
        ticket.reply = reply
        if isinstance(ticket.command, osdp.Keyset):
            return self._restart(pd, now_ms, "takes its new key", at_once=True)
        if isinstance(ticket.command, osdp.Comset):
            wanted = ticket.command
            if reply == osdp.Com(wanted.address, wanted.baud):
                self._move(pd, wanted.address, wanted.baud)
            else:
                ticket.reply, ticket.error = (
                    None,
                    Refused("comset", f"OSDP device {pd.address:02X} takes other settings"),
                )
        return []

    def _move(self, pd: Pd, address: int, baud: int) -> None:
        """A device is, or may be, at another address and speed."""
        if self.pds.get(address, pd) is pd:
            del self.pds[pd.address]
            pd.address = address
            self.pds[address] = pd
        if baud != self.baud:
            self.baud = baud
            self._port.set_baud(baud)

    def _on_connecting(self, pd: Pd, packet: Packet, reply: Message, now_ms: int) -> list[Event]:
        """One step further, or back to the beginning with a pause when the device refuses."""
        match pd.state, reply:
            case State.AWAY, osdp.PdId() | osdp.Nak():
                pd.places.clear()
                pd.ident = reply if isinstance(reply, osdp.PdId) else pd.ident
                pd.state = State.CAPABILITIES if not pd.capabilities else self._after_capabilities(pd)
            case State.CAPABILITIES, osdp.PdCap() | osdp.Nak():
                pd.capabilities = reply.capabilities if isinstance(reply, osdp.PdCap) else ()
                pd.state = self._after_capabilities(pd)
            case State.CHALLENGE, osdp.Ccrypt():
                try:
                    self._on_ccrypt(pd, packet, reply)
                except MacMismatch as e:
                    return self._refused(pd, now_ms, e)
            case State.CRYPTOGRAM, osdp.RmacI() if pd.channel is not None:
                try:
                    self._on_rmac(pd, packet, reply, pd.channel)
                except MacMismatch as e:
                    return self._refused(pd, now_ms, e)
            case _:
                return self._refused(pd, now_ms, MacMismatch(f"OSDP device {pd.address:02X} refuses the channel"))
        return [Event(pd.address, None)] if pd.state is State.ONLINE else []

    @staticmethod
    def _after_capabilities(pd: Pd) -> State:
        return State.ONLINE if pd.security is Security.PLAIN else State.CHALLENGE

    @staticmethod
    def _on_ccrypt(pd: Pd, packet: Packet, reply: osdp.Ccrypt) -> None:
        kind = KeyKind.DEFAULT if pd.security is Security.INSTALL else KeyKind.OWN
        if packet.scb != bytes([Scs.CRYPTOGRAM, kind]):
            raise MacMismatch(f"OSDP device {pd.address:02X} answers with another key than it was asked for")
        channel = SecureChannel(pd.keys[0], pd.rnd_a, reply.rnd_b)
        require_equal(reply.cryptogram, channel.client_cryptogram, f"the cryptogram of device {pd.address:02X}")
        pd.channel, pd.state = channel, State.CRYPTOGRAM

    def _on_rmac(self, pd: Pd, packet: Packet, reply: osdp.RmacI, channel: SecureChannel) -> None:
        if packet.scb != bytes([Scs.RMAC, 1]):
            raise MacMismatch(f"OSDP device {pd.address:02X} does not accept the panel's cryptogram")
        require_equal(reply.rmac, channel.rmac_i, f"the first MAC of device {pd.address:02X}")
        pd.state = State.ONLINE
        if len(pd.keys) > 1:
            del pd.keys[1:]
            self.on_key(pd.address, pd.keys[0])

    def _refused(self, pd: Pd, now_ms: int, error: Exception) -> list[Event]:
        """Connecting failed: try the other key where there are two, after a pause."""
        pd.keys = pd.keys[1:] + pd.keys[:1]
        return self._restart(pd, now_ms, str(error))

    # Going away.

    def _on_silence(self, pd: Pd, now_ms: int) -> list[Event]:
        """No whole valid reply in time: the same bytes again, until 8 s are over."""
        if pd.state is State.AWAY:  # those who are away get their share of the line's time, not more
            self._probe_from_ms = now_ms + (now_ms - self._began_ms) * (PROBE_SHARE - 1)
            if pd.places:
                pd.places.append(pd.places.pop(0))
                self._move(pd, *pd.places[0])
        if pd.state is State.AWAY or now_ms - pd.heard_ms >= OFFLINE_MS:
            return self._restart(pd, now_ms, "does not answer")
        pd.due_ms = now_ms
        return []

    def _restart(self, pd: Pd, now_ms: int, why: str, *, at_once: bool = False) -> list[Event]:
        was_online = pd.state is State.ONLINE
        if pd.ticket is not None and isinstance(pd.ticket.command, osdp.Comset):
            moved = pd.ticket.command
            pd.places = [(pd.address, self.baud), (moved.address, moved.baud)]
        pd.state, pd.channel, pd.sent, pd.sequence = State.AWAY, None, b"", 0
        pd.busy_since_ms, pd.is_fresh = None, True
        pd.due_ms = now_ms if at_once else now_ms + PROBE_MS
        if at_once:
            return []
        self._fail_all(pd, LineTimeout(f"OSDP device {pd.address:02X} {why}: it is asked again every {PROBE_MS} ms"))
        return [Event(pd.address, None, online=False)] if was_online else []

    @staticmethod
    def _fail_all(pd: Pd, error: Exception) -> None:
        waiting = [pd.ticket, *pd.queue] if pd.ticket is not None else list(pd.queue)
        for ticket in waiting:
            ticket.error = error
        pd.ticket = None
        pd.queue.clear()


class Remote:
    """A card in a reader behind OSDP (XWR): a ``cardlib.transport.Transport``.

    ``pump`` lets the bus run on for a moment, in real or simulated time. ``later`` waits for the answer of a reader
    that acknowledges an APDU first and answers at a poll.
    """

    def __init__(
        self, bus: Bus, address: int, pump: Callable[[], object], *, reader: int = 0, atr: bytes = b"",
        later: Callable[[], Message] | None = None,
    ) -> None:  # fmt: skip
        self._bus, self._address, self._pump, self._reader = bus, address, pump, reader
        self._later = later
        self.atr = atr

    def transceive(self, command: bytes) -> bytes:
        """One APDU there and back. Raises CardRemoved when the reader says so, LineTimeout, Refused, FormatError."""
        reply = wait(self._bus.send(self._address, osdp.Xwr(1, 1, bytes([self._reader]) + command)), self._pump)
        if isinstance(reply, osdp.Ack) and self._later is not None:
            reply = self._later()
        if not isinstance(reply, osdp.Xrd) or (reply.mode, reply.function) != (1, 2) or len(reply.data) < 2:
            raise FormatError(f"OSDP device {self._address:02X} answers an APDU with {reply.code:02X}")
        if reply.data[0] != self._reader or reply.data[1]:
            raise CardRemoved(
                f"OSDP reader {self._address:02X}: no card answers (status {reply.data[1]:02X}): present it again"
            )
        return reply.data[2:]

    def close(self) -> None:
        """Tell the reader that the card is done with; one that is away forgets it by itself."""
        with suppress(LineTimeout, Conflict, NotFound):
            self._bus.send(self._address, osdp.Xwr(1, 2, bytes([self._reader])))


def wait(ticket: Ticket, pump: Callable[[], object]) -> Message:
    """Let the bus run until a command's outcome is known. Raises what ``Ticket.result`` raises."""
    while not ticket.is_done:
        pump()
    return ticket.result()


def send_file(bus: Bus, address: int, kind: int, data: bytes, pump: Callable[[float], object]) -> None:
    """Send a file piece by piece; polls go on between. ``pump(ms)`` lets the bus run at least so long.

    Raises Refused when the device does not take it, LineTimeout, NotFound.
    """
    offset, most = 0, bus.pd(address).room
    while True:
        piece = data[offset : offset + most]
        ticket = bus.send(address, osdp.FileTransfer(kind, len(data), offset, piece))
        reply = wait(ticket, lambda: pump(0))
        if not isinstance(reply, osdp.FtStat) or reply.status < 0:
            status = reply.status if isinstance(reply, osdp.FtStat) else f"reply {reply.code:02X}"
            raise Refused("osdp_file", f"OSDP device {address:02X} does not take the file: {status}")
        offset += len(piece)
        if reply.most:
            most = min(reply.most, bus.pd(address).room)
        if offset >= len(data) and reply.status != 3:
            return
        pump(reply.delay_ms)


def serve(
    bus: Bus, now_ms: Callable[[], int], sleep: Callable[[float], object], stop: Callable[[], bool]
) -> Iterator[Event]:
    """Run the bus on a real line: yields what happens. ``sleep`` takes seconds."""
    while not stop():
        yield from bus.step(now_ms())
        sleep(min(max(bus.wake_ms(now_ms()) - now_ms(), 1), 2) / 1000)
