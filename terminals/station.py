"""A terminal as a process: what ``terminal run`` and ``sim terminal`` have in common."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from cardlib.errors import ConfigError
from cardlib.sam import SamInfo, SamPool
from cardlib.serialport import PtyPort, SerialPort
from cardlib.transport import GetResponse, Transport
from console import Session, Watcher
from terminals import posts
from terminals.config import Kind, TerminalConfig, with_holidays
from terminals.home import Home, OpenPort, Unit
from terminals.issuing import Issuing
from terminals.journal import Journal
from terminals.posts.base import Post
from terminals.run import Keyboard, Line, Process, Screen
from terminals.runtime import Office, Terminal

PORT = "port"
"""In a terminal's folder: leads to the pseudo-terminal in use."""


@dataclass(frozen=True, slots=True)
class Station:
    """How one terminal is run; ``amount`` (fen) and ``cashier`` are a POS's."""

    session: Session
    amount: int | None = None
    cashier: str = ""
    language: str = "zh"

    @property
    def stream(self) -> TextIO:
        """Where the screen is: beside the data, not among it."""
        return sys.stderr if self.session.json else sys.stdout

    def post(self, terminal: Terminal, scbk_file: Path | None = None) -> Post:
        """What serves cards; ``scbk_file``: the readers' keys that came over the line. Raises ConfigError."""
        session = self.session
        if isinstance(terminal, Issuing):
            return self._issuing(terminal)
        if self.cashier and terminal.config.till.operators:
            raise ConfigError("this till has operators: leave --cashier out, type `shift open` and present the card")
        if self.cashier and terminal.journal.shift is None:
            terminal.open_shift(self.cashier)
        return posts.make_post(
            terminal, self.amount, self.stream, self.language, session.operator, session.secret, session.note,
            lambda: session.secret_lines("scbk", scbk_file), tags=session.reader.startswith("uid:"),
        )  # fmt: skip

    def _issuing(self, terminal: Issuing) -> Post:
        """The post of an issuing terminal with all its readers. Raises ConfigError without office or reader."""
        from terminals.office import HttpOffice  # noqa: PLC0415  # few kinds have a line
        from terminals.posts.issuing import IssuingPost, Place, Stack  # noqa: PLC0415  # likewise

        session, desk, office = self.session, terminal.config.desk, terminal.office
        if not isinstance(office, HttpOffice):
            raise ConfigError(
                "an issuing terminal works with the office's keys: set office_url, or issue at the office with "
                "`onecard card issue`"
            )
        terminal.set_office(lambda: session.keep(office.another()), desk)

        def reader(name: str) -> Place | Stack:
            scheme, _, rest = name.partition(":")
            if scheme == "sim" and Path(rest).is_dir():
                return Stack(Path(rest), session.connect)
            watched = session.watch(name)
            if watched is None:
                raise ConfigError(f"readers: {name} does not see its cards: pcsc:NAME, or sim: with a folder of them")
            return Place(name, watched.wait, lambda: session.traced(GetResponse(watched.connect())))

        def tell(text: str) -> None:
            self.stream.write(text + "\n")
            self.stream.flush()

        return IssuingPost(
            terminal, session.operator, lambda name: session.secret(name, new=name == "holder pin"),
            [reader(name) for name in desk.readers], tell, session.emit if session.json else lambda _: None,
        )  # fmt: skip

    def run(self, terminal: Terminal, post: Post) -> None:
        """Serve the cards in the session's reader until the end."""
        self._process(terminal, post, None).run()

    def _process(self, terminal: Terminal, post: Post, link: Line | None) -> Process:
        session = self.session
        reader = session.watch()

        keyboard = Keyboard(sys.stdin.fileno())
        emit: Callable[[dict[str, Any]], None] = session.emit if session.json else lambda _: None
        return Process(terminal, post, keyboard, at_hand(session, reader), reader, session.note, emit, link)

    def run_home(
        self, home: Home, address: int, port: str | None, *, pty: bool = False,
        plug: Callable[[PtyPort], OpenPort] = lambda port: port,
    ) -> None:  # fmt: skip
        """Be the terminal of a folder, with the installer's line at ``port``, at a pseudo-terminal, or with none."""
        session, screen = self.session, Screen(self.stream, self.language)
        open_port: Callable[[], OpenPort] | None = partial(SerialPort, port) if port else None
        label = home.label()
        if pty:
            line = PtyPort()
            label = {"port": line.name, "link": _linked(home.folder, line.name), **label}
            open_port = lambda: plug(line)  # noqa: E731  # one that is open already
        unit = session.keep(Unit(home, address, screen, partial(self._become, screen), open_port, session.note))
        session.emit(label)
        terminal, post = unit.made()
        process = self._process(terminal, post, unit)
        home.tests.update(card=process.test_card, screen=process.test_screen)
        process.run()

    def _become(self, screen: Screen, config: TerminalConfig, home: Home) -> tuple[Terminal, Post]:
        """The terminal that a configuration describes. Raises ConfigError when it can't run here."""
        config = with_holidays(config)
        sams, made = home.sams or SamPool([]), posts.KINDS[config.kind]
        terminal = made(
            config, home.journal, home.lists, sams, home.clock.now_ms, secrets.token_bytes, screen,
            open_office(self.session, config, home.made.sam_info, home.journal),
        )  # fmt: skip
        cashier = self.cashier if config.kind is Kind.RECHARGE else ""
        own = self if config.kind is Kind.POS else Station(self.session, None, cashier, self.language)
        keys = home.host.reader_keys
        return terminal, own.post(terminal, keys.path if keys and keys.path.exists() else None)


def at_hand(session: Session, reader: Watcher | None) -> Callable[[str | None], Transport]:
    """How a card is connected to: the one in the reader that was watched, or by its name."""

    def connect(name: str | None) -> Transport:
        if reader is None or name is not None:
            return session.connect(name)
        return session.traced(GetResponse(reader.connect()))

    return connect


def open_office(session: Session, config: TerminalConfig, sam: SamInfo, journal: Journal) -> Office | None:
    """The line to the office, None where the configuration names none. Raises ConfigError without a token."""
    if not config.office_url:
        return None
    from terminals.office import HttpOffice  # noqa: PLC0415  # most terminals work without a line

    token = session.secret("office token")
    return session.keep(HttpOffice(config.office_url, token, sam, journal, config.office_ca))


def _linked(folder: Path, name: str) -> Path:
    link, beside = folder / PORT, folder / f"{PORT}.new"
    beside.unlink(missing_ok=True)
    beside.symlink_to(name)
    beside.replace(link)
    return link
