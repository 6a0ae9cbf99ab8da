"""Readers and the cards that come and go on them: one worker thread per reader, which survives its reader's loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, unique
from threading import Event, Thread
from typing import NamedTuple, Protocol, Self

from cardlib.errors import CardRemoved, OneCardError, ReaderLost
from cardlib.transport import Transport

WAIT_MS = 250
"""How long a worker looks at its reader before it looks whether it shall stop."""
RETRY_MS = 1000
"""How long a worker waits before it looks for a lost reader again."""


class Presence(NamedTuple):
    """Is a card there, and which: ``changes`` differs with each that comes or goes. ``token`` is the reader's own."""

    present: bool
    changes: int
    token: int = 0


NOTHING_KNOWN = Presence(present=False, changes=-1)


class Reader(Protocol):
    """A place where cards come and go."""

    @property
    def name(self) -> str:
        """The name that people and messages use."""

    def wait(self, known: Presence, timeout_ms: int) -> Presence:
        """Return when the presence differs from the known one, or after the timeout. Raises ReaderLost."""

    def connect(self) -> Transport:
        """Power the card up. Raises CardRemoved when there is none any more."""


@unique
class Happened(Enum):
    """What a worker reports."""

    INSERTED = "inserted"
    REMOVED = "removed"
    FAILED = "failed"
    LOST = "lost"
    BACK = "back"


@dataclass(frozen=True, slots=True)
class ReaderEvent:
    """Something that happened at a reader; ``error`` says what went wrong (FAILED, LOST)."""

    reader: str
    what: Happened
    error: OneCardError | None = None


class Worker:
    """Serves each card that is put on a reader once, in a thread of its own.

    ``serve(card)`` gets a powered card; the project's own errors that leave it become FAILED events and the next
    card is served. Anything else is a bug: it ends the worker and comes out of ``stop``.
    """

    def __init__(
        self,
        reader: Reader,
        serve: Callable[[Transport], None],
        tell: Callable[[ReaderEvent], None],
        retry_ms: int = RETRY_MS,
    ) -> None:
        self._reader = reader
        self._serve = serve
        self._tell_event = tell
        self._retry_ms = retry_ms
        self._stopping = Event()
        self._lost = False
        self._bug: BaseException | None = None
        self._thread = Thread(target=self._guard, name=f"reader {reader.name}", daemon=True)

    def start(self) -> Self:
        """Begin to watch the reader."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Finish the card under way and end. Raises what a bug raised in the thread."""
        self._stopping.set()
        self._thread.join()
        if self._bug is not None:
            raise self._bug

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    def _guard(self) -> None:
        try:
            self._watch()
        except BaseException as e:  # noqa: BLE001  # handed over to stop()
            self._bug = e

    def _watch(self) -> None:
        known = NOTHING_KNOWN
        while not self._stopping.is_set():
            try:
                now = self._reader.wait(known, WAIT_MS)
            except ReaderLost as e:
                if known.present:
                    self._tell(Happened.REMOVED)
                if not self._lost:
                    self._tell(Happened.LOST, e)
                self._lost, known = True, NOTHING_KNOWN
                self._stopping.wait(self._retry_ms / 1000)
                continue
            if self._lost:
                self._lost = False
                self._tell(Happened.BACK)
            # pcscd misses a count when a card leaves while it is being powered up, so both are looked at.
            changed = (now.present, now.changes) != (known.present, known.changes)
            if known.present and changed:
                self._tell(Happened.REMOVED)
            if now.present and changed:
                self._tell(Happened.INSERTED)
                self._serve_once()
            known = now

    def _serve_once(self) -> None:
        try:
            card = self._reader.connect()
            try:
                self._serve(card)
            finally:
                card.close()
        except CardRemoved:
            pass  # the next look at the reader reports it
        except OneCardError as e:
            self._tell(Happened.FAILED, e)

    def _tell(self, what: Happened, error: OneCardError | None = None) -> None:
        self._tell_event(ReaderEvent(self._reader.name, what, error))
