"""A terminal as a process: a console screen, cards served one after another, lines typed (terminals.md).

One thread does everything: it looks at the reader and the keyboard in turn, so a tap is never cut by another act.
An empty line presents the card of ``--reader`` where the reader can't say by itself that a card has come (``sim:``).
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TextIO

from cardlib.errors import (
    Conflict,
    DatabaseError,
    NotFound,
    OneCardError,
    OutcomeUnknown,
    ReaderLost,
    Refused,
    TransportError,
)
from cardlib.readers import NOTHING_KNOWN
from cardlib.transport import Transport
from terminals.config import Kind
from terminals.posts.base import STOPPED, AsksForCards, AtWork, OwnReaders, Post, Watched
from terminals.reasons import BY_CODE
from terminals.runtime import Terminal
from terminals.screen import ConsoleScreen, Notice, Say

MAX_LINE = 4096
TURN_S = 0.2
"""How long a turn waits for a card or a line; doors are looked at in each."""
LOOK_S = 0.02
"""How long a turn waits for keyboard and installer's line where a reader has to be looked at as well."""


class Screen(ConsoleScreen):
    """A console that remembers whether it has said something since ``fresh`` was set.

    ``also`` is told each notice too: a reader at a door, say.
    """

    fresh = True

    def __init__(self, stream: TextIO, language: str = "zh") -> None:
        super().__init__(stream, language)
        self.also: Callable[[Notice], object] = lambda _: None

    def show(self, notice: Notice) -> None:
        """See ``terminals.screen.Screen``."""
        self.fresh = False
        super().show(notice)
        self.also(notice)


