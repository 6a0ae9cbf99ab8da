"""``onecard sim phone``: a person holds the simulated phone; ``onecard sim smsc``: many, behind a message centre."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cardlib.errors import ConfigError, NotFound
from console import Noun, Session, pass_session
from simulator import image
from simulator.phone import Phone, Screen
from simulator.sim import Sim
from simulator.smsc import Centre, Faults

if TYPE_CHECKING:
    from cardlib.netport import NetPort

WIDTH = 26
BACK, LEAVE = "b", "q"
TURN_S = 0.05
"""How long the centre waits for a client before it looks what else is due."""
ODDS = click.FloatRange(0, 1)
HINT = f"[number] choose   [Enter] OK   [{BACK}] back   [{LEAVE}] leave"


@click.group(cls=Noun)
def command() -> None:
    """A simulated phone."""


@command.command("phone")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--language", type=click.Choice(["zh", "en"]), help="Make this the language of the SIM's menu.")
@pass_session
def hold(session: Session, file: Path, language: str | None) -> None:
    """Put the RFID-SIM of image FILE into a phone and use its menu. What it writes is kept in the file."""
    session.refuse_dry_run("a phone is used or not")
    sim = image.load(file)
    if not isinstance(sim, Sim):
        raise ConfigError(f"{file} holds a {sim.KIND}, not a sim: make one with onecard sim make FILE --rfid-sim")
    image.keep(sim, file)
    phone = Phone(sim.phone)
    phone.power_on()
    if language:
        phone.speak(language)
    session.note(HINT)
    use(phone)


def use(phone: Phone) -> None:
    """Show a screen, take a key, until the person leaves the menu or there are no more keys."""
    while True:
        screen = phone.screen
        click.echo("\n".join(drawn(screen or Screen(0, phone.title, phone.menu))))
        try:
            key = pressed(screen)
        except (click.Abort, EOFError):
            return
        try:
            if key in (BACK, LEAVE) and screen is None:
                return
            if key == BACK:
                phone.back()
            elif key == LEAVE:
                phone.leave()
            elif screen is None:
                phone.open(_named(phone.menu, key))
            else:
                phone.press(_named(dict(screen.items), key) if screen.items else key)
        except ConfigError as e:
            click.echo(str(e))


def pressed(screen: Screen | None) -> str:
    """One line of keys; what a field hides is not shown on a terminal."""
    hidden = screen is not None and screen.hidden and sys.stdin.isatty()
    text: str = click.prompt("", default="", show_default=False, prompt_suffix="> ", hide_input=hidden)
    return text.strip()


def _named(items: dict[int, str], key: str) -> str:
    """The text of an item whose number was typed; else what was typed."""
    return items.get(int(key), key) if key.isascii() and key.isdigit() else key


def drawn(screen: Screen) -> Iterator[str]:
    """The lines of a screen."""
    yield "=" * WIDTH
    yield from screen.text.split("\n")
    yield "-" * WIDTH
    for number, name in screen.items.items():
        yield f"{number} {name}"
    if screen.lengths[1]:
        yield f"({screen.lengths[0]}-{screen.lengths[1]})"


@command.command("smsc")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--port", type=click.IntRange(0, 65535), default=2775, show_default=True, help="Where clients call.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--system-id", default="onecard", show_default=True, help="Name that clients bind with.")
@click.option("--loss", type=ODDS, default=0.0, help="How often a message is lost on its way.")
@click.option("--twice", type=ODDS, default=0.0, help="How often a message comes twice.")
@click.option("--slowest", type=click.FloatRange(0, 3600), default=0.0, help="Seconds that a message may take.")
@click.option("--throttled", type=ODDS, default=0.0, help="How often a client is asked to wait.")
@click.option("--cut", type=ODDS, default=0.0, help="How often the line is cut instead of answered.")
@click.option("--seed", type=int, default=0, show_default=True, help="Faults are the same with the same.")
@pass_session
def centre(  # one parameter an option
    session: Session, /, folder: Path, port: int, host: str, system_id: str, seed: int, **odds: float
) -> None:
    """Be a short message centre (SMPP 3.4) for the RFID-SIMs in FOLDER, each an image named by its number: 138...img.

    Asks for the password that clients bind with. Prints the texts that phones receive; SIM data go to the SIM.
    """
    from cardlib.netport import Listener, wait  # noqa: PLC0415  # sockets and TLS are for this verb alone

    session.refuse_dry_run("a message centre runs or not")
    faults = Faults(odds["loss"], odds["twice"], odds["slowest"], odds["throttled"], odds["cut"])
    smsc = session.keep(Centre({system_id: session.secret("smsc password")}, time.time, faults, seed))
    phones = dict(_phones(folder))
    for number, phone in phones.items():
        smsc.register(number, phone)
    listener = session.keep(Listener(host, port))
    session.emit({"port": listener.port, "phones": len(phones)})
    sys.stdout.flush()
    lines: list[NetPort] = []
    while True:
        wait([listener, *lines], TURN_S)
        while line := listener.accept():
            smsc.attach(line)
            lines.append(line)
        smsc.poll()
        lines = [line for line in lines if line.fileno() >= 0]
        for number, phone in phones.items():
            for text in phone.inbox:
                session.emit({"number": number, "text": text})
                sys.stdout.flush()
            phone.inbox.clear()


def _phones(folder: Path) -> Iterator[tuple[str, Phone]]:
    """A phone for each SIM whose file is named by a number, switched on. Raises NotFound, ConfigError."""
    if not folder.is_dir():
        raise NotFound(f"there is no folder {folder}: make SIMs in it with onecard sim make --rfid-sim")
    for file in sorted(folder.iterdir()):
        number = file.stem.removeprefix("+")
        if file.is_file() and number.isascii() and number.isdigit():
            sim = image.load(file)
            if not isinstance(sim, Sim):
                raise ConfigError(f"{file} holds a {sim.KIND}, not a sim: make one with onecard sim make --rfid-sim")
            image.keep(sim, file)
            phone = Phone(sim.phone)
            phone.power_on()
            yield number, phone
