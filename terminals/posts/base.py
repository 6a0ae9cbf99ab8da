"""What a terminal's process asks of each kind: serve a card, understand a line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from cardlib.errors import ConfigError, FormatError
from cardlib.iso7816 import pin_bytes
from cardlib.readers import Presence
from cardlib.records import Note
from cardlib.transport import Transport

STOPPED = Note("stopped")
"""What an orderly end writes; a journal that ends otherwise lost its power."""


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


@runtime_checkable
class AtWork(Protocol):
    """A post with work that goes on by itself: the end of the typed lines does not cut it."""

    @property
    def busy(self) -> bool:
        """Whether there is such work now."""


@runtime_checkable
class Watched(Protocol):
    """A reader that says by itself when a card comes: see ``cardlib.readers.Reader``."""

    def wait(self, known: Presence, timeout_ms: int) -> Presence:
        """The presence when it changes, or after the timeout. Raises ReaderLost."""


@runtime_checkable
class OwnReaders(Watched, Protocol):
    """A post whose cards come at readers of its own, not at the process's."""

    @property
    def where(self) -> dict[str, Any]:
        """Where the card is that is being served, for machines."""

    def connect(self, name: str | None = None) -> Transport:
        """The card that has come."""


Come = Callable[[bool, float], Transport | None]
"""Wait for the next card, from the first asking for it, until a monotonic time; None when none will come."""


@runtime_checkable
class AsksForCards(Protocol):
    """A post that asks for a card by itself, for somebody elsewhere: a till's cash register."""

    def listen(self, come: Come) -> None:
        """Begin to; ``stop`` ends it."""


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
