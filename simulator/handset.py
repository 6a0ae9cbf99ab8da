"""``onecard sim phone``: a person holds the simulated phone; ``onecard sim smsc``: many, behind a message centre."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from enum import Enum, auto, unique
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
TURN_S = 0.05
"""How long the centre waits for a client before it looks what else is due."""
ODDS = click.FloatRange(0, 1)
BACK, LEAVE, HELP = "b", "q", "?"
HINT = f"[number] choose   [Enter] OK   [{BACK}] back   [{HELP}] help   [{LEAVE}] leave"
SHORT = 16
"""Characters of a message that stand in the list of messages."""
WORDS = {
    "messages": ("信息", "Messages"), "empty": ("没有信息", "No messages"), "unread": ("新信息", "new:"),
    "ok": ("确定", "OK"), "back": ("返回", "Back"), "help": ("帮助", "Help"), "off": ("关闭", "Off"),
    "lengths": ("位", "characters"), "nowhere": ("无服务", "No service"),
}  # fmt: skip


@unique
class Place(Enum):
    """Where a phone is when its SIM shows nothing."""

    HOME = auto()
    MENU = auto()
    INBOX = auto()
    MESSAGE = auto()


class Handset:
    """What a person sees of a phone and does to it: home, the SIM's menu, messages. The SIM's own screens go first.

    What a phone shows by itself are screens of kind 0.
    """

    def __init__(self, phone: Phone, place: Place = Place.HOME) -> None:
        self.phone = phone
        self.place = place
        self._message = 0

    def say(self, word: str) -> str:
        """A word of the phone in its language."""
        return WORDS[word][0 if self.phone.language == "zh" else 1]

    @property
    def is_home(self) -> bool:
        """Whether there is nothing to go back from."""
        return self.phone.screen is None and self.place is Place.HOME

    @property
    def status(self) -> str:
        """The status line: signal, operator, how many messages were not read."""
        phone = self.phone
        bars = "▂▄▆█"[: phone.signal] or self.say("nowhere")
        return f"{bars} {phone.operator}" + (f"  {self.say('unread')} {len(phone.unread)}" if phone.unread else "")

    @property
    def screen(self) -> Screen:
        """What is shown now."""
        phone = self.phone
        if phone.screen is not None:
            return phone.screen
        if self.place is Place.MENU:
            return Screen(0, phone.title, phone.menu, has_help=phone.menu_has_help)
        if self.place is Place.MESSAGE:
            return Screen(0, phone.inbox[self._message])
        if self.place is Place.INBOX:
            rows = [
                f"{'*' if at in phone.unread else ' '} {' '.join(phone.inbox[at].split())[:SHORT]}"
                for at in reversed(range(len(phone.inbox)))
            ]
            return Screen(0, self.say("messages" if rows else "empty"), dict(enumerate(rows, 1)))
        return Screen(0, "", ({1: phone.title} if phone.menu else {}) | {2: self.say("messages")})

    def press(self, key: int | str = "") -> None:
        """Answer the screen: an item's number, what is typed, or nothing for OK. Raises ConfigError, StatusError."""
        phone, items = self.phone, self.screen.items
        if phone.screen is not None:
            phone.press(key)
        elif self.place is Place.MESSAGE or not items:
            self.back()
        elif key not in items:
            raise ConfigError(f"{str(key)!r} is not on the screen: {', '.join(items.values())}")
        elif self.place is Place.MENU:
            phone.open(key)
        elif self.place is Place.INBOX:
            assert isinstance(key, int)
            self.place, self._message = Place.MESSAGE, len(phone.inbox) - key
            phone.unread.discard(self._message)
        else:
            self.place = Place.MENU if key == 1 else Place.INBOX

    def help(self, item: int | None = None) -> None:
        """Ask for help on the SIM's question, or on an entry of its menu. Raises ConfigError when there is none."""
        if self.phone.screen is None and self.place is Place.MENU and item is not None:
            self.phone.open(item, wants_help=True)
        else:
            self.phone.help()

    def back(self) -> None:
        """One screen back."""
        if self.phone.screen is not None:
            self.phone.back()
        else:
            self.place = Place.INBOX if self.place is Place.MESSAGE else Place.HOME

    def leave(self) -> None:
        """To the first screen, whatever is shown."""
        if self.phone.screen is not None:
            self.phone.leave()
        self.place = Place.HOME


@click.group(cls=Noun)
def command() -> None:
    """A simulated phone."""


@command.command("phone")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--language", type=click.Choice(["zh", "en"]), help="Make this the language of the SIM's menu.")
@click.option("--lines", is_flag=True, help="Print lines and read lines, as is done anyway without a terminal.")
@pass_session
def hold(session: Session, file: Path, language: str | None, lines: bool) -> None:
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
    if lines or not (sys.stdin.isatty() and sys.stdout.isatty()):
        session.note(HINT)
        use(phone)
        return
    try:
        from simulator.phonescreen import run  # noqa: PLC0415  # the extra "phone"
    except ImportError as e:
        raise ConfigError('a phone on the screen needs the extra "phone": install onecard[phone], or --lines') from e
    run(Handset(phone))


def use(phone: Phone) -> None:
    """Print a screen, read a line of keys, until the person leaves the menu or there are no more lines."""
    handset = Handset(phone, Place.MENU if phone.menu else Place.HOME)
    while True:
        screen = handset.screen
        click.echo("\n".join(drawn(screen, handset.status)))
        try:
            key = pressed(screen)
        except (click.Abort, EOFError):
            return
        word, _, rest = key.partition(" ")
        try:
            if key == LEAVE and phone.screen is None:
                return
            if key == BACK:
                handset.back()
            elif key == LEAVE:
                handset.leave()
            elif word == HELP:
                handset.help(int(rest) if rest.isdecimal() else None)
            else:
                handset.press(int(key) if screen.items and key.isdecimal() else key)
        except ConfigError as e:
            click.echo(str(e))


def pressed(screen: Screen) -> str:
    """One line of keys; what a field hides is not shown on a terminal."""
    hidden = screen.hidden and sys.stdin.isatty()
    text: str = click.prompt("", default="", show_default=False, prompt_suffix="> ", hide_input=hidden)
    return text.strip()


def drawn(screen: Screen, status: str) -> Iterator[str]:
    """The lines of a screen."""
    yield "=" * WIDTH
    yield status
    if screen.text:
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
