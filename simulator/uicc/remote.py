"""What is behind the TARs: the one-card applet on the card's COS, files and content of the phone face (ota.md §5)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from hmac import compare_digest
from typing import TYPE_CHECKING

from cardlib.apdu import SW
from cardlib.crypto.packets import PacketKey, packet_key
from cardlib.errors import BadKcv, ConfigError, FormatError
from simulator.card import GET_CHALLENGE, SELECT, Card
from simulator.files import Df
from simulator.handlers import OK, Refusal
from simulator.handlers.files import MF_FID
from simulator.nvm import Nvm, Power
from simulator.uicc.domain import ISD
from simulator.uicc.face import CLASSES, GSM, INTERINDUSTRY, PROPRIETARY
from simulator.uicc.memory import OtaKeySet
from simulator.uicc.menu import refreshed
from simulator.uicc.packets import GOES_ON, ONE_CARD_TAR, Executor, Packets, Target, algorithm_of
from simulator.uicc.toolkit import once, send

if TYPE_CHECKING:
    from simulator.uicc.face import Channel, Uicc
    from simulator.uicc.files import Node

PLATFORM = 1
"""KVN of the platform; KVN n + 1 belongs to slot n."""
SLOTS = 8
SLOT_KEY_SETS = range(PLATFORM + 1, PLATFORM + SLOTS + 1)
KEY_SETS = range(PLATFORM, PLATFORM + SLOTS + 1)
PLATFORM_ONLY = range(PLATFORM, PLATFORM + 1)
ISSUER_TAR = bytes(3)
ADF_TARS = frozenset((0xB00001, 0xB00011, *range(0xB00020, 0xB00120), *range(0xB00140, 0xB00200)))
"""File management in the USIM's directory; the other TARs of files begin in the MF. B00011 is what live cards do."""
FILE_COMMANDS = frozenset((0xA4, 0xB0, 0xD6, 0xB2, 0xDC, 0xA2, 0xF2, 0xC0, 0x20, 0x24, 0x26, 0x28, 0x2C))
CONTENT_COMMANDS = frozenset((0xE6, 0xE8, 0xE4, 0xF2, 0xF0, 0xCA, 0xD8, 0xE2, 0xC0))
UPDATES = frozenset((0xD6, 0xDC))
PUT_KEY, ALL_KEYS, DES_KEY, AES_KEY = 0xD8, 0x81, 0x80, 0x88
SECURED = 0x04
NO_DATA = frozenset((0x00B0, 0x00B2, 0x0084, 0x00C0, 0x805C, 0x80CA))
"""``CLA << 8 | INS`` of ISO case 2: five bytes, the last being Le. A protected read carries its MAC as data."""


class Context(Card):
    """One keyset's context: the card as that sender sees it, apart from the contactless face and from other keysets.

    ``slot`` 0 is the platform, which may go everywhere its keys open; else only that slot's application exists.
    """

    def __init__(self, nvm: Nvm, random_bytes: Callable[[int], bytes], power: Power, slot: int) -> None:
        self.slot = slot
        self.chain = b""
        self.starts = True
        self.seen: tuple[Df | None, int] = (None, 0)
        super().__init__(nvm, random_bytes, t0=True)
        self.power = power

    def _mark_use(self) -> None:
        """Other contexts are not ended by this one."""

    def _forget(self) -> None:
        super()._forget()
        self.chain = b""

    def enter(self, df: Df) -> None:
        if self.slot and not self._is_own(df):
            raise Refusal(SW.SECURITY)
        self.chain = b""
        super().enter(df)

    def _is_own(self, df: Df) -> bool:
        return df.level == 2 and df.fid == MF_FID + self.slot

    # A script's side of it ------------------------------------------------------------------------------------------

    def has_data(self, header: bytes) -> bool:
        """The case of a command, by class and instruction."""
        return header[0] << 8 | header[1] not in NO_DATA

    def execute(self, command: bytes) -> bytes:
        """Run one command of a script. Raises CardRemoved when power goes."""
        selects = command[:2] == bytes((0, SELECT))
        if (self.starts and selects) or not self._untouched():
            self._forget()
        self.starts = False
        if self.slot and not selects and (self.no_mf or not self._is_own(self.df)):
            return SW.SECURITY.to_bytes(2, "big")
        secured = command[0] & SECURED != 0
        if secured and not self.challenge:
            self.challenge = self.chain
        answer = self.transceive(command)
        self._renew_chain(command, secured, answer)
        if self.slot and selects and answer[-2] not in GOES_ON and not self._chose_inside(command):
            answer = SW.SECURITY.to_bytes(2, "big")  # what else there is on the card is not told
        self.seen = (None, 0) if self.no_mf else (self.df, self.df.uses)
        return answer

    def finish(self) -> None:
        """A context outlives its scripts."""

    def _untouched(self) -> bool:
        """Whether the contactless face left the application alone since this context's last command."""
        df, uses = self.seen
        return df is None or df.uses == uses

    def _renew_chain(self, command: bytes, secured: bool, answer: bytes) -> None:
        """One GET CHALLENGE serves a script: the MAC of a protected command is the challenge of the next one."""
        if secured:
            self.chain = command[5 : 5 + command[4]][-4:] if answer[-2] in GOES_ON else b""
        elif command[1] == GET_CHALLENGE:
            self.chain = b""

    def _chose_inside(self, command: bytes) -> bool:
        """SELECT of a file by identifier within the slot's own application."""
        return command[2] == 0 and command[5:7] != MF_FID.to_bytes(2, "big") and self._is_own(self.df)


