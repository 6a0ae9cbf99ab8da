"""``onecard sim``: simulated cards and SAMs for programs that know nothing of this project."""

from __future__ import annotations

from pathlib import Path

import click

from cardlib.errors import ConfigError, Conflict
from console import Hex, Noun, Session, pass_session
from simulator import image
from simulator.card import Card, ScriptedRandom
from simulator.mothercard import MotherCard
from simulator.sam import SamCard
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


def _serve(session: Session, card: Card, host: str, port: int) -> None:
    slot = Slot(card, port, host).insert(WAIT_MS)
    session.note(f"{card.KIND} is in the slot at {host}:{port}; interrupt to take it out")
    try:
        slot.wait()
    finally:
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
        _serve(session, _made(kind, file, random_hex, transport_key), host, vpcd_port)

    serve.help = f"Put a simulated {name} into a slot of the virtual reader; without image or key it is blank."


_serving(Card, "card")
_serving(SamCard, "sam")
_serving(MotherCard, "mother")
_serving(Card, "authentication")
KINDS: dict[str, type[Card]] = {"sam": SamCard, "mother": MotherCard, "authentication": Card}
"""What ``make`` can make beside cards; an authentication card is a card whose serial says so (keys.md)."""


@command.command()
@click.argument("target", type=FILE)
@click.option("--description", type=FILE, help="TOML description (docs/simulator.md).")
@click.option("--sam", is_flag=True, help="Make a SAM.")
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
        raise ConfigError("a chip is one thing: give one of --sam, --mother, --authentication")
    if description is not None:
        card = image.parse(_text(description))
    else:
        card = _made(kinds[0] if kinds else Card, None, b"", transport_key)
    if not session.dry_run:
        image.save(card, target)
    session.emit({"image": target, "kind": card.KIND}, f"{target} holds a new {card.KIND}")
