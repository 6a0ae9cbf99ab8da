"""``onecard terminal``, the terminal's own side: pay, undo, shifts, lists, journal."""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cardlib.errors import ConfigError, OutcomeUnknown
from cardlib.money import yuan
from cardlib.sam import CardSam, IssuingSam, SamPool
from cardlib.transport import Transport
from cardlib.wire.osdp import BAUDS
from console import AMOUNT, Noun, Session, pass_session
from terminals import config
from terminals.journal import Journal
from terminals.lists import TerminalLists
from terminals.pos import Pos
from terminals.runtime import Receipt, Terminal
from terminals.screen import ConsoleScreen, Screen

if TYPE_CHECKING:
    from terminals.home import Home

SAM_RETRY_MS = 1_000
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


def open_sam(session: Session, reader: str) -> CardSam:
    """The SAM, its PIN verified when ONECARD_SAM_PIN_FILE says where it is."""
    pin: Callable[[], bytes] | None = None
    if os.environ.get("ONECARD_SAM_PIN_FILE"):
        pin = lambda: bytes.fromhex(session.secret("sam pin"))  # noqa: E731  # asked for when the SAM is opened
    return IssuingSam(session.open_card(reader), pin)  # it can prove a control key, which only an issuing SAM holds


def open_home(session: Session, sam_reader: str, options: dict[str, Any]) -> Home:
    """The terminal of a folder, made at its first start, with the SAM in ``sam_reader`` ("" for none).

    ``options``: home, serial, site, perhaps model. Raises ConfigError when a new one does not find its SAM.
    """
    from terminals.home import Home, Made, open_sams  # noqa: PLC0415  # only where there is one

    session.refuse_dry_run("a terminal runs or not")
    folder: Path = options["home"]
    sams, info, trouble = open_sams((lambda: open_sam(session, sam_reader)) if sam_reader else None, SAM_RETRY_MS)
    if trouble and not (folder / "made.json").exists():
        raise ConfigError(f"{trouble}: a new terminal learns from its SAM who it is")
    if trouble:
        session.note(trouble)
    serial = options["serial"] or f"OC-{secrets.token_hex(4).upper()}"
    made = Made.at(folder, serial, options.get("model", "OC-TERMINAL"), info, session.enterprise or 1001)
    return session.keep(Home(folder, made, options["site"], sams and session.keep(sams)))


T = TypeVar("T", bound=Terminal)


def _open(
    session: Session,
    file: Path,
    reader: str,
    make: Callable[[config.Kind], type[T]],
    screen: Screen | None = None,
    *,
    online: bool = False,
) -> T:
    """A terminal of the class that ``make`` has for the file's kind, with SAM, journal, list, ``online`` its line."""
    session.refuse_dry_run("a terminal and its SAM can't be tried out")
    settings = config.load(file)
    made = make(settings.kind)
    sam = open_sam(session, reader)
    journal = _journal(session, settings, sam)
    lists = TerminalLists(settings.lists, settings.enterprise_id, settings.list_root_key, journal)
    if lists.trouble:
        session.note(lists.trouble)
    shown = screen or ConsoleScreen(sys.stderr, "en")
    opened = [sam]  # one that fails is opened anew: it may only have been seated badly
    sams = session.keep(SamPool([lambda: opened.pop() if opened else open_sam(session, reader)], SAM_RETRY_MS))
    office = None
    if online and settings.office_url:
        from terminals.station import open_office  # noqa: PLC0415  # most verbs need no line

        office = open_office(session, settings, sam.info(), journal)
    return made(settings, journal, lists, sams, _now_ms, secrets.token_bytes, shown, office)


def _open_pos(session: Session, file: Path, reader: str, *, online: bool = False) -> Pos:
    def make(kind: config.Kind) -> type[Pos]:
        if kind is not config.Kind.POS:
            raise ConfigError(f"{file} describes a terminal of kind {kind.value}, not a POS")
        return Pos

    return _open(session, file, reader, make, online=online)


def _open_any(session: Session, file: Path, reader: str) -> Terminal:
    return _open(session, file, reader, lambda _: Terminal)


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
@click.option("--online", is_flag=True, help="By the office over the line, for a payment whose proof was lost.")
@terminal_file
@sam_reader
@pass_session
def undo(session: Session, online: bool, file: Path, sam_reader: str) -> None:
    """Give the last payment of this terminal back to its card, by the terminal's SAM or the office."""
    pos = _open_pos(session, file, sam_reader, online=online)
    _present(session, lambda card: pos.undo_last(card, online=online), session.request_id)


@command.command("shift")
@click.argument("action", type=click.Choice(["open", "close", "totals"]))
@click.option("--cashier", default="", help="Who opens the shift; --operator when not given.")
@terminal_file
@sam_reader
@pass_session
def shift_command(session: Session, action: str, cashier: str, file: Path, sam_reader: str) -> None:
    """Open or close a shift, or show its totals so far."""
    terminal = _open_any(session, file, sam_reader)
    if action == "open":
        session.emit({"shift": terminal.open_shift(cashier or session.operator)})
    else:
        session.emit(terminal.totals() if action == "totals" else terminal.close_shift())


@command.command("take-list")
@click.argument("lists", nargs=-1, required=True, type=FILE)
@terminal_file
@sam_reader
@pass_session
def take_list(session: Session, lists: tuple[Path, ...], file: Path, sam_reader: str) -> None:
    """Take LISTS (blacklist files); an older one or another enterprise's is refused."""
    terminal = _open_any(session, file, sam_reader)
    assert isinstance(terminal.lists, TerminalLists)
    for path in lists:
        try:
            version = terminal.lists.take(path.read_bytes())
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
    terminal = _open_any(session, file, sam_reader)
    count = terminal.journal.export(target, from_seq)
    session.emit({"file": target, "last_seq": count}, f"{target}: entries up to {count}")


