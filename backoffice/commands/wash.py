"""Verbs of washing: of one card, of many, and of SAMs; and the batch files of vendors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from backoffice import batches
from backoffice.commands.base import act, act_outside, permitted
from backoffice.database import PLATFORM, Tx
from backoffice.installation import Installation
from backoffice.operators import Permission
from backoffice.washing import NAMES, Washing, Wish, batch_key
from cardlib.errors import CheckFailed, ConfigError, OneCardError
from cardlib.profile import CardKind
from cardlib.transport import Transport
from console import Noun, Session
from keymgmt.batchfile import ALGORITHMS, MAX_BYTES, read_batch

KINDS = {"cpu-card": CardKind.CPU_CARD, "rfid-sim": CardKind.RFID_SIM}
Act = Callable[..., None]


class Chip(click.ParamType[str]):
    """A chip's number as its vendor prints it: 4 to 16 bytes in hexadecimal."""

    name = "chip"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401
        """Refuse anything else; blanks and small letters are all right."""
        text = re.sub(r"\s", "", str(value)).upper()
        if not re.fullmatch(r"(?:[0-9A-F]{2}){4,16}", text):
            self.fail("a chip number is 4 to 16 bytes in hexadecimal", param, ctx)
        return text


def options(one: bool) -> Callable[[Act], Act]:
    """What cards and SAMs are washed with, one or many."""

    def decorate(command: Act) -> Act:
        command = click.option("--batch", "batch_id", help="Only chips of this batch of a vendor.")(command)
        command = click.option(
            "--key-version", type=click.IntRange(1, 255), default=1, show_default=True, help="Of our keys."
        )(command)
        if one:
            command = click.option("--chip", type=Chip(), help="Its number, where the chip does not tell it.")(command)
            command = click.option(
                "--try-again", is_flag=True, help="The key is right for certain: try it though one try may be left."
            )(command)
        return command

    return decorate


kind_option = click.option(
    "--kind", type=click.Choice(list(KINDS)), help="What it must be. [default: as its batch says, else cpu-card]"
)


@click.group(cls=Noun)
def command() -> None:
    """Washing of cards."""


@command.command()
@kind_option
@options(one=True)
@permitted(Permission.CARD_WASH, platform=True)
def wash(
    session: Session, office: Installation, kind: str | None, key_version: int, batch_id: str | None, chip: str | None,
    try_again: bool,
) -> None:  # fmt: skip
    """Replace the vendor's keys of the card in --reader by the platform's, and give it its serial.

    Its transport key comes from the batch file that names its chip, else it is asked for. A wrong one is tried
    once. Interrupted, the same command goes on. --dry-run shows the plan for this card.
    """
    wish = Wish(KINDS[kind] if kind else None, batch_id, chip, key_version, try_again=try_again)
    arguments = {"kind": kind, "key_version": key_version, "batch": batch_id, "chip": chip}
    wash_one(session, office, "card wash", wish, arguments)


@command.command("wash-batch")
@kind_option
@options(one=False)
@permitted(Permission.CARD_WASH, platform=True)
def wash_batch(
    session: Session, office: Installation, kind: str | None, key_version: int, batch_id: str | None
) -> None:
    """Wash one card after another. Stopped, the same command goes on; a card that fails does not stop the others.

    Asks for one card after another; with --reader sim:FOLDER it washes all images there.
    """
    wash_many(session, office, Wish(KINDS[kind] if kind else None, batch_id, None, key_version))


def wash_one(session: Session, office: Installation, name: str, wish: Wish, arguments: dict[str, Any]) -> None:
    """The one in --reader; a dry run shows the plan."""
    washing = Washing(office, wish)

    def action() -> dict[str, Any]:
        card = session.open_card()
        if session.dry_run:
            return {"plan": washing.plan(card), "dry_run": True}
        return washing.wash(card)

    done = act_outside(session, office.platform, PLATFORM, name, arguments, action)
    session.emit(done, done["plan"] if session.dry_run else None)


