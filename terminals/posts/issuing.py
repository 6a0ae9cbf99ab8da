"""An issuing terminal at the console: a line says what the next card is for; a batch takes card after card."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Any

from cardlib.errors import ConfigError, OneCardError, OutcomeUnknown, Refused, TransportError
from cardlib.readers import Happened, Presence, Reader, ReaderEvent, Worker
from cardlib.transport import Transport
from terminals.issuing import CONTROL_READER, Fields, Issuing, Lending, error_of

CONFIRM = {
    "reissue": ("REISSUE", "the old card of {member} is ended for good"),
    "return": ("RETURN", "the card that comes next is emptied and ended for good"),
}
"""Acts that can't be taken back, the word that confirms them, and what they do."""
GO_ON = {"card_used", "wash"}
"""Refusals of a card, after which another card can be presented for the same wish."""
PIN_DIGITS = 6


class Batch:
    """A batch under way: an act at each reader that had a card, what is done, what is left."""

    def __init__(self, department: str) -> None:
        self.wish = {"do": "batch", "batch": secrets.token_hex(8), "department": department}
        self.acts: dict[int, Lending] = {}
        self.began = time.monotonic()
        self.issued = self.failed = self.busy = 0
        self.told: set[int] = set()
        self.broken = False
        self.left: int | None = None
        self.begun: dict[str, str] = {}

    def progress(self) -> str:
        """How far it is, how fast, and how long it will take."""
        rate = self.issued / max(time.monotonic() - self.began, 0.001)
        left = max((self.left or 0) + self.busy - len(self.told), 0)
        time_left = f", {left / rate:.0f} s left" if rate else ""
        return f"batch: {self.issued} issued, {self.failed} failed, {left} to go, {rate:.1f}/s{time_left}"


