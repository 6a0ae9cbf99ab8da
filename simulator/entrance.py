"""``onecard sim door``: OSDP readers at doors, on one line behind a pseudo-terminal, played by lines on stdin."""

from __future__ import annotations

import os
import re
import select
import sys
import time
import tty
from pathlib import Path

import click

from cardlib.errors import ConfigError, OneCardError
from cardlib.wire import osdp
from cardlib.wire.osdp_secure import read_keys
from console import Noun, Session, pass_session
from simulator import image
from simulator.osdp import SimulatedReader
from simulator.serialline import Faults, SerialLine

COLORS = ("dark", "red", "green", "amber", "blue", "magenta", "cyan", "white")
MAX_KEYS = 32
KEYS = {"*": "\x7f", "#": "\r"}
USAGE = "[ADDRESS] card FILE | take | verified HEX | keys DIGITS# | open | shut | tamper | whole | off | on; quit"


@click.group(cls=Noun)
def command() -> None:
    """Merged into the noun of the same name."""


def led_words(led: osdp.LedControl) -> str:
    """What people see of an LED's setting."""
    if led.temporary == 2:
        color, blinks, time_s = led.temporary_on_color, led.temporary_off, f" for {led.timer / 10:g} s"
    else:
        color, blinks, time_s = led.on_color, led.off, ""
    name = COLORS[color] if color < len(COLORS) else f"color {color}"
    return f"led {'blinks ' if blinks else ''}{name}{time_s}"


class Scene:
    """The readers of one line, and what was last told of each."""

    def __init__(self, session: Session, readers: dict[int, SimulatedReader]) -> None:
        self._session, self.readers = session, readers
        self._locked = dict.fromkeys(readers, True)

    def watch(self) -> None:
        """Tell what has changed at the readers."""
        for address, reader in self.readers.items():
            locked = not reader.outputs[0]
            if locked is not self._locked[address]:
                self._locked[address] = locked
                self._tell(address, "lock is shut" if locked else "lock is open")
            for number in list(reader.leds):
                self._tell(address, led_words(reader.leds.pop(number)))
            for text in reader.texts:
                self._tell(address, f"text {text.text.decode(errors='replace')}")
            for buz in reader.buzzes:
                self._tell(address, f"beeps {buz.count}")
            reader.texts.clear()
            reader.buzzes.clear()

    def _tell(self, address: int, words: str) -> None:
        self._session.emit({"reader": address, "says": words}, f"{address}: {words}")

    def line(self, line: str) -> bool:
        """Do what a line says; False for the end."""
        words = line.split()
        if words == ["quit"]:
            return False
        address = next(iter(self.readers))
        if words and words[0].isdecimal() and int(words[0]) in self.readers:
            address = int(words.pop(0))
        try:
            if words and not self._do(self.readers[address], words):
                self._session.note(f"{line[:40]!r} is not understood here: {USAGE}")
        except OneCardError as e:
            self._session.note(str(e))
        return True

    def _do(self, reader: SimulatedReader, words: list[str]) -> bool:
        match words:
            case ["card", *names] if names:
                path = Path(" ".join(names))
                card = image.load(path)
                image.keep(card, path)
                reader.present(card)
            case ["take"]:
                reader.remove()
            case ["verified", digits] if re.fullmatch("([0-9A-Fa-f]{2}){1,64}", digits):
                reader.card(bytes.fromhex(digits))
            case ["keys", digits] if len(digits) <= MAX_KEYS:
                reader.keys("".join(KEYS.get(digit, digit) for digit in digits))
            case ["open" | "shut" as way]:
                reader.contact(way == "open")
            case ["tamper" | "whole" as way]:
                reader.sabotage(way == "tamper")
            case ["off" | "on" as way]:
                reader.power_cycle()
                reader.is_on = way == "on"
            case _:
                return False
        return True


@command.command("door")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--pty", is_flag=True, required=True, expose_value=False, help="Be at the other end of a pseudo-terminal."
)
@click.option(
    "--address", "addresses", type=click.IntRange(0, osdp.ANY_ADDRESS - 1), multiple=True, default=(1,),
    show_default=True, help="Of a reader; may be given again.",
)  # fmt: skip
@click.option("--damage", type=click.FloatRange(0, 1), default=0, help="This part of all packets is damaged.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which packets are.")
@pass_session
def door(session: Session, folder: Path, addresses: tuple[int, ...], damage: float, seed: int) -> None:
    """Be OSDP readers with lock and contact at FOLDER/port; lines on stdin play cards, keys and the door.

    A line is [ADDRESS] and card FILE, take, verified HEX, keys 1234#, open, shut, tamper, whole, off, on; or quit.
    The readers' keys stand in the file named by ONECARD_SCBK_FILE, as for the terminal.
    """
    session.refuse_dry_run("readers are at the line or not")
    keys = read_keys(session.secret_lines("scbk"))
    if missing := [address for address in addresses if address not in keys]:
        raise ConfigError(f"no SCBK for OSDP address {missing[0]}: add it to the file named by ONECARD_SCBK_FILE")
    readers = {address: SimulatedReader(address, keys[address], os.urandom) for address in addresses}
    ours, theirs = os.openpty()  # theirs stays open, so that a panel may come and go
    tty.setraw(theirs)
    folder.mkdir(parents=True, exist_ok=True)
    link, beside = folder / "port", folder / "port.new"
    beside.unlink(missing_ok=True)
    beside.symlink_to(os.ttyname(theirs))
    beside.replace(link)
    session.emit({"port": os.ttyname(theirs), "link": link, "addresses": addresses})
    _serve(Scene(session, readers), ours, SerialLine(9_600, Faults(damage=damage), seed=seed))


def _serve(scene: Scene, line: int, noise: SerialLine) -> None:
    """Answer the panel and do what lines say until ``quit``; an end of the lines leaves the readers as they are."""
    inputs, typed = [line, sys.stdin.fileno()], b""
    while True:
        ready = select.select(inputs, [], [], 0.01)[0]
        heard = b"".join(noise.spoil(os.read(line, 1 << 16))) if line in ready else b""
        for reader in scene.readers.values():
            if answer := reader.receive(heard, time.monotonic_ns() // 1_000_000):
                os.write(line, b"".join(noise.spoil(answer)))
        if inputs[-1] in ready[-1:] and inputs[-1] != line:
            chunk = os.read(inputs[-1], 4096)
            inputs = inputs if chunk else inputs[:1]
            *lines, typed = (typed + chunk).split(b"\n")
            if not all(scene.line(one.decode(errors="replace")) for one in lines):
                return
        scene.watch()
