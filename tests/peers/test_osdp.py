"""Our OSDP against two independent implementations, over a socket, plain and secure."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from cardlib.crypto.aes import AesKey
from cardlib.wire import osdp
from simulator.osdp import SimulatedReader
from terminals.osdp import Bus, Event, Security, State, wait
from tests import secretwatch
from tests.terminals.osdp_world import SocketPort, now_ms

ROOT = Path(__file__).parent.parent.parent
SCBK = Random(31).randbytes(16)
MASTER = Random(32).randbytes(16)
CUID = bytes.fromhex("0011223344556677")


@contextmanager
def peer(name: str, program: str, *arguments: str) -> Iterator[tuple[socket.socket, subprocess.Popen[str]]]:
    """A peer in its own environment, with one end of a socket; its key goes by the argument list of a test only."""
    python = ROOT / ".peers" / name / "bin" / "python"
    assert python.exists(), f"no {python}: run script/peers"
    ours, theirs = socket.socketpair()
    words = [str(theirs.fileno()) if word == "FD" else word for word in arguments]
    child = subprocess.Popen(
        [str(python), str(ROOT / "tests" / "peers" / program), *words],
        pass_fds=[theirs.fileno()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={key: value for key, value in os.environ.items() if not key.startswith("PYTHON")},
    )  # fmt: skip
    theirs.close()
    try:
        yield ours, child
    finally:
        child.kill()
        child.wait()
        ours.close()
        for stream in (child.stdout, child.stderr):
            assert stream is not None
            stream.close()


class Lines:
    """What a peer has printed so far, without waiting for it."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None
        self.fd = child.stdout.fileno()
        os.set_blocking(self.fd, False)
        self.buffer = b""

    def take(self) -> list[Any]:
        """New whole lines, parsed."""
        try:
            self.buffer += os.read(self.fd, 65_536)
        except BlockingIOError:
            return []
        *whole, self.buffer = self.buffer.split(b"\n")
        return [json.loads(line) for line in whole if line]


def run_reader(
    reader: SimulatedReader, line: socket.socket, lines: Lines, done: Callable[[list[Any]], bool]
) -> list[Any]:
    """Serve a reader on a socket until the peer has said enough."""
    port, said, end = SocketPort(line), list[Any](), time.monotonic() + 40
    while not done(said):
        assert time.monotonic() < end, said
        answer = reader.device.receive(port.read(), now_ms())
        if answer:
            port.write(answer)
        said += lines.take()
        time.sleep(0.001)
    return said


@pytest.mark.parametrize("key", [None, SCBK], ids=["plain", "secure"])
def test_panel_against_the_c_library(key: bytes | None) -> None:
    """Our panel drives the C library's device: commands arrive, cards come back exactly once."""
    secretwatch.register(SCBK, "the SCBK of the peers' test")
    with peer("libosdp", "speak_libosdp.py", "device", "FD", key.hex() if key else "-") as (line, child):
        lines, said, events = Lines(child), list[Any](), list[Event]()
        bus = Bus(SocketPort(line), 115_200, os.urandom, bench=key is None)
        pd = bus.add(1, key, security=Security.SECURE if key else Security.PLAIN)

        def pump() -> None:
            events.extend(bus.step(now_ms()))
            said.extend(lines.take())
            time.sleep(0.001)

        end = time.monotonic() + 30
        while pd.state is not State.ONLINE:
            pump()
            assert time.monotonic() < end, child.poll()
        assert pd.ident is not None
        assert (pd.channel is not None) is (key is not None)
        for _ in range(10):
            led = osdp.Led((osdp.LedControl(permanent=1, on=1, on_color=2),))
            assert wait(bus.send(1, led), pump) == osdp.Ack()
        assert wait(bus.send(1, osdp.Buz(0, 2, 1, 1, 1)), pump) == osdp.Ack()
        assert wait(bus.send(1, osdp.Text(0, 1, 0, 1, 1, b"Guten Tag")), pump) == osdp.Ack()
        while sum(event.message is not None for event in events) < 10:
            pump()
            assert time.monotonic() < end
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            pump()
        cards = [event.message for event in events if isinstance(event.message, osdp.RawCard)]
        assert [card.card.data.hex() for card in cards] == ["0102030405060708"] * 10
        assert len([line for line in said if "command" in line]) == 12


@pytest.mark.parametrize("key", [None, SCBK], ids=["plain", "secure"])
def test_device_against_the_c_library(key: bytes | None) -> None:
    """The C library's panel drives our device: it comes online, sets a LED and an output, and gets five cards."""
    secretwatch.register(SCBK, "the SCBK of the peers' test")
    reader = SimulatedReader(1, key, os.urandom, cuid=CUID)
    with peer("libosdp", "speak_libosdp.py", "panel", "FD", key.hex() if key else "-") as (line, child):
        lines = Lines(child)
        said = run_reader(reader, line, lines, lambda said: any("sent" in line for line in said))
        assert said[0] == {"online": True, "secure": key is not None}
        for number in range(5):
            reader.card(bytes([number]) * 4)
        said = run_reader(reader, line, lines, lambda said: any("done" in line for line in said))
        assert [line["card"] for line in said if "card" in line] == [f"{number:02x}" * 4 for number in range(5)]
        assert reader.leds[0].on_color == 2
        assert reader.outputs[1] == 1


@pytest.mark.parametrize("master", [None, MASTER], ids=["plain", "secure"])
def test_device_against_the_python_package(master: bytes | None) -> None:
    """The other package's panel drives our device: identity, output and five cards, each once."""
    secretwatch.register(MASTER, "the master key of the peers' test")
    key = AesKey(master).encrypt_block(CUID + bytes(byte ^ 0xFF for byte in CUID)) if master else None
    reader = SimulatedReader(1, key, os.urandom, cuid=CUID)
    with peer("osdp", "speak_osdp.py", "FD", master.hex() if master else "-") as (line, child):
        lines = Lines(child)
        said = run_reader(reader, line, lines, bool)
        assert said[0]["online"]
        assert said[0]["output"]
        assert reader.outputs[1] == 1
        assert reader.device.is_secure is (master is not None)
        for number in range(5):
            reader.card(bytes([number]) * 4)
        said = run_reader(reader, line, lines, bool)
        assert said[0]["cards"] == [f"{number:02x}" * 4 for number in range(5)]
