"""Provisioning cut wherever a cut can make a difference; several terminals' processes on one bus, two installers."""

from __future__ import annotations

import os
import random
import select
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cardlib.errors import TransportError
from cardlib.serialport import PtyPort, SerialPort
from cardlib.wire import smp
from terminals.installer import Client, Installer, SessionEnded
from terminals.link import Master
from tests.onecard import onecard
from tests.terminals.linkrig import AUTHORITY, VERBS, config_file, installer
from tests.terminals.provisioned import Place, cut_at
from tests.terminals.test_run import PATIENCE_S

COUNT = 3
DAY_MS = 86_400_000


def test_provisioning_cut_anywhere_ends_whole(tmp_path: Path) -> None:
    """Cut within and right after each burst on the line: the same command ends it (script/soak does each byte)."""
    place = Place(tmp_path / "whole")
    assert [step.split()[0] for step in place.provision()] == ["pair", "authority", "config", "list", "test"]
    assert not place.faults()
    bursts = place.bursts[:]
    assert not place.provision(seed=9)
    place.terminal.journal.close()
    rng, passed = random.Random(1), 0
    for size in bursts:
        for byte in (passed + rng.randrange(1, size), passed + size):
            was_cut, faults = cut_at(tmp_path / f"{byte}", byte)
            assert not faults, byte
            assert was_cut or byte == sum(bursts), byte
        passed += size


class Bus:
    """One pair of wires between pseudo-terminals: what one says all others hear, with bytes damaged by a seed."""

    def __init__(self, count: int, damage: float = 0.0) -> None:
        self.ports = [PtyPort() for _ in range(count)]
        self._rng, self._damage, self._stop = random.Random(7), damage, False
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        by_number = {port.fileno(): port for port in self.ports}
        while not self._stop:
            for number in select.select([*by_number], [], [], 0.05)[0]:
                data = bytearray(os.read(number, 1 << 16))
                if self._rng.random() < self._damage:
                    data[self._rng.randrange(len(data))] ^= 0x10
                for port in self.ports:
                    if port is not by_number[number]:
                        port.write(bytes(data))

    def close(self) -> None:
        self._stop = True
        self._thread.join()
        for port in self.ports:
            port.close()


@pytest.fixture
def bus() -> Iterator[Bus]:
    made = Bus(COUNT + 2, damage=0.01)
    yield made
    made.close()


@pytest.fixture
def terminals(bus: Bus, tmp_path: Path) -> Iterator[None]:
    """Processes with addresses 1, 2, 3 on the bus."""
    processes = []
    for number in range(1, COUNT + 1):
        args = ["--link", bus.ports[number - 1].name, "--address", str(number), "--serial", f"T-{number}"]
        program = [onecard(), "--json", "sim", "terminal", f"t{number}", "--entries", "20", *args]
        process = subprocess.Popen(
            program,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        processes.append(process)
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline()
    yield
    for process in processes:
        process.kill()
        process.wait(PATIENCE_S)
        assert process.stdout is not None
        process.stdout.close()


@contextmanager
def master(port: PtyPort) -> Iterator[Master]:
    line = SerialPort(port.name)
    try:
        yield Master(line, time.monotonic, os.urandom, line.gap_s)
    finally:
        line.close()


def talk_at_once(one: Client, two: Client, who: Installer, public: bytes) -> None:
    """Two masters speak at the same time, to one terminal each: every answer that comes is the right one."""
    answers: list[tuple[str, str]] = []

    def talk(client: Client) -> None:
        for number in range(15):
            text = f"{client.serial} {number}"
            with suppress(TransportError):
                answers.append((text, client.request(smp.ECHO, {"d": text})["r"]))

    two.open(who, public)
    threads = [threading.Thread(target=talk, args=(client,)) for client in (one, two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) >= 15
    assert all(asked == answered for asked, answered in answers)


@pytest.mark.usefixtures("terminals")
def test_several_terminals_on_one_bus(bus: Bus, tmp_path: Path) -> None:
    """All are found, paired, configured and collected by address; a second installer takes over, the first is told."""
    now = time.time_ns() // 1_000_000
    who = installer(verbs=VERBS, not_before_ms=now - DAY_MS, not_after_ms=now + DAY_MS)
    with master(bus.ports[COUNT]) as one, master(bus.ports[COUNT + 1]) as two:
        found = one.discover()
        assert {serial: address for serial, (address, _) in found.items()} == {"T-1": 1, "T-2": 2, "T-3": 3}
        clients = []
        for serial, (address, hello) in sorted(found.items()):
            client = Client(one, address, serial, time.monotonic, os.urandom)
            code = (tmp_path / f"t{address}" / "code").read_text().strip()
            public = client.pair(who, code, hello.fingerprint)
            client.request(smp.AUTHORITY, {0: AUTHORITY.public})
            digest = client.upload("config", config_file(address, serial, created_ms=now - 1000))
            assert client.request(smp.CONFIG_APPLY, {0: b"", 1: digest})[0] == address
            other = Client(two, address, serial, time.monotonic, os.urandom)
            other.open(who, public)
            assert other.request(smp.ECHO, {"d": serial}) == {"r": serial}
            with pytest.raises(SessionEnded):
                client.request(smp.ECHO, {"d": "still mine?"})
            client.open(who, public)
            assert len(client.collect(tmp_path / f"{serial}.dump").entries) >= 22
            assert client.request(smp.INFO)[9] == address
            clients.append((client, Client(two, address, serial, time.monotonic, os.urandom), public))
        talk_at_once(clients[0][0], clients[2][1], who, clients[2][2])
