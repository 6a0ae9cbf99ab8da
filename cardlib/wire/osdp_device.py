"""The device's (PD's) end of OSDP without policy: sequence, stored reply, channel, events until acknowledged.

The simulated reader and a real reader head put their behaviour behind ``handle``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from hmac import compare_digest

from cardlib.errors import Conflict, FormatError, MacMismatch
from cardlib.wire import osdp
from cardlib.wire.osdp import ANY_ADDRESS, Framer, KeyKind, Message, NakCode, Packet, Scs
from cardlib.wire.osdp_secure import SCBK_D, SecureChannel

OFFLINE_MS = 8_000
"""A device that hears nothing for so long forgets its channel."""
MAX_EVENTS = 1_024
_IN_CLEAR = frozenset({osdp.IdRequest.code, osdp.CapRequest.code, osdp.Chlng.code, osdp.Scrypt.code})
"""What a device answers outside the channel that it insists on."""


class Device:
    """One PD. ``handle(message)`` answers whatever is not the protocol's own; None is ACK.

    ``scbk`` None: a device without a key, plain only. ``install``: it also takes the public default key.
    ``cuid`` is 8 bytes. Events wait in a queue, each until the panel's next sequence number acknowledges it.
    """

    def __init__(
        self,
        address: int,
        scbk: bytes | None,
        cuid: bytes,
        handle: Callable[[Message], Message | None],
        random_bytes: Callable[[int], bytes],
        *,
        install: bool = False,
    ) -> None:
        self.address = address
        self.scbk = scbk
        self.cuid = cuid
        self.install = install
        self.on_key: Callable[[bytes], object] = lambda _: None
        self.on_com: Callable[[osdp.Com], object] = lambda _: None
        self._handle = handle
        self._random_bytes = random_bytes
        self.events: deque[Message] = deque()
        self.reset()

    def reset(self) -> None:
        """Power on: nothing is known of the line; the queue of events is the owner's to keep or to clear."""
        self._framer = Framer()
        self._sequence: int | None = None
        self._stored = b""
        self._sent_event = False
        self._channel: SecureChannel | None = None
        self._offered: SecureChannel | None = None
        self._offered_kind = KeyKind.OWN
        self._heard_ms: int | None = None

    @property
    def is_secure(self) -> bool:
        """Whether a secure channel is open."""
        return self._channel is not None

    def report(self, event: Message) -> None:
        """Queue an event for the panel's next poll. Raises Conflict when the queue is full."""
        if len(self.events) >= MAX_EVENTS:
            raise Conflict(f"OSDP device {self.address:02X}: {MAX_EVENTS} events wait already: is the panel there?")
        self.events.append(event)

    def forget(self) -> None:
        """Drop the events that wait; one that was sent and is not acknowledged yet stays."""
        while len(self.events) > self._sent_event:
            self.events.pop()

    def receive(self, data: bytes, now_ms: int) -> bytes:
        """Take bytes of the line and return what to send, mostly nothing."""
        answer = b""
        for raw in self._framer.feed(data, now_ms):
            try:
                packet = osdp.decode(raw)
            except FormatError:
                continue
            if not packet.reply and packet.address in {self.address, ANY_ADDRESS}:
                answer = self._on_command(packet, raw, now_ms)
        return answer

    def _on_command(self, packet: Packet, raw: bytes, now_ms: int) -> bytes:
        if self._heard_ms is not None and now_ms - self._heard_ms >= OFFLINE_MS:
            self._channel = self._offered = None
        self._heard_ms = now_ms
        if packet.sequence == 0:
            self._channel = self._offered = None
            self._sent_event = False
        elif packet.sequence == self._sequence and self._stored:
            return self._stored  # the panel did not get it: same sequence, same reply, nothing done twice
        elif self._sequence is None or packet.sequence != self._sequence % 3 + 1:
            # Power was away (no session: 06 has the panel begin again), or the panel lost count.
            lost = packet.scs is not None and self._channel is None
            return self._plain(packet, osdp.Nak(NakCode.SECURITY_NEEDED if lost else NakCode.SEQUENCE))
        if packet.mac and self._channel is not None:
            try:
                packet = self._channel.open(packet, raw)
            except (MacMismatch, FormatError):
                return b""  # damage that the check missed: the panel repeats
            reply = self._act(packet, inside=True, enciphered=raw[6] == Scs.COMMAND_DATA)
            self._store(packet, self._channel.seal(self._packet(packet, reply)))
        else:
            reply, scb = self._in_clear(packet)
            self._store(packet, self._packet(packet, reply)._replace(scb=scb).encode())
        if isinstance(reply, osdp.Com):
            self.address = reply.address
            self.on_com(reply)
        return self._stored

    def _store(self, packet: Packet, reply: bytes) -> None:
        self._sequence, self._stored = packet.sequence, reply

    def _packet(self, command: Packet, reply: Message) -> Packet:
        return Packet(self.address, command.sequence, reply.code, reply.encode(), reply=True, crc=command.crc)

    def _plain(self, command: Packet, reply: Message) -> bytes:
        return self._packet(command, reply).encode()

    def _in_clear(self, packet: Packet) -> tuple[Message, bytes]:
        """Answer a plain command or a step of the handshake: the reply and its security block."""
        if packet.scs is not None and packet.scs.has_mac:
            return osdp.Nak(NakCode.SECURITY_NEEDED), b""
        if packet.scs is Scs.CHALLENGE and packet.code == osdp.Chlng.code:
            return self._challenge(packet)
        if packet.scs is Scs.SERVER and packet.code == osdp.Scrypt.code:
            return self._server_cryptogram(packet)
        if packet.scs is not None:
            return osdp.Nak(NakCode.NO_SECURITY), b""
        if self._channel is not None or (self.scbk is not None and packet.code not in _IN_CLEAR):
            return osdp.Nak(NakCode.SECURITY_NEEDED), b""
        return self._act(packet, inside=False, enciphered=False), b""

    def _challenge(self, packet: Packet) -> tuple[Message, bytes]:
        kind = KeyKind(packet.scb[1])
        key = self.scbk if kind is KeyKind.OWN else SCBK_D if self.install else None
        if key is None:
            return osdp.Nak(NakCode.NO_SECURITY), b""
        try:
            rnd_a = osdp.Chlng.decode(packet.data).rnd_a
        except FormatError:
            return osdp.Nak(NakCode.LENGTH), b""
        self._channel = None
        rnd_b = self._random_bytes(8)
        self._offered, self._offered_kind = SecureChannel(key, rnd_a, rnd_b), kind
        return osdp.Ccrypt(self.cuid, rnd_b, self._offered.client_cryptogram), bytes([Scs.CRYPTOGRAM, kind])

    def _server_cryptogram(self, packet: Packet) -> tuple[Message, bytes]:
        offered, self._offered = self._offered, None
        if offered is None or packet.scb[1] != self._offered_kind:
            return osdp.Nak(NakCode.SECURITY_NEEDED), b""
        if not compare_digest(packet.data, offered.server_cryptogram):
            return osdp.Nak(NakCode.SECURITY_NEEDED), b""
        self._channel = offered
        return osdp.RmacI(offered.rmac_i), bytes([Scs.RMAC, 1])

    def _act(self, packet: Packet, *, inside: bool, enciphered: bool) -> Message:
        """Carry out a new command; it acknowledges the event that the last reply brought."""
        if self._sent_event:
            self.events.popleft()
            self._sent_event = False
        try:
            command = osdp.parse(packet.code, packet.data, reply=False)
        except FormatError:
            known = packet.code in osdp.COMMANDS
            return osdp.Nak(NakCode.LENGTH if known else NakCode.UNKNOWN)
        if isinstance(command, osdp.Poll):
            self._sent_event = bool(self.events)
            return self.events[0] if self.events else osdp.Ack()
        if isinstance(command, osdp.Keyset):
            return self._keyset(command, inside=inside and enciphered)
        return self._handle(command) or osdp.Ack()

    def _keyset(self, command: osdp.Keyset, *, inside: bool) -> Message:
        """A new key comes only under the present one, never in clear or under the public default key."""
        if not inside or self._offered_kind is not KeyKind.OWN or command.kind != 1:
            return osdp.Nak(NakCode.SECURITY_NEEDED)
        self.scbk = command.key
        self.on_key(command.key)
        return osdp.Ack()
