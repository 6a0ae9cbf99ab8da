"""What a terminal's process asks of each kind: serve a card, understand a line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from cardlib.errors import ConfigError, FormatError
from cardlib.iso7816 import pin_bytes
from cardlib.records import Note
from cardlib.transport import Transport

STOPPED = Note("stopped")
"""What an orderly end writes; a journal that ends otherwise lost its power."""


class Post(Protocol):
    """What one kind of terminal does with cards and lines."""

    usage: str

    @property
    def busy(self) -> bool:
        """Whether something goes on by itself that the end of the typed lines must not cut."""

    def serve(self, card: Transport) -> dict[str, Any]:
        """Serve a card and say what became of it. Raises what the terminal raises."""

    def order(self, words: list[str]) -> bool:
        """Do what a line says; False when it is not understood."""

    def turn(self) -> None:
        """Look after what happens without cards."""

    def stop(self) -> None:
        """Leave everything in its safe state."""


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
