"""A simulated OSDP reader at a door: card head, keypad, LEDs, buzzer, text, outputs, files, and a card for APDUs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from cardlib.errors import CardRemoved
from cardlib.wire import osdp
from cardlib.wire.osdp import BitString, Message
from cardlib.wire.osdp_device import Device
from simulator.reader import Chip, Reader
from simulator.serialline import NEVER, Port

MAX_FILE = 1 << 20
TURNAROUND_US = 2_000
BUFFER = 1_024


class SimulatedReader:
    """A reader head on a simulated line. What the panel set is in ``leds``, ``outputs``, ``texts``, ``buzzes``."""

    def __init__(
        self,
        address: int,
        scbk: bytes | None,
        random_bytes: Callable[[int], bytes],
        *,
        cuid: bytes | None = None,
        install: bool = False,
    ) -> None:
        self.device = Device(
            address, scbk, cuid or bytes([0, 0, 0, 0, 0, 0, 1, address]), self.handle, random_bytes, install=install
        )
        self.reader = Reader()
        self.leds: dict[int, osdp.LedControl] = {}
        self.outputs = bytearray(4)
        self.inputs = bytearray(4)
        self.texts: list[osdp.Text] = []
        self.buzzes: list[osdp.Buz] = []
        self.tamper = 0
        self.files: list[bytes] = []
        self.is_on = True
        self.now_ms = 0
        self._file = bytearray()
        self._off_ms: dict[int, int] = {}
        self._in_session = self._gone = False

    def card(self, data: bytes, bits: int | None = None, form: int = 0) -> None:
        """A credential was read; reported at the next poll. Raises Conflict when too many wait."""
        self.device.report(osdp.RawCard(0, form, BitString(8 * len(data) if bits is None else bits, data)))

    def keys(self, digits: str) -> None:
        """Keys were pressed. Raises Conflict when too many events wait."""
        self.device.report(osdp.Keypad(0, digits.encode()))

    def present(self, chip: Chip) -> None:
        """A card comes that speaks APDUs; the panel is told. Raises Conflict when another lies there."""
        self.reader.put(chip)
        self.device.report(osdp.Xrd(1, 1, b"\x00\x02"))

    def remove(self) -> None:
        """The card goes, and with it the panel's conversation: another one in its place does not take part in it."""
        if self.reader.take() is not None:
            self._gone = self._in_session
            self.device.report(osdp.Xrd(1, 1, b"\x00\x00"))

    def contact(self, active: bool, number: int = 0) -> None:
        """An input changes, which is reported."""
        self.inputs[number] = active
        self.device.report(osdp.InputStatus(bytes(self.inputs)))

    def sabotage(self, tampered: bool) -> None:
        """Somebody opens the housing, or closes it."""
        self.tamper = int(tampered)
        self.device.report(osdp.LocalStatus(self.tamper, 0))

    def receive(self, data: bytes, now_ms: int) -> bytes:
        """Take what the line says and return what to answer; timed outputs end in time."""
        self.now_ms = now_ms
        for output in [output for output, end_ms in self._off_ms.items() if now_ms >= end_ms]:
            self.outputs[output] = not self.outputs[output]
            del self._off_ms[output]
        return self.device.receive(data, now_ms) if self.is_on and data else b""

    def power_cycle(self) -> None:
        """Everything that is not in flash is gone: session, outputs, queue of events, half a file."""
        self.device.reset()
        self.outputs[:] = bytes(len(self.outputs))
        self._off_ms.clear()
        self._in_session = self._gone = False
        self.device.events.clear()
        self._file.clear()

    def attach(self, port: Port, turnaround_us: int = TURNAROUND_US) -> Callable[[], int]:
        """A step for ``SerialLine.run``."""
        self.device.on_com = lambda com: port.set_baud(com.baud) if com.baud != port.line.baud else None

        def step() -> int:
            if answer := self.receive(port.read(), port.line.now_ms):
                port.write(answer, turnaround_us)
            return NEVER

        return step

    def handle(self, command: Message) -> Message | None:
        """What a reader does with each command."""
        match command:
            case osdp.IdRequest():
                return osdp.PdId(b"\x00\x00\x00", 1, 1, self.device.address, b"\x01\x00\x00")
            case osdp.CapRequest():
                return osdp.PdCap(_CAPABILITIES)
            case osdp.LocalStatusRequest():
                return osdp.LocalStatus(self.tamper, 0)
            case osdp.InputStatusRequest():
                return osdp.InputStatus(bytes(self.inputs))
            case osdp.OutputStatusRequest():
                return osdp.OutputStatus(bytes(self.outputs))
            case osdp.ReaderStatusRequest():
                return osdp.ReaderStatus(b"\x00")
            case osdp.Out():
                return self._switch(command)
            case osdp.Led():
                self.leds.update({control.led: control for control in command.controls})
            case osdp.Buz():
                self.buzzes.append(command)
            case osdp.Text():
                self.texts.append(command)
            case osdp.Comset() if command.address < osdp.ANY_ADDRESS and command.baud in osdp.BAUDS:
                return osdp.Com(command.address, command.baud)
            case osdp.Comset():
                return osdp.Nak(osdp.NakCode.RECORD)
            case osdp.FileTransfer():
                return self._take_file(command)
            case osdp.Mfg():
                return osdp.MfgRep(command.vendor, command.data)
            case osdp.Xwr():
                return self._apdu(command)
        return None

    def _switch(self, command: osdp.Out) -> Message:
        if any(control.output >= len(self.outputs) or control.action > 6 for control in command.controls):
            return osdp.Nak(osdp.NakCode.RECORD)
        for control in command.controls:
            if control.action:
                self.outputs[control.output] = control.action in {2, 4, 5}
                self._off_ms.pop(control.output, None)
                if control.action in {5, 6}:
                    self._off_ms[control.output] = self.now_ms + 100 * control.timer
        return osdp.OutputStatus(bytes(self.outputs))

    def _take_file(self, command: osdp.FileTransfer) -> Message:
        end = command.offset + len(command.piece)
        if command.offset != len(self._file) and command.offset:
            return osdp.FtStat(0, 0, -3, 0)
        if command.total > MAX_FILE or end > command.total:
            self._file.clear()
            return osdp.FtStat(0, 0, -1, 0)
        self._file[command.offset :] = command.piece
        if end < command.total:
            return osdp.FtStat(1, 0, 0, 0)
        self.files.append(bytes(self._file))
        self._file.clear()
        return osdp.FtStat(1, 0, 1, 0)

    def _apdu(self, command: osdp.Xwr) -> Message:
        if (command.mode, command.function) == (1, 2):
            self.reader.close()
            self._in_session = self._gone = False
            return osdp.Ack()
        if (command.mode, command.function) != (1, 1) or len(command.data) < 2:
            return osdp.Nak(osdp.NakCode.RECORD)
        head, apdu = command.data[:1], command.data[1:]
        self._in_session = True
        with suppress(CardRemoved):
            answer = b"" if self._gone else self.reader.transceive(apdu)
            if not self._gone:
                return osdp.Xrd(1, 2, head + b"\x00" + answer)
        return osdp.Xrd(1, 2, head + b"\x01")


_CAPABILITIES = tuple(
    osdp.Capability(*row)
    for row in [
        (1, 1, 4), (2, 1, 4), (3, 1, 1), (4, 4, 1), (5, 1, 1), (6, 1, 1), (8, 1, 0), (9, 1, 0),
        (10, BUFFER & 0xFF, BUFFER >> 8), (11, BUFFER & 0xFF, BUFFER >> 8), (12, 1, 0), (13, 1, 0),
    ]
)  # fmt: skip
