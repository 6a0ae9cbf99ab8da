"""Doors on an OSDP line as real processes on a real pseudo-terminal: the terminal here, readers there."""

from __future__ import annotations

import os
import select
import subprocess
import threading
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from cardlib.records import PassageReport
from keymgmt.samload import SamKind
from simulator import image
from simulator.rig import PIN, Enterprise
from terminals.config import Kind
from tests.onecard import onecard
from tests.secretwatch import WATCH
from tests.terminals.osdp_world import key_of
from tests.terminals.test_run import PATIENCE_S, ROOT, Running, Site

LINE = """[weeks.1]
daily = ["00:00-24:00"]
[doors.1]
zone_inside = 10
groups = [1]
reader_in = 5
reader_out = 6
release_ms = 1500
[doors.2]
zone_inside = 11
groups = [1]
pin_hours = 1
reader_in = 7
[osdp]
port = "line/port"
baud = 115200
"""


def environment(site: Site) -> dict[str, str]:
    known = {key: value for key, value in os.environ.items() if not key.startswith("ONECARD_")}
    return known | {
        "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "ONECARD_SCBK_FILE": str(site.path("scbk")),
    }  # fmt: skip


class Readers:
    """``onecard sim door`` with its console in a file."""

    def __init__(self, site: Site, *args: str) -> None:
        self.console = site.path("readers.log")
        command = [onecard(), "sim", "door", str(site.path("line")), "--pty", *args]
        if "--address" not in args:
            command += ["--address", "5", "--address", "6", "--address", "7"]
        with self.console.open("w") as console:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=console, stderr=console, env=environment(site), cwd=site.folder,
                text=True,
            )  # fmt: skip
        self.until("addresses")

    def type(self, line: str) -> Readers:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self

    def until(self, words: str, times: int = 1) -> str:
        end = time.monotonic() + PATIENCE_S
        while (text := self.console.read_text()).count(words) < times:
            assert time.monotonic() < end, text
            assert self.process.poll() is None, text
            time.sleep(0.02)
        return text

    def close(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)
        assert self.process.stdin is not None
        self.process.stdin.close()
        WATCH.saw("the readers' console", self.console.read_text())


@pytest.fixture
def site(enterprise: Enterprise, tmp_path: Path) -> Iterator[Site]:
    made = Site(enterprise, tmp_path, Kind.ACCESS)
    made.path("pin").write_text(PIN)
    made.path("scbk").write_text("".join(f"{address} {key_of(address).hex()}\n" for address in (5, 6, 7)))
    made.path("scbk").chmod(0o600)
    made.configure(LINE)
    yield made
    for one in made.running:
        one.close()


@pytest.fixture
def readers(request: pytest.FixtureRequest, site: Site) -> Iterator[Readers]:
    made = Readers(site, *getattr(request, "param", ()))
    yield made
    made.close()


def opened(site: Site, language: str = "en") -> Running:
    """The terminal, all its readers there."""
    door = site.start("--language", language)
    for address in (5, 6, 7):
        door.until(f"{address}: reader is there" if language == "en" else f"{address}: 读卡器上线")
    return door


@pytest.mark.parametrize("readers", [(), ("--damage", "0.03", "--seed", "3")], indirect=True)
def test_doors_on_a_line(site: Site, readers: Readers) -> None:
    """Cards open their doors in and out, a PIN is typed at the reader, who may not is told why; also on a bad line."""
    site.new_card()
    site.new_card("other.img", groups=0b100)
    door = opened(site)
    readers.until("text present the card", 3)
    readers.type(f"5 card {site.path('card.img')}")
    readers.until("5: lock is open")
    assert door.events(1)[0] | {"event": 0} == {
        "door": 1, "direction": "in", "reader": 5, "event": 0, "granted": True, "waits": False,
    }  # fmt: skip
    readers.until("5: led green for 3 s")
    readers.type("5 open").type("5 shut").until("5: lock is shut")
    readers.type("5 take").type(f"6 card {site.path('card.img')}").until("5: lock is open", 2)
    readers.type("6 take").type(f"7 card {site.path('card.img')}").until("text enter the PIN")
    readers.type(f"7 keys {PIN}#").until("7: lock is open")
    readers.type("7 take").type(f"5 card {site.path('other.img')}").until("no right to pass this door")
    assert [one.get("reason", one.get("granted")) for one in door.events(5)] == [
        True, True, "pin_required", True, "not_this_door",
    ]  # fmt: skip
    readers.until("5: led blinks red for 3 s")
    assert door.end() == 0
    assert "door 1 in: refused: no right to pass this door" in door.until("refused")
    granted = [entry.record.granted for entry in site.records(PassageReport)]
    assert granted == [True, True, False, True, False]
    assert PIN not in door.console.read_text() + door.data.read_text()


