"""A terminal as a process: a console screen, cards served one after another, lines typed (terminals.md).

One thread does everything: it looks at the reader and the keyboard in turn, so a tap is never cut by another act.
An empty line presents the card of ``--reader`` where the reader can't say by itself that a card has come (``sim:``).
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from cardlib.errors import DatabaseError, OneCardError, OutcomeUnknown, ReaderLost, Refused, TransportError
from cardlib.readers import NOTHING_KNOWN, Presence
from cardlib.transport import Transport
from terminals.config import Kind
from terminals.posts.base import STOPPED, Post
from terminals.reasons import BY_CODE
from terminals.runtime import Terminal
from terminals.screen import ConsoleScreen, Notice, Say

MAX_LINE = 4096
TURN_S = 0.2
"""How long a turn waits for a card or a line; doors are looked at in each."""


class Screen(ConsoleScreen):
    """A console that remembers whether it has said something since ``fresh`` was set."""

    fresh = True

    def show(self, notice: Notice) -> None:
        """See ``terminals.screen.Screen``."""
        self.fresh = False
        super().show(notice)


class Keyboard:
    """Lines that somebody types; ``ended`` when there will be none any more."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._raw = b""
        self.ended = False

    def line(self, timeout_s: float) -> str | None:
        """The next line, or None when none was finished in time."""
        if b"\n" not in self._raw and not self.ended:
            if not select.select([self._descriptor], [], [], timeout_s)[0]:
                return None
            chunk = os.read(self._descriptor, 4096)
            self.ended = not chunk
            self._raw += chunk
        line, newline, rest = self._raw.partition(b"\n")
        if not newline:
            self._raw = self._raw[-MAX_LINE:]
            return None
        self._raw = rest
        return line.decode(errors="replace").strip()


class Watched(Protocol):
    """A reader that says by itself when a card comes: see ``cardlib.readers.Reader``."""

    def wait(self, known: Presence, timeout_ms: int) -> Presence:
        """The presence when it changes, or after the timeout. Raises ReaderLost."""


class Process:
    """Runs one post until it is told to stop, or nobody can present anything any more."""

    def __init__(
        self,
        terminal: Terminal,
        post: Post,
        keyboard: Keyboard,
        connect: Callable[[str | None], Transport],
        reader: Watched | None,
        note: Callable[[str], None],
        emit: Callable[[dict[str, Any]], None],
    ) -> None:
        assert isinstance(terminal.screen, Screen)
        self._terminal, self._screen, self._post = terminal, terminal.screen, post
        self._keyboard, self._connect, self._reader = keyboard, connect, reader
        self._note, self._emit = note, emit
        self._known = NOTHING_KNOWN
        self._trouble = ""
        self._over = False

    def run(self) -> None:
        """Serve until the end. Raises KeyboardInterrupt after an orderly end when that was the wish."""
        config = self._terminal.config
        self._journal("started", f"{config.kind.value}, configuration {config.version}")
        with _signals() as told:
            try:
                self._screen.show(Notice(Say.PRESENT))
                while not told and not self._over:
                    self._turn()
            finally:
                self._post.stop()
            self._journal(STOPPED.code)
        if signal.SIGINT in told:
            raise KeyboardInterrupt

    def _turn(self) -> None:
        line = self._keyboard.line(TURN_S if self._reader is None else 0)
        if line is not None:
            self._line(line)
        elif self._keyboard.ended and self._reader is None:
            self._over = not self._post.busy
        elif self._reader is not None:
            self._watch(self._reader)
        try:
            self._post.turn()
        except Refused as e:
            self._complain(str(e))

    def _watch(self, reader: Watched) -> None:
        """Serve a card that has come to a reader which sees it; a lost reader is looked for again."""
        try:
            now = reader.wait(self._known, int(TURN_S * 1000))
            changed = (now.present, now.changes) != (self._known.present, self._known.changes)
            self._known, self._trouble = now, ""
            if now.present and changed:
                self._present(None)
        except ReaderLost as e:
            self._known = NOTHING_KNOWN
            self._complain(str(e))
            select.select([], [], [], TURN_S)

    def _complain(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._note(trouble)

    def _line(self, line: str) -> None:
        words = line.split()
        try:
            if words == ["quit"]:
                self._over = True
            elif not words and self._reader is None:
                self._present(None)
            elif words[:1] == ["card"] and len(words) > 1 and self._reader is None:
                self._present(f"sim:{line.split(maxsplit=1)[1]}")
            elif words and not self._post.order(words):
                self._note(f"{line[:40]!r} is not understood here: {self._post.usage}, quit")
            elif words and self._terminal.config.kind in (Kind.POS, Kind.ISSUING):
                self._known = NOTHING_KNOWN  # the card may lie there already
        except Refused as e:
            self._refused(e)

    def _present(self, name: str | None) -> None:
        try:
            card = self._connect(name)
        except ReaderLost:
            raise
        except OneCardError as e:
            self._note(str(e))
            return
        try:
            self._serve(card)
        finally:
            card.close()

    def _serve(self, card: Transport) -> None:
        self._screen.fresh = True
        try:
            self._emit(self._post.serve(card))
        except OutcomeUnknown as e:
            self._screen.show(Notice(Say.PRESENT_AGAIN))
            self._emit({"event": "unknown", "message": str(e)})
        except TransportError as e:
            self._screen.show(Notice(Say.PRESENT_AGAIN))
            self._emit({"event": "torn", "message": str(e)})
        except Refused as e:
            self._refused(e)
        except DatabaseError:
            raise  # a journal that can't be written serves nobody: whoever watches this process starts it again
        except OneCardError as e:
            self._note(str(e))

    def _refused(self, e: Refused) -> None:
        fresh, kind = self._screen.fresh, self._terminal.config.kind
        if fresh:
            self._screen.show(Notice(Say.REFUSED, reason=BY_CODE.get(e.reason)))
        if kind is Kind.ATTENDANCE or (kind is Kind.ACCESS and fresh):  # what a door showed itself it has reported
            self._journal("refused", e.reason)
        self._emit({"event": "refused", "reason": e.reason, "message": str(e)})

    def _journal(self, code: str, text: str = "") -> None:
        with suppress(Refused):  # full: it says so when it matters
            self._terminal.journal.note(code, text)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect the wish to stop, so that the card under way is finished; who insists is obeyed at once."""
    told: list[int] = []

    def stop(number: int, _: object) -> None:
        if told:
            raise KeyboardInterrupt
        told.append(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
