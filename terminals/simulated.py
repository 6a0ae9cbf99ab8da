"""``onecard sim terminal``: a whole terminal without its hardware, behind a pseudo-terminal.

Its folder holds all that outlives a restart (``terminals.home``). ``FOLDER/port`` always leads to the pseudo-terminal
in use. Its SAM is an image, and so are the cards put into its slot.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from cardlib.errors import ConfigError
from cardlib.serialport import PtyPort
from console import AMOUNT, Noun, Session, pass_session
from terminals.commands import open_home
from terminals.config import Kind


@click.group(cls=Noun)
def command() -> None:
    """Simulated cards and SAMs, in the slots of a virtual PC/SC reader or in image files."""


class _Plug:
    """A port whose plug is pulled once so many bytes have left: the process ends there and then."""

    def __init__(self, port: PtyPort, cut_after: int) -> None:
        self._port, self._left = port, cut_after
        self.baud, self.gap_s = port.baud, port.gap_s
        self.read, self.set_baud, self.fileno, self.close = port.read, port.set_baud, port.fileno, port.close

    def write(self, data: bytes) -> None:
        """Send what may still leave."""
        self._left -= len(data)
        if self._left < 0:
            os._exit(137)  # as a kill: nothing is tidied up
        self._port.write(data)


@command.command("terminal")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--pty", is_flag=True, help="Be at the other end of a pseudo-terminal.")
@click.option("--link", help="Hang on this port instead: name or URL.")
@click.option(
    "--kind", type=click.Choice([kind.value for kind in Kind]), default="pos", show_default=True, help="Of device."
)
@click.option("--sam", type=click.Path(path_type=Path, dir_okay=False), help="Image of its SAM; none when not given.")
@click.option("--serial", default="SIM-0001", show_default=True, help="On its label, at the first start.")
@click.option("--address", type=click.IntRange(0, 126), default=1, show_default=True, help="On the line.")
@click.option("--site", default="", help="Where it stands; tokens for another site are refused.")
@click.option("--amount", type=AMOUNT, help="A POS takes this much (yuan) from each card; else each sale is keyed.")
@click.option("--cashier", default="", help="A POS opens a shift under this name when none is open.")
@click.option("--language", type=click.Choice(["zh", "en"]), default="zh", show_default=True, help="Of the screen.")
@click.option("--reset", is_flag=True, help="Press the reset key: the label's code counts again.")
@click.option("--clock-off", type=int, help="Set its clock so many seconds ahead of (or, below 0, behind) this one.")
@click.option("--entries", type=click.IntRange(0, 100_000), default=0, help="Write so many notes into the journal.")
@click.option("--cut-after", type=click.IntRange(min=0), help="Pull the plug when so many bytes were sent.")
@pass_session
def terminal(session: Session, /, folder: Path, **wanted: Any) -> None:  # noqa: ANN401  # click's options
    """Be a whole terminal with all its data in FOLDER; prints label and port, FOLDER/code has the label's code.

    A line `card FILE` puts a card's image into its slot.
    """
    from terminals.station import Station  # noqa: PLC0415  # the other verbs need no loop

    if wanted["pty"] == bool(wanted["link"]):
        raise ConfigError("where is the installer's line? Give --pty, or --link PORT")
    if not session.reader.startswith("sim:"):
        session.reader = f"sim:{folder / 'card.img'}"
    wanted |= {"home": folder, "model": f"OC-{wanted['kind'].upper()}"}
    home = open_home(session, f"sim:{wanted['sam']}" if wanted["sam"] else "", wanted)
    if wanted["clock_off"] is not None:
        home.clock.set_off(1000 * wanted["clock_off"])
    if wanted["reset"]:
        home.reset_key()
    for number in range(wanted["entries"]):
        home.journal.note("test", f"entry {number}")
    cut = wanted["cut_after"]
    station = Station(session, wanted["amount"], wanted["cashier"], wanted["language"])
    station.run_home(
        home,
        wanted["address"],
        wanted["link"],
        pty=wanted["pty"],
        plug=lambda port: port if cut is None else _Plug(port, cut),
    )
