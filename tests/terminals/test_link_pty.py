"""The link over a pseudo-terminal and pyserial: pairing, a file, a journal, the clock; ports that can't be opened."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cardlib.errors import ConfigError, ReaderLost
from cardlib.serialport import PtyPort, SerialPort, gap_s, ports
from terminals.guard import Guard
from terminals.installer import Client
from terminals.link import Desk, Master, Slave
from tests.terminals.linkrig import CODE, NOW, Terminal, installer


@contextmanager
def served(desk: Desk) -> Iterator[str]:
    """A pseudo-terminal with a slave behind it, at work until the end of the block."""
    port, stop = PtyPort(), threading.Event()
    slave = Slave(port, time.monotonic, 5, desk, port.gap_s)

    def work() -> None:
        while not stop.is_set():
            slave.poll()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield port.name
    finally:
        stop.set()
        thread.join()
        port.close()


@contextmanager
def connected(name: str) -> Iterator[Client]:
    """A client over pyserial."""
    port = SerialPort(name)
    try:
        master = Master(port, time.monotonic, os.urandom, port.gap_s)
        yield Client(master, 5, "POS-0001", time.monotonic, os.urandom)
    finally:
        port.close()


def test_file_journal_and_clock(tmp_path: Path) -> None:
    """A terminal behind a pseudo-terminal is found, paired, given a file and the time, and collected."""
    terminal = Terminal(tmp_path / "t", entries=40)
    data = random.Random(1).randbytes(20_000)
    guard = Guard(terminal.host, terminal.pairing, 5, time.monotonic, os.urandom)
    with served(guard) as name:
        with connected(name) as one:
            assert one.master.hello(5).serial == "POS-0001"
            public = one.pair(installer(), CODE, terminal.label)
            one.upload("list", data)
        with connected(name) as one:
            one.open(installer(), public)
            assert one.download("list") == data
            one.set_clock(NOW + 5_000)
            assert len(one.collect(tmp_path / "dump").entries) == 41
    assert terminal.journal.acked_seq == 41
    terminal.journal.close()


def test_ports_that_cant_be_opened(tmp_path: Path) -> None:
    """A port that is not there, is open elsewhere or is no port at all is told apart, with what to do next."""
    with pytest.raises(ReaderLost, match="no such port"):
        SerialPort(str(tmp_path / "none"))
    with pytest.raises(ReaderLost, match="nobody listens"):
        SerialPort("socket://127.0.0.1:1")
    with pytest.raises(ConfigError):
        SerialPort("nonsense://x")
    (tmp_path / "file").touch()
    with pytest.raises(ReaderLost, match="no serial port"):
        SerialPort(str(tmp_path / "file"))
    port = PtyPort()
    one = SerialPort(port.name)
    with pytest.raises(ReaderLost, match="another program"):
        SerialPort(port.name)
    one.close()
    port.close()
    assert gap_s("/dev/ttyS0") == 0.02
    assert gap_s("/dev/ttyUSB0") == gap_s("socket://x:1") == gap_s(port.name) == 0.5
    assert ports() == sorted(ports())


def test_a_lost_port_is_an_error_of_the_line() -> None:
    """When the other end goes away, reading says so."""
    port = PtyPort()
    one = SerialPort(port.name)
    port.write(b"hello")
    assert one.read() == b"hello"
    assert one.read() == b""
    one.write(b"there")
    assert port.read() == b"there"
    port.close()
    with pytest.raises(ReaderLost, match="gone"):
        one.read()
    one.close()
