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
from cardlib.sam import SamPool
from cardlib.serialport import PtyPort, SerialPort
from cardlib.transport import GetResponse, Transport
from console import Session, Watcher
from terminals import posts
from terminals.config import Kind, TerminalConfig, with_holidays
from terminals.home import Home, OpenPort, Unit
from terminals.posts.base import Post, asking
from terminals.run import Keyboard, Line, Process, Screen
from terminals.runtime import Terminal

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
        if self.cashier and terminal.config.till.operators:
            raise ConfigError("this till has operators: leave --cashier out, type `shift open` and present the card")
        if self.cashier and terminal.journal.shift is None:
            terminal.open_shift(self.cashier)
        pin = asking(session.secret, session.note)
        return posts.make_post(
            terminal, self.amount, self.stream, self.language, session.operator, pin,
            lambda: session.secret_lines("scbk", scbk_file), tags=session.reader.startswith("uid:"),
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
        if config.kind in posts.ELSEWHERE:
            raise ConfigError(posts.ELSEWHERE[config.kind])
        config = with_holidays(config)
        sams, made = home.sams or SamPool([]), posts.KINDS[config.kind]
        terminal = made(config, home.journal, home.lists, sams, home.clock.now_ms, secrets.token_bytes, screen)
        own = self if config.kind is Kind.POS else Station(self.session, language=self.language)
        keys = home.host.reader_keys
        return terminal, own.post(terminal, keys.path if keys and keys.path.exists() else None)


def at_hand(session: Session, reader: Watcher | None) -> Callable[[str | None], Transport]:
    """How a card is connected to: the one in the reader that was watched, or by its name."""

    def connect(name: str | None) -> Transport:
        if reader is None or name is not None:
            return session.connect(name)
        return session.traced(GetResponse(reader.connect()))

    return connect


def _linked(folder: Path, name: str) -> Path:
    link, beside = folder / PORT, folder / f"{PORT}.new"
    beside.unlink(missing_ok=True)
    beside.symlink_to(name)
    beside.replace(link)
    return link
