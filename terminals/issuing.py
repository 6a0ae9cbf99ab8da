"""An issuing terminal: a place to put cards. Its readers are lent to the office, which holds keys and books.

The office asks in numbered turns (``backoffice.lending``); this side carries each out once and brings the answer. An
answer that was not heard is sent again; a line or an office that stays away is a card pulled away.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cardlib import errors
from cardlib.errors import (
    Conflict,
    FormatError,
    NotFound,
    OneCardError,
    OutcomeUnknown,
    Refused,
    TransportError,
)
from cardlib.profile import Purpose
from cardlib.transport import Transport
from terminals.runtime import Terminal

PATIENCE_S = 20
"""How long an office that does not answer is asked again; then the card is given up for now."""
RETRY_S = 0.5
CONTROL_READER = 0
"""The number of the terminal's own reader; those of the batch have the next ones."""

Fields = dict[str, Any]
_KINDS: dict[str, type[OneCardError]] = {
    name: getattr(errors, name)
    for name in ("TransportError", "CardRemoved", "FormatError", "CryptoError", "MacMismatch", "NotFound", "Conflict",
                 "ConfigError", "DatabaseError", "CheckFailed")
}  # fmt: skip


def error_of(told: object) -> OneCardError:
    """The error that the office tells: ``{"kind", "code", "message"}``; a card's status is Refused ``card_refused``."""
    if not isinstance(told, dict):
        return FormatError("the office answered something that is no error of ours")
    kind, code, message = (str(told.get(name, "")) for name in ("kind", "code", "message"))
    if kind == "OutcomeUnknown":
        return OutcomeUnknown(code, message)
    if kind in _KINDS:
        return _KINDS[kind](message)
    return Refused({"Refused": code, "StatusError": "card_refused"}.get(kind, "host_refused"), message)


class Line(Protocol):
    """A way to the office: see ``terminals.office.HttpOffice``."""

    def call(self, verb: str, **fields: str | int) -> Fields:
        """One call. Raises what the office tells, TransportError when no answer came."""


@dataclass(frozen=True, slots=True)
class DeskRules:
    """What an issuing terminal has beside its own reader: further ones for batches, files for labels and PINs."""

    readers: tuple[str, ...] = ()
    labels: Path | None = None
    pin_sheet: Path | None = None


class Lending:
    """One act of the office with cards of one reader. ``answer`` gives what is asked of people and of the SAM."""

    patience_s = PATIENCE_S

    def __init__(self, line: Line, reader: int, answer: Callable[[Fields], Fields], wish: Fields) -> None:
        self._line, self._answer = line, answer
        self._act: Fields = {"act": secrets.token_hex(16), "reader": reader}
        self._wish = wish
        self._turn: Fields | None = None
        self.wants = ""

    def go_on(self, card: Transport | None = None) -> Fields | None:
        """Let the office work with this card; its result, or None when it ``wants`` another one.

        Raises what ended the act: what the office tells; TransportError when card or office went away, after which
        the same wish begun again goes on.
        """
        presented = False
        turn = self._turn or self._say("desk/act", self._wish)
        while True:
            match turn:
                case {"do": "end", "error": error}:
                    raise error_of(error)
                case {"do": "end", "result": dict() as result}:
                    return result
                case {"do": "present", "which": str() as which} if presented or card is None:
                    self._turn, self.wants = turn, which
                    return None
                case {"do": "present"}:
                    assert card is not None
                    presented, said = True, {"atr": card.atr.hex()}
                case {"do": "card", "apdu": str() as apdu}:
                    said = _exchange(card, apdu)
                case _:
                    said = self._asked(turn)
            turn = self._reply(turn, said)

    def stop(self) -> Fields | None:
        """End an act that waits for a card; its result, None when there was nothing to end or no answer."""
        turn, self._turn = self._turn, None
        if turn is None:
            return None
        self.patience_s = 0
        try:
            return self._reply(turn, {"stop": True}).get("result")
        except OneCardError:
            return None  # the office will notice by itself

    def _asked(self, turn: Fields) -> Fields:
        try:
            return self._answer(turn)
        except OneCardError:
            self._reply(turn, {"stop": True})
            raise

    def _reply(self, turn: Fields, said: Fields) -> Fields:
        seq = turn.get("seq")
        try:
            return self._say("desk/answer", {"seq": seq, **said})
        except (NotFound, Conflict) as e:
            raise TransportError("the office has begun anew: present the card again") from e

    def _say(self, verb: str, fields: Fields) -> Fields:
        """Say it until it is heard, and ask until there is a turn."""
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                turn = self._line.call(verb, **self._act, **fields)
            except TransportError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(RETRY_S)
                continue
            if not isinstance(turn.get("do"), str):
                raise FormatError("the office answered without a turn: is it another version?")
            if turn["do"] != "wait":
                return turn


def _exchange(card: Transport | None, apdu: str) -> Fields:
    try:
        command = bytes.fromhex(apdu)
    except ValueError as e:
        raise FormatError("the office sent a command that is not hexadecimal") from e
    try:
        return {"apdu": card.transceive(command).hex()} if card is not None else {"lost": True}
    except TransportError:
        return {"lost": True}


class Issuing(Terminal):
    """An issuing terminal. ``connect`` makes a line to the office, one for each reader."""

    def set_office(self, connect: Callable[[], Line], rules: DeskRules) -> None:
        """Where the office is, and what stands on the desk."""
        self.desk = rules
        self._connect = connect
        self._lines = {CONTROL_READER: connect()}
        self._session = ""

    @property
    def signed_on(self) -> bool:
        """Whether somebody is, as far as this side knows."""
        return bool(self._session)

    def sign_on(self, operator: str, secret: str) -> None:
        """A person proves who he is, this terminal's SAM what it is. Raises Refused, TransportError."""
        wish = {"do": "sign-on", "operator": operator, "secret": secret}
        result = Lending(self._line(CONTROL_READER), CONTROL_READER, self._prove, wish).go_on()
        if result is None or not isinstance(session := result.get("session"), str):
            raise FormatError("the office signed nobody on: is it another version?")
        self._session = session

    def begin(self, reader: int, answer: Callable[[Fields], Fields], wish: Fields) -> Lending:
        """An act with the cards of one reader, under the name of who signed on."""
        return Lending(self._line(reader), reader, answer, wish | {"session": self._session})

    def _line(self, reader: int) -> Line:
        if reader not in self._lines:
            self._lines[reader] = self._connect()
        return self._lines[reader]

    def _prove(self, turn: Fields) -> Fields:
        match turn:
            case {"do": "prove", "factor": str() as factor, "version": int() as version, "challenge": str() as asked}:
                with self._sams.lease() as sam:
                    proof = sam.authenticate(
                        Purpose.CONTROL, bytes.fromhex(factor), version, bytes.fromhex(asked)
                    )  # fmt: skip
                    return {"proof": proof.hex(), "sam": sam.info().serial.hex()}
        raise Refused("host_refused", f"the office asks for something unknown: {str(turn.get('do'))[:16]}")