@command.command()
@click.argument("seq", type=click.IntRange(min=1))
@terminal_file
@sam_reader
@pass_session
def acknowledge(session: Session, seq: int, file: Path, sam_reader: str) -> None:
    """Note that the back office has all entries up to SEQ."""
    terminal = _open_any(session, file, sam_reader)
    terminal.collected(seq)
    session.emit({"acknowledged": seq})


@command.command()
@terminal_file
@sam_reader
@pass_session
def status(session: Session, file: Path, sam_reader: str) -> None:
    """Show SAM, list, journal and what still waits for its card."""
    terminal = _open_any(session, file, sam_reader)
    journal = terminal.journal
    session.emit(
        {
            "terminal": journal.terminal,
            "kind": terminal.config.kind.value,
            "sam": journal.sam_serial,
            "enterprise": terminal.config.enterprise_id,
            "list_version": terminal.lists.version,
            "last_seq": journal.last_seq,
            "acknowledged_seq": journal.acked_seq,
            "shift": journal.shift,
            "waiting": [job.sale or str(job.id) for job in journal.open_jobs()],
        }
    )


@command.command()
@click.argument("kind", type=click.Choice([kind.value for kind in config.Kind]))
@pass_session
def schema(session: Session, kind: str) -> None:
    """Print the JSON schema of the configuration of a KIND of terminal."""
    made = config.schema(config.Kind(kind))
    session.emit(made, json.dumps(made, indent=2))


@command.command("run")
@click.option(
    "--terminal", "file", type=FILE, envvar="ONECARD_TERMINAL", help="The terminal's TOML file, where it has no --home."
)
@click.option("--home", type=click.Path(path_type=Path, file_okay=False), help="Folder of a terminal with a line.")
@click.option("--link", help="The installer's line of --home: name or URL of a port.")
@click.option("--link-pty", is_flag=True, help="The installer's line of --home: a pseudo-terminal, at HOME/port.")
@click.option("--address", type=click.IntRange(0, 126), default=1, show_default=True, help="On the installer's line.")
@click.option("--serial", help="On the label of a new --home.")
@click.option("--site", default="", help="Where it stands; installers' tokens for another site are refused.")
@click.option("--amount", type=AMOUNT, help="A POS takes this much (yuan) from each card; else each sale is keyed.")
@click.option("--cashier", default="", help="Open a shift under this name when none is open.")
@click.option("--language", type=click.Choice(["zh", "en"]), default="zh", show_default=True, help="Of the screen.")
@sam_reader
@pass_session
def run_command(
    session: Session, /, amount: int | None, cashier: str, language: str, file: Path | None, sam_reader: str,
    **line: Any,  # noqa: ANN401  # click's options
) -> None:  # fmt: skip
    """Run a terminal: serve the cards in --reader until interrupted, or a line says quit.

    What it is comes from --terminal, or, with --home, from an installer over its line.
    """
    from terminals import posts, run  # noqa: PLC0415  # the other verbs need no loop
    from terminals.station import Station  # noqa: PLC0415  # likewise

    station = Station(session, amount, cashier, language)
    if line["home"]:
        station.run_home(open_home(session, sam_reader, line), line["address"], line["link"], pty=line["link_pty"])
        return
    if file is None or line["link"] or line["link_pty"]:
        raise ConfigError("give --terminal FILE, or --home FOLDER for a terminal with an installer's line")

    screen = run.Screen(station.stream, language)
    terminal = _open(session, file, sam_reader, posts.KINDS.__getitem__, screen, online=True)
    station.run(terminal, station.post(terminal))


@command.command()
@click.option("--port", required=True, help="The OSDP line: a serial port or URL.")
@click.option(
    "--baud", type=click.Choice([str(baud) for baud in BAUDS]), default="9600", show_default=True, help="On it."
)
@click.option("--address", type=click.IntRange(0, 126), required=True, help="Its address on the line.")
@click.option("--language", type=click.Choice(["zh", "en"]), default="zh", show_default=True, help="Of the screen.")
@sam_reader
@pass_session
def head(session: Session, port: str, baud: str, address: int, language: str, sam_reader: str) -> None:
    """Be a reader head: verify cards in --reader by the SAM, report them to the door terminal at the other end.

    Its key stands in the file named by ONECARD_SCBK_FILE. Lines present cards as with `onecard terminal run`.
    """
    from cardlib.serialport import SerialPort  # noqa: PLC0415  # the other verbs need no line
    from cardlib.wire.osdp_secure import read_keys  # noqa: PLC0415  # likewise
    from terminals import run  # noqa: PLC0415  # likewise
    from terminals.head import Head, serve  # noqa: PLC0415  # likewise
    from terminals.osdp import Lasting  # noqa: PLC0415  # likewise
    from terminals.station import at_hand  # noqa: PLC0415  # likewise

    session.refuse_dry_run("a reader head is at the line or not")
    key = read_keys(session.secret_lines("scbk")).get(address)
    if key is None:
        raise ConfigError(f"no SCBK for OSDP address {address}: add it to the file named by ONECARD_SCBK_FILE")
    screen = ConsoleScreen(sys.stdout, language)
    sams = session.keep(SamPool([lambda: open_sam(session, sam_reader)], SAM_RETRY_MS))
    one = Head(address, key, sams, secrets.token_bytes, screen, click.echo)
    line = session.keep(Lasting(lambda: SerialPort(port, int(baud))))
    reader = session.watch()
    serve(one, line, run.Keyboard(sys.stdin.fileno()), at_hand(session, reader), reader, session.note)