class IssuingPost:
    """One card after another, each for what was typed; readers of the desk work side by side in a batch."""

    usage = "issue MEMBER, batch [DEPARTMENT], reissue MEMBER [lost], return, read"

    def __init__(
        self,
        terminal: Issuing,
        operator: str,
        secret: Callable[[str], str],
        readers: Sequence[Reader],
        tell: Callable[[str], None],
        emit: Callable[[dict[str, Any]], None],
    ) -> None:
        self._terminal, self._operator, self._secret = terminal, operator, secret
        self._tell, self._emit = tell, emit
        self._wish: Fields = {}
        self._unconfirmed: Fields = {}
        self._act: Lending | None = None
        self._batch: Batch | None = None
        self._lock = Lock()
        self._notes: SimpleQueue[str] = SimpleQueue()
        self._readers = readers
        self._workers: list[Worker] = []

    @property
    def busy(self) -> bool:
        """Whether a batch goes on at readers of its own."""
        return bool(self._workers)

    # Lines

    def order(self, words: list[str]) -> bool:
        """What the next card is for, or the word that confirms it."""
        asked, self._unconfirmed = self._unconfirmed, {}
        match words:
            case ["issue", member]:
                return self._begin({"do": "issue", "member": member})
            case ["read"]:
                return self._begin({"do": "read"})
            case ["batch", *department] if len(department) <= 1:
                return self._begin_batch((department or [""])[0])
            case ["reissue", member, *rest] if rest in ([], ["lost"]):
                return self._ask({"do": "reissue", "member": member, "lost": bool(rest)})
            case ["return"]:
                return self._ask({"do": "return"})
            case [word] if asked and word == CONFIRM[asked["do"]][0]:
                return self._begin(asked)
        return False

    def _ask(self, wish: Fields) -> bool:
        word, what = CONFIRM[wish["do"]]
        self._unconfirmed = wish
        self._tell(f"{what.format(**wish)}: type {word} to go on")
        return True

    def _begin(self, wish: Fields) -> bool:
        self._put_off()
        self._wish = wish
        which = {"issue": "blank", "reissue": "new" if wish.get("lost") else "old"}.get(wish["do"])
        self._tell(f"present the {which} card" if which else "present the card")
        return True

    def _put_off(self) -> None:
        """Leave what was under way; torn, it goes on when it is asked for again."""
        self._end_batch()
        if self._act is not None:
            self._act.stop()
        self._wish, self._act = {}, None

    def _begin_batch(self, department: str) -> bool:
        self._put_off()
        if self._terminal.desk.pin_sheet is None:
            self._tell("a batch writes its PINs to a file: name it as pin_sheet in [desk]")
            return True
        try:
            self._sign_on()
        except (TransportError, ConfigError, Refused) as e:
            self._tell(f"{e}: type batch again")
            return True
        self._batch = Batch(department)
        self._workers = [
            Worker(reader, self._feeder(number), self._event).start()
            for number, reader in enumerate(self._readers, CONTROL_READER + 1)
        ]
        self._tell("present one blank card after another")
        return True

    # Cards

    def serve(self, card: Transport) -> dict[str, Any]:
        """See :class:`Post`."""
        if self._batch is not None:
            self._feed(CONTROL_READER, card)
            return {"event": "batch", "left": self._batch.left}
        if not self._wish:
            raise Refused("no_wish", f"type first what it is for: {self.usage}")
        wish = self._wish
        try:
            result = self._go_on(card)
        except (TransportError, OutcomeUnknown):
            self._act = None  # the same card goes on when it comes again
            raise
        except Refused as e:
            self._act = None
            self._wish = wish if e.reason in GO_ON else {}
            self._tell(str(e))  # the office's own words; terminals have none for them
            raise
        except OneCardError:
            self._act, self._wish = None, {}
            raise
        if result is None:
            assert self._act is not None
            self._tell(f"take this card away and present the {self._act.wants} card")
            return {"event": "present", "which": self._act.wants}
        self._act, self._wish = None, {}
        self._done(result)
        return {"event": wish["do"], **result}

    def _go_on(self, card: Transport) -> Fields | None:
        for again in (False, True):
            if self._act is None:
                if again or not self._terminal.signed_on:
                    self._sign_on()
                self._act = self._terminal.begin(CONTROL_READER, self._answer, self._wish)
            try:
                return self._act.go_on(card)
            except Refused as e:
                self._act = None
                if again or e.reason != "session":
                    raise
        raise AssertionError

    def _sign_on(self) -> None:
        self._terminal.sign_on(self._operator, self._secret("operator secret"))

    def _answer(self, turn: Fields, reader: int = CONTROL_READER) -> Fields:
        """What a turn asks of people."""
        match turn:
            case {"do": "pin", "member": str(member), "name": str(name)} if self._batch is None:
                self._tell(f"PIN for {member} {name}")
                return {"pin": self._secret("holder pin")}
            case {"do": "pin", "member": str(member)}:
                digits = f"{secrets.randbelow(10**PIN_DIGITS):0{PIN_DIGITS}d}"
                assert self._terminal.desk.pin_sheet is not None
                with self._lock:
                    append(self._terminal.desk.pin_sheet, f"{member},{digits}")
                return {"pin": digits}
            case {"do": "issued" | "failed" as do}:
                self._count(do, turn, reader)
                return {}
        raise Refused("host_refused", f"the office asks for something unknown: {str(turn.get('do'))[:16]}")

    def _done(self, result: Fields) -> None:
        """The label of a card that is somebody's, what else is to be told, and a note in the journal."""
        if result.get("member") and result.get("card"):
            label = "\t".join(str(result[name]) for name in ("member", "name", "card"))
            self._tell(label)
            if self._terminal.desk.labels is not None:
                try:
                    append(self._terminal.desk.labels, label)
                except ConfigError as e:
                    self._tell(f"{e}; the card is good, write its label by hand")
        told = {key: value for key, value in result.items() if key not in ("member", "name", "card", "job")}
        if told:
            self._tell(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in told.items()))
        self._notes.put(f"{result.get('card')} {result.get('member', '')} {result.get('state', '')}")

    # A batch

    def _feeder(self, reader: int) -> Callable[[Transport], None]:
        return lambda card: self._feed(reader, card)

    def _feed(self, reader: int, card: Transport) -> None:
        """Let the batch make this card; returns when it is made or refused."""
        with self._lock:
            batch = self._batch
            if batch is None:
                raise Refused("no_wish", "no batch is under way: type batch")
            act = batch.acts.get(reader) or self._terminal.begin(
                reader, partial(self._answer, reader=reader), batch.wish
            )
            batch.acts[reader] = act
            batch.busy += 1
        result: Fields | None = {}
        try:
            result = act.go_on(card)
        except Refused as e:
            batch.broken = batch.broken or e.reason == "session"
            raise
        finally:
            with self._lock:
                batch.busy -= 1
                batch.told.discard(reader)
                if result is not None:  # over here, or broken off: the next card begins anew
                    batch.acts.pop(reader, None)
                    batch.left = result.get("left", batch.left)
                    batch.begun |= result.get("begun", {})

    def _count(self, do: str, turn: Fields, reader: int) -> None:
        with self._lock:
            batch = self._batch
            if batch is not None:
                batch.issued, batch.failed = batch.issued + (do == "issued"), batch.failed + (do == "failed")
                batch.left = turn.get("left")
                batch.told |= {reader} if do == "issued" else set()
            event = {key: value for key, value in turn.items() if key not in ("seq", "do")}
            if do == "issued":
                self._done({key: event[key] for key in ("member", "name", "card") if key in event})
            else:
                self._tell(f"{event.get('member', 'this card')}: {error_of(event.get('error'))}")
            self._emit({"event": do, **event})
            if batch is not None:
                self._tell(batch.progress())

    def _event(self, event: ReaderEvent) -> None:
        if event.what in (Happened.FAILED, Happened.LOST):
            self._tell(f"{event.reader}: {event.error}")

    def _end_batch(self) -> None:
        """Finish the cards under way, tell what is left."""
        batch = self._batch
        if batch is None:
            return
        for worker in self._workers:
            worker.stop()
        self._batch, self._workers = None, []
        for act in batch.acts.values():
            result = act.stop() or {}
            batch.left = result.get("left", batch.left)
            batch.begun |= result.get("begun", {})
        for card, member in batch.begun.items():
            self._tell(f"half-made card {card} of {member}: present it in the next batch")
        self._tell(f"batch: {batch.issued} issued, {batch.failed} failed, {batch.left or 0} left")
        ended = {"event": "batch_ended", "issued": batch.issued, "failed": batch.failed, "left": batch.left or 0}
        self._emit(ended | {"begun": batch.begun})

    # The loop

    def turn(self) -> None:
        """Write down what was done; end a batch that has nobody left."""
        batch = self._batch
        if batch is not None and batch.broken:
            self._tell("the office has begun anew: type batch again")
            self._end_batch()
        elif batch is not None and batch.left == 0 and not batch.busy:
            self._end_batch()
        try:
            while True:
                self._terminal.journal.note("issued", self._notes.get_nowait())
        except Empty:
            pass

    def stop(self) -> None:
        """The cards under way are finished, the next run goes on."""
        self._end_batch()
        self.turn()


def append(path: Path, line: str) -> None:
    """Add a line to a file that others may not read, on the disk when this returns. Raises ConfigError."""
    try:
        with os.fdopen(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600), "a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as e:
        raise ConfigError(f"{path} can't be written: {e.strerror}") from e


class Place:
    """A reader that sees its cards, opened as the session opens them."""

    def __init__(self, name: str, watch: Callable[[Presence, int], Presence], connect: Callable[[], Transport]) -> None:
        self.name, self.wait, self.connect = name, watch, connect


class Stack:
    """A folder of simulated cards as a reader with a feeder: one after another by name, each once."""

    def __init__(self, folder: Path, connect: Callable[[str], Transport]) -> None:
        self.name = f"sim:{folder}"
        self._cards = sorted(folder.glob("*.img"))
        self._connect = connect
        self._at = 0

    def wait(self, known: Presence, timeout_ms: int) -> Presence:
        """See ``cardlib.readers.Reader``."""
        now = Presence(self._at < len(self._cards), self._at)
        if now == known:
            time.sleep(timeout_ms / 1000)
        return now

    def connect(self) -> Transport:
        """See ``cardlib.readers.Reader``."""
        self._at += 1
        return self._connect(f"sim:{self._cards[self._at - 1]}")