class Keyboard:
    """Lines that somebody types; ``ended`` when there will be none any more."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._raw = b""
        # A job in the background must not take what is typed to the shell: it would be stopped.
        self.ended = os.isatty(descriptor) and os.tcgetpgrp(descriptor) != os.getpgrp()

    def line(self, timeout_s: float, others: Sequence[int] = ()) -> str | None:
        """The next line, or None when none was finished in time; returns early when ``others`` can be read."""
        if b"\n" not in self._raw:
            own = [] if self.ended else [self._descriptor]
            if self._descriptor not in select.select([*own, *others], [], [], timeout_s)[0]:
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


class Line(Protocol):
    """An installer's line, served between two taps: ``terminals.home.Unit``."""

    def made(self) -> tuple[Terminal, Post]:
        """The terminal and its post as they must be now."""

    def descriptors(self) -> list[int]:
        """What to wait for beside the keyboard."""

    def wait_s(self, longest_s: float) -> float:
        """How long a turn may wait."""

    def poll(self) -> bool:
        """Answer what has come; True when terminal and post must be made anew."""


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
        link: Line | None = None,
    ) -> None:
        assert isinstance(terminal.screen, Screen)
        self._screen, self._keyboard, self._reader_at_hand = terminal.screen, keyboard, (reader, connect)
        self._note, self._tell, self._link = note, emit, link
        self._last: str | None = None
        self._trouble = ""
        self._over = False
        self._told: list[int] = []
        self._renewal_due = False
        self._fit(terminal, post)

    def _fit(self, terminal: Terminal, post: Post) -> None:
        """Be this terminal from now on, with the post's own readers where it has some."""
        self._terminal, self._post, self._known = terminal, post, NOTHING_KNOWN
        self._own = post if isinstance(post, OwnReaders) else None
        self._reader, self._connect = (self._own, self._own.connect) if self._own else self._reader_at_hand

    def _emit(self, data: dict[str, Any]) -> None:
        self._tell((self._own.where if self._own else {}) | data)

    def run(self) -> None:
        """Serve until the end. Raises KeyboardInterrupt after an orderly end when that was the wish."""
        with signals() as self._told:
            self._begin()
            try:
                while not self._told and not self._over:
                    self._turn()
            except BaseException:
                self._post.stop()
                raise
            self._end()
        if signal.SIGINT in self._told:
            raise KeyboardInterrupt

    def _begin(self) -> None:
        config = self._terminal.config
        if config.version:
            self._journal("started", f"{config.kind.value}, configuration {config.version}")
        self._screen.show(Notice(Say.PRESENT if config.version else Say.NOT_PROVISIONED))
        if isinstance(self._post, AsksForCards):
            self._post.listen(self._come)

    def _end(self) -> None:
        self._post.stop()
        if self._terminal.config.version:
            self._journal(STOPPED.code)

    def _turn(self) -> None:
        link, reader = self._link, self._reader
        line = self._typed(link, reader)
        if line is not None:
            self._line(line)
        elif self._keyboard.ended and reader is None and link is None:
            self._over = not (isinstance(self._post, AtWork) and self._post.busy)
        elif reader is not None:
            self._watch(reader)
        if link is not None and (link.poll() or self._renewal_due):
            self._renew(link)
        try:
            self._post.turn()
        except Refused as e:
            self._complain(str(e))

    def _typed(self, link: Line | None, reader: Watched | None) -> str | None:
        if link is None:
            return self._keyboard.line(TURN_S if reader is None else 0)
        longest_s = 0.0 if self._own else LOOK_S if reader else TURN_S
        return self._keyboard.line(link.wait_s(longest_s), link.descriptors())

    def _renew(self, link: Line) -> None:
        """What came over the line takes effect: the old post has let go of everything before the new one is made."""
        self._renewal_due = False
        self._end()
        self._fit(*link.made())
        self._begin()
        config = self._terminal.config
        self._emit(
            {"event": "configured", "kind": config.kind.value if config.version else "", "version": config.version}
        )

    def test_card(self) -> str:
        """Read the card in the reader: it and the SAM prove themselves to each other. Raises OneCardError."""
        card = self._connect(self._last)
        try:
            with self._terminal.tap(card) as tap:
                return f"card {tap.session.factor.hex().upper()} and SAM {tap.sam.info().serial.hex().upper()} agree"
        finally:
            card.close()

    def test_screen(self) -> str:
        """Show the test picture."""
        self._screen.show(Notice(Say.TEST))
        return "the test picture is on the screen: look at it"

    def _watch(self, reader: Watched) -> None:
        """Serve a card that has come to a reader which sees it; a lost reader is looked for again."""
        try:
            if self._comes(reader):
                self._present(None)
        except ReaderLost as e:
            self._lost(e)

    def _comes(self, reader: Watched) -> bool:
        longest_s = TURN_S if self._link is None else LOOK_S if self._own else 0
        now = reader.wait(self._known, int(longest_s * 1000))
        changed = (now.present, now.changes) != (self._known.present, self._known.changes)
        self._known, self._trouble = now, ""
        return now.present and changed

    def _lost(self, e: ReaderLost) -> None:
        self._known = NOTHING_KNOWN
        self._complain(str(e))
        select.select([], [], [], TURN_S)

    def _come(self, first: bool, until_s: float) -> Transport | None:
        """The next card for a post that asks for one; at the first asking also one that lies there already.

        None when ``until_s`` (monotonic) is over, somebody types ``cancel``, or the process ends.
        """
        if first:
            self._known = NOTHING_KNOWN
        while time.monotonic() < until_s and not self._told and not self._over:
            line = self._typed(self._link, self._reader)
            nobody = self._keyboard.ended and self._reader is None
            self._renewal_due |= self._link is not None and self._link.poll()
            if line == "cancel" or self._renewal_due or (line is None and nobody):
                return None
            shown = None if line is None or self._reader is not None else _shown(line)
            try:
                if shown or (self._reader is not None and self._comes(self._reader)):
                    return self._connect(shown[0] if shown else None)
            except ReaderLost as e:
                self._lost(e)
            except OneCardError as e:
                self._note(str(e))
            if line == "quit":
                self._over = True
            elif line and not shown:
                self._note("a sale waits for its card: cancel gives it up")
        return None

    def _complain(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._note(trouble)

    def _line(self, line: str) -> None:
        words, shown = line.split(), _shown(line)
        self._screen.fresh = True
        try:
            if words == ["quit"]:
                self._over = True
            elif shown and self._reader is None:
                self._last = shown[0] or self._last
                self._present(shown[0])
            elif words and not self._post.order(words):
                self._note(f"{line[:40]!r} is not understood here: {self._post.usage}, quit")
            elif words and self._terminal.config.kind in (Kind.POS, Kind.RECHARGE, Kind.ISSUING):
                self._known = NOTHING_KNOWN  # the card may lie there already
        except Refused as e:
            self._refused(e)
        except (Conflict, NotFound) as e:
            self._note(str(e))

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


def _shown(line: str) -> tuple[str | None] | None:
    """The card that a line presents where the reader is simulated, if it does: None for that of ``--reader``."""
    words = line.split(maxsplit=1)
    if not words:
        return (None,)
    return (f"sim:{words[1]}",) if words[0] == "card" and len(words) > 1 else None


@contextmanager
def signals() -> Iterator[list[int]]:
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
