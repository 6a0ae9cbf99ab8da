"""A terminal as a process: a console screen, cards served one after another, lines typed (terminals.md).

One thread does everything: it looks at the reader and the keyboard in turn, so a tap is never cut by another act.
An empty line presents the card of ``--reader`` where the reader can't say by itself that a card has come (``sim:``).
"""

from __future__ import annotations

import os
import secrets
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TextIO

from cardlib.errors import (
    ConfigError,
    DatabaseError,
    FormatError,
    OneCardError,
    OutcomeUnknown,
    ReaderLost,
    Refused,
    TransportError,
)
from cardlib.iso7816 import pin_bytes
from cardlib.money import parse_yuan, yuan
from cardlib.purse import identify
from cardlib.readers import NOTHING_KNOWN, Presence
from cardlib.records import Note, PunchDirection
from cardlib.transport import Transport
from terminals.access import Access
from terminals.attendance import Attendance
from terminals.config import Kind
from terminals.doors import Direction
from terminals.journal import Job
from terminals.policy import Operation
from terminals.pos import Pos
from terminals.reasons import BY_CODE, Reason
from terminals.runtime import SAID, Receipt, Terminal
from terminals.screen import ConsoleScreen, Notice, Say

UNSEEN_MS = 60_000
"""For how long after a power cut a payment just before it is told to its card, instead of a new one being made."""
MAX_LINE = 4096
TURN_S = 0.2
"""How long a turn waits for a card or a line; doors are looked at in each."""
STOPPED = Note("stopped")
"""What an orderly end writes; a journal that ends otherwise lost its power."""
KINDS: dict[Kind, type[Terminal]] = {Kind.POS: Pos, Kind.ACCESS: Access, Kind.ATTENDANCE: Attendance}
ELSEWHERE = {
    Kind.RECHARGE: "a recharge terminal needs a line to the back office, which computes every load: recharge at the "
    "office with `onecard wallet recharge`",
    Kind.ISSUING: "cards are issued by the office's own desk: `onecard card issue`",
}
"""Kinds that can't run by themselves, and where to go instead."""


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


class Post(Protocol):
    """What one kind of terminal does with cards and lines."""

    usage: str

    def serve(self, card: Transport) -> dict[str, Any]:
        """Serve a card and say what became of it. Raises what the terminal raises."""

    def order(self, words: list[str]) -> bool:
        """Do what a line says; False when it is not understood."""

    def turn(self) -> None:
        """Look after what happens without cards."""

    def stop(self) -> None:
        """Leave everything in its safe state."""


# --- POS ---------------------------------------------------------------------------------------------------------


