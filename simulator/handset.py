"""``onecard sim phone``: a person holds the simulated phone, sees its screens and presses its keys."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from cardlib.errors import ConfigError
from console import Noun, Session, pass_session
from simulator import image
from simulator.phone import Phone, Screen
from simulator.sim import Sim

WIDTH = 26
BACK, LEAVE = "b", "q"
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
