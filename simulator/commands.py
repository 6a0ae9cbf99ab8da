"""``onecard sim``: simulated cards and SAMs for programs that know nothing of this project."""

from __future__ import annotations

import hashlib
import os
import select
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from cardlib.errors import ConfigError, Conflict, FormatError, OneCardError
from cardlib.wire.uid import UID_BYTES
from console import Hex, Noun, Session, pass_session, write_new
from simulator import image
from simulator.card import Card, ScriptedRandom
from simulator.mothercard import MotherCard
from simulator.pn532 import Faults, SimulatedPn532
from simulator.pty import Device, Pty
from simulator.reader import Chip
from simulator.sam import SamCard
from simulator.sim import Sim
from simulator.uid import SimulatedUidModule
from simulator.vendor import ALGORITHM_NAMES, KEY_BYTES, KIND_NAMES, Vendor
from simulator.vpcd import HOST, Slot

WAIT_MS = 10_000
FILE = click.Path(path_type=Path, dir_okay=False)


@click.group(cls=Noun)
def command() -> None:
    """Simulated cards and SAMs, in the slots of a virtual PC/SC reader or in image files."""


def _made(kind: type[Card], file: Path | None, random_hex: bytes, transport_key: bytes | None) -> Card:
    """A card of ``kind`` from an image or description, else vendor-fresh or blank (card.md §12)."""
    random = ScriptedRandom(random_hex)
    if file is None:
        return kind.blank(random) if transport_key is None else kind.vendor_fresh(transport_key, random)
    if transport_key is not None:
        raise ConfigError("an image has its keys already: give --image or --transport-key, not both")
    if file.suffix == ".toml":
        card = image.parse(_text(file), random)
    else:
        card = image.load(file, random)
        image.keep(card, file)
    if type(card) is not kind:
        raise ConfigError(f"{file} holds a {card.KIND}, not a {kind.KIND}")
    return card


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"description {file} can't be read: {e}") from e


def _serve(session: Session, card: Card, host: str, chips: dict[int, Chip]) -> None:
    """Put each face into its slot; return when the first one has left."""
    slots = [Slot(chip, port, host).insert(WAIT_MS) for port, chip in chips.items()]
    session.note(f"{card.KIND} is in the slot at {host}:{', '.join(map(str, chips))}; interrupt to take it out")
    try:
        slots[0].wait()
    finally:
        for slot in slots:
            slot.remove()


def _serving(kind: type[Card], name: str) -> None:
    """Add the verb that puts a ``kind`` into a slot."""

    @command.command(name)
    @click.option("--vpcd-port", type=click.IntRange(1, 65535), required=True, help="Port of the reader's slot.")
    @click.option("--host", default=HOST, show_default=True, help="Where the virtual reader listens.")
    @click.option("--image", "file", type=FILE, help="Image (changes are kept in it), or description ending in .toml.")
    @click.option("--random-hex", type=Hex(), default="", help="First random bytes the card draws, for tests.")
    @click.option("--transport-key", type=Hex(), help="Be vendor-fresh with this simulated key.")
    @pass_session
    def serve(  # one parameter an option
        session: Session, vpcd_port: int, host: str, file: Path | None, random_hex: bytes, transport_key: bytes | None
    ) -> None:
        session.refuse_dry_run("a card is in the slot or not")
        card = _made(kind, file, random_hex, transport_key)
        card.t0 = kind is SamCard
        _serve(session, card, host, {vpcd_port: card})

    serve.help = f"Put a simulated {name} into a slot of the virtual reader; without image or key it is blank."


_serving(Card, "card")
_serving(SamCard, "sam")
_serving(MotherCard, "mother")
_serving(Card, "authentication")