class PosPost:
    """A till: a fixed amount for each card, or an amount keyed for each sale.

    A payment that a power cut tore goes on with its own sale number when its card comes again: it is never charged
    anew.
    """

    usage = "AMOUNT [SALE NUMBER], undo"

    def __init__(
        self, pos: Pos, fixed_fen: int | None, pin: Callable[[], str | None], tell: Callable[[str], None]
    ) -> None:
        self._pos = pos
        self._fixed_fen = fixed_fen
        self._pin = pin
        self._tell = tell
        self._next: tuple[int, str] | None = None
        self._undo = False
        self._unseen = self._paid_unseen()
        if self._unseen:
            job = self._unseen
            self._tell(f"sale {job.sale}, {yuan(job.committed_fen)}: paid by card {job.card_serial.hex().upper()}")
        for job in self._torn():
            self._tell(f"sale {job.sale}, {yuan(job.amount_fen)}: card {job.card_serial.hex().upper()} must come again")
            self._next = (job.amount_fen, job.sale) if fixed_fen is None else None

    def _torn(self) -> list[Job]:
        jobs = self._pos.journal.open_jobs()
        return [job for job in jobs if job.operation is Operation.PAY and job.waiting and job.sale]

    def _paid_unseen(self) -> Job | None:
        """The payment at the journal's end when the power went just after it: nobody may have seen it."""
        journal = self._pos.journal
        found = journal.last_payment()
        if found is None or not found[0].sale or found[1].undone:
            return None
        if self._fixed_fen not in (None, found[0].amount_fen) or self._pos.now_ms() - found[1].utc_ms > UNSEEN_MS:
            return None
        return None if journal.entry(journal.last_seq).record == STOPPED else found[0]

    def _sale(self, card: Transport) -> tuple[int, str]:
        """What this card pays: the keyed sale, its own torn one, or the fixed amount."""
        if self._next is not None:
            return self._next
        if self._fixed_fen is None:
            raise Reason.AMOUNT_INVALID.refusal("key the amount first")
        waiting = [*self._torn(), *([self._unseen] if self._unseen else [])]
        self._unseen = None
        if waiting:
            serial = identify(card, self._pos.config.enterprise_id).factor
            for job in waiting:
                if job.card_serial == serial:
                    return job.amount_fen, job.sale
        return self._fixed_fen, secrets.token_hex(8)

    def serve(self, card: Transport) -> dict[str, Any]:
        """See :class:`Post`."""
        try:
            receipt = self._act(card)
        except Refused as e:
            if e.reason != Reason.PENDING_OTHER_CARD.code:
                self._next, self._undo = None, False
            raise
        self._next, self._undo = None, False
        whole = receipt.amount_fen == receipt.job.amount_fen
        say = SAID[receipt.job.operation] if whole else Say.PARTLY
        self._pos.screen.show(Notice(say, receipt.amount_fen, receipt.balance_fen))
        return {
            "event": receipt.job.operation.value,
            "sale": receipt.job.sale,
            "amount_fen": receipt.amount_fen,
            "balance_fen": receipt.balance_fen,
            "card": receipt.job.card_serial,
            "recovered": receipt.recovered,
        }

    def _act(self, card: Transport) -> Receipt:
        if self._undo:
            return self._pos.undo_last(card)
        amount_fen, sale = self._sale(card)
        return self._pos.pay(card, amount_fen, sale, self._pin)

    def order(self, words: list[str]) -> bool:
        """An amount, with the register's own sale number if it has one; or ``undo``."""
        if words == ["undo"]:
            self._next, self._undo = None, True
        else:
            if len(words) > 2:
                return False
            try:
                self._next, self._undo = (parse_yuan(words[0]), (words[1:] or [secrets.token_hex(8)])[0]), False
            except FormatError:
                return False
        self._pos.screen.show(Notice(Say.PRESENT, self._next[0] if self._next else None))
        return True

    def turn(self) -> None:
        """Nothing happens without cards."""

    def stop(self) -> None:
        """All is on the disk already."""


# --- access ------------------------------------------------------------------------------------------------------

LOCKED, RELEASED, FREE = ("已锁", "locked"), ("已开锁", "unlocked"), ("常开", "stands unlocked")
DOOR = ("门", "door")


class ConsoleLock:
    """A door's hardware on the console: it says what the lock does, lines say what the door's contact does."""

    def __init__(self, number: int, now_ms: Callable[[], int], tell: Callable[[str], None], language: str) -> None:
        self.is_open = False
        self._number = number
        self._now_ms = now_ms
        self._tell = tell
        self._at = 0 if language == "zh" else 1
        self._free = False
        self._until_ms = 0
        self._shown: tuple[str, str] | None = None

    def release(self, duration_ms: int) -> None:
        """See ``terminals.access.Lock``."""
        self._until_ms = self._now_ms() + duration_ms
        self.look()

    def stand_free(self, free: bool) -> None:
        """See ``terminals.access.Lock``."""
        self._free, self._until_ms = free, 0
        self.look()

    def move(self, is_open: bool) -> None:
        """The door is opened or shut; once shut it is locked."""
        self.is_open = is_open
        if not is_open:
            self._until_ms = 0

    def look(self) -> None:
        """Say when the lock has changed."""
        now = FREE if self._free else RELEASED if self._now_ms() < self._until_ms else LOCKED
        if now is not self._shown:
            self._shown = now
            self._tell(f"{DOOR[self._at]} {self._number}: {now[self._at]}")


