"""Runs in .peers/osdp: that package's panel on an inherited socket. ``FD MASTER-KEY-HEX|-``; prints JSON lines.

In its handshake the package always names the default key, whatever key it uses: the connection here names the
right one. It derives the device's key from a master key and the device's id.
"""

from __future__ import annotations

import binascii
import json
import logging
import socket
import sys
import time
from typing import Any

from osdp import ControlPanel, OsdpConnection, OutputControl, OutputControlCode, OutputControls


class Line(OsdpConnection):  # type: ignore[misc]  # the package has no types
    """The socket, always open."""

    baud_rate = 9_600
    is_open = True

    def __init__(self, line: socket.socket) -> None:
        line.settimeout(1.0)
        self.line = line

    def open(self) -> None:
        """It is."""

    def close(self) -> None:
        """It stays open."""

    def write(self, buf: bytes) -> None:
        """Send; a step of the handshake names the device's own key."""
        packet = bytearray(buf)
        if packet[5] & 0x08 and bytes(packet[6:8]) in {b"\x03\x11", b"\x03\x13"}:
            packet[8] = 1
            packet[-2:] = binascii.crc_hqx(bytes(packet[1:-2]), 0x1D0F).to_bytes(2, "little")
        self.line.sendall(bytes(packet))

    def read(self, size: int = 1) -> bytes:
        """Up to ``size`` bytes, none after a second."""
        try:
            return self.line.recv(size)
        except TimeoutError:
            return b""


def say(what: dict[str, Any]) -> None:
    """One line for the test."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main(fd: int, master: bytes | None) -> None:
    """Come online, ask and set something, then tell five cards."""
    logging.getLogger("osdp").handlers.clear()
    cards: list[bytes] = []

    class Panel(ControlPanel):  # type: ignore[misc]  # the package has no types
        def on_raw_card_data_reply_received(self, address: int, raw: Any) -> None:
            """A card."""
            cards.append(bytes(raw.data))

    panel = Panel(master)
    bus = panel.start_connection(Line(socket.socket(fileno=fd)))
    panel.add_device(bus, 1, True, master is not None)
    time.sleep(2.0)
    report: dict[str, Any] = {"online": bool(panel.is_online(bus, 1))}
    report["serial"] = panel.id_report(bus, 1).serial_number
    control = OutputControl(1, OutputControlCode.PermanentStateOnAbortTimedOperation, 0)
    report["output"] = bool(panel.output_control(bus, 1, OutputControls([control])))
    say(report)
    end = time.monotonic() + 10
    while len(cards) < 5 and time.monotonic() < end:
        time.sleep(0.05)
    say({"cards": [card.hex() for card in cards]})
    panel.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), None if sys.argv[2] == "-" else bytes.fromhex(sys.argv[2]))
