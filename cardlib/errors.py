"""The one error tree. A message says what failed, on what, and what to do next; data stands in attributes."""

from __future__ import annotations


class OneCardError(Exception):
    """Base of everything this project raises on purpose."""


class TransportError(OneCardError):
    """The way to the card broke: whether the last command ran is not known."""


class CardRemoved(TransportError):
    """The card left the field or lost power."""


class ReaderLost(TransportError):
    """The reader itself is gone or was never there."""


class LineTimeout(TransportError):
    """No answer within the time allowed."""


class StatusError(OneCardError):
    """A card or SAM answered with a status word that the caller did not allow for.

    ``sw`` is the status word, ``command`` the four header bytes (never data: it may hold secrets).
    """

    def __init__(self, sw: int, command: bytes, meaning: str = "") -> None:
        self.sw = sw
        self.command = command[:4]
        text = f"status {sw:04X} to command {self.command.hex().upper()}"
        super().__init__(f"{text}: {meaning}" if meaning else text)


class FormatError(OneCardError):
    """Bytes or text from outside do not have the form they must have."""


class CryptoError(OneCardError):
    """Key material or a cryptographic proof is wrong."""


class MacMismatch(CryptoError):
    """A MAC, TAC or signature was checked and is wrong."""


class BadKcv(CryptoError):
    """A key's check value differs from the expected one."""


class OutcomeUnknown(OneCardError):
    """A money move or key write may or may not have happened; resolve ``journal_id`` first."""

    def __init__(self, journal_id: int | str, message: str) -> None:
        self.journal_id = journal_id
        super().__init__(message)


class Refused(OneCardError):
    """A rule says no. ``reason`` is a stable code (``blacklisted``), the message is for people."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class NotFound(OneCardError):
    """The thing named does not exist."""


class Conflict(OneCardError):
    """The thing named exists already, or is in a state that does not allow this."""


class ConfigError(OneCardError):
    """A setting, option or file given by the user is wrong."""


class DatabaseError(OneCardError):
    """The database is busy, full, unreachable or of another version."""


class CheckFailed(OneCardError):
    """A verification ran to its end and found something wrong."""
