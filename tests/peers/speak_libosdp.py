"""Runs in .peers/libosdp: the C library as panel or device on an inherited socket. ``ROLE FD``, SCBK as hex or -.

Prints one JSON line for each thing that happens. The library gets whole packets only: it does not put together one that
arrives in two reads. It stays far below the 4 000 commands after which its device role dies.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from typing import Any

from osdp import (
    Capability,
    CardFormat,
    Channel,
    Command,
    ControlPanel,
    Event,
    LibFlag,
    LogLevel,
    PDCapabilities,
    PDInfo,
    PeripheralDevice,
)

CARD = bytes.fromhex("0102030405060708")


def say(**what: Any) -> None:
    """One line for the test."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


class WholePackets(Channel):  # type: ignore[misc]  # the package has no types
    """A socket that hands over one whole packet a read."""

    def __init__(self, line: socket.socket) -> None:
        super().__init__()
        line.setblocking(False)
        self.line = line
        self.buffer = b""

    def read(self, max_bytes: int) -> bytes:
        """A packet, or nothing yet."""
        with contextlib.suppress(BlockingIOError):
            self.buffer += self.line.recv(4096)
        self.buffer = self.buffer.lstrip(b"\xff")
        size = int.from_bytes(self.buffer[2:4], "little")
        if len(self.buffer) < 5 or len(self.buffer) < size:
            return b""
        packet, self.buffer = self.buffer[:size], self.buffer[size:]
        return packet

    def write(self, buf: bytes) -> int:
        """All of it."""
        self.line.sendall(bytes(buf))
        return len(buf)

    def flush(self) -> None:
        """Nothing is held back."""


def info(line: socket.socket, scbk: bytes | None) -> PDInfo:
    """Device 1, secure only when there is a key."""
    return PDInfo(1, WholePackets(line), scbk=scbk, flags=[LibFlag.EnforceSecure] if scbk else [])


def device(line: socket.socket, scbk: bytes | None) -> None:
    """Tell each command, and answer an LED with a card."""
    capabilities = PDCapabilities([(Capability.LEDControl, 1, 1), (Capability.AudibleControl, 1, 1),
                                   (Capability.OutputControl, 1, 1), (Capability.TextOutput, 1, 1),
                                   (Capability.CommunicationSecurity, 1, 1)])  # fmt: skip
    pd = PeripheralDevice(info(line, scbk), capabilities, log_level=LogLevel.Emergency)
    pd.start()
    say(ready=True)
    while command := pd.get_command(timeout=10):
        say(command=command["command"], text=str(command.get("data", "")))
        if command["command"] == Command.LED:
            pd.submit_event({"event": Event.CardRead, "reader_no": 0, "direction": 0, "format": CardFormat.Unspecified,
                             "length": 8 * len(CARD), "data": CARD})  # fmt: skip
    pd.stop()


def panel(line: socket.socket, scbk: bytes | None) -> None:
    """Come online, set a LED and an output, then tell five cards."""
    events: list[dict[str, Any]] = []
    cp = ControlPanel([info(line, scbk)], log_level=LogLevel.Emergency)
    cp.start()
    online = cp.online_wait(1, timeout=10)
    say(online=online, secure=cp.is_sc_active(1))
    led = {"reader": 0, "led_number": 0, "control_code": 1, "on_count": 10, "off_count": 0, "on_color": 2}
    led |= {"command": Command.LED, "off_color": 0, "timer_count": 0, "temporary": False}
    cp.submit_command(1, led)
    cp.submit_command(1, {"command": Command.Output, "output_no": 1, "control_code": 2, "timer_count": 0})
    say(sent=True)
    while len(events) < 5 and (event := cp.get_event(1, timeout=10)):
        if event["event"] == Event.CardRead:
            events.append(event)
            say(card=bytes(event["data"]).hex())
    time.sleep(0.3)
    cp.stop()
    say(done=True)


if __name__ == "__main__":
    role, fd, key = sys.argv[1:]
    ends = {"device": device, "panel": panel}
    ends[role](socket.socket(fileno=int(fd)), None if key == "-" else bytes.fromhex(key))
