"""The phone face itself: power, logical channels, the T=0 layer and the way from a command to its handler (uicc.md)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeAlias

from cardlib.apdu import SW
from cardlib.errors import CardRemoved
from simulator.handlers import Counted, Refusal
from simulator.nvm import Nvm, Power, Powered
from simulator.uicc.files import ADM, ALWAYS, NEVER, PIN1, Node
from simulator.uicc.memory import ADM_REFERENCE, PIN1_REFERENCE, memory_of
from simulator.uicc.session import Session

HISTORICAL = bytes.fromhex("8031E073FE211B67") + b"ONECARD"
"""Historical bytes: card service and capabilities of a UICC (TS 102 221 6.3.3), then a name of no real vendor."""
ATR_HEAD = bytes.fromhex("9F96801FC6")
"""Fast speed, T=0, global byte: clock stop allowed, all voltages. T=1 is not offered: PC/SC would choose it, and a tool
would wait in vain for answers that T=0 announces.
"""

CHANNELS = 4
GET_RESPONSE = 0xC0
INTERINDUSTRY, PROPRIETARY, GSM = 0x00, 0x80, 0xA0
FILES, DOMAIN, APPLET = range(3)
"""What is selected on a channel: files of the MF or USIM, the issuer security domain, another application."""
ANNOUNCE, ANNOUNCE_GSM, WRONG_LE = 0x61, 0x9F, 0x6C
CHANNEL_CLOSED, NO_SECURE_MESSAGING = 0x6881, 0x6882

GSM_WORDS: dict[int, int] = {
    SW.FILE_NOT_FOUND: 0x9404, SW.RECORD_NOT_FOUND: 0x9402, SW.OFFSET: 0x9402, 0x6282: 0x9404, 0x6986: 0x9400,
    SW.FILE_TYPE: 0x9408, SW.SECURITY: 0x9804, SW.KEY_LOCKED: 0x9840, 0x63C0: 0x9840, SW.KEY_NOT_FOUND: 0x9802,
    0x6984: 0x9808, 0x9862: 0x9804, SW.P1P2: 0x6B00,
}  # fmt: skip
"""What GSM 11.11 9.4 says instead of TS 102 221."""

Handler: TypeAlias = "Callable[[Uicc, Channel, int, int, bytes, int], bytes]"
"""``(face, channel, p1, p2, data, le)``: returns data; ``le`` 0 is "all there is"."""


class Channel:
    """A logical channel: what is selected on it, and what waits for GET RESPONSE.

    ``application`` is the AID of what was selected by name. ``granted`` are the rights of remote commands, which need
    no PIN (ota.md §5, RFM); ``session`` the secure channel to the security domain.
    """

    __slots__ = ("application", "directory", "ef", "granted", "mode", "number", "record", "session", "sw", "waiting")

    def __init__(self, number: int, directory: Node, granted: frozenset[int] = frozenset()) -> None:
        self.number = number
        self.directory = directory
        self.application, self.mode = b"", FILES
        self.ef: Node | None = None
        self.record = 0
        self.granted = granted
        self.session: Session | None = None
        self.sw = int(SW.OK)
        self.waiting = b""

    def enter(self, node: Node) -> None:
        """Make a directory, or a file with its directory, current."""
        self.record = 0
        if node.is_directory:
            self.directory, self.ef = node, None
        else:
            self.directory, self.ef = node.parent, node

    def leave(self, node: Node) -> None:
        """End the application and its secure channel; ``node`` is current then."""
        self.application, self.mode, self.session = b"", FILES, None
        self.enter(node)


class Uicc(Powered):
    """The phone face over a chip's memory; without a memory it has one of its own with the default image."""

    def __init__(self, nvm: Nvm | None = None, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        from simulator.uicc.commands import HANDLERS  # noqa: PLC0415  # handlers know the face
        from simulator.uicc.remote import attach  # noqa: PLC0415  # as above
        from simulator.uicc.toolkit import Toolkit  # noqa: PLC0415  # as above

        self.nvm = Nvm() if nvm is None else nvm
        self.random_bytes = random_bytes
        self.memory = memory_of(self.nvm)
        self.tree = self.memory.image.tree
        self.power = Power()
        self.handlers = HANDLERS
        self.toolkit = Toolkit(self)
        self.toolkit.remote = attach(self)
        self.command = b""
        self.reset()

    @property
    def atr(self) -> bytes:
        """The answer to reset: T=0 alone."""
        return _atr()

    def _forget(self) -> None:
        self.verified: set[int] = set()
        self.loading: tuple[bytes, bytes, int] | None = None
        self.channels: list[Channel | None] = [Channel(0, self.tree.mf)] + [None] * (CHANNELS - 1)
        self.toolkit.reset()
        if self.toolkit.remote is not None:
            self.toolkit.remote.reset()

    # Rights -----------------------------------------------------------------------------------------------------

    def allowed(self, channel: Channel, access: int) -> bool:
        """Whether a condition of access is met on a channel. Verified PINs hold for all channels."""
        if access == ALWAYS or access in channel.granted:
            return True
        if access == NEVER:
            return False
        if access == PIN1:
            return PIN1_REFERENCE in self.verified or not self.memory.pins[PIN1_REFERENCE].value.enabled
        return ADM_REFERENCE in self.verified

    # Commands ---------------------------------------------------------------------------------------------------

    def transceive(self, command: bytes) -> bytes:
        """Run one command of the terminal; returns data and status word. Raises CardRemoved without power."""
        if not self.power.on:
            raise CardRemoved("the SIM has no power: reset it")
        with self.nvm.lock:
            try:
                if self.nvm.torn:
                    self.nvm.recover(self.power)  # the other face lost power in the middle
                answer = self._on_channel(command)
                if self.power.armed:
                    self.power.step()
            except CardRemoved:
                self.power_off()
                raise
        return self.toolkit.announce(answer)

    def _on_channel(self, command: bytes) -> bytes:
        if len(command) < 4:
            return bytes((SW.LENGTH >> 8, SW.LENGTH & 0xFF))
        family, number, secured = CLASSES[command[0]]
        if family < 0:
            return SW.CLA.to_bytes(2, "big")
        channel = self.channels[number] if number < CHANNELS else None
        if channel is None:
            return CHANNEL_CLOSED.to_bytes(2, "big")
        if secured and channel.mode != DOMAIN:
            return NO_SECURE_MESSAGING.to_bytes(2, "big")
        return self.execute(channel, command)

    def remote(self, directory: Node | None = None, application: bytes = b"") -> Channel:
        """A channel for remote commands, apart from the terminal's (ota.md §5): with all rights, in the MF at first."""
        channel = Channel(0, directory or self.tree.mf, frozenset((PIN1, ADM)))
        if application:
            channel.application, channel.mode, channel.session = application, DOMAIN, Session()
        return channel

    def execute(self, channel: Channel, command: bytes) -> bytes:
        """Run one command on a channel as T=0 carries it, and keep or drop what it wrote."""
        try:
            answer = self._dispatch(channel, command)
        except Refusal as refusal:
            if isinstance(refusal, Counted):
                self.nvm.commit(self.power)
            else:
                self.nvm.abort()
            channel.waiting = b""
            sw = refusal.sw
            if command[0] == GSM:
                sw = GSM_WORDS.get(sw, 0x9804 if sw & 0xFFF0 == 0x63C0 else sw)
            return sw.to_bytes(2, "big")
        self.nvm.commit(self.power)
        return answer

    def _dispatch(self, channel: Channel, command: bytes) -> bytes:
        cla, ins = command[0], command[1]
        gsm = cla == GSM
        p3 = command[4] if len(command) > 4 else 0
        if ins == GET_RESPONSE:
            return _get_response(channel, p3, gsm)
        channel.waiting, channel.sw = b"", SW.OK
        tables = self.handlers[channel.mode]
        found = tables[CLASSES[cla][0]].get(ins)
        if found is None:
            known = not gsm and ins in tables[CLASSES[cla][0] ^ PROPRIETARY]
            raise Refusal(SW.CLA if known else SW.INS)
        case, handler = found
        data, le = b"", 0
        if len(command) > 5:
            data = command[5 : 5 + p3]
            if case == 2 and CLASSES[cla][2]:
                case = 4  # a C-MAC makes data of its own
            if not p3 or case == 2 or len(data) != p3 or len(command) > 6 + p3:
                raise Refusal(SW.LENGTH)
        elif case == 2:
            le = p3
        elif p3:
            raise Refusal(SW.LENGTH)  # its data never came
        self.command = command
        answer = handler(self, channel, command[2], command[3], data, le)
        if not answer:
            return channel.sw.to_bytes(2, "big")
        if case == 4:
            channel.waiting = answer
            return bytes((ANNOUNCE_GSM if gsm else ANNOUNCE, len(answer) & 0xFF))
        if le not in (0, len(answer)):
            raise Refusal(WRONG_LE << 8 | len(answer) & 0xFF)
        return answer + channel.sw.to_bytes(2, "big")


def _get_response(channel: Channel, wanted: int, gsm: bool) -> bytes:
    """GET RESPONSE in parts too (TS 102 221 11.1.13.2); class A0 forgets what it did not fetch."""
    waiting = channel.waiting
    if not waiting:
        raise Refusal(SW.CONDITIONS)
    size = wanted or min(len(waiting), 256)
    if size > len(waiting):
        return bytes((WRONG_LE, len(waiting) & 0xFF))
    part, rest = waiting[:size], waiting[size:]
    channel.waiting = b"" if gsm else rest
    if channel.waiting:
        return part + bytes((ANNOUNCE, min(len(rest), 256) & 0xFF))
    return part + channel.sw.to_bytes(2, "big")


def _atr() -> bytes:
    body = ATR_HEAD + HISTORICAL
    check = 0
    for byte in body:
        check ^= byte
    return b"\x3b" + body + bytes((check,))


def _class(cla: int) -> tuple[int, int, bool]:
    """Family (-1 unknown), channel and whether messages are secured (TS 102 221 10.1.1)."""
    if cla == GSM:
        return GSM, 0, False
    family, form = cla & PROPRIETARY, cla & 0x70
    if form == 0:
        return family, cla & 3, cla & 0x0C != 0
    if form in (0x40, 0x60):
        return family, 4 + (cla & 15), form == 0x60
    return -1, 0, False


CLASSES = tuple(map(_class, range(256)))
