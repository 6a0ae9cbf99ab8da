"""A SIM's packet end over the desk's card, and a sender: what goes through the air between them is bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cardlib import ota
from cardlib.crypto.packets import PacketAlgorithm
from cardlib.profile import aid
from cardlib.wire import sms
from cardlib.wire.scp80 import Spi
from simulator.nvm import Cell, Power
from simulator.uicc.memory import OtaKeySet
from simulator.uicc.packets import ONE_CARD_TAR, Packets, Target
from simulator.uicc.remote import KEY_SETS, Applet
from tests.simulator import desk

SENDER = sms.Address.of("+8610690000")
CENTRE = b"\x91\x21\x43"
OTHER_ENTERPRISE = 2002
VALUES = {
    "3des": (bytes(range(0x30, 0x40)), bytes(range(0x50, 0x60))),
    "3des3": (bytes(range(0x30, 0x48)), bytes(range(0x50, 0x68))),
    "aes": (bytes(range(0x60, 0x70)), bytes(range(0x80, 0x90))),
    "aes192": (bytes(range(0x60, 0x78)), bytes(range(0x80, 0x98))),
    "aes256": (bytes(range(0x60, 0x80)), bytes(range(0x80, 0xA0))),
}
NIBBLES = {"3des": PacketAlgorithm.TDES2, "3des3": PacketAlgorithm.TDES3}
SIM_TAR, OPEN_TAR = b"\xb0\0\0", b"\x01\x02\x03"


def key_set(number: int, kind: str = "aes") -> ota.KeySet:
    return ota.KeySet.of(number, NIBBLES.get(kind, PacketAlgorithm.AES), *VALUES[kind])


class Echo:
    """A target whose commands answer what they carried, with the status word in P1 P2."""

    def __init__(self) -> None:
        self.ran: list[bytes] = []
        self.scripts = 0

    def has_data(self, header: bytes) -> bool:
        return header[1] != 0xB0

    def execute(self, command: bytes) -> bytes:
        self.ran.append(command)
        if command[1] == 0xB0:
            return bytes(command[4] or 256) + b"\x90\0"
        return command[5:] + command[2:4]

    def finish(self) -> None:
        self.scripts += 1


class Air:
    """The card's two ends: ``desk`` at its contactless face, :meth:`send` over the air."""

    def __init__(self, kind: str = "aes", key_sets: Iterable[int] = (1, 2, 3), **more: Any) -> None:
        second = desk.application(enterprise_id=OTHER_ENTERPRISE)
        self.desk = desk.oc1(desk.zeros, application=[desk.application(), second], **more)
        card = self.desk.card
        self.kind = kind
        self.power = Power()
        name = kind[:4] if kind.startswith("3des") else "aes"
        self.key_sets = Cell({n: OtaKeySet(name, *VALUES[kind]) for n in key_sets})
        self.upward: Cell[dict[int, int]] = Cell({})
        self.applet = Applet(card.nvm, self.power, desk.zeros)
        self.echo = Echo()
        self.submitted: list[tuple[bytes, bytes]] = []
        targets = {
            ONE_CARD_TAR: Target(0x16, KEY_SETS, self.applet.begin),
            SIM_TAR: Target(0x06, range(1, 2), lambda _: self.echo),
            OPEN_TAR: Target(0x00, range(1, 16), lambda _: self.echo, expanded=True),
        }
        self.packets = Packets(
            card.nvm,
            self.power,
            self.key_sets,
            self.upward,
            targets,
            lambda *one: self.submitted.append(one),
            "10690001",
            self.applet.reset,
        )
        self.counters = dict.fromkeys(range(16), 0)

    def reset(self) -> None:
        self.power.on = True
        self.desk.card.nvm.recover(self.power)
        self.packets.reset()

    def deliver(self, *user_data: bytes, sender: sms.Address = SENDER) -> tuple[bytes, int]:
        """Hand over short messages; the answer to the last."""
        answer = b"", 0
        for one in user_data:
            answer = self.packets.download(sms.Deliver(sender, one).encode(), CENTRE)
        return answer

    def make(
        self, *script: str | bytes, number: int = 2, spi: Spi = ota.ONE_CARD_SPI, tar: bytes = ONE_CARD_TAR
    ) -> ota.Outgoing:
        """The next packet under a keyset."""
        self.counters[number] += 1
        commands = [bytes.fromhex(c) if isinstance(c, str) else c for c in script]
        return ota.command(key_set(number, self.kind), self.counters[number], commands, spi, tar)

    def replies(self, outgoing: ota.Outgoing, report: bytes) -> list[ota.Reply]:
        """What the sender makes of the report and of the messages that the card sent."""
        inbox, found = ota.Inbox(), []
        messages = [report, *(sms.Submit.decode(tpdu).user_data for tpdu, _ in self.submitted)]
        self.submitted.clear()
        for message in messages:
            packet = inbox.add("card", message) if message else None
            reply = outgoing.read(packet) if packet else None
            if reply:
                found.append(reply)
        return found

    def send(self, *script: str | bytes, **more: Any) -> ota.Reply:
        """Send a script under its next counter; the last reply."""
        outgoing = self.make(*script, **more)
        report, sw = self.deliver(*outgoing.user_data())
        assert sw == 0x9000
        return self.replies(outgoing, report)[-1]

    def run(self, *script: str | bytes, sw: int = 0x9000, **more: Any) -> bytes:
        """Send a script that must end with this status word; data of the last command."""
        reply = self.send(*script, **more)
        assert (reply.proven, reply.status) == (True, 0), reply
        answer = reply.answer
        assert answer is not None
        last = 0x9000 if answer.sw >> 8 == 0x61 else answer.sw  # data that nobody fetched
        assert f"{last:04X}" == f"{sw:04X}", answer
        return answer.data

    def memory(self) -> tuple[bytes, object]:
        """Everything that lasts: the card's image, and counters."""
        return self.desk.card.snapshot(), dict(self.key_sets.value)


def select(enterprise: int = desk.ENTERPRISE) -> bytes:
    name = aid(enterprise)
    return b"\0\xa4\4\0" + bytes((len(name),)) + name


CHALLENGE = "0084000004"
RESPONSE = "00C0000000"