class Applet:
    """All contexts of one SIM, made when they are first used."""

    def __init__(self, nvm: Nvm, power: Power, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self.nvm, self.power, self.random_bytes = nvm, power, random_bytes
        self._contexts: dict[int, Context] = {}

    def reset(self) -> None:
        """A reset ends every context."""
        self._contexts.clear()

    def begin(self, key_set: int) -> Context:
        """The context in which a script under that keyset runs."""
        context = self._contexts.get(key_set)
        if context is None:
            slot = key_set - PLATFORM
            context = self._contexts[key_set] = Context(self.nvm, self.random_bytes, self.power, slot)
        context.starts = True
        return context


class Manager:
    """Remote management of files (RFM) or of content (RAM): one script on a channel of its own, with all rights."""

    def __init__(self, face: Uicc, channel: Channel, allowed: frozenset[int]) -> None:
        self.face, self.channel, self.allowed = face, channel, allowed
        self.changed: list[bytes] = []

    def has_data(self, header: bytes) -> bool:
        """The case of a command, by class and instruction; what is not known has none."""
        tables = self.face.handlers[self.channel.mode]
        case, _ = tables.get(CLASSES[header[0]][0], {}).get(header[1], (2, None))
        return case != 2

    def execute(self, command: bytes) -> bytes:
        """Run one command. Classes of other channels and secure messaging have no place here."""
        if command[0] not in (INTERINDUSTRY, PROPRIETARY, GSM):
            return SW.CLA.to_bytes(2, "big")
        if command[1] not in self.allowed:
            return SW.INS.to_bytes(2, "big")
        if command[1] == PUT_KEY and command[5:6] and command[5] in SLOT_KEY_SETS:
            return self._put_key_set(command)
        answer = self.face.execute(self.channel, command)
        if command[1] in UPDATES and answer == OK and self.channel.ef is not None:
            path = _path(self.channel.ef)
            if path not in self.changed:
                self.changed.append(path)
        return answer

    def _put_key_set(self, command: bytes) -> bytes:
        """PUT KEY of a slot's keyset: KIc, KID and KIK at once, enciphered under the platform's KIK."""
        cell, nvm = self.face.memory.ota, self.face.nvm
        number, replaced, second = command[5], command[2], command[3]
        platform = cell.value.get(PLATFORM)
        if platform is None or not platform.kik:
            return SW.CONDITIONS.to_bytes(2, "big")
        if second != ALL_KEYS or replaced != (number if number in cell.value else 0):
            return SW.P1P2.to_bytes(2, "big")
        kik = packet_key(algorithm_of(platform), platform.kik)
        try:
            kinds, values = zip(*_put_keys(command[6 : 5 + command[4]], kik), strict=True)
        except (FormatError, ConfigError, BadKcv, ValueError):
            return SW.DATA.to_bytes(2, "big")
        if len(values) != 3 or len(set(kinds)) != 1 or len({len(one) for one in values[:2]}) != 1:
            return SW.DATA.to_bytes(2, "big")
        name = "aes" if kinds[0] == AES_KEY else "3des"
        nvm.write(cell, {**cell.value, number: OtaKeySet(name, values[0], values[1], 0, values[2])})
        nvm.commit(self.face.power)
        return OK

    def finish(self) -> None:
        """After files were updated the phone is told to read them again."""
        if self.changed:
            self.face.toolkit.start(refreshed(self.face, self.changed), from_envelope=True)


def _put_keys(data: bytes, kik: PacketKey) -> Iterator[tuple[int, bytes]]:
    """Type and value of each key. Raises FormatError, ConfigError, BadKcv."""
    while data:
        kind, size = data[0], data[1] if len(data) > 1 else 0
        tail = data[2 + size :]
        if kind not in (DES_KEY, AES_KEY) or len(tail) < 4 or tail[0] != 3:
            raise FormatError("PUT KEY: a field does not fit")
        value = kik.unwrap(data[2 : 2 + size])
        algorithm = algorithm_of(OtaKeySet("aes" if kind == AES_KEY else "3des", value, b""))
        if not compare_digest(packet_key(algorithm, value).put_key_kcv, tail[1:4]):
            raise BadKcv("PUT KEY: a check value is wrong")
        yield kind, value
        data = tail[4:]


def _path(node: Node) -> bytes:
    path = node.fid.to_bytes(2, "big")
    while node.parent is not node:
        node = node.parent
        path = node.fid.to_bytes(2, "big") + path
    return path


def attach(face: Uicc) -> Packets:
    """Give a phone face its end of secured packets: targets and levels as its description says."""
    memory = face.memory
    applet = Applet(face.nvm, face.power, face.random_bytes)

    def files(directory: Node) -> Callable[[int], Executor]:
        return lambda _: Manager(face, face.remote(directory), FILE_COMMANDS)

    def content(_: int) -> Executor:
        return Manager(face, face.remote(application=ISD), CONTENT_COMMANDS)

    targets = {}
    for number, msl in memory.image.msl.items():
        tar = number.to_bytes(3, "big")
        if tar == ONE_CARD_TAR:
            targets[tar] = Target(msl, KEY_SETS, applet.begin)
        elif tar == ISSUER_TAR:
            targets[tar] = Target(msl, PLATFORM_ONLY, content)
        else:
            targets[tar] = Target(msl, PLATFORM_ONLY, files(face.tree.adf if number in ADF_TARS else face.tree.mf))

    def submit(tpdu: bytes, centre: bytes) -> None:
        face.toolkit.start(once(send(tpdu, centre)), from_envelope=True)

    return Packets(
        face.nvm, face.power, memory.ota, memory.upward, targets, submit, memory.image.service_number, applet.reset
    )
