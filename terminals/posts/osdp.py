"""Doors on an OSDP line (osdp.md): readers, keypads, displays, locks and contacts, all in the process's one loop.

A reader passes APDUs (XWR), so the terminal's own SAM authenticates the card as at any reader; only readers that the
configuration calls heads may say which card they have verified themselves. A reader that is away opens nothing: its
lock's outputs are timed, so they fall back to locked by themselves.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cardlib.errors import (
    CardRemoved,
    ConfigError,
    Conflict,
    FormatError,
    LineTimeout,
    OneCardError,
    ReaderLost,
    Refused,
)
from cardlib.iso7816 import pin_bytes
from cardlib.profile import AccessRights
from cardlib.readers import Presence
from cardlib.serialport import SerialPort
from cardlib.transport import Transport
from cardlib.wire import osdp
from cardlib.wire.osdp import Message
from terminals.access import Access
from terminals.doors import Direction, DoorRules, Hardware, OsdpLine
from terminals.head import FRESH_MS, parse_credential
from terminals.osdp import Bus, Event, Lasting, Remote, Ticket, wait
from terminals.posts.access import DOOR, ConsoleLock
from terminals.reasons import Reason
from terminals.run import Screen
from terminals.screen import Notice, Say

PIN_MS = 15_000
"""How long digits count after the last one was typed."""
LATER_MS = 5_000
"""How long a reader may take that answers an APDU at a poll."""
FREE_MS, RENEW_MS = 10_000, 3_000
"""A lock that stands free is told so again and again; without its panel it locks."""
SHOW_DS = 30
"""How long a notice stays at a reader, in tenths of a second."""
MISSING_MS = 10_000
"""A reader that has not come by then is called away."""
STOP_MS = 500
MAX_NEWS = 1_000
RED, GREEN, AMBER = 1, 2, 3
CLEAR, ENTER = b"\x7f", b"\x0d"
WAY = {Direction.IN: ("进", "in"), Direction.OUT: ("出", "out")}
NEWS = {
    "reader_away": ("读卡器离线", "reader is away: look at its power, line and key"),
    "reader_back": ("读卡器上线", "reader is there"),
    "tamper": ("设备被拆", "tampered with"),
    "tamper_end": ("拆动解除", "whole again"),
    "power_fault": ("电源故障", "power fault"),
    "power_fault_end": ("电源恢复", "power is back"),
    "reader_fault": ("读头故障或被拆", "its reader head is gone or tampered with"),
    "reader_fault_end": ("读头恢复", "its reader head is back"),
    "foreign_credential": ("非认证读头报卡", "reports a card but is no head: not believed"),
}
"""What devices do by themselves: codes of the journal's notes, and what the console says."""


class Signal(NamedTuple):
    """How a reader says something: its LED, whether it blinks, and how often it beeps."""

    color: int
    blinks: bool = False
    beeps: int = 0


WAITING = Signal(AMBER, True, 2)
SIGNALS = {
    Say.PRESENT: Signal(RED),
    Say.FREE: Signal(GREEN),
    Say.EMERGENCY: Signal(GREEN, True),
    Say.PASS: Signal(GREEN, beeps=1),
    Say.REFUSED: Signal(RED, True, 3),
    Say.PRESENT_SECOND: WAITING,
    Say.PRESENT_AGAIN: WAITING,
}


@dataclass(eq=False)
class Spot:
    """One reader: the door and the way it is for, and what was done at it."""

    address: int
    door: int
    way: Direction
    shown: Say | None = None
    card_there: bool = False
    digits: bytes = b""
    entered: bool = False
    typed_ms: int = 0
    answers: list[Message] = field(default_factory=list)


@dataclass
class Device:
    """One address on the line. ``told``: that it is away was said."""

    online: bool = False
    since_ms: int = 0
    told: bool = False
    troubles: set[str] = field(default_factory=set)