def wash_many(session: Session, office: Installation, wish: Wish) -> None:
    """All that are put on the reader; a line for each. Raises CheckFailed when one failed."""
    washing, total = Washing(office, wish), 0
    if wish.batch_id is not None:
        with office.platform.read() as tx:
            batch = batches.get(tx, wish.batch_id)
        total = batch.cards
    rows: list[dict[str, Any]] = []
    name = "sam" if wish.kind is CardKind.SAM else "card"
    for place, card in _each(session):
        row: dict[str, Any] = {"place": place, name: None, "state": "failed", "chip": None, "error": None}
        try:
            if session.dry_run:
                row |= {"state": "; ".join(washing.plan(card))}
            else:
                row |= {key: value for key, value in washing.wash(card).items() if key in row}
        except OneCardError as e:
            row["error"] = str(e)
        rows.append(row)
        serial = row[name].hex().upper() if row[name] else ""
        count = f"{len(rows)}/{total}" if total else f"{len(rows)}"
        session.note(f"{count}  {place}  {serial or row['chip'] or ''}  {row['error'] or row['state']}")
    session.emit(rows)
    failed = [row for row in rows if row["error"]]
    if failed:
        raise CheckFailed(f"{len(failed)} of {len(rows)} failed: mend the cause and run the same command again")


def _each(session: Session) -> Iterator[tuple[str, Transport]]:
    """One chip after another, with a name for the place it was in; closed when the next one comes."""
    scheme, _, rest = session.reader.partition(":")
    folder = Path(rest)
    if scheme == "sim" and folder.is_dir():
        for file in sorted(folder.glob("*.img")):
            yield file.name, session.open_card(f"sim:{file}")
        return
    if session.no_input:
        raise ConfigError("a batch asks for one card after another: it needs a person, or --reader sim:FOLDER")
    number = 1
    while click.prompt(f"Put number {number} on the reader, then press Enter (q ends)", default="", err=True) != "q":
        yield f"{number}", session.open_card()
        number += 1


# Batches


@command.group()
def batch() -> None:
    """What vendors delivered: chips and their wrapped transport keys."""


@batch.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@permitted(Permission.CARD_WASH, platform=True)
def receive(session: Session, office: Installation, file: Path) -> None:
    """Take a vendor's batch FILE, checked to its last row. Asks for the batch key (64 hexadecimal digits).

    Transport keys are kept wrapped, as they came. The same file twice is once.
    """
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{file} is larger than a batch file can be ({MAX_BYTES >> 20} MiB)")
        data = file.read_bytes()
    except OSError as e:
        raise ConfigError(f"{file} can't be read: {e.strerror}") from e
    checked = read_batch(data, batch_key(session.secret))

    def action(tx: Tx) -> dict[str, Any]:
        return _row(batches.receive(tx, office.operator, checked, data))

    arguments = {"batch": checked.head.batch, "tag": data[-65:-1].decode()}
    session.emit(act(session, office.platform, PLATFORM, "card batch receive", arguments, action))


@batch.command("list")
@permitted(Permission.CARD_WASH, platform=True)
def list_batches(session: Session, office: Installation) -> None:
    """List the batches received, the newest first, and how much of each is washed."""
    with office.platform.read() as tx:
        session.emit([_row(one) for one in batches.listing(tx)])


@batch.command()
@click.argument("batch_id")
@permitted(Permission.CARD_WASH, platform=True)
def show(session: Session, office: Installation, batch_id: str) -> None:
    """Show the chips of BATCH_ID and what became of each."""
    with office.platform.read() as tx:
        one, found = batches.get(tx, batch_id), batches.chips_of(tx, batch_id)
    rows = [
        {"chip": row["chip"], "card": row["serial"], "state": _state(row["wash_version"]), "atr": row["atr"]}
        for row in found
    ]
    session.emit(_row(one) | {"chips": rows} if session.json else rows)


def _state(wash_version: int | None) -> str:
    return "new" if wash_version is None else "washed" if wash_version else "begun"


def _row(one: batches.Batch) -> dict[str, Any]:
    head = one.head
    algorithm = next(name for name, known in ALGORITHMS.items() if known is head.algorithm)
    return {
        "batch": head.batch, "vendor": head.vendor, "kind": NAMES[head.kind], "algorithm": algorithm,
        "chips": one.cards, "washed": one.washed, "key_check": head.check.hex().upper(), "one_key": bool(head.wrapped),
    }  # fmt: skip
