"""``onecard terminal``, the terminal's own side: pay, undo, shifts, lists, journal."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cardlib.errors import ConfigError, OutcomeUnknown
from cardlib.money import yuan
from cardlib.sam import CardSam, Sam
from cardlib.transport import Transport
from console import AMOUNT, Noun, Session, pass_session
from terminals import config
from terminals.journal import Journal
from terminals.lists import TerminalLists
from terminals.pos import Pos
from terminals.runtime import Receipt
from terminals.screen import ConsoleScreen

FILE = click.Path(path_type=Path, dir_okay=False)
terminal_file = click.option(
    "--terminal", "file", type=FILE, required=True, envvar="ONECARD_TERMINAL", help="The terminal's TOML file."
)
sam_reader = click.option(
    "--sam-reader", required=True, envvar="ONECARD_SAM_READER", help="Where its SAM is: sim:IMAGE or pcsc:NAME."
)


@click.group(cls=Noun)
def command() -> None:
    """Terminals: registered in the back office, and run here."""


@dataclass
class _OneSam:
    """A source of one SAM, for one tap."""

    sam: Sam

    def lease(self) -> AbstractContextManager[Sam]:
        """The SAM."""
        return nullcontext(self.sam)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _journal(session: Session, settings: config.TerminalConfig, sam: CardSam) -> Journal:
    info = sam.info()
    return session.keep(
        Journal(
            settings.journal, settings.enterprise_id, info.terminal, info.serial, _now_ms,
            limit_bytes=settings.journal_limit_bytes,
        )
    )  # fmt: skip


def _open_sam(session: Session, reader: str) -> CardSam:
    """The SAM, its PIN verified when ONECARD_SAM_PIN_FILE says where it is."""
    pin: Callable[[], bytes] | None = None
    if os.environ.get("ONECARD_SAM_PIN_FILE"):
        pin = lambda: bytes.fromhex(session.secret("sam pin"))  # noqa: E731  # asked for when the SAM is opened
    return CardSam(session.open_card(reader), pin)


def _open_pos(session: Session, file: Path, reader: str) -> Pos:
    session.refuse_dry_run("a till and its SAM can't be tried out")
    settings = config.load(file)
    if settings.kind is not config.Kind.POS:
        raise ConfigError(f"{file} describes a {settings.kind.value} terminal, not a POS")
    sam = _open_sam(session, reader)
    journal = _journal(session, settings, sam)
    lists = TerminalLists(settings.lists, settings.enterprise_id, settings.list_root_key, journal)
    if lists.trouble:
        session.note(lists.trouble)
    screen = ConsoleScreen(sys.stderr, "en")
    return Pos(settings, journal, lists, _OneSam(sam), _now_ms, secrets.token_bytes, screen)


def _told(session: Session, receipt: Receipt, sale: str) -> None:
    data: dict[str, Any] = {
        "sale": sale,
        "amount_fen": receipt.amount_fen,
        "balance_fen": receipt.balance_fen,
        "card": receipt.job.card_serial,
        "recovered": receipt.recovered,
    }
    words = f"{yuan(receipt.amount_fen)} moved, balance {yuan(receipt.balance_fen)}, card {data['card'].hex().upper()}"
    session.emit(data, words + (" (found out now)" if receipt.recovered else ""))


def _present(session: Session, act: Callable[[Transport], Receipt], sale: str) -> None:
    """One presentation of the card; an unknown outcome says how to find out."""
    try:
        receipt = act(session.open_card())
    except OutcomeUnknown as e:
        again = f"{e}. Run the same command with --request-id {sale} and the same card"
        raise OutcomeUnknown(e.journal_id, again) from e
    _told(session, receipt, sale)


@command.command()
@click.argument("amount", type=AMOUNT)
@terminal_file
@sam_reader
@pass_session
def pay(session: Session, amount: int, file: Path, sam_reader: str) -> None:
    """Take AMOUNT (yuan) from the card in --reader; --request-id is the sale's number, charged at most once."""
    sale = session.request_id or secrets.token_hex(8)
    pos = _open_pos(session, file, sam_reader)

    def pin() -> str | None:
        return session.secret("holder pin")

    _present(session, lambda card: pos.pay(card, amount, sale, pin), sale)


@command.command()
@terminal_file
@sam_reader
@pass_session
def undo(session: Session, file: Path, sam_reader: str) -> None:
    """Give the last payment of this terminal back to its card, by the terminal's SAM."""
    pos = _open_pos(session, file, sam_reader)
    _present(session, pos.undo_last, session.request_id)


@command.command("shift")
@click.argument("action", type=click.Choice(["open", "close", "totals"]))
@click.option("--cashier", default="", help="Who opens the shift; --operator when not given.")
@terminal_file
@sam_reader
@pass_session
def shift_command(session: Session, action: str, cashier: str, file: Path, sam_reader: str) -> None:
    """Open or close a shift, or show its totals so far."""
    pos = _open_pos(session, file, sam_reader)
    if action == "open":
        session.emit({"shift": pos.open_shift(cashier or session.operator)})
    else:
        session.emit(pos.totals() if action == "totals" else pos.close_shift())


@command.command("take-list")
@click.argument("lists", nargs=-1, required=True, type=FILE)
@terminal_file
@sam_reader
@pass_session
def take_list(session: Session, lists: tuple[Path, ...], file: Path, sam_reader: str) -> None:
    """Take LISTS (blacklist files); an older one or another enterprise's is refused."""
    pos = _open_pos(session, file, sam_reader)
    assert isinstance(pos.lists, TerminalLists)
    for path in lists:
        try:
            version = pos.lists.take(path.read_bytes())
        except OSError as e:
            raise ConfigError(f"{path} can't be read: {e.strerror}") from e
        session.emit({"file": path, "version": version}, f"{path}: list version {version} in force")


@command.command()
@click.argument("target", type=FILE)
@click.option("--from-seq", type=click.IntRange(min=1), help="First entry; what was not collected yet by default.")
@terminal_file
@sam_reader
@pass_session
def export(session: Session, target: Path, from_seq: int | None, file: Path, sam_reader: str) -> None:
    """Write the journal to TARGET, to be collected by `onecard settle collect`."""
    pos = _open_pos(session, file, sam_reader)
    count = pos.journal.export(target, from_seq)
    session.emit({"file": target, "last_seq": count}, f"{target}: entries up to {count}")


@command.command()
@click.argument("seq", type=click.IntRange(min=1))
@terminal_file
@sam_reader
@pass_session
def acknowledge(session: Session, seq: int, file: Path, sam_reader: str) -> None:
    """Note that the back office has all entries up to SEQ."""
    pos = _open_pos(session, file, sam_reader)
    pos.collected(seq)
    session.emit({"acknowledged": seq})


@command.command()
@terminal_file
@sam_reader
@pass_session
def status(session: Session, file: Path, sam_reader: str) -> None:
    """Show SAM, list, journal and what still waits for its card."""
    pos = _open_pos(session, file, sam_reader)
    journal = pos.journal
    session.emit(
        {
            "terminal": journal.terminal,
            "sam": journal.sam_serial,
            "enterprise": pos.config.enterprise_id,
            "list_version": pos.lists.version,
            "last_seq": journal.last_seq,
            "acknowledged_seq": journal.acked_seq,
            "shift": journal.shift,
            "waiting": [job.sale or str(job.id) for job in journal.open_jobs()],
        }
    )