def test_a_reader_loses_power_and_a_terminal_is_killed(site: Site, readers: Readers) -> None:
    """A dead reader's door says so and stays locked, others go on; a killed terminal's free doors lock again."""
    site.new_card()
    door = opened(site, "zh")
    readers.type("5 off")
    door.until("5: 读卡器离线")
    readers.type(f"6 card {site.path('card.img')}").until("门设备离线")
    readers.type("6 take").type("5 on")
    door.until("5: 读卡器上线", 2)
    readers.type(f"6 card {site.path('card.img')}").until("5: lock is open")
    door.type("emergency on")
    readers.until("text 紧急开放", 3)
    readers.until("7: lock is open")
    door.process.kill()
    door.process.wait(PATIENCE_S)
    again = opened(site, "zh")
    readers.until("7: lock is shut")
    readers.type("6 take").type(f"5 card {site.path('card.img')}").until("text 请通行", 2)
    readers.type("5 open").type("5 shut").type("5 open")
    again.until("门 1: 已锁", 2)
    assert again.end() == 0
    notes = site.notes()
    assert {"reader_away", "reader_back", "emergency", "door_opened", "door_forced"} <= set(notes)
    assert [entry.record.granted for entry in site.records(PassageReport)] == [True, True]


class Wire:
    """A line with three ends: two pseudo-terminals of its own, and the one of the simulated readers."""

    def __init__(self, readers: Path) -> None:
        self.pairs = [os.openpty(), os.openpty()]
        for _, theirs in self.pairs:
            tty.setraw(theirs)
        self.names = [os.ttyname(theirs) for _, theirs in self.pairs]
        self.ends = [ours for ours, _ in self.pairs] + [os.open(readers, os.O_RDWR | os.O_NOCTTY)]
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._carry)
        self._thread.start()

    def _carry(self) -> None:
        while not self._stop.is_set():
            for end in select.select(self.ends, [], [], 0.1)[0]:
                said = os.read(end, 4096)
                for other in self.ends:
                    if other != end:
                        os.write(other, said)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        for end in [*self.ends, *(theirs for _, theirs in self.pairs)]:
            os.close(end)


@pytest.mark.parametrize("readers", [("--address", "6")], indirect=True)
def test_a_head_as_a_process(site: Site, readers: Readers) -> None:
    """A head with its own SAM reports who came; the terminal decides and journals that it saw no card itself."""
    wire = Wire(site.path("line/port"))
    site.configure(
        "[doors.1]\nzone_inside = 10\ngroups = [1]\nreader_in = 5\ndoor_device = 6\n"
        f'[osdp]\nport = "{wire.names[0]}"\nheads = [5]\n'
    )
    serial = site.new_card().hex().upper()
    site.new_card("other.img", groups=0b100)
    image.save(site.enterprise.new_sam(SamKind.ACCESS, bytes.fromhex("310000000778")), site.path("head.img"))
    door = site.start("--language", "en")
    command = [onecard(), "terminal", "head", "--port", wire.names[1], "--address", "5", "--language"]
    command += ["en", "--sam-reader", f"sim:{site.path('head.img')}", "--reader", f"sim:{site.path('card.img')}"]
    head = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment(site),
        cwd=site.folder, text=True,
    )  # fmt: skip
    assert head.stdin is not None
    assert head.stdout is not None
    try:
        door.until("5: reader is there")
        door.until("6: reader is there")
        head.stdin.write("\n")
        head.stdin.flush()
        readers.until("6: lock is open")
        assert head.stdout.readline() == "pass\n"
        head.stdin.write("card other.img\n")
        head.stdin.flush()
        assert head.stdout.readline() == "no right to pass this door\n"
        head.stdin.write("card none.img\nquit\n")
        head.stdin.flush()
        assert "none.img" in head.stdout.read()
        assert head.wait(PATIENCE_S) == 0
        assert [one.get("reason", one.get("granted")) for one in door.events(2)] == [True, "not_this_door"]
        assert door.end() == 0
    finally:
        head.kill()
        head.wait(PATIENCE_S)
        head.stdin.close()
        head.stdout.close()
        wire.close()
    assert site.records(PassageReport)[0].record.card_serial.hex().upper() == serial
    assert site.notes().count("verified_by_head") == 2