@command.command("sim")
@click.option("--vpcd-port", type=click.IntRange(1, 65535), required=True, help="Port of the phone face's slot.")
@click.option("--contactless-vpcd-port", type=click.IntRange(1, 65535), help="Port of the contactless face's slot.")
@click.option("--host", default=HOST, show_default=True, help="Where the virtual reader listens.")
@click.option("--image", "file", type=FILE, help="Image (changes are kept in it), or description ending in .toml.")
@click.option("--no-menu", is_flag=True, help="Ask the phone nothing, for tools that can't answer.")
@click.option("--random-hex", type=Hex(), default="", help="First random bytes the card draws, for tests.")
@click.option("--transport-key", type=Hex(), help="Let the contactless face be vendor-fresh with this simulated key.")
@pass_session
def serve_sim(
    session: Session, vpcd_port: int, contactless_vpcd_port: int | None, host: str, file: Path | None, no_menu: bool,
    random_hex: bytes, transport_key: bytes | None,
) -> None:  # fmt: skip
    """Put a simulated RFID-SIM into the virtual reader: the phone face, and the contactless face beside it.

    Without an image the phone face has the default content of docs/simulator.md, and the contactless face is blank.
    """
    session.refuse_dry_run("a card is in the slot or not")
    if vpcd_port == contactless_vpcd_port:
        raise ConfigError("the two faces need a slot each")
    sim = _made(Sim, file, random_hex, transport_key)
    assert isinstance(sim, Sim)
    sim.phone.toolkit.menu = not no_menu
    chips: dict[int, Chip] = {vpcd_port: sim.phone}
    if contactless_vpcd_port:
        chips[contactless_vpcd_port] = sim
    _serve(session, sim, host, chips)


KINDS: dict[str, type[Card]] = {"sam": SamCard, "mother": MotherCard, "authentication": Card, "rfid_sim": Sim}
"""What ``make`` can make beside cards; an authentication card is a card whose serial says so (keys.md)."""


@command.command()
@click.argument("target", type=FILE)
@click.option("--description", type=FILE, help="TOML description (docs/simulator.md).")
@click.option("--sam", is_flag=True, help="Make a SAM.")
@click.option("--rfid-sim", is_flag=True, help="Make an RFID-SIM.")
@click.option("--mother", is_flag=True, help="Make a mother card.")
@click.option("--authentication", is_flag=True, help="Make an authentication card.")
@click.option("--transport-key", type=Hex(), help="Be vendor-fresh with this simulated key.")
@pass_session
def make(
    session: Session, /, target: Path, description: Path | None, transport_key: bytes | None, **wanted: bool
) -> None:
    """Write the image of a new simulated card to TARGET, to be used as --reader sim:TARGET."""
    if target.exists():
        raise Conflict(f"{target} exists: nothing was changed")
    kinds = [KINDS[name] for name, given in wanted.items() if given]
    if len(kinds) > 1:
        raise ConfigError("a chip is one thing: give one of --sam, --rfid-sim, --mother, --authentication")
    if description is not None:
        card = image.parse(_text(description))
    else:
        card = _made(kinds[0] if kinds else Card, None, b"", transport_key)
    if not session.dry_run:
        image.save(card, target)
    session.emit({"image": target, "kind": card.KIND}, f"{target} holds a new {card.KIND}")


