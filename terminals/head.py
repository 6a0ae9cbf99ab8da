"""A reader head with a SAM of its own (osdp.md): it authenticates cards and reports whom it has verified as RAW.

The credential is the card's serial (8 bytes) and its access rights as in 0019 with the application's validity taken
in: all that a door decides by. It travels under the reader's own key only, never in clear. The door terminal believes
it from readers that its configuration calls heads.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable

from cardlib.errors import CardRemoved, Conflict, FormatError, LineTimeout, OneCardError, ReaderLost, Refused
from cardlib.profile import AccessRights, Purpose
from cardlib.purse import open_application
from cardlib.readers import NOTHING_KNOWN
from cardlib.transport import Transport
from cardlib.wire import osdp
from cardlib.wire.osdp import BitString, Message
from cardlib.wire.osdp_device import Device
from terminals.access import read_rights
from terminals.osdp import SerialPort
from terminals.posts.base import Watched
from terminals.reasons import BY_CODE, Reason
from terminals.run import Keyboard, signals
from terminals.runtime import SamSource, guarded_sam, told
from terminals.screen import Notice, Say, Screen

SERIAL_BYTES = 8
FRESH_MS = 3_000
"""How long a verified card waits for the panel's next question."""
LOOK_S = 0.1
"""How often a PC/SC reader is looked at between the panel's questions."""
_CAPABILITIES = (
    osdp.Capability(6, 1, 1), osdp.Capability(8, 1, 0), osdp.Capability(9, 1, 0),
    osdp.Capability(10, 0, 4), osdp.Capability(11, 0, 4),
)  # fmt: skip
"""PDCAP: text, CRC, secure channel, buffers of 1024 bytes. No keypad, no lock, no LED."""


def credential(serial: bytes, rights: AccessRights) -> osdp.RawCard:
    """What a head reports of a card."""
    data = serial + rights.encode()
    return osdp.RawCard(0, 0, BitString(8 * len(data), data))


def parse_credential(raw: osdp.RawCard) -> tuple[bytes, AccessRights]:
    """Its inverse. Raises FormatError for whatever else readers report."""
    data = raw.card.data
    if raw.format or raw.card.count != 8 * len(data):
        raise FormatError("a reader reports bits where a head reports serial and rights")
    return data[:SERIAL_BYTES], AccessRights.decode(data[SERIAL_BYTES:])


class Head:
    """The head's end of the line, and what it does with a card."""

    def __init__(
        self, address: int, scbk: bytes, sams: SamSource, random_bytes: Callable[[int], bytes], screen: Screen,
        tell: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.device = Device(address, scbk, bytes([0, 0, 0, 0, 0, 0, 2, address]), self._handle, random_bytes)
        self._sams, self._random_bytes, self._screen, self._tell = sams, random_bytes, screen, tell
        self._reported_ms = 0

    def present(self, card: Transport, now_ms: int) -> None:
        """Verify a card and report it; whatever is wrong with it is said on the head's screen and nobody passes.

        Only while the panel is there: a card verified now must not open a door later.
        """
        try:
            if not self.device.is_secure:
                raise Reason.DOOR_AWAY.refusal("the door terminal does not answer")
            with told(), self._sams.lease() as leased:
                sam = guarded_sam(leased)
                session = open_application(
                    card, sam, sam.info().enterprise_id, self._random_bytes, Purpose.TERMINAL
                )  # fmt: skip
                report = credential(session.factor, read_rights(card, session))
            self.device.report(report)
            self._reported_ms = now_ms
        except LineTimeout:
            self._screen.show(Notice(Say.REFUSED, reason=Reason.SAM_FAULT))
        except Refused as e:
            self._screen.show(Notice(Say.REFUSED, reason=BY_CODE.get(e.reason)))
        except (CardRemoved, Conflict):
            self._screen.show(Notice(Say.PRESENT_AGAIN))

    def expire(self, now_ms: int) -> None:
        """Forget a card that the panel did not ask for in time."""
        if now_ms - self._reported_ms > FRESH_MS:
            self.device.forget()

    def _handle(self, command: Message) -> Message | None:
        match command:
            case osdp.IdRequest():
                return osdp.PdId(b"\x00\x00\x00", 2, 1, self.device.address, b"\x01\x00\x00")
            case osdp.CapRequest():
                return osdp.PdCap(_CAPABILITIES)
            case osdp.LocalStatusRequest():
                return osdp.LocalStatus(0, 0)
            case osdp.Text(kind=3 | 4):  # what stays is no news
                self._tell(command.text.decode(errors="replace"))
            case osdp.Led() | osdp.Buz() | osdp.Text() | osdp.KeepActive() | osdp.AcuRxSize() | osdp.Abort():
                pass
            case _:
                return osdp.Nak(osdp.NakCode.UNKNOWN)
        return None


def serve(
    head: Head, line: SerialPort, keyboard: Keyboard, connect: Callable[[str | None], Transport],
    reader: Watched | None, note: Callable[[str], None],
) -> None:  # fmt: skip
    """Answer the panel and verify cards until a line says ``quit``. Raises KeyboardInterrupt when that was the wish."""
    known, looked_s, trouble = NOTHING_KNOWN, 0.0, ""
    with signals() as wishes:
        while not wishes:
            now_ms = time.monotonic_ns() // 1_000_000
            try:
                if answer := head.device.receive(line.read(), now_ms):
                    line.write(answer)
                head.expire(now_ms)
                if reader is not None and now_ms / 1000 - looked_s >= LOOK_S:
                    looked_s, before, known = now_ms / 1000, known, reader.wait(known, 0)
                    if known.present and (known.present, known.changes) != (before.present, before.changes):
                        _present(head, connect, None, note, now_ms)
                trouble = ""
            except ReaderLost as e:
                known = NOTHING_KNOWN
                if str(e) != trouble:
                    trouble = str(e)
                    note(trouble)
                select.select([], [], [], LOOK_S)
            text = keyboard.line(0)
            if text == "quit":
                return
            if text is not None and reader is None:
                name = text.removeprefix("card ").strip()
                _present(head, connect, f"sim:{name}" if name else None, note, now_ms)
    raise KeyboardInterrupt


def _present(
    head: Head, connect: Callable[[str | None], Transport], name: str | None, note: Callable[[str], None], now_ms: int
) -> None:
    try:
        card = connect(name)
    except ReaderLost:
        raise
    except OneCardError as e:
        note(str(e))
        return
    try:
        head.present(card, now_ms)
    finally:
        card.close()