class AccessPost:
    """Doors: cards come at the first one, from outside, until a line names another."""

    usage = "door NUMBER [in|out], open NUMBER, shut NUMBER, emergency on|off"

    def __init__(
        self, access: Access, tell: Callable[[str], None], language: str, pin: Callable[[], str | None], operator: str
    ) -> None:
        self._access = access
        self._pin = pin
        self._operator = operator
        doors = access.config.doors
        self._locks = {number: ConsoleLock(number, access.now_ms, tell, language) for number in doors}
        self._door, self._direction = min(doors), Direction.IN
        access.fit_doors({number: (rules, self._locks[number]) for number, rules in doors.items()})

    def serve(self, card: Transport) -> dict[str, Any]:
        """See :class:`Post`."""
        passage = self._access.present(card, self._door, self._direction, self._pin)
        return {
            "event": "passage",
            "door": self._door,
            "direction": self._direction.name.lower(),
            "granted": passage.granted,
            "waits": passage.waits,
        }

    def order(self, words: list[str]) -> bool:
        """Another reader, a door's contact, the emergency."""
        match words:
            case ["door" | "open" | "shut", number, *rest] if number.isdecimal() and int(number) in self._locks:
                if words[0] != "door":
                    self._locks[int(number)].move(words[0] == "open")
                    return not rest
                if rest not in ([], ["in"], ["out"]):
                    return False
                self._door, self._direction = int(number), Direction[(rest or ["in"])[0].upper()]
                return True
            case ["emergency", "on" | "off" as way]:
                self._access.emergency(way == "on", self._operator)
                return True
        return False

    def turn(self) -> None:
        """See :class:`Post`."""
        try:
            self._access.tick()
        finally:
            for lock in self._locks.values():
                lock.look()

    def stop(self) -> None:
        """All doors locked."""
        for lock in self._locks.values():
            lock.stand_free(False)


# --- attendance --------------------------------------------------------------------------------------------------


class AttendancePost:
    """Punches; a line presses the direction's key for the next card."""

    usage = ", ".join(one.name.lower() for one in PunchDirection)

    def __init__(self, attendance: Attendance) -> None:
        self._attendance = attendance
        self._pressed: PunchDirection | None = None
        attendance.set_punch_rules(attendance.config.punches)

    def serve(self, card: Transport) -> dict[str, Any]:
        """See :class:`Post`."""
        verdict = self._attendance.punch(card, self._pressed)
        self._pressed = None
        direction = verdict.direction.name.lower() if verdict.direction is not None else ""
        return {"event": "punch", "direction": direction, "repeated": verdict.repeated}

    def order(self, words: list[str]) -> bool:
        """A direction's key."""
        self._pressed = PunchDirection.__members__.get(words[0].upper()) if len(words) == 1 else None
        return self._pressed is not None

    def turn(self) -> None:
        """Nothing happens without cards."""

    def stop(self) -> None:
        """All is on the disk already."""


# --- the process -------------------------------------------------------------------------------------------------


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
            self._over = True
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
            elif words and self._terminal.config.kind is Kind.POS:
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


def asking(secret: Callable[[str], str], note: Callable[[str], None]) -> Callable[[], str | None]:
    """A question for the holder's PIN; None when nobody can be asked, or what was typed can be no PIN."""

    def ask() -> str | None:
        try:
            digits = secret("holder pin")
            pin_bytes(digits)
        except (ConfigError, FormatError) as e:
            note(str(e))
            return None
        return digits

    return ask


def make_post(
    terminal: Terminal, amount_fen: int | None, stream: TextIO, language: str, operator: str,
    pin: Callable[[], str | None],
) -> Post:  # fmt: skip
    """The post for a terminal. Raises ConfigError when an amount is given to what takes none."""

    def tell(text: str) -> None:
        stream.write(text + "\n")
        stream.flush()

    if amount_fen is not None and not isinstance(terminal, Pos):
        raise ConfigError(f"--amount is for a POS, not for {terminal.config.kind.value} terminals")
    if isinstance(terminal, Access):
        return AccessPost(terminal, tell, language, pin, operator)
    if isinstance(terminal, Attendance):
        return AttendancePost(terminal)
    assert isinstance(terminal, Pos)
    return PosPost(terminal, amount_fen, pin, tell)