class Verified:
    """A card that a reader head has verified: it can't be spoken to from here."""

    atr = b""

    def __init__(self, serial: bytes, rights: AccessRights, came_ms: int) -> None:
        self.serial, self.rights, self.came_ms = serial, rights, came_ms

    def transceive(self, command: bytes) -> bytes:
        """Raises CardRemoved."""
        raise CardRemoved(f"command {command[:2].hex()}: the card is at a reader head, which speaks to it alone")

    def close(self) -> None:
        """Nothing is held."""


class CardAtReader(Remote):
    """A card behind XWR; what goes wrong with its reader is a matter of the line, not of the card."""

    def transceive(self, command: bytes) -> bytes:
        """See ``Remote``. Raises CardRemoved, LineTimeout."""
        try:
            return super().transceive(command)
        except (Refused, Conflict, FormatError) as e:
            raise LineTimeout(str(e)) from e


class OsdpLock(ConsoleLock):
    """A door's lock and contact at a device of the line; the console says the same as for one without."""

    def __init__(
        self, post: OsdpPost, number: int, hardware: Hardware, now_ms: Callable[[], int], tell: Callable[[str], None],
        language: str,
    ) -> None:  # fmt: skip
        super().__init__(number, now_ms, tell, language)
        self._post, self._hardware = post, hardware
        self._renew_ms = 0
        self.moves: deque[bool] = deque(maxlen=MAX_NEWS)
        """What the contact said and nobody has looked at yet."""

    @property
    def is_there(self) -> bool:
        """Whether the device of lock and contact answers."""
        return self._post.devices[self._hardware.device].online

    def release(self, duration_ms: int) -> None:
        """Unlock for a while; the device itself ends it. Raises Refused ``door_away`` when it does not do so."""
        if not self._free:
            try:
                self._post.ask(self._hardware.device, self._out(5, -(-duration_ms // 100)))
            except OneCardError as e:
                raise Reason.DOOR_AWAY.refusal(str(e)) from e
        super().release(duration_ms)

    def stand_free(self, free: bool) -> None:
        """See ``terminals.access.Lock``."""
        super().stand_free(free)
        self.command()

    def move(self, is_open: bool) -> None:
        """The contact says that the door was opened or shut; once shut it is locked."""
        shut = self.is_open and not is_open
        if is_open is not self.is_open:
            self.moves.append(is_open)
        super().move(is_open)
        if shut and not self._free:
            self.command()

    def command(self) -> None:
        """Tell the device what the lock has to be, now and, while it stands free, again in time."""
        self._renew_ms = self._post.clock() + RENEW_MS
        self._post.tell(self._hardware.device, self._out(5, FREE_MS // 100) if self._free else self._out(1))

    def look(self) -> None:
        """See ``ConsoleLock``."""
        super().look()
        if self._free and self._post.clock() >= self._renew_ms:
            self.command()

    def sees(self, device: int, inputs: bytes) -> None:
        """A device's inputs; one that it does not have is never active."""
        if device == self._hardware.device:
            self.move(bool(inputs[self._hardware.contact_input : self._hardware.contact_input + 1].strip(b"\0")))

    def _out(self, action: int, timer: int = 0) -> osdp.Out:
        return osdp.Out((osdp.OutputControl(self._hardware.lock_output, action, timer),))


class OsdpPost:
    """Doors on a line: a post, and the reader that the process watches (``wait``, ``connect``).

    ``clock`` gives milliseconds that only go on. ``pump`` lets a moment pass where the port's read does not.
    """

    usage = "emergency on|off"

    def __init__(
        self, access: Access, bus: Bus, line: OsdpLine, tell: Callable[[str], None], language: str, operator: str,
        clock: Callable[[], int], pump: Callable[[], object] = lambda: None, close: Callable[[], object] = lambda: None,
    ) -> None:  # fmt: skip
        self.clock = clock
        self._access, self._bus, self._heads, self._pump, self._close = access, bus, line.heads, pump, close
        self._say, self._language, self._at, self._operator = tell, language, 0 if language == "zh" else 1, operator
        config = access.config
        self._spots = {
            address: Spot(address, number, way)
            for number, one in config.hardware.items() for address, way in one.readers.items()
        }  # fmt: skip
        self.devices = {address: Device(since_ms=clock()) for address in bus.pds}
        self._locks = {
            number: OsdpLock(self, number, config.hardware[number], access.now_ms, tell, language)
            for number in config.doors
        }
        self._rules: Mapping[int, DoorRules] = config.doors
        self._asked: list[tuple[int, Ticket]] = []
        self._came: deque[tuple[Spot, Transport]] = deque()
        self._count = 0
        self._news: deque[tuple[str, int]] = deque(maxlen=MAX_NEWS)
        self._spot: Spot | None = None
        assert isinstance(access.screen, Screen)
        self._screen = access.screen
        self._screen.also = self._show
        access.fit_doors({number: (rules, self._locks[number]) for number, rules in config.doors.items()})

    # --- the reader that the process watches -----------------------------------------------------------------

    def wait(self, known: Presence, timeout_ms: int) -> Presence:
        """See ``terminals.posts.base.Watched``: there is one when a card has come to any reader and was not served."""
        del known
        end_ms = self.clock() + timeout_ms
        self.step()
        while not self._came and self.clock() < end_ms:
            self.step()
        self._count += bool(self._came)
        return Presence(bool(self._came), self._count)

    def connect(self, name: str | None = None) -> Transport:
        """The card that has come first. Raises CardRemoved when there is none."""
        del name
        if not self._came:
            raise CardRemoved("no card has come to a reader of this line: present one")
        self._spot, card = self._came.popleft()
        self._screen.place = f"{DOOR[self._at]} {self._spot.door} {WAY[self._spot.way][self._at]}: "
        return card

    @property
    def where(self) -> dict[str, Any]:
        """Where the card is that is being served."""
        spot = self._spot
        return {"door": spot.door, "direction": spot.way.name.lower(), "reader": spot.address} if spot else {}

    # --- the post --------------------------------------------------------------------------------------------

    def serve(self, card: Transport) -> dict[str, Any]:
        """See ``terminals.posts.base.Post``."""
        spot = self._spot
        assert spot is not None
        needed = sorted({spot.door} | self._rules[spot.door].interlock)
        if missing := [number for number in needed if not self._locks[number].is_there]:
            raise Reason.DOOR_AWAY.refusal(f"door {missing[0]}: its lock and contact do not answer")
        if isinstance(card, Verified):
            if self.clock() - card.came_ms > FRESH_MS:  # another card took its time: nobody waits there any more
                raise CardRemoved("a verified card waited for too long: present it again")
            head = f"reader {spot.address}"
            passage = self._access.present_verified(card.serial, card.rights, spot.door, spot.way, head)
        else:
            passage = self._access.present(card, spot.door, spot.way, lambda: self._pin(spot))
        return {"event": "passage", "granted": passage.granted, "waits": passage.waits}

    def order(self, words: list[str]) -> bool:
        """See ``terminals.posts.base.Post``."""
        if words not in (["emergency", "on"], ["emergency", "off"]):
            return False
        self._access.emergency(words[1] == "on", self._operator)
        return True

    def turn(self) -> None:
        """Doors and locks by the hours, what every reader shows, and what devices did, into the journal."""
        self._spot, self._screen.place = None, ""
        try:
            for number, lock in self._locks.items():
                while lock.moves:
                    self._access.look(number, lock.moves.popleft())
            self._access.tick()
            for address, device in self.devices.items():
                if not (device.online or device.told) and self.clock() - device.since_ms >= MISSING_MS:
                    device.told = True
                    self._news.append(("reader_away", address))
            while self._news:
                code, address = self._news[0]
                self._access.journal.note(code, f"reader {address}")
                self._news.popleft()
        finally:
            for lock in self._locks.values():
                lock.look()
            for spot in self._spots.values():
                self._idle(spot)

    def stop(self) -> None:
        """All doors locked, and the port free for whoever comes next."""
        with suppress(ReaderLost):
            for lock in self._locks.values():
                lock.stand_free(False)
            end_ms = self.clock() + STOP_MS
            while self.clock() < end_ms and any(not ticket.is_done for _, ticket in self._asked):
                self.step()
        self._screen.also = lambda _: None
        self._close()

    # --- the line --------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Let the bus run on for a moment and take in what happened. Raises ReaderLost."""
        for event in self._bus.step(self.clock()):
            self._on_event(event)
        done = [one for one in self._asked if one[1].is_done]
        self._asked = [one for one in self._asked if not one[1].is_done]
        for address, ticket in done:
            if ticket.reply is not None:
                self._on_message(address, ticket.reply)
        for lock in self._locks.values():  # also while a card takes its time: what stands free goes on doing so
            lock.look()
        self._pump()

    def tell(self, address: int, command: Message) -> None:
        """Send a command; one for a device that is away or has no room for it is dropped."""
        with suppress(LineTimeout, Conflict):
            self._asked.append((address, self._bus.send(address, command)))

    def ask(self, address: int, command: Message) -> Message:
        """Send a command and wait for its reply. Raises as ``panel.wait``, ReaderLost."""
        return wait(self._bus.send(address, command), self.step)

    def _on_event(self, event: Event) -> None:
        if event.message is not None:
            self._on_message(event.address, event.message)
            return
        device, spot = self.devices[event.address], self._spots.get(event.address)
        device.online, device.since_ms = event.online, self.clock()
        if spot is not None:
            spot.shown, spot.card_there, spot.digits, spot.entered = None, False, b"", False
        if not event.online:
            device.told = True
            self._note("reader_away", event.address)
            return
        device.told = False
        self._note("reader_back", event.address)
        self.tell(event.address, osdp.InputStatusRequest())
        self.tell(event.address, osdp.LocalStatusRequest())
        for number, lock in self._locks.items():
            if self._access.config.hardware[number].device == event.address:
                lock.command()

    def _note(self, code: str, address: int) -> None:
        self._news.append((code, address))
        self._say(f"{address}: {NEWS[code][self._at]}")

    def _on_message(self, address: int, message: Message) -> None:
        spot = self._spots.get(address)
        match message:
            case osdp.InputStatus():
                for lock in self._locks.values():
                    lock.sees(address, message.inputs)
            case osdp.LocalStatus():
                self._status(address, "tamper", message.tamper != 0)
                self._status(address, "power_fault", message.power != 0)
            case osdp.ReaderStatus():
                self._status(address, "reader_fault", any(message.readers))
            case osdp.Keypad() if spot is not None:
                self._typed(spot, message.digits)
            case osdp.RawCard() if spot is not None and address in self._heads:
                with suppress(FormatError):
                    self._arrive(spot, Verified(*parse_credential(message), self.clock()))
            case osdp.RawCard():
                self._note("foreign_credential", address)
            case osdp.Xrd(1, 1, data) if spot is not None and len(data) == 2 and address not in self._heads:
                spot.card_there = data[1] != 0
                self._came = deque(one for one in self._came if one[0] is not spot)
                if spot.card_there:
                    self._arrive(spot, self._card(spot))
            case osdp.Xrd(1, 2) if spot is not None:
                spot.answers = [message]

    def _status(self, address: int, code: str, now: bool) -> None:
        """Something is wrong with a device, or no more; noted when it changes."""
        troubles = self.devices[address].troubles
        if (code in troubles) is not now:
            troubles ^= {code}
            self._note(code if now else f"{code}_end", address)

    # --- cards and digits ------------------------------------------------------------------------------------

    def _card(self, spot: Spot) -> Transport:
        return CardAtReader(self._bus, spot.address, self.step, later=lambda: self._later(spot))

    def _arrive(self, spot: Spot, card: Transport) -> None:
        if not any(one[0] is spot for one in self._came):
            self._came.append((spot, card))

    def _later(self, spot: Spot) -> Message:
        """The answer to an APDU that its reader only acknowledged. Raises LineTimeout."""
        end_ms = self.clock() + LATER_MS
        spot.answers.clear()
        while not spot.answers:
            if self.clock() >= end_ms or not spot.card_there:
                raise LineTimeout(f"OSDP device {spot.address:02X} took an APDU and does not answer it")
            self.step()
        return spot.answers.pop()

    def _typed(self, spot: Spot, keys: bytes) -> None:
        """Digits, or # at their end; the card that lies there is then served with them."""
        if self.clock() - spot.typed_ms > PIN_MS or spot.entered:
            spot.digits, spot.entered = b"", False
        spot.typed_ms = self.clock()
        for key in (keys[at : at + 1] for at in range(len(keys))):
            if key == CLEAR:
                spot.digits, spot.entered = b"", False
            elif key == ENTER:
                spot.entered = bool(spot.digits)
            else:
                spot.digits = (spot.digits + key)[:16]
        if spot.entered and spot.card_there:
            self._arrive(spot, self._card(spot))

    def _pin(self, spot: Spot) -> str | None:
        """What was typed and confirmed at a reader, once; None when it is old or can be no PIN."""
        digits, entered, fresh = spot.digits, spot.entered, self.clock() - spot.typed_ms <= PIN_MS
        spot.digits, spot.entered = b"", False
        if not (entered and fresh):
            return None
        try:
            text = digits.decode("ascii")
            pin_bytes(text)
        except (UnicodeDecodeError, FormatError):
            return None
        return text

    # --- what readers show -----------------------------------------------------------------------------------

    def _show(self, notice: Notice) -> None:
        """Show a notice for some seconds at the reader where the card is."""
        if self._spot is None or notice.say not in SIGNALS:
            return
        asks = notice.reason is Reason.PIN_REQUIRED
        signal = WAITING if asks else SIGNALS[notice.say]
        words = notice.reason.zh if notice.reason and self._at == 0 else notice.reason.en if notice.reason else ""
        address, off = self._spot.address, 2 if signal.blinks else 0
        self.tell(
            address, osdp.Led((osdp.LedControl(
                temporary=2, temporary_on=2, temporary_off=off, temporary_on_color=signal.color, timer=SHOW_DS),))
        )  # fmt: skip
        if signal.beeps and self._has(address, 5):
            self.tell(address, osdp.Buz(0, 2, 1, 1, signal.beeps))
        text = words or notice.text(self._language)
        if self._has(address, 6):
            self.tell(address, osdp.Text(0, 4, SHOW_DS // 10, 1, 1, text.encode()[:255]))

    def _idle(self, spot: Spot) -> None:
        """What a reader shows while nobody is at it, told when it changes."""
        say = Say.PRESENT
        if self._locks[spot.door].stands_free:
            say = Say.EMERGENCY if self._access.in_emergency else Say.FREE
        if say is spot.shown or not self.devices[spot.address].online:
            return
        spot.shown, signal = say, SIGNALS[say]
        self.tell(
            spot.address, osdp.Led((osdp.LedControl(
                permanent=1, on=2, off=2 if signal.blinks else 0, on_color=signal.color),))
        )  # fmt: skip
        if self._has(spot.address, 6):
            self.tell(spot.address, osdp.Text(0, 2, 0, 1, 1, Notice(say).text(self._language).encode()))

    def _has(self, address: int, function: int) -> bool:
        """Whether a device has something (PDCAP: 5 sound, 6 text); one that says nothing of itself is asked to try."""
        capabilities = self._bus.pd(address).capabilities
        return not capabilities or any(one.function == function and one.level for one in capabilities)


def open_post(
    access: Access, line: OsdpLine, keys: Mapping[int, bytes], tell: Callable[[str], None], language: str, operator: str
) -> OsdpPost:
    """Doors on a real line. Raises ConfigError when a device has no key, ReaderLost for the port."""
    hardware = access.config.hardware.values()
    addresses = sorted({address for one in hardware for address in (*one.readers, one.device)})
    if missing := [address for address in addresses if address not in keys]:
        raise ConfigError(f"no SCBK for OSDP address {missing[0]}: add it to the file named by ONECARD_SCBK_FILE")
    port = Lasting(lambda: SerialPort(line.port, line.baud))
    bus = Bus(port, line.baud, secrets.token_bytes)
    for address in addresses:
        bus.add(address, keys[address])
    return OsdpPost(
        access, bus, line, tell, language, operator, lambda: time.monotonic_ns() // 1_000_000, close=port.close
    )