@command.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--count", type=click.IntRange(1, 10_000), default=10, show_default=True, help="How many chips.")
@click.option("--kind", type=click.Choice(list(KIND_NAMES)), default="cpu-card", show_default=True, help="Of chip.")
@click.option("--algorithm", type=click.Choice(list(ALGORITHM_NAMES)), default="3des", help="Of transport keys.")
@click.option("--vendor", default="Simulated Chips", show_default=True, help="Name in the batch file.")
@click.option("--batch", "batch_id", default="SIM-1", show_default=True, help="Name of the batch.")
@click.option("--one-key", is_flag=True, help="All chips have the same transport key.")
@pass_session
def batch(
    session: Session, folder: Path, count: int, kind: str, algorithm: str, vendor: str, batch_id: str, one_key: bool
) -> None:
    """Be a vendor: put vendor-fresh chips as images into new FOLDER, with their batch file, batch.txt.

    Asks for the batch key (64 hexadecimal digits) that the transport keys are wrapped under.
    """
    try:
        key = bytes.fromhex(session.secret("batch key"))
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigError("a batch key has 64 hexadecimal digits")
    if folder.exists():
        raise Conflict(f"{folder} exists: nothing was changed")
    seller = Vendor(vendor, batch_id, key, os.urandom, KIND_NAMES[kind], ALGORITHM_NAMES[algorithm])
    cards, file = seller.deliver(count, one_key=one_key)
    target = folder / "batch.txt"
    if not session.dry_run:
        folder.mkdir(parents=True)
        for number, card in enumerate(cards, 1):
            image.save(card, folder / f"{number:04}.img")
        write_new(target, file)
    session.emit(
        {"file": target, "batch": batch_id, "chips": [card.chip for card in cards]},
        f"{folder} holds {count} chips of batch {batch_id} and {target.name}",
    )


behind_pty = click.option(
    "--pty", is_flag=True, required=True, expose_value=False, help="Be at the other end of a pseudo-terminal."
)
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Faults are the same with the same.")


def _serve_pty(session: Session, folder: Path, device: Device, order: Callable[[list[str]], bool]) -> None:
    """Be a serial device until interrupted; lines of standard input say what is presented to it."""
    session.refuse_dry_run("a device runs or not")
    folder.mkdir(parents=True, exist_ok=True)
    pty = session.keep(Pty(device))
    session.emit({"port": pty.name, "link": pty.link(folder / "port")})
    sys.stdout.flush()
    pending, typed = b"", True
    while True:
        pty.turn()
        while typed and select.select([sys.stdin.fileno()], [], [], 0)[0]:
            chunk = os.read(sys.stdin.fileno(), 4096)
            typed = bool(chunk)
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                try:
                    if not order(line.decode(errors="replace").split(maxsplit=1)):
                        session.note(f"{line.decode(errors='replace')[:40]!r} is not understood here")
                except OneCardError as e:
                    session.note(str(e))


@command.command("pn532")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@behind_pty
@click.option("--faults", type=click.FloatRange(0, 1), default=0.0, help="How often each thing goes wrong on the line.")
@click.option("--pull", type=click.FloatRange(0, 1), default=0.0, help="How often a card is pulled away at a command.")
@seed_option
@pass_session
def pn532(session: Session, folder: Path, faults: float, pull: float, seed: int) -> None:
    """Be a PN532 reader; FOLDER/port leads to its port. Lines typed: card FILE, remove."""
    chip = SimulatedPn532(Faults(faults, faults, faults, faults, faults, faults, pull), seed)

    def order(words: list[str]) -> bool:
        match words:
            case ["card", file]:
                path = Path(file)
                card = image.load(path)
                image.keep(card, path)
                chip.put(card, b"\x04" + hashlib.sha256(str(path.resolve()).encode()).digest()[:6])
            case ["remove"]:
                chip.take()
            case _:
                return not words
        return True

    _serve_pty(session, folder, chip, order)


@command.command("uid")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@behind_pty
@click.option("--faults", type=click.FloatRange(0, 1), default=0.0, help="How often a byte is wrong.")
@seed_option
@pass_session
def uid_module(session: Session, folder: Path, faults: float, seed: int) -> None:
    """Be a serial module for tags that tell a number; FOLDER/port leads to its port. Lines typed: tag HEX, remove."""
    module = SimulatedUidModule(time.monotonic, faults, seed)

    def order(words: list[str]) -> bool:
        match words:
            case ["tag", digits]:
                try:
                    number = bytes.fromhex(digits)
                except ValueError:
                    number = b""
                if len(number) != UID_BYTES:
                    raise FormatError(f"a tag's number has {2 * UID_BYTES} hexadecimal digits")
                module.tag = number
            case ["remove"]:
                module.tag = None
            case _:
                return not words
        return True

    _serve_pty(session, folder, module, order)
