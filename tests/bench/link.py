"""The terminal link: share of a line's byte rate that files get, and speed over a pseudo-terminal."""

from __future__ import annotations

import os
import random
import tempfile
import threading
import time
from pathlib import Path

from cardlib.serialport import PtyPort, SerialPort
from terminals.guard import Guard
from terminals.installer import Client
from terminals.link import Master, Slave
from tests.bench.figures import Figure
from tests.terminals.linkrig import CODE, Line, Terminal, client, installer

DATA = random.Random(1).randbytes(64 << 10)
BAUD = 115_200
TURN_S = 0.004


def timed_line() -> list[Figure]:
    """64 KiB in a session on a line that keeps simulated time: 10 bits a byte, 4 ms before each answer."""
    with tempfile.TemporaryDirectory() as folder:
        terminal, line = Terminal(Path(folder)), Line(BAUD, TURN_S)
        terminal.connect(line)
        one = client(line)
        one.pair(installer(), CODE, terminal.label)
        began = line.now
        one.upload("list", DATA)
        share = len(DATA) / (line.now - began) / (BAUD / 10)
        terminal.journal.close()
    return [Figure("link: file in a session at 115 200 baud, share of byte rate", 100 * share, "%", 80)]


def pseudo_terminal() -> list[Figure]:
    """64 KiB in a session through pyserial and the kernel, both ends in this process."""
    with tempfile.TemporaryDirectory() as folder:
        terminal, port, stop = Terminal(Path(folder)), PtyPort(), threading.Event()
        guard = Guard(terminal.host, terminal.pairing, 5, time.monotonic, os.urandom)
        slave = Slave(port, time.monotonic, 5, guard, port.gap_s)

        def work() -> None:
            while not stop.is_set():
                slave.poll()

        thread = threading.Thread(target=work)
        thread.start()
        far = SerialPort(port.name)
        try:
            master = Master(far, time.monotonic, os.urandom, far.gap_s)
            one = Client(master, 5, terminal.serial, time.monotonic, os.urandom)
            one.pair(installer(), CODE, terminal.label)
            began = time.perf_counter()
            one.upload("list", DATA)
            seconds = time.perf_counter() - began
        finally:
            stop.set()
            thread.join()
            far.close()
            port.close()
            terminal.journal.close()
    return [Figure("link: 64 KiB in a session over a pseudo-terminal", len(DATA) / seconds / 1000, "kB/s", 80)]


def link() -> list[Figure]:
    """Both."""
    return timed_line() + pseudo_terminal()
